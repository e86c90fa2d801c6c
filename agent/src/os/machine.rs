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

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{HostReport, Progress, Reason, SlotReport, SlotState},
    ids::Sha256Hex,
};

use super::{
    Slot,
    boot::Booted,
    journal::{
        Attempt, Before, Content, Ended, Image, Journal, Key, Parked, Pause, Stage, TrialBoot, Verdict,
    },
};
use crate::apply::status::reason;

/// How often an installation may fail in a way that waiting does not mend.
const INSTALL_FAILURES: u32 = 3;
/// First and longest wait after a trial with the cloud away; doubles in between.
const AWAY: (u64, u64) = (3600, 86_400);
/// A cloud that the old slot reaches within so many seconds of its boot was not away in the trial before it.
const AT_ONCE_S: u64 = 900;
/// First and longest wait after a failed installation; doubles in between.
const RETRY: (u64, u64) = (5, 300);

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

/// Decides.
#[must_use]
pub fn decide(facts: &Facts, journal: &Journal) -> Step {
    let booted = match &facts.booted {
        Ok(booted) => booted,
        Err(why) => return Step::Wait(why.clone()),
    };
    if booted.trial {
        return in_trial(facts, journal, booted);
    }
    if booted.slot != booted.committed {
        let message = format!(
            "slot {} runs, the boot state trusts {}: nothing is written until a restart mends it",
            booted.slot, booted.committed
        );
        return Step::Wait(reason("os_root_mismatch", message));
    }
    if let Some(why) = &facts.blind {
        // Nothing is begun and nothing undone; that the system works is still said, or the bootloader gives up on it.
        return if facts.works && !facts.told { Step::MarkWell } else { Step::Wait(why.clone()) };
    }
    if let Some(attempt) = &journal.attempt {
        if attempt.stage == Stage::Armed {
            return after_arming(facts, booted, attempt);
        }
        if attempt.slot == booted.slot {
            return Step::Forget;
        }
    }
    if booted.armed {
        // Armed by nobody who remembers it.
        return Step::Disarm;
    }
    if facts.works && !facts.told {
        return Step::MarkWell;
    }
    if journal.attempt.is_none()
        && let Some(step) = retire(facts, journal, booted)
    {
        return step;
    }
    toward(facts, journal, booted)
}

fn in_trial(facts: &Facts, journal: &Journal, booted: &Booted) -> Step {
    let ours = journal.tried(booted.slot);
    if !facts.way_back {
        return without_way_back(facts, ours, booted);
    }
    if let Some(attempt) = ours {
        if attempt.verdict.is_some() {
            return Step::GoBack;
        }
        if !attempt.trials.iter().any(|t| t.boot_id == facts.boot_id) {
            return Step::Note;
        }
        if let Aim::Refused(why) = &facts.aim
            && !attempt.by_hand
        {
            let message = format!(
                "{} may not run here any more ({why}); the slot before it runs again",
                named(attempt)
            );
            return Step::Judge(Verdict { again: false, reason: of(attempt.key, "os_cancelled", message) });
        }
    } else if journal.image(booted.slot).is_some_and(|image| image.bad) {
        // It failed a trial before, and got another turn because the committed slot was not called well in time.
        return Step::GoBack;
    } else if let Some(parked) = sick_slot(facts, journal, booted) {
        return Step::Park(parked);
    }
    let what = ours.map_or_else(|| format!("slot {}", booted.slot), named);
    let key = ours.map(|a| a.key);
    match &facts.health {
        Health::Well => match &facts.blind {
            Some(why) => Step::Wait(why.clone()),
            None => Step::Commit,
        },
        Health::Going(waits) => {
            let message = format!("{what} runs on trial and has to prove itself: {waits}");
            Step::Wait(with(key, reason("os_trial", message)))
        }
        Health::Sick(why) => {
            let message =
                format!("{what} did not become well in time: {}; the slot before it runs again", why.message);
            let verdict = with(key, Reason { code: "os_unhealthy".to_owned(), message, ..why.clone() });
            judged(ours, Verdict { again: false, reason: verdict })
        }
        Health::Away => {
            let message = format!(
                "{what} is well but for the cloud, which was reached before and is not now; the slot before it runs again, and \
                 the trial is repeated later"
            );
            let verdict = with(key, reason("os_cloud_unreachable", message));
            judged(ours, Verdict { again: true, reason: verdict })
        }
    }
}

