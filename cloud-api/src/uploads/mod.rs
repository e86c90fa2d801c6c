//! Uploads of large blobs, in pieces that may come over days: what host releases are made of.
//!
//! In: pieces of at most 16 MiB, each at the offset where the upload stands. Out: blobs the fleet knows. Never here:
//! what a blob is good for (`releases/`), who may ask (`api/`), and a piece in memory: bytes go to the disk as they come.
//!
//! 1. An upload is a row, and a file named after it. The length of the file is how far it is, so that a piece cut off in
//!    the middle counts for what arrived, and a server that was killed goes on where the file ends.
//! 2. The hash is carried along in memory. After a restart it is made again from the file.
//! 3. With the last byte the digest is compared: right, it becomes a blob of the fleet; wrong, the file goes and the
//!    upload stands at 0 again.
//!
//! A fleet knows its blobs under [`shelf`], a repository no registry route can name. What no release names within the
//! life of its upload is collected as every other blob is.

mod part;
mod rows;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use copal_protocol::ids::{Digest, FleetId, Sha256Hex};
use futures_util::StreamExt as _;
use http::StatusCode;
use serde_json::json;

use crate::{
    app::{self, App},
    audit,
    auth::{self, Caller},
    blobs,
    error::{Problem, Result},
    store::fleets::FleetRow,
};
use part::Part;

/// The most bytes of one piece.
pub const MAX_PIECE: u64 = 16 << 20;
/// The most bytes of one blob: an image of 64 GiB that does not compress, with its framing.
pub const MAX_BLOB: u64 = 65 << 30;
/// The most uploads of a fleet that no release names yet.
pub const MAX_UPLOADS: u64 = 32;
/// The most bytes these may come to.
pub const MAX_BYTES: u64 = 160 << 30;
/// An upload nobody continued for so long is forgotten, seconds.
pub const LIFETIME_S: u64 = 7 * 24 * 3600;
/// What uploads leave free on the disk: the database has to go on.
const SPARE: u64 = 256 << 20;
/// How long a client may pause within a piece.
const STALL: Duration = Duration::from_secs(60);

/// Uploads being written to, by id.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Part>>>>);

impl Memory {
    fn part(&self, id: &str) -> Arc<tokio::sync::Mutex<Part>> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Hashes of uploads nobody writes to can be made again; there is no need to keep them all.
        if map.len() >= 64 {
            map.retain(|_, part| Arc::strong_count(part) > 1);
        }
        map.entry(id.to_owned()).or_default().clone()
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub id: String,
    /// What the blob is.
    pub sha256: Sha256Hex,
    /// Bytes that are here.
    pub offset: u64,
    /// Bytes of the blob.
    pub size: u64,
    /// Whether the fleet has the blob.
    pub done: bool,
}

/// The repository under which a fleet knows what it uploaded. Its name is none the registry would take.
#[must_use]
pub fn shelf(fleet: FleetId) -> String {
    format!("@{fleet}")
}

/// Where uploads are kept until they are whole; unlike [`blobs::uploads_dir`] it outlives the process.
fn dir(app: &App) -> PathBuf {
    app.config.data.join("parts")
}

