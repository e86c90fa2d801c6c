//! From looks to summaries, and whether the wall clock keeps step with the other one. Pure: time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use copal_protocol::telemetry::{Gauge, Measured, Summary};

use super::read::{Counted, Raw};

/// Seconds the wall clock may differ from the other one between two looks.
const STEP: i64 = 10;

/// What was measured since the last summary.
#[derive(Debug, Default)]
pub(super) struct Sums {
    last: Option<(Raw, Instant)>,
    since: Option<Instant>,
    device: Sum,
    services: BTreeMap<String, Sum>,
    samples: u32,
}

#[derive(Debug, Default)]
struct Sum {
    gauges: BTreeMap<&'static str, Stat>,
    counters: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Stat {
    min: i64,
    max: i64,
    last: i64,
    sum: i128,
    count: i128,
}

impl Sum {
    fn gauge(&mut self, name: &'static str, value: i64) {
        let stat =
            self.gauges.entry(name).or_insert(Stat { min: value, max: value, last: value, sum: 0, count: 0 });
        stat.min = stat.min.min(value);
        stat.max = stat.max.max(value);
        stat.last = value;
        stat.sum += i128::from(value);
        stat.count += 1;
    }

    /// What came to pass between two looks.
    fn add(&mut self, before: Option<&Counted>, now: &Counted, passed: Duration) {
        for (name, value) in &now.gauges {
            self.gauge(name, *value);
        }
        let Some(before) = before else { return };
        let anew = before.of != now.of;
        // One that is less than before began anew.
        let grown = |before: u64, now: u64| if anew || now < before { now } else { now - before };
        if let (Some(b), Some(n), false) = (before.cpu_us, now.cpu_us, anew) {
            // Thousandths of a core: microseconds in a millisecond.
            let thousandths = u128::from(grown(b, n)) / passed.as_millis().max(1);
            self.gauge("cpu", i64::try_from(thousandths).unwrap_or(i64::MAX));
        }
        for (name, value) in &now.counters {
            let sum = self.counters.entry(name).or_default();
            if let Some(before) = before.counters.get(name) {
                *sum = sum.saturating_add(grown(*before, *value));
            }
        }
    }

    fn measured(self) -> Measured {
        let gauge = |stat: Stat| {
            let avg = i64::try_from(stat.sum / stat.count.max(1)).unwrap_or(stat.last);
            Gauge { min: stat.min, avg, max: stat.max, last: stat.last }
        };
        Measured {
            gauges: self.gauges.into_iter().map(|(name, stat)| (name.to_owned(), gauge(stat))).collect(),
            counters: self.counters.into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }
}

impl Sums {
    /// Takes a look in.
    pub(super) fn add(&mut self, raw: Raw, at: Instant) {
        let (before, passed) = match &self.last {
            Some((before, then)) => (Some(before), at.saturating_duration_since(*then)),
            None => (None, Duration::ZERO),
        };
        // The first look alone says nothing of what came to pass.
        self.since.get_or_insert(at);
        self.device.add(before.map(|b| &b.device), &raw.device, passed);
        for (name, now) in &raw.services {
            let before = before.and_then(|b| b.services.get(name));
            self.services.entry(name.clone()).or_default().add(before, now, passed);
        }
        self.samples += 1;
        self.last = Some((raw, at));
    }

    /// The summary, and a new beginning. `None` before two looks.
    pub(super) fn take(&mut self, now: Option<u64>) -> Option<Summary> {
        let (_, last) = self.last.as_ref()?;
        let last = *last;
        let span = last.saturating_duration_since(self.since?);
        if span.is_zero() {
            return None;
        }
        self.since = Some(last);
        let services = std::mem::take(&mut self.services);
        // Half a second and more is one.
        let seconds = (span + Duration::from_millis(500)).as_secs().max(1);
        Some(Summary {
            at: now,
            for_s: u32::try_from(seconds).unwrap_or(u32::MAX),
            samples: std::mem::take(&mut self.samples),
            device: std::mem::take(&mut self.device).measured(),
            services: services.into_iter().map(|(name, sum)| (name, sum.measured())).collect(),
        })
    }
}

/// The wall clock beside the other one.
#[derive(Debug)]
pub(super) struct Drift {
    wall: u64,
    then: Instant,
}

impl Drift {
    pub(super) fn new(wall: u64, then: Instant) -> Self {
        Self { wall, then }
    }

