//! Releases in the database.

use std::sync::Arc;

use copal_protocol::{
    documents::{Release, Root},
    envelope::Envelope,
    ids::{AppId, FleetId, Sha256Hex},
    verify::{self, Platform, Purpose, ReleaseMarks, Verified},
};

use super::{Line, ReleaseStatus};
use crate::{
    app::{self, App},
    assignments::content::Candidate,
    error::{Problem, Result},
    store::Tx,
};

/// A release with everything but its build record.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct ReleaseRow {
    pub(crate) id: String,
    pub(crate) fleet_id: String,
    pub(crate) counter: i64,
    pub(crate) version: String,
    pub(crate) source: String,
    pub(crate) branch: String,
    pub(crate) status: String,
    pub(crate) note: String,
    pub(crate) envelope: Vec<u8>,
    pub(crate) build_id: Option<String>,
    pub(crate) size: i64,
    pub(crate) created_at: i64,
    pub(crate) draft: bool,
    pub(crate) line: String,
}

/// What [`ReleaseRow`] is read by.
macro_rules! select_release {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.fleet_id, r.counter, r.version, r.source, r.branch, r.status, r.note, r.envelope, r.build_id,
             r.size, r.created_at, r.draft, r.line FROM releases r ",
            $rest
        )
    };
}
pub(crate) use select_release;

impl ReleaseRow {
    /// Its status.
    pub(crate) fn status(&self) -> Result<ReleaseStatus> {
        ReleaseStatus::from_word(&self.status)
    }

    /// What it is a version of.
    pub(crate) fn line(&self) -> Result<Line> {
        Line::from_word(&self.line)
    }

    /// Its fleet.
    pub(crate) fn fleet(&self) -> Result<FleetId> {
        self.fleet_id.parse().map_err(Problem::internal)
    }

    /// Its envelope.
    pub(crate) fn envelope(&self) -> Result<Envelope> {
        Envelope::parse::<Release>(&self.envelope).map_err(Problem::internal)
    }

    /// Its document; what is in the database was checked before.
    pub(crate) fn document(&self) -> Result<Release> {
        serde_json::from_slice(self.envelope()?.payload()).map_err(Problem::internal)
    }
}

/// A published release, by its id.
pub(crate) async fn by_id(app: &App, id: &str) -> Result<ReleaseRow> {
    let row: Option<ReleaseRow> = sqlx::query_as(select_release!("WHERE r.id = $1 AND r.status <> 'built'"))
        .bind(id)
        .fetch_optional(app.db.read())
        .await?;
    row.ok_or_else(|| Problem::not_found("such release"))
}

/// A release, by its id, within a write.
pub(crate) async fn by_id_in(tx: &mut Tx, id: &str) -> Result<ReleaseRow> {
    let row: Option<ReleaseRow> =
        sqlx::query_as(select_release!("WHERE r.id = $1")).bind(id).fetch_optional(&mut **tx).await?;
    row.ok_or_else(|| Problem::not_found("such release"))
}

/// A release of Root's fleet as something that could be assigned, judged as a device would that trusts this Root.
/// `known` is its document where it was parsed before.
pub(crate) async fn candidate(
    tx: &mut Tx,
    root: &Verified<Root>,
    app_id: AppId,
    id: &str,
    known: Option<&Arc<Release>>,
) -> Result<Option<Candidate>> {
    let row: Option<(String, Vec<u8>)> =
        sqlx::query_as("SELECT status, envelope FROM releases WHERE id = $1 AND fleet_id = $2")
            .bind(id)
            .bind(root.fleet_id.to_string())
            .fetch_optional(&mut **tx)
            .await?;
    let Some((status, envelope)) = row else { return Ok(None) };
    let envelope = Envelope::parse::<Release>(&envelope).map_err(Problem::internal)?;
    let release = match known {
        Some(known) => Arc::clone(known),
        None => Arc::new(serde_json::from_slice::<Release>(envelope.payload()).map_err(Problem::internal)?),
    };
    let sha256: Sha256Hex = id.parse().map_err(Problem::internal)?;
    let refused = judge(root, app_id, &release, &envelope).err();
    Ok(Some(Candidate { sha256, status: ReleaseStatus::from_word(&status)?, release, refused }))
}

/// What a device of the right kind would say of a release, whatever its own history.
pub(super) fn judge(
    root: &Verified<Root>,
    app_id: AppId,
    release: &Release,
    envelope: &Envelope,
) -> Result<(), verify::Error> {
    let newest = semver::Version::new(1_000_000, 0, 0);
    let first = |set: &std::collections::BTreeSet<String>| set.first().cloned().unwrap_or_default();
    let platform = Platform {
        device_type: first(&release.compat.device_types),
        arch: first(&release.compat.arch),
        agent: newest.clone(),
        os: Some(newest),
    };
    verify::release(
        root,
        &Line::of(release).expected(app_id, envelope.payload_sha256()),
        &ReleaseMarks::default(),
        &platform,
        Purpose::Install { now: app::now() },
        envelope,
    )
    .map(drop)
}
