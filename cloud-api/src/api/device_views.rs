//! Devices as people see them.

use std::collections::{BTreeMap, HashMap};

use copal_protocol::{
    documents::{self, Release},
    ids::{AppId, Name},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::fleets::Totals;
use crate::{
    app::{self, App},
    devices::{
        rows::{self, DeviceRow},
        standing::{self, Facts},
    },
    error::Result,
    releases,
    store::fleets::FleetRow,
};

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Device {
    /// Its id, for ever: 32 hex digits.
    pub device_id: String,
    /// The slug of its fleet.
    pub fleet: String,
    /// What people call it.
    pub name: String,
    /// `pending`, `preauthorised`, `accepted`, `rejected` or `revoked`.
    pub state: String,
    /// Two holders of its key were seen; accepting the device settles it.
    pub clone_suspected: bool,
    /// Whether it holds a connection or was heard within 90 s.
    pub online: bool,
    /// Unix seconds of the last contact.
    pub last_seen: Option<u64>,
    /// OCI architecture.
    pub arch: String,
    /// What it is.
    pub device_type: String,
    /// Its Ed25519 key, base64.
    pub public_key: String,
    /// Proof for the CLI that the key is that of the card it wrote.
    pub introduction_mac: Option<String>,
    /// Which introduction secret that proof is under.
    pub introduction_id: Option<String>,
    /// What people sort it by.
    pub tags: BTreeMap<String, String>,
    /// Of its newest report.
    pub agent_version: Option<String>,
    /// Of its newest report.
    pub os_version: Option<String>,
    /// The Root it trusts.
    pub root_version: Option<u64>,
    /// `open` or `locked`: whether the cloud can make it run code, by its own word.
    pub lock: Option<String>,
    /// The release it is pinned to.
    pub pinned_release: Option<String>,
    /// What it was given.
    pub target: Option<Target>,
    /// What runs and what should: app → service.
    pub running: BTreeMap<String, BTreeMap<String, Running>>,
    /// The release it falls back to.
    pub committed_release: Option<String>,
    /// Whether it runs exactly what it should.
    pub on_target: bool,
    /// Why it does not: the one most telling reason.
    pub reason: Option<Reason>,
    /// How far an update is.
    pub progress: Option<Progress>,
    /// Unix seconds of the newest report.
    pub reported_at: Option<u64>,
    /// Unix seconds.
    pub created_at: u64,
}

/// What a device was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Target {
    /// The release.
    pub release: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// With `epoch` the order of the assignment.
    pub seq: u64,
    /// From Root.
    pub epoch: u64,
}

/// A service on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Running {
    /// `absent`, `downloading`, `created`, `starting`, `running`, `healthy`, `unhealthy`, `restarting`, `completed` or `exited`.
    #[schema(value_type = String)]
    pub state: documents::ServiceState,
    /// The image its container was made from.
    pub config_digest: Option<String>,
    /// The image it should run; absent when the service should not be there.
    pub desired: Option<String>,
    /// How often the engine restarted it.
    pub restarts: u64,
    /// The engine's id of the container.
    pub container_id: Option<String>,
    /// Exit code of the last run, where it ended.
    pub exit_code: Option<i64>,
}

/// Why a device is not on target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reason {
    /// Stable.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// The release it speaks of.
    pub release: Option<String>,
    /// The service it speaks of.
    pub service: Option<String>,
    /// Exit code of that service.
    pub exit_code: Option<i64>,
    /// Its last lines.
    pub log_tail: Vec<String>,
}

impl From<documents::Reason> for Reason {
    fn from(reason: documents::Reason) -> Self {
        Self {
            code: reason.code,
            message: reason.message,
            release: reason.release.map(|r| r.to_string()),
            service: reason.service.map(|s| s.to_string()),
            exit_code: reason.exit_code,
            log_tail: reason.log_tail,
        }
    }
}

