//! What is remembered of commands over restarts (file `orders`), and what follows from it. Pure.
//!
//! An entry is made when its command is accepted, says so before its act begins, and gets its end after. Entries are bounded; of
//! what is forgotten the highest `seq` stays, so that an old command that somebody kept is known as old for ever.
//!
//! A command that was cut short ages on: in the same boot by the kernel's clock that no one sets. Over a boot a device does not
//! know how long it was off, so it waits for the cloud, which sends the command again with its age. So does what was not begun.

use copal_protocol::{
    channel::{Ack, AckState},
    documents::{Act, FIRST_EPOCH},
    ids::CommandId,
    network::shown_proxy,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most commands remembered.
pub const KEPT: usize = 64;
/// The most characters of a message.
const MESSAGE: usize = 500;

/// A command's place in order: the epoch the owner gave, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Root's `assign_epoch`.
    pub epoch: u64,
    /// Its `seq`.
    pub seq: u64,
}

/// A number of the first epoch.
impl From<u64> for Place {
    fn from(seq: u64) -> Self {
        Self { epoch: FIRST_EPOCH, seq }
    }
}

const fn first_epoch() -> u64 {
    FIRST_EPOCH
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_first_epoch(epoch: &u64) -> bool {
    *epoch == FIRST_EPOCH
}

/// Everything remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// The epoch of the number below.
    #[serde(default = "first_epoch", skip_serializing_if = "is_first_epoch")]
    forgotten_epoch: u64,
    /// No command up to this number is begun any more, nor one of an earlier epoch, unless it is among the entries.
    forgotten_up_to: u64,
    entries: Vec<Entry>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::after_loss(0.into())
    }
}

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub id: CommandId,
    /// The epoch of its number.
    #[serde(default = "first_epoch", skip_serializing_if = "is_first_epoch")]
    pub epoch: u64,
    /// Its number.
    pub seq: u64,
    /// What it says.
    pub act: Act,
    /// The boot it was accepted in, or taken up again.
    pub boot_id: String,
    /// Accepted, and surely not begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// Until when it may begin, seconds since that boot; absent once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_until_s: Option<u64>,
    /// Cut short, and not decided until the cloud sends it again.
    #[serde(skip)]
    cut: bool,
    /// How it ended; absent while it is under way, or was when the agent died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// The cloud has that end. May be said too late, so that it is told again; never too early.
    #[serde(default)]
    pub told: bool,
}

/// Now, by what nobody sets.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The kernel's id of this boot.
    pub boot_id: &'a str,
    /// Seconds since it began, sleep included.
    pub uptime_s: u64,
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
    /// It came before, and was cut short: now that its age is known, it is [taken up](Journal::take_up).
    Cut,
    /// It is older than what is remembered.
    Old,
    /// There is no room to write it down: everything remembered is still to be told.
    Full,
}

impl Journal {
    /// A journal that stands in for a lost one: nothing up to this place is begun any more.
    #[must_use]
    pub fn after_loss(place: Place) -> Self {
        Self { forgotten_epoch: place.epoch, forgotten_up_to: place.seq, entries: Vec::new() }
    }

    fn forgotten(&self) -> Place {
        Place { epoch: self.forgotten_epoch, seq: self.forgotten_up_to }
    }

    /// Judges a command that came.
    #[must_use]
    pub fn admit(&self, id: CommandId, place: impl Into<Place>) -> Admission {
        if let Some(entry) = self.entries.iter().find(|entry| entry.id == id) {
            return match &entry.end {
                Some(end) => Admission::Ended(end.clone()),
                None if entry.cut => Admission::Cut,
                None => Admission::UnderWay,
            };
        }
        if place.into() <= self.forgotten() {
            return Admission::Old;
        }
        let room = self.entries.len() < KEPT || self.to_forget().is_some();
        if room { Admission::New } else { Admission::Full }
    }