/// The other slot cannot boot: undoing the trial would be a restart into nothing, or into this trial again, for ever.
fn without_way_back(facts: &Facts, ours: Option<&Attempt>, booted: &Booted) -> Step {
    let what = ours.map_or_else(|| format!("slot {}", booted.slot), named);
    let key = ours.map(|a| a.key);
    let wrong = match &facts.health {
        Health::Well if facts.blind.is_none() => return Step::Commit,
        Health::Going(waits) => {
            let message = format!("{what} runs on trial and has to prove itself: {waits}");
            return Step::Wait(with(key, reason("os_trial", message)));
        }
        Health::Well => "the journal of OS updates cannot be read",
        Health::Sick(why) => why.message.as_str(),
        Health::Away => "the cloud is not reached",
    };
    let message = format!(
        "{what} runs on trial and did not prove itself ({wrong}); it goes on, because slot {} cannot boot",
        booted.slot.other()
    );
    let why = with(key, reason("os_slot_invalid", message));
    // A release that was installed here is never committed while it is sick: its floor would rise.
    if ours.is_none() && facts.blind.is_none() { Step::Keep(why) } else { Step::Wait(why) }
}

/// A verdict is written first; on a trial nobody remembers there is nowhere to write it to.
fn judged(ours: Option<&Attempt>, verdict: Verdict) -> Step {
    if ours.is_some() { Step::Judge(verdict) } else { Step::GoBack }
}

/// The committed slot used up its boots, and what it held is still what should run: it would be put there again.
fn sick_slot(facts: &Facts, journal: &Journal, booted: &Booted) -> Option<Parked> {
    let Aim::Release(wanted) = &facts.aim else { return None };
    let image = journal.image(booted.committed)?;
    let sick = booted.fell_why.as_deref() == Some("sick") && image.release == wanted.key.release;
    if !sick || journal.parked.as_ref().is_some_and(|p| p.key == wanted.key) {
        return None;
    }
    let message = format!(
        "{} was committed, then did not come up {} times in a row; the bootloader gave the other slot a trial",
        image.version, facts.trial_limit
    );
    Some(Parked { key: wanted.key, reason: of(wanted.key, "os_no_verdict", message) })
}

fn after_arming(facts: &Facts, booted: &Booted, attempt: &Attempt) -> Step {
    if booted.slot == attempt.slot {
        return settle(facts, booted, attempt);
    }
    if booted.armed {
        // The restart is still to come. What was right when it was armed may not be right any more.
        if attempt.verdict.is_some() || !still_wanted(facts, attempt) {
            return Step::Disarm;
        }
        return match held_back(facts, attempt) {
            Some(why) => Step::Wait(why),
            None => Step::Reboot,
        };
    }
    let counted = arms(booted, attempt) > attempt.arms_before;
    if !counted && attempt.trials.is_empty() && attempt.verdict.is_none() {
        return Step::Unarm;
    }
    Step::Conclude(conclude(facts, booted, attempt))
}

/// Whether the bootloader trusts this slot by its own choice: a commit would have cleared its reason.
#[must_use]
pub fn unproven(booted: &Booted, journal: &Journal) -> bool {
    let by_itself = booted.fell_why.as_deref().is_some_and(|why| why != "nosave");
    let armed = journal.tried(booted.slot).is_some_and(|a| a.stage == Stage::Armed);
    !booted.trial && by_itself && armed
}

