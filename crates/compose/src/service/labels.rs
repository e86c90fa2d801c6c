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
        let wait = |ms: Option<u64>| ms.is_some_and(|ms| (1..=MAX_WAIT_MS).contains(&ms));
        let (sound, want) = match name.as_str() {
            LABEL_STRATEGY | "io.balena.update.strategy" => (
                STRATEGIES.contains(&value.as_str()),
                "`download-then-kill`, `kill-then-download`, `delete-then-download` or `hand-over`",
            ),
            LABEL_HEALTHY_AFTER | LABEL_START_TIMEOUT | LABEL_HANDOVER_TIMEOUT => {
                (wait(parse_duration_ms(&value)), "a duration such as `45s` or `2m`, at most 1h")
            }
            "io.balena.update.handover-timeout" => {
                let ms = value.parse().ok().or_else(|| parse_duration_ms(&value));
                (wait(ms), "milliseconds, or a duration such as `45s`, at most 1h")
            }
            LABEL_SECRETS_ENV => (
                value.split(',').all(|name| super::environment::variable_name(name.trim()).is_some()),
                "names of secrets, separated by commas",
            ),
            other if other.starts_with("io.copal.") => {
                reserved(other, at, p);
                continue;
            }
            other if other.starts_with("io.balena.features.") => {
                p.at(
                    at,
                    code::UNSUPPORTED,
                    format!(
                        "{} cannot be honoured: it opens the interface of another supervisor",
                        read::shown(other)
                    ),
                    "remove it; host paths and devices are asked for by `volumes:` and `devices:`",
                );
                continue;
            }
            _ => continue,
        };
        if !sound {
            p.at(
                at,
                code::INVALID,
                format!("{name} cannot be `{}`", read::shown(&value)),
                format!("write {want}"),
            );
        }
    }
    labels
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
