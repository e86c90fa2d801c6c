//! `healthcheck:`.

use copal_protocol::spec::Healthcheck;

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

pub(crate) fn read(node: &Node, p: &mut Problems) -> Option<Healthcheck> {
    let mut check = Healthcheck::default();
    let mut disabled = false;
    for entry in read::map(node, p) {
        if !keys::admit(&keys::HEALTHCHECK, entry, p) {
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "test" => check.test = test(value, p),
            "interval" => check.interval_ms = duration(value, p),
            "timeout" => check.timeout_ms = duration(value, p),
            "start_period" => check.start_period_ms = duration(value, p),
            "retries" => {
                check.retries = read::integer(value, p, 1, 1000).and_then(|n| u32::try_from(n).ok());
            }
            _ => disabled = read::boolean(value, p).unwrap_or_default(),
        }
    }
    // Without a check its times mean nothing.
    if disabled || check.test.as_ref().is_some_and(|test| test == &["NONE"]) {
        return Some(Healthcheck { test: Some(vec!["NONE".to_owned()]), ..Healthcheck::default() });
    }
    (check != Healthcheck::default()).then_some(check)
}

/// The engine takes 0 for "the image's or the default", and refuses less than a millisecond.
fn duration(node: &Node, p: &mut Problems) -> Option<u64> {
    read::duration_ms(node, p).filter(|ms| *ms > 0)
}

fn test(node: &Node, p: &mut Problems) -> Option<Vec<String>> {
    if let Value::Scalar(_) = node.value {
        return read::word(node, p).map(|line| vec!["CMD-SHELL".to_owned(), line.to_owned()]);
    }
    let words: Vec<String> =
        read::list(node, p).iter().filter_map(|i| read::text(i, p)).map(str::to_owned).collect();
    let sound = match words.first().map(String::as_str) {
        Some("NONE") => words.len() == 1,
        Some("CMD-SHELL") => words.len() == 2,
        Some("CMD") => words.len() >= 2,
        _ => false,
    };
    if !sound {
        p.at(
            node,
            code::INVALID,
            "is not a health check",
            "write a command line, or a list that begins with CMD, CMD-SHELL (and one line) or NONE",
        );
    }
    sound.then_some(words)
}
