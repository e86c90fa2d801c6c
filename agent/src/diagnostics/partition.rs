//! The partition that the agent's data is on, where the operating system is Copal's: that it is one of its own, and as large as the
//! disk lets it be. A device that starts without its data partition works, and forgets everything at the next start.

use std::path::Path;

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::{disk::NAME, mounts, tree::Tree};

/// Percent of the disk that is in partitions below which the last one was not made larger at the first start.
const LEAST: u64 = 80;
/// File systems that are in memory, or that nothing can be written to for good.
const PASSING: &[&str] = &["tmpfs", "ramfs", "overlay", "squashfs", "erofs"];

/// What there is to see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The folder is on no partition of its own: what it is on, and what of.
    NotMounted(String),
    /// It is on this.
    On {
        /// The device.
        source: String,
        /// Percent of the disk that is in partitions; absent where the kernel does not tell.
        partitioned: Option<u64>,
    },
    /// What is mounted is not known.
    Unknown,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree, folder: &Path) -> Seen {
    let mounts = mounts::parse(&tree.text("proc/self/mountinfo").unwrap_or_default());
    let real = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let Some(mount) = mounts::holding(&mounts, &real) else { return Seen::Unknown };
    let root = mounts::holding(&mounts, Path::new("/"));
    if root.is_some_and(|root| root.number == mount.number) || PASSING.contains(&mount.kind.as_str()) {
        return Seen::NotMounted(format!("{} on {}", mount.kind, mount.source));
    }
    Seen::On { source: mount.source.clone(), partitioned: partitioned(tree, &mount.number) }
}

/// How much of the disk lies before the end of its last partition.
fn partitioned(tree: &Tree, number: &str) -> Option<u64> {
    let own = format!("sys/dev/block/{number}");
    let sectors = |path: String| tree.number(&path).and_then(|n| u64::try_from(n).ok());
    // A disk without partitions has nothing to grow.
    sectors(format!("{own}/partition"))?;
    let disk = format!("{own}/..");
    let end =
        |folder: String| sectors(format!("{folder}/start"))?.checked_add(sectors(format!("{folder}/size"))?);
    let others = tree.names(&disk).into_iter().filter_map(|name| end(format!("{disk}/{name}")));
    let end = others.chain(end(own.clone())).max()?;
    let size = sectors(format!("{disk}/size")).filter(|size| *size > 0)?;
    u64::try_from(u128::from(end) * 100 / u128::from(size)).ok()
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let result = |verdict, detail: &str| ProbeResult::new(NAME, verdict, detail).of("data partition");
    vec![match seen {
        Seen::Unknown => result(Verdict::Unknown, "what is mounted cannot be seen"),
        Seen::NotMounted(what) => {
            result(Verdict::Failed, &format!("the agent's data is on no partition of its own ({what}), and lost at the next update or start"))
                .advice("the data partition was not found or could not be mounted: look at the kernel's log (dmesg) and at disk_health; \
                         a card that cannot be mended is written anew")
        }
        Seen::On { source, partitioned: None } => result(Verdict::Ok, &format!("mounted from {source}")),
        Seen::On { source, partitioned: Some(share) } => {
            let value = i64::try_from(*share).unwrap_or(100);
            let (verdict, more, advice) = if *share < LEAST {
                (
                    Verdict::Warning,
                    ", and the rest of the disk is in no partition",
                    "the first start could not make it larger: write the image anew, or grow it by hand (sfdisk, resize2fs)",
                )
            } else {
                (Verdict::Ok, "", "")
            };
            result(verdict, &format!("mounted from {source}{more}"))
                .value(value, Unit::Percent)
                .threshold(i64::try_from(LEAST).unwrap_or(0))
                .advice(advice)
        }
    }]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    fn looked(mountinfo: &str, files: &[(&str, &str)]) -> ProbeResult {
        let all: Vec<_> = [("proc/self/mountinfo", mountinfo)].iter().chain(files).copied().collect();
        let (_dir, tree) = plant(&all);
        judge(&read(&tree, Path::new("/nonexistent/data/copal"))).remove(0)
    }

    const ROOT: &str = "22 1 179:2 / / ro - ext4 /dev/root ro\n";

    #[test]
    fn data_that_is_on_no_partition_of_its_own_fails() {
        let data = "30 22 179:4 / /nonexistent/data rw - ext4 /dev/mmcblk0p4 rw\n";
        assert_eq!(looked(&format!("{ROOT}{data}"), &[]).verdict, Verdict::Ok);
        for passing in [
            "30 22 0:40 / /nonexistent/data rw - tmpfs tmpfs rw\n",
            "30 22 0:41 / /nonexistent/data rw - overlay overlay rw\n",
            // A folder of the root file system, bound to the place.
            "30 22 179:2 /x /nonexistent/data rw - ext4 /dev/root ro\n",
            "30 22 0:5 / /proc rw - proc proc rw\n",
        ] {
            let result = looked(&format!("{ROOT}{passing}"), &[]);
            assert_eq!(result.verdict, Verdict::Failed, "{passing}: {result:?}");
            assert!(
                result.detail.contains("no partition of its own") && !result.advice.is_empty(),
                "{result:?}"
            );
        }
        assert_eq!(looked("", &[]).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_disk_that_is_left_empty_behind_its_last_partition_warns() {
        let mounts = format!("{ROOT}30 22 179:4 / /nonexistent/data rw - ext4 /dev/mmcblk0p4 rw\n");
        let seen = |start: &str, size: &str, disk: &str, other: &str| {
            looked(
                &mounts,
                &[
                    ("sys/dev/block/179:4/partition", "4\n"),
                    ("sys/dev/block/179:4/start", start),
                    ("sys/dev/block/179:4/size", size),
                    ("sys/dev/block/size", disk),
                    ("sys/dev/block/mmcblk0p5/start", other),
                    ("sys/dev/block/mmcblk0p5/size", "100"),
                ],
            )
        };
        for (size, other, verdict, value) in [
            ("700", "0", Verdict::Ok, Some(80)),
            ("690", "0", Verdict::Warning, Some(79)),
            // Another one lies behind it.
            ("200", "800", Verdict::Ok, Some(90)),
            ("9223372036854775807", "0", Verdict::Ok, None),
        ] {
            let result = seen("100", size, "1000", other);
            assert_eq!(
                (result.verdict, result.advice.is_empty()),
                (verdict, verdict == Verdict::Ok),
                "{result:?}"
            );
            if value.is_some() {
                assert_eq!((result.value, result.threshold), (value, Some(80)), "{result:?}");
            }
        }
        assert_eq!(seen("100", "700", "0", "0").value, None, "a disk of no size");
    }
}
