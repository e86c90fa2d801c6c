//! What the tests of operating system updates stand on: a machine in QEMU, the disk it leaves behind, a log of every
//! write it made, and a real cloud it reaches through a link that can be cut.
//!
//! In: what `tests/setup.sh os` and `images/os/build.sh` made in `target/os`, and the binaries of this workspace.
//! Out: handles that clean up when dropped. Never here: shortcuts into the agent; what a device says is asked of the
//! cloud, and what a disk holds is read from the disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure here is the test's failure")]
#![allow(missing_docs, reason = "test support")]

pub mod board;
pub mod check;
pub mod disk;
pub mod engine;
pub mod images;
pub mod journal;
pub mod link;
pub mod machine;
pub mod replay;
pub mod scenario;
pub mod shuttle;
pub mod state;
pub mod world;

use std::path::PathBuf;

/// The repository's root.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Where `images/os/build.sh` puts things for the machine with U-Boot.
pub fn built(name: &str) -> PathBuf {
    board::Board::Uboot.built(name)
}
