//! What a device tells by its channel of its own accord: events until they are stored, and telemetry; as an agent, one batch of each
//! class under way at a time. Nothing here is durable: a pretended device lives as long as this process.

use std::collections::{BTreeMap, VecDeque};

use copal_protocol::{
    channel::{Batch, Class, Stored},
    ids::Name,
    telemetry::{Event, Facts, Gauge, InterfaceFacts, Measured, Summary, Telemetry},
};
use serde_json::{Map, Value};

use crate::pace::random;

/// The boot every device says it runs.
pub(crate) fn boot_id() -> String {
    "5".repeat(32)
}

/// Items of a batch.
const ITEMS: usize = 64;
/// What is kept for a cloud that is away.
const KEPT: usize = 1_000;
/// Answers in a row that brought nothing, after which a class rests until the next channel.
const PATIENCE: u32 = 3;

/// What waits of one class.
#[derive(Debug)]
struct Line {
    class: Class,
    items: VecDeque<Value>,
    /// The number of the first of these.
    first: u64,
    /// How many before it were given up.
    dropped: u64,
    /// The last number of the batch that is under way.
    under_way: Option<u64>,
    idle: u32,
}

impl Line {
    fn new(class: Class) -> Self {
        Self { class, items: VecDeque::new(), first: 1, dropped: 0, under_way: None, idle: 0 }
    }

    fn push(&mut self, item: Value) {
        self.items.push_back(item);
        if self.items.len() > KEPT {
            self.items.pop_front();
            self.first += 1;
            self.dropped += 1;
        }
    }

    fn restart(&mut self) {
        (self.under_way, self.idle) = (None, 0);
    }

    fn next(&mut self) -> Option<Batch> {
        if self.items.is_empty() || self.under_way.is_some() || self.idle >= PATIENCE {
            return None;
        }
        let items: Vec<Value> = self.items.iter().take(ITEMS).cloned().collect();
        self.under_way = Some(self.first + items.len() as u64 - 1);
        let (first_seq, dropped) = (self.first, self.dropped);
        Some(Batch { class: self.class, boot_id: boot_id(), first_seq, dropped, items })
    }

    /// The cloud has it up to this number; how many of these were new to us.
    fn stored(&mut self, up_to: u64) -> u64 {
        let mut new = 0;
        while self.first <= up_to && self.items.pop_front().is_some() {
            (self.first, self.dropped) = (self.first + 1, 0);
            new += 1;
        }
        if let Some(under_way) = self.under_way.take() {
            self.idle = if up_to >= under_way { 0 } else { self.idle + 1 };
        }
        new
    }
}

/// The way out.
#[derive(Debug)]
pub(crate) struct Outbox {
    events: Line,
    telemetry: Line,
    /// The cloud on the other side of the channel stores such things.
    takes: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { events: Line::new(Class::Event), telemetry: Line::new(Class::Telemetry), takes: false }
    }
}

impl Outbox {
    pub(crate) fn note(&mut self, event: &Event) {
        self.events.push(serde_json::to_value(event).unwrap_or_default());
    }

    pub(crate) fn telemetry(&mut self, item: &Telemetry) {
        self.telemetry.push(serde_json::to_value(item).unwrap_or_default());
    }

    /// A new channel: nothing is under way on it.
    pub(crate) fn restart(&mut self) {
        self.events.restart();
        self.telemetry.restart();
        self.takes = false;
    }

    /// The channel is up; `stored`: what the cloud has of the events.
    pub(crate) fn welcomed(&mut self, stored: Option<u64>) {
        self.takes = stored.is_some();
        self.events.stored(stored.unwrap_or(0));
    }

    /// What to send now: events first.
    pub(crate) fn next(&mut self) -> Option<Batch> {
        if !self.takes {
            return None;
        }
        self.events.next().or_else(|| self.telemetry.next())
    }

    /// What the cloud says it has; how many of which class are stored since.
    pub(crate) fn stored(&mut self, stored: Stored) -> (Class, u64) {
        let of = match stored.class {
            Class::Event => &mut self.events,
            Class::Telemetry => &mut self.telemetry,
        };
        (stored.class, of.stored(stored.up_to))
    }
}

/// An event as an agent tells it.
pub(crate) fn event(kind: &str, code: &str, message: &str, data: &[(&str, Value)]) -> Event {
    let data: Map<String, Value> =
        data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Event { kind: kind.to_owned(), code: code.to_owned(), message: message.to_owned(), at: Some(now()), data }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    copal_tls::system_clock()()
}

