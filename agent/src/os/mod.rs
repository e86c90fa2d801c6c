//! The operating system's two slots: install into the one that does not run, try it, keep it or go back.
//!
//! In: the host release a verified document names, what the boot state and the kernel say, locks, a window for reboots.
//! Out: a slot written, read back and tried; a commit or the old slot; one reason where the device is not on target.
//! Never here: a write to the slot that runs; a boot flag moved before a read-back; a commit from anywhere but the trial
//! and before it is well; a container touched before the reboot.
//!
//! A device is one with two slots where its image says so: `/etc/copal/os.json` ([`config`]). Elsewhere this room idles.

pub mod boot;
pub mod config;
pub mod disk;
mod slot;

pub use config::OsConfig;
pub use slot::Slot;
