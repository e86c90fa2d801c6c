//! What a device tells of itself besides reports: what happened on it, how it fares, what it has. Items of
//! [`Batch`](crate::channel::Batch)es and lines of metrics streams.
//!
//! In: what a device saw. Out: small typed JSON, integers only. A reader leaves fields aside that it does not know, and bounds
//! every text. Never here: what is wrong with a device (that are health checks), or a secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most items of a batch.
pub const MAX_ITEMS: usize = 256;
/// The most bytes of an event as JSON.
pub const MAX_EVENT: usize = 2 << 10;
/// The most bytes of a telemetry item as JSON.
pub const MAX_TELEMETRY: usize = 8 << 10;
/// The most services a summary speaks of.
pub const MAX_SERVICES: usize = 32;
/// The most gauges, and the most counters, of the device or of one service.
pub const MAX_SERIES: usize = 16;
/// What a device says in its hello that keeps its events until they are stored, and sends telemetry.
pub const FEATURE: &str = "telemetry";
/// Seconds between samples of a metrics stream.
pub const LIVE_S: u32 = 5;

/// Something that happened on a device. Its number is its place in the batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `service`, `committed`, `release`, `update`, `boot`, `agent`, `probe`, `clock`, `policy`, `terminal`, `budget`; a later
    /// agent may have others. `snake_case`, at most 32 characters.
    pub kind: String,
    /// Stable within its kind.
    pub code: String,
    /// One sentence, at most 300 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When, by the device's clock, Unix seconds; absent where that was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// What else belongs to it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
}

/// An item of telemetry: the newest counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Telemetry {
    /// How the device fared for a while.
    Metrics(Summary),
    /// What it has.
    Facts(Box<Facts>),
}

/// What was measured in a span of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When the span ended, by the device's clock, Unix seconds; absent where that is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Seconds it lasted.
    pub for_s: u32,
    /// How often was looked.
    pub samples: u32,
    /// Of the device.
    pub device: Measured,
    /// Of each service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, Measured>,
}

/// Gauges and counters by name.
///
/// Gauges: `cpu` (thousandths of one core), `memory` and `swap` (bytes in use), `load` (hundredths), `disk` (bytes in use where
/// the agent keeps its data), `temperature` (thousandths of a degree Celsius, the hottest sensor). Counters: `net_in`, `net_out`
/// (bytes; of a service those of its network), `disk_read`, `disk_written` (bytes; of the device those of its flash and
/// disks), `agent_written` (bytes the agent wrote), `oom_kills`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What goes up and down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gauges: BTreeMap<String, Gauge>,
    /// What came to pass in the span.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
}

/// Least, mean, greatest and last value of a span; an array on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[i64; 4]", into = "[i64; 4]")]
pub struct Gauge {
    /// The least.
    pub min: i64,
    /// The mean.
    pub avg: i64,
    /// The greatest.
    pub max: i64,
    /// The last.
    pub last: i64,
}

impl From<[i64; 4]> for Gauge {
    fn from([min, avg, max, last]: [i64; 4]) -> Self {
        Self { min, avg, max, last }
    }
}

impl From<Gauge> for [i64; 4] {
    fn from(Gauge { min, avg, max, last }: Gauge) -> Self {
        [min, avg, max, last]
    }
}

impl Gauge {
    /// Of one sample.
    #[must_use]
    pub const fn one(value: i64) -> Self {
        Self { min: value, avg: value, max: value, last: value }
    }

    /// Takes in what follows; `own` and `more` are how many samples stand behind each.
    pub fn join(&mut self, next: Self, own: u32, more: u32) {
        let sum = i128::from(self.avg) * i128::from(own) + i128::from(next.avg) * i128::from(more);
        let mean = sum / i128::from(own.saturating_add(more).max(1));
        *self = Self {
            min: self.min.min(next.min),
            avg: i64::try_from(mean).unwrap_or(next.avg),
            max: self.max.max(next.max),
            last: next.last,
        };
    }
}

impl Measured {
    fn join(&mut self, next: &Self, own: u32, more: u32) {
        for (name, gauge) in &next.gauges {
            let full = self.gauges.len() >= MAX_SERIES;
            match self.gauges.get_mut(name) {
                Some(own_gauge) => own_gauge.join(*gauge, own, more),
                None if full => {}
                None => drop(self.gauges.insert(name.clone(), *gauge)),
            }
        }
        for (name, count) in &next.counters {
            let full = self.counters.len() >= MAX_SERIES;
            match self.counters.get_mut(name) {
                Some(sum) => *sum = sum.saturating_add(*count),
                None if full => {}
                None => drop(self.counters.insert(name.clone(), *count)),
            }
        }
    }
}

