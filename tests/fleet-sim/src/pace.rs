//! How often what, and randomness for it.

use std::time::Duration;

/// How often devices do by themselves what nobody asked for. The default is the agent's.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// Seconds the cloud may hold a poll while there is no channel.
    pub wait_s: u64,
    /// Between polls the cloud does not hold.
    pub poll: Duration,
    /// Between polls of what is settled while a channel is up.
    pub rest: Duration,
    /// Between walks of the roots, and no more often than polls.
    pub roots: Duration,
    /// Between reports of what health checks found, where nothing else is to be reported.
    pub checks: Duration,
    /// The longest wait between tries of a channel.
    pub longest: Duration,
    /// From the start to the first summary of metrics.
    pub first: Duration,
    /// Between summaries.
    pub summary: Duration,
    /// Between events that happen by themselves; absent: none do, as on a device that is well.
    pub event: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            wait_s: 50,
            poll: s(60),
            rest: s(6 * 3600),
            roots: s(3600),
            checks: s(6 * 3600),
            longest: s(300),
            first: s(60),
            summary: s(3600),
            event: None,
        }
    }
}

impl Pace {
    /// Everything so many times as often; nothing more often than each 50 ms.
    #[must_use]
    pub fn hurried(&self, times: f64) -> Self {
        let sooner = |of: Duration| {
            Duration::try_from_secs_f64(of.as_secs_f64() / times).unwrap_or(of).max(Duration::from_millis(50))
        };
        Self {
            wait_s: self.wait_s,
            poll: sooner(self.poll),
            rest: sooner(self.rest),
            roots: sooner(self.roots),
            checks: sooner(self.checks),
            longest: self.longest,
            first: sooner(self.first),
            summary: sooner(self.summary),
            event: self.event.map(sooner),
        }
    }
}

/// Between 0 and 1.
pub(crate) fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all come at once, which is a load, too.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// Between three quarters and five quarters of it, so that a fleet does not ask in step.
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.75 + random() / 2.0)
}

/// The wait after so many failures in a row: a random share of 1 s that doubles up to five minutes.
pub(crate) fn backoff(failures: u32) -> Duration {
    let ceiling = Duration::from_secs(1 << failures.saturating_sub(1).min(9)).min(Duration::from_secs(300));
    ceiling.mul_f64(random()).max(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hurries_is_as_often_as_asked_for_and_never_in_a_circle() {
        let pace = Pace { event: Some(Duration::from_secs(10)), ..Pace::default() };
        assert_eq!(pace.hurried(1.0), pace);
        let quick = pace.hurried(60.0);
        assert_eq!((quick.summary, quick.rest, quick.wait_s), (pace.poll, Duration::from_secs(360), 50));
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(pace.hurried(nonsense).summary >= Duration::from_millis(50), "{nonsense}");
        }
    }
}
