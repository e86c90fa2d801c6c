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
        advice::advice,
        rows::{self, DeviceRow},
        standing::{self, Assigned, Facts, HostFacts},
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
    /// What its channel goes by: `socket`, or `exchange` (long polling: no logs, terminals or live metrics); absent without one.
    pub channel: Option<&'static str>,
    /// By when it is heard again, by its own word, Unix seconds: it has no connection because it spares its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_poll_by: Option<u64>,
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
    /// The operating system, where its slots are known or one was assigned.
    pub os: Option<Os>,
    /// The agent's own update, where it updates itself or was to.
    pub agent: Option<Agent>,
    /// What it told it has: interfaces, clock, kernel, boot, budget (docs/telemetry.md); `told_at` is when. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub facts: Option<serde_json::Value>,
    /// The worst verdict its health checks last found: `ok`, `unknown`, `warning` or `failed`; absent before the first round.
    pub health: Option<String>,
    /// When that was, Unix seconds.
    pub health_at: Option<u64>,
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

/// The operating system of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Os {
    /// What chooses the slot: `uboot`, `grub` or `tryboot`; absent where the device does not manage its operating system.
    pub backend: Option<String>,
    /// Version that runs.
    pub version: Option<String>,
    /// Release that runs; absent where the factory's does.
    pub release: Option<String>,
    /// Its slots, `a` and `b`.
    pub slots: BTreeMap<String, Slot>,
    /// What it was given.
    pub target: Option<HostTarget>,
    /// The release it is pinned to.
    pub pinned: Option<String>,
    /// Why it is not on its target.
    pub reason: Option<Reason>,
    /// How far the update is.
    pub progress: Option<Progress>,
    /// The release that was undone last; not tried again until the target changes or a person asks.
    pub failed: Option<String>,
}

/// A slot of the operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Slot {
    /// `committed`, `ready`, `trial`, `installing`, `empty` or `bad`.
    #[schema(value_type = String)]
    pub state: documents::SlotState,
    /// Whether the kernel that runs came from it.
    pub booted: bool,
    /// Release in it, where known.
    pub release: Option<String>,
    /// Version in it, where known.
    pub version: Option<String>,
}

/// The agent's own update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Agent {
    /// Release that runs; absent where the installed one does.
    pub release: Option<String>,
    /// What it was given.
    pub target: Option<HostTarget>,
    /// The release it is pinned to.
    pub pinned: Option<String>,
    /// Why it is not on its target.
    pub reason: Option<Reason>,
    /// How far the update is.
    pub progress: Option<Progress>,
    /// The release that was undone last.
    pub failed: Option<String>,
}

/// An operating system or agent a device was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct HostTarget {
    /// The release.
    pub release: String,
    /// Its version.
    pub version: Option<String>,
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
    /// What a person can do about it, where there is something.
    pub next: Option<String>,
}

