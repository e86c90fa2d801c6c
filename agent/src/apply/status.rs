//! What the agent says of itself: one value, replaced as a whole.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{Progress, Reason, RunningService},
    ids::{AppId, Name, Sha256Hex},
};

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentStatus {
    /// By app.
    pub apps: BTreeMap<AppId, AppStatus>,
    /// (assign_epoch, seq) of the newest target whose whole content runs and is committed.
    pub applied: Option<(u64, u64)>,
    /// What concerns the whole device (`engine_absent`, `no_assignment`); apps have their own.
    pub reason: Option<Reason>,
}

/// How an app stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppStatus {
    /// What its containers do, by service.
    pub running: BTreeMap<Name, RunningService>,
    /// The committed effective target, and its release's payload hash.
    pub committed: Option<(Sha256Hex, Sha256Hex)>,
    /// The effective target it should run, and its release's payload hash; absent where it should not be here.
    pub target: Option<(Sha256Hex, Sha256Hex)>,
    /// Why it is not on target; absent when it is.
    pub reason: Option<Reason>,
    /// How far its download or trial is.
    pub progress: Option<Progress>,
}

/// Reason codes from the least to the most telling: where several things are wrong, the last is shown.
const ORDER: &[&str] = &[
    "trial",
    "os_trial",
    "os_waiting_window",
    "os_waiting_lock",
    "os_verifying",
    "os_downloading",
    "starting",
    "waiting_dependency",
    "downloading",
    "waiting_not_before",
    "stopped",
    "paused",
    "not_fresh",
    "locked",
    "dependency_failed",
    "conflict",
    "image_failed",
    "start_timeout",
    "unhealthy",
    "exited",
    "crash_loop",
    "start_failed",
    "os_not_managed",
    "os_rolled_back",
    "os_cancelled",
    "os_cloud_unreachable",
    "os_power_lost",
    "os_no_verdict",
    "os_unhealthy",
    "parked",
    "rolled_back",
    "no_space",
    "no_assignment",
    "engine_absent",
];

/// How telling a code is; an `E_…` outweighs waiting and is outweighed by what was undone.
#[must_use]
pub fn weight(code: &str) -> usize {
    let after = |word: &str| ORDER.iter().position(|c| *c == word).map_or(0, |i| i * 2 + 1);
    ORDER.iter().position(|c| *c == code).map_or_else(|| after("start_failed"), |i| i * 2)
}

impl AgentStatus {
    /// The one reason shown for the device: its own, or the most telling of its apps'.
    #[must_use]
    pub fn telling(&self) -> Option<&Reason> {
        self.reason.as_ref().or_else(|| {
            self.apps.values().filter_map(|app| app.reason.as_ref()).max_by_key(|reason| weight(&reason.code))
        })
    }

    /// The progress that belongs to [`AgentStatus::telling`]: downloads summed, else the last trial to end.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        let mut all = self.apps.values().filter_map(|app| app.progress.as_ref());
        let mut sum = all.next()?.clone();
        for next in all {
            if next.stage == sum.stage {
                sum.done += next.done;
                sum.total += next.total;
                sum.trial_ends = sum.trial_ends.max(next.trial_ends);
            } else if next.stage == "downloading" {
                sum = next.clone();
            }
        }
        Some(sum)
    }
}

/// A reason with nothing but a code and a sentence.
#[must_use]
pub fn reason(code: &str, message: impl Into<String>) -> Reason {
    Reason {
        code: code.to_owned(),
        message: message.into(),
        release: None,
        service: None,
        exit_code: None,
        log_tail: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_undone_outweighs_what_is_awaited() {
        let mut words = vec!["rolled_back", "E_PULL_VERIFY", "downloading", "engine_absent", "trial"];
        words.sort_by_key(|word| weight(word));
        assert_eq!(words, ["trial", "downloading", "E_PULL_VERIFY", "rolled_back", "engine_absent"]);
    }
}
