//! What is set, what is on trial beside it, and what can be gone back to (file `network`). Pure.

use std::time::Duration;

use copal_protocol::ids::Sha256Hex;
use serde::{Deserialize, Serialize};

/// What a start of the agent counts for of the time in which the cloud was not reached, where it is the first thing known of it: whoever turns a
/// device off and on, or is a watchdog, would else begin the wait anew each time.
pub const START_S: u64 = 3600;
/// How often what was set is tried again before another way that reached the cloud takes its place. A cloud that was away for long
/// is reached by whatever is tried first when it comes back, and that says nothing against what was set.
pub const FALLS: u32 = 5;

/// What can be set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The proxy; absent: what the agent's environment says. May hold a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The time servers; none: the system's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

/// A change of these: what is absent stays.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// A proxy's URL, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Time servers; none: the system's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Vec<String>>,
}

/// How the last change ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Last {
    /// The change's digest. The change itself may hold a password, which is over with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256Hex>,
    /// What agents of before this one kept; read, and not written again.
    #[serde(default, skip_serializing)]
    change: Option<Change>,
    /// Whether it stayed.
    pub kept: bool,
    /// For people; no secret in it.
    pub message: String,
}

/// Everything kept.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What holds, and what a trial goes back to.
    #[serde(default)]
    pub now: Settings,
    /// What held before that, and had reached the cloud for long. Absent where it is what the device came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Settings>,
    /// What holds has reached the cloud for long.
    #[serde(default)]
    pub proven: bool,
    /// Seconds in which the cloud was not reached before this agent started, and [`START_S`] for the start.
    #[serde(default)]
    pub unreached_s: u64,
    /// How often another way reached the cloud where this one had not.
    #[serde(default)]
    pub falls: u32,
    /// What is on trial; there is one for as long as the cloud was not reached with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Change>,
    /// How the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
}

impl Change {
    fn digest(&self) -> Sha256Hex {
        Sha256Hex::of(&serde_json::to_vec(self).expect("texts can be written"))
    }
}

impl Last {
    fn of(change: &Change, kept: bool, message: &str) -> Option<Self> {
        Some(Self { sha256: Some(change.digest()), change: None, kept, message: message.to_owned() })
    }

    /// Whether it is how this change ended.
    #[must_use]
    pub fn is_of(&self, change: &Change) -> bool {
        self.sha256 == Some(change.digest()) || self.change.as_ref() == Some(change)
    }
}

impl Settings {
    /// With this changed.
    #[must_use]
    pub fn with(&self, change: &Change) -> Self {
        let proxy = match change.proxy.as_deref() {
            None => self.proxy.clone(),
            Some(copal_protocol::network::NONE) => None,
            Some(proxy) => Some(proxy.to_owned()),
        };
        Self { proxy, ntp: change.ntp.clone().unwrap_or_else(|| self.ntp.clone()) }
    }
}

impl Record {
    /// A change is tried.
    #[must_use]
    pub fn trying(&self, change: Change) -> Self {
        Self { trial: Some(change), ..self.clone() }
    }

    /// What was tried stays.
    #[must_use]
    pub fn kept(&self, message: &str) -> Self {
        let Some(change) = self.trial.clone() else { return self.clone() };
        let now = self.now.with(&change);
        let last = Last::of(&change, true, message);
        if now == self.now {
            return Self { trial: None, last, unreached_s: 0, ..self.clone() };
        }
        // What is set in a hurry, one after the other, does not push out what is known to be good.
        let before =
            if self.proven || self.before.is_none() { Some(self.now.clone()) } else { self.before.clone() };
        let came_with = Settings::default();
        let before = before.filter(|before| now != came_with && *before != came_with && *before != now);
        Self { now, before, last, ..Self::default() }
    }

    /// What was tried is undone.
    #[must_use]
    pub fn reverted(&self, message: &str) -> Self {
        let Some(change) = self.trial.clone() else { return self.clone() };
        let last = Last::of(&change, false, message);
        Self { trial: None, last, ..self.clone() }
    }

