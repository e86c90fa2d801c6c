//! What ended with the cloud that held it, and what is too old to be kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use copal_protocol::channel::Closed;
use serde_json::json;

use super::{
    recording::path,
    rows::{self, Ended},
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
};

/// Recordings are kept for so long, seconds.
const RECORDINGS_S: i64 = 90 * 86_400;
/// Bytes of all recordings of a fleet; the oldest go first, and none that is younger than a setting says: else whoever is seen
/// in one could push it out by opening more terminals.
pub(super) const RECORDINGS_BYTES: i64 = 4 << 30;
/// Rows are kept for so long, seconds; the audit log keeps the act for ever.
const ROWS_S: i64 = 365 * 86_400;

/// Ends what an earlier run of the cloud left open: its devices ended it with their channels.
///
/// # Errors
/// When the database fails.
pub async fn reconcile(app: &App) -> anyhow::Result<()> {
    let left: Vec<(String, String)> =
        sqlx::query_as("SELECT id, device_id FROM terminal_sessions WHERE ended_at IS NULL")
            .fetch_all(app.db.read())
            .await?;
    for (id, device) in left {
        let bytes = fs::metadata(path(&app.config, &id)).ok().map(|meta| meta.len());
        let recording = match bytes {
            Some(bytes) => {
                let content = fs::read(path(&app.config, &id))?;
                Some((bytes, copal_protocol::ids::Sha256Hex::of(&content).to_string()))
            }
            None => None,
        };
        let closed = Closed::new(0, "cloud_restarted", "The cloud ended while the session was open.");
        let end = Ended { closed, bytes_in: 0, bytes_out: 0, recording };
        let mut tx = app.db.write().await?;
        if rows::ended(&mut tx, &id, &end, app::now_i64()).await? {
            let detail = json!({"session": id, "code": end.closed.code, "recording_sha256": end.recording.map(|r| r.1)});
            audit::note(&mut tx, &Caller::system(), "terminal.end", &format!("device:{device}"), detail)
                .await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Removes recordings and sessions that are too old, sessions that nobody came for, and files without a session.
///
/// # Errors
/// When the database or the folder does not answer.
pub async fn expire(app: &App, now: u64) -> anyhow::Result<()> {
    let now = now.cast_signed();
    let mut tx = app.db.write().await?;
    sqlx::query("DELETE FROM terminal_sessions WHERE ended_at < $1")
        .bind(now - ROWS_S)
        .execute(&mut *tx)
        .await?;
    let kept: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "SELECT s.id, d.fleet_id, s.recording_bytes, s.ended_at
         FROM terminal_sessions s JOIN devices d ON d.device_id = s.device_id
         WHERE s.recording_bytes IS NOT NULL AND s.ended_at IS NOT NULL ORDER BY s.number DESC",
    )
    .fetch_all(&mut *tx)
    .await?;
    let stays = now - app.config.recordings_stay_s.cast_signed();
    let mut bytes = BTreeMap::<String, i64>::new();
    for (id, fleet, size, ended) in kept {
        let bytes = bytes.entry(fleet).or_default();
        *bytes += size;
        if (*bytes > RECORDINGS_BYTES && ended < stays) || ended < now - RECORDINGS_S {
            sqlx::query("UPDATE terminal_sessions SET recording_bytes = NULL WHERE id = $1")
                .bind(&id)
                .execute(&mut *tx)
                .await?;
        }
    }
    let named: BTreeSet<String> = sqlx::query_scalar(
        "SELECT id FROM terminal_sessions WHERE recording_bytes IS NOT NULL OR ended_at IS NULL",
    )
    .fetch_all(&mut *tx)
    .await?
    .into_iter()
    .collect();
    tx.commit().await?;
    // Rows first: a file without one is found here the next time.
    for entry in fs::read_dir(app.config.recordings())?.flatten() {
        let path = entry.path();
        let known = path.file_stem().and_then(|s| s.to_str()).is_some_and(|id| named.contains(id));
        if !known {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The recordings of sessions that have ended, as a snapshot of the database names them.
pub(crate) async fn recordings_of(db: &mut sqlx::SqliteConnection) -> sqlx::Result<Vec<String>> {
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'terminal_sessions')",
    )
    .fetch_one(&mut *db)
    .await?;
    if !known {
        return Ok(Vec::new());
    }
    sqlx::query_scalar(
        "SELECT id FROM terminal_sessions WHERE recording_bytes IS NOT NULL AND ended_at IS NOT NULL ORDER BY id",
    )
    .fetch_all(db)
    .await
}
