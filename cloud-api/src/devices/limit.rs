//! How often one address may fail, and one device report: token buckets, bounded in number.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::error::Problem;

/// Refusals at enrolment one address may collect at once, and how fast they are forgiven. A site behind one address
/// that enrols a whole fleet does not fail, so this does not slow it.
const FAILURES: Rate = Rate { burst: 20.0, per_second: 0.5 };
/// Attempts to enrol or log in from one address, of any outcome: what checking signatures may cost. Generous, since a
/// whole fleet may sit behind one address and come back at once; a signature costs less than 0.1 ms.
const ATTEMPTS: Rate = Rate { burst: 5_000.0, per_second: 500.0 };
/// Reports of one device.
pub(super) const REPORTS: Rate = Rate { burst: 60.0, per_second: 5.0 };
/// Addresses remembered. Past it the map begins anew: someone with so many addresses is not stopped by counting them.
const ADDRESSES: usize = 20_000;

/// A rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// What was used of a rate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// Takes one, where there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.take_some(1, rate, now)
    }

    /// Takes so many, or none.
    pub(crate) fn take_some(&mut self, count: u16, rate: Rate, now: Instant) -> bool {
        self.drain(rate, now);
        let used = self.used + f64::from(count);
        let fits = used <= rate.burst;
        if fits {
            self.used = used;
        }
        fits
    }

    /// Whether nothing is used of it any more.
    pub(crate) fn is_empty(&mut self, rate: Rate, now: Instant) -> bool {
        self.drain(rate, now);
        self.used <= 0.0
    }

    fn is_spent(&mut self, rate: Rate, now: Instant) -> bool {
        self.drain(rate, now);
        self.used + 1.0 > rate.burst
    }

    fn drain(&mut self, rate: Rate, now: Instant) {
        let passed = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.used = (self.used - passed * rate.per_second).max(0.0);
        self.at = Some(now);
    }
}

/// Buckets by address.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<String, (Bucket, Bucket)>>);

impl Limits {
    /// An address tries to enrol.
    pub(super) fn enrol(&self, source: &str, now: Instant) -> Result<(), Problem> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.get_mut(source).is_some_and(|(_, failures)| failures.is_spent(FAILURES, now)) {
            return Err(too_many());
        }
        drop(map);
        self.attempt(source, now)
    }

    /// An address tries something that costs a signature check.
    pub(super) fn attempt(&self, source: &str, now: Instant) -> Result<(), Problem> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= ADDRESSES {
            map.clear();
        }
        let (attempts, _) = map.entry(source.to_owned()).or_default();
        if attempts.take(ATTEMPTS, now) { Ok(()) } else { Err(too_many()) }
    }

    /// An enrolment was refused.
    pub(super) fn failed(&self, source: &str, now: Instant) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, failures)) = map.get_mut(source) {
            failures.take(FAILURES, now);
        }
    }

    pub(super) fn sweep(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, (attempts, _)| attempts.at.is_some_and(|at| at.elapsed() < Duration::from_secs(120)));
    }
}

fn too_many() -> Problem {
    Problem::new(
        http::StatusCode::TOO_MANY_REQUESTS,
        "too_many_requests",
        "Too many attempts from this address; wait and try again.",
    )
    .retry_after(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_again_and_again_has_to_wait_and_is_then_heard_again() {
        let limits = Limits::default();
        let now = Instant::now();
        for _ in 0..20 {
            limits.enrol("10.0.0.1", now).unwrap();
            limits.failed("10.0.0.1", now);
        }
        assert_eq!(limits.enrol("10.0.0.1", now).unwrap_err().code(), "too_many_requests");
        limits.enrol("10.0.0.2", now).unwrap();
        limits.attempt("10.0.0.1", now).unwrap();
        limits.enrol("10.0.0.1", now + Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_site_that_enrols_hundreds_without_failing_is_not_slowed() {
        let limits = Limits::default();
        let now = Instant::now();
        assert!((0..5_000).all(|_| limits.enrol("10.0.0.1", now).is_ok()));
        assert_eq!(limits.attempt("10.0.0.1", now).unwrap_err().code(), "too_many_requests");
    }
}
