//! Why this device booted, and that its agent started. In: the last event of before, the boot's id, files of the kernel. Pure but
//! for those.

use serde_json::Value;

use super::Note;
use crate::diagnostics::Tree;

/// Card reset and overheat bits of a watchdog's `bootstatus`.
const CARD_RESET: i64 = 0x20;

/// What is to be told at the agent's start.
#[derive(Debug)]
pub struct Boot {
    /// `asked`, `unclean`, `watchdog`, `panic`, `unknown`.
    pub reason: &'static str,
    /// The events.
    pub notes: Vec<Note>,
}

/// Judges: `last` is the last event on the disk with its boot; `boot_id` this boot's.
#[must_use]
pub fn boot(tree: &Tree, last: Option<&(String, Value)>, boot_id: &str, version: &str) -> Boot {
    let started = Note::new("agent", "started", &format!("the agent {version} started"));
    let kernel = from_kernel(tree);
    let reason = match last {
        _ if kernel.is_some() => kernel.unwrap_or("unknown"),
        None => "unknown",
        // The agent was told to stop, and nothing happened after: an orderly end of the boot before.
        Some((_, event)) if event["kind"] == "agent" && event["code"] == "stopped" => "asked",
        Some(_) => "unclean",
    };
    let mut notes = Vec::new();
    if last.is_none_or(|(before, _)| before != boot_id) {
        let message = match reason {
            "asked" => "the device restarted in order",
            "watchdog" => "the device hung, and its watchdog restarted it",
            "panic" => "the kernel panicked, and the device restarted",
            "unclean" => "the device restarted without a warning: its power went, or it was reset",
            _ => "the device booted",
        };
        notes.push(Note::new("boot", reason, message));
    }
    notes.push(started.with("version", version));
    Boot { reason, notes }
}

fn from_kernel(tree: &Tree) -> Option<&'static str> {
    let watchdogs = tree.names("sys/class/watchdog");
    let by_watchdog = watchdogs.iter().any(|name| {
        tree.number(&format!("sys/class/watchdog/{name}/bootstatus")).is_some_and(|s| s & CARD_RESET != 0)
    });
    if by_watchdog {
        return Some("watchdog");
    }
    // What a panicking kernel left of its log; systemd moves it away once it was seen.
    tree.names("sys/fs/pstore").iter().any(|name| name.starts_with("dmesg-")).then_some("panic")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diagnostics::tests::plant;

    fn told(boot: &Boot) -> Vec<String> {
        boot.notes.iter().map(|n| format!("{} {}", n.name().0, n.name().1)).collect()
    }

    #[test]
    fn a_boot_is_told_with_its_reason_and_a_restart_of_the_agent_alone_is_none() {
        let (_dir, tree) = plant(&[("sys/class/watchdog/watchdog0/bootstatus", "0\n")]);
        let stopped = || Some(("a".to_owned(), json!({"kind": "agent", "code": "stopped"})));
        let cut = || Some(("a".to_owned(), json!({"kind": "service", "code": "started"})));
        for (last, boot_id, expected) in [
            (None, "a", &["boot unknown", "agent started"][..]),
            (stopped(), "a", &["agent started"]),
            (cut(), "a", &["agent started"]),
            (stopped(), "b", &["boot asked", "agent started"]),
            (cut(), "b", &["boot unclean", "agent started"]),
        ] {
            assert_eq!(told(&boot(&tree, last.as_ref(), boot_id, "1.0.0")), expected);
        }
        let (_dir, tree) = plant(&[("sys/class/watchdog/watchdog0/bootstatus", "32\n")]);
        assert_eq!(boot(&tree, cut().as_ref(), "b", "1.0.0").reason, "watchdog");
        let (_dir, tree) = plant(&[("sys/fs/pstore/dmesg-ramoops-0", "x")]);
        assert_eq!(boot(&tree, stopped().as_ref(), "b", "1.0.0").reason, "panic");
    }
}
