//! Releases: what was built, who signed it, and whether it may run.
//!
//! In: what the builder made ([`NewRelease`]), signatures of owners. Out: immutable signed Release documents with a
//! status. Never here: which device gets which release (`rollouts/`), images (`registry/`).
//!
//! ```text
//! prepare → built ──publish──→ draft ──final──→ awaiting_signature ──signatures──→ final ⇄ invalidated
//!             └─discard→ gone       └──────────────(mode builder)─────────────────↗
//! ```

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{Compat, ServiceRelease},
    envelope::Envelope,
    ids::{FleetId, Name},
    spec::{NetworkSpec, VolumeSpec},
};

use crate::{
    app::App,
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
    /// Of a version tag; absent: the last version with its patch number raised.
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
    /// Taken back: runs on where it runs, and goes nowhere else.
    Invalidated,
}

/// Makes the release document and stores it as `built`: policy-checked against the fleet's Root, numbered, and signed
/// by the builder where the fleet's mode allows it. Answers its id, the SHA-256 of its payload.
///
/// # Errors
/// `root_missing`, `root_expired`, `version_taken`, and the codes of policy and verification.
pub async fn prepare(app: &App, new: NewRelease) -> Result<String> {
    let _ = (app, new);
    Err(Problem::internal("releases are not written yet"))
}

/// The push is through: `built` becomes final, draft or awaiting_signature; a final one goes to a fleet that follows
/// the newest. Publishing again answers where it stands. Audit is the caller's part.
///
/// # Errors
/// `not_found`, or when the database fails.
pub async fn publish(app: &App, id: &str) -> Result<ReleaseStatus> {
    let _ = (app, id);
    Err(Problem::internal("releases are not written yet"))
}

/// The push failed after the build: a release still `built` is dropped.
///
/// # Errors
/// When the database fails.
pub async fn discard(app: &App, id: &str) -> Result<()> {
    let _ = (app, id);
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
    let _ = app;
    Ok(Vec::new())
}
