//! In a trial, and after one: keep it, go back, or find out how it ended.

use copal_protocol::documents::Reason;

use super::{
    Aim, Conclusion, Facts, Health, Step, Then, named, of,
    toward::{held_back, still_wanted},
    with,
};
use crate::{
    apply::status::reason,
    os::{
        boot::Booted,
        journal::{Attempt, Journal, Parked, Stage, Verdict},
    },
};

/// First and longest wait after a trial with the cloud away; doubles in between.
pub(super) const AWAY: (u64, u64) = (3600, 86_400);

pub(super) fn in_trial(facts: &Facts, journal: &Journal, booted: &Booted) -> Step {
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

pub(super) fn after_arming(facts: &Facts, booted: &Booted, attempt: &Attempt) -> Step {
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
pub(super) fn arms(booted: &Booted, attempt: &Attempt) -> u32 {
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