fn settle(facts: &Facts, booted: &Booted, attempt: &Attempt) -> Step {
    let chosen = booted.fell_why.as_deref().filter(|why| *why != "nosave");
    let Some(chosen) = chosen else { return Step::Settle };
    let (code, why) = match &facts.health {
        Health::Well => return Step::Settle,
        Health::Going(waits) => ("os_trial", waits.as_str()),
        Health::Sick(why) => ("os_unhealthy", why.message.as_str()),
        Health::Away => ("os_cloud_unreachable", "the cloud is not reached"),
    };
    let message = format!(
        "the bootloader chose {} by itself ({chosen}); it has to prove itself before it counts as committed: {why}",
        named(attempt)
    );
    Step::Wait(of(attempt.key, code, message))
}

/// Trials counted for this attempt.
fn arms(booted: &Booted, attempt: &Attempt) -> u32 {
    let ours = booted.arms_for.is_some_and(|found| attempt.token().as_bytes().starts_with(&found));
    if ours { booted.arms } else { 0 }
}

fn conclude(facts: &Facts, booted: &Booted, attempt: &Attempt) -> Conclusion {
    let used = arms(booted, attempt);
    let of_limit = format!("trial {used} of {}", facts.trial_limit);
    if let Some(verdict) = &attempt.verdict {
        let then = if verdict.again { away(facts, attempt, used) } else { Then::Park };
        return Conclusion { reason: verdict.reason.clone(), then };
    }
    let seen = attempt.trials.len();
    let (code, what) = if seen >= 2 {
        ("os_power_lost", format!("came up {seen} times and was cut off each time before it proved itself"))
    } else if seen == 1 {
        ("os_no_verdict", "came up once and did not prove itself before the device restarted".to_owned())
    } else {
        ("os_no_verdict", "did not come up: its kernel or its first programs stopped or hung".to_owned())
    };
    // The bootloader tried it as often as it may, and its agent never ran.
    let hopeless = seen == 0 && !facts.one_shot && booted.fell_why.as_deref() == Some("tries");
    let then = if used >= facts.trial_limit || hopeless { Then::Park } else { Then::Again };
    let next = if then == Then::Park {
        "it is not tried again until the target changes"
    } else {
        "it is tried again"
    };
    let message =
        format!("{} {what} ({of_limit}); slot {} runs again, and {next}", named(attempt), booted.slot);
    Conclusion { reason: of(attempt.key, code, message), then }
}

/// The cloud was away: never the release's fault, so never parked; but as many trials as may be in a row are enough for a day.
fn away(facts: &Facts, attempt: &Attempt, used: u32) -> Then {
    if used >= facts.trial_limit {
        return Then::Later { wait: AWAY.1, anew: true };
    }
    let wait = AWAY.0.saturating_mul(1 << attempt.inconclusive.min(10)).min(AWAY.1);
    Then::Later { wait, anew: false }
}

/// A slot that must not boot any more. The bootloader may start any slot that is valid when its state is lost.
fn retire(facts: &Facts, journal: &Journal, booted: &Booted) -> Option<Step> {
    let other = booted.slot.other();
    match journal.slots.get(&other) {
        // Once this slot is called well: before that the bad one is better than none.
        Some(Content::Release(image)) if image.bad && !image.gone && facts.told => Some(Step::Retire(other)),
        Some(Content::Release(image)) if image.counter < facts.floor => Some(Step::Doubt(other)),
        // Never heard of: older than what raised the floor.
        None if facts.floor > 0 => Some(Step::Retire(other)),
        _ => None,
    }
}

