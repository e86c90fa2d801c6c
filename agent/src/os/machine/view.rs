//! How the operating system stands, for the report.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{HostReport, Progress, Reason, SlotReport, SlotState},
    ids::Sha256Hex,
};

use super::{Facts, Work};
use crate::os::{
    Slot,
    boot::Booted,
    journal::{Content, Journal, Stage},
};

/// How the operating system stands, for the report.
#[must_use]
pub fn view(backend: &str, facts: &Facts, journal: &Journal, shown: Option<Reason>) -> HostReport {
    let booted = facts.booted.as_ref().ok();
    let slots: BTreeMap<String, SlotReport> = Slot::BOTH
        .into_iter()
        .map(|slot| (slot.to_string(), slot_view(slot, facts, journal, booted)))
        .collect();
    let here = booted.and_then(|b| journal_image(journal, b.slot));
    let shown = shown.map(|why| Reason {
        release: why.release.and_then(|release| journal.known_elsewhere(release)),
        ..why
    });
    HostReport {
        backend: backend.to_owned(),
        slots,
        release: here.and_then(|(release, _)| journal.known_elsewhere(release)),
        version: facts.version.to_string(),
        progress: progress(facts, journal, shown.as_ref()),
        reason: shown,
        failed: journal.parked.as_ref().and_then(|p| journal.known_elsewhere(p.key.release)),
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
    let release = image.and_then(|(release, _)| journal.known_elsewhere(release));
    SlotReport { state, booted: is_booted, release, version }
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
