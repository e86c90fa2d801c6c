//! Bytes that this device and its cloud say to each other, by class and month, and what to leave out when a month's budget is to
//! last. Counted are the channel's messages and all requests but for blobs, with what TLS, TCP and IP take around each. Kept in the
//! file `meter`, written seldom: a crash loses a hundredth of a budget at most.
//!
//! A budget is spread over its month: a device may have used a day's share for each day that has begun, and what it did not use
//! stays for later days. So whoever follows logs for a night does not leave a device dark for weeks.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::telemetry::{Budget, Sheds};
use serde::{Deserialize, Serialize};

use crate::{
    cloud::{Tally, on_the_line},
    state::StateDir,
};

const FILE: &str = "meter";
/// A WebSocket's part of a message.
const FRAME: u64 = 8;
/// Written down after so many bytes, or so long, where there is a budget.
const SAVE: (u64, Duration) = (256 << 10, Duration::from_secs(6 * 3600));
/// After so long where there is none: for one that may be set later, and flash wears.
const SELDOM: Duration = Duration::from_secs(24 * 3600);
/// The least budget of a month that a channel fits into: pings every six minutes take 1.6 MB a month, and it also has to be
/// opened now and then.
pub const CHANNEL_MONTH: u64 = 2_000_000;
const DAY_S: u64 = 86_400;

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
    /// Requests beside the channel, or in its place: logins, polls, reports, exchanges.
    Requests,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Months since the year 0; 0 before the clock was first set.
    month: u64,
    /// Sent and received.
    bytes: BTreeMap<Traffic, (u64, u64)>,
    /// Unix seconds, when it was last looked at.
    #[serde(default)]
    at: u64,
}

/// The meter.
pub struct Meter {
    state: Arc<StateDir>,
    budget: Option<u64>,
    requests: Arc<Tally>,
    record: Record,
    looked: Instant,
    shedding: Sheds,
    unsaved: u64,
    saved: Instant,
}