fn toward(facts: &Facts, journal: &Journal, booted: &Booted) -> Step {
    let attempt = journal.attempt.as_ref();
    if let Some(attempt) = attempt.filter(|a| a.by_hand) {
        return go_on(facts, attempt);
    }
    let wanted = match &facts.aim {
        Aim::Unknown => {
            return match attempt {
                Some(attempt) if facts.work == Work::Idle => Step::Wait(hold(attempt.key)),
                Some(attempt) => go_on(facts, attempt),
                None => Step::Rest,
            };
        }
        Aim::None | Aim::Refused(_) => return if attempt.is_some() { Step::Cancel } else { Step::Rest },
        Aim::Release(wanted) => wanted,
    };
    match journal.image(booted.slot) {
        Some(image) if image.release == wanted.key.release => {
            return if attempt.is_some() { Step::Cancel } else { Step::Rest };
        }
        // The factory's image, perhaps. Only one of the same version can be the same.
        None if wanted.version == facts.version && journal.compared != Some(wanted.key.release) => {
            return match facts.same {
                None => Step::Compare,
                Some(true) => Step::Adopt,
                Some(false) => Step::Differs,
            };
        }
        _ => {}
    }
    if let Some(attempt) = attempt {
        if attempt.key != wanted.key {
            return Step::Cancel;
        }
        if !facts.may_install && facts.work == Work::Idle {
            return Step::Wait(hold(attempt.key));
        }
        return go_on(facts, attempt);
    }
    if let Some(parked) = journal.parked.as_ref().filter(|p| p.key == wanted.key) {
        return Step::Wait(parked.reason.clone());
    }
    if !facts.may_install {
        return Step::Wait(hold(wanted.key));
    }
    match &facts.preflight {
        None => Step::Preflight,
        Some(Err(why)) => Step::Wait(with(Some(wanted.key), why.clone())),
        Some(Ok(())) => {
            let slot = booted.slot.other();
            Step::Begin(Attempt::new(wanted.key, wanted.version.clone(), wanted.counter, slot))
        }
    }
}

fn go_on(facts: &Facts, attempt: &Attempt) -> Step {
    if attempt.stage == Stage::Ready
        && attempt.lacked > 0
        && let Some(step) = whose_fault(facts, attempt)
    {
        return step;
    }
    if let Some(pause) = &attempt.pause
        && facts.pause_left > 0
    {
        return Step::Wait(pause.reason.clone());
    }
    match attempt.stage {
        Stage::Installing => match &facts.work {
            Work::Idle => Step::Install,
            Work::Done => Step::Installed,
            Work::Failed(failure) => Step::Failed(failure.clone()),
            Work::Busy { verifying, .. } => {
                let (code, what) = if *verifying {
                    ("os_verifying", "is written and is read back from the disk")
                } else {
                    ("os_downloading", "is being installed")
                };
                let message = format!("{} {what}; what runs goes on", named(attempt));
                Step::Wait(of(attempt.key, code, message))
            }
        },
        Stage::Ready | Stage::Armed => match held_back(facts, attempt) {
            Some(why) => Step::Wait(why),
            None => Step::Arm,
        },
    }
}

/// Whether it is the cloud or the release: a whole round of trials without it, between boots that reached it, is the release.
fn whose_fault(facts: &Facts, attempt: &Attempt) -> Option<Step> {
    if facts.online && !attempt.looked {
        return Some(Step::Reached);
    }
    let all = attempt.lacked >= facts.trial_limit && attempt.reached >= attempt.lacked;
    all.then(|| {
        let message = format!(
            "{} did not reach the cloud in {} trials, and the slot before it did each time before and after; it is not tried again \
             until the target changes",
            named(attempt),
            attempt.lacked
        );
        Step::GiveUp(of(attempt.key, "os_cloud_unreachable", message))
    })
}

/// What stands between an installed release and the restart.
fn held_back(facts: &Facts, attempt: &Attempt) -> Option<Reason> {
    let what = named(attempt);
    if attempt.inconclusive > 0 && !facts.online {
        let message = format!(
            "{what} is installed; the cloud was away in its trial, and it is repeated once the cloud answers"
        );
        return Some(of(attempt.key, "os_cloud_unreachable", message));
    }
    match facts.gate {
        Gate::Open => {}
        Gate::Opens(wait) => {
            let message = format!(
                "{what} is installed and waits for the reboot window, which opens in {} min",
                wait.div_ceil(60)
            );
            return Some(of(attempt.key, "os_waiting_window", message));
        }
        Gate::NoClock => {
            let message = format!(
                "{what} is installed and waits for the reboot window; this device's clock is not set yet"
            );
            return Some(of(attempt.key, "os_waiting_window", message));
        }
    }
    if !facts.settled {
        let message = format!("{what} is installed and waits until this device's services had time to start");
        return Some(of(attempt.key, "starting", message));
    }
    let first = facts.locks.first()?;
    let more = match facts.locks.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let message =
        format!("{what} is installed and waits until service {first}{more} lets go of the update lock");
    Some(of(attempt.key, "os_waiting_lock", message))
}

