//! Wear of the flash, file systems that stopped taking writes, and errors that the kernel found.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::{kernel_log, mounts, tree::Tree};

pub(super) const NAME: &str = "disk_health";
/// Percent of the flash's rated life, by its own estimate, from which a replacement should be at hand.
const WORN: i64 = 80;
/// Milliseconds a write takes on average beyond which everything that writes is held up.
const SLOW_WRITE: i64 = 1000;
/// Of fewer writes an average says nothing.
const MANY_WRITES: u64 = 100;
/// What the kernel says of a disk that fails.
const IO_ERRORS: &[&str] = &[
    "I/O error, dev ",
    "Buffer I/O error on dev",
    "EXT4-fs error",
    "F2FS-fs error",
    "critical medium error",
];

/// What there is to see of disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// eMMC: name, the two `life_time` estimates (1 to 11: tenths of its life), `pre_eol_info` (1 to 3).
    pub flash: Vec<Flash>,
    /// Folders whose file system takes no writes, and its device.
    pub read_only: Vec<(PathBuf, String)>,
    /// ext4 by device: errors it noted, and where the last came from.
    pub ext4: Vec<(String, i64, String)>,
    /// Devices of those folders, and how many milliseconds a write took on average.
    pub writes: Vec<(String, i64)>,
    /// How many errors of disks the kernel told of, and the last; or why its log cannot be read.
    pub log: Option<Result<(u64, Option<String>), String>>,
}

/// An eMMC's estimate of its own wear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    /// Such as `mmcblk0`.
    pub name: String,
    /// The worse of its two estimates, in tenths of its life; 11: beyond it.
    pub tenths: Option<u64>,
    /// Reserved blocks: 1 normal, 2 mostly used, 3 urgent.
    pub reserve: Option<u64>,
}

/// What the kernel had counted of each device when it was last looked at: writes, and the milliseconds they took.
pub type Counted = Arc<Mutex<BTreeMap<String, (u64, u64)>>>;

/// Looks; `folders` must take writes.
#[must_use]
pub fn read(tree: &Tree, folders: &[PathBuf], counted: &Counted) -> Seen {
    let mounts = mounts::parse(&tree.text("proc/self/mountinfo").unwrap_or_default());
    let mut read_only: Vec<(PathBuf, String)> = Vec::new();
    let mut writes = Vec::new();
    for folder in folders {
        let real = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        let Some(mount) = mounts::holding(&mounts, &real) else { continue };
        if mount.is_read_only() {
            read_only.push((folder.clone(), format!("{} on {}", mount.kind, mount.source)));
        }
        if !writes.iter().any(|(source, _)| *source == mount.source) {
            writes.extend(latency(tree, mount, counted).map(|ms| (mount.source.clone(), ms)));
        }
    }
    Seen {
        flash: tree.names("sys/block").into_iter().filter_map(|name| flash(tree, name)).collect(),
        read_only,
        writes,
        ext4: tree.names("sys/fs/ext4").into_iter().filter_map(|name| ext4(tree, name)).collect(),
        log: Some(kernel_log::find(tree, IO_ERRORS)),
    }
}

/// How long a write took on average since the last look, or, where there were few, since the boot. Counted by the kernel, so that
/// nothing is written for it.
fn latency(tree: &Tree, mount: &mounts::Mount, counted: &Counted) -> Option<i64> {
    let line = tree.line(&format!("sys/dev/block/{}/stat", mount.number))?;
    let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    let now = (*fields.get(4)?, *fields.get(7)?);
    let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
    let (writes, ms) = counted.get(&mount.number).copied().unwrap_or_default();
    let since = match (now.0.checked_sub(writes), now.1.checked_sub(ms)) {
        (Some(writes), Some(ms)) if writes >= MANY_WRITES => (writes, ms),
        (Some(_), Some(_)) => return average(now),
        // Another disk has the number by now.
        _ => now,
    };
    counted.insert(mount.number.clone(), now);
    average(since)
}

fn average((writes, ms): (u64, u64)) -> Option<i64> {
    if writes < MANY_WRITES { None } else { i64::try_from(ms / writes).ok() }
}

fn flash(tree: &Tree, name: String) -> Option<Flash> {
    let device = format!("sys/block/{name}/device");
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let life = tree.line(&format!("{device}/life_time"))?;
    // 0 says that the device does not tell.
    let tenths = life.split_ascii_whitespace().filter_map(hex).filter(|n| (1..=11).contains(n)).max();
    let reserve = tree.hex(&format!("{device}/pre_eol_info")).filter(|n| (1..=3).contains(n));
    Some(Flash { name, tenths, reserve })
}

