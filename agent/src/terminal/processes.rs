//! Processes of a session as this device sees them, and their end.

use std::{collections::BTreeSet, fs, time::Duration};

use copal_protocol::ids::SessionId;
use nix::{
    sys::signal::{Signal, kill as signal},
    unistd::Pid,
};

use super::doors::MARK;

/// Rounds of killing: a killed process may have started another.
const ROUNDS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    dead: bool,
    session: i32,
}

/// Kills what has the session's mark, and what belongs to a session that such a process leads. `first` is the shell's process, taken as marked where it
/// is in `container`: variables of another user's process cannot be read by everyone. Gives how many are left.
pub(super) async fn kill(session: SessionId, first: Option<i32>, container: Option<&str>) -> usize {
    let mark = format!("{MARK}={session}");
    let own = std::process::id().cast_signed();
    let mut leaders = BTreeSet::new();
    if let (Some(pid), Some(container)) = (first, container)
        && pid > 1
        && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|c| c.contains(container))
        && stat(pid).is_some_and(|s| s.session == pid)
    {
        leaders.insert(pid);
    }
    let mut left = 0;
    for round in 0..ROUNDS {
        left = 0;
        for pid in all() {
            let Some(stat) = stat(pid).filter(|s| !s.dead && pid != own && pid > 1) else { continue };
            let marked = has_mark(pid, &mark);
            if marked && stat.session == pid {
                leaders.insert(pid);
            }
            if marked || leaders.contains(&stat.session) {
                left += 1;
                let _ = signal(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        // The first round may have passed a process before it saw its leader.
        if left == 0 && round > 0 {
            return 0;
        }
        tokio::time::sleep(PAUSE).await;
    }
    left
}

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn has_mark(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|vars| vars.split(|b| *b == 0).any(|var| var == mark.as_bytes()))
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name stands in brackets and may hold any character, brackets too.
fn parse(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let dead = matches!(fields.next()?, "Z" | "X");
    Some(Stat { dead, session: fields.nth(2)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let line = "42 (a) R (b) S 1 42 40 34816 42 4194304 0";
        assert_eq!(parse(line), Some(Stat { dead: false, session: 40 }));
        assert_eq!(parse("42 (x) Z 1 42 41 0"), Some(Stat { dead: true, session: 41 }));
        assert_eq!(parse("42 x"), None);
    }

    #[tokio::test]
    async fn what_has_the_mark_is_killed_with_its_session_and_nothing_else() {
        let session = SessionId::from_bytes([0x77; 16]);
        let mut other = Command::new("sleep").arg("602").spawn().unwrap();
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "env -i sleep 603 & env -i setsid true; wait"])
            .env(MARK, session.to_string())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(kill(session, None, None).await, 0);
        assert_eq!(leader.wait().unwrap().code(), None);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        let left = Command::new("pgrep").args(["-fx", "sleep 603"]).output().unwrap();
        assert!(left.stdout.is_empty());
    }
}
