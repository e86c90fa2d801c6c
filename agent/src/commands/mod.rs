//! The commands of `copal-agent`, one file each.
//!
//! In: parsed flags. Out: what is printed, and an exit code: 0 good, 1 refused or failed, 2 wrong use, 78 settings that
//! cannot be used.

pub mod diagnose;
pub mod os;
pub mod plan;
pub mod prepare;
mod rooms;
pub mod run;
pub mod status;
pub mod support_bundle;
pub mod terminal;
pub mod verify;
