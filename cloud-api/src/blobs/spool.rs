//! Bytes on their way to becoming a blob: hashed while they are written to a temporary file, within a bound.

use std::path::{Path, PathBuf};

use copal_protocol::ids::Digest;
use sha2::{Digest as _, Sha256};
use tokio::{fs, io::AsyncWriteExt as _};

/// Why bytes did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// They are not what was promised.
    #[error("the content has the digest {got}, not {expected}")]
    Digest {
        /// What was promised.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// There are too many.
    #[error("more than {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// The disk failed.
    #[error("writing to the disk: {0}")]
    Disk(#[from] std::io::Error),
    /// The blob store failed.
    #[error("the blob store: {0}")]
    Store(#[from] object_store::Error),
    /// The database failed.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
}

/// A file that is removed when nobody wants it any more.
#[derive(Debug)]
pub struct TempFile(PathBuf);

impl TempFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl TempFile {
    /// Names a new file in a folder; nothing is written yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn make(dir: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self(dir.join(crate::registry::random_id()?)))
    }
}

/// Bytes that are all there, on their way to becoming a blob.
#[derive(Debug)]
pub struct Gathered {
    /// Where they are.
    pub file: TempFile,
    /// What they are.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // Leftovers are swept at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An upload in progress. Dropping it forgets it.
#[derive(Debug)]
pub struct Spool {
    temp: TempFile,
    file: fs::File,
    hasher: Sha256,
    size: u64,
    max: u64,
}

impl Spool {
    /// Opens a temporary file in `dir` that takes at most `max` bytes.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub async fn begin(dir: &Path, max: u64) -> std::io::Result<Self> {
        let temp = TempFile::make(dir)?;
        let file = fs::OpenOptions::new().write(true).create_new(true).open(temp.path()).await?;
        Ok(Self { temp, file, hasher: Sha256::new(), size: 0, max })
    }

    /// Takes more bytes.
    ///
    /// # Errors
    /// Beyond the bound, or when the disk fails.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        if self.size + bytes.len() as u64 > self.max {
            return Err(SpoolError::TooLarge { max: self.max });
        }
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn finish(mut self) -> std::io::Result<Gathered> {
        self.file.flush().await?;
        self.file.sync_data().await?;
        // A request that was cut off in the middle of a write may have left more in the file than was hashed.
        if self.file.metadata().await?.len() != self.size {
            return Err(std::io::Error::other("the upload was cut off within a write; begin it again"));
        }
        let digest: [u8; 32] = self.hasher.finalize().into();
        Ok(Gathered { file: self.temp, digest: Digest::from_bytes(digest), size: self.size })
    }
}
