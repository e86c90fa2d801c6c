//! How much of a service's log is kept: lines and bytes a second, with room for a burst. What is more is counted.

use std::time::Instant;

/// What a service may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Lines a second, for long.
    pub lines: u32,
    /// Bytes a second, for long: flash wears.
    pub bytes: u32,
    /// Lines at once: what it said while the agent was away, or a stack trace.
    pub lines_burst: u32,
    /// Bytes at once.
    pub bytes_burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { lines: 100, bytes: 10 << 10, lines_burst: 5_000, bytes_burst: 1 << 20 }
    }
}

/// One service's account.
#[derive(Debug)]
pub(super) struct Account {
    rate: Rate,
    lines: f64,
    bytes: f64,
    at: Instant,
    /// Not kept since the last that was.
    pub(super) dropped: u64,
}

impl Account {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let (lines, bytes) = (f64::from(rate.lines_burst), f64::from(rate.bytes_burst));
        Self { rate, lines, bytes, at: now, dropped: 0 }
    }

    /// Whether a line of so many bytes is kept; counts it where not.
    pub(super) fn keeps(&mut self, bytes: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let Rate { lines, bytes: bytes_s, lines_burst, bytes_burst } = self.rate;
        self.lines = (self.lines + passed * f64::from(lines)).min(f64::from(lines_burst));
        self.bytes = (self.bytes + passed * f64::from(bytes_s)).min(f64::from(bytes_burst));
        let bytes = bytes as f64;
        if self.lines < 1.0 || self.bytes < bytes {
            self.dropped += 1;
            return false;
        }
        self.lines -= 1.0;
        self.bytes -= bytes;
        true
    }
}
