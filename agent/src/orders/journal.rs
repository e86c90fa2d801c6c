//! What is remembered of commands over restarts (file `orders`), and what follows from it. Pure.
//!
//! An entry is made before its act begins and gets its end after. Entries are bounded; of what is forgotten the highest `seq`
//! stays, so that an old command that somebody kept is known as old for ever.

use copal_protocol::{
    channel::{Ack, AckState},
    documents::Act,
    ids::CommandId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most commands remembered.
pub const KEPT: usize = 64;
/// The most characters of a message.
const MESSAGE: usize = 500;

/// Everything remembered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// No command up to this number is begun any more, unless it is among the entries.
    pub forgotten_up_to: u64,
    entries: Vec<Entry>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub id: CommandId,
    /// Its number.
    pub seq: u64,
    /// What it says.
    pub act: Act,
    /// The boot it was begun in.
    pub boot_id: String,
    /// How it ended; absent while it is under way, or was when the agent died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// The cloud has that end. May be said too late, so that it is told again; never too early.
    #[serde(default)]
    pub told: bool,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// A final one.
    pub state: AckState,
    /// Why, where it did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was asked for; questions only, which are not remembered.
    #[serde(skip)]
    pub result: Option<Value>,
}

impl End {
    /// A good one.
    #[must_use]
    pub fn done(message: impl Into<String>) -> Self {
        Self { state: AckState::Done, code: None, message: bounded(message.into()), result: None }
    }

    /// Another.
    #[must_use]
    pub fn not(state: AckState, code: &str, message: impl Into<String>) -> Self {
        Self { state, code: Some(code.to_owned()), message: bounded(message.into()), result: None }
    }

    /// As it is told.
    #[must_use]
    pub fn ack(&self, id: CommandId) -> Ack {
        Ack {
            id,
            state: self.state,
            code: self.code.clone(),
            message: self.message.clone(),
            result: self.result.clone(),
        }
    }
}

/// What is to become of a command that came.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// It is new.
    New,
    /// It came before, and ended so.
    Ended(End),
    /// It came before, and is under way.
    UnderWay,
    /// It is older than what is remembered.
    Old,
    /// There is no room to write it down: everything remembered is still to be told.
    Full,
}

impl Journal {
    /// A journal that stands in for a lost one: nothing up to `seq` is begun any more.
    #[must_use]
    pub fn after_loss(seq: u64) -> Self {
        Self { forgotten_up_to: seq, entries: Vec::new() }
    }

    /// Judges a command that came.
    #[must_use]
    pub fn admit(&self, id: CommandId, seq: u64) -> Admission {
        if let Some(entry) = self.entries.iter().find(|entry| entry.id == id) {
            return entry.end.clone().map_or(Admission::UnderWay, Admission::Ended);
        }
        if seq <= self.forgotten_up_to {
            return Admission::Old;
        }
        let room = self.entries.len() < KEPT || self.to_forget().is_some();
        if room { Admission::New } else { Admission::Full }
    }

    /// Writes a command down that was admitted as new: begun, or ended at once.
    pub fn note(&mut self, id: CommandId, seq: u64, act: Act, boot_id: &str, end: Option<End>) {
        while self.entries.len() >= KEPT
            && let Some(at) = self.to_forget()
        {
            let gone = self.entries.remove(at);
            self.forgotten_up_to = self.forgotten_up_to.max(gone.seq);
        }
        self.entries.push(Entry { id, seq, act, boot_id: boot_id.to_owned(), end, told: false });
    }

    /// Writes down how a command ended. The first end counts.
    pub fn end(&mut self, id: CommandId, end: End) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id && entry.end.is_none()) {
            entry.end = Some(end);
        }
    }

    /// The cloud has a command's end.
    pub fn told(&mut self, id: CommandId) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id && entry.end.is_some()) {
            entry.told = true;
        }
    }

    /// After a start: ends what died in the middle, and gives what is done again.
    pub fn recover(&mut self, boot_id: &str) -> Vec<(CommandId, Act)> {
        let mut again = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.end.is_none()) {
            if matches!(entry.act, Act::Reboot {}) && entry.boot_id != boot_id {
                entry.end = Some(End::done("the device restarted"));
            } else if entry.act.is_idempotent() {
                again.push((entry.id, entry.act.clone()));
            } else {
                let message = "the agent ended in the middle of it; whether it was done is not known, and it is not begun again: \
                               look at the device, and ask anew if need be";
                entry.end = Some(End::not(AckState::Unknown, "interrupted", message));
            }
        }
        again
    }

    /// What was under way when the agent died.
    #[must_use]
    pub fn cut_short(&self) -> Vec<(CommandId, Act)> {
        let open = self.entries.iter().filter(|entry| entry.end.is_none());
        open.map(|entry| (entry.id, entry.act.clone())).collect()
    }

    /// Ends that the cloud may not have.
    #[must_use]
    pub fn untold(&self) -> Vec<Ack> {
        let ended = self.entries.iter().filter(|entry| !entry.told);
        ended.filter_map(|entry| Some(entry.end.as_ref()?.ack(entry.id))).collect()
    }

    /// The one to forget next: the lowest number of those that are over and told.
    fn to_forget(&self) -> Option<usize> {
        let over = self.entries.iter().enumerate().filter(|(_, entry)| entry.told);
        over.min_by_key(|(_, entry)| entry.seq).map(|(at, _)| at)
    }
}

