//! The two slots of the operating system.

use copal_protocol::{
    diagnosis::{ProbeResult, Verdict},
    documents::{HostReport, SlotState},
};

use super::update::{Standing, standing};

pub(super) const NAME: &str = "slots";

/// What is known of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// This device's operating system is not Copal's.
    NotOurs,
    /// It is; the agent says this of it.
    Told {
        /// What it says.
        host: Box<HostReport>,
        /// The owner revoked what runs.
        revoked: bool,
    },
    /// It is, and nothing is known.
    Unknown(String),
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let (host, revoked) = match seen {
        Seen::NotOurs => {
            return vec![ProbeResult::new(
                NAME,
                Verdict::Ok,
                "this device's operating system is not Copal's to update",
            )];
        }
        Seen::Unknown(why) => return vec![ProbeResult::new(NAME, Verdict::Unknown, why)],
        Seen::Told { host, revoked } => (host, revoked),
    };
    let mut results = Vec::new();
    if *revoked {
        let detail = format!("{} runs, which its owner revoked", host.version);
        results.push(
            ProbeResult::new(NAME, Verdict::Failed, &detail)
                .advice("send another release (`copal os deploy`): a revoked one is not started again, and has a reason to be"),
        );
    }
    for (name, slot) in &host.slots {
        let what = match slot.state {
            SlotState::Committed => "committed",
            SlotState::Ready => "whole; the other one is trusted",
            SlotState::Trial => "on trial",
            SlotState::Installing => "being written",
            SlotState::Empty => "empty",
            SlotState::Bad => "was tried and undone",
        };
        let runs = if slot.booted { ", runs" } else { "" };
        let detail = format!("{} {what}{runs}", slot.version).trim().to_owned();
        // Without a slot to go back to an update is still safe: it is not begun before this one is committed.
        let verdict = if slot.state == SlotState::Bad { Verdict::Warning } else { Verdict::Ok };
        let advice = if verdict == Verdict::Ok {
            ""
        } else {
            "see why with `copal-agent os status`, and send a release that mends it"
        };
        results.push(ProbeResult::new(NAME, verdict, &detail).of(name).advice(advice));
    }
    if let Some(reason) = &host.reason {
        let said = format!("{}: {}", reason.code, reason.message);
        let (verdict, advice) = match standing(&reason.code) {
            Standing::Moving => (Verdict::Ok, ""),
            Standing::Waiting => (Verdict::Warning, "it goes on by itself when what it waits for is there"),
            Standing::Stuck => (
                Verdict::Failed,
                "the message says what to do; every code is explained in docs/os-updates.md",
            ),
        };
        results.push(ProbeResult::new(NAME, verdict, &said).advice(advice));
    }
    results
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use copal_protocol::documents::SlotReport;

    use super::*;
    use crate::apply::status::reason;

    fn host(b: SlotState, why: Option<&str>) -> Seen {
        let slot = |state, booted| SlotReport { state, booted, release: None, version: "1.0.0".to_owned() };
        let slots = BTreeMap::from([
            ("a".to_owned(), slot(SlotState::Committed, true)),
            ("b".to_owned(), slot(b, false)),
        ]);
        let host = Box::new(HostReport {
            backend: "grub".to_owned(),
            slots,
            release: None,
            version: "1.0.0".to_owned(),
            reason: why.map(|code| reason(code, "so it is")),
            progress: None,
            failed: None,
        });
        Seen::Told { host, revoked: false }
    }

    #[test]
    fn slots_and_what_holds_them_back_are_told() {
        use Verdict::{Failed, Ok as Well, Unknown, Warning};
        for (seen, verdicts) in [
            (host(SlotState::Ready, None), vec![Well, Well]),
            (host(SlotState::Bad, None), vec![Well, Warning]),
            (host(SlotState::Installing, Some("os_downloading")), vec![Well, Well, Well]),
            (host(SlotState::Ready, Some("os_waiting_window")), vec![Well, Well, Warning]),
            (host(SlotState::Bad, Some("os_unhealthy")), vec![Well, Warning, Failed]),
            (Seen::NotOurs, vec![Well]),
            (Seen::Unknown("no agent".to_owned()), vec![Unknown]),
        ] {
            let results = judge(&seen);
            assert_eq!(results.iter().map(|r| r.verdict).collect::<Vec<_>>(), verdicts, "{results:?}");
        }
        assert_eq!(judge(&host(SlotState::Ready, None))[0].detail, "1.0.0 committed, runs");
    }

    #[test]
    fn an_operating_system_that_its_owner_revoked_fails() {
        let Seen::Told { host, .. } = host(SlotState::Ready, None) else { panic!("it is told") };
        let result = judge(&Seen::Told { host, revoked: true }).remove(0);
        assert_eq!(result.verdict, Verdict::Failed, "{result:?}");
        assert!(result.detail.contains("revoked") && result.advice.contains("copal os deploy"), "{result:?}");
    }
}
