//! Room where the agent and the engine keep their data.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

pub(super) const NAME: &str = "disk";
/// Percent used beyond which the next image may not fit.
const WARN: i64 = 80;
/// Percent used beyond which writes begin to fail, on flash also from wear.
const FAIL: i64 = 90;

/// A folder's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that may still be written.
    pub free: u64,
    /// Inodes in use, and free; zeros where the file system has no such bound.
    pub inodes: (u64, u64),
    /// The device it is on.
    pub device: u64,
}

/// What there is to see of one folder.
#[derive(Debug)]
pub struct Seen {
    /// The folder.
    pub folder: PathBuf,
    /// Whose data it is, in words.
    pub whose: &'static str,
    /// Its file system, or why it could not be seen.
    pub room: io::Result<Room>,
}

/// Looks at a folder.
#[must_use]
pub fn read(folder: &Path, whose: &'static str) -> Seen {
    Seen { folder: folder.to_owned(), whose, room: room(folder) }
}

#[allow(clippy::useless_conversion, reason = "32 bits wide on some of our targets")]
fn room(folder: &Path) -> io::Result<Room> {
    let device = fs::metadata(folder)?.dev();
    let stat = nix::sys::statvfs::statvfs(folder)?;
    let unit = u64::from(stat.fragment_size());
    let bytes = |blocks: u64| blocks.saturating_mul(unit);
    let (all, free) = (u64::from(stat.blocks()), u64::from(stat.blocks_free()));
    let (files, left) = (u64::from(stat.files()), u64::from(stat.files_free()));
    Ok(Room {
        used: bytes(all.saturating_sub(free)),
        // What root alone may write does not count: the engine's containers are not always root.
        free: bytes(u64::from(stat.blocks_available())),
        inodes: (files.saturating_sub(left), left),
        device,
    })
}

/// Judges; folders on one file system are told once.
#[must_use]
pub fn judge(seen: &[Seen]) -> Vec<ProbeResult> {
    let mut results: Vec<ProbeResult> = Vec::new();
    for (at, one) in seen.iter().enumerate() {
        let subject = one.folder.display().to_string();
        let room = match &one.room {
            Ok(room) => room,
            Err(e) => {
                let detail = format!("{} ({subject}) cannot be looked at: {e}", one.whose);
                results.push(ProbeResult::new(NAME, Verdict::Unknown, &detail).of(&subject));
                continue;
            }
        };
        let same = |other: &Seen| other.room.as_ref().is_ok_and(|r| r.device == room.device);
        if seen[..at].iter().any(same) {
            continue;
        }
        let whose: Vec<&str> = seen.iter().filter(|other| same(other)).map(|other| other.whose).collect();
        results.push(one_of(&subject, &whose.join(" and "), room));
    }
    results
}

fn one_of(subject: &str, whose: &str, room: &Room) -> ProbeResult {
    let space = percent(room.used, room.free);
    let inodes = percent(room.inodes.0, room.inodes.1);
    let (worst, what) = if inodes > space { (inodes, "inodes (files)") } else { (space, "space") };
    let detail = format!(
        "{whose}: {} MB used, {} MB free; {inodes} % of the inodes used",
        room.used / 1_000_000,
        room.free / 1_000_000
    );
    let (verdict, threshold) = match worst {
        used if used > FAIL => (Verdict::Failed, FAIL),
        used if used > WARN => (Verdict::Warning, WARN),
        _ => (Verdict::Ok, WARN),
    };
    let result = ProbeResult::new(NAME, verdict, &detail).of(subject).value(worst, Unit::Percent);
    let result = result.threshold(threshold);
    if verdict == Verdict::Ok {
        return result;
    }
    result.advice(&format!(
        "free {what} there: look for volumes and logs that grow (`docker system df -v`), bound logs in the compose file; \
         images no release needs are let go by the agent itself"
    ))
}

/// Used of what could be used, rounded up, as `df` does.
fn percent(used: u64, free: u64) -> i64 {
    let all = u128::from(used) + u128::from(free);
    if all == 0 {
        return 0;
    }
    i64::try_from((u128::from(used) * 100).div_ceil(all)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(folder: &str, used: u64, free: u64, inodes: (u64, u64), device: u64) -> Seen {
        let room = Ok(Room { used, free, inodes, device });
        Seen { folder: folder.into(), whose: "data", room }
    }

    #[test]
    fn the_worse_of_space_and_inodes_counts() {
        for (used, free, inodes, verdict, value) in [
            (80, 20, (0, 0), Verdict::Ok, 80),
            (801, 199, (0, 0), Verdict::Warning, 81),
            (90, 10, (1, 99), Verdict::Warning, 90),
            (901, 99, (1, 99), Verdict::Failed, 91),
            (10, 90, (95, 5), Verdict::Failed, 95),
            (100, 0, (0, 0), Verdict::Failed, 100),
            (0, 0, (0, 0), Verdict::Ok, 0),
            (u64::MAX, u64::MAX, (u64::MAX, 0), Verdict::Failed, 100),
        ] {
            let [result] = &judge(&[seen("/d", used, free, inodes, 1)])[..] else { panic!("one result") };
            assert_eq!((result.verdict, result.value), (verdict, Some(value)), "{result:?}");
            assert_eq!(result.advice.is_empty(), verdict == Verdict::Ok);
        }
    }

    #[test]
    fn one_file_system_is_told_once() {
        let both = [seen("/a", 1, 9, (0, 0), 1), seen("/b", 1, 9, (0, 0), 1), seen("/c", 1, 9, (0, 0), 2)];
        let results = judge(&both);
        let subjects: Vec<_> = results.iter().map(|r| r.subject.as_deref().unwrap()).collect();
        assert_eq!(subjects, ["/a", "/c"]);
        assert!(results[0].detail.starts_with("data and data"), "{:?}", results[0]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_known() {
        let results = judge(&[read(Path::new("/nonexistent/folder"), "the engine's data")]);
        assert_eq!(results[0].verdict, Verdict::Unknown);
        assert!(results[0].detail.contains("No such file"), "{results:?}");
    }

    #[test]
    fn a_full_file_system_fails() {
        if !nix::unistd::Uid::effective().is_root() {
            return; // Only root mounts; everything else of this probe is tested above.
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = |arguments: &[&str]| {
            let mut command = std::process::Command::new(arguments[0]);
            assert!(command.args(&arguments[1..]).arg(dir.path()).status().unwrap().success());
        };
        mount(&["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "copal-probes"]);
        let looked = || judge(&[read(dir.path(), "the agent's data")]).remove(0);
        let empty = looked();
        let blocks = fs::write(dir.path().join("full"), vec![1; 2 << 20]);
        let full = looked();
        fs::remove_file(dir.path().join("full")).unwrap();
        let many = (0..64).take_while(|n| fs::write(dir.path().join(n.to_string()), "").is_ok()).count();
        let crowded = looked();
        mount(&["umount"]);
        assert_eq!(empty.verdict, Verdict::Ok, "{empty:?}");
        assert!(blocks.is_err() && many > 32);
        assert_eq!((full.verdict, full.value), (Verdict::Failed, Some(100)), "{full:?}");
        assert_eq!((crowded.verdict, crowded.value), (Verdict::Failed, Some(100)), "{crowded:?}");
        assert!(crowded.advice.contains("inodes"), "{crowded:?}");
    }
}
