//! Which slot boots next: one trait, and one backend for each bootloader.
//!
//! In: the settings of the image (`os.json`), what the kernel says of this boot, the boot state on the disk.
//! Out: a slot made unbootable, a trial armed and counted, a slot committed, a trial called off, a reboot.
//! Never here: the content of a slot beyond its first 4 KiB; a decision whether a release is good; trust in a boot
//! state that the kernel's own words contradict.
//!
//! The procedure, and the boot state as a table, stand in `docs/os-updates.md`; the code follows it step by step.
//!
//! What whoever drives a backend must do, beyond the order of the trait's methods:
//! - call [`Backend::mark_well`] once in *every* boot, as soon as the booted system is known to work: the bootloader counts
//!   the boots of the committed slot too, and gives the other valid slot a trial when the count reaches the limit;
//! - after a commit, call [`Backend::mark_unbootable`] for the other slot where its release is below the rollback floor: what is
//!   bootable may be booted when the boot state is lost.

mod counted;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod grub;
mod heads;
mod kernel;
#[cfg(test)]
pub(crate) mod sim;
mod state;
mod store;
mod tryboot;

use std::{path::PathBuf, sync::Arc};

use copal_protocol::ids::Sha256Hex;

use self::{
    counted::Counted,
    grub::EnvStore,
    kernel::{Kernel, Linux},
    store::RawStore,
    tryboot::Tryboot,
};
use super::{OsConfig, Slot, config::BackendKind, disk::Disks};

pub use error::BootError;
pub use heads::write_head;

/// Bytes at the start of each partition of a slot that make it bootable: an ext4 superblock lies at 1,024, a FAT boot
/// sector at 0. They are zero from before the first write of an installation until all the rest was read back.
pub const HEAD: usize = 4096;

/// What was booted, and what the boot state says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booted {
    /// The slot that runs, from the kernel: its command line or device tree, and the mounted root.
    pub slot: Slot,
    /// Whether this boot is a trial: undone unless the slot is committed.
    pub trial: bool,
    /// The slot that the boot state trusts.
    pub committed: Slot,
    /// Boots of what is being tried, or of the committed slot since it last said that it is well.
    pub tries: u32,
    /// How often a trial was armed for `arms_for`.
    pub arms: u32,
    /// The first bytes of the release that the arms were counted for.
    pub arms_for: Option<[u8; 8]>,
    /// Whether a trial is armed and did not begin yet. True in a slot that is not on trial itself.
    pub armed: bool,
    /// Whether the bootloader went back to the committed slot by itself (or gave up on it), since a slot last said that it is well.
    pub fell_back: bool,
    /// In the bootloader's words, why it did: `tries` (the trial used up its boots), `sick` (the committed slot did),
    /// `lost` (both copies of the boot state were damaged), `nosave` (the count could not be written), `invalid` (the slot
    /// had no valid head or kernel).
    pub fell_why: Option<String>,
}

impl Booted {
    /// A slot that is committed, booted once, and beside which nothing is tried.
    pub fn settled(slot: Slot) -> Self {
        Self {
            slot,
            trial: false,
            committed: slot,
            tries: 1,
            arms: 0,
            arms_for: None,
            armed: false,
            fell_back: false,
            fell_why: None,
        }
    }
}

/// What a probe found: enough to be shown to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The backend's name.
    pub backend: &'static str,
    /// The bootloader's own version, where it tells one.
    pub bootloader: Option<String>,
    /// How many of the two copies of the boot state are good. Less than 2 is mended by the next write.
    pub good_copies: u8,
}

/// A bootloader's way to hold two slots. Calls block: run them off the asynchronous threads.
///
/// Nothing is remembered between calls: each reads what it needs anew, so an agent that was killed between any two of
/// them goes on with the third.
pub trait Backend: Send + Sync {
    /// As `os.json` and the report spell it.
    fn name(&self) -> &'static str;

    /// Refuses an unsuitable board, bootloader or layout, before the first write. Has no lasting effect.
    ///
    /// # Errors
    /// `os_probe_failed` with what is unsuitable and what to do; `os_root_mismatch` as [`Backend::active`].
    fn probe(&self) -> Result<Probe, BootError>;

    /// What was booted, checked against the boot state.
    ///
    /// # Errors
    /// `os_root_mismatch` where the kernel and the boot state contradict each other.
    fn active(&self) -> Result<Booted, BootError>;