/// How a device with these services fared.
pub(crate) fn summary<'a>(for_s: u64, services: impl Iterator<Item = &'a Name>) -> Telemetry {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number")]
    let up_to = |most: f64| (random() * most) as i64;
    let gauge = |base: i64, most: f64| {
        let (a, b) = (up_to(most), up_to(most));
        Gauge { min: base + a.min(b), avg: base + (a + b) / 2, max: base + a.max(b), last: base + b }
    };
    let gauges = |list: &[(&str, i64, f64)]| -> BTreeMap<String, Gauge> {
        list.iter().map(|(name, base, most)| ((*name).to_owned(), gauge(*base, *most))).collect()
    };
    let counters = |list: &[(&str, f64)]| -> BTreeMap<String, u64> {
        list.iter().map(|(name, most)| ((*name).to_owned(), up_to(*most).unsigned_abs())).collect()
    };
    let device = Measured {
        gauges: gauges(&[
            ("cpu", 10, 900.0),
            ("memory", 200 << 20, 1e8),
            ("swap", 0, 1e6),
            ("load", 1, 200.0),
            ("disk", 3 << 30, 1e9),
            ("temperature", 40_000, 20_000.0),
        ]),
        counters: counters(&[
            ("net_in", 1e7),
            ("net_out", 1e7),
            ("disk_read", 1e6),
            ("disk_written", 1e7),
            ("agent_written", 1e4),
            ("oom_kills", 0.0),
        ]),
    };
    let service = || Measured {
        gauges: gauges(&[("cpu", 1, 500.0), ("memory", 20 << 20, 1e7)]),
        counters: counters(&[("net_in", 1e6), ("net_out", 1e6), ("disk_read", 1e5), ("disk_written", 1e5)]),
    };
    let for_s = u32::try_from(for_s).unwrap_or(u32::MAX);
    Telemetry::Metrics(Summary {
        at: Some(now()),
        for_s,
        // An agent looks every 30 s.
        samples: (for_s / 30).max(1),
        device,
        services: services.map(|name| (name.to_string(), service())).collect(),
    })
}

/// What the device of this number has.
pub(crate) fn facts(number: usize) -> Telemetry {
    let (high, low) = (number >> 8 & 0xff, number & 0xff);
    let interface = InterfaceFacts {
        name: "eth0".to_owned(),
        state: "up".to_owned(),
        addresses: vec![format!("10.9.{high}.{low}/16"), format!("fe80::{number:x}/64")],
        routes: true,
        signal: None,
    };
    Telemetry::Facts(Box::new(Facts {
        interfaces: vec![interface],
        clock_source: "systemd-timesyncd".to_owned(),
        clock_synchronised: Some(true),
        clock_set: true,
        booted_at: Some(now()),
        boot_reason: "unknown".to_owned(),
        kernel: "simulated".to_owned(),
        cores: 4,
        memory: 1 << 30,
        disk: 16 << 30,
        ..Facts::default()
    }))
}

#[cfg(test)]
mod tests {
    use copal_protocol::telemetry::MAX_TELEMETRY;

    use super::*;

    fn outbox(events: usize) -> Outbox {
        let mut outbox = Outbox::default();
        for _ in 0..events {
            outbox.note(&event(
                "service",
                "started",
                "service web was started",
                &[("service", "web".into())],
            ));
        }
        outbox
    }

    #[test]
    fn an_event_goes_again_until_it_is_stored_and_never_after() {
        let mut outbox = outbox(3);
        assert_eq!(outbox.next(), None, "a cloud that stores none gets none");
        outbox.welcomed(Some(0));
        let first = outbox.next().unwrap();
        assert_eq!((first.first_seq, first.items.len()), (1, 3));
        assert_eq!(outbox.next(), None, "one at a time");
        outbox.restart();
        outbox.welcomed(Some(1));
        let again = outbox.next().unwrap();
        assert_eq!((again.first_seq, again.items.len()), (2, 2));
        assert_eq!(outbox.stored(Stored { class: Class::Event, up_to: 3 }), (Class::Event, 2));
        assert_eq!(outbox.next(), None);
        for _ in 0..2 * KEPT {
            outbox.note(&event("a", "b", "c", &[]));
        }
        let late = outbox.next().unwrap();
        assert_eq!((late.first_seq, late.dropped), (4 + KEPT as u64, KEPT as u64), "and owns up to a gap");
    }

    #[test]
    fn telemetry_comes_after_events_and_fits_what_a_cloud_takes() {
        let mut outbox = outbox(1);
        let services: Vec<Name> = (0..20).map(|n| format!("service-{n}").parse().unwrap()).collect();
        outbox.telemetry(&summary(3600, services.iter()));
        outbox.telemetry(&facts(70_000));
        outbox.welcomed(Some(0));
        assert_eq!(outbox.next().unwrap().class, Class::Event);
        let batch = outbox.next().unwrap();
        assert_eq!((batch.class, batch.items.len()), (Class::Telemetry, 2));
        for item in &batch.items {
            assert!(item.to_string().len() <= MAX_TELEMETRY, "{}", item.to_string().len());
            serde_json::from_value::<Telemetry>(item.clone()).unwrap();
        }
    }
}
