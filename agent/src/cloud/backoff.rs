//! How long to wait after a failure: full jitter, 1 s to 5 min, anew after a stable minute.

use std::time::{Duration, Instant};

const BASE: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(300);
const STABLE: Duration = Duration::from_secs(60);
/// What a server may ask for at least and at most.
const ASKED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The failures in a row, and since when it has gone well.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
    well_since: Option<Instant>,
}

impl Backoff {
    /// Something worked.
    pub fn succeeded(&mut self, now: Instant) {
        self.well_since.get_or_insert(now);
    }

    /// Something failed: how long to wait. `asked` is the server's `Retry-After`; `random` any 64 bits.
    pub fn failed(&mut self, now: Instant, asked: Option<Duration>, random: u64) -> Duration {
        if self.well_since.take().is_some_and(|since| now.saturating_duration_since(since) >= STABLE) {
            self.failures = 0;
        }
        let ceiling = BASE.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        let share = |of: Duration| of.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64);
        match asked {
            // Not all devices at once when the time is over.
            Some(asked) => asked + share(asked.min(MAX) / 4),
            None => share(ceiling).max(Duration::from_millis(100)),
        }
    }
}

/// Reads a `Retry-After` header: seconds or a date, clamped to 1 s to 1 h; nonsense counts as the least.
#[must_use]
pub fn retry_after(header: &str, now: u64) -> Duration {
    let header = header.trim();
    let seconds = if let Ok(seconds) = header.parse::<i128>() {
        u64::try_from(seconds.max(0)).unwrap_or(u64::MAX)
    } else if let Ok(date) = httpdate::parse_http_date(header) {
        date.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()).saturating_sub(now)
    } else {
        0
    };
    Duration::from_secs(seconds).clamp(ASKED.0, ASKED.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_minutes_and_start_anew_after_a_stable_minute() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..12).map(|_| backoff.failed(start, None, u64::MAX).as_secs_f64().round() as u64).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);

        backoff.succeeded(start);
        let soon = backoff.failed(start + Duration::from_secs(59), None, u64::MAX);
        assert!(soon > Duration::from_secs(299), "59 s are not stable");
        backoff.succeeded(start);
        let later = backoff.failed(start + Duration::from_secs(60), None, u64::MAX);
        assert!(later <= Duration::from_secs(1), "{later:?}");
    }

    #[test]
    fn retry_after_is_honoured_within_a_clamp() {
        let now = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
        for (header, seconds) in [
            ("30", 30),
            ("0", 1),
            ("-5", 1),
            ("99999999999999999999999", 3600),
            ("Sun, 06 Nov 1994 08:50:07 GMT", 30),
            ("Sun, 06 Nov 1994 08:00:00 GMT", 1),
            ("Sat, 06 Nov 2094 08:00:00 GMT", 3600),
            ("soon", 1),
            ("", 1),
        ] {
            assert_eq!(retry_after(header, now).as_secs(), seconds, "{header:?}");
        }
    }

    #[test]
    fn what_the_server_asks_for_is_never_undercut() {
        let mut backoff = Backoff::default();
        assert!(backoff.failed(Instant::now(), Some(Duration::from_secs(40)), 0) >= Duration::from_secs(40));
    }
}