    /// The ways to the cloud there are: what is set, what was set before it, and what the device came with.
    #[must_use]
    pub fn ways(&self) -> Vec<Settings> {
        let mut ways = vec![self.now.clone()];
        for way in self.before.iter().cloned().chain([Settings::default()]) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// The agent starts.
    #[must_use]
    pub fn started(&self) -> Self {
        // Written by an agent of before this one, it has a digest from now on.
        let last = self.last.clone().map(|last| match &last.change {
            Some(change) => Last { sha256: Some(change.digest()), change: None, ..last },
            None => last,
        });
        let unreached_s = if self.ways().len() > 1 { self.unreached_s.saturating_add(START_S) } else { 0 };
        Self { unreached_s, last, ..self.clone() }
    }

    /// Every proxy that it knows of: what they have of users and passwords is not shown.
    pub fn proxies(&self) -> impl Iterator<Item = &str> {
        let old = self.last.as_ref().and_then(|last| last.change.as_ref());
        let changes =
            [self.trial.as_ref(), old].into_iter().flatten().filter_map(|change| change.proxy.as_deref());
        [Some(&self.now), self.before.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|way| way.proxy.as_deref())
            .chain(changes)
    }

    /// Whether another way is to be tried, where the cloud was not reached for so long since the agent started, or since it last was.
    #[must_use]
    pub fn is_lost(&self, unreached: Duration, by_time: bool, pace: &Pace) -> bool {
        let all = unreached.saturating_add(Duration::from_secs(self.unreached_s));
        let patience = if by_time && self.ways().iter().any(|way| way.ntp != self.now.ntp) {
            pace.patience.min(pace.patience_time)
        } else {
            pace.patience
        };
        self.ways().len() > 1 && unreached >= pace.trial && all >= patience
    }

    /// Another way reached the cloud, and so does what is set.
    #[must_use]
    pub fn fallen(&self) -> Self {
        Self { falls: self.falls.saturating_add(1), unreached_s: 0, ..self.clone() }
    }

    /// Another way takes its place.
    #[must_use]
    pub fn replaced(&self, by: Settings, message: &str) -> Self {
        let last = self.last.clone().map(|last| Last { kept: false, message: message.to_owned(), ..last });
        Self { now: by, last, ..Self::default() }
    }
}

/// Which of so many ways has this turn: every second one is what is set.
#[must_use]
pub fn turn(number: usize, ways: usize) -> usize {
    match ways {
        0 | 1 => 0,
        _ if number % 2 == 1 => 0,
        _ => 1 + (number / 2) % (ways - 1),
    }
}

/// How long what may take.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How long the cloud may take to answer after a change.
    pub trial: Duration,
    /// Before the first look of a trial, and between looks: a time service that was just told needs a moment, and so does a proxy.
    pub look: Duration,
    /// How often it is seen after that the cloud is still reached.
    pub watch: Duration,
    /// How long it may not be until another way is tried.
    pub patience: Duration,
    /// The same where TLS fails for the time this device has.
    pub patience_time: Duration,
    /// How long each way is tried.
    pub turn: Duration,
    /// After how long what is set is known to be good.
    pub proven: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            trial: Duration::from_secs(120),
            look: Duration::from_secs(3),
            watch: Duration::from_secs(60),
            patience: Duration::from_secs(6 * 3600),
            patience_time: Duration::from_secs(15 * 60),
            turn: Duration::from_secs(15 * 60),
            proven: Duration::from_secs(86_400),
        }
    }
}

