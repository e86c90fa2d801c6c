//! Uploads in the database.

use copal_protocol::ids::{Digest, FleetId};

use crate::{app::App, store::Tx};

/// An upload.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) digest: String,
    pub(super) size: i64,
}

pub(super) async fn by_id(app: &App, fleet: FleetId, id: &str) -> sqlx::Result<Option<Row>> {
    sqlx::query_as("SELECT id, digest, size FROM uploads WHERE id = $1 AND fleet_id = $2")
        .bind(id)
        .bind(fleet.to_string())
        .fetch_optional(app.db.read())
        .await
}

pub(super) async fn by_digest(tx: &mut Tx, fleet: FleetId, digest: &Digest) -> sqlx::Result<Option<Row>> {
    sqlx::query_as("SELECT id, digest, size FROM uploads WHERE fleet_id = $1 AND digest = $2")
        .bind(fleet.to_string())
        .bind(digest.to_string())
        .fetch_optional(&mut **tx)
        .await
}

pub(super) async fn exists(app: &App, id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM uploads WHERE id = $1)")
        .bind(id)
        .fetch_one(app.db.read())
        .await
}

pub(super) async fn insert(tx: &mut Tx, fleet: FleetId, row: &Row, now: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO uploads (id, fleet_id, digest, size, created_at, touched_at) VALUES ($1, $2, $3, $4, $5, $5)",
    )
    .bind(&row.id)
    .bind(fleet.to_string())
    .bind(&row.digest)
    .bind(row.size)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn touch(tx: &mut Tx, id: &str, now: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE uploads SET touched_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// How many uploads of a fleet no release names, and their bytes.
pub(super) async fn unnamed(tx: &mut Tx, fleet: FleetId, shelf: &str) -> sqlx::Result<(u64, u64)> {
    let (count, bytes): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COALESCE(SUM(u.size), 0) FROM uploads u WHERE u.fleet_id = $1
         AND NOT EXISTS (SELECT 1 FROM release_blobs r WHERE r.repo = $2 AND r.digest = u.digest)",
    )
    .bind(fleet.to_string())
    .bind(shelf)
    .fetch_one(&mut **tx)
    .await?;
    Ok((count.unsigned_abs(), bytes.unsigned_abs()))
}

pub(super) async fn expire(tx: &mut Tx, horizon: i64) -> sqlx::Result<u64> {
    let done =
        sqlx::query("DELETE FROM uploads WHERE touched_at < $1").bind(horizon).execute(&mut **tx).await?;
    Ok(done.rows_affected())
}
