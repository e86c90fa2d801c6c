//! Bytes that the channel took, by class and month, and what to leave out when a month's budget is nearly used. Counted are
//! messages with what TLS, TCP and IP take around each; polls and images are not, as they have other limits. Kept in the file
//! `meter`, written seldom: a crash loses hours of counting at most.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::telemetry::{Budget, Sheds};
use serde::{Deserialize, Serialize};

use crate::state::StateDir;

const FILE: &str = "meter";
/// Bytes around a message: WebSocket 8, TLS 22, TCP and IP 52.
const AROUND: u64 = 82;
/// Written down after so many bytes, or so long, where there is a budget.
const SAVE: (u64, Duration) = (256 << 10, Duration::from_secs(6 * 3600));
/// After so long where there is none: for one that may be set later, and flash wears.
const SELDOM: Duration = Duration::from_secs(24 * 3600);

/// What bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// Hello, hints, pings.
    Control,
    /// Commands and acks.
    Commands,
    /// What is kept until the cloud has it.
    Events,
    /// What may be left out.
    Telemetry,
    /// Logs and terminals.
    Streams,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Months since the year 0.
    month: u64,
    /// Sent and received.
    bytes: BTreeMap<Traffic, (u64, u64)>,
}

/// The meter.
pub struct Meter {
    state: Arc<StateDir>,
    budget: Option<u64>,
    record: Record,
    unsaved: u64,
    saved: Instant,
}

impl Meter {
    /// Goes on where it was.
    #[must_use]
    pub fn open(state: Arc<StateDir>, budget: Option<u64>) -> Self {
        let record = state.load(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "the byte meter begins anew");
            None
        });
        Self { state, budget, record: record.unwrap_or_default(), unsaved: 0, saved: Instant::now() }
    }

    /// Counts a message of `bytes` sent. `now` is Unix seconds; absent while the clock is not set.
    pub fn sent(&mut self, class: Traffic, bytes: usize, now: Option<u64>) {
        let bytes = self.count(bytes, now);
        self.record.bytes.entry(class).or_default().0 += bytes;
    }

    /// Counts a message of `bytes` received.
    pub fn received(&mut self, class: Traffic, bytes: usize, now: Option<u64>) {
        let bytes = self.count(bytes, now);
        self.record.bytes.entry(class).or_default().1 += bytes;
    }

    fn count(&mut self, bytes: usize, now: Option<u64>) -> u64 {
        if let Some(month) = now.map(month)
            && month != self.record.month
        {
            self.record = Record { month, bytes: BTreeMap::new() };
        }
        let bytes = bytes as u64 + AROUND;
        self.unsaved += bytes;
        let passed = self.saved.elapsed();
        let due = match self.budget {
            Some(_) => self.unsaved >= SAVE.0 || passed >= SAVE.1,
            None => passed >= SELDOM,
        };
        if due {
            self.save();
        }
        bytes
    }

    /// Writes it down.
    pub fn save(&mut self) {
        if let Err(error) = self.state.save(FILE, &self.record) {
            tracing::debug!(%error, "the byte meter cannot be written down");
        }
        (self.unsaved, self.saved) = (0, Instant::now());
    }

    /// Bytes of this month, both ways.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.record.bytes.values().map(|(sent, received)| sent + received).sum()
    }

    /// What to leave out now: logs from eight tenths of the budget on, telemetry from nine, and when all of it is used polls and
    /// pings are as seldom as the cloud suffers. Events, commands and updates always go.
    #[must_use]
    pub fn shed(&self) -> Sheds {
        let Some(budget) = self.budget else { return Sheds::Nothing };
        let used = self.used();
        match () {
            () if used >= budget => Sheds::Polls,
            () if used >= budget / 10 * 9 => Sheds::Telemetry,
            () if used >= budget / 10 * 8 => Sheds::Logs,
            () => Sheds::Nothing,
        }
    }

    /// The budget, where there is one; what is used of it in hundredths of it, so that not every message is news.
    #[must_use]
    pub fn budget(&self) -> Option<Budget> {
        let max_bytes_month = self.budget?;
        let step = (max_bytes_month / 100).max(1);
        Some(Budget { max_bytes_month, used: self.used() / step * step, sheds: self.shed() })
    }
}

/// Months since the year 0, of Unix seconds in UTC.
fn month(unix: u64) -> u64 {
    // Days since 0000-03-01; years begin in March, so that the leap day is their last.
    let days = unix / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + march_month + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RealFs;

    #[test]
    fn months_are_those_of_the_calendar() {
        let of = |year: u64, month: u64| year * 12 + month - 1;
        for (unix, expected) in [
            (0, of(1970, 1)),
            (951_782_399, of(2000, 2)),    // 2000-02-28 23:59:59
            (951_868_800, of(2000, 3)),    // 2000-03-01
            (951_868_799, of(2000, 2)),    // 2000-02-29 23:59:59
            (1_767_225_599, of(2025, 12)), // 2025-12-31 23:59:59
            (1_767_225_600, of(2026, 1)),
            (4_107_542_400, of(2100, 3)), // no leap day in 2100
        ] {
            assert_eq!(month(unix), expected, "{unix}");
        }
    }

    #[test]
    fn a_budget_that_runs_out_costs_telemetry_first_and_a_new_month_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
            Meter::open(state, Some(10_000))
        };
        let mut meter = open();
        let january = Some(1_767_225_600);
        meter.sent(Traffic::Control, 4000 - AROUND as usize, january);
        assert_eq!((meter.used(), meter.shed()), (4000, Sheds::Nothing));
        meter.sent(Traffic::Streams, 4000 - AROUND as usize, january);
        assert_eq!(meter.shed(), Sheds::Logs);
        meter.received(Traffic::Commands, 1000 - AROUND as usize, None);
        assert_eq!(meter.shed(), Sheds::Telemetry);
        meter.save();
        let mut meter = open();
        assert_eq!(meter.used(), 9000, "over a restart");
        meter.sent(Traffic::Events, 1000, january);
        assert_eq!(meter.budget().map(|b| (b.used >= 10_000, b.sheds)), Some((true, Sheds::Polls)));
        meter.sent(Traffic::Control, 1, Some(1_767_225_600 + 31 * 86_400));
        assert_eq!(meter.shed(), Sheds::Nothing);
    }
}
