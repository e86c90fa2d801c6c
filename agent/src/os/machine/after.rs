//! What is remembered after each step.

use copal_protocol::documents::Reason;

use super::{
    Aim, Facts, Step, Then, named, of,
    trial::{AWAY, arms},
    with,
};
use crate::{
    apply::status::reason,
    os::journal::{Content, Ended, Image, Journal, Parked, Pause, Stage, TrialBoot},
};

/// How often an installation may fail in a way that waiting does not mend.
const INSTALL_FAILURES: u32 = 3;
/// First and longest wait after a failed installation; doubles in between.
const RETRY: (u64, u64) = (5, 300);
/// A cloud that the old slot reaches within so many seconds of its boot was not away in the trial before it.
const AT_ONCE_S: u64 = 900;

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
        Step::Know(image) => {
            if let Ok(booted) = &facts.booted {
                next.slots.insert(booted.slot, Content::Release(image.clone()));
            }
        }
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
                    factory: None,
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
