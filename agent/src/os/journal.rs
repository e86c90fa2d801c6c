//! What is remembered of updates over restarts: one value, kept in two checksummed copies (file `os`).
//!
//! Fields that are not known are passed over: after a rollback an older agent reads what a newer one wrote. It never claims more than the disk holds: a slot's content is forgotten before its first byte changes, and noted
//! after it was read back. Losing it loses no device: what may boot is decided by the boot state and by the slots.

use std::collections::BTreeMap;

use copal_protocol::{documents::Reason, ids::Sha256Hex};
use serde::{Deserialize, Serialize};

use super::Slot;
use crate::state::{StateDir, StateError};

const FILE: &str = "os";

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// What is in each slot. A slot that is not named may hold anything: the factory's image, or half of one.
    pub slots: BTreeMap<Slot, Content>,
    /// The update under way.
    pub attempt: Option<Attempt>,
    /// What is not tried again, and why.
    pub parked: Option<Parked>,
    /// How the last attempt ended, for people.
    pub last: Option<Ended>,
    /// The release that the running slot was compared with, and is not.
    pub compared: Option<Sha256Hex>,
}

/// What is in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Nothing that could boot.
    Empty,
    /// This release, whole.
    Release(Image),
}

/// A release in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Payload hash.
    pub release: Sha256Hex,
    /// Its version.
    pub version: semver::Version,
    /// Its counter, for floors.
    pub counter: u64,
    /// It was tried and undone.
    #[serde(default)]
    pub bad: bool,
    /// It is bad, and its first bytes were taken away: nothing boots it any more.
    #[serde(default)]
    pub gone: bool,
    /// No release names it: the factory's. `release` is then a name of this device's own, `counter` its own floor, which no
    /// image is below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<Factory>,
}

/// What an image that no release names says of itself, noted while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Factory {
    /// The newest format of the data partition that it reads.
    pub data_schema: u64,
}

impl Image {
    /// The image of a slot that no release names, by its own `os.json`.
    #[must_use]
    pub fn of_factory(slot: Slot, version: &semver::Version, floor: u64, data_schema: u64) -> Self {
        Self {
            release: Sha256Hex::of(format!("factory image {version} in slot {slot}").as_bytes()),
            version: version.clone(),
            counter: floor,
            bad: false,
            gone: false,
            factory: Some(Factory { data_schema }),
        }
    }
}

/// What names an attempt: the same release with another `retry` is another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Payload hash.
    pub release: Sha256Hex,
    /// Rises when a person asks to try again.
    pub retry: u64,
}

/// An update under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub key: Key,
    /// The release's version.
    pub version: semver::Version,
    /// The release's counter.
    pub counter: u64,
    /// Where to.
    pub slot: Slot,
    /// How far.
    pub stage: Stage,
    /// A person asked for it at the device; the cloud's target does not count until it ended.
    #[serde(default)]
    pub by_hand: bool,
    /// The bundle file it comes from; absent where it comes from the cloud.
    #[serde(default)]
    pub file: Option<std::path::PathBuf>,
    /// Nothing is to be written: the slot holds the release already, and a person asked to go back to it.
    #[serde(default)]
    pub back: bool,
    /// Of going back: see [`Image::factory`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<Factory>,
    /// The slot has its first bytes: it was tried before, and nothing is to be written for another trial.
    #[serde(default)]
    pub whole: bool,
    /// How often installing it failed.
    #[serde(default)]
    pub failures: u32,
    /// How many of them waiting alone does not mend.
    #[serde(default)]
    pub faults: u32,
    /// How often its trial ended with the cloud away.
    #[serde(default)]
    pub inconclusive: u32,
    /// Those of this round of trials, after how many of them the old slot reached the cloud at once, and whether that was looked
    /// at after the last.
    #[serde(default)]
    pub lacked: u32,
    /// See `lacked`.
    #[serde(default)]
    pub reached: u32,
    /// See `lacked`.
    #[serde(default)]
    pub looked: bool,
    /// Counts of trials begun anew after as many as may be were inconclusive.
    #[serde(default)]
    pub round: u32,
    /// Why it waits, and from when to when (Unix seconds).
    #[serde(default)]
    pub pause: Option<Pause>,
    /// Trials counted in the boot state before this one was armed.
    #[serde(default)]
    pub arms_before: u32,
    /// How the device was before the reboot.
    #[serde(default)]
    pub before: Option<Before>,
    /// The boots of the trial that this agent saw.
    #[serde(default)]
    pub trials: Vec<TrialBoot>,
    /// Written before the reboot that undoes it.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The slot cannot boot and is being written.
    Installing,
    /// Everything was read back from the disk; the slot's first bytes are still withheld.
    Ready,
    /// Written before a trial is armed: from here on the device may boot into it.
    Armed,
}

