//! The clock floor: the earliest time it can be. A device without a battery-backed clock starts in 1970; what expires
//! is judged by `max(system clock, floor)`.
//!
//! Floor = max(build time, persisted). Only times the owner signed raise the persisted one, and never past
//! `Root.expires`: a wrong date in one document must not make the device refuse everything after it.

use crate::documents::{Release, ReleaseMode, Root};

/// The earliest time it can be, in Unix seconds.
#[must_use]
pub fn floor(build_time: u64, persisted: u64) -> u64 {
    build_time.max(persisted)
}

/// The time to judge expiry by: the system's, unless that is earlier than it can be.
#[must_use]
pub fn now(system: u64, floor: u64) -> u64 {
    system.max(floor)
}

/// The persisted floor after a root was accepted.
#[must_use]
pub fn raised_by_root(persisted: u64, root: &Root) -> u64 {
    raised(persisted, root.issued_at, root)
}

/// The persisted floor after a release was accepted; its time counts only where the owner signed it.
#[must_use]
pub fn raised_by_release(persisted: u64, root: &Root, release: &Release) -> u64 {
    match root.policy.release_mode {
        ReleaseMode::Builder => persisted,
        ReleaseMode::Owner | ReleaseMode::Both => raised(persisted, release.created_at, root),
    }
}

fn raised(persisted: u64, signed: u64, root: &Root) -> u64 {
    // Strictly before the end: at `expires` itself the root is no longer good.
    persisted.max(signed.min(root.expires.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::OwnerKeys;

    #[test]
    fn only_owner_signed_times_raise_the_floor() {
        let keys = OwnerKeys::fixed();
        let mut root = keys.root();
        let release = Release { created_at: root.issued_at + 500, ..keys.release(1) };
        assert_eq!(raised_by_root(0, &root), root.issued_at);
        assert_eq!(raised_by_release(7, &root, &release), 7, "the builder's time is the cloud's");
        root.policy.release_mode = ReleaseMode::Owner;
        assert_eq!(raised_by_release(7, &root, &release), root.issued_at + 500);
    }

    #[test]
    fn no_signed_time_raises_the_floor_to_where_the_root_has_expired() {
        let mut root = OwnerKeys::fixed().root();
        root.issued_at = root.expires + 1_000_000;
        assert!(raised_by_root(0, &root) < root.expires);
    }

    #[test]
    fn the_floor_never_falls_and_a_clock_of_1970_is_lifted_to_it() {
        let root = OwnerKeys::fixed().root();
        assert_eq!(raised_by_root(root.expires + 5, &root), root.expires + 5);
        assert_eq!(now(0, floor(1_700_000_000, 1_600_000_000)), 1_700_000_000);
        assert_eq!(now(1_900_000_000, floor(1_700_000_000, 0)), 1_900_000_000);
    }
}