impl Meter {
    /// Goes on where it was; `requests` counts what passes beside the channel.
    #[must_use]
    pub fn open(state: Arc<StateDir>, budget: Option<u64>, requests: Arc<Tally>) -> Self {
        let record = state.load(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "the byte meter begins anew");
            None
        });
        let record: Record = record.unwrap_or_default();
        let (looked, saved) = (Instant::now(), Instant::now());
        Self { state, budget, requests, record, looked, shedding: Sheds::Nothing, unsaved: 0, saved }
    }

    /// Counts a message of `bytes` sent. `now` is Unix seconds; absent while the clock is not set.
    pub fn sent(&mut self, class: Traffic, bytes: usize, now: Option<u64>) {
        self.count(class, (on_the_line(bytes as u64 + FRAME), 0), now);
    }

    /// Counts a message of `bytes` received.
    pub fn received(&mut self, class: Traffic, bytes: usize, now: Option<u64>) {
        self.count(class, (0, on_the_line(bytes as u64 + FRAME)), now);
    }

    fn count(&mut self, class: Traffic, (sent, received): (u64, u64), now: Option<u64>) {
        self.look(now);
        let counted = self.record.bytes.entry(class).or_default();
        *counted = (counted.0 + sent, counted.1 + received);
        self.unsaved += sent + received;
        let passed = self.saved.elapsed();
        let due = match self.budget {
            Some(budget) => self.unsaved >= SAVE.0.min(budget / 100).max(4 << 10) || passed >= SAVE.1,
            None => passed >= SELDOM,
        };
        if due {
            self.save();
        }
    }

    /// Takes in what time it is, and what passed beside the channel.
    fn look(&mut self, now: Option<u64>) {
        let since = self.looked.elapsed();
        self.looked = Instant::now();
        // Without a clock time goes on all the same.
        self.record.at = now.unwrap_or(self.record.at + since.as_secs());
        if let Some(month) = now.map(|now| Day::of(now).month)
            && month != self.record.month
        {
            // What came before the first time the clock was set is of this month as far as anybody knows.
            if self.record.month != 0 {
                self.record.bytes.clear();
            }
            self.record.month = month;
        }
        let requests = self.requests.take();
        if requests != (0, 0) {
            self.count(Traffic::Requests, requests, now);
        }
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

    /// Bytes it may use now; below 0 where it used what is meant for later days.
    fn left(&self, budget: u64) -> i128 {
        let day = Day::of(self.record.at);
        let by_now = u128::from(budget) * u128::from((day.in_month_s + DAY_S).min(day.month_s));
        i128::try_from(by_now / u128::from(day.month_s)).unwrap_or(i128::MAX) - i128::from(self.used())
    }

    /// What to leave out now: logs where a fifth of a day's share is left, telemetry where a tenth is, and the channel where nothing
    /// is; until half a day's share is there again, so that it does not come and go. Events and updates always go.
    pub fn shed(&mut self, now: Option<u64>) -> Sheds {
        self.look(now);
        let Some(budget) = self.budget else { return Sheds::Nothing };
        if budget < CHANNEL_MONTH {
            return Sheds::Polls;
        }
        let share = u128::from(budget) * u128::from(DAY_S) / u128::from(Day::of(self.record.at).month_s);
        let (day, left) = (i128::try_from(share).unwrap_or(i128::MAX), self.left(budget));
        let level = match () {
            () if left <= 0 => Sheds::Polls,
            () if left <= day / 10 => Sheds::Telemetry,
            () if left <= day / 5 => Sheds::Logs,
            () => Sheds::Nothing,
        };
        if level >= self.shedding || left >= day / 2 {
            self.shedding = level;
        }
        self.shedding
    }

    /// How long until there is room for `cost` bytes more; nothing where there is no budget, or room.
    #[must_use]
    pub fn until_room(&self, cost: u64) -> Duration {
        let Some(budget) = self.budget else { return Duration::ZERO };
        let short = i128::from(cost) - self.left(budget);
        let month_s = i128::from(Day::of(self.record.at).month_s);
        let seconds = short.max(0).saturating_mul(month_s) / i128::from(budget.max(1));
        Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
    }

    /// The budget, where there is one; what is used of it in hundredths of it, so that not every message is news.
    pub fn budget(&mut self, now: Option<u64>) -> Option<Budget> {
        let sheds = self.shed(now);
        let max_bytes_month = self.budget?;
        let step = (max_bytes_month / 100).max(1);
        let used = self.used() / step * step;
        Some(Budget { max_bytes_month, used, sheds, no_channel: max_bytes_month < CHANNEL_MONTH })
    }
}

/// A moment in the calendar.
struct Day {
    /// Months since the year 0, in UTC.
    month: u64,
    /// Seconds since the month began.
    in_month_s: u64,
    /// Seconds of the whole month.
    month_s: u64,
}

