//! Memory that is available, and time lost waiting for it.

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::tree::Tree;

pub(super) const NAME: &str = "memory";
/// Percent available below which the next larger allocation may end a service.
const LEAST: i64 = 10;
/// Percent of the last minute in which everything waited for memory: the device is thrashing.
const STALLED: i64 = 10;

/// What there is to see of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes there are, and available without swapping.
    pub ram: Option<(u64, u64)>,
    /// Percent of the last minute in which all tasks waited for memory; absent on kernels without PSI.
    pub stalled: Option<i64>,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree) -> Seen {
    let text = tree.text("proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Seen { ram: field("MemTotal").zip(field("MemAvailable")), stalled: stalled(tree) }
}

fn stalled(tree: &Tree) -> Option<i64> {
    let text = tree.text("proc/pressure/memory")?;
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let share = full.split(' ').find_map(|word| word.strip_prefix("avg60="))?;
    // `12.34`; the whole percents are enough.
    share.split('.').next()?.parse().ok()
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let Some((total, available)) = seen.ram.filter(|(total, _)| *total > 0) else {
        return vec![ProbeResult::new(NAME, Verdict::Unknown, "/proc/meminfo does not tell")];
    };
    let share = i64::try_from(u128::from(available) * 100 / u128::from(total)).unwrap_or(100);
    let mut detail = format!("{} of {} MB are available", available / 1_000_000, total / 1_000_000);
    if let Some(stalled) = seen.stalled {
        detail += &format!("; in the last minute everything waited for memory {stalled} % of the time");
    }
    let thrashes = seen.stalled.is_some_and(|s| s >= STALLED);
    let verdict = match share {
        share if share < LEAST => Verdict::Failed,
        _ if thrashes => Verdict::Warning,
        _ => Verdict::Ok,
    };
    let advice = if verdict == Verdict::Ok {
        ""
    } else {
        "find the service that takes it (`docker stats`), give it a limit (mem_limit), or mend its leak"
    };
    vec![ProbeResult::new(NAME, verdict, &detail).value(share, Unit::Percent).threshold(LEAST).advice(advice)]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn little_memory_fails_and_thrashing_warns() {
        for (available, stalled, verdict) in [
            (99, Some(99), Verdict::Failed),
            (100, Some(0), Verdict::Ok),
            (100, None, Verdict::Ok),
            (500, Some(9), Verdict::Ok),
            (500, Some(10), Verdict::Warning),
        ] {
            let result = judge(&Seen { ram: Some((1000, available)), stalled }).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
        }
        assert_eq!(judge(&Seen { ram: Some((0, 0)), stalled: None })[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn the_kernels_files_are_read() {
        let (_dir, tree) = plant(&[
            ("proc/meminfo", "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:     50 kB\n"),
            (
                "proc/pressure/memory",
                "some avg10=1.00 avg60=2.00\nfull avg10=0.00 avg60=12.34 avg300=0.00 total=1\n",
            ),
        ]);
        assert_eq!(read(&tree), Seen { ram: Some((1_024_000, 51_200)), stalled: Some(12) });
        let (_dir, tree) =
            plant(&[("proc/meminfo", "MemTotal: many kB\nMemAvailable: 99999999999999999999 kB")]);
        assert_eq!(read(&tree), Seen::default());
    }
}
