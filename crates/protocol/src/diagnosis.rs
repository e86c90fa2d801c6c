//! Results of a device's health checks, and how a person reads them.
//!
//! In: what a check found. Out: a [`ProbeResult`] whose every text is bounded and safe to show. Never here: a judgement; that
//! is the device's, and thresholds come along in the result.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{documents::MAX_INTEGER, text};

/// The most results of one round.
pub const MAX_RESULTS: usize = 256;
/// The most checks of a device that are remembered.
pub const MAX_CHECKS: usize = 32;
/// Characters of a subject.
pub const MAX_SUBJECT: usize = 100;
/// Characters of `detail`, and of `advice`.
pub const MAX_TEXT: usize = 300;
/// Characters of a probe's name.
pub const MAX_NAME: usize = 32;

/// Every probe this version knows, in the order they are told, and what it looks at. A newer agent may know more.
pub const PROBES: &[(&str, &str)] = &[
    ("clock", "whether the clock is set, and kept right by a time service"),
    ("disk", "room and inodes where the agent and the engine keep their data"),
    ("disk_health", "wear of the flash, read-only disks, errors the kernel found"),
    ("memory", "memory that is available, and time lost waiting for it"),
    ("oom", "processes killed for want of memory since the boot, and of which service"),
    ("temperature", "the hottest sensor, and whether the processor is slowed down"),
    ("undervoltage", "whether the power supply keeps its voltage"),
    ("network", "each interface: link, addresses, errors, signal; and the route out"),
    ("dns", "whether the cloud's name is found, and each name server answers"),
    ("proxy", "whether the proxy that is set takes connections"),
    ("line", "how many connections towards the cloud come about at once, by IPv4 and by IPv6"),
    ("cloud", "whether the cloud answers this device, end to end"),
    ("registry", "whether images can be fetched, end to end"),
    ("engine", "whether the container engine answers, and how steadily it runs"),
    ("agent", "the agent's own process, its memory and its state folder"),
    ("slots", "the two slots of the operating system"),
    ("update", "whether what runs is what should, and why not"),
    ("services", "each service: whether it runs, its restarts, its health check"),
];

/// A round of checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diagnosis {
    /// At most [`MAX_RESULTS`].
    pub probes: Vec<ProbeResult>,
    /// The device's clock, Unix seconds; may be wrong.
    pub taken_at: u64,
}

/// What one check found of one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeResult {
    /// Which check: stable, `snake_case`.
    pub name: String,
    /// What it looked at where there are several: a folder, an interface, a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it is.
    pub verdict: Verdict,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    /// In what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Where the verdict would become worse, or became so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<i64>,
    /// What was found, in a sentence; at most [`MAX_TEXT`] characters.
    pub detail: String,
    /// What to do; empty when nothing is to be done. At most [`MAX_TEXT`] characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// What checks last found, as a device remembers and reports it: of each check the worst of its subjects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthReport {
    /// When the newest round was, by the device's clock, Unix seconds; may be wrong.
    pub taken_at: u64,
    /// By the check's name; at most [`MAX_CHECKS`].
    #[serde(default)]
    pub checks: BTreeMap<String, CheckReport>,
}

/// What one check last found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// The worst.
    pub verdict: Verdict,
    /// When, by the device's clock, Unix seconds; may be wrong.
    pub at: u64,
    /// What it looked at, where all is not well and there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was found, where all is not well; at most [`MAX_TEXT`] characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What to do; at most [`MAX_TEXT`] characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl HealthReport {
    /// Takes in a round: what it looked at counts, and all else stays as it was. Which verdicts it changed: name, before, now;
    /// what was not known before is no change where it is well now.
    pub fn take(&mut self, round: &Diagnosis) -> Vec<(String, Option<Verdict>, Verdict)> {
        self.taken_at = round.taken_at;
        let mut changed = Vec::new();
        for (name, worst) in round.worst_of_each() {
            let told = worst.verdict != Verdict::Ok;
            let new = CheckReport {
                verdict: worst.verdict,
                at: round.taken_at,
                subject: worst.subject.clone().filter(|_| told),
                detail: if told { worst.detail.clone() } else { String::new() },
                advice: if told { worst.advice.clone() } else { String::new() },
            };
            let before = self.checks.get(name).map(|check| check.verdict);
            if before.unwrap_or(Verdict::Ok) != new.verdict {
                changed.push((name.to_owned(), before, new.verdict));
            }
            if before.is_some() || self.checks.len() < MAX_CHECKS {
                self.checks.insert(name.to_owned(), new);
            }
        }
        changed
    }

    /// The worst verdict.
    #[must_use]
    pub fn worst(&self) -> Verdict {
        self.checks.values().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// Whether a device may have said this.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let sound = |(name, check): (&String, &CheckReport)| {
            let mut as_result = ProbeResult::new(name, check.verdict, "").advice(&check.advice);
            as_result.detail.clone_from(&check.detail);
            as_result.advice.clone_from(&check.advice);
            as_result.subject.clone_from(&check.subject);
            as_result.is_sound()
        };
        self.checks.len() <= MAX_CHECKS && self.checks.iter().all(sound)
    }
}

