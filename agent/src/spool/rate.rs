//! How often one thing may be told of. A service that crashes in a circle must not push out all that was told before: of what
//! comes too often every event counts, and some are left out. Pure.

use std::{collections::HashMap, time::Duration};

/// Events of one subject at once.
const BURST: u32 = 20;
/// After that one in so long.
const EVERY: Duration = Duration::from_secs(300);
/// Subjects remembered.
const SUBJECTS: usize = 128;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: u32,
    /// Since when it is emptied.
    since: Duration,
    left_out: u64,
}

/// Buckets by subject.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<String, Bucket>);

impl Rates {
    /// Whether an event of `subject` is told now; with how many were left out since the last. `now` is monotonic.
    pub(super) fn admit(&mut self, subject: &str, now: Duration) -> Option<u64> {
        if self.0.len() >= SUBJECTS && !self.0.contains_key(subject) {
            self.0.retain(|_, b| b.left_out > 0 || (now.saturating_sub(b.since)) < EVERY * b.used);
            if self.0.len() >= SUBJECTS {
                return Some(0);
            }
        }
        let bucket = self.0.entry(subject.to_owned()).or_insert(Bucket { used: 0, since: now, left_out: 0 });
        let freed = now.saturating_sub(bucket.since).as_secs() / EVERY.as_secs();
        let freed = u32::try_from(freed).unwrap_or(u32::MAX).min(bucket.used);
        bucket.used -= freed;
        bucket.since = if bucket.used == 0 { now } else { bucket.since + EVERY * freed };
        if bucket.used >= BURST {
            bucket.left_out += 1;
            return None;
        }
        bucket.used += 1;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_counted_and_others_are_told() {
        let mut rates = Rates::default();
        let at = |s| Duration::from_secs(s);
        for n in 0..20 {
            assert_eq!(rates.admit("web", at(n)), Some(0));
        }
        for n in 20..50 {
            assert_eq!(rates.admit("web", at(n)), None);
        }
        assert_eq!(rates.admit("db", at(50)), Some(0));
        assert_eq!(rates.admit("web", at(300)), Some(30), "with what was left out");
        assert_eq!(rates.admit("web", at(301)), None);
        assert_eq!(rates.admit("web", at(600)), Some(1));
        assert_eq!(rates.admit("web", at(86_400)), Some(0));
        for n in 0..1000 {
            assert!(rates.admit(&n.to_string(), at(86_400)).is_some(), "a new subject is always told");
        }
        assert!(rates.0.len() <= SUBJECTS);
    }
}