/// How far an update is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Progress {
    /// `downloading`, `applying` or `trial`.
    pub stage: String,
    /// Bytes had.
    pub done: u64,
    /// Bytes to have; 0 when not known.
    pub total: u64,
    /// Unix seconds at which the trial ends well if nothing fails.
    pub trial_ends: Option<u64>,
}

impl From<documents::Progress> for Progress {
    fn from(progress: documents::Progress) -> Self {
        Self {
            stage: progress.stage,
            done: progress.done,
            total: progress.total,
            trial_ends: progress.trial_ends,
        }
    }
}

/// What the devices of one fleet are looked at with.
#[derive(Debug)]
pub(crate) struct Viewer<'a> {
    app: &'a App,
    fleet: &'a FleetRow,
    now: u64,
    awaiting: Option<String>,
    /// Releases devices were given: version, and each service's image by platform.
    releases: HashMap<String, Option<Release>>,
}

impl<'a> Viewer<'a> {
    pub(crate) async fn new(app: &'a App, fleet: &'a FleetRow) -> Result<Self> {
        let awaiting = if fleet.pinned { None } else { awaiting(app, fleet).await? };
        Ok(Self { app, fleet, now: app::now(), awaiting, releases: HashMap::new() })
    }

    /// Whether a device is on target, and why not.
    pub(crate) fn standing(&self, row: &DeviceRow) -> Result<standing::Standing> {
        Ok(standing::standing(&Facts {
            state: row.device_state()?,
            clone_suspected: row.clone_suspected,
            last_seen: self.last_seen(row)?,
            online: self.online(row)?,
            assigned: match (&row.assigned_release, row.assign_epoch, row.seq) {
                (Some(release), Some(epoch), Some(seq)) => {
                    Some((release.as_str(), epoch.unsigned_abs(), seq.unsigned_abs()))
                }
                _ => None,
            },
            reported: (row.report_epoch.unsigned_abs(), row.seq_applied.unsigned_abs()),
            committed: row.committed_release.as_deref(),
            said: rows::stored(row.reason.as_deref()),
            held_back: rows::stored(row.held_back.as_deref()),
            awaiting: self.awaiting.as_deref().filter(|_| row.pinned_release.is_none()),
        }))
    }

    /// Whether it holds a connection or was heard of late.
    pub(crate) fn online(&self, row: &DeviceRow) -> Result<bool> {
        Ok(self.app.devices.get(row.id()?).is_some_and(|entry| entry.is_online(self.now)))
    }

    fn last_seen(&self, row: &DeviceRow) -> Result<Option<u64>> {
        let memory = self.app.devices.get(row.id()?).map_or(0, |entry| entry.last_seen());
        Ok(Some(memory).filter(|seen| *seen > 0).or(row.last_seen.map(i64::unsigned_abs)))
    }

    /// The device as people see it.
    pub(crate) async fn view(&mut self, row: DeviceRow, tags: BTreeMap<String, String>) -> Result<Device> {
        let standing = self.standing(&row)?;
        let (online, last_seen, fleet) = (self.online(&row)?, self.last_seen(&row)?, self.fleet);
        let release = match &row.assigned_release {
            Some(id) => self.release(id).await?,
            None => None,
        };
        let target = row.seq.map(|seq| Target {
            release: row.assigned_release.clone(),
            version: release.map(|r| r.version.to_string()),
            seq: seq.unsigned_abs(),
            epoch: row.assign_epoch.unwrap_or(0).unsigned_abs(),
        });
        let running = running(fleet.app_id, &row, release);
        Ok(Device {
            online,
            last_seen,
            device_id: row.device_id,
            fleet: fleet.slug.clone(),
            name: row.name,
            state: row.state,
            clone_suspected: row.clone_suspected,
            arch: row.arch,
            device_type: row.device_type,
            public_key: row.public_key,
            introduction_mac: row.introduction_mac,
            introduction_id: row.introduction_id,
            tags,
            agent_version: row.agent_version,
            os_version: row.os_version,
            root_version: row.root_version.map(i64::unsigned_abs),
            lock: row.lock_state,
            pinned_release: row.pinned_release,
            target,
            running,
            committed_release: row.committed_release,
            on_target: standing.on_target,
            reason: standing.reason.map(Into::into),
            progress: rows::stored::<documents::Progress>(row.progress.as_deref()).map(Into::into),
            reported_at: row.report_at.map(i64::unsigned_abs),
            created_at: row.created_at.unsigned_abs(),
        })
    }