impl Day {
    fn of(unix: u64) -> Self {
        // Days since 0000-03-01; years begin in March, so that the leap day is their last.
        let days = unix / DAY_S + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let march_month = (5 * of_year + 2) / 153;
        let begins = (153 * march_month + 2) / 5;
        // A February counts 28 days: on the 29th all of its budget may be used.
        let long = if march_month == 11 { 28 } else { (153 * (march_month + 1) + 2) / 5 - begins };
        Self {
            month: (era * 400 + year) * 12 + march_month + 2,
            in_month_s: (of_year - begins) * DAY_S + unix % DAY_S,
            month_s: long * DAY_S,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RealFs;

    /// 2026-01-01, a month of 31 days.
    const JANUARY: u64 = 1_767_225_600;

    fn meter(dir: &tempfile::TempDir, budget: u64) -> Meter {
        let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
        Meter::open(state, Some(budget), Arc::default())
    }

    /// Counts so many bytes, whatever lies around them.
    fn use_up(meter: &mut Meter, bytes: u64, now: u64) {
        meter.count(Traffic::Streams, (bytes, 0), Some(now));
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let of = |year: u64, month: u64| year * 12 + month - 1;
        for (unix, expected, of_month, days) in [
            (0, of(1970, 1), 0, 31),
            (951_782_399, of(2000, 2), 28 * DAY_S - 1, 28), // 2000-02-28 23:59:59
            (951_868_799, of(2000, 2), 29 * DAY_S - 1, 28), // 2000-02-29 23:59:59
            (951_868_800, of(2000, 3), 0, 31),              // 2000-03-01
            (1_767_225_599, of(2025, 12), 31 * DAY_S - 1, 31),
            (JANUARY, of(2026, 1), 0, 31),
            (1_777_593_600 - 1, of(2026, 4), 30 * DAY_S - 1, 30),
            (4_107_542_400, of(2100, 3), 0, 31), // no leap day in 2100
        ] {
            let day = Day::of(unix);
            assert_eq!(
                (day.month, day.in_month_s, day.month_s),
                (expected, of_month, days * DAY_S),
                "{unix}"
            );
        }
    }

    #[test]
    fn a_day_that_took_its_share_costs_logs_first_then_telemetry_then_the_channel() {
        let dir = tempfile::tempdir().unwrap();
        let budget = 31_000_000;
        let mut meter = meter(&dir, budget);
        let now = Some(JANUARY);
        assert_eq!(meter.shed(now), Sheds::Nothing);
        use_up(&mut meter, 790_000, JANUARY);
        assert_eq!(meter.shed(now), Sheds::Nothing);
        use_up(&mut meter, 30_000, JANUARY);
        assert_eq!(meter.shed(now), Sheds::Logs);
        use_up(&mut meter, 90_000, JANUARY);
        assert_eq!(meter.shed(now), Sheds::Telemetry);
        meter.save();
        let mut meter = self::meter(&dir, budget);
        assert_eq!((meter.used(), meter.shed(now)), (910_000, Sheds::Telemetry), "over a restart");
        use_up(&mut meter, 200_000, JANUARY);
        let told = meter.budget(now).unwrap();
        assert_eq!((told.used, told.sheds, told.no_channel), (930_000, Sheds::Polls, false));
    }

    #[test]
    fn it_comes_back_with_half_a_days_share_and_what_is_not_used_stays_for_later_days() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = meter(&dir, 31_000_000);
        use_up(&mut meter, 1_000_001, JANUARY);
        assert_eq!(meter.shed(Some(JANUARY)), Sheds::Polls);
        assert_eq!(meter.until_room(0).as_secs(), 0, "a byte");
        assert_eq!(meter.until_room(500_000).as_secs(), DAY_S / 2);
        assert_eq!(meter.shed(Some(JANUARY + DAY_S / 2 - 60)), Sheds::Polls, "not yet");
        assert_eq!(meter.shed(Some(JANUARY + DAY_S / 2 + 60)), Sheds::Nothing);
        // Ten days on, ten days' shares may be used at once; not those of the days to come.
        let later = JANUARY + 10 * DAY_S;
        use_up(&mut meter, 9_700_000, later);
        assert_eq!(meter.shed(Some(later)), Sheds::Nothing);
        use_up(&mut meter, 400_000, later);
        assert_eq!(meter.shed(Some(later)), Sheds::Polls);
        assert_eq!(meter.shed(Some(later + DAY_S)), Sheds::Nothing, "and is dark for a day, not for weeks");
        // The last day has what is left of the whole, and no more.
        let last = JANUARY + 31 * DAY_S - 1;
        let rest = 31_000_000 - meter.used();
        use_up(&mut meter, rest, last);
        assert_eq!(meter.shed(Some(last)), Sheds::Polls);
        assert_eq!(meter.shed(Some(last + 1)), Sheds::Nothing, "a new month");
        assert_eq!(meter.used(), 0);
    }

    #[test]
    fn a_budget_that_no_channel_fits_into_says_so_and_has_none_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = meter(&dir, CHANNEL_MONTH - 1);
        let told = meter.budget(Some(JANUARY)).unwrap();
        assert_eq!((told.used, told.sheds, told.no_channel), (0, Sheds::Polls, true));
    }

    #[test]
    fn requests_count_and_time_passes_without_a_clock() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
        let tally = Arc::new(Tally::default());
        let mut meter = Meter::open(state, Some(10_000_000), tally.clone());
        tally.heard(1000);
        assert_eq!(meter.shed(None), Sheds::Nothing);
        assert!(meter.used() > 1000);
        let before = meter.used();
        meter.sent(Traffic::Control, 1, Some(JANUARY));
        assert!(meter.used() > before, "what came before the clock was set is not forgotten");
    }
}