impl Pace {
    /// As the environment asks: `COPAL_NETWORK_TRIAL` is how many seconds a trial may take.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = std::env::var("COPAL_NETWORK_TRIAL").ok().and_then(|text| text.parse().ok());
        let trial = set.map(|seconds: u64| Duration::from_secs(seconds.clamp(1, 600)));
        let pace = Self::default();
        Self { trial: trial.unwrap_or(pace.trial), ..pace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(proxy: Option<&str>, ntp: Option<&[&str]>) -> Change {
        let ntp = ntp.map(|list| list.iter().map(|s| (*s).to_owned()).collect());
        Change { proxy: proxy.map(str::to_owned), ntp }
    }

    #[test]
    fn a_trial_becomes_what_holds_or_leaves_no_trace_in_it() {
        let record = Record::default().trying(change(Some("http://p:1"), Some(&["a"]))).kept("reached");
        assert_eq!((record.now.proxy.as_deref(), record.now.ntp.len()), (Some("http://p:1"), 1));
        assert!(record.trial.is_none() && record.last.as_ref().unwrap().kept);
        let after = record.trying(change(Some("none"), None)).reverted("not reached");
        assert!(after.now == record.now && after.trial.is_none() && !after.last.as_ref().unwrap().kept);
        let after = after.trying(change(Some("none"), None)).kept("reached");
        assert!(after.now.proxy.is_none() && after.now.ntp == ["a"], "what is absent stays");
        assert!(after.trying(change(None, Some(&[]))).kept("").now == Settings::default());
        assert!(after.kept("x") == after && after.reverted("x") == after, "without a trial nothing ends");
    }

    fn by(proxy: &str) -> Settings {
        Settings { proxy: Some(proxy.to_owned()), ntp: Vec::new() }
    }

    fn set(record: &Record, proxy: &str) -> Record {
        record.trying(change(Some(proxy), None)).kept("reached")
    }

    #[test]
    fn what_a_device_came_with_is_never_forgotten_and_what_was_proven_not_by_haste() {
        let came_with = Settings::default();
        let fresh = Record::default();
        assert_eq!(fresh.ways().len(), 1, "nothing was set");
        let a = set(&fresh, "http://a:1");
        assert!(a.ways() == [by("http://a:1"), came_with.clone()]);
        let a = Record { proven: true, ..a };
        let mut now = a.clone();
        for hasty in ["http://b:1", "http://c:1", "http://d:1"] {
            now = set(&now, hasty);
            assert!(now.ways() == [by(hasty), by("http://a:1"), came_with.clone()], "{hasty}");
        }
        assert!(set(&now, "http://d:1").ways() == now.ways(), "the same again changes nothing");
        assert!(set(&now, "http://a:1").ways() == [by("http://a:1"), came_with.clone()]);
        assert_eq!(set(&now, "none").ways().len(), 1);
        assert!(a.replaced(came_with.clone(), "back").ways() == [came_with]);
    }

    #[test]
    fn every_way_has_its_turn_and_what_is_set_every_second() {
        let turns = |ways| (0..6).map(|n| turn(n, ways)).collect::<Vec<_>>();
        assert_eq!(turns(3), [1, 0, 2, 0, 1, 0]);
        assert_eq!(turns(2), [1, 0, 1, 0, 1, 0]);
        assert_eq!(turns(1), [0; 6]);
    }

    #[test]
    fn a_way_is_lost_after_hours_over_many_starts_too_and_soon_where_the_time_is_wrong() {
        let pace = Pace::default();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let fresh = Record::default();
        assert!(!fresh.is_lost(minutes(60 * 24 * 365), true, &pace), "there is no other way");
        let proxy = set(&fresh, "http://a:1");
        assert!(!proxy.is_lost(minutes(6 * 60 - 1), false, &pace));
        assert!(proxy.is_lost(minutes(6 * 60), false, &pace));
        assert!(!proxy.is_lost(minutes(60), true, &pace), "no time servers were set");
        let time = fresh.trying(change(None, Some(&["evil"]))).kept("reached");
        assert!(!time.is_lost(minutes(14), true, &pace) && time.is_lost(minutes(15), true, &pace));
        assert!(!time.is_lost(minutes(15), false, &pace));
        let mut turned_off_and_on = proxy.clone();
        for _ in 0..6 {
            assert!(!turned_off_and_on.is_lost(minutes(2), false, &pace));
            turned_off_and_on = turned_off_and_on.started();
        }
        assert!(turned_off_and_on.is_lost(minutes(2), false, &pace));
        assert!(!turned_off_and_on.is_lost(minutes(1), false, &pace), "it may yet come up");
        assert_eq!(fresh.started().unreached_s, 0, "nothing is written where nothing was set");
    }

    #[test]
    fn a_password_is_gone_with_what_it_was_for() {
        let with = change(Some("http://me:hunter2@p:1"), None);
        let text = |record: &Record| serde_json::to_string(record).unwrap();
        let undone = Record::default().trying(with.clone()).reverted("not reached");
        assert!(!text(&undone).contains("hunter2"));
        let last = undone.last.as_ref().unwrap();
        assert!(last.is_of(&with) && !last.is_of(&change(Some("http://me:hunter3@p:1"), None)));
        let over =
            Record::default().trying(with.clone()).kept("x").trying(change(Some("none"), None)).kept("x");
        assert!(!text(&over).contains("hunter2"), "{}", text(&over));
        // As an agent of before this one wrote it.
        let old = r#"{"last":{"change":{"proxy":"http://me:hunter2@p:1"},"kept":false,"message":"x"}}"#;
        let old: Record = serde_json::from_str(old).unwrap();
        assert_eq!(old.proxies().count(), 1);
        assert!(old.last.as_ref().unwrap().is_of(&with));
        let now = old.started();
        assert!(!text(&now).contains("hunter2") && now.last.as_ref().unwrap().is_of(&with));
    }

    #[test]
    fn what_is_written_reads_back() {
        let record = Record::default()
            .trying(change(Some("http://p:1"), None))
            .kept("x")
            .trying(change(None, Some(&[])));
        let text = serde_json::to_string(&record).unwrap();
        assert!(serde_json::from_str::<Record>(&text).unwrap() == record);
    }
}