/// Begins an upload, or finds the one of this blob that was begun before.
///
/// # Errors
/// `upload_too_large`, `upload_size`, `too_many_uploads`, `disk_full`.
pub async fn begin(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    sha256: Sha256Hex,
    size: u64,
) -> Result<Upload> {
    if size > MAX_BLOB {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "upload_too_large",
            format!("The blob would have {size} bytes; at most {MAX_BLOB} are taken."),
        ));
    }
    if size == 0 {
        return Err(Problem::invalid("upload_size", "A blob has at least one byte."));
    }
    let digest = Digest::from_bytes(*sha256.as_bytes());
    let known = blobs::size_in(app, &shelf(fleet.fleet_id), &digest).await?;
    let now = app::now_i64();
    let mut tx = app.db.write().await?;
    let row = match rows::by_digest(&mut tx, fleet.fleet_id, &digest).await? {
        Some(row) => {
            rows::touch(&mut tx, &row.id, now).await?;
            tx.commit().await?;
            row
        }
        None => {
            let (count, bytes) = rows::unnamed(&mut tx, fleet.fleet_id, &shelf(fleet.fleet_id)).await?;
            if known.is_none() && (count >= MAX_UPLOADS || bytes.saturating_add(size) > MAX_BYTES) {
                return Err(Problem::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "too_many_uploads",
                    format!(
                        "{count} uploads of {bytes} bytes wait for a release that names them; a fleet may have {MAX_UPLOADS} of \
                         {MAX_BYTES} bytes. Release them, or wait a week: what nobody continues goes by itself."
                    ),
                ));
            }
            let row =
                rows::Row { id: auth::random_id()?, digest: digest.to_string(), size: size.cast_signed() };
            rows::insert(&mut tx, fleet.fleet_id, &row, now).await?;
            let detail = json!({"upload": row.id, "sha256": sha256, "size": size});
            audit::record(&mut tx, caller, "upload.begin", &format!("fleet:{}", fleet.slug), detail).await?;
            tx.commit().await?;
            row
        }
    };
    if row.size.unsigned_abs() != size {
        return Err(Problem::invalid(
            "upload_size",
            format!(
                "The blob {sha256} was begun with {} bytes, not {size}; one of the two is wrong.",
                row.size
            ),
        ));
    }
    let upload = view(app, &row, known.is_some()).await?;
    if !upload.done {
        // Once in the file, once in the store.
        let wanted = (size - upload.offset.min(size)).saturating_add(size).saturating_add(SPARE);
        room(app, wanted)?;
    }
    Ok(upload)
}

/// Refuses where the disk has less than this left.
fn room(app: &App, wanted: u64) -> Result<()> {
    let free = nix::sys::statvfs::statvfs(&app.config.data)
        .map(|s| s.blocks_available().saturating_mul(s.fragment_size()))
        .map_err(|e| Problem::internal(format!("asking {} for its space: {e}", app.config.data.display())))?;
    if free >= wanted {
        return Ok(());
    }
    Err(disk_full(&format!("{wanted} bytes are needed, {free} are free")))
}

fn disk_full(why: &str) -> Problem {
    Problem::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "disk_full",
        format!(
            "The server's disk has no room for the blob: {why}. What arrived is kept; go on when there is room (`copal-cloud gc` frees what nothing needs)."
        ),
    )
}

/// An upload of this fleet.
///
/// # Errors
/// `not_found`, for another fleet's too.
pub async fn show(app: &App, fleet: &FleetRow, id: &str) -> Result<Upload> {
    let row = find(app, fleet, id).await?;
    let digest: Digest = row.digest.parse().map_err(Problem::internal)?;
    let done = blobs::size_in(app, &shelf(fleet.fleet_id), &digest).await?.is_some();
    view(app, &row, done).await
}

async fn find(app: &App, fleet: &FleetRow, id: &str) -> Result<rows::Row> {
    let what = || format!("upload {:?}", id.chars().take(80).collect::<String>());
    rows::by_id(app, fleet.fleet_id, id).await?.ok_or_else(|| Problem::not_found(what()))
}

async fn view(app: &App, row: &rows::Row, done: bool) -> Result<Upload> {
    let digest: Digest = row.digest.parse().map_err(Problem::internal)?;
    let size = row.size.unsigned_abs();
    let offset =
        if done { size } else { part::length(&dir(app).join(&row.id)).await.map_err(Problem::internal)? };
    Ok(Upload { id: row.id.clone(), sha256: Sha256Hex::from_bytes(*digest.as_bytes()), offset, size, done })
}

