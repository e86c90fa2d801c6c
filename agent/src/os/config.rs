//! `/etc/copal/os.json`: what the operating system's image says of itself. It is part of the (read-only) image, so each
//! slot has its own, and the version in it is that of the slot that runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Slot;
use crate::settings::read_bounded;

/// Where it is.
pub const PLACE: &str = "/etc/copal/os.json";
const MAX: u64 = 64 << 10;

/// The file, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsConfig {
    /// How this board chooses a slot.
    pub backend: BackendKind,
    /// As `compat.device_types` of host releases spells it.
    pub device_type: String,
    /// This image's version.
    pub version: semver::Version,
    /// No host release with a lower counter is accepted, even where the device's memory was lost.
    #[serde(default)]
    pub floor: u64,
    /// The newest format of the data partition that this image reads.
    #[serde(default)]
    pub data_schema: u64,
    /// The disk both slots are on; holds the boot state of U-Boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
    /// The partitions of each slot.
    pub slots: BTreeMap<Slot, SlotDevices>,
    /// U-Boot: bytes from the start of `disk` at which the two copies of the boot state are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state_offsets: Vec<u64>,
    /// GRUB: the two env files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_files: Vec<PathBuf>,
    /// Raspberry Pi: the partition with `autoboot.txt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoboot: Option<PathBuf>,
    /// How often one release may be tried, whatever ended its trials.
    #[serde(default = "three")]
    pub trial_limit: u32,
    /// Seconds a trial has to become well.
    #[serde(default = "five_minutes")]
    pub health_timeout_s: u64,
    /// A folder of executables that must all exit 0 for a trial to be well.
    #[serde(default = "hooks")]
    pub hooks: PathBuf,
    /// The command that restarts the device.
    #[serde(default = "reboot")]
    pub reboot: Vec<String>,
    /// Whether the image has a container engine, so that its health counts.
    #[serde(default = "yes")]
    pub engine: bool,
}

/// How a board chooses the slot it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// U-Boot and a state in raw sectors.
    Uboot,
    /// GRUB and two env files.
    Grub,
    /// The Raspberry Pi's firmware.
    Tryboot,
}

/// The partitions of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotDevices {
    /// Of the root file system.
    pub rootfs: PathBuf,
    /// Of kernel and firmware, where they have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<PathBuf>,
}

impl SlotDevices {
    /// By payload name.
    pub fn by_payload(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let boot = self.boot.as_deref().map(|path| ("boot", path));
        boot.into_iter().chain([("rootfs", self.rootfs.as_path())])
    }
}

const fn three() -> u32 {
    3
}
const fn five_minutes() -> u64 {
    300
}
fn hooks() -> PathBuf {
    PathBuf::from("/etc/copal/health.d")
}
fn reboot() -> Vec<String> {
    vec!["reboot".to_owned(), "-f".to_owned()]
}
const fn yes() -> bool {
    true
}