fn still_wanted(facts: &Facts, attempt: &Attempt) -> bool {
    attempt.by_hand
        || match &facts.aim {
            Aim::Unknown => true,
            Aim::None | Aim::Refused(_) => false,
            Aim::Release(wanted) => wanted.key == attempt.key,
        }
}

/// What is remembered once a step was done (or, for [`Step::Begin`], [`Step::Arm`], [`Step::Disarm`] and [`Step::Judge`],
/// before it is).
#[must_use]
pub fn after(step: &Step, facts: &Facts, journal: &Journal, now: u64) -> Journal {
    let mut next = journal.clone();
    let mut attempt = next.attempt.take();
    match step {
        Step::Rest | Step::Wait(_) | Step::Commit | Step::GoBack | Step::Compare => {}
        Step::Preflight | Step::Install | Step::Reboot => {}
        Step::Note => {
            if let Some(a) = &mut attempt {
                // More than this tells nothing more.
                a.stage = Stage::Armed;
                a.trials.truncate(31);
                a.trials.push(TrialBoot { boot_id: facts.boot_id.clone(), uptime_s: facts.uptime_s });
            }
        }
        Step::Judge(verdict) => {
            if let Some(a) = &mut attempt {
                a.verdict = Some(verdict.clone());
            }
        }
        Step::Settle => {
            if let Some(a) = attempt.take() {
                next.slots.insert(a.slot, Content::Release(a.image()));
                next.last = Some(a.ended(now, None));
                next.compared = None;
                if !next.parked.as_ref().is_some_and(|p| a.by_hand && p.key != a.key) {
                    next.parked = None;
                }
            }
        }
        Step::Conclude(conclusion) => {
            if let Some(mut a) = attempt.take() {
                next.last = Some(a.ended(now, Some(conclusion.reason.clone())));
                let bad = conclusion.then == Then::Park;
                if bad {
                    next.slots.insert(a.slot, Content::Release(Image { bad, ..a.image() }));
                    next.parked = Some(Parked { key: a.key, reason: conclusion.reason.clone() });
                } else {
                    a.stage = Stage::Ready;
                    a.whole = true;
                    a.trials.clear();
                    if a.verdict.take().is_some() {
                        a.inconclusive += 1;
                        a.lacked += 1;
                        a.looked = false;
                    }
                    if let Then::Later { wait, anew } = conclusion.then {
                        a.round += u32::from(anew);
                        a.pause =
                            Some(Pause { since: now, until: now + wait, reason: conclusion.reason.clone() });
                    }
                    attempt = Some(a);
                }
            }
        }
        Step::Unarm | Step::Disarm => {
            if let Some(a) = &mut attempt {
                a.stage = a.stage.min(Stage::Ready);
                a.trials.clear();
                a.verdict = None;
            }
        }
        Step::Reached => {
            if let Some(a) = &mut attempt {
                a.looked = true;
                a.reached += u32::from(facts.uptime_s <= AT_ONCE_S);
            }
        }
        Step::GiveUp(why) => {
            if let Some(a) = attempt.take() {
                next.slots.insert(a.slot, Content::Release(Image { bad: true, ..a.image() }));
                next.last = Some(a.ended(now, Some(why.clone())));
                next.parked = Some(Parked { key: a.key, reason: why.clone() });
            }
        }
        Step::Forget => attempt = None,
        Step::MarkWell => {
            if let Ok(booted) = &facts.booted
                && booted.fell_back
                && attempt.is_none()
            {
                let why = booted.fell_why.as_deref().unwrap_or("unknown");
                let message = format!("the bootloader chose slot {} by itself ({why})", booted.slot);
                let seen = next.last.as_ref().is_some_and(|l| l.reason.is_some());
                if !seen {
                    next.last = Some(Ended {
                        key: None,
                        version: None,
                        at: now,
                        reason: Some(reason("os_no_verdict", message)),
                    });
                }
            }
        }
        Step::Park(parked) => next.parked = Some(parked.clone()),
        Step::Doubt(slot) => {
            next.slots.remove(slot);
        }
        Step::Keep(why) => {
            next.last = Some(Ended { key: None, version: None, at: now, reason: Some(why.clone()) });
        }
        Step::Retire(slot) => match next.slots.get_mut(slot) {
            Some(Content::Release(image)) if image.bad => image.gone = true,
            _ => {
                next.slots.insert(*slot, Content::Empty);
            }
        },
        Step::Adopt => {
            if let (Aim::Release(w), Ok(booted)) = (&facts.aim, &facts.booted) {
                let image = Image {
                    release: w.key.release,
                    version: w.version.clone(),
                    counter: w.counter,
                    bad: false,
                    gone: false,
                };
                next.slots.insert(booted.slot, Content::Release(image));
                next.compared = None;
            }
        }
        Step::Differs => {
            if let Aim::Release(w) = &facts.aim {
                next.compared = Some(w.key.release);
            }
        }
        Step::Begin(begun) => {
            next.slots.remove(&begun.slot);
            next.parked = None;
            next.compared = None;
            attempt = Some(begun.clone());
        }
        Step::Installed => {
            if let Some(a) = &mut attempt {
                a.stage = Stage::Ready;
                a.pause = None;
            }
        }
        Step::Failed(failure) => {
            if let Some(mut a) = attempt.take() {
                a.failures += 1;
                a.faults += u32::from(!failure.passing);
                if a.faults >= INSTALL_FAILURES {
                    let message = format!(
                        "{} (tried {} times; not again until the target changes)",
                        failure.reason.message, a.faults
                    );
                    let why = with(Some(a.key), Reason { message, ..failure.reason.clone() });
                    next.slots.insert(a.slot, Content::Empty);
                    next.last = Some(a.ended(now, Some(why.clone())));
                    next.parked = Some(Parked { key: a.key, reason: why });
                } else {
                    let wait = RETRY.0.saturating_mul(1 << (a.failures - 1).min(16)).min(RETRY.1);
                    let why = with(Some(a.key), failure.reason.clone());
                    a.pause = Some(Pause { since: now, until: now + wait, reason: why });
                    attempt = Some(a);
                }
            }
        }
        Step::Cancel => {
            if let Some(a) = attempt.take() {
                if !a.back {
                    next.slots.insert(a.slot, Content::Empty);
                }
                let message =
                    format!("{} was given up: it is not what this device should run any more", named(&a));
                next.last = Some(a.ended(now, Some(of(a.key, "os_cancelled", message))));
            }
        }
        Step::Arm => {
            if let (Some(a), Ok(booted)) = (&mut attempt, &facts.booted) {
                a.stage = Stage::Armed;
                a.arms_before = arms(booted, a);
                if a.arms_before == 0 {
                    (a.lacked, a.reached) = (0, 0);
                }
                a.trials.clear();
                a.verdict = None;
                a.pause = None;
                let mut before = facts.now_well.clone();
                // Once reached, always expected: a cloud that went away between two trials proves nothing.
                before.cloud |= a.before.as_ref().is_some_and(|b| b.cloud);
                a.before = Some(before);
            }
        }
    }
    next.attempt = attempt;
    next
}