/// Why an attempt waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Unix seconds. A clock that shows less was set back, and proves nothing.
    pub since: u64,
    /// Unix seconds.
    pub until: u64,
    /// Shown meanwhile.
    pub reason: Reason,
}

impl Pause {
    /// Seconds left; 0 when it is over. Time passes by the clock, and by the time since the boot, which goes on where the
    /// clock is not set or was set back: then the pause has its whole length from when it was first looked at. `nth` tells
    /// pauses apart that begin and end alike.
    #[must_use]
    pub fn left(&self, now: u64, uptime_s: u64, nth: u32, first: &mut Option<FirstLook>) -> u64 {
        let length = self.until.saturating_sub(self.since);
        let by_clock = if now < self.since { length } else { self.until.saturating_sub(now).min(length) };
        let of = (self.since, self.until, nth);
        let seen = match first {
            Some(seen) if seen.of == of => *seen,
            _ => *first.insert(FirstLook { of, left: by_clock, uptime_s }),
        };
        by_clock.min(seen.left.saturating_sub(uptime_s.saturating_sub(seen.uptime_s)))
    }
}

/// When a pause was first looked at by this agent, and how long it was then. Kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstLook {
    of: (u64, u64, u32),
    left: u64,
    uptime_s: u64,
}

/// How the device was before it rebooted into a trial: only what was well then must be well again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// The cloud was reached.
    pub cloud: bool,
    /// The engine answered.
    pub engine: bool,
    /// Services that were well, as `app/service`.
    pub services: std::collections::BTreeSet<String>,
}

/// A boot of the trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialBoot {
    /// The kernel's.
    pub boot_id: String,
    /// Seconds since that boot when the agent first saw it: its time to become well counts from here, however often the
    /// agent is restarted.
    pub uptime_s: u64,
}

/// Why a trial is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the release may be tried again without anybody asking.
    pub again: bool,
    /// Shown.
    pub reason: Reason,
}

/// What is not tried again until the target changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which.
    pub key: Key,
    /// Why.
    pub reason: Reason,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which; absent where the bootloader changed slots by itself.
    pub key: Option<Key>,
    /// Its version.
    pub version: Option<semver::Version>,
    /// Unix seconds by the device's clock.
    pub at: u64,
    /// Why it did not stay; absent where it was committed.
    pub reason: Option<Reason>,
}

impl Journal {
    /// Reads it. A journal that is lost in both copies is begun anew, and said: slots are then unknown, and the boot state
    /// alone tells what a trial was.
    ///
    /// # Errors
    /// The system's failures, and a journal of a newer agent.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        match state.load(FILE) {
            Ok(found) => Ok(found.unwrap_or_default()),
            Err(e @ (StateError::Lost { .. } | StateError::Content { .. })) => {
                tracing::error!(error = %e, "the journal of OS updates is lost; it is begun anew");
                Ok(Self::default())
            }
            Err(e) => Err(e),
        }
    }

    /// Keeps it; durable when this returns.
    ///
    /// # Errors
    /// The system's failures.
    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        state.save(FILE, self).map(drop)
    }

    /// The release known to be in a slot.
    #[must_use]
    pub fn image(&self, slot: Slot) -> Option<&Image> {
        match self.slots.get(&slot)? {
            Content::Release(image) => Some(image),
            Content::Empty => None,
        }
    }

    /// A release's name as others know it: that of an image which no release names means nothing elsewhere.
    #[must_use]
    pub fn known_elsewhere(&self, release: Sha256Hex) -> Option<Sha256Hex> {
        let of_factory = |slot| self.image(slot).is_some_and(|i| i.factory.is_some() && i.release == release);
        let tried = self.attempt.as_ref().is_some_and(|a| a.factory.is_some() && a.key.release == release);
        (!tried && !Slot::BOTH.into_iter().any(of_factory)).then_some(release)
    }

    /// The attempt that put what it holds into a slot.
    #[must_use]
    pub fn tried(&self, slot: Slot) -> Option<&Attempt> {
        self.attempt.as_ref().filter(|a| a.slot == slot && a.stage != Stage::Installing)
    }
}

impl Attempt {
    /// A new one.
    #[must_use]
    pub fn new(key: Key, version: semver::Version, counter: u64, slot: Slot) -> Self {
        Self {
            key,
            version,
            counter,
            slot,
            stage: Stage::Installing,
            by_hand: false,
            file: None,
            back: false,
            factory: None,
            whole: false,
            failures: 0,
            faults: 0,
            inconclusive: 0,
            lacked: 0,
            reached: 0,
            looked: false,
            round: 0,
            pause: None,
            arms_before: 0,
            before: None,
            trials: Vec::new(),
            verdict: None,
        }
    }

