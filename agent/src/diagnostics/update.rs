//! Whether what runs is what should, and why not.

use copal_protocol::{
    diagnosis::{ProbeResult, Verdict},
    documents::{LockState, Reason},
};

use crate::report::Status;

pub(super) const NAME: &str = "update";

/// How a reason is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is on its way.
    Moving,
    /// It waits for something that may come by itself.
    Waiting,
    /// Nothing changes before a person (or another release) does something.
    Stuck,
}

/// How this code is to be taken. A code that is not known is worth a look.
#[must_use]
pub fn standing(code: &str) -> Standing {
    match code {
        "downloading" | "starting" | "trial" | "os_downloading" | "os_verifying" | "os_trial"
        | "agent_downloading" | "agent_trial" => Standing::Moving,
        "locked"
        | "paused"
        | "stopped"
        | "not_fresh"
        | "no_assignment"
        | "waiting_not_before"
        | "waiting_dependency"
        | "os_waiting_lock"
        | "os_waiting_window"
        | "os_download"
        | "os_cloud_unreachable"
        | "os_not_managed"
        | "E_TRANSPORT"
        | "E_SLOW" => Standing::Waiting,
        _ => Standing::Stuck,
    }
}

/// Judges the agent's status; `None`, and why, where there is none.
#[must_use]
pub fn judge(status: Result<&Status, &str>) -> Vec<ProbeResult> {
    let status = match status {
        Ok(status) => status,
        Err(why) => return vec![ProbeResult::new(NAME, Verdict::Unknown, why)],
    };
    let said = |reason: &Reason| format!("{}: {}", reason.code, reason.message);
    let locked = if status.lock == LockState::Locked { "; the fleet is locked" } else { "" };
    let mut results = vec![match &status.reason {
        None if status.on_target => {
            ProbeResult::new(NAME, Verdict::Ok, &format!("everything that should run runs{locked}"))
        }
        None => ProbeResult::new(NAME, Verdict::Ok, "on the way to its target"),
        Some(reason) => {
            let (verdict, advice) = match standing(&reason.code) {
                Standing::Moving => (Verdict::Ok, ""),
                Standing::Waiting => {
                    (Verdict::Warning, "it goes on by itself when what it waits for is there")
                }
                Standing::Stuck => (
                    Verdict::Failed,
                    "see which service and why (`copal device show`, `copal-agent status`); mend it and push, or pin a release that works",
                ),
            };
            let progress = status.progress.as_ref().filter(|p| p.total > 0);
            let progress =
                progress.map(|p| format!(" ({} of {} MB)", p.done / 1_000_000, p.total / 1_000_000));
            let detail = format!("{}{}", said(reason), progress.unwrap_or_default());
            ProbeResult::new(NAME, verdict, &detail).advice(advice)
        }
    }];
    if let Some(reason) = status.offline.as_ref().filter(|_| !status.online) {
        results.push(
            ProbeResult::new(NAME, Verdict::Warning, &format!("no news from the cloud: {}", said(reason)))
                .of("cloud")
                .advice("what runs goes on; see the result of cloud"),
        );
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apply::status::reason, diagnostics::tests::status};

    #[test]
    fn reasons_are_taken_by_what_they_ask_of_a_person() {
        for (code, verdict) in [
            (None, Verdict::Ok),
            (Some("downloading"), Verdict::Ok),
            (Some("locked"), Verdict::Warning),
            (Some("crash_loop"), Verdict::Failed),
            (Some("E_SIG_THRESHOLD"), Verdict::Failed),
            (Some("of_a_later_version"), Verdict::Failed),
        ] {
            let status =
                Status { reason: code.map(|c| reason(c, "so it is")), on_target: code.is_none(), ..status() };
            let result = judge(Ok(&status)).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert_eq!(result.advice.is_empty(), verdict == Verdict::Ok);
        }
        assert_eq!(judge(Err("no agent ran"))[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn a_device_without_its_cloud_is_told_beside() {
        let status = Status { online: false, offline: Some(reason("E_TRANSPORT", "no route")), ..status() };
        let results = judge(Ok(&status));
        assert_eq!((results.len(), results[1].verdict), (2, Verdict::Warning));
    }

    #[test]
    fn every_reason_that_waits_or_moves_stands_in_the_protocol_text() {
        let source =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/diagnostics/update.rs"))
                .unwrap();
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md")).unwrap();
        let (_, body) = source.split_once("match code {").unwrap();
        let (body, _) = body.split_once("_ =>").unwrap();
        let codes: Vec<&str> = body.split('"').skip(1).step_by(2).collect();
        assert!(codes.len() > 15, "{codes:?}");
        for code in codes {
            assert!(text.contains(&format!("| `{code}` |")), "{code} is no reason");
        }
    }
}
