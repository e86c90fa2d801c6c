//! Why the boot state was not read or not changed.

use std::{io, path::PathBuf};

use super::Slot;

/// What was tried on which device, why it was not done, and what to do. [`BootError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The board, its bootloader or its layout cannot hold two slots safely. Nothing was written.
    #[error("this device cannot be updated: {what}; {next}")]
    Probe {
        /// What was found.
        what: String,
        /// What a person can do.
        next: &'static str,
    },
    /// The kernel, the mounted root and the boot state do not say the same. Nothing was written.
    #[error(
        "what runs is not what the boot state says: {what}; restart the device, and write its card anew if this stays"
    )]
    RootMismatch {
        /// Who says what.
        what: String,
    },
    /// The slot runs, or is the committed one, and must not be touched.
    #[error("slot {slot} {why}: it is never written")]
    SlotActive {
        /// Which.
        slot: Slot,
        /// `runs` or `is the committed slot`.
        why: &'static str,
    },
    /// A partition of the slot has no valid head, so the bootloader could not start it.
    #[error("slot {slot} cannot be tried: {device} {why}; install the release again")]
    SlotInvalid {
        /// Which.
        slot: Slot,
        /// The partition.
        device: PathBuf,
        /// What it lacks.
        why: &'static str,
    },
    /// The release had all the trials it may have.
    #[error(
        "slot {slot} was tried {arms} times for this release, the limit is {limit}: publish another release, or retry this one"
    )]
    TrialsUsed {
        /// Which.
        slot: Slot,
        /// Trials armed.
        arms: u32,
        /// The most there may be.
        limit: u32,
    },
    /// The trial was not armed.
    #[error("no trial of slot {slot} was armed: {why}")]
    Arm {
        /// Which.
        slot: Slot,
        /// Why not.
        why: String,
    },
    /// A commit of what is not on trial.
    #[error("slot {slot} is not committed: {why}")]
    NotTrial {
        /// Which.
        slot: Slot,
        /// Why not.
        why: &'static str,
    },
    /// A device could not be read.
    #[error("cannot read {what} on {device}: {source}; check the disk (dmesg)")]
    Read {
        /// What of it.
        what: &'static str,
        /// On what.
        device: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device could not be written.
    #[error("cannot write {what} on {device}: {source}; check the disk (dmesg)")]
    Write {
        /// What of it.
        what: &'static str,
        /// On what.
        device: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device gave back other bytes than were written to it.
    #[error(
        "{device} does not keep what is written to it: {what} was read back different; replace the disk or card"
    )]
    ReadBack {
        /// What of it.
        what: &'static str,
        /// On what.
        device: PathBuf,
    },
    /// The restart did not happen.
    #[error("cannot restart the device by {command:?}: {why}; restart it by hand")]
    Reboot {
        /// The command's words.
        command: Vec<String>,
        /// Why not.
        why: String,
    },
}

impl BootError {
    /// The stable code, as `docs/os-updates.md` lists them.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Probe { .. } => "os_probe_failed",
            Self::RootMismatch { .. } => "os_root_mismatch",
            Self::SlotActive { .. } => "os_slot_active",
            Self::SlotInvalid { .. } => "os_slot_invalid",
            Self::TrialsUsed { .. } => "os_trials_used",
            Self::Arm { .. } => "os_arm",
            Self::NotTrial { .. } => "os_not_trial",
            Self::Read { .. } => "os_read",
            Self::Write { .. } => "os_write",
            Self::ReadBack { .. } => "os_readback",
            Self::Reboot { .. } => "os_reboot",
        }
    }
}
