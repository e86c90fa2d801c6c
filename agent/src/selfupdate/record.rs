//! What is remembered of agents, and how it changes. Pure.
//!
//! No field is ever removed or given another meaning, and unknown ones are passed over: an installed binary of years ago
//! reads what the newest wrote.

use copal_protocol::ids::Sha256Hex;
use semver::Version;
use serde::{Deserialize, Serialize};

/// Starts a trial gets before its silence counts as failure. More than one, so that a power cut is not taken for a crash.
pub const STARTS: u32 = 3;

/// The longest wait before an inconclusive trial is made again, seconds: a week.
const LONGEST_S: u64 = 7 * 86_400;

/// The durable record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of the installed binary when `committed` was written: a different one means a person installed it since.
    pub base: Option<Version>,
    /// The one that runs; absent where the installed one does.
    pub committed: Option<Build>,
    /// The one on trial.
    pub trial: Option<Trial>,
    /// The one that was undone last.
    pub parked: Option<Parked>,
    /// How often the parked one was inconclusive: each time the wait doubles.
    pub inconclusive: u32,
}

/// A binary of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Payload hash of the release.
    pub release: Sha256Hex,
    /// The assignment's `retry` when it was chosen.
    #[serde(default)]
    pub retry: u64,
    /// Hash of the binary.
    pub file: Sha256Hex,
    /// Its version.
    pub version: Version,
}

/// A trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Of what.
    pub build: Build,
    /// Starts so far without a verdict.
    #[serde(default)]
    pub starts: u32,
    /// The cloud answered the old agent.
    #[serde(default)]
    pub had_cloud: bool,
    /// The engine answered the old agent.
    #[serde(default)]
    pub had_engine: bool,
    /// Why it is to be undone.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}

/// Why a trial is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Stable.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Seconds after which it may be tried again by itself; absent: not until the target changes.
    #[serde(default)]
    pub again_after: Option<u64>,
}

/// An undone build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which.
    pub build: Build,
    /// Why.
    pub verdict: Verdict,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The binary that asks.
    Installed,
    /// The committed one.
    Committed(Build),
    /// The one on trial; its start is counted in the record, which must be durable before it starts.
    Trial(Build),
}

impl Record {
    /// Decides what the installed binary, of this version, starts, and counts it.
    pub fn start(&mut self, installed: &Version) -> Start {
        if self.base.as_ref().is_some_and(|base| base != installed)
            && self.committed.as_ref().is_some_and(|c| c.version <= *installed)
        {
            // A person installed a newer one by hand: what was committed before it is history.
            self.committed = None;
        }
        match &mut self.trial {
            Some(trial) if trial.verdict.is_none() && trial.starts < STARTS => {
                trial.starts += 1;
                return Start::Trial(trial.build.clone());
            }
            Some(trial) => {
                let verdict = trial.verdict.clone().unwrap_or_else(|| Verdict {
                    code: "agent_no_verdict".to_owned(),
                    message: format!(
                        "agent {} was started {STARTS} times and ended or hung each time before it could say that it is \
                         well; the agent before it runs again",
                        trial.build.version
                    ),
                    again_after: None,
                });
                self.undo(verdict);
            }
            None => {}
        }
        self.committed.clone().map_or(Start::Installed, Start::Committed)
    }

    /// Ends the trial badly.
    pub fn undo(&mut self, verdict: Verdict) {
        if let Some(trial) = self.trial.take() {
            let again = self.parked.as_ref().is_some_and(|p| p.build == trial.build);
            self.inconclusive = if again { self.inconclusive.saturating_add(1) } else { 0 };
            let doubled = |s: u64| s.saturating_mul(1 << self.inconclusive.min(10)).min(LONGEST_S);
            let verdict = Verdict { again_after: verdict.again_after.map(doubled), ..verdict };
            self.parked = Some(Parked { build: trial.build, verdict });
        }
    }

    /// Ends the trial well; `base` is the installed binary's version.
    pub fn commit(&mut self, base: Version) {
        if let Some(trial) = self.trial.take() {
            self.parked = None;
            self.inconclusive = 0;
            self.base = Some(base);
            self.committed = Some(trial.build);
        }
    }

    /// Why this release (with this retry) was undone, where it was.
    #[must_use]
    pub fn parked(&self, release: Sha256Hex, retry: u64) -> Option<&Verdict> {
        let same = |p: &&Parked| p.build.release == release && p.build.retry == retry;
        self.parked.as_ref().filter(same).map(|p| &p.verdict)
    }

