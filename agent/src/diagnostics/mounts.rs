//! Where a folder is mounted, and whether its file system still takes writes.

use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// `ext4`, …
    pub kind: String,
    /// The device.
    pub source: String,
    /// Its number, `major:minor`; of file systems without a device `0:…`.
    pub number: String,
    /// Options of the file system itself, which a namespace of ours cannot change: a sandboxed agent sees most of the disk
    /// read-only, whatever the disk is.
    pub options: String,
}

impl Mount {
    /// Whether the file system takes no writes: so mounted, or stopped by the kernel after an error.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|word| matches!(word, "ro" | "emergency_ro" | "shutdown"))
    }
}

/// Reads `/proc/self/mountinfo`.
#[must_use]
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (own, system) = line.split_once(" - ")?;
            let mut own = own.split(' ').skip(2);
            let (number, at) = (own.next()?.to_owned(), own.nth(1)?);
            let mut system = system.split(' ');
            Some(Mount {
                at: PathBuf::from(unescape(at)),
                kind: system.next()?.to_owned(),
                source: unescape(system.next()?),
                number,
                options: system.next().unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

/// The mount that holds a path: the deepest, and of those at one place the last, which covers the others.
#[must_use]
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count())
}

/// Spaces and the like stand as `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "22 1 179:2 / / ro,relatime shared:1 - ext4 /dev/root ro\n\
        30 22 179:4 / /data rw,relatime - ext4 /dev/mmcblk0p4 rw,errors=remount-ro\n\
        31 30 179:4 /copal /data/my\\040disk ro - ext4 /dev/mmcblk0p4 rw\n\
        32 30 8:1 / /data/old rw - vfat /dev/sda1 ro,fmask=0022\n\
        33 30 8:1 / /data/old rw - ext4 /dev/sdb1 rw,emergency_ro\n\
        broken\n9 9 9 - \n";

    #[test]
    fn the_deepest_and_newest_mount_holds_a_path() {
        let mounts = parse(TEXT);
        let of = |path: &str| holding(&mounts, Path::new(path)).unwrap();
        assert_eq!(of("/etc").source, "/dev/root");
        assert_eq!((&*of("/data/x").source, &*of("/data/x").number), ("/dev/mmcblk0p4", "179:4"));
        assert_eq!(of("/database").source, "/dev/root", "a name that begins alike is another folder");
        assert_eq!(of("/data/my disk/x").at, Path::new("/data/my disk"));
        assert_eq!(of("/data/old").source, "/dev/sdb1");
        assert_eq!(holding(&[], Path::new("/")), None);
    }

    #[test]
    fn only_the_file_system_itself_counts_as_read_only() {
        let mounts = parse(TEXT);
        let read_only: Vec<bool> = mounts.iter().map(Mount::is_read_only).collect();
        assert_eq!(read_only, [true, false, false, true, true], "the third is so in our sandbox alone");
    }
}