/// What is remembered when arming was refused: nothing was armed.
#[must_use]
pub fn not_armed(why: &Reason, journal: &Journal, now: u64) -> Journal {
    let mut next = journal.clone();
    let Some(mut a) = next.attempt.take() else { return next };
    a.stage = Stage::Ready;
    let why = with(Some(a.key), why.clone());
    match why.code.as_str() {
        // The boot state counted more trials than is remembered here.
        "os_trials_used" if a.inconclusive > 0 => {
            a.round += 1;
            a.pause = Some(Pause { since: now, until: now + AWAY.1, reason: why });
            next.attempt = Some(a);
        }
        "os_trials_used" => {
            next.slots.insert(a.slot, Content::Release(Image { bad: true, ..a.image() }));
            next.last = Some(a.ended(now, Some(why.clone())));
            next.parked = Some(Parked { key: a.key, reason: why });
        }
        _ => {
            a.faults += 1;
            if a.faults >= INSTALL_FAILURES {
                next.slots.remove(&a.slot);
                next.last = Some(a.ended(now, Some(why.clone())));
                next.parked = Some(Parked { key: a.key, reason: why });
            } else {
                // What cannot be armed is written anew: the slot may not hold what was read back.
                if !a.back {
                    a.stage = Stage::Installing;
                    a.whole = false;
                }
                a.pause = Some(Pause { since: now, until: now + RETRY.0, reason: why });
                next.attempt = Some(a);
            }
        }
    }
    next
}

