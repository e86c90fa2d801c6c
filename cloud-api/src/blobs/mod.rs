//! Bytes by digest: image configs and layers, and what host releases are made of.
//!
//! In: streams, hashed on their way into a temporary file and stored only when the digest is the promised one.
//! Out: whole blobs or ranges of them. Never here: who may read what (`registry` decides), and deleting anything a
//! release can still reach ([`gc`](fn@gc) marks before it sweeps).
//!
//! A blob is an object at `sha256/<2 hex>/<64 hex>` and a row in `blobs`; the row is written after the object, so a
//! row never promises bytes that are not there. `repo_blobs` says which repositories know it.

use std::path::PathBuf;

use bytes::Bytes;
use copal_protocol::ids::Digest;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStoreExt as _, path::Path as ObjectPath};
use tokio::sync::RwLock;

use crate::app::{App, now};

mod gc;
pub(crate) mod range;
mod spool;

#[cfg(test)]
pub(crate) use gc::collect_all;
pub use gc::{GcReport, gc};
pub use spool::{Gathered, Spool, SpoolError, TempFile};

/// How long something unreferenced is kept, in seconds: an upload or build in progress may be about to use it.
pub const GRACE_S: u64 = 24 * 3600;

/// Keeps writers of blobs and the garbage collector apart: writers share it, the collector takes it alone for each
/// blob it removes, so that a blob stored again in the same moment is not lost.
#[derive(Debug, Default)]
pub struct Gate(RwLock<()>);

/// Where a blob's bytes are.
fn object(digest: &Digest) -> ObjectPath {
    let hex = digest.hex();
    ObjectPath::from(format!("sha256/{}/{hex}", &hex[..2]))
}

/// Where uploads are gathered until their digest is known; emptied at start.
#[must_use]
pub fn uploads_dir(app: &App) -> PathBuf {
    app.config.data.join("uploads")
}

/// Removes what an earlier run left half uploaded.
///
/// # Errors
/// When the folder cannot be made or emptied.
pub fn prepare(app: &App) -> std::io::Result<()> {
    let dir = uploads_dir(app);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(dir)
}

/// The size of a blob, wherever it is known.
///
/// # Errors
/// When the database does not answer.
pub async fn size(app: &App, digest: &Digest) -> sqlx::Result<Option<u64>> {
    let size: Option<i64> = sqlx::query_scalar("SELECT size FROM blobs WHERE digest = $1")
        .bind(digest.to_string())
        .fetch_optional(app.db.read())
        .await?;
    Ok(size.and_then(|s| u64::try_from(s).ok()))
}

/// The size of a blob this repository knows.
///
/// # Errors
/// When the database does not answer.
pub async fn size_in(app: &App, repo: &str, digest: &Digest) -> sqlx::Result<Option<u64>> {
    let size: Option<i64> = sqlx::query_scalar(
        "SELECT b.size FROM blobs b JOIN repo_blobs r ON r.digest = b.digest WHERE r.repo = $1 AND b.digest = $2",
    )
    .bind(repo)
    .bind(digest.to_string())
    .fetch_optional(app.db.read())
    .await?;
    Ok(size.and_then(|s| u64::try_from(s).ok()))
}

/// Makes a repository know a blob that is already stored, or says `false` when it is not. Renews the blob's grace, so
/// that it stays until the manifest that will name it has arrived.
///
/// # Errors
/// When the database does not answer.
pub async fn link(app: &App, repo: &str, digest: &Digest) -> sqlx::Result<bool> {
    let _shared = app.blob_gate.0.read().await;
    let mut tx = app.db.write().await?;
    let there: Option<i64> = sqlx::query_scalar("SELECT size FROM blobs WHERE digest = $1")
        .bind(digest.to_string())
        .fetch_optional(&mut *tx)
        .await?;
    if there.is_some() {
        insert_link(&mut tx, repo, digest).await?;
        tx.commit().await?;
    }
    Ok(there.is_some())
}

async fn insert_link(tx: &mut crate::store::Tx, repo: &str, digest: &Digest) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO repo_blobs (repo, digest, created_at) VALUES ($1, $2, $3)
         ON CONFLICT (repo, digest) DO UPDATE SET created_at = excluded.created_at",
    )
    .bind(repo)
    .bind(digest.to_string())
    .bind(now().cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Stores what was gathered, if it has the digest it should have, and links it into a repository.
///
/// # Errors
/// [`SpoolError::Digest`] when it has another; otherwise when disk, store or database fail.
pub async fn store(app: &App, repo: &str, gathered: Gathered, expected: &Digest) -> Result<u64, SpoolError> {
    let Gathered { file, digest: got, size } = gathered;
    if got != *expected {
        return Err(SpoolError::Digest { expected: *expected, got });
    }
    put(app, repo, file.path(), expected, size).await?;
    Ok(size)
}

/// Stores a file whose digest and size were checked, and links it into a repository. The file stays.
///
/// # Errors
/// When disk, store or database fail.
pub async fn put(
    app: &App,
    repo: &str,
    file: &std::path::Path,
    digest: &Digest,
    size: u64,
) -> Result<(), SpoolError> {
    let _shared = app.blob_gate.0.read().await;
    if self::size(app, digest).await?.is_none() {
        let mut reader =
            tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::open(file).await?, 256 << 10);
        let mut writer = object_store::WriteMultipart::new(app.blobs.put_multipart(&object(digest)).await?);
        while let Some(chunk) = reader.try_next().await? {
            writer.wait_for_capacity(4).await?;
            writer.put(chunk);
        }
        writer.finish().await?;
    }
    let mut tx = app.db.write().await?;
    sqlx::query(
        "INSERT INTO blobs (digest, size, created_at) VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING",
    )
    .bind(digest.to_string())
    .bind(size.cast_signed())
    .bind(now().cast_signed())
    .execute(&mut *tx)
    .await?;
    insert_link(&mut tx, repo, digest).await?;
    tx.commit().await?;
    Ok(())
}

/// Stores bytes that are already in memory.
///
/// # Errors
/// As [`store`].
pub async fn store_bytes(app: &App, repo: &str, bytes: &[u8]) -> Result<Digest, SpoolError> {
    let digest = Digest::of(bytes);
    if !link(app, repo, &digest).await? {
        let mut spool = Spool::begin(&uploads_dir(app), bytes.len() as u64).await?;
        spool.write(bytes).await?;
        store(app, repo, spool.finish().await?, &digest).await?;
    }
    Ok(digest)
}

/// A blob's bytes, or part of them (`start..end`, within its size).
///
/// # Errors
/// When the store does not have it or does not answer.
pub async fn read(
    app: &App,
    digest: &Digest,
    range: Option<std::ops::Range<u64>>,
) -> object_store::Result<BoxStream<'static, object_store::Result<Bytes>>> {
    let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
    Ok(app.blobs.get_opts(&object(digest), options).await?.into_stream().boxed())
}