    /// Writes a command down that was admitted as new: accepted and good for `left_s` seconds more, or ended at once.
    pub fn note(
        &mut self,
        id: CommandId,
        place: impl Into<Place>,
        act: Act,
        now: Moment<'_>,
        left: Result<u64, End>,
    ) {
        let Place { epoch, seq } = place.into();
        while self.entries.len() >= KEPT
            && let Some(at) = self.to_forget()
        {
            let gone = self.entries.remove(at);
            let forgotten = self.forgotten().max(gone.place());
            (self.forgotten_epoch, self.forgotten_up_to) = (forgotten.epoch, forgotten.seq);
        }
        let waits = left.is_ok();
        let (good_until_s, end) = match left {
            Ok(left_s) => (Some(now.uptime_s.saturating_add(left_s)), None),
            Err(end) => (None, Some(end)),
        };
        let boot_id = now.boot_id.to_owned();
        let mut entry =
            Entry { id, epoch, seq, act, boot_id, waits, good_until_s, cut: false, end, told: false };
        entry.hide();
        self.entries.push(entry);
    }

    /// Writes down that a command begins. Whether that is news.
    pub fn begin(&mut self, id: CommandId) -> bool {
        let open = self.entries.iter_mut().find(|entry| entry.id == id && entry.end.is_none());
        open.is_some_and(|entry| std::mem::take(&mut entry.waits))
    }

    /// Takes up a command that was cut short; `left_s`: for how long it is good still, `None` where its time is over.
    ///
    /// # Errors
    /// Its end, where it is not begun any more.
    pub fn take_up(&mut self, id: CommandId, now: Moment<'_>, left_s: Option<u64>) -> Result<(), End> {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id && entry.cut) else {
            return Ok(());
        };
        entry.cut = false;
        now.boot_id.clone_into(&mut entry.boot_id);
        match left_s {
            Some(left_s) => entry.good_until_s = Some(now.uptime_s.saturating_add(left_s)),
            None => entry.late(),
        }
        entry.end.clone().map_or(Ok(()), Err)
    }

    /// Writes down how a command ended. The first end counts.
    pub fn end(&mut self, id: CommandId, end: End) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id && entry.end.is_none()) {
            entry.ended(end);
        }
    }

    /// The cloud has a command's end.
    pub fn told(&mut self, id: CommandId) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id && entry.end.is_some()) {
            entry.told = true;
        }
    }

    /// After a start: ends what died in the middle, and gives what is done again. What waits for the cloud's word is neither.
    pub fn recover(&mut self, now: Moment<'_>) -> Vec<(CommandId, Act)> {
        let mut again = Vec::new();
        // Agents of before this one kept them.
        self.entries.iter_mut().for_each(Entry::hide);
        for entry in self.entries.iter_mut().filter(|entry| entry.end.is_none()) {
            let same_boot = entry.boot_id == now.boot_id;
            if matches!(entry.act, Act::Reboot {}) && !entry.waits && !same_boot {
                entry.ended(End::done("the device restarted"));
            } else if !entry.waits && !entry.act.is_idempotent() {
                let message = "the agent ended in the middle of it; whether it was done is not known, and it is not begun again: \
                               look at the device, and ask anew if need be";
                entry.ended(End::not(AckState::Unknown, "interrupted", message));
            } else {
                match entry.good_until_s.filter(|_| same_boot) {
                    Some(until) if now.uptime_s > until => entry.late(),
                    Some(_) if !entry.waits => again.push((entry.id, entry.act.clone())),
                    // Of one that was not begun the cloud may have heard that it never will be, for want of a disk.
                    _ => entry.cut = true,
                }
            }
        }
        again
    }

    /// What was begun and had no end when the agent died.
    #[must_use]
    pub fn cut_short(&self) -> Vec<(CommandId, Act)> {
        let open = self.entries.iter().filter(|entry| entry.end.is_none() && !entry.waits);
        open.map(|entry| (entry.id, entry.act.clone())).collect()
    }

    /// Ends that the cloud may not have.
    #[must_use]
    pub fn untold(&self) -> Vec<Ack> {
        let ended = self.entries.iter().filter(|entry| !entry.told);
        ended.filter_map(|entry| Some(entry.end.as_ref()?.ack(entry.id))).collect()
    }

    /// The one to forget next: the lowest number of those that are over and told, and of those that the cloud may never ask for
    /// again.
    fn to_forget(&self) -> Option<usize> {
        let over = self.entries.iter().enumerate().filter(|(_, entry)| entry.told || entry.cut);
        over.min_by_key(|(_, entry)| entry.place()).map(|(at, _)| at)
    }
}