    /// What happened to the wall clock since the last look: a code, and by how many seconds. One below `floor` is not set.
    pub(super) fn look(&mut self, wall: u64, now: Instant, floor: u64) -> Option<(&'static str, i64)> {
        let passed = now.saturating_duration_since(self.then).as_secs();
        let expected = i64::try_from(self.wall.saturating_add(passed)).unwrap_or(i64::MAX);
        let by = i64::try_from(wall).unwrap_or(i64::MAX).saturating_sub(expected);
        let was_set = self.wall >= floor;
        (self.wall, self.then) = (wall, now);
        if by.abs() <= STEP {
            return None;
        }
        Some((if !was_set && wall >= floor { "set" } else { "jumped" }, by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(of: &str, cpu_us: u64, memory: i64, net: u64) -> Counted {
        Counted {
            of: of.to_owned(),
            cpu_us: Some(cpu_us),
            gauges: [("memory", memory)].into(),
            counters: [("net_in", net)].into(),
        }
    }

    fn raw(device: Counted, web: Option<Counted>) -> Raw {
        Raw { device, services: web.into_iter().map(|w| ("web".to_owned(), w)).collect() }
    }

    #[test]
    fn looks_become_least_mean_greatest_and_last() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut sums = Sums::default();
        sums.add(raw(counted("", 0, 10, 1000), None), at(0));
        assert_eq!(sums.take(Some(1)), None, "one look is no span");
        sums.add(raw(counted("", 500_000, 40, 1500), Some(counted("a", 9, 1, 5))), at(1));
        sums.add(raw(counted("", 3_500_000, 10, 1700), Some(counted("a", 1_000_009, 1, 9))), at(3));
        // Another container: what it used before is not known.
        sums.add(raw(counted("", 3_500_000, 10, 100), Some(counted("b", 50, 3, 4))), at(4));
        let summary = sums.take(Some(99)).unwrap();
        assert_eq!((summary.at, summary.for_s, summary.samples), (Some(99), 4, 4));
        let device = &summary.device;
        assert_eq!(device.gauges["cpu"], [0, 666, 1500, 0].into());
        assert_eq!(device.gauges["memory"], [10, 17, 40, 10].into());
        assert_eq!(device.counters["net_in"], 500 + 200 + 100, "a counter that began anew");
        let web = &summary.services["web"];
        assert_eq!((web.gauges["cpu"], web.counters["net_in"]), ([500, 500, 500, 500].into(), 4 + 4));
        // The next begins where this one ended.
        sums.add(raw(counted("", 4_500_000, 5, 150), None), at(5));
        let next = sums.take(None).unwrap();
        assert_eq!((next.for_s, next.samples, next.device.counters["net_in"]), (1, 1, 50));
        assert!(next.services.is_empty());
    }

    #[test]
    fn a_clock_that_jumps_is_told_from_one_that_drifts() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut drift = Drift::new(5, start);
        assert_eq!(drift.look(35, at(30), 1_000), None);
        assert_eq!(drift.look(2_000, at(60), 1_000), Some(("set", 1_935)));
        assert_eq!(drift.look(2_035, at(90), 1_000), None, "it drifts");
        assert_eq!(drift.look(2_000, at(120), 1_000), Some(("jumped", -65)));
        assert_eq!(drift.look(u64::MAX, at(130), 1_000).map(|(code, _)| code), Some("jumped"));
    }
}
