//! How often signing in may fail: per account and source, and per source. What decides takes the time as an argument.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Failures that cost nothing yet, for one account from one source.
const FREE: u32 = 5;
/// Failures that cost nothing yet, for all accounts from one source.
const FREE_SOURCE: u32 = 30;
/// After this long without a failure all is forgotten.
const FORGET: Duration = Duration::from_secs(15 * 60);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);
/// The most keys remembered; the oldest go first.
const KEYS: usize = 10_000;

/// What failed lately.
#[derive(Debug, Default)]
pub struct Limits(Mutex<HashMap<String, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    /// How long from the last failure the next try must wait.
    fn penalty(self, free: u32) -> Duration {
        match self.count.checked_sub(free) {
            None => Duration::ZERO,
            Some(over) => Duration::from_secs(1 << over.min(9)).min(LONGEST),
        }
    }
}

impl Limits {
    /// Whether this account may be tried from this source now; else how long to wait.
    ///
    /// # Errors
    /// The time to wait.
    pub fn check(&self, account: &str, source: &str, now: Instant) -> Result<(), Duration> {
        let map = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let wait = |key: String, free| {
            map.get(&key)
                .map_or(Duration::ZERO, |f| (f.last + f.penalty(free)).saturating_duration_since(now))
        };
        let wait = wait(both(account, source), FREE).max(wait(source.to_owned(), FREE_SOURCE));
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Notes a failure.
    pub fn failed(&self, account: &str, source: &str, now: Instant) {
        let mut map = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for key in [both(account, source), source.to_owned()] {
            let entry = map.entry(key).or_insert(Failures { count: 0, last: now });
            if now.duration_since(entry.last) > FORGET {
                entry.count = 0;
            }
            entry.count += 1;
            entry.last = now;
        }
        if map.len() > KEYS {
            map.retain(|_, f| now.duration_since(f.last) <= FORGET);
            // A flood of made-up accounts: what is left is halved by age rather than kept for ever.
            if map.len() > KEYS {
                let mut ages: Vec<_> = map.values().map(|f| f.last).collect();
                ages.sort_unstable();
                let middle = ages[ages.len() / 2];
                map.retain(|_, f| f.last > middle);
            }
        }
    }

    /// Forgets an account's failures from this source: its person signed in.
    pub fn succeeded(&self, account: &str, source: &str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&both(account, source));
    }
}

fn both(account: &str, source: &str) -> String {
    // Hashed, so that a huge made-up address costs no more than a short one.
    super::hash_secret(&format!("{account}\n{source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_try_waits_and_the_wait_grows() {
        let limits = Limits::default();
        let now = Instant::now();
        for _ in 0..5 {
            assert!(limits.check("a", "1", now).is_ok());
            limits.failed("a", "1", now);
        }
        assert_eq!(limits.check("a", "1", now), Err(Duration::from_secs(1)));
        let later = now + Duration::from_secs(1);
        assert!(limits.check("a", "1", later).is_ok());
        limits.failed("a", "1", later);
        assert_eq!(limits.check("a", "1", later), Err(Duration::from_secs(2)));
        assert!(limits.check("a", "2", later).is_ok(), "another source is not punished");
        assert!(limits.check("b", "1", later).is_ok(), "another account is not punished");
        limits.succeeded("a", "1");
        assert!(limits.check("a", "1", later).is_ok());
    }

    #[test]
    fn one_source_trying_many_accounts_is_slowed() {
        let limits = Limits::default();
        let now = Instant::now();
        for i in 0..30 {
            limits.failed(&format!("user{i}"), "1", now);
        }
        assert!(limits.check("another", "1", now).is_err());
        assert!(limits.check("another", "2", now).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Limits::default();
        let now = Instant::now();
        for i in 0..30_000_u32 {
            limits.failed("a", &i.to_string(), now + Duration::from_micros(i.into()));
        }
        assert!(limits.0.lock().unwrap().len() <= KEYS + 2);
    }
}
