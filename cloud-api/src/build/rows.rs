//! Builds in the database.

use super::Request;
use crate::{
    app::{App, now_i64},
    bus::Event,
};

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for its turn.
    Queued,
    /// Is being built.
    Running,
    /// There is a release.
    Succeeded,
    /// There is none; `error` says why.
    Failed,
    /// Someone ended it.
    Cancelled,
}

impl Status {
    /// The word used in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// From the database; what is unknown there has failed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "succeeded" => Self::Succeeded,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
    }
}

/// A build's row.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct BuildRow {
    /// Its id.
    pub id: String,
    /// Its fleet.
    pub fleet_id: String,
    /// Commit, or SHA-256 of an upload.
    pub source: String,
    /// Branch or tag; empty for an upload.
    pub branch: String,
    /// `linux/arm64`.
    pub platform: String,
    /// [`super::Options::canonical`].
    pub options: String,
    /// For people.
    pub note: String,
    /// Whether the release stays a draft.
    pub draft: bool,
    /// [`Status`].
    pub status: String,
    /// Why it failed.
    pub error: Option<String>,
    /// What came of it.
    pub release_id: Option<String>,
    /// Who asked.
    pub pushed_by: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub started_at: Option<i64>,
    /// Unix seconds.
    pub finished_at: Option<i64>,
}

impl BuildRow {
    /// The commit, where it was one.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        (self.source.len() == 40).then_some(self.source.as_str())
    }
}

fn told(app: &App, fleet_id: &str, id: &str) {
    app.bus.publish(Event::Build { fleet_id: fleet_id.to_owned(), id: id.to_owned() });
}

pub(super) async fn insert(app: &App, id: &str, request: &Request) -> sqlx::Result<()> {
    let fleet_id = request.fleet.fleet_id.to_string();
    let mut tx = app.db.write().await?;
    sqlx::query(
        "INSERT INTO builds (id, fleet_id, source, branch, platform, options, note, draft, status, pushed_by, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $10)",
    )
    .bind(id)
    .bind(&fleet_id)
    .bind(&request.source)
    .bind(&request.branch)
    .bind(super::platform(&request.fleet))
    .bind(request.options.canonical())
    .bind(&request.note)
    .bind(request.options.draft)
    .bind(&request.pushed_by)
    .bind(now_i64())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    told(app, &fleet_id, id);
    Ok(())
}

pub(super) async fn started(app: &App, fleet_id: &str, id: &str) -> sqlx::Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE builds SET status = 'running', started_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now_i64())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    told(app, fleet_id, id);
    Ok(())
}

pub(super) async fn finished(
    app: &App,
    fleet_id: &str,
    id: &str,
    status: Status,
    error: Option<&str>,
    release: Option<&str>,
) -> sqlx::Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE builds SET status = $2, error = $3, release_id = $4, finished_at = $5 WHERE id = $1")
        .bind(id)
        .bind(status.as_str())
        .bind(error)
        .bind(release)
        .bind(now_i64())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    told(app, fleet_id, id);
    Ok(())
}

/// What a stop of the cloud cut off has failed.
pub(super) async fn interrupt(app: &App) -> sqlx::Result<u64> {
    let mut tx = app.db.write().await?;
    let count = sqlx::query(
        "UPDATE builds SET status = 'failed', finished_at = $1,
         error = 'interrupted: the cloud stopped while this was being built. Push again, or: copal build retry ' || id
         WHERE status IN ('queued', 'running')",
    )
    .bind(now_i64())
    .execute(&mut *tx)
    .await?
    .rows_affected();
    tx.commit().await?;
    Ok(count)
}

pub(crate) async fn get(app: &App, id: &str) -> sqlx::Result<Option<BuildRow>> {
    sqlx::query_as("SELECT * FROM builds WHERE id = $1").bind(id).fetch_optional(app.db.read()).await
}

/// Newest first; `before` is `(created_at, id)` of the last one seen.
pub(crate) async fn list(
    app: &App,
    fleet_id: &str,
    before: Option<(i64, String)>,
    limit: i64,
) -> sqlx::Result<Vec<BuildRow>> {
    let (at, id) = before.unwrap_or((i64::MAX, String::new()));
    sqlx::query_as(
        "SELECT * FROM builds WHERE fleet_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3))
         ORDER BY created_at DESC, id DESC LIMIT $4",
    )
    .bind(fleet_id)
    .bind(at)
    .bind(id)
    .bind(limit)
    .fetch_all(app.db.read())
    .await
}
