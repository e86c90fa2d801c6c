//! Fleets and their roots.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use copal_protocol::{
    documents::{ReleaseMode, Root},
    envelope::Envelope,
    ids::{AppId, FleetId},
    verify::{self, Verified},
};

use crate::{
    app::App,
    auth::Sees,
    error::{Problem, Result},
};

/// A fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetRow {
    /// Its id, for ever.
    pub fleet_id: FleetId,
    /// Its name in URLs.
    pub slug: String,
    /// What it runs.
    pub app_id: AppId,
    /// What its devices are.
    pub device_type: String,
    /// OCI architecture: `amd64`, `arm64` or `arm`.
    pub arch: String,
    /// Of the newest root; 0 before the first.
    pub root_version: u64,
    /// By the newest root.
    pub release_mode: ReleaseMode,
    /// What devices should run unless they are pinned.
    pub target_release: Option<String>,
    /// Whether a person chose `target_release`.
    pub pinned: bool,
    /// The operating system its devices should run unless they are pinned.
    pub target_os: Option<String>,
    /// The agent its devices should run unless they are pinned.
    pub target_agent: Option<String>,
    /// When its devices may reboot into another operating system; at any time where absent.
    pub reboot_window: Option<String>,
    /// Seconds between the health checks its devices make by themselves; as each device says where absent.
    pub check_every_s: Option<u32>,
    /// Unix seconds.
    pub created_at: u64,
}

#[derive(sqlx::FromRow)]
struct Raw {
    fleet_id: String,
    slug: String,
    app_id: String,
    device_type: String,
    arch: String,
    root_version: i64,
    release_mode: String,
    target_release: Option<String>,
    pinned: bool,
    target_os: Option<String>,
    target_agent: Option<String>,
    reboot_window: Option<String>,
    check_every_s: Option<i64>,
    created_at: i64,
}

impl TryFrom<Raw> for FleetRow {
    type Error = Problem;

    fn try_from(raw: Raw) -> Result<Self> {
        Ok(Self {
            fleet_id: raw.fleet_id.parse().map_err(Problem::internal)?,
            app_id: raw.app_id.parse().map_err(Problem::internal)?,
            release_mode: mode_from(&raw.release_mode)?,
            slug: raw.slug,
            device_type: raw.device_type,
            arch: raw.arch,
            root_version: raw.root_version.unsigned_abs(),
            target_release: raw.target_release,
            pinned: raw.pinned,
            target_os: raw.target_os,
            target_agent: raw.target_agent,
            reboot_window: raw.reboot_window,
            check_every_s: raw.check_every_s.map(u32::try_from).transpose().map_err(Problem::internal)?,
            created_at: raw.created_at.unsigned_abs(),
        })
    }
}

/// The word of a mode in the database and on the wire.
#[must_use]
pub const fn mode_word(mode: ReleaseMode) -> &'static str {
    match mode {
        ReleaseMode::Builder => "builder",
        ReleaseMode::Owner => "owner",
        ReleaseMode::Both => "both",
    }
}

fn mode_from(word: &str) -> Result<ReleaseMode> {
    match word {
        "builder" => Ok(ReleaseMode::Builder),
        "owner" => Ok(ReleaseMode::Owner),
        "both" => Ok(ReleaseMode::Both),
        other => Err(Problem::internal(format!("release_mode {other:?} in the database"))),
    }
}

/// A fleet by its name.
///
/// # Errors
/// 404 `not_found`.
pub async fn by_slug(app: &App, slug: &str) -> Result<FleetRow> {
    let raw: Option<Raw> = sqlx::query_as("SELECT * FROM fleets WHERE slug = $1")
        .bind(slug)
        .fetch_optional(app.db.read())
        .await?;
    raw.ok_or_else(|| Problem::not_found(format!("fleet {:?}", slug.chars().take(80).collect::<String>())))?
        .try_into()
}

/// A fleet by its id.
///
/// # Errors
/// 404 `not_found`.
pub async fn by_id(app: &App, fleet: FleetId) -> Result<FleetRow> {
    let raw: Option<Raw> = sqlx::query_as("SELECT * FROM fleets WHERE fleet_id = $1")
        .bind(fleet.to_string())
        .fetch_optional(app.db.read())
        .await?;
    raw.ok_or_else(|| Problem::not_found(format!("fleet {fleet}")))?.try_into()
}

