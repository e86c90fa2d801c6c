//! No trial: from what runs to what should run.

use copal_protocol::documents::Reason;

use super::{Aim, Facts, Gate, Step, Work, hold, named, of, with};
use crate::os::{
    boot::Booted,
    journal::{Attempt, Content, Image, Journal, Stage},
};

/// What runs and is named by no release is remembered while it can say what it is: once the other slot runs nobody can
/// ask it.
pub(super) fn unnamed(facts: &Facts, journal: &Journal, booted: &Booted) -> Option<Step> {
    let found = journal.image(booted.slot);
    if found.is_some_and(|image| image.factory.is_none()) {
        return None;
    }
    let seen = Image::of_factory(booted.slot, &facts.version, facts.own_floor, facts.data_schema);
    (found != Some(&seen)).then_some(Step::Know(seen))
}

/// A slot that must not boot any more. The bootloader may start any slot that is valid when its state is lost.
pub(super) fn retire(facts: &Facts, journal: &Journal, booted: &Booted) -> Option<Step> {
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

pub(super) fn toward(facts: &Facts, journal: &Journal, booted: &Booted) -> Step {
    let attempt = journal.attempt.as_ref();
    if let Some(attempt) = attempt.filter(|a| a.by_hand) {
        // The floor rose while it waited.
        let fell = attempt.back && attempt.counter < facts.floor;
        return if fell { Step::Cancel } else { go_on(facts, attempt) };
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
        held if held.is_none_or(|image| image.factory.is_some())
            && wanted.version == facts.version
            && journal.compared != Some(wanted.key.release) =>
        {
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
pub(super) fn held_back(facts: &Facts, attempt: &Attempt) -> Option<Reason> {
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

pub(super) fn still_wanted(facts: &Facts, attempt: &Attempt) -> bool {
    attempt.by_hand
        || match &facts.aim {
            Aim::Unknown => true,
            Aim::None | Aim::Refused(_) => false,
            Aim::Release(wanted) => wanted.key == attempt.key,
        }
}