fn ext4(tree: &Tree, name: String) -> Option<(String, i64, String)> {
    let folder = format!("sys/fs/ext4/{name}");
    let count = tree.number(&format!("{folder}/errors_count"))?;
    let last = tree.line(&format!("{folder}/last_error_func")).unwrap_or_default();
    (count > 0).then_some((name, count, last))
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let mut results: Vec<ProbeResult> = seen.flash.iter().map(worn).collect();
    for (folder, what) in &seen.read_only {
        let detail = format!("{} takes no writes: {what} is read-only", folder.display());
        results.push(
            ProbeResult::new(NAME, Verdict::Failed, &detail).of(&folder.display().to_string()).advice(
                "most often the kernel stopped it after an error: look at its log (dmesg), check the disk (fsck), replace the card",
            ),
        );
    }
    for (device, ms) in &seen.writes {
        let slow = *ms > SLOW_WRITE;
        let (verdict, advice) = if slow {
            (
                Verdict::Warning,
                "services wait for it, and it may be about to fail: find what writes so much (`docker stats`), then replace the card",
            )
        } else {
            (Verdict::Ok, "")
        };
        let result = ProbeResult::new(NAME, verdict, "what a write took on average").of(device);
        results.push(result.value(*ms, Unit::Ms).threshold(SLOW_WRITE).advice(advice));
    }
    for (device, count, last) in &seen.ext4 {
        let detail = format!("{device}: ext4 noted {count} errors, the last in {last}");
        results.push(
            ProbeResult::new(NAME, Verdict::Failed, &detail).of(device).value(*count, Unit::Count).threshold(0).advice(
                "check the file system (e2fsck) and replace the card or disk; the count stays until a check was made",
            ),
        );
    }
    let unread = match &seen.log {
        Some(Ok((count @ 1.., last))) => {
            let detail =
                format!("errors of disks since the boot; the last: {}", last.as_deref().unwrap_or_default());
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            results.push(
                ProbeResult::new(NAME, Verdict::Failed, &detail)
                    .value(count, Unit::Count)
                    .threshold(0)
                    .advice(
                        "replace the card or disk soon; on a Raspberry Pi look at the power supply first",
                    ),
            );
            String::new()
        }
        Some(Err(why)) => format!("; the kernel's log is not part of it: {why}"),
        _ => String::new(),
    };
    if results.iter().all(|r| r.verdict == Verdict::Ok) {
        results.push(ProbeResult::new(NAME, Verdict::Ok, &format!("no errors are known{unread}")));
    }
    results
}

fn worn(flash: &Flash) -> ProbeResult {
    let Flash { name, tenths, reserve } = flash;
    let reserve_text = match reserve {
        Some(1) => "; its reserve is normal",
        Some(2) => "; its reserve is mostly used",
        Some(3) => "; its reserve is used up",
        _ => "",
    };
    let result = match tenths {
        None if reserve.is_none() => {
            return ProbeResult::new(NAME, Verdict::Unknown, &format!("{name} does not tell its wear"))
                .of(name);
        }
        None => ProbeResult::new(NAME, Verdict::Ok, &format!("{name} does not tell its wear{reserve_text}")),
        Some(11) => {
            let detail = format!("{name} is past its rated life{reserve_text}");
            ProbeResult::new(NAME, Verdict::Ok, &detail).value(100, Unit::Percent)
        }
        Some(tenths) => {
            let most = i64::try_from(*tenths).unwrap_or(10) * 10;
            let detail = format!("{} to {most} % of its rated life is used{reserve_text}", most - 10);
            ProbeResult::new(NAME, Verdict::Ok, &detail).value(most, Unit::Percent)
        }
    };
    let verdict = match (tenths, reserve) {
        (Some(11), _) | (_, Some(3)) => Verdict::Failed,
        (Some(9..), _) | (_, Some(2)) => Verdict::Warning,
        _ => Verdict::Ok,
    };
    let advice =
        if verdict == Verdict::Ok { "" } else { "plan to replace the device, and find what writes so much" };
    ProbeResult { verdict, ..result.of(name).threshold(WORN).advice(advice) }
}

