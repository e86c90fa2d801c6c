//! Wall-clock time that is never below what is known. A device may boot in 1970.
//!
//! In: the system's clock, and owner-signed times. Out: Unix seconds. Never here: waits (those are monotonic), or a floor
//! raised by a time the owner did not sign.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// When this agent was built, Unix seconds: no correct clock shows less.
#[must_use]
pub fn build_time() -> u64 {
    env!("COPAL_BUILD_TIME").parse().unwrap_or(0)
}

/// The wall clock with its floor.
#[derive(Debug, Clone)]
pub struct Clock {
    floor: Arc<AtomicU64>,
    system: fn() -> u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(system_time)
    }
}

impl Clock {
    /// A clock over `system`, with the build time as its floor.
    #[must_use]
    pub fn new(system: fn() -> u64) -> Self {
        Self { floor: Arc::new(AtomicU64::new(build_time())), system }
    }

    /// Unix seconds, never below the floor.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.system)().max(self.floor())
    }

    /// What no correct clock is below.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// Raises the floor to an owner-signed time.
    pub fn raise(&self, floor: u64) {
        self.floor.fetch_max(floor, Ordering::Relaxed);
    }

    /// The system's clock shows less than is known: it has not been set.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        (self.system)() < self.floor()
    }
}

/// The system's clock, Unix seconds; 0 where it stands before 1970.
#[must_use]
pub fn system_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The kernel's id of this boot, 32 hex digits.
#[must_use]
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().replace('-', "")
}

/// Seconds since the boot, sleep included.
#[must_use]
pub fn uptime_s() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(['.', ' ']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_1970_counts_from_the_build_time() {
        let clock = Clock::new(|| 12);
        assert!(clock.is_unset());
        assert_eq!(clock.now(), build_time());
        clock.raise(build_time() + 5);
        assert_eq!(clock.now(), build_time() + 5);
        clock.raise(1);
        assert_eq!(clock.now(), build_time() + 5, "a floor never sinks");
    }
}
