//! What one person may hold at once, and how often they may do what is written into the audit log though it only looks: so that
//! who may only look takes nothing from those who act. What decides takes the time as an argument.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::{
    devices::limit::{Bucket, Rate},
    error::Problem,
};

/// Audited reads of one person: a row each. A script that looks at each device of a fleet does so within the burst.
const READS: Rate = Rate { burst: 300.0, per_second: 0.5 };
/// Persons remembered; past it those who have not looked for long are forgotten.
const PERSONS: usize = 10_000;

/// How many of something each person holds.
#[derive(Debug, Clone, Default)]
pub struct Shares(Arc<Mutex<HashMap<String, usize>>>);

/// One of these; given back when it goes.
#[derive(Debug)]
pub struct Share {
    of: Shares,
    who: String,
}

impl Shares {
    /// One more for a person, where they have fewer than `most`.
    #[must_use]
    pub fn take(&self, who: &str, most: usize) -> Option<Share> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.entry(who.to_owned()).or_default();
        if *own >= most {
            return None;
        }
        *own += 1;
        Some(Share { of: self.clone(), who: who.to_owned() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.who);
            }
        }
    }
}

/// How often persons looked lately.
#[derive(Debug, Default)]
pub struct Reads(Mutex<HashMap<String, Bucket>>);

impl Reads {
    /// Counts an audited read of a person.
    ///
    /// # Errors
    /// 429 `too_many_reads`.
    pub fn take(&self, who: &str, now: Instant) -> Result<(), Problem> {
        let mut persons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if persons.len() >= PERSONS {
            persons.retain(|_, bucket| !bucket.is_empty(READS, now));
        }
        if persons.entry(who.to_owned()).or_default().take(READS, now) {
            return Ok(());
        }
        Err(Problem::new(
            http::StatusCode::TOO_MANY_REQUESTS,
            "too_many_reads",
            "You looked very often lately, and each look stands in the audit log. Go on more slowly.",
        )
        .retry_after(10))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_holds_more_than_their_share_and_what_goes_is_given_back() {
        let shares = Shares::default();
        let held: Vec<_> = (0..3).map(|_| shares.take("vera", 3).unwrap()).collect();
        assert!(shares.take("vera", 3).is_none());
        assert!(shares.take("olga", 3).is_some(), "another person has their own");
        drop(held);
        assert!(shares.take("vera", 3).is_some());
        assert!(shares.0.lock().unwrap().is_empty());
    }

    #[test]
    fn who_looks_too_often_waits_and_nobody_else_does() {
        let (reads, now) = (Reads::default(), Instant::now());
        assert!((0..300).all(|_| reads.take("vera", now).is_ok()));
        assert_eq!(reads.take("vera", now).unwrap_err().code(), "too_many_reads");
        reads.take("olga", now).unwrap();
        reads.take("vera", now + Duration::from_secs(2)).unwrap();
    }
}
