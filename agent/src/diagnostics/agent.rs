//! The agent's own process, its memory and its state folder.

use std::path::Path;

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};
use nix::unistd::{AccessFlags, access};

use super::tree::Tree;
use crate::report::Status;

pub(super) const NAME: &str = "agent";
/// Bytes of memory: idle it takes a tenth, and its unit ends it at 128 MiB.
const LARGE: i64 = 96 << 20;
/// Ticks of `/proc/<pid>/stat` in a second; Linux shows 100 to programs whatever it counts in.
const TICKS: u64 = 100;

/// What there is to see of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Process id of the agent that runs.
    pub pid: Option<u32>,
    /// Its version, where it says one.
    pub version: Option<String>,
    /// Bytes of memory it holds.
    pub memory: Option<u64>,
    /// Seconds since it started.
    pub uptime_s: Option<u64>,
    /// Why its state folder takes no writes; absent where it does.
    pub state: Option<String>,
    /// State files that were lost.
    pub lost: Vec<String>,
    /// Seconds since it last wrote its status.
    pub said_s: Option<u64>,
    /// It does not answer at its socket.
    pub deaf: bool,
}

/// Looks. `own`: this process is the agent.
#[must_use]
pub fn read(tree: &Tree, state_dir: &Path, status: Option<&Status>, own: bool, now: u64) -> Seen {
    let pid =
        if own { Some(std::process::id()) } else { status.map(|s| s.pid).filter(|pid| is_agent(tree, *pid)) };
    let version = match (own, status) {
        (true, _) => Some(crate::version().to_string()),
        (false, Some(status)) => Some(status.agent_version.clone()),
        (false, None) => None,
    };
    Seen {
        pid,
        version,
        memory: pid.and_then(|pid| memory(tree, pid)),
        uptime_s: pid.and_then(|pid| uptime(tree, pid)),
        // Asked, not tried: nothing is written here.
        state: access(state_dir, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK)
            .err()
            .map(|e| format!("{} takes no writes: {}", state_dir.display(), e.desc())),
        lost: status.map(|s| s.lost.clone()).unwrap_or_default(),
        said_s: status.map(|s| now.saturating_sub(s.at)),
        deaf: false,
    }
}

/// A process of that id may be another by now; its name tells.
#[must_use]
pub fn is_agent(tree: &Tree, pid: u32) -> bool {
    tree.line(&format!("proc/{pid}/comm")).is_some_and(|name| name.starts_with("copal-agent"))
}

fn memory(tree: &Tree, pid: u32) -> Option<u64> {
    let text = tree.text(&format!("proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn uptime(tree: &Tree, pid: u32) -> Option<u64> {
    let text = tree.text(&format!("proc/{pid}/stat"))?;
    // The name may hold spaces and brackets; the fields begin after its last bracket, with the third.
    let (_, fields) = text.rsplit_once(") ")?;
    let began = fields.split(' ').nth(19)?.parse::<u64>().ok()? / TICKS;
    let up: u64 = tree.line("proc/uptime")?.split('.').next()?.parse().ok()?;
    up.checked_sub(began)
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let mut detail = match (&seen.version, seen.pid) {
        (Some(version), Some(_)) => format!("{version} runs"),
        (None, Some(_)) => "runs".to_owned(),
        (_, None) => "does not run".to_owned(),
    };
    if let Some(uptime) = seen.uptime_s {
        detail += &format!(", since {}", span(uptime));
    }
    if let Some(said) = seen.said_s {
        detail += &format!("; it last said something new {} ago", span(said));
    }
    let large = seen.memory.is_some_and(|bytes| i64::try_from(bytes).is_ok_and(|bytes| bytes > LARGE));
    let (verdict, advice) = if seen.pid.is_none() {
        (
            Verdict::Failed,
            "start it (systemctl start copal-agent) and see why it ended (journalctl -u copal-agent); services run on",
        )
    } else if seen.deaf {
        detail += ", and does not answer";
        (
            Verdict::Failed,
            "it hangs, or waits for a disk that does: look at its log (journalctl -u copal-agent); its watchdog restarts it",
        )
    } else if let Some(why) = &seen.state {
        detail += &format!("; {why}");
        (Verdict::Failed, "what is wrong with that disk: see the results of disk and disk_health")
    } else if !seen.lost.is_empty() {
        detail += &format!("; lost: {}", seen.lost.join("; "));
        (
            Verdict::Warning,
            "both copies of a state file were damaged, so look at disk_health; the .bad files beside them are for support",
        )
    } else if large {
        (
            Verdict::Warning,
            "tell support, with a support bundle; restarting the agent (systemctl restart copal-agent) touches no service",
        )
    } else {
        (Verdict::Ok, "")
    };
    let mut result = ProbeResult::new(NAME, verdict, &detail).advice(advice);
    if let Some(memory) = seen.memory {
        result = result.value(i64::try_from(memory).unwrap_or(i64::MAX), Unit::Bytes).threshold(LARGE);
    }
    vec![result]
}

/// Seconds as people say them.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn the_agent_is_judged_by_the_worst() {
        let runs = Seen { pid: Some(1), memory: Some(8 << 20), ..Seen::default() };
        for (seen, verdict, word) in [
            (runs.clone(), Verdict::Ok, "runs"),
            (Seen { deaf: true, ..runs.clone() }, Verdict::Failed, "does not answer"),
            (Seen { pid: None, ..runs.clone() }, Verdict::Failed, "does not run"),
            (
                Seen { state: Some("/x takes no writes".to_owned()), ..runs.clone() },
                Verdict::Failed,
                "takes no writes",
            ),
            (Seen { lost: vec!["marks".to_owned()], ..runs.clone() }, Verdict::Warning, "lost: marks"),
            (Seen { memory: Some(97 << 20), ..runs.clone() }, Verdict::Warning, "runs"),
            (
                Seen { said_s: Some(300), uptime_s: Some(864_000), ..runs },
                Verdict::Ok,
                "since 10 d; it last said something new 5 min ago",
            ),
        ] {
            let result = judge(&seen).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert!(result.detail.contains(word), "{result:?}");
            assert_eq!(result.advice.is_empty(), verdict == Verdict::Ok, "{result:?}");
        }
    }

    #[test]
    fn a_process_is_read_from_proc() {
        let stat = format!("7 (copal) agent) S {} 4200 {}", "0 ".repeat(18).trim(), "0 ".repeat(20));
        let (dir, tree) = plant(&[
            ("proc/7/comm", "copal-agent\n"),
            ("proc/7/status", "Name: x\nVmRSS:     7000 kB\n"),
            ("proc/7/stat", &stat),
            ("proc/8/comm", "bash\n"),
            ("proc/uptime", "100.52 90.00\n"),
        ]);
        assert!(is_agent(&tree, 7) && !is_agent(&tree, 8) && !is_agent(&tree, 9));
        assert_eq!((memory(&tree, 7), uptime(&tree, 7)), (Some(7_168_000), Some(58)));
        let seen = read(&tree, dir.path(), None, false, 0);
        assert_eq!((seen.pid, seen.state), (None, None));
        let seen = read(&tree, &dir.path().join("none"), None, true, 0);
        assert!(seen.pid.is_some() && seen.state.unwrap().contains("No such file"));
    }
}
