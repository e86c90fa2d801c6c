//! Brings a binary into the state folder: bounded, resumed, hashed, durable.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use copal_protocol::{ids::Sha256Hex, verify::Code};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{FOLDER, place};
use crate::identity::{Session, SessionError};

/// No agent is larger.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// Space that is left free for what runs.
const SPARE: u64 = 16 << 20;

/// Why a binary is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The cloud or the way to it.
    #[error("fetching the agent: {0}")]
    Session(#[from] SessionError),
    /// The disk.
    #[error("keeping the agent at {path}: {source}")]
    Disk { path: PathBuf, source: io::Error },
    /// The bytes are others than the signed ones.
    #[error("the cloud served {found} where the signed release names {wanted}: nothing was kept")]
    Corrupt { wanted: Sha256Hex, found: String },
    /// No room.
    #[error("the agent needs {needed} bytes and {free} are free at {path}: make room there")]
    NoSpace { needed: u64, free: u64, path: PathBuf },
}

impl FetchError {
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Session(e) => e.code(),
            Self::Disk { .. } => "agent_write",
            Self::Corrupt { .. } => "agent_corrupt",
            Self::NoSpace { .. } => Code::NoSpace.as_str(),
        }
    }
}

/// What is wanted, and where.
pub(super) struct Fetch<'a> {
    pub(super) session: &'a Session,
    pub(super) state_dir: &'a Path,
    pub(super) file: Sha256Hex,
    pub(super) size: u64,
}

impl Fetch<'_> {
    /// Makes the file be there, executable and on the disk; `tell` hears of the bytes had.
    pub(super) async fn bring(&self, tell: impl Fn(u64)) -> Result<(), FetchError> {
        let folder = self.state_dir.join(FOLDER);
        let whole = place(self.state_dir, self.file);
        let part = folder.join(format!("{}.part", self.file));
        let disk = |source| FetchError::Disk { path: part.clone(), source };
        match tokio::fs::create_dir(&folder).await {
            Ok(()) => tokio::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))
                .await
                .map_err(disk)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(disk(e)),
        }
        if hash_of(&whole).await.is_ok_and(|(found, _)| found == self.file) {
            return Ok(());
        }
        remove_other_parts(&folder, &part).await;
        self.check_space(&folder)?;
        let (hash, had) = self.download(&part, &tell).await?;
        if hash != self.file || had != self.size {
            // Kept, it would be taken for a beginning again.
            tokio::fs::remove_file(&part).await.map_err(disk)?;
            return Err(FetchError::Corrupt { wanted: self.file, found: format!("{hash} ({had} bytes)") });
        }
        tokio::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o700)).await.map_err(disk)?;
        tokio::fs::File::open(&part).await.map_err(disk)?.sync_all().await.map_err(disk)?;
        tokio::fs::rename(&part, &whole).await.map_err(disk)?;
        tokio::fs::File::open(&folder).await.map_err(disk)?.sync_all().await.map_err(disk)
    }

    fn check_space(&self, folder: &Path) -> Result<(), FetchError> {
        let Ok(stat) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
        #[allow(clippy::useless_conversion, reason = "32 bits wide on some of our targets")]
        let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
        let needed = self.size + SPARE;
        if free < needed {
            return Err(FetchError::NoSpace { needed, free, path: folder.to_owned() });
        }
        Ok(())
    }

    /// Goes on where an interrupted download stopped.
    async fn download(&self, part: &Path, tell: &impl Fn(u64)) -> Result<(Sha256Hex, u64), FetchError> {
        let disk = |source| FetchError::Disk { path: part.to_owned(), source };
        let had = tokio::fs::metadata(part).await.map_or(0, |m| m.len());
        let from = if had < self.size { had } else { 0 };
        let path = format!("/device/v1/blobs/{}", self.file);
        let mut blob = self.session.blob(&path, from).await?;
        let mut file = tokio::fs::OpenOptions::new();
        let mut file = file.create(true).append(true).mode(0o600).open(part).await.map_err(disk)?;
        let mut at = blob.at();
        file.set_len(at).await.map_err(disk)?;
        while at <= self.size {
            let Some(bytes) = blob.chunk().await.map_err(SessionError::from)? else { break };
            at += bytes.len() as u64;
            if at > self.size {
                break;
            }
            file.write_all(&bytes).await.map_err(disk)?;
            tell(at);
        }
        file.flush().await.map_err(disk)?;
        drop(file);
        let (hash, _) = hash_of(part).await.map_err(disk)?;
        Ok((hash, at))
    }
}

/// What was begun of another agent would never be finished.
async fn remove_other_parts(folder: &Path, ours: &Path) {
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let path = entry.path();
        if path != ours && path.extension().is_some_and(|e| e == "part") {
            let _ = tokio::fs::remove_file(path).await;
        }
    }
}

/// Hash and bytes of a file.
pub(super) async fn hash_of(path: &Path) -> io::Result<(Sha256Hex, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        match file.read(&mut buffer).await? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    let text = hex::encode(hash.finalize());
    Ok((text.parse().expect("64 hex digits are a SHA-256"), bytes))
}