/// How something is; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Could not be seen; `detail` says why.
    Unknown,
    /// Works, and will not for long, or not well.
    Warning,
    /// Does not work.
    Failed,
}

impl Verdict {
    /// As it is written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What a value is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Hundredths.
    Percent,
    /// Thousandths of a degree Celsius.
    MilliCelsius,
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
    /// Things.
    Count,
}

impl ProbeResult {
    /// A result with nothing but a verdict and why; texts are made safe and cut.
    #[must_use]
    pub fn new(name: &str, verdict: Verdict, detail: &str) -> Self {
        Self {
            name: name.to_owned(),
            subject: None,
            verdict,
            value: None,
            unit: None,
            threshold: None,
            detail: text::one_line(detail, MAX_TEXT),
            advice: String::new(),
        }
    }

    /// Of this subject.
    #[must_use]
    pub fn of(self, subject: &str) -> Self {
        Self { subject: Some(text::one_line(subject, MAX_SUBJECT)), ..self }
    }

    /// With what was measured.
    #[must_use]
    pub fn value(self, value: i64, unit: Unit) -> Self {
        Self { value: Some(whole(value)), unit: Some(unit), ..self }
    }

    /// With the bound it was judged by.
    #[must_use]
    pub fn threshold(self, threshold: i64) -> Self {
        Self { threshold: Some(whole(threshold)), ..self }
    }

    /// With what to do.
    #[must_use]
    pub fn advice(self, advice: &str) -> Self {
        Self { advice: text::one_line(advice, MAX_TEXT), ..self }
    }

    /// Whether a device may have said this: every bound holds, and no text steers a terminal.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let safe = |said: &str, most: usize| text::one_line(said, most) == said;
        let name = (1..=MAX_NAME).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        name && self.subject.as_deref().is_none_or(|s| safe(s, MAX_SUBJECT))
            && safe(&self.detail, MAX_TEXT)
            && safe(&self.advice, MAX_TEXT)
            && self.unit.is_none_or(|_| self.value.is_some())
    }
}

/// Within what every reader of JSON holds.
fn whole(number: i64) -> i64 {
    let most = i64::try_from(MAX_INTEGER).unwrap_or(i64::MAX);
    number.clamp(-most, most)
}

impl Diagnosis {
    /// Whether a device may have said this.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.probes.len() <= MAX_RESULTS && self.probes.iter().all(ProbeResult::is_sound)
    }

    /// The worst verdict; [`Verdict::Ok`] where nothing was asked.
    #[must_use]
    pub fn worst(&self) -> Verdict {
        self.probes.iter().map(|p| p.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// Of each check the worst result, the first of equals.
    #[must_use]
    pub fn worst_of_each(&self) -> BTreeMap<&str, &ProbeResult> {
        let mut worst: BTreeMap<&str, &ProbeResult> = BTreeMap::new();
        for probe in &self.probes {
            let held = worst.entry(&probe.name).or_insert(probe);
            if probe.verdict > held.verdict {
                *held = probe;
            }
        }
        worst
    }

    /// For people: worst first, and what to do beneath.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut sorted: Vec<&ProbeResult> = self.probes.iter().collect();
        // Stable: within a verdict the order they were told in stays.
        sorted.sort_by_key(|p| std::cmp::Reverse(p.verdict));
        let rows: Vec<(String, String, &ProbeResult)> = sorted
            .into_iter()
            .map(|p| {
                let subject = p.subject.as_ref().map(|s| format!(" {s}")).unwrap_or_default();
                (format!("{}{subject}", p.name), p.measured(), p)
            })
            .collect();
        let width = |of: fn(&(String, String, &ProbeResult)) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let (names, values) = (width(|r| r.0.chars().count()), width(|r| r.1.chars().count()));
        let mut out = String::new();
        for (name, value, probe) in &rows {
            // Writing to a String cannot fail.
            let verdict = probe.verdict.as_str();
            let _ = writeln!(out, "{verdict:<8} {name:<names$}  {value:>values$}  {}", probe.detail);
            if !probe.advice.is_empty() {
                let _ = writeln!(out, "{:<8} → {}", "", probe.advice);
            }
        }
        let count = |verdict| self.probes.iter().filter(|p| p.verdict == verdict).count();
        let _ = writeln!(
            out,
            "failed {}, warning {}, unknown {}, ok {}",
            count(Verdict::Failed),
            count(Verdict::Warning),
            count(Verdict::Unknown),
            count(Verdict::Ok)
        );
        out
    }
}

