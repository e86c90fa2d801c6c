//! What verdicts were before, so that a change of one is told. In: rounds of checks. Out: events. Pure, but for its memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use copal_protocol::diagnosis::{HealthReport, MAX_RESULTS, ProbeResult, Verdict};

use crate::spool::{Note, Notes};

/// The verdicts of the last rounds, and where changes are told.
pub(super) struct Verdicts {
    notes: Notes,
    last: Mutex<BTreeMap<(String, Option<String>), Verdict>>,
}

impl Verdicts {
    /// `known` is what an agent before this one found: an old verdict is no news.
    pub(super) fn new(notes: Notes, known: &HealthReport) -> Self {
        Self { notes, last: Mutex::new(before(known)) }
    }

    pub(super) fn seen(&self, results: &[ProbeResult]) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        changes(&mut last, results).into_iter().for_each(|note| self.notes.note(note));
    }
}

fn before(known: &HealthReport) -> BTreeMap<(String, Option<String>), Verdict> {
    let checks = known.checks.iter().filter(|(_, check)| check.verdict != Verdict::Unknown);
    checks.map(|(name, check)| ((name.clone(), check.subject.clone()), check.verdict)).collect()
}

/// A check that could not be made says nothing. One that is first made is told where it did not end well.
fn changes(last: &mut BTreeMap<(String, Option<String>), Verdict>, results: &[ProbeResult]) -> Vec<Note> {
    let mut notes = Vec::new();
    for result in results.iter().filter(|r| r.verdict != Verdict::Unknown) {
        let key = (result.name.clone(), result.subject.clone());
        if last.len() >= MAX_RESULTS && !last.contains_key(&key) {
            continue;
        }
        let before = last.insert(key, result.verdict);
        let news = before.map_or(result.verdict != Verdict::Ok, |before| before != result.verdict);
        if news {
            let subject = result.subject.clone();
            let of = subject.as_ref().map(|s| format!(" ({s})")).unwrap_or_default();
            let message = format!("{}{of}: {}", result.name, result.detail);
            let note = Note::new("probe", result.verdict.as_str(), &message)
                .with("check", result.name.as_str())
                .with("subject", subject)
                .with("before", before.map(Verdict::as_str))
                .with("value", result.value)
                .with("threshold", result.threshold);
            notes.push(note);
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use copal_protocol::diagnosis::Diagnosis;

    use super::*;

    #[test]
    fn what_an_agent_before_found_is_no_news_and_its_end_is() {
        let found = |verdict| [ProbeResult::new("disk", verdict, "x")];
        let mut known = HealthReport::default();
        known.take(&Diagnosis { probes: found(Verdict::Failed).into(), taken_at: 1 });
        let mut last = before(&known);
        assert!(changes(&mut last, &found(Verdict::Failed)).is_empty());
        assert_eq!(changes(&mut last, &found(Verdict::Ok)).len(), 1);
    }

    #[test]
    fn a_verdict_is_told_when_it_changes() {
        let mut last = BTreeMap::new();
        let mut round = |verdict| {
            let result = ProbeResult::new("disk", verdict, "x").of("/data");
            changes(&mut last, &[result]).iter().map(|n| n.name().1.to_owned()).collect::<Vec<_>>()
        };
        use Verdict::{Failed, Ok, Unknown, Warning};
        for (verdict, told) in [
            (Ok, ""),
            (Warning, "warning"),
            (Warning, ""),
            (Unknown, ""),
            (Warning, ""),
            (Failed, "failed"),
            (Ok, "ok"),
        ] {
            assert_eq!(round(verdict).concat(), told, "{verdict:?}");
        }
        let mut fresh = BTreeMap::new();
        let failed = [ProbeResult::new("dns", Failed, "x")];
        assert_eq!((changes(&mut fresh, &failed).len(), changes(&mut fresh, &failed).len()), (1, 0));
    }
}
