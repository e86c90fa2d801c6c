//! Releases: what was built, who signed it, and whether it may run.
//!
//! In: what the builder made ([`NewRelease`]), signatures of owners, host releases signed by their publisher (`host`). Out: immutable signed Release documents with a
//! status. Never here: which device gets which release (`rollouts/`), images (`registry/`).
//!
//! ```text
//! prepare → built ──publish──→ draft ──finalise──→ awaiting_signature ──signatures──→ final ⇄ invalidated
//!             └─discard→ gone       └───────────────(mode builder)──────────────────↗
//! ```
//! A host release comes signed, and is final at once; withdrawn it is `invalidated`, with the reason as its note. [`Line`] says what a release is a version of.

mod change;
pub(crate) mod host;
mod index;
pub(crate) mod line;
mod make;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{Compat, ServiceRelease},
    envelope::Envelope,
    ids::{FleetId, Name},
    spec::{NetworkSpec, VolumeSpec},
};

pub use change::{add_signatures, finalise, publish, set_invalidated, set_note};
pub use host::create as create_host;
pub(crate) use host::set_withdrawn;
pub use line::Line;
pub use make::prepare;
pub(crate) use rows::candidate;

use crate::{
    app::App,
    bus::Event,
    error::{Problem, Result},
};

/// What the builder made, to become a release.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// The fleet it is for.
    pub fleet: FleetId,
    /// The git commit, or the SHA-256 of an uploaded context.
    pub source: String,
    /// The branch it came from; empty for an upload.
    pub branch: String,
    /// For people.
    pub note: String,
    /// It does not deploy by itself.
    pub draft: bool,
    /// The build it came from.
    pub build_id: Option<String>,
    /// Of a version tag; absent: the highest version with its patch number raised.
    pub version: Option<semver::Version>,
    /// The services, with their images.
    pub services: BTreeMap<Name, ServiceRelease>,
    /// Named volumes.
    pub volumes: BTreeMap<Name, VolumeSpec>,
    /// Networks.
    pub networks: BTreeMap<Name, NetworkSpec>,
    /// What the builder says it did, signed by it.
    pub build_record: Envelope,
    /// What it runs on.
    pub compat: Compat,
}

/// Where a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// Built, but the push it belongs to is not through yet.
    Built,
    /// Deploys only to devices named for it.
    Draft,
    /// Waits for the owner's signatures.
    AwaitingSignature,
    /// May run.
    Final,
    /// Taken back. Of an app: runs on where it runs, and goes nowhere else. Of a host release: see `rollouts::withdraw`.
    Invalidated,
}

impl ReleaseStatus {
    /// The word used in the database and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Draft => "draft",
            Self::AwaitingSignature => "awaiting_signature",
            Self::Final => "final",
            Self::Invalidated => "invalidated",
        }
    }

    /// The status a word of the database means.
    pub(crate) fn from_word(word: &str) -> Result<Self> {
        Ok(match word {
            "built" => Self::Built,
            "draft" => Self::Draft,
            "awaiting_signature" => Self::AwaitingSignature,
            "final" => Self::Final,
            "invalidated" => Self::Invalidated,
            other => return Err(Problem::internal(format!("release status {other:?} in the database"))),
        })
    }
}

/// The push failed after the build: a release still `built` is dropped.
///
/// # Errors
/// When the database fails.
pub async fn discard(app: &App, id: &str) -> Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query("DELETE FROM releases WHERE id = $1 AND status = 'built'").bind(id).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// A release whose push was neither published nor discarded, because the cloud stopped in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublished {
    /// The release.
    pub id: String,
    /// Its fleet.
    pub fleet_id: FleetId,
    /// Commit or context.
    pub source: String,
    /// Branch; empty for an upload.
    pub branch: String,
}

/// What is left to reconcile at start-up: publish those whose ref did move, discard the others.
///
/// # Errors
/// When the database fails.
pub async fn unpublished(app: &App) -> Result<Vec<Unpublished>> {
    let rows: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT id, fleet_id, source, branch FROM releases WHERE status = 'built' ORDER BY counter",
    )
    .fetch_all(app.db.read())
    .await?;
    rows.into_iter()
        .map(|(id, fleet_id, source, branch)| {
            Ok(Unpublished { id, fleet_id: fleet_id.parse().map_err(Problem::internal)?, source, branch })
        })
        .collect()
}

fn tell(app: &App, fleet: FleetId, id: &str) {
    app.bus.publish(Event::Release { fleet_id: fleet.to_string(), id: id.to_owned() });
}