    /// Zeroes the head of every partition of a slot, flushes and reads back. The boot state no longer names it for a trial then.
    ///
    /// # Errors
    /// `os_slot_active` for the slot that runs or is committed (nothing was written); `os_write`, `os_readback`.
    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError>;

    /// Whether all heads of a slot are there. Reads only.
    ///
    /// # Errors
    /// `os_read`: that cannot be told.
    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError>;

    /// Checks that the heads of the slot are there again, counts the trial, and arms it: the next boot tries `slot`.
    /// `release` is what arms are counted by; a caller who counts a retry asked for by a person as new gives another one.
    ///
    /// # Errors
    /// `os_slot_invalid` (a head is missing), `os_trials_used` (the limit of arms), `os_arm` (the count cannot be written, or the
    /// state is not in order): nothing is armed in each case. `os_slot_active` for the slot that runs.
    fn arm_trial(&self, slot: Slot, release: &Sha256Hex) -> Result<(), BootError>;

    /// Makes the slot that is on trial the committed one. Done already: no error, nothing written.
    ///
    /// # Errors
    /// `os_not_trial` unless `slot` runs, on trial. `os_write`, `os_readback`: the commit may or may not hold; call again.
    fn commit(&self, slot: Slot) -> Result<(), BootError>;

    /// The committed slot says that it works: its boots are counted anew, damaged copies of the state are mended, and the
    /// canary for the next boot is laid out. Writes at most once a boot. In a trial it does nothing.
    ///
    /// # Errors
    /// `os_write`, `os_readback`, `os_root_mismatch`.
    fn mark_well(&self) -> Result<(), BootError>;

    /// Calls a trial off: the next boot is the committed slot. Nothing armed or tried: no error, nothing written.
    ///
    /// # Errors
    /// `os_write`, `os_readback`.
    fn rollback(&self) -> Result<(), BootError>;

    /// Restarts the device. `into_trial` must be true to enter an armed trial: some firmware is told by the reboot itself.
    ///
    /// # Errors
    /// `os_reboot`: the command could not be run, or said no.
    fn reboot(&self, into_trial: bool) -> Result<(), BootError>;
}

/// The backend that the image's settings ask for, on this machine.
///
/// # Errors
/// `os_probe_failed` where a setting that it needs is missing, by name.
pub fn open(config: &OsConfig, disks: Arc<dyn Disks>) -> Result<Box<dyn Backend>, BootError> {
    with_kernel(config, disks, Arc::new(Linux))
}

/// See [`open`]; the kernel's words come from elsewhere in tests.
fn with_kernel(
    config: &OsConfig,
    disks: Arc<dyn Disks>,
    kernel: Arc<dyn Kernel>,
) -> Result<Box<dyn Backend>, BootError> {
    let needs = |field: &str| BootError::Probe {
        what: format!("os.json does not have the {field} that this backend needs"),
        next: "mend the image",
    };
    let raw = || -> Result<RawStore, BootError> {
        let disk = config.disk.clone().ok_or_else(|| needs("disk"))?;
        let offsets =
            <[u64; 2]>::try_from(config.state_offsets.clone()).map_err(|_| needs("two state_offsets"))?;
        // Aligned to the largest block in use, so that one torn block damages one copy.
        if offsets[0].abs_diff(offsets[1]) < state::SIZE as u64
            || offsets.iter().any(|o| *o == 0 || o % state::SIZE as u64 != 0)
        {
            return Err(needs("state_offsets at two different multiples of 4,096"));
        }
        Ok(RawStore { disks: disks.clone(), disk, offsets })
    };
    if !(1..=9).contains(&config.trial_limit) {
        // GRUB counts in one decimal digit.
        return Err(needs("trial_limit of 1 to 9"));
    }
    let config = config.clone();
    Ok(match config.backend {
        BackendKind::Uboot => Box::new(Counted { name: "uboot", store: raw()?, config, disks, kernel }),
        BackendKind::Grub => {
            let files =
                <[PathBuf; 2]>::try_from(config.env_files.clone()).map_err(|_| needs("two env_files"))?;
            let store = EnvStore { disks: disks.clone(), files };
            Box::new(Counted { name: "grub", store, config, disks, kernel })
        }
        BackendKind::Tryboot => {
            if Slot::BOTH.into_iter().any(|slot| config.devices(slot).boot.is_none()) {
                return Err(needs("boot partition of each slot"));
            }
            let autoboot = config.autoboot.clone().ok_or_else(|| needs("autoboot"))?;
            Box::new(Tryboot { store: raw()?, autoboot, config, disks, kernel })
        }
    })
}