/// How the operating system stands, for the report.
#[must_use]
pub fn view(backend: &str, facts: &Facts, journal: &Journal, shown: Option<Reason>) -> HostReport {
    let booted = facts.booted.as_ref().ok();
    let slots: BTreeMap<String, SlotReport> = Slot::BOTH
        .into_iter()
        .map(|slot| (slot.to_string(), slot_view(slot, facts, journal, booted)))
        .collect();
    let here = booted.and_then(|b| journal_image(journal, b.slot));
    HostReport {
        backend: backend.to_owned(),
        slots,
        release: here.map(|(release, _)| release),
        version: facts.version.to_string(),
        progress: progress(facts, journal, shown.as_ref()),
        reason: shown,
        failed: journal.parked.as_ref().map(|p| p.key.release),
    }
}

/// What is in a slot, counting what is being tried there.
fn journal_image(journal: &Journal, slot: Slot) -> Option<(Sha256Hex, semver::Version)> {
    let tried = journal.tried(slot);
    tried
        .map(|a| (a.key.release, a.version.clone()))
        .or_else(|| journal.image(slot).map(|i| (i.release, i.version.clone())))
}

fn slot_view(slot: Slot, facts: &Facts, journal: &Journal, booted: Option<&Booted>) -> SlotReport {
    let is_booted = booted.is_some_and(|b| b.slot == slot);
    let tried = journal.attempt.as_ref().filter(|a| a.slot == slot);
    let state = match (booted, tried) {
        (Some(b), _) if b.trial && b.slot == slot => SlotState::Trial,
        (Some(b), _) if b.committed == slot => SlotState::Committed,
        (_, Some(a)) => match a.stage {
            Stage::Installing => SlotState::Installing,
            Stage::Ready => SlotState::Ready,
            Stage::Armed => SlotState::Trial,
        },
        _ => match journal.slots.get(&slot) {
            Some(Content::Release(image)) if image.bad => SlotState::Bad,
            Some(Content::Release(_)) => SlotState::Ready,
            Some(Content::Empty) | None => SlotState::Empty,
        },
    };
    let image = journal_image(journal, slot);
    let version = match &image {
        _ if is_booted => facts.version.to_string(),
        Some((_, version)) => version.to_string(),
        None => String::new(),
    };
    SlotReport { state, booted: is_booted, release: image.map(|(release, _)| release), version }
}

fn progress(facts: &Facts, journal: &Journal, shown: Option<&Reason>) -> Option<Progress> {
    let stage = |stage: &str| Progress { stage: stage.to_owned(), ..Progress::default() };
    if let Work::Busy { verifying, done, total } = facts.work {
        let name = if verifying { "os_verifying" } else { "os_downloading" };
        return Some(Progress { done, total, ..stage(name) });
    }
    if facts.booted.as_ref().is_ok_and(|b| b.trial) {
        return Some(stage("os_trial"));
    }
    let waits = journal.attempt.as_ref().is_some_and(|a| a.stage != Stage::Installing);
    (waits && shown.is_some()).then(|| stage("os_waiting"))
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

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
