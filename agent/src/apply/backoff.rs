//! How long a failed lane waits. Pure: randomness is an argument.

use std::time::Duration;

const BASE: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(300);

/// Wait after the `failures`-th failure in a row (from 1): 0.5 s·2ⁿ up to 5 min, with full jitter. `random` is in 0..1.
#[must_use]
pub fn wait(failures: u32, random: f64) -> Duration {
    let most = BASE.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(CAP);
    // Never quite nothing: a lane that fails at once must not spin.
    most.mul_f64(random.clamp(0.0, 1.0)).max(Duration::from_millis(50))
}

/// A random number in 0..1.
#[must_use]
pub fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness every device waits the longest, which is safe.
    if getrandom::fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let longest: Vec<u64> = [1, 2, 3, 10, 11, 4_000_000].map(|n| wait(n, 1.0).as_millis() as u64).into();
        assert_eq!(longest, [500, 1000, 2000, 256_000, 300_000, 300_000]);
        assert_eq!(wait(5, 0.5), Duration::from_secs(4));
        assert_eq!(wait(5, 0.0), Duration::from_millis(50));
    }
}
