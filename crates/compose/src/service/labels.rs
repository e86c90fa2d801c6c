//! `labels:`, and those by which a service steers its updates.

use std::collections::BTreeMap;

use copal_protocol::spec::{
    LABEL_HANDOVER_TIMEOUT, LABEL_HEALTHY_AFTER, LABEL_SECRETS_ENV, LABEL_START_TIMEOUT, LABEL_STRATEGY,
    parse_duration_ms,
};

use crate::{
    problem::{Problems, code},
    read,
    tree::Node,
};

const STRATEGIES: &[&str] =
    &["download-then-kill", "kill-then-download", "delete-then-download", "hand-over"];
/// An hour: a trial that lasts longer would leave a device between two releases for a shift.
const MAX_WAIT_MS: u64 = 3_600_000;

/// Labels of networks and volumes.
pub(crate) fn plain(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let labels = read::pair_map(node, p);
    for (name, _, at) in read::pairs(node, p) {
        if name.starts_with("io.copal.") {
            reserved(&name, at, p);
        }
    }
    labels
}

/// Labels of a service: those beginning with `io.copal.` must be ones that mean something.
pub(crate) fn of_service(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let labels = read::pair_map(node, p);
    for (name, value, at) in read::pairs(node, p) {
        let value = value.unwrap_or_default();
        match name.as_str() {
            LABEL_STRATEGY | "io.balena.update.strategy" => {
                if !STRATEGIES.contains(&value.as_str()) {
                    bad(&name, at, p, &format!("one of {}", STRATEGIES.join(", ")));
                }
            }
            LABEL_HEALTHY_AFTER | LABEL_START_TIMEOUT | LABEL_HANDOVER_TIMEOUT => {
                if !parse_duration_ms(&value).is_some_and(|ms| (1..=MAX_WAIT_MS).contains(&ms)) {
                    bad(&name, at, p, "a duration such as `45s` or `2m`, at most 1h");
                }
            }
            "io.balena.update.handover-timeout" => {
                let ms = value.parse().ok().or_else(|| parse_duration_ms(&value));
                if !ms.is_some_and(|ms| (1..=MAX_WAIT_MS).contains(&ms)) {
                    bad(&name, at, p, "milliseconds, or a duration such as `45s`, at most 1h");
                }
            }
            LABEL_SECRETS_ENV => {
                let names: Vec<&str> = value.split(',').map(str::trim).collect();
                if !names.iter().all(|name| super::environment::variable_name(name).is_some()) {
                    bad(&name, at, p, "names of secrets, separated by commas");
                }
            }
            other if other.starts_with("io.copal.") => reserved(other, at, p),
            other if other.starts_with("io.balena.features.") => p.at(
                at,
                code::UNSUPPORTED,
                format!(
                    "{} cannot be honoured: it opens the interface of another supervisor",
                    read::shown(other)
                ),
                "remove it; host paths and devices are asked for by `volumes:` and `devices:`",
            ),
            _ => {}
        }
    }
    labels
}

fn bad(name: &str, at: &Node, p: &mut Problems, want: &str) {
    p.at(at, code::INVALID, format!("{name} must be {want}"), "put the label's value right");
}

fn reserved(name: &str, at: &Node, p: &mut Problems) {
    p.at(
        at,
        code::UNSUPPORTED,
        format!("{} is reserved: labels that begin with io.copal. are the agent's", read::shown(name)),
        format!(
            "remove it; a service may have {LABEL_STRATEGY}, {LABEL_HEALTHY_AFTER}, {LABEL_START_TIMEOUT}, \
             {LABEL_HANDOVER_TIMEOUT}, {LABEL_SECRETS_ENV}"
        ),
    );
}
