//! The file of an upload, and the hash of what is in it.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use copal_protocol::ids::Digest;
use sha2::{Digest as _, Sha256};
use tokio::{fs, io::AsyncWriteExt as _};

/// What is known of an upload's file besides itself.
#[derive(Debug, Default)]
pub(super) struct Part {
    hasher: Sha256,
    /// How many bytes `hasher` took. Where the file has another number, the hash is made again.
    hashed: u64,
}

/// A file being written to.
#[derive(Debug)]
pub(super) struct Open<'a> {
    part: &'a mut Part,
    file: fs::File,
    length: u64,
}

/// Bytes of a file; 0 where there is none.
pub(super) async fn length(path: &Path) -> std::io::Result<u64> {
    match fs::metadata(path).await {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

impl Part {
    /// Opens the file at its end, making it where there is none.
    pub(super) async fn open(&mut self, path: &Path) -> std::io::Result<Open<'_>> {
        let file = fs::OpenOptions::new().append(true).create(true).open(path).await?;
        let length = file.metadata().await?.len();
        if self.hashed != length {
            self.rehash(path).await?;
        }
        Ok(Open { part: self, file, length })
    }

    async fn rehash(&mut self, path: &Path) -> std::io::Result<()> {
        let path: PathBuf = path.to_owned();
        *self = tokio::task::spawn_blocking(move || {
            let mut part = Self::default();
            let mut file = std::fs::File::open(path)?;
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    return std::io::Result::Ok(part);
                }
                part.hasher.update(&buffer[..n]);
                part.hashed += n as u64;
            }
        })
        .await
        .map_err(std::io::Error::other)??;
        Ok(())
    }

    /// The digest of the whole file.
    pub(super) async fn digest(&mut self, path: &Path) -> std::io::Result<Digest> {
        if self.hashed != length(path).await? {
            self.rehash(path).await?;
        }
        let digest: [u8; 32] = self.hasher.clone().finalize().into();
        Ok(Digest::from_bytes(digest))
    }

    /// Throws everything away.
    pub(super) async fn clear(&mut self, path: &Path) -> std::io::Result<()> {
        *self = Self::default();
        fs::remove_file(path).await
    }
}

impl Open<'_> {
    /// Bytes it has.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Takes more bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes).await?;
        self.length += bytes.len() as u64;
        self.part.hasher.update(bytes);
        self.part.hashed = self.length;
        Ok(())
    }

    /// Brings to the disk what was written, and answers how long the file is now.
    pub(super) async fn close(mut self) -> std::io::Result<u64> {
        self.file.flush().await?;
        self.file.sync_data().await?;
        Ok(self.file.metadata().await?.len())
    }
}
