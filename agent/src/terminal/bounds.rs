//! How long a terminal may last and what it may carry. Pure: time is an argument.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::channel::streams::End;

/// Bounds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From its beginning.
    pub lasts: Duration,
    /// Since something was typed.
    pub idle: Duration,
    /// Both ways together.
    pub bytes: u64,
}

/// What a session has used of its bounds.
#[derive(Debug)]
pub struct Used {
    bounds: Bounds,
    begun: Instant,
    typed: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Used {
    /// Nothing yet.
    #[must_use]
    pub fn new(bounds: Bounds, begun: Instant) -> Self {
        Self { bounds, begun, typed: Mutex::new(begun), bytes: AtomicU64::new(0) }
    }

    /// Something was typed.
    pub fn typed(&self, now: Instant) {
        *self.typed.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Counts bytes of either way.
    ///
    /// # Errors
    /// `bytes_over`.
    pub fn count(&self, bytes: usize) -> Result<(), End> {
        let bytes = bytes as u64;
        if self.bytes.fetch_add(bytes, Relaxed) + bytes > self.bounds.bytes {
            let why = format!("the terminal carried {} bytes, which is as many as it may", self.bounds.bytes);
            return Err(End::because("bytes_over", why));
        }
        Ok(())
    }

    /// Whether its time is over.
    ///
    /// # Errors
    /// `time_over`, `idle`.
    pub fn check(&self, now: Instant) -> Result<(), End> {
        let Bounds { lasts, idle, .. } = self.bounds;
        if now.duration_since(self.begun) >= lasts {
            let why = format!("the terminal was open for {} s, which is as long as it may", lasts.as_secs());
            return Err(End::because("time_over", why));
        }
        let typed = *self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(typed) >= idle {
            let why = format!("nothing was typed for {} s", idle.as_secs());
            return Err(End::because("idle", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_ends_it_by_its_own_name() {
        let begun = Instant::now();
        let s = Duration::from_secs;
        let used = Used::new(Bounds { lasts: s(100), idle: s(10), bytes: 5 }, begun);
        assert!(used.check(begun + s(9)).is_ok());
        assert_eq!(used.check(begun + s(10)).unwrap_err().code, "idle");
        used.typed(begun + s(95));
        assert!(used.check(begun + s(99)).is_ok());
        assert_eq!(used.check(begun + s(100)).unwrap_err().code, "time_over");
        assert!(used.count(5).is_ok());
        assert_eq!(used.count(1).unwrap_err().code, "bytes_over");
    }
}