impl Summary {
    /// Takes in the summary of a later span.
    pub fn join(&mut self, next: &Self) {
        let (own, more) = (self.samples, next.samples);
        self.device.join(&next.device, own, more);
        for (name, measured) in &next.services {
            let full = self.services.len() >= MAX_SERVICES;
            match self.services.get_mut(name) {
                Some(service) => service.join(measured, own, more),
                None if full => {}
                None => drop(self.services.insert(name.clone(), measured.clone())),
            }
        }
        self.at = next.at.or(self.at);
        self.for_s = self.for_s.saturating_add(next.for_s);
        self.samples = own.saturating_add(more);
    }
}

/// What a device has. Sent when it changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its network interfaces, at most 16.
    #[serde(default)]
    pub interfaces: Vec<InterfaceFacts>,
    /// The proxy the way to the cloud goes by, without user and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// What keeps its clock right: `systemd-timesyncd`, `timedatectl`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub clock_source: String,
    /// Whether that does; absent where it cannot be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_synchronised: Option<bool>,
    /// Whether the clock is set at all.
    #[serde(default)]
    pub clock_set: bool,
    /// When it booted, Unix seconds; absent where the clock is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<u64>,
    /// Why: `asked`, `unclean`, `watchdog`, `panic`, `unknown`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_reason: String,
    /// The kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Processor cores.
    #[serde(default)]
    pub cores: u32,
    /// Bytes of memory.
    #[serde(default)]
    pub memory: u64,
    /// Bytes of the file system the agent keeps its data on.
    #[serde(default)]
    pub disk: u64,
    /// How many bytes the channel may take, and took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `unknown`, …
    #[serde(default)]
    pub state: String,
    /// Its addresses, at most 8.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether a route out of this network goes by it.
    #[serde(default)]
    pub routes: bool,
    /// Signal of a wireless one, in tens of percent, so that a flicker is no news.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i64>,
}

/// The budget of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes a month may take.
    pub max_bytes_month: u64,
    /// Bytes of this month, both ways.
    pub used: u64,
    /// What is left out.
    pub sheds: Sheds,
    /// It is too small for a channel: the device only polls, whatever was used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_channel: bool,
}

/// What is left out while a device used what it may use of its budget by now. Events and updates never are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sheds {
    /// Nothing.
    #[default]
    Nothing,
    /// Logs.
    Logs,
    /// Telemetry, too.
    Telemetry,
    /// And there is no channel: the device only polls, and seldom.
    Polls,
}

impl Sheds {
    /// As it is written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Logs => "logs",
            Self::Telemetry => "telemetry",
            Self::Polls => "polls",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_what_the_protocol_says() {
        let measured = Measured {
            gauges: BTreeMap::from([("cpu".to_owned(), Gauge { min: 1, avg: 2, max: 9, last: 3 })]),
            counters: BTreeMap::from([("net_in".to_owned(), 7)]),
        };
        let item = Telemetry::Metrics(Summary {
            at: Some(5),
            for_s: 60,
            samples: 2,
            device: measured,
            services: BTreeMap::new(),
        });
        let wire = json!({"of": "metrics", "at": 5, "for_s": 60, "samples": 2,
            "device": {"gauges": {"cpu": [1, 2, 9, 3]}, "counters": {"net_in": 7}}});
        assert_eq!(serde_json::to_value(&item).unwrap(), wire);
        assert_eq!(serde_json::from_value::<Telemetry>(wire).unwrap(), item);
        let event: Event =
            serde_json::from_value(json!({"kind": "boot", "code": "asked", "later": {"more": 1}})).unwrap();
        assert_eq!((event.kind.as_str(), event.at), ("boot", None));
        assert!(serde_json::from_value::<Event>(json!({"kind": "boot"})).is_err());
        assert!(serde_json::from_value::<Telemetry>(json!({"of": "poems"})).is_err());
    }

    #[test]
    fn spans_that_follow_each_other_join_into_one() {
        let span = |at, samples, gauge: [i64; 4], count| Summary {
            at: Some(at),
            for_s: 10,
            samples,
            device: Measured {
                gauges: BTreeMap::from([("cpu".to_owned(), gauge.into())]),
                counters: BTreeMap::from([("net_in".to_owned(), count)]),
            },
            services: BTreeMap::new(),
        };
        let mut all = span(10, 1, [4, 4, 4, 4], 1);
        let mut next = span(20, 3, [0, 8, 12, 2], u64::MAX);
        next.services.insert("web".to_owned(), next.device.clone());
        all.join(&next);
        let mut expected = span(20, 4, [0, 7, 12, 2], u64::MAX);
        expected.for_s = 20;
        expected.services.insert("web".to_owned(), next.device.clone());
        assert_eq!(all, expected);
        // Whatever a device sends, it does not overflow.
        let extreme = [i64::MIN, i64::MIN, i64::MAX, 0];
        let mut wild = span(1, u32::MAX, extreme, 0);
        wild.join(&span(2, u32::MAX, extreme, 0));
        assert_eq!(wild.samples, u32::MAX);
    }
}
