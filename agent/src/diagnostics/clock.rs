//! Whether the clock is set, and kept right.

use std::time::{Duration, UNIX_EPOCH};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::{ask::ask, tree::Tree};

pub(super) const NAME: &str = "clock";
/// `timedatectl` asks another process; it answers at once or not.
const PATIENCE: Duration = Duration::from_secs(3);

/// What there is to see of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The system's clock, Unix seconds.
    pub now: u64,
    /// What no correct clock is below.
    pub floor: u64,
    /// Whether a time service keeps it right; `None` where that cannot be seen.
    pub synchronised: Option<bool>,
    /// Who says so, or why it cannot be seen.
    pub source: &'static str,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree, now: u64, floor: u64) -> Seen {
    let seen = |synchronised, source| Seen { now, floor, synchronised, source };
    if tree.has("run/systemd/timesync/synchronized") {
        return seen(Some(true), "systemd-timesyncd");
    }
    if tree.is_real() {
        // The kernel's own word, whichever service set it.
        let said = ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"], PATIENCE);
        match said.as_deref().map(str::trim) {
            Some("yes") => return seen(Some(true), "timedatectl"),
            Some("no") => return seen(Some(false), "timedatectl"),
            _ => {}
        }
    }
    if tree.has("run/systemd/timesync") {
        return seen(Some(false), "systemd-timesyncd");
    }
    seen(None, "neither systemd-timesyncd nor timedatectl tells")
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let date = |at: u64| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at.min(253_402_300_799)));
    let shown = date(seen.now);
    if seen.now < seen.floor {
        let behind = i64::try_from(seen.floor - seen.now).unwrap_or(i64::MAX);
        let detail = format!("not set: it shows {shown}, and it is {} at least", date(seen.floor));
        let advice = "give the device a time service it can reach (NTP, UDP port 123), or a battery for its clock; until then \
                      certificates and time limits are judged by the time the agent was built";
        return vec![
            ProbeResult::new(NAME, Verdict::Failed, &detail)
                .value(behind, Unit::S)
                .threshold(0)
                .advice(advice),
        ];
    }
    vec![match seen.synchronised {
        Some(true) => {
            ProbeResult::new(NAME, Verdict::Ok, &format!("{shown}, synchronised ({})", seen.source))
        }
        Some(false) => {
            let detail = format!("{shown}, not synchronised ({})", seen.source);
            ProbeResult::new(NAME, Verdict::Warning, &detail).advice(
                "see that a time server can be reached (UDP port 123); the clock drifts, and then TLS fails",
            )
        }
        None => {
            let detail =
                format!("{shown}; whether a time service keeps it right is not known: {}", seen.source);
            ProbeResult::new(NAME, Verdict::Unknown, &detail)
        }
    }]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn a_clock_below_the_floor_fails_and_one_that_drifts_warns() {
        for (now, synchronised, verdict, word) in [
            (12, None, Verdict::Failed, "1970"),
            (12, Some(true), Verdict::Failed, "not set"),
            (1_800_000_000, Some(true), Verdict::Ok, "synchronised"),
            (1_800_000_000, Some(false), Verdict::Warning, "not synchronised"),
            (1_800_000_000, None, Verdict::Unknown, "not known"),
            (u64::MAX, Some(true), Verdict::Ok, "9999"),
        ] {
            let seen = Seen { now, floor: 1_790_000_000, synchronised, source: "test" };
            let [result] = &judge(&seen)[..] else { panic!("one result") };
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert!(result.detail.contains(word), "{result:?}");
            assert_eq!(result.advice.is_empty(), matches!(verdict, Verdict::Ok | Verdict::Unknown));
        }
    }

    #[test]
    fn timesyncd_tells_by_a_file() {
        let (_dir, tree) = plant(&[("run/systemd/timesync/synchronized", "")]);
        assert_eq!(read(&tree, 2, 1).synchronised, Some(true));
        let (_dir, tree) = plant(&[("run/systemd/timesync/other", "")]);
        assert_eq!(read(&tree, 2, 1).synchronised, Some(false));
        let (_dir, tree) = plant(&[]);
        assert_eq!(read(&tree, 2, 1).synchronised, None);
    }
}
