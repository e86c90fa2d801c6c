//! Back-up and restore: one tar of everything the cloud keeps, with the SHA-256 of every file in it.
//!
//! In: a data folder (in use or not), or a back-up file. Out: a back-up file, or a data folder. Never here: settings,
//! logs of builds, what only lives while the cloud runs.
//!
//! A back-up is consistent while the server runs: the database is copied first, in one transaction; every blob it
//! names is there already and never changes; a repository's refs are copied before its objects, so that none points
//! to what is missing.

mod restore;
mod write;

use copal_protocol::ids::Sha256Hex;
use serde::{Deserialize, Serialize};

pub use restore::restore;
pub use write::backup;

/// The last entry of the tar: what the others are.
const MANIFEST: &str = "manifest.json";
/// The version of the format.
const FORMAT: u32 = 1;

/// What a back-up holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// The server that made it.
    pub server: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Every file, in the order of the tar.
    pub files: Vec<File>,
}

/// One file of a back-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Below the data folder, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of its content.
    pub sha256: Sha256Hex,
    /// Unix permissions.
    pub mode: u32,
}

#[cfg(test)]
mod tests;