impl ProbeResult {
    /// The value as people write it; empty where nothing was measured.
    fn measured(&self) -> String {
        let (Some(value), Some(unit)) = (self.value, self.unit) else { return String::new() };
        match unit {
            Unit::Bytes if value.abs() >= 10 << 30 => format!("{} GiB", value >> 30),
            Unit::Bytes if value.abs() >= 10 << 20 => format!("{} MiB", value >> 20),
            Unit::Bytes => format!("{} KiB", value >> 10),
            Unit::Percent => format!("{value} %"),
            Unit::MilliCelsius => {
                let sign = if value < 0 { "-" } else { "" };
                format!("{sign}{}.{} °C", value.abs() / 1000, value.abs() % 1000 / 100)
            }
            Unit::Ms => format!("{value} ms"),
            Unit::S if value.abs() >= 2 * 86_400 => format!("{} d", value / 86_400),
            Unit::S if value.abs() >= 2 * 3600 => format!("{} h", value / 3600),
            Unit::S => format!("{value} s"),
            Unit::Count => value.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn full() -> ProbeResult {
        ProbeResult::new("disk", Verdict::Warning, "1.2 of 1.4 GB are used")
            .of("/var/lib/copal")
            .value(86, Unit::Percent)
            .threshold(80)
            .advice("free some space")
    }

    #[test]
    fn a_result_is_what_the_protocol_says() {
        let wire = json!({"name": "disk", "subject": "/var/lib/copal", "verdict": "warning", "value": 86, "unit": "percent",
            "threshold": 80, "detail": "1.2 of 1.4 GB are used", "advice": "free some space"});
        assert_eq!(serde_json::to_value(full()).unwrap(), wire);
        assert_eq!(serde_json::from_value::<ProbeResult>(wire.clone()).unwrap(), full());
        let plain = ProbeResult::new("clock", Verdict::Ok, "set");
        assert_eq!(
            serde_json::to_value(&plain).unwrap(),
            json!({"name": "clock", "verdict": "ok", "detail": "set"})
        );
        let units = [Unit::Bytes, Unit::Percent, Unit::MilliCelsius, Unit::Ms, Unit::S, Unit::Count];
        let words = ["bytes", "percent", "milli_celsius", "ms", "s", "count"];
        assert_eq!(serde_json::to_value(units).unwrap(), json!(words));
        for (field, value) in [("later", json!(1)), ("value", json!("86")), ("verdict", json!("fine"))] {
            let mut other = wire.clone();
            other[field] = value;
            assert!(serde_json::from_value::<ProbeResult>(other).is_err(), "{field}");
        }
    }

    #[test]
    fn a_result_beyond_its_bounds_is_not_sound() {
        assert!(full().is_sound());
        for broken in [
            ProbeResult { name: String::new(), ..full() },
            ProbeResult { name: "Disk".to_owned(), ..full() },
            ProbeResult { name: "d".repeat(MAX_NAME + 1), ..full() },
            ProbeResult { subject: Some("s".repeat(MAX_SUBJECT + 1)), ..full() },
            ProbeResult { detail: "d".repeat(MAX_TEXT + 1), ..full() },
            ProbeResult { advice: "two\nlines".to_owned(), ..full() },
            ProbeResult { detail: "\u{1b}[31mred".to_owned(), ..full() },
            ProbeResult { value: None, ..full() },
        ] {
            assert!(!broken.is_sound(), "{broken:?}");
        }
        let many = Diagnosis { probes: vec![full(); MAX_RESULTS + 1], taken_at: 1 };
        assert!(!many.is_sound());
    }

    #[test]
    fn people_read_the_worst_first() {
        let probes = vec![
            ProbeResult::new("clock", Verdict::Ok, "set, and synchronised"),
            ProbeResult::new("temperature", Verdict::Unknown, "this machine has no sensor"),
            full(),
            ProbeResult::new("services", Verdict::Failed, "unhealthy: connection refused")
                .of("web")
                .value(4, Unit::Count)
                .advice("look at its log"),
            ProbeResult::new("cloud", Verdict::Ok, "answers").value(48, Unit::Ms),
        ];
        let diagnosis = Diagnosis { probes, taken_at: 1 };
        assert_eq!(diagnosis.worst(), Verdict::Failed);
        insta::assert_snapshot!(diagnosis.to_text(), @r"
        failed   services web             4  unhealthy: connection refused
                 → look at its log
        warning  disk /var/lib/copal   86 %  1.2 of 1.4 GB are used
                 → free some space
        unknown  temperature                 this machine has no sensor
        ok       clock                       set, and synchronised
        ok       cloud                48 ms  answers
        failed 1, warning 1, unknown 1, ok 2
        ");
    }

    #[test]
    fn of_what_was_found_the_worst_is_remembered_and_changes_are_told() {
        let mut health = HealthReport::default();
        let round = |taken_at, probes| Diagnosis { probes, taken_at };
        let well = |name: &str| ProbeResult::new(name, Verdict::Ok, "fine");
        let changed = health.take(&round(1, vec![well("clock"), full(), well("disk").of("/")]));
        assert_eq!(changed, [("disk".to_owned(), None, Verdict::Warning)]);
        assert_eq!(health.worst(), Verdict::Warning);
        assert_eq!(
            serde_json::to_value(&health).unwrap(),
            json!({"taken_at": 1, "checks": {
                "clock": {"verdict": "ok", "at": 1},
                "disk": {"verdict": "warning", "at": 1, "subject": "/var/lib/copal", "detail": "1.2 of 1.4 GB are used",
                    "advice": "free some space"}}})
        );
        assert_eq!(health.take(&round(2, vec![full()])), []);
        assert_eq!(
            (health.checks["clock"].at, health.checks["disk"].at),
            (1, 2),
            "what was not looked at stays"
        );
        let changed = health.take(&round(3, vec![well("disk")]));
        assert_eq!(changed, [("disk".to_owned(), Some(Verdict::Warning), Verdict::Ok)]);
        assert!(health.is_sound());
        let many = (0..MAX_CHECKS + 5).map(|n| well(&format!("check_{n}"))).collect();
        health.take(&round(4, many));
        assert!(health.is_sound() && health.checks.len() == MAX_CHECKS);
        health.checks.get_mut("disk").unwrap().detail = "two\nlines".to_owned();
        assert!(!health.is_sound());
    }

    #[test]
    fn values_are_written_as_people_write_them() {
        for (value, unit, text) in [
            (5_000, Unit::Bytes, "4 KiB"),
            (64 << 20, Unit::Bytes, "64 MiB"),
            (32 << 30, Unit::Bytes, "32 GiB"),
            (-1_500, Unit::MilliCelsius, "-1.5 °C"),
            (81_960, Unit::MilliCelsius, "81.9 °C"),
            (90, Unit::S, "90 s"),
            (7_200, Unit::S, "2 h"),
            (864_000, Unit::S, "10 d"),
        ] {
            assert_eq!(ProbeResult::new("x", Verdict::Ok, "").value(value, unit).measured(), text);
        }
    }

    #[test]
    fn every_probe_has_a_name_of_its_own_and_a_line() {
        for (at, (name, about)) in PROBES.iter().enumerate() {
            assert!(ProbeResult::new(name, Verdict::Ok, about).is_sound(), "{name}");
            assert!(!about.is_empty() && PROBES[..at].iter().all(|(other, _)| other != name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_found_the_result_is_sound(detail: String, subject: String, advice: String, value: i64) {
            let made = ProbeResult::new("disk", Verdict::Ok, &detail).of(&subject).advice(&advice);
            let made = made.value(value, Unit::Bytes);
            prop_assert!(made.is_sound(), "{made:?}");
            let wire = serde_json::to_vec(&made).unwrap();
            prop_assert_eq!(crate::json::from_slice::<ProbeResult>(&wire, 4).unwrap(), made.clone());
            let text = Diagnosis { probes: vec![made], taken_at: 0 }.to_text();
            prop_assert!(text.lines().count() <= 3);
        }
    }
}