impl Entry {
    fn place(&self) -> Place {
        Place { epoch: self.epoch, seq: self.seq }
    }

    fn ended(&mut self, end: End) {
        self.end = Some(end);
        (self.waits, self.cut, self.good_until_s) = (false, false, None);
        self.hide();
    }

    /// A password is gone with what it was for.
    fn hide(&mut self) {
        if let (Act::SetNetwork { proxy: Some(proxy), .. }, Some(_)) = (&mut self.act, &self.end) {
            *proxy = shown_proxy(proxy);
        }
    }

    /// Its time passed before it began, or before it could be begun again.
    fn late(&mut self) {
        self.ended(if self.waits {
            let message = "its time passed before it began: the agent or the device was off meanwhile";
            End::not(AckState::Expired, "expired", message)
        } else {
            let message = "the agent or the device went off in the middle of it, and its time has passed since; whether it was done \
                           is not known, and it is not begun again: look at the device, and ask anew if need be";
            End::not(AckState::Unknown, "interrupted", message)
        });
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

    /// Seconds since the boot `b` began.
    fn at(uptime_s: u64) -> Moment<'static> {
        Moment { boot_id: "b", uptime_s }
    }

    fn over(journal: &mut Journal, n: u64) {
        journal.note(id(n), n, Act::CheckUpdate {}, at(0), Ok(30));
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
    fn numbers_that_were_used_up_begin_anew_in_another_epoch_and_old_ones_stay_old() {
        let mut journal = Journal::default();
        for n in (1 << 53) - KEPT as u64 - 2..1 << 53 {
            over(&mut journal, n);
        }
        let of = |epoch, seq| Place { epoch, seq };
        assert_eq!(journal.admit(id(1), of(1, 2_000_000_000)), Admission::Old, "used up");
        for n in 1..=KEPT as u64 + 1 {
            assert_eq!(journal.admit(id(n), of(2, n)), Admission::New);
            journal.note(id(n), of(2, n), Act::CheckUpdate {}, at(0), Ok(30));
            journal.end(id(n), End::done("x"));
            journal.told(id(n));
        }
        assert_eq!(journal.forgotten(), of(2, 1));
        let read: Journal = serde_json::from_slice(&serde_json::to_vec(&journal).unwrap()).unwrap();
        assert_eq!(read, journal);
        assert_eq!(read.admit(id(9999), (1 << 53) - 1), Admission::Old, "of an epoch that is over");
        let before_epochs = r#"{"forgotten_up_to":7,"entries":[]}"#;
        assert_eq!(serde_json::from_str::<Journal>(before_epochs).unwrap().forgotten(), of(1, 7));
    }

    #[test]
    fn a_password_is_not_kept_longer_than_its_command_lasts() {
        let text = |journal: &Journal| serde_json::to_string(journal).unwrap();
        let act = || Act::SetNetwork { proxy: Some("http://me:hunter2@proxy:1".to_owned()), ntp: None };
        let mut journal = Journal::default();
        journal.note(id(1), 1, act(), at(0), Err(End::not(AckState::Rejected, "policy_local", "no")));
        assert!(!text(&journal).contains("hunter2"), "it never began");
        journal.note(id(2), 2, act(), at(0), Ok(30));
        journal.begin(id(2));
        let old = text(&journal);
        assert_eq!(journal.cut_short()[0].1, act(), "until its end it is known by the whole of it");
        journal.end(id(2), End::done("set"));
        assert!(!text(&journal).contains("hunter2"));
        // As agents of before this one left it.
        let old = old.replace("(redacted)", "me:hunter2").replace("\"waits\":false,", "");
        let mut old: Journal = serde_json::from_str(&old).unwrap();
        old.recover(at(5));
        assert!(!text(&old).contains("hunter2"), "{}", text(&old));
    }

    #[test]
    fn what_is_not_told_or_under_way_is_never_forgotten() {
        let mut journal = Journal::default();
        journal.note(id(1), 1, Act::Reboot {}, at(0), Ok(30));
        journal.note(
            id(2),
            2,
            Act::Reboot {},
            at(0),
            Err(End::not(AckState::Rejected, "policy_local", "no")),
        );
        for n in 3..=300 {
            over(&mut journal, n);
        }
        assert_eq!(journal.admit(id(1), 1), Admission::UnderWay);
        assert!(matches!(journal.admit(id(2), 2), Admission::Ended(_)));
        let mut stuck = Journal::default();
        for n in 1..=KEPT as u64 {
            stuck.note(id(n), n, Act::CheckUpdate {}, at(0), Ok(30));
        }
        assert_eq!(stuck.admit(id(999), 999), Admission::Full);
    }

    fn stop() -> Act {
        Act::StopService { service: "web".parse().unwrap() }
    }

    /// Commands 1 to 4, which cannot be done twice but for the second: begun, or only accepted.
    fn four(begun: bool) -> Journal {
        let mut journal = Journal::default();
        let restart = Act::RestartService { service: "web".parse().unwrap() };
        for (n, act) in (1..).zip([restart, stop(), Act::PurgeData { volume: None }, Act::Reboot {}]) {
            journal.note(id(n), n, act, at(100), Ok(30));
            assert!(!begun || journal.begin(id(n)));
        }
        // As it stands on the disk.
        serde_json::from_slice(&serde_json::to_vec(&journal).unwrap()).unwrap()
    }

    fn number(id: CommandId) -> u64 {
        u128::from_be_bytes(*id.as_bytes()) as u64
    }

    fn states(journal: &Journal) -> Vec<(u64, AckState)> {
        journal.untold().iter().map(|a| (number(a.id), a.state)).collect()
    }

    fn again(journal: &mut Journal, now: Moment<'_>) -> Vec<u64> {
        journal.recover(now).into_iter().map(|(id, _)| number(id)).collect()
    }

    #[test]
    fn after_a_crash_each_act_has_the_end_that_is_true() {
        let mut same = four(true);
        assert_eq!(same.cut_short().len(), 4);
        assert_eq!(again(&mut same, at(130)), [2], "its last second");
        assert_eq!(states(&same), [(1, AckState::Unknown), (3, AckState::Unknown), (4, AckState::Unknown)]);
        let mut other = four(true);
        assert_eq!(again(&mut other, Moment { boot_id: "c", uptime_s: 5 }), [0_u64; 0]);
        assert_eq!(states(&other), [(1, AckState::Unknown), (3, AckState::Unknown), (4, AckState::Done)]);
        assert_eq!(other.admit(id(2), 2), Admission::Cut);
    }

    #[test]
    fn what_was_cut_short_is_not_begun_once_its_time_is_over() {
        let mut begun = four(true);
        assert_eq!(again(&mut begun, at(131)), [0_u64; 0]);
        assert_eq!(states(&begun), [1, 2, 3, 4].map(|n| (n, AckState::Unknown)), "half done, perhaps");
        let mut accepted = four(false);
        assert!(accepted.cut_short().is_empty());
        assert_eq!(again(&mut accepted, at(131)), [0_u64; 0]);
        assert_eq!(states(&accepted), [1, 2, 3, 4].map(|n| (n, AckState::Expired)), "surely not begun");
        let ends = accepted.untold();
        assert_eq!(again(&mut accepted, at(132)), [0_u64; 0]);
        assert_eq!(accepted.untold(), ends, "and so it stays");
        let mut in_time = four(false);
        assert_eq!(again(&mut in_time, at(130)), [0_u64; 0], "that it was not begun may have been told");
        for n in 1..=4 {
            assert_eq!(in_time.admit(id(n), n), Admission::Cut);
            in_time.take_up(id(n), at(131), Some(10)).unwrap();
            assert!(in_time.begin(id(n)), "even what can be done only once: it never was");
        }
    }

    #[test]
    fn after_another_boot_only_the_clouds_word_of_its_age_begins_it() {
        let next = Moment { boot_id: "c", uptime_s: 5 };
        for (begun, late) in [(true, AckState::Unknown), (false, AckState::Expired)] {
            let mut journal = four(begun);
            assert_eq!(again(&mut journal, next), [0_u64; 0], "the device may have been off for a year");
            assert_eq!(journal.admit(id(2), 2), Admission::Cut);
            let mut over = journal.clone();
            let end = over.take_up(id(2), next, None).unwrap_err();
            assert_eq!(end.state, late);
            assert_eq!(over.admit(id(2), 2), Admission::Ended(end), "told once, and the same again");
            journal.take_up(id(2), next, Some(20)).unwrap();
            assert_eq!(journal.admit(id(2), 2), Admission::UnderWay);
            journal.begin(id(2));
            assert_eq!(
                again(&mut journal.clone(), Moment { uptime_s: 25, ..next }),
                [2],
                "it ages in this boot"
            );
            assert_eq!(again(&mut journal, Moment { uptime_s: 26, ..next }), [0_u64; 0]);
        }
    }

    #[test]
    fn what_the_cloud_never_asks_for_again_takes_no_room_for_ever() {
        let mut journal = Journal::default();
        for n in 1..=KEPT as u64 {
            journal.note(id(n), n, stop(), at(0), Ok(30));
        }
        assert_eq!(journal.admit(id(999), 999), Admission::Full);
        journal.recover(Moment { boot_id: "c", uptime_s: 1 });
        assert_eq!(journal.admit(id(999), 999), Admission::New);
        over(&mut journal, 999);
        assert_eq!(journal.admit(id(1), 1), Admission::Old, "and is begun no more");
    }

    #[test]
    fn a_journal_of_an_agent_that_knew_no_time_begins_nothing_by_itself() {
        let old = r#"{"forgotten_up_to": 0, "entries": [{"id": "00000000000000000000000000000001", "seq": 1,
            "act": {"verb": "stop_service", "service": "web"}, "boot_id": "b", "told": false}]}"#;
        let mut journal: Journal = serde_json::from_str(old).unwrap();
        assert_eq!(again(&mut journal, at(1)), [0_u64; 0]);
        assert_eq!(journal.take_up(id(1), at(1), None).unwrap_err().state, AckState::Unknown);
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_is_said() {
        let mut journal = Journal::default();
        for n in 1..=KEPT as u64 {
            let service = "x".repeat(63).parse().unwrap();
            let now = Moment { boot_id: &"b".repeat(32), uptime_s: u64::MAX };
            journal.note(id(n), n, Act::StopService { service }, now, Ok(u64::MAX));
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
                        let now = Moment { boot_id: &boot.to_string(), uptime_s: 0 };
                        journal.note(id(n), n, act, now, Ok(30));
                        // Or it dies before it begins it.
                        if !die {
                            prop_assert!(journal.begin(id(n)) && !journal.begin(id(n)));
                            *begun.entry(n).or_default() += 1;
                        }
                    }
                    (0..=3, Admission::Cut) => {
                        let now = Moment { boot_id: &boot.to_string(), uptime_s: 1 };
                        let taken = journal.take_up(id(n), now, (what > 0).then_some(30));
                        prop_assert_eq!(taken.is_ok(), what > 0);
                        if taken.is_ok() && journal.begin(id(n)) {
                            prop_assert!(begun.insert(n, 1).is_none(), "{n} was begun before");
                        }
                    }
                    (4, Admission::UnderWay) => journal.end(id(n), End::done(format!("of {n}"))),
                    (5, Admission::Ended(_)) => journal.told(id(n)),
                    _ => {}
                }
                if die {
                    // As it stands on the disk.
                    journal = serde_json::from_slice(&serde_json::to_vec(&journal).unwrap()).unwrap();
                    boot += u64::from(what % 2 == 0);
                    for (id, act) in journal.recover(Moment { boot_id: &boot.to_string(), uptime_s: 1 }) {
                        prop_assert!(!journal.begin(id) && act.is_idempotent());
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
