//! What the running kernel says of this boot. It is the only witness of what was booted; the boot state is what it is checked against.

use std::{io, path::Path, process::Command};

use copal_protocol::ids::Sha256Hex;

use super::{BootError, Slot};
use crate::os::OsConfig;

/// The kernel's own words, and the restart.
pub(crate) trait Kernel: Send + Sync {
    /// `/proc/cmdline`.
    fn cmdline(&self) -> io::Result<String>;
    /// `/proc/self/mountinfo`.
    fn mountinfo(&self) -> io::Result<String>;
    /// Another id after each boot.
    fn boot_id(&self) -> io::Result<String>;
    /// Major and minor number of a block device.
    fn device_number(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Which partition of its disk a block device is.
    fn partition_number(&self, path: &Path) -> io::Result<u32>;
    /// A property of the device tree; `None` where it is missing.
    fn device_tree(&self, property: &str) -> io::Result<Option<Vec<u8>>>;
    /// Whether there is such a device node.
    fn has(&self, path: &Path) -> bool;
    /// Runs the command that restarts the device.
    fn run(&self, command: &[String]) -> Result<(), String>;
}

/// The kernel this runs on.
pub(crate) struct Linux;

/// The most that is read of a file of `/proc`, in bytes.
const MAX: u64 = 4 << 20;

fn text(path: &str) -> io::Result<String> {
    let bytes = crate::settings::read_bounded(Path::new(path), MAX)?;
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl Kernel for Linux {
    fn cmdline(&self) -> io::Result<String> {
        text("/proc/cmdline")
    }

    fn mountinfo(&self) -> io::Result<String> {
        // A mount point's name may be any bytes; the fields looked at are not.
        crate::settings::read_bounded(Path::new("/proc/self/mountinfo"), MAX)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn boot_id(&self) -> io::Result<String> {
        text("/proc/sys/kernel/random/boot_id")
    }

    fn device_number(&self, path: &Path) -> io::Result<(u64, u64)> {
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
        let meta = std::fs::metadata(path)?;
        if !meta.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no block device"));
        }
        Ok((nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev())))
    }

    fn partition_number(&self, path: &Path) -> io::Result<u32> {
        let (major, minor) = self.device_number(path)?;
        let number = text(&format!("/sys/dev/block/{major}:{minor}/partition"))?;
        number.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    fn device_tree(&self, property: &str) -> io::Result<Option<Vec<u8>>> {
        match crate::settings::read_bounded(&Path::new("/proc/device-tree").join(property), 64 << 10) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn has(&self, path: &Path) -> bool {
        path.exists()
    }

    fn run(&self, command: &[String]) -> Result<(), String> {
        let (program, arguments) = command.split_first().ok_or("no command is set")?;
        let status = Command::new(program).args(arguments).status().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(status.to_string()) }
    }
}

/// What the bootloader told the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words {
    pub slot: Slot,
    pub trial: bool,
    /// The generation that it saved, where it can count.
    pub generation: Option<u32>,
    /// The canary that it found and saved as the echo.
    pub echo: Option<u32>,
    pub fell: Option<String>,
}

impl Words {
    /// From the kernel's command line.
    pub(crate) fn parse(cmdline: &str) -> Result<Self, String> {
        let word = |name: &str| -> Result<Option<&str>, String> {
            let mut found = None;
            for (key, value) in cmdline.split_whitespace().filter_map(|w| w.split_once('=')) {
                if key == name && found.replace(value).is_some_and(|before| before != value) {
                    return Err(format!("the kernel's command line has two different words {name}="));
                }
            }
            Ok(found)
        };
        let number = |name| -> Result<Option<u32>, String> {
            let text = word(name)?;
            text.map(|t| u32::from_str_radix(t, 16).map_err(|_| format!("{name}={t} is no number")))
                .transpose()
        };
        let slot = word("copal.slot")?
            .ok_or("the kernel's command line has no copal.slot=: another bootloader started it")?;
        let trial = match word("copal.trial")? {
            Some("0") => false,
            Some("1") => true,
            other => return Err(format!("copal.trial is {other:?} on the kernel's command line")),
        };
        Ok(Self {
            slot: slot.parse()?,
            trial,
            generation: number("copal.gen")?,
            echo: number("copal.echo")?,
            fell: word("copal.fell")?.filter(|f| *f != "-").map(|f| f.chars().take(16).collect()),
        })
    }
}

/// A number for this boot, to see whether something was written in it. Never 0.
pub(crate) fn boot_tag(kernel: &dyn Kernel) -> Result<u32, BootError> {
    let id = kernel.boot_id().map_err(|source| BootError::Read {
        what: "the id of this boot",
        device: "/proc/sys/kernel/random/boot_id".into(),
        source,
    })?;
    let digest = Sha256Hex::of(id.trim().as_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    Ok(u32::from_be_bytes([a, b, c, d]).max(1))
}

/// Whether the root file system that is mounted is the slot's.
pub(crate) fn check_root(kernel: &dyn Kernel, config: &OsConfig, slot: Slot) -> Result<(), BootError> {
    let number = |slot: Slot| {
        let device = &config.devices(slot).rootfs;
        kernel.device_number(device).map_err(|source| BootError::Read {
            what: "the device number",
            device: device.clone(),
            source,
        })
    };
    let mounts = kernel.mountinfo().map_err(|source| BootError::Read {
        what: "the mounts",
        device: "/proc/self/mountinfo".into(),
        source,
    })?;
    let (wanted, other) = (number(slot)?, number(slot.other())?);
    if wanted == other {
        return Err(BootError::RootMismatch { what: "both slots are the same partition".to_owned() });
    }
    root_is(&mounts, wanted, other)
        .map_err(|what| BootError::RootMismatch { what: format!("slot {slot} was booted, but {what}") })
}

fn root_is(mounts: &str, wanted: (u64, u64), other: (u64, u64)) -> Result<(), String> {
    let fields = |line: &str| -> Option<((u64, u64), bool)> {
        let mut fields = line.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(((major.parse().ok()?, minor.parse().ok()?), fields.nth(1)? == "/"))
    };
    let all: Vec<_> = mounts.lines().filter_map(fields).collect();
    let is_root = |device| all.iter().any(|(number, root)| *root && *number == device);
    let is_mounted = |device| all.iter().any(|(number, _)| *number == device);
    if is_root(other) {
        return Err("the root file system is the other slot's".to_owned());
    }
    // Below an overlay the slot is mounted elsewhere; then the other one must not be mounted at all.
    if is_root(wanted) || (is_mounted(wanted) && !is_mounted(other)) {
        return Ok(());
    }
    Err("the root file system lies on neither of the slots alone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_where_the_kernel_mounted_it() {
        let plain =
            "22 1 259:2 / / ro,relatime shared:1 - ext4 /dev/root ro\n30 22 0:5 / /proc rw - proc proc rw\n";
        let overlay =
            "22 1 0:30 / / rw - overlay overlay rw\n23 22 259:2 / /media/root-ro ro - ext4 /dev/root ro\n";
        let both = format!("{overlay}24 22 259:3 / /mnt rw - ext4 /dev/x rw\n");
        for mounts in [plain, overlay] {
            assert_eq!(root_is(mounts, (259, 2), (259, 3)), Ok(()));
            assert!(root_is(mounts, (259, 3), (259, 2)).is_err());
            assert!(root_is(mounts, (8, 2), (8, 3)).is_err());
        }
        assert!(root_is(&both, (259, 2), (259, 3)).is_err());
        assert!(root_is("", (1, 1), (1, 2)).is_err() && root_is("a b c\n \n", (1, 1), (1, 2)).is_err());
    }

    #[test]
    fn words_that_contradict_each_other_are_not_believed() {
        let words = Words::parse("quiet copal.slot=b copal.trial=1 copal.gen=1f copal.echo=a copal.fell=- x")
            .unwrap();
        assert_eq!(
            words,
            Words { slot: Slot::B, trial: true, generation: Some(0x1f), echo: Some(10), fell: None }
        );
        for bad in [
            "quiet",
            "copal.slot=c copal.trial=0",
            "copal.slot=a",
            "copal.slot=a copal.trial=2",
            "copal.slot=a copal.slot=b copal.trial=0",
            "copal.slot=a copal.trial=0 copal.gen=zz",
        ] {
            assert!(Words::parse(bad).is_err(), "{bad}");
        }
    }
}