/// Fleets in the order of their slugs, beginning after one: those that are seen.
///
/// # Errors
/// When the database fails.
pub async fn list(app: &App, sees: &Sees, after: &str, limit: i64) -> Result<Vec<FleetRow>> {
    let only = match sees {
        Sees::All => None,
        Sees::Only(these) => {
            let these: Vec<String> = these.iter().map(ToString::to_string).collect();
            Some(serde_json::to_string(&these).map_err(Problem::internal)?)
        }
    };
    let raws: Vec<Raw> = sqlx::query_as(
        "SELECT * FROM fleets WHERE slug > $1 AND ($2 IS NULL OR fleet_id IN (SELECT value FROM json_each($2))) \
         ORDER BY slug LIMIT $3",
    )
    .bind(after)
    .bind(only)
    .bind(limit)
    .fetch_all(app.db.read())
    .await?;
    raws.into_iter().map(TryInto::try_into).collect()
}

/// The newest root of each fleet, parsed and verified once.
#[derive(Debug, Default)]
pub struct Roots(RwLock<HashMap<FleetId, Arc<Verified<Root>>>>);

impl Roots {
    fn get(&self, fleet: FleetId) -> Option<Arc<Verified<Root>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&fleet).cloned()
    }

    /// The version of a fleet's newest root, where it was asked for before.
    pub(crate) fn version(&self, fleet: FleetId) -> Option<u64> {
        self.get(fleet).map(|root| root.version)
    }

    /// Takes a newer root, after it was committed; an older one is passed over.
    pub fn put(&self, fleet: FleetId, root: Arc<Verified<Root>>) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if map.get(&fleet).is_none_or(|have| have.version < root.version) {
            map.insert(fleet, root);
        }
    }

    /// Forgets a fleet's.
    pub fn forget(&self, fleet: FleetId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&fleet);
    }
}

/// The newest root of a fleet; `None` before the first was uploaded.
///
/// # Errors
/// When the database fails or holds something else.
pub async fn latest_root(app: &App, fleet: FleetId) -> Result<Option<Arc<Verified<Root>>>> {
    if let Some(root) = app.roots.get(fleet) {
        return Ok(Some(root));
    }
    let bytes: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT envelope FROM roots WHERE fleet_id = $1 ORDER BY version DESC LIMIT 1")
            .bind(fleet.to_string())
            .fetch_optional(app.db.read())
            .await?;
    let Some(bytes) = bytes else { return Ok(None) };
    // Its place in the chain was checked when it was uploaded; that it satisfies itself is checked again here.
    let root = Envelope::parse::<Root>(&bytes)
        .and_then(|envelope| verify::first_root(&envelope, fleet))
        .map_err(|e| Problem::internal(format!("the stored root of fleet {fleet}: {e}")))?;
    let root = Arc::new(root);
    app.roots.put(fleet, root.clone());
    Ok(Some(root))
}

/// The envelope of one version of a fleet's root.
///
/// # Errors
/// When the database fails.
pub async fn root_envelope(app: &App, fleet: FleetId, version: u64) -> Result<Option<Vec<u8>>> {
    let Ok(version) = i64::try_from(version) else { return Ok(None) };
    Ok(sqlx::query_scalar("SELECT envelope FROM roots WHERE fleet_id = $1 AND version = $2")
        .bind(fleet.to_string())
        .bind(version)
        .fetch_optional(app.db.read())
        .await?)
}

#[cfg(test)]
impl FleetRow {
    /// A fleet for tests.
    pub(crate) fn example(slug: &str, n: u8) -> Self {
        Self {
            fleet_id: FleetId::from_bytes([n; 16]),
            slug: slug.to_owned(),
            app_id: AppId::from_bytes([n; 16]),
            device_type: "generic-amd64".to_owned(),
            arch: "amd64".to_owned(),
            root_version: 0,
            release_mode: ReleaseMode::Builder,
            target_release: None,
            pinned: false,
            target_os: None,
            target_agent: None,
            reboot_window: None,
            check_every_s: None,
            created_at: 0,
        }
    }
}
