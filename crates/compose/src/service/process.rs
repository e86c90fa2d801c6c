//! What runs inside: command, user, names, restart and stop.

use copal_protocol::spec::{Logging, Restart, ServiceSpec};

use super::networks::host_name;
use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// Reads the keys of this room; false for the others.
pub(super) fn read_key(spec: &mut ServiceSpec, key: &str, node: &Node, p: &mut Problems) -> bool {
    let word = |p: &mut Problems| read::word(node, p).map(str::to_owned);
    match key {
        "init" => spec.init = read::boolean(node, p),
        "read_only" => spec.read_only = read::boolean(node, p).unwrap_or_default(),
        "tty" => spec.tty = read::boolean(node, p).unwrap_or_default(),
        "stdin_open" => spec.stdin_open = read::boolean(node, p).unwrap_or_default(),
        "user" => {
            spec.user = read::parsed(node, p, "a user, as `name`, `1000` or `1000:1000`", |t| {
                (!t.contains(char::is_whitespace) && t.split(':').all(|part| !part.is_empty()))
                    .then(|| t.to_owned())
            });
        }
        "group_add" => {
            spec.group_add =
                read::list(node, p).iter().filter_map(|i| read::word(i, p)).map(str::to_owned).collect();
        }
        "working_dir" => {
            spec.working_dir = read::parsed(node, p, "an absolute path", read::absolute_path);
        }
        "hostname" => {
            spec.hostname = read::parsed(node, p, "a host name", |t| host_name(t).then(|| t.to_owned()));
        }
        "domainname" => {
            spec.domainname = read::parsed(node, p, "a domain name", |t| host_name(t).then(|| t.to_owned()));
        }
        "runtime" => spec.runtime = word(p),
        "logging" => spec.logging = logging(node, p),
        "stop_signal" => {
            spec.stop_signal = read::parsed(node, p, "a signal such as `SIGTERM` or `15`", signal);
        }
        "stop_grace_period" => spec.stop_grace_period_ms = read::duration_ms(node, p),
        _ => return false,
    }
    true
}

/// `command` and `entrypoint`: a list, or a string split as a shell splits it (nothing is replaced).
pub(super) fn arguments(node: &Node, p: &mut Problems) -> Option<Vec<String>> {
    match &node.value {
        Value::Null => None,
        Value::Scalar(line) => {
            let words = split(line);
            if words.is_none() {
                p.at(
                    node,
                    code::INVALID,
                    "has a quote that is not closed",
                    "close it, or write the words as a list",
                );
            }
            words
        }
        _ => Some(read::list(node, p).iter().filter_map(|i| read::text(i, p)).map(str::to_owned).collect()),
    }
}

/// Whether a command says "nothing", which is not the same as saying nothing.
pub(super) fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::List(items) => items.is_empty(),
        Value::Scalar(line) => line.trim().is_empty(),
        _ => false,
    }
}

/// Words as a POSIX shell sees them. `None`: a quote stays open.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            // Within double quotes a backslash escapes only these.
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next()? {
                '\n' => {}
                c => word.get_or_insert_default().push(c),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// `restart:`.
pub(super) fn restart(node: &Node, p: &mut Problems) -> Option<Restart> {
    read::parsed(node, p, "`no`, `always`, `unless-stopped` or `on-failure[:times]`", |text| match text {
        // A YAML 1.1 editor turns an unquoted `no` into `false`.
        "no" | "false" => Some(Restart::No),
        "always" => Some(Restart::Always),
        "unless-stopped" => Some(Restart::UnlessStopped),
        "on-failure" => Some(Restart::OnFailure { max: 0 }),
        other => other
            .strip_prefix("on-failure:")
            .and_then(|n| n.parse().ok())
            .map(|max| Restart::OnFailure { max }),
    })
}

fn logging(node: &Node, p: &mut Problems) -> Option<Logging> {
    let mut logging = Logging { driver: String::new(), options: Default::default() };
    for entry in read::map(node, p) {
        if !keys::one_of(&["driver", "options"], entry, p) {
            continue;
        }
        if entry.name == "driver" {
            let driver = read::parsed(
                &entry.node,
                p,
                "a log driver such as `json-file`, `local` or `journald`",
                |t| {
                    t.bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b))
                        .then(|| t.to_owned())
                },
            );
            logging.driver = driver?;
        } else {
            logging.options = read::pair_map(&entry.node, p);
        }
    }
    if logging.driver.is_empty() {
        if !node.is_null() {
            p.at(
                node,
                code::MISSING,
                "has no `driver`: options mean something else to each",
                "write `driver: json-file`",
            );
        }
        return None;
    }
    Some(logging)
}

/// A signal by name (with `SIG`) or number.
fn signal(text: &str) -> Option<String> {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number).then(|| number.to_string());
    }
    let name = text.to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    let sane = (2..=10).contains(&bare.len())
        && bare.starts_with(|c: char| c.is_ascii_uppercase())
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'-');
    sane.then(|| format!("SIG{bare}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_split_as_a_shell_splits_it() {
        for (line, want) in [
            ("", vec![]),
            ("  a  b\tc\n", vec!["a", "b", "c"]),
            ("sh -c 'echo \"x\" && y'", vec!["sh", "-c", "echo \"x\" && y"]),
            (r#"a "b \"c\" \n" d\ e"#, vec!["a", r#"b "c" \n"#, "d e"]),
            ("a '' \"\"", vec!["a", "", ""]),
            ("a'b'c", vec!["abc"]),
            ("a \\\n b", vec!["a", "b"]),
        ] {
            assert_eq!(split(line), Some(want.into_iter().map(str::to_owned).collect()), "{line}");
        }
        for open in ["'a", "\"a", "a \\"] {
            assert_eq!(split(open), None, "{open}");
        }
    }

    #[test]
    fn signals_have_one_spelling() {
        for (text, want) in
            [("SIGTERM", "SIGTERM"), ("term", "SIGTERM"), ("SIGRTMIN+3", "SIGRTMIN+3"), ("15", "15")]
        {
            assert_eq!(signal(text).as_deref(), Some(want), "{text}");
        }
        for bad in ["0", "99", "SIG", "TE RM", "-1"] {
            assert_eq!(signal(bad), None, "{bad}");
        }
    }
}