    /// What the boot state counts this attempt's trials by: the release itself, and something of its own for each retry a
    /// person asked for.
    #[must_use]
    pub fn token(&self) -> Sha256Hex {
        if self.key.retry == 0 && self.round == 0 && !self.back {
            return self.key.release;
        }
        let kind = if self.back { "back" } else { "retry" };
        Sha256Hex::of(format!("{} {kind} {} {}", self.key.release, self.key.retry, self.round).as_bytes())
    }

    /// The image it puts into its slot.
    #[must_use]
    pub fn image(&self) -> Image {
        Image {
            release: self.key.release,
            version: self.version.clone(),
            counter: self.counter,
            bad: false,
            gone: false,
            factory: self.factory,
        }
    }

    /// How it ended, at `at`.
    #[must_use]
    pub fn ended(&self, at: u64, reason: Option<Reason>) -> Ended {
        Ended { key: Some(self.key), version: Some(self.version.clone()), at, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_by_the_clock_and_never_waits_longer_than_it_should_where_that_was_set_back() {
        let reason = crate::apply::status::reason("os_cloud_unreachable", "");
        let pause = Pause { since: 1000, until: 4600, reason };
        let left = |now| pause.left(now, 50, 0, &mut None);
        assert_eq!([1000, 4599, 4600, 9000].map(left), [3600, 1, 0, 0]);
        assert_eq!(left(0), 3600, "a clock in 1970");
    }

    #[test]
    fn a_pause_ends_while_the_clock_stands_still_or_was_set_back() {
        let reason = crate::apply::status::reason("os_cloud_unreachable", "");
        let pause = Pause { since: 1000, until: 4600, reason };
        let mut first = None;
        for clock in [1000, 0] {
            first = None;
            assert_eq!(pause.left(clock, 50, 0, &mut first), 3600);
            assert_eq!(pause.left(clock, 1050, 0, &mut first), 2600);
            assert_eq!(pause.left(clock, 3650, 0, &mut first), 0);
        }
        // Set back meanwhile; and the next pause, alike in everything, is another one.
        assert_eq!(pause.left(1000, 50, 1, &mut first), 3600);
        assert_eq!(pause.left(500, 100, 1, &mut first), 3550);
    }

    #[test]
    fn what_a_newer_agent_adds_to_the_journal_is_passed_over_and_the_rest_is_kept() {
        let key = Key { release: Sha256Hex::of(b"r"), retry: 1 };
        let attempt = Attempt {
            before: Some(Before { cloud: true, ..Before::default() }),
            ..Attempt::new(key, semver::Version::new(2, 0, 0), 7, Slot::B)
        };
        let mut journal = Journal { attempt: Some(attempt.clone()), ..Journal::default() };
        journal.slots.insert(Slot::A, Content::Release(attempt.image()));
        let mut text = serde_json::to_value(&journal).unwrap();
        text["later"] = true.into();
        text["attempt"]["later"] = true.into();
        text["attempt"]["before"]["later"] = true.into();
        text["attempt"]["key"]["later"] = true.into();
        text["slots"]["a"]["release"]["later"] = true.into();
        assert_eq!(serde_json::from_value::<Journal>(text).unwrap(), journal);
    }

    #[test]
    fn a_lost_journal_is_begun_anew_and_a_kept_one_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), std::sync::Arc::new(crate::state::RealFs)).unwrap();
        assert_eq!(Journal::load(&state).unwrap(), Journal::default());
        let key = Key { release: Sha256Hex::of(b"r"), retry: 1 };
        let attempt = Attempt::new(key, semver::Version::new(2, 0, 0), 7, Slot::B);
        let mut journal = Journal { attempt: Some(attempt), ..Journal::default() };
        journal.slots.insert(Slot::A, Content::Empty);
        journal.save(&state).unwrap();
        assert_eq!(Journal::load(&state).unwrap(), journal);
        for copy in ["os.a", "os.b"] {
            std::fs::write(dir.path().join(copy), b"torn").unwrap();
        }
        let again = StateDir::open(dir.path(), std::sync::Arc::new(crate::state::RealFs)).unwrap();
        assert_eq!(Journal::load(&again).unwrap(), Journal::default());
        journal.save(&again).unwrap();
        assert_eq!(Journal::load(&again).unwrap(), journal);
    }

    #[test]
    fn a_retry_asked_for_is_counted_anew_and_a_first_try_by_the_release_itself() {
        let key = Key { release: Sha256Hex::of(b"r"), retry: 0 };
        let first = Attempt::new(key, semver::Version::new(1, 0, 0), 1, Slot::B);
        assert_eq!(first.token(), key.release);
        let again = Attempt { key: Key { retry: 1, ..key }, ..first.clone() };
        let round = Attempt { round: 1, ..first.clone() };
        let back = Attempt { back: true, ..first };
        assert_ne!(again.token(), key.release);
        assert_ne!(again.token(), round.token());
        assert_ne!(back.token(), round.token());
    }
}
