//! Why a state file could not be kept or read.

use std::{io, path::PathBuf};

/// What went wrong, on which file, and what to do. What runs goes on in every case.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk is full.
    #[error("cannot {act} {path}: the disk is full; free some space on it")]
    Full {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The disk is mounted read-only, often after the kernel found it damaged.
    #[error(
        "cannot {act} {path}: the file system is read-only; check the disk (dmesg), then remount it writable"
    )]
    ReadOnly {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// Another failure of the system.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Both copies are damaged.
    #[error(
        "{path}: both copies are damaged ({why}) and were set aside as .bad files; the device keeps running what it runs. {next}"
    )]
    Lost {
        /// The name of the file.
        path: PathBuf,
        /// What was found.
        why: String,
        /// What the person can do.
        next: &'static str,
    },
    /// A newer agent wrote it.
    #[error(
        "{path} was written by a newer agent (format {found}, this one knows {known}): install that agent again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// The bytes are intact, but not what this agent writes.
    #[error("{path} is intact but not understood: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another agent holds the folder.
    #[error("{path} is in use by another copal-agent: stop it, or give this one another --state-dir")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
}

impl StateError {
    /// Sorts a failure of the system.
    #[must_use]
    pub fn io(act: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { act, path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { act, path },
            _ => Self::Io { act, path, source },
        }
    }

    /// The stable code reported to the cloud.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "E_STATE_FULL",
            Self::ReadOnly { .. } => "E_STATE_READ_ONLY",
            Self::Io { .. } => "E_STATE_IO",
            Self::Lost { .. } => "E_STATE_LOST",
            Self::Newer { .. } | Self::Content { .. } => "E_STATE_FORMAT",
            Self::Busy { .. } => "E_STATE_BUSY",
        }
    }
}