/// What is told now and what is told from the journal later are the same.
fn bounded(mut message: String) -> String {
    if let Some((at, _)) = message.char_indices().nth(MESSAGE) {
        message.truncate(at);
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u64) -> CommandId {
        CommandId::from_bytes(u128::from(n).to_be_bytes())
    }

    fn over(journal: &mut Journal, n: u64) {
        journal.note(id(n), n, Act::CheckUpdate {}, "b", None);
        journal.end(id(n), End::done("x"));
        journal.told(id(n));
    }

    #[test]
    fn a_repeated_id_gets_its_answer_and_a_forgotten_one_is_old() {
        let mut journal = Journal::default();
        for n in 1..=KEPT as u64 + 10 {
            assert_eq!(journal.admit(id(n), n), Admission::New);
            over(&mut journal, n);
        }
        assert_eq!(journal.entries.len(), KEPT);
        assert_eq!(journal.forgotten_up_to, 10);
        assert_eq!(journal.admit(id(10), 10), Admission::Old);
        assert_eq!(journal.admit(id(11), 11), Admission::Ended(End::done("x")));
        assert_eq!(journal.admit(id(999), 5), Admission::Old, "another id with an old number");
        assert_eq!(journal.admit(id(999), 12), Admission::New, "out of order is not old");
    }

    #[test]
    fn what_is_not_told_or_under_way_is_never_forgotten() {
        let mut journal = Journal::default();
        journal.note(id(1), 1, Act::Reboot {}, "b", None);
        journal.note(id(2), 2, Act::Reboot {}, "b", Some(End::not(AckState::Rejected, "policy_local", "no")));
        for n in 3..=300 {
            over(&mut journal, n);
        }
        assert_eq!(journal.admit(id(1), 1), Admission::UnderWay);
        assert!(matches!(journal.admit(id(2), 2), Admission::Ended(_)));
        let mut stuck = Journal::default();
        for n in 1..=KEPT as u64 {
            stuck.note(id(n), n, Act::CheckUpdate {}, "b", None);
        }
        assert_eq!(stuck.admit(id(999), 999), Admission::Full);
    }

    #[test]
    fn after_a_crash_each_act_has_the_end_that_is_true() {
        let mut journal = Journal::default();
        let service = || "web".parse().unwrap();
        journal.note(id(1), 1, Act::RestartService { service: service() }, "b", None);
        journal.note(id(2), 2, Act::StopService { service: service() }, "b", None);
        journal.note(id(3), 3, Act::PurgeData { volume: None }, "b", None);
        journal.note(id(4), 4, Act::Reboot {}, "b", None);
        let states = |journal: &Journal| -> Vec<(u64, AckState)> {
            journal.untold().iter().map(|a| (u128::from_be_bytes(*a.id.as_bytes()) as u64, a.state)).collect()
        };
        let mut same = journal.clone();
        assert_eq!(same.recover("b"), [(id(2), Act::StopService { service: service() })]);
        assert_eq!(states(&same), [(1, AckState::Unknown), (3, AckState::Unknown), (4, AckState::Unknown)]);
        journal.recover("another");
        assert_eq!(states(&journal), [(1, AckState::Unknown), (3, AckState::Unknown), (4, AckState::Done)]);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_is_said() {
        let mut journal = Journal::default();
        for n in 1..=KEPT as u64 {
            let service = "x".repeat(63).parse().unwrap();
            journal.note(id(n), n, Act::StopService { service }, &"b".repeat(32), None);
            journal.end(id(n), End::not(AckState::Failed, "start_failed", "é".repeat(100_000)));
        }
        assert!(serde_json::to_vec(&journal).unwrap().len() < 128 << 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Commands come in any order, again and again, and the agent dies at any step: none is begun twice unless that is
        /// harmless, and all that were told say the same each time.
        #[test]
        fn none_is_begun_twice_and_every_answer_stays(
            steps in prop::collection::vec((0_u64..90, 0_u8..6, any::<bool>()), 1..400),
        ) {
            let mut journal = Journal::default();
            let mut begun = std::collections::BTreeMap::<u64, u32>::new();
            let mut answers = std::collections::BTreeMap::<u64, End>::new();
            let mut boot = 0;
            for (n, what, die) in steps {
                let n = n + 1;
                let act = if n % 2 == 0 { Act::Reboot {} } else { Act::CheckUpdate {} };
                match (what, journal.admit(id(n), n)) {
                    (0..=3, Admission::New) => {
                        prop_assert!(!begun.contains_key(&n), "{n} was begun before");
                        journal.note(id(n), n, act, &boot.to_string(), None);
                        *begun.entry(n).or_default() += 1;
                    }
                    (4, Admission::UnderWay) => journal.end(id(n), End::done(format!("of {n}"))),
                    (5, Admission::Ended(_)) => journal.told(id(n)),
                    _ => {}
                }
                if die {
                    // As it stands on the disk.
                    journal = serde_json::from_slice(&serde_json::to_vec(&journal).unwrap()).unwrap();
                    boot += u64::from(what % 2 == 0);
                    for (_, act) in journal.recover(&boot.to_string()) {
                        prop_assert!(act.is_idempotent());
                    }
                }
                if let Admission::Ended(end) = journal.admit(id(n), n) {
                    let first = answers.entry(n).or_insert_with(|| end.clone());
                    prop_assert_eq!(&*first, &end);
                }
            }
        }
    }
}