/// The folders of which all must take writes: the agent's, and the engine's where it is known.
#[must_use]
pub fn folders(state: &Path, engine: Option<&Path>) -> Vec<PathBuf> {
    std::iter::once(state).chain(engine).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn flash_is_judged_by_its_own_estimate() {
        for (life, eol, verdict, value) in [
            ("0x01 0x02", "0x01", Verdict::Ok, Some(20)),
            ("0x08 0x01", "0x01", Verdict::Ok, Some(80)),
            ("0x09 0x01", "0x01", Verdict::Warning, Some(90)),
            ("0x01 0x01", "0x02", Verdict::Warning, Some(10)),
            ("0x01 0x0b", "0x01", Verdict::Failed, Some(100)),
            ("0x01 0x01", "0x03", Verdict::Failed, Some(10)),
            ("0x00 0x00", "0x00", Verdict::Unknown, None),
            ("0x00 0x00", "0x03", Verdict::Failed, None),
            ("nonsense", "", Verdict::Unknown, None),
        ] {
            let (_dir, tree) = plant(&[
                ("sys/block/mmcblk0/device/life_time", life),
                ("sys/block/mmcblk0/device/pre_eol_info", eol),
                ("sys/block/sda/device/model", "disk"),
            ]);
            let results = judge(&read(&tree, &[], &Counted::default()));
            let flash = results.iter().find(|r| r.subject.is_some()).unwrap();
            assert_eq!((flash.verdict, flash.value), (verdict, value), "{life} {eol}: {flash:?}");
        }
    }

    #[test]
    fn errors_of_file_systems_and_of_the_kernel_fail() {
        let (dir, tree) = plant(&[
            ("proc/self/mountinfo", "30 22 179:4 / / rw - ext4 /dev/mmcblk0p4 ro,errors=remount-ro\n"),
            ("sys/fs/ext4/mmcblk0p4/errors_count", "3\n"),
            ("sys/fs/ext4/mmcblk0p4/last_error_func", "ext4_lookup\n"),
            ("sys/fs/ext4/sda1/errors_count", "0\n"),
            ("sys/fs/ext4/features/lazy", "1"),
            (
                "dev/kmsg",
                "3,1,5000000,-;I/O error, dev mmcblk0, sector 7 op 0x1\n3,2,6000000,-;EXT4-fs error (device mmcblk0p4)\n",
            ),
        ]);
        let results = judge(&read(&tree, &[dir.path().to_owned()], &Counted::default()));
        assert!(results.iter().all(|r| r.verdict == Verdict::Failed && !r.advice.is_empty()), "{results:?}");
        let all: String = results.iter().map(|r| format!("{}\n", r.detail)).collect();
        for word in ["is read-only", "3 errors, the last in ext4_lookup", "[    6.000000] EXT4-fs error"] {
            assert!(all.contains(word), "{all}");
        }
        assert_eq!(results.len(), 3);
    }

    #[test]
    fn slow_writes_are_told_by_what_the_kernel_counts() {
        let (dir, tree) = plant(&[
            ("proc/self/mountinfo", "30 22 179:4 / / rw - ext4 /dev/mmcblk0p4 rw\n"),
            ("sys/dev/block/179:4/stat", "9 0 9 9 1000 0 8 1000000 0 9 9\n"),
        ]);
        let counted = Counted::default();
        let looked = |stat: &str| {
            std::fs::write(dir.path().join("sys/dev/block/179:4/stat"), stat).unwrap();
            let results = judge(&read(&tree, &[dir.path().to_owned()], &counted));
            let found = results.iter().find(|r| r.subject.as_deref() == Some("/dev/mmcblk0p4"));
            found.map(|r| (r.verdict, r.value.unwrap(), r.advice.is_empty()))
        };
        assert_eq!(
            looked("9 0 9 9 1000 0 8 1000000 0 9 9\n"),
            Some((Verdict::Ok, 1000, true)),
            "since the boot"
        );
        assert_eq!(
            looked("9 0 9 9 1100 0 8 1300000 0 9 9\n"),
            Some((Verdict::Warning, 3000, false)),
            "since then"
        );
        assert_eq!(
            looked("9 0 9 9 1150 0 8 9900000 0 9 9\n"),
            Some((Verdict::Warning, 8608, false)),
            "few since"
        );
        assert_eq!(
            looked("9 0 9 9 200 0 8 400 0 9 9\n"),
            Some((Verdict::Ok, 2, true)),
            "another disk by that number"
        );
        assert_eq!(looked("9 0 9 9 99 0 8 990000 0 9 9\n"), None, "too few to tell");
        for broken in ["", "9 0 9 9 100", "9 0 9 9 x 0 8 1 0", "0 0 0 0 0 0 0 0"] {
            assert_eq!(looked(broken), None, "{broken}");
        }
    }

    #[test]
    fn without_errors_it_says_what_it_could_not_see() {
        let (_dir, tree) = plant(&[]);
        let results = judge(&read(&tree, &[], &Counted::default()));
        assert_eq!((results.len(), results[0].verdict), (1, Verdict::Ok));
        assert!(results[0].detail.contains("kernel's log is not part"), "{results:?}");
        let (_dir, tree) = plant(&[("dev/kmsg", "6,1,5,-;fine\n")]);
        assert_eq!(judge(&read(&tree, &[], &Counted::default()))[0].detail, "no errors are known");
    }
}