impl From<documents::Reason> for Reason {
    fn from(reason: documents::Reason) -> Self {
        Self {
            next: advice(&reason.code).map(str::to_owned),
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
    /// `downloading`, `applying` or `trial`; of the operating system `os_downloading`, `os_verifying`, `os_waiting` or
    /// `os_trial`; of the agent `agent_downloading` or `agent_trial`.
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

impl From<documents::SlotReport> for Slot {
    fn from(slot: documents::SlotReport) -> Self {
        Self {
            state: slot.state,
            booted: slot.booted,
            release: slot.release.map(|r| r.to_string()),
            version: Some(slot.version).filter(|v| !v.is_empty()),
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
            sparing: self.next_poll_by(row)?.is_some(),
            assigned: match (row.assign_epoch, row.seq) {
                (Some(epoch), Some(seq)) => Some(Assigned {
                    release: row.assigned_release.as_deref(),
                    epoch: epoch.unsigned_abs(),
                    seq: seq.unsigned_abs(),
                }),
                _ => None,
            },
            host: [
                HostFacts {
                    assigned: row.os_id.as_deref(),
                    running: row.running_os.as_deref(),
                    said: rows::stored::<documents::HostReport>(row.host_report.as_deref())
                        .and_then(|h| h.reason),
                    held_back: rows::stored(row.held_back_os.as_deref()),
                },
                HostFacts {
                    assigned: row.agent_id.as_deref(),
                    running: row.running_agent.as_deref(),
                    said: rows::stored::<documents::AgentReport>(row.agent_report.as_deref())
                        .and_then(|a| a.reason),
                    held_back: rows::stored(row.held_back_agent.as_deref()),
                },
            ],
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

    /// Until when a device that spares its bytes is heard again.
    pub(crate) fn next_poll_by(&self, row: &DeviceRow) -> Result<Option<u64>> {
        Ok(self.app.devices.get(row.id()?).and_then(|entry| entry.expected(self.now)))
    }

    /// When it looks.
    pub(crate) const fn now(&self) -> u64 {
        self.now
    }

    /// Unix seconds of the last contact.
    pub(crate) fn last_seen(&self, row: &DeviceRow) -> Result<Option<u64>> {
        let memory = self.app.devices.get(row.id()?).map_or(0, |entry| entry.last_seen());
        Ok(Some(memory).filter(|seen| *seen > 0).or(row.last_seen.map(i64::unsigned_abs)))
    }

    /// The device as people see it.
    pub(crate) async fn view(&mut self, row: DeviceRow, tags: BTreeMap<String, String>) -> Result<Device> {
        let standing = self.standing(&row)?;
        let (online, last_seen, fleet) = (self.online(&row)?, self.last_seen(&row)?, self.fleet);
        let next_poll_by = self.next_poll_by(&row)?;
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
        let channel = self.app.channels.kind(row.id()?);
        let (os, agent) = (self.os(&row).await?, self.agent(&row).await?);
        Ok(Device {
            os,
            agent,
            online,
            channel,
            next_poll_by,
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
            facts: None,
            health: row.health,
            health_at: row.health_at.map(i64::unsigned_abs),
            reported_at: row.report_at.map(i64::unsigned_abs),
            created_at: row.created_at.unsigned_abs(),
        })
    }

    async fn os(&mut self, row: &DeviceRow) -> Result<Option<Os>> {
        let host: Option<documents::HostReport> = rows::stored(row.host_report.as_deref());
        let held_back: Option<documents::Reason> = rows::stored(row.held_back_os.as_deref());
        if host.is_none() && row.os_id.is_none() && held_back.is_none() {
            return Ok(None);
        }
        let mut os = Os {
            target: self.host_target(row.os_id.as_deref()).await?,
            pinned: row.pinned_os.clone(),
            ..Os::default()
        };
        if let Some(host) = host {
            os.backend = Some(host.backend);
            os.version = Some(host.version);
            os.release = host.release.map(|r| r.to_string());
            os.slots = host.slots.into_iter().map(|(name, slot)| (name, slot.into())).collect();
            os.reason = host.reason.map(Into::into);
            os.progress = host.progress.map(Into::into);
            os.failed = host.failed.map(|r| r.to_string());
        }
        os.reason = held_back.map(Into::into).or(os.reason);
        Ok(Some(os))
    }

    async fn agent(&mut self, row: &DeviceRow) -> Result<Option<Agent>> {
        let report: Option<documents::AgentReport> = rows::stored(row.agent_report.as_deref());
        let held_back: Option<documents::Reason> = rows::stored(row.held_back_agent.as_deref());
        if report.is_none() && row.agent_id.is_none() && held_back.is_none() {
            return Ok(None);
        }
        let report = report.unwrap_or_default();
        Ok(Some(Agent {
            release: report.release.map(|r| r.to_string()),
            target: self.host_target(row.agent_id.as_deref()).await?,
            pinned: row.pinned_agent.clone(),
            reason: held_back.or(report.reason).map(Into::into),
            progress: report.progress.map(Into::into),
            failed: report.failed.map(|r| r.to_string()),
        }))
    }

    async fn host_target(&mut self, id: Option<&str>) -> Result<Option<HostTarget>> {
        let Some(id) = id else { return Ok(None) };
        let version = self.release(id).await?.map(|r| r.version.to_string());
        Ok(Some(HostTarget { release: id.to_owned(), version }))
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