/// Takes a piece that begins at `offset`. What arrived counts, even where the piece was cut off.
///
/// # Errors
/// `not_found`, `upload_offset`, `upload_busy`, `piece_too_large`, `upload_too_long`, `body_cut`, `digest_mismatch`,
/// `disk_full`.
pub async fn append(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    id: &str,
    offset: u64,
    body: Body,
) -> Result<Upload> {
    let row = find(app, fleet, id).await?;
    let size = row.size.unsigned_abs();
    let digest: Digest = row.digest.parse().map_err(Problem::internal)?;
    let mut part = app.uploads.part(id).try_lock_owned().map_err(|_| {
        Problem::conflict(
            "upload_busy",
            "Another request is writing to this upload; wait until it is through.",
        )
        .retry_after(2)
    })?;
    if blobs::size_in(app, &shelf(fleet.fleet_id), &digest).await?.is_some() {
        // The answer to the last piece was lost, or it came by another way.
        return view(app, &row, true).await;
    }
    let path = dir(app).join(id);
    tokio::fs::create_dir_all(dir(app)).await.map_err(Problem::internal)?;
    let mut file = part.open(&path).await.map_err(failed)?;
    let have = file.length();
    if offset != have {
        return Err(Problem::conflict(
            "upload_offset",
            format!("The upload has {have} bytes, the piece begins at {offset}; go on at {have}."),
        ));
    }
    let mut tx = app.db.write().await?;
    rows::touch(&mut tx, id, app::now_i64()).await?;
    tx.commit().await?;

    let end = fill(&mut file, body, size).await;
    let have = file.close().await.map_err(failed)?;
    end?;
    if have == size {
        let got = part.digest(&path).await.map_err(failed)?;
        if got != digest {
            part.clear(&path).await.map_err(failed)?;
            return Err(Problem::invalid(
                "digest_mismatch",
                format!(
                    "All {size} bytes are here and hash to {got}, not to {digest}. The upload begins anew at 0."
                ),
            ));
        }
        finish(app, caller, fleet, id, &path, digest, size).await?;
        app.uploads.forget(id);
        return view(app, &row, true).await;
    }
    view(app, &row, false).await
}

/// Takes a body to the disk, within the bounds of a piece and of the blob.
async fn fill(file: &mut part::Open<'_>, body: Body, size: u64) -> Result<()> {
    let mut stream = body.into_data_stream();
    let mut taken = 0;
    loop {
        let next = tokio::time::timeout(STALL, stream.next()).await.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_cut",
                "No byte came for a minute; go on where it stands.",
            )
        })?;
        let piece = match next {
            None => return Ok(()),
            Some(Ok(piece)) => piece,
            Some(Err(_)) => {
                return Err(Problem::bad_request(
                    "body_cut",
                    "The piece was cut off; go on where it stands.",
                ));
            }
        };
        taken += piece.len() as u64;
        if taken > MAX_PIECE {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "piece_too_large",
                format!("A piece has at most {MAX_PIECE} bytes."),
            ));
        }
        if file.length() + piece.len() as u64 > size {
            return Err(Problem::invalid(
                "upload_too_long",
                format!("The blob was announced with {size} bytes, and more came."),
            ));
        }
        file.write(&piece).await.map_err(failed)?;
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn failed(error: std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => disk_full(&error.to_string()),
        _ => Problem::internal(format!("writing an upload: {error}")),
    }
}

/// The bytes are whole and right: the fleet has the blob from here on.
async fn finish(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    id: &str,
    path: &std::path::Path,
    digest: Digest,
    size: u64,
) -> Result<()> {
    blobs::put(app, &shelf(fleet.fleet_id), path, &digest, size).await.map_err(|error| {
        if full(&error) { disk_full(&error.to_string()) } else { Problem::internal(error) }
    })?;
    tokio::fs::remove_file(path).await.map_err(failed)?;
    let mut tx = app.db.write().await?;
    let detail = json!({"upload": id, "sha256": digest.hex(), "size": size});
    audit::record(&mut tx, caller, "upload.finish", &format!("fleet:{}", fleet.slug), detail).await?;
    tx.commit().await?;
    Ok(())
}

/// Whether a full disk is at the bottom of it.
fn full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source()).any(|e| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
    })
}

/// Forgets uploads nobody continued for [`LIFETIME_S`], and files that belong to none. Answers how many uploads went.
///
/// # Errors
/// When database or disk fail.
pub async fn expire(app: &App, now: u64) -> anyhow::Result<u64> {
    let horizon = now.saturating_sub(LIFETIME_S).cast_signed();
    let mut tx = app.db.write().await?;
    let gone = rows::expire(&mut tx, horizon).await?;
    tx.commit().await?;
    let mut entries = match tokio::fs::read_dir(dir(app)).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(gone),
        Err(error) => return Err(error.into()),
    };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !rows::exists(app, &name).await? {
            app.uploads.forget(&name);
            tokio::fs::remove_file(entry.path()).await?;
        }
    }
    Ok(gone)
}
