//! The order of the questions.

use super::{
    Facts, Step,
    toward::{retire, toward, unnamed},
    trial::{after_arming, in_trial},
};
use crate::{
    apply::status::reason,
    os::journal::{Journal, Stage},
};

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
        && let Some(step) = unnamed(facts, journal, booted).or_else(|| retire(facts, journal, booted))
    {
        return step;
    }
    toward(facts, journal, booted)
}