    /// The files that are still of use.
    pub fn files(&self) -> impl Iterator<Item = Sha256Hex> {
        self.committed.iter().chain(self.trial.iter().map(|t| &t.build)).map(|build| build.file)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn build(n: u8, of: &str) -> Build {
        let hash = Sha256Hex::of(&[n]);
        Build { release: hash, retry: 0, file: hash, version: version(of) }
    }

    fn trial(build: Build) -> Trial {
        Trial { build, starts: 0, had_cloud: true, had_engine: true, verdict: None }
    }

    fn bad(again_after: Option<u64>) -> Verdict {
        Verdict { code: "agent_unhealthy".to_owned(), message: String::new(), again_after }
    }

    #[test]
    fn a_trial_that_says_nothing_is_started_three_times_and_then_undone() {
        let installed = version("1.0.0");
        let mut record = Record { trial: Some(trial(build(1, "1.1.0"))), ..Record::default() };
        for _ in 0..STARTS {
            assert_eq!(record.start(&installed), Start::Trial(build(1, "1.1.0")));
        }
        assert_eq!(record.start(&installed), Start::Installed);
        let why = record.parked(build(1, "1.1.0").release, 0).unwrap();
        assert_eq!(why.code, "agent_no_verdict");
        assert!(record.parked(build(1, "1.1.0").release, 1).is_none(), "a person asked again");
    }

    #[test]
    fn a_bad_trial_gives_way_to_what_was_committed() {
        let installed = version("1.0.0");
        let mut record = Record { trial: Some(trial(build(1, "1.1.0"))), ..Record::default() };
        record.start(&installed);
        record.commit(installed.clone());
        record.trial = Some(Trial { verdict: Some(bad(None)), ..trial(build(2, "1.2.0")) });
        assert_eq!(record.start(&installed), Start::Committed(build(1, "1.1.0")));
        assert_eq!(record.start(&installed), Start::Committed(build(1, "1.1.0")), "and stays");
        assert!(record.parked(build(2, "1.2.0").release, 0).is_some());
    }

    #[test]
    fn an_inconclusive_trial_is_due_again_later_and_each_time_later() {
        let mut record = Record::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            record.trial = Some(trial(build(1, "1.1.0")));
            record.undo(bad(Some(3600)));
            waits.push(record.parked(build(1, "1.1.0").release, 0).unwrap().again_after.unwrap());
        }
        assert_eq!(waits[..3], [3600, 7200, 14_400]);
        assert_eq!(waits[11], LONGEST_S);
        record.trial = Some(trial(build(2, "1.2.0")));
        record.undo(bad(Some(3600)));
        assert_eq!(record.parked.unwrap().verdict.again_after, Some(3600), "another release begins anew");
    }

    #[test]
    fn a_newer_one_installed_by_hand_is_not_hidden_by_an_older_committed_one() {
        let mut record = Record { trial: Some(trial(build(1, "1.1.0"))), ..Record::default() };
        record.start(&version("1.0.0"));
        record.commit(version("1.0.0"));
        let before = record.clone();
        assert_eq!(record.start(&version("1.2.0")), Start::Installed);
        let mut record = before;
        assert_eq!(record.start(&version("1.0.1")), Start::Committed(build(1, "1.1.0")), "still the newer");
    }

    #[test]
    fn an_older_agent_that_the_owner_wanted_stays_beside_a_newer_installed_one() {
        let mut record = Record { trial: Some(trial(build(1, "0.9.0"))), ..Record::default() };
        record.start(&version("1.0.0"));
        record.commit(version("1.0.0"));
        assert_eq!(record.start(&version("1.0.0")), Start::Committed(build(1, "0.9.0")));
    }

    #[test]
    fn what_a_later_agent_adds_to_the_record_is_passed_over() {
        let mut json =
            serde_json::to_value(Record { trial: Some(trial(build(1, "1.1.0"))), ..Record::default() })
                .unwrap();
        json["invented"] = true.into();
        json["trial"]["invented"] = true.into();
        assert!(serde_json::from_value::<Record>(json).unwrap().trial.is_some());
        assert_eq!(serde_json::from_str::<Record>("{}").unwrap(), Record::default());
    }

    proptest! {
        /// Whatever happens to agents on trial, each is started a bounded number of times, and what was committed comes
        /// back.
        #[test]
        fn no_order_of_events_starts_a_trial_for_ever_or_loses_the_committed_one(events in prop::collection::vec(0_u8..5, 0..80)) {
            let installed = version("1.0.0");
            let mut record = Record::default();
            let mut committed: Option<Build> = None;
            let (mut next, mut silent) = (0_u8, 0_u32);
            for event in events {
                match event {
                    0 if record.trial.is_none() => {
                        next = next.wrapping_add(1);
                        record.trial = Some(trial(build(next, "1.1.0")));
                        silent = 0;
                    }
                    1 if silent > 0 => {
                        committed = record.trial.as_ref().map(|t| t.build.clone()).or(committed);
                        record.commit(installed.clone());
                        silent = 0;
                    }
                    2 => {
                        if let Some(trial) = &mut record.trial {
                            trial.verdict = Some(bad(None));
                        }
                    }
                    _ => match record.start(&installed) {
                        Start::Trial(_) => {
                            silent += 1;
                            prop_assert!(silent <= STARTS);
                        }
                        Start::Committed(build) => prop_assert_eq!(Some(build), committed.clone()),
                        Start::Installed => prop_assert_eq!(None, committed.clone()),
                    },
                }
            }
        }
    }
}
