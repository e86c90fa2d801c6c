//! What to do next: a pure function of what is seen, what is remembered and the time.
//!
//! The procedure, in the order of the code:
//!
//! 1. In a trial: note the boot; wait until it is well; commit. Or write down why not, call it off and restart.
//! 2. After a trial: the slot was committed (settle: floors rise), or the other one runs (conclude: why, and whether it
//!    is tried again). A trial that was armed and did not begin is entered, or called off.
//! 3. The running system works: say so to the bootloader, once a boot. A slot below the floor must not boot any more.
//! 4. What should run, runs: done; whatever was begun is given up.
//! 5. Else: preflight, make the other slot unbootable, install, read back, wait for locks and for the window, arm, restart.
//!
//! Every step is written down before or after its effect so that doing it again is right; [`after`] says what is written.

mod after;
mod decide;
#[cfg(test)]
mod tests;
mod toward;
mod trial;
mod view;

use copal_protocol::documents::Reason;

use crate::{
    apply::status::reason,
    os::{
        Slot,
        boot::Booted,
        journal::{Attempt, Before, Image, Key, Parked, Verdict},
    },
};

pub use after::{after, not_armed};
pub use decide::decide;
pub use trial::unproven;
pub use view::view;

/// What is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Seconds since it.
    pub uptime_s: u64,
    /// What was booted, or why that is not known.
    pub booted: Result<Booted, Reason>,
    /// The running image's own version.
    pub version: semver::Version,
    /// The floor that it says itself.
    pub own_floor: u64,
    /// The newest format of the data partition that it reads.
    pub data_schema: u64,
    /// The most trials of one release.
    pub trial_limit: u32,
    /// A trial is one boot, whatever ends it: nobody counts boots but this agent.
    pub one_shot: bool,
    /// The lowest counter that may run here.
    pub floor: u64,
    /// The running system works, as far as the bootloader is concerned.
    pub works: bool,
    /// The bootloader was told so in this boot.
    pub told: bool,
    /// What should run.
    pub aim: Aim,
    /// The cloud vouched for that.
    pub may_install: bool,
    /// The cloud answers.
    pub online: bool,
    /// Whether the running slot holds the release aimed at; absent where that was not looked at.
    pub same: Option<bool>,
    /// Whether the release can be installed here at all; absent where that was not looked at.
    pub preflight: Option<Result<(), Reason>>,
    /// The installation at work.
    pub work: Work,
    /// When the device may restart.
    pub gate: Gate,
    /// How the device is can be compared with: its services are well, or had their time to become so.
    pub settled: bool,
    /// Services that hold their update lock.
    pub locks: Vec<String>,
    /// How the trial is, or a slot that nobody is known to have committed.
    pub health: Health,
    /// In a trial: the other slot could boot, so there is something to go back to.
    pub way_back: bool,
    /// Why the journal cannot be read: what is remembered here is then nothing, and does not count.
    pub blind: Option<Reason>,
    /// Seconds for which the attempt pauses.
    pub pause_left: u64,
    /// How the device is now, to be compared with in a trial.
    pub now_well: Before,
}

/// What should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    /// Not known: nothing is begun and nothing given up.
    Unknown,
    /// Whatever runs.
    None,
    /// What was named may not run any more; why.
    Refused(String),
    /// This release.
    Release(Wanted),
}

/// A release to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub key: Key,
    /// Its version.
    pub version: semver::Version,
    /// Its counter.
    pub counter: u64,
}

/// The installation at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// None.
    Idle,
    /// Bytes had and to have; whether it reads back already.
    Busy {
        /// Reading back.
        verifying: bool,
        /// Bytes.
        done: u64,
        /// Bytes; 0 when not known.
        total: u64,
    },
    /// All of it was read back.
    Done,
    /// It failed.
    Failed(Failure),
}

/// Why an installation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Shown.
    pub reason: Reason,
    /// Waiting alone may mend it (the network, a full disk): it does not count as a failure of the release.
    pub passing: bool,
}

/// When the device may restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Now.
    Open,
    /// In so many seconds.
    Opens(u64),
    /// There is a window, and the clock is not set.
    NoClock,
}

/// How a trial is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not known yet; what it waits for.
    Going(String),
    /// Everything that was well before is well.
    Well,
    /// Its time is over, and this is not well.
    Sick(Reason),
    /// Its time is over, and all that is missing is the cloud.
    Away,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, made once a look")]
pub enum Step {
    /// Nothing: what should run runs, or nothing is asked.
    Rest,
    /// Nothing until something changes; why.
    Wait(Reason),
    /// Remember that the trial was seen in this boot.
    Note,
    /// Make the slot on trial the committed one.
    Commit,
    /// The same, though it did not prove itself: no other slot could boot, and nobody remembers one that was tried.
    Keep(Reason),
    /// Write down why the trial is undone.
    Judge(Verdict),
    /// Call the trial off and restart into the committed slot.
    GoBack,
    /// The slot tried is committed: floors rise, the attempt is over.
    Settle,
    /// The trial is over and was not committed.
    Conclude(Conclusion),
    /// A trial is armed that nobody wants any more.
    Disarm,
    /// The arming did not take effect: as before it.
    Unarm,
    /// An attempt at the slot that runs by now means nothing any more.
    Forget,
    /// Tell the bootloader that the running system works.
    MarkWell,
    /// The bootloader gave up on the slot that held this: do not put it there again.
    Park(Parked),
    /// The image that runs is named by no release: remember what it says of itself, so that a person may go back to it.
    Know(Image),
    /// What is known of a slot is about to change: it is unknown.
    Doubt(Slot),
    /// A slot that must not boot any more is made so.
    Retire(Slot),
    /// Look whether the running slot holds the release.
    Compare,
    /// It does: the release is here already.
    Adopt,
    /// It does not.
    Differs,
    /// Look whether the release can be installed.
    Preflight,
    /// Begin an attempt.
    Begin(Attempt),
    /// Make the slot unbootable and write it.
    Install,
    /// All was read back.
    Installed,
    /// The installation failed.
    Failed(Failure),
    /// Stop installing and leave the slot empty.
    Cancel,
    /// Write down how the device is; give the slot its first bytes, count the trial, arm it.
    Arm,
    /// Restart into the armed trial.
    Reboot,
    /// The cloud answers for the first time after a trial without it.
    Reached,
    /// Every trial of a round lacked the cloud, and the old slot reached it at once each time: the release keeps it away.
    GiveUp(Reason),
}

/// How a trial that was not committed ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conclusion {
    /// Shown.
    pub reason: Reason,
    /// What follows.
    pub then: Then,
}

/// What follows a trial that was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Another trial, as soon as it may.
    Again,
    /// Another one after so many seconds, and with trials counted anew or not.
    Later {
        /// Seconds.
        wait: u64,
        /// Counted anew.
        anew: bool,
    },
    /// None, until the target changes.
    Park,
}

fn named(attempt: &Attempt) -> String {
    format!("operating system {}", attempt.version)
}

fn of(key: Key, code: &str, message: String) -> Reason {
    with(Some(key), reason(code, message))
}

fn with(key: Option<Key>, why: Reason) -> Reason {
    Reason { release: key.map(|k| k.release).or(why.release), ..why }
}

fn hold(key: Key) -> Reason {
    of(
        key,
        "not_fresh",
        "the cloud has not yet vouched for this operating system as its newest, so nothing new is installed"
            .to_owned(),
    )
}