impl OsConfig {
    /// Reads and checks the file; `None` where there is none: then the operating system is not Copal's to update.
    ///
    /// # Errors
    /// What is wrong with it: the file, the field, and what to do.
    pub fn load(path: &Path) -> Result<Option<Self>, String> {
        let wrong =
            |why: String| format!("{}: {why}; it is part of the image, so mend the image", path.display());
        match read_bounded(path, MAX) {
            Ok(bytes) => Self::parse(&bytes).map(Some).map_err(wrong),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(e.to_string())),
        }
    }

    /// Checks the file's content.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.device_type.is_empty() || self.device_type.len() > 64 {
            return Err("device_type is empty or longer than 64".to_owned());
        }
        if self.slots.len() != 2 {
            return Err("slots must be exactly a and b".to_owned());
        }
        // GRUB counts in one decimal digit.
        if !(1..=9).contains(&self.trial_limit) {
            return Err(format!("trial_limit is {}, it must be 1 to 9", self.trial_limit));
        }
        if !(10..=86_400).contains(&self.health_timeout_s) {
            return Err(format!("health_timeout_s is {}, it must be 10 to 86,400", self.health_timeout_s));
        }
        if self.reboot.first().is_none_or(String::is_empty) {
            return Err("reboot names no command".to_owned());
        }
        let paths: Vec<&Path> = self.slots.values().flat_map(|s| s.by_payload().map(|(_, p)| p)).collect();
        if paths.iter().collect::<BTreeSet<_>>().len() != paths.len() {
            return Err("two payloads of the slots share a partition".to_owned());
        }
        if let Some(path) = paths.iter().chain(&[self.hooks.as_path()]).find(|p| !p.is_absolute()) {
            return Err(format!("{} is no absolute path", path.display()));
        }
        let boots = self.slots.values().filter(|s| s.boot.is_some()).count();
        match self.backend {
            BackendKind::Uboot if self.disk.is_none() || self.state_offsets.len() != 2 => {
                Err("backend uboot needs disk and two state_offsets".to_owned())
            }
            BackendKind::Uboot if self.state_offsets[0].abs_diff(self.state_offsets[1]) < 4096 => {
                Err("the two state_offsets overlap: they must be at least 4,096 apart".to_owned())
            }
            BackendKind::Grub if self.env_files.len() != 2 || self.env_files[0] == self.env_files[1] => {
                Err("backend grub needs two different env_files".to_owned())
            }
            BackendKind::Tryboot if self.autoboot.is_none() || boots != 2 => {
                Err("backend tryboot needs autoboot, and boot in both slots".to_owned())
            }
            _ if boots == 1 => Err("one slot has a boot partition, the other has none".to_owned()),
            _ => Ok(()),
        }
    }

    /// The partitions of a slot.
    #[must_use]
    pub fn devices(&self, slot: Slot) -> &SlotDevices {
        // Both are there: `check` saw to it.
        &self.slots[&slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UBOOT: &str = r#"{"backend":"uboot","device_type":"qemu-arm64","version":"1.0.0","floor":0,"data_schema":1,
        "disk":"/dev/nvme0n1","slots":{"a":{"rootfs":"/dev/nvme0n1p2"},"b":{"rootfs":"/dev/nvme0n1p3"}},
        "state_offsets":[4194304,8388608]}"#;

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = OsConfig::parse(UBOOT.as_bytes()).unwrap();
        assert_eq!((config.trial_limit, config.health_timeout_s, config.engine), (3, 300, true));
        assert_eq!(config.reboot, ["reboot", "-f"]);
        assert_eq!(config.devices(Slot::B).rootfs, Path::new("/dev/nvme0n1p3"));
        let text = serde_json::to_vec(&config).unwrap();
        assert_eq!(OsConfig::parse(&text).unwrap(), config);
    }

    #[test]
    fn a_file_that_could_lead_to_a_wrong_write_is_refused() {
        for (from, to, word) in [
            (r#""floor":0"#, r#""flor":0"#, "unknown field"),
            ("nvme0n1p3", "nvme0n1p2", "share a partition"),
            (r#","b":{"rootfs":"/dev/nvme0n1p3"}"#, "", "exactly a and b"),
            ("8388608", "4194305", "overlap"),
            (",8388608", "", "two state_offsets"),
            ("\"/dev/nvme0n1p3\"", "\"nvme0n1p3\"", "absolute"),
            ("uboot", "grub", "env_files"),
            ("uboot", "tryboot", "autoboot"),
            (r#""floor":0"#, r#""trial_limit":0"#, "trial_limit"),
            (r#""floor":0"#, r#""trial_limit":10"#, "1 to 9"),
            (r#""floor":0"#, r#""reboot":[]"#, "no command"),
        ] {
            let text = UBOOT.replacen(from, to, 1);
            assert_ne!(text, UBOOT, "{from}");
            let error = OsConfig::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(OsConfig::load(Path::new("/nonexistent/os.json")), Ok(None));
    }
}
