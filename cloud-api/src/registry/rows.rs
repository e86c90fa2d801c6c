//! The registry's SQL.

use copal_protocol::ids::{Digest, FleetId};

use super::Manifest;
use crate::{
    app::{App, now},
    store::Tx,
};

/// A stored manifest.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct ManifestRow {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) body: Vec<u8>,
}

pub(super) async fn manifest(app: &App, repo: &str, digest: &Digest) -> sqlx::Result<Option<ManifestRow>> {
    sqlx::query_as("SELECT digest, media_type, body FROM manifests WHERE repo = $1 AND digest = $2")
        .bind(repo)
        .bind(digest.to_string())
        .fetch_optional(app.db.read())
        .await
}

pub(super) async fn manifest_by_tag(app: &App, repo: &str, tag: &str) -> sqlx::Result<Option<ManifestRow>> {
    sqlx::query_as(
        "SELECT m.digest, m.media_type, m.body FROM manifests m
         JOIN image_tags t ON t.repo = m.repo AND t.digest = m.digest WHERE t.repo = $1 AND t.tag = $2",
    )
    .bind(repo)
    .bind(tag)
    .fetch_optional(app.db.read())
    .await
}

pub(super) async fn referrers(app: &App, repo: &str, subject: &Digest) -> sqlx::Result<Vec<ManifestRow>> {
    sqlx::query_as(
        "SELECT digest, media_type, body FROM manifests WHERE repo = $1 AND subject = $2 ORDER BY digest LIMIT 500",
    )
    .bind(repo)
    .bind(subject.to_string())
    .fetch_all(app.db.read())
    .await
}

pub(super) async fn tags(app: &App, repo: &str, after: &str, limit: i64) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("SELECT tag FROM image_tags WHERE repo = $1 AND tag > $2 ORDER BY tag LIMIT $3")
        .bind(repo)
        .bind(after)
        .bind(limit)
        .fetch_all(app.db.read())
        .await
}

pub(super) async fn repo_exists(app: &App, repo: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM repo_blobs WHERE repo = $1) OR EXISTS (SELECT 1 FROM manifests WHERE repo = $1)",
    )
    .bind(repo)
    .fetch_one(app.db.read())
    .await
}

pub(super) async fn put_manifest(
    tx: &mut Tx,
    repo: &str,
    digest: &Digest,
    media_type: &str,
    manifest: &Manifest,
    body: &[u8],
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO manifests (repo, digest, media_type, subject, artifact_type, body, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (repo, digest) DO UPDATE SET created_at = excluded.created_at",
    )
    .bind(repo)
    .bind(digest.to_string())
    .bind(media_type)
    .bind(manifest.subject.map(|s| s.to_string()))
    .bind(&manifest.artifact_type)
    .bind(body)
    .bind(now().cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn put_tag(tx: &mut Tx, repo: &str, tag: &str, digest: &Digest) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO image_tags (repo, tag, digest, updated_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (repo, tag) DO UPDATE SET digest = excluded.digest, updated_at = excluded.updated_at",
    )
    .bind(repo)
    .bind(tag)
    .bind(digest.to_string())
    .bind(now().cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Whether a release names it in this repository; then it cannot be deleted there. What others have of it elsewhere is
/// theirs, and not told.
pub(super) async fn in_a_release(tx: &mut Tx, repo: &str, digest: &Digest) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM release_blobs WHERE repo = $1 AND digest = $2)")
        .bind(repo)
        .bind(digest.to_string())
        .fetch_one(&mut **tx)
        .await
}

/// Whether a release of this fleet names it in this repository; only then its devices may pull it.
pub(super) async fn for_fleet(app: &App, fleet: FleetId, repo: &str, digest: &Digest) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM release_blobs b JOIN releases r ON r.id = b.release_id
         WHERE r.fleet_id = $1 AND b.repo = $2 AND b.digest = $3)",
    )
    .bind(fleet.to_string())
    .bind(repo)
    .bind(digest.to_string())
    .fetch_one(app.db.read())
    .await
}
