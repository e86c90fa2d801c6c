//! Brings the images of a host release into the partitions of the slot that does not run.
//!
//! In: the payloads of a verified release, where their bytes can be fetched, the partitions, a journal.
//! Out: partitions that hold the images, read back from the medium and compared by SHA-256, but for the first 4 KiB of
//! each, the *head*, without which nothing boots it; [`finish`] writes the heads, last.
//! Never here: a write to the slot that runs (it is opened for reading), a boot flag, a byte that reaches the
//! decompressor before its hash was checked, a journal that claims what was not synced.
//!
//! ```text
//! index ─▶ compare ─▶ search ─▶ copy ─▶ fetch ─▶ check ─▶ read back ─▶ finish
//!          what the    the old   what    groups    chunks    all of it,    the head
//!          slot has    slot, by  was     still     against   from the
//!          already     hints     found   lacking   SHA-256   medium
//! ```
//! Blocks are written as they come and judged by the SHA-256 of their chunk afterwards: hints only say where to look. A
//! chunk that is wrong is fetched anew once. What a stopped installation wrote is found by comparing, so nothing is
//! downloaded or written twice; the journal only saves reading it again. Memory does not depend on the size of the image.

mod bits;
mod blobs;
mod journal;
mod payload;
mod search;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use blobs::{Blobs, FetchError, Ranged};
use copal_bundle::BLOCK;
use copal_protocol::{documents::HostPayload, ids::Sha256Hex};
pub use journal::{Journal, StateJournal};
use tokio_util::sync::CancellationToken;

use super::{
    boot::write_head,
    disk::{Access, Disk, Disks},
};

/// What to install.
#[derive(Debug, Clone)]
pub struct InstallPlan {
    /// The release's name: SHA-256 of its payload.
    pub release: Sha256Hex,
    /// Its payloads, in the order they are written.
    pub payloads: Vec<PayloadPlan>,
    /// A folder for the indexes, on the data partition. Made where it is missing.
    pub work: PathBuf,
    /// How long a bad network is borne.
    pub patience: Patience,
}

/// A payload and its partitions.
#[derive(Debug, Clone)]
pub struct PayloadPlan {
    /// Its name in the release.
    pub name: String,
    /// What it is.
    pub payload: HostPayload,
    /// The partition to write.
    pub target: PathBuf,
    /// The same partition of the slot that runs: searched for blocks, never written.
    pub old: Option<PathBuf>,
}

/// How long a bad network is borne before the installation gives up, to be tried again later.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The first wait after a failure; it doubles, up to 64 times this.
    pub base: Duration,
    /// Failures in a row, without a byte between.
    pub tries: u32,
    /// A stream that gives nothing for so long counts as cut.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), tries: 8, idle: Duration::from_secs(60) }
    }
}

/// What an installation is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Comparing the slot with the image, searching the old slot, copying.
    Preparing,
    /// Fetching what was not found.
    Downloading,
    /// Reading back what was written.
    Verifying,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Of which payload.
    pub payload: String,
    /// With what.
    pub stage: Stage,
    /// Bytes done of it.
    pub done: u64,
    /// Bytes of it.
    pub total: u64,
}

/// Told how far it is, now and then, from another thread.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Everything is in its place but the heads.
#[derive(Debug, Clone)]
pub struct Installed {
    /// What is withheld, in the order it is to be written.
    heads: Vec<Head>,
    /// What it took.
    pub stats: Stats,
}

#[derive(Clone)]
struct Head {
    target: PathBuf,
    bytes: Box<[u8; BLOCK]>,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head").field("target", &self.target).finish_non_exhaustive()
    }
}

/// What an installation took, over all payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes received, indexes included.
    pub downloaded: u64,
    /// Requests made.
    pub requests: u64,
    /// Bytes written to the slot.
    pub written: u64,
    /// Bytes the slot held already.
    pub kept: u64,
    /// Bytes found in the slot that runs.
    pub reused: u64,
}

/// Why it was not installed. The slot that runs is untouched, the other one not bootable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InstallError {
    /// The reason code.
    pub code: &'static str,
    /// What was tried, on what, and why it failed.
    pub what: String,
}

impl InstallError {
    pub(crate) fn new(code: &'static str, what: impl Into<String>) -> Self {
        Self { code, what: what.into() }
    }

    fn write(path: &Path, error: &io::Error) -> Self {
        Self::new("os_write", format!("could not write {}: {error}", path.display()))
    }

    fn read(path: &Path, error: &io::Error) -> Self {
        Self::new("os_read", format!("could not read {}: {error}", path.display()))
    }

    fn keep(what: &str, error: &io::Error) -> Self {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        let code = if full { "os_no_space" } else { "os_write" };
        Self::new(code, format!("could not keep {what} on the data partition: {error}"))
    }

    fn cancelled() -> Self {
        Self::new("os_cancelled", "the installation was stopped; what is written already will be used again")
    }
}

/// Installs every payload; see the module. Goes on where an earlier call stopped. Dropping the future stops it.
///
/// # Errors
/// [`InstallError`], with the slot not bootable.
pub async fn install(
    source: Arc<dyn Blobs>,
    plan: InstallPlan,
    disks: Arc<dyn Disks>,
    journal: Arc<dyn Journal>,
    progress: OnProgress,
    cancel: CancellationToken,
) -> Result<Installed, InstallError> {
    let cancel = cancel.child_token();
    let _stop_when_dropped = cancel.clone().drop_guard();
    let net = blobs::Fetcher::new(source, plan.patience, cancel, tokio::runtime::Handle::current());
    // Disks block; the fetcher comes back to the runtime for the network.
    let work = move || payload::all(net, &plan, &*disks, &*journal, &progress);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| InstallError::new("os_write", format!("the installation broke off: {e}")))?
}

/// Writes the withheld heads, the sector that makes each one last, and reads them back. The slot is bootable afterwards; nothing says yet that it should boot.
///
/// # Errors
/// `os_write`, `os_readback`.
pub fn finish(disks: &dyn Disks, installed: &Installed) -> Result<(), InstallError> {
    for head in &installed.heads {
        let path = &head.target;
        let disk = disks.open(path, Access::Write).map_err(|e| InstallError::write(path, &e))?;
        // A torn write must not leave a head that looks whole: the sector that bootloaders look for comes alone and last.
        write_head(&*disk, path, &head.bytes).map_err(|e| InstallError::new(e.code(), e.to_string()))?;
    }
    Ok(())
}

/// Removes what an installation kept for going on: the journal and the indexes. For when its release is no target any more.
///
/// # Errors
/// The system's.
pub fn forget(work: &Path, journal: &dyn Journal) -> io::Result<()> {
    journal.clear()?;
    tidy(work, &[])
}

/// Removes the indexes, whole and in part, that are none of `kept`: those of releases that failed or were given up.
///
/// # Errors
/// The system's.
pub fn tidy(work: &Path, kept: &[Sha256Hex]) -> io::Result<()> {
    let entries = match std::fs::read_dir(work) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
    for entry in entries {
        let path = entry?.path();
        let ours = path.extension().is_some_and(|e| e == "index" || e == "part");
        let needed = path.file_stem().is_some_and(|name| kept.iter().any(|kept| name == kept.as_str()));
        if ours && !needed {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn read_head(disk: &dyn Disk, path: &Path) -> Result<[u8; BLOCK], InstallError> {
    let mut head = [0; BLOCK];
    disk.read_at(0, &mut head).map_err(|e| InstallError::read(path, &e))?;
    Ok(head)
}