    async fn release(&mut self, id: &str) -> Result<Option<&Release>> {
        if !self.releases.contains_key(id) {
            let document = match releases::rows::by_id(self.app, id).await {
                Ok(row) => Some(row.document()?),
                Err(_) => None,
            };
            self.releases.insert(id.to_owned(), document);
        }
        Ok(self.releases.get(id).and_then(Option::as_ref))
    }
}

/// How the devices of a fleet fare.
pub(crate) async fn totals(app: &App, fleet: &FleetRow) -> Result<Totals> {
    let viewer = Viewer::new(app, fleet).await?;
    let found: Vec<DeviceRow> =
        sqlx::query_as(rows::select_device!(light "WHERE d.fleet_id = $1 AND d.state = 'accepted'"))
            .bind(fleet.fleet_id.to_string())
            .fetch_all(app.db.read())
            .await?;
    let mut totals = Totals { total: found.len() as u64, ..Totals::default() };
    for row in &found {
        let standing = viewer.standing(row)?;
        totals.online += u64::from(viewer.online(row)?);
        totals.on_target += u64::from(standing.on_target);
        totals.failed += u64::from(standing.failed());
    }
    Ok(totals)
}

/// Version of the newest release that waits for the owner, where it is newer than what the fleet should run.
async fn awaiting(app: &App, fleet: &FleetRow) -> Result<Option<String>> {
    Ok(sqlx::query_scalar(
        "SELECT version FROM releases WHERE fleet_id = $1 AND status = 'awaiting_signature'
            AND counter > COALESCE((SELECT counter FROM releases WHERE id = $2), 0)
         ORDER BY counter DESC LIMIT 1",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(&fleet.target_release)
    .fetch_optional(app.db.read())
    .await?)
}

/// What runs, with what should run beside it: services that should be there and are not are shown as absent.
fn running(
    app_id: AppId,
    row: &DeviceRow,
    release: Option<&Release>,
) -> BTreeMap<String, BTreeMap<String, Running>> {
    type Reported = BTreeMap<AppId, BTreeMap<Name, documents::RunningService>>;
    let reported: Reported = rows::stored(row.running.as_deref()).unwrap_or_default();
    let mut out: BTreeMap<String, BTreeMap<String, Running>> = BTreeMap::new();
    for (app, services) in reported {
        for (service, found) in services {
            out.entry(app.to_string()).or_default().insert(
                service.to_string(),
                Running {
                    state: found.state,
                    config_digest: found.config_digest.map(|d| d.to_string()),
                    desired: None,
                    restarts: found.restarts,
                    container_id: Some(found.container_id).filter(|id| !id.is_empty()),
                    exit_code: found.exit_code,
                },
            );
        }
    }
    for (service, of_release) in release.iter().flat_map(|r| &r.services) {
        let image =
            of_release.images.iter().find(|(platform, _)| platform.split('/').nth(1) == Some(&row.arch));
        let shown =
            out.entry(app_id.to_string()).or_default().entry(service.to_string()).or_insert(Running {
                state: documents::ServiceState::Absent,
                config_digest: None,
                desired: None,
                restarts: 0,
                container_id: None,
                exit_code: None,
            });
        shown.desired = image.map(|(_, image)| image.config_digest.to_string());
    }
    out
}
