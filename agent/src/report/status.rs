//! `status.json` in the run folder: what `copal-agent status` prints.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use copal_protocol::{
    documents::{AgentReport, HostReport, LockState, Progress, Reason, RunningService},
    ids::{AppId, DeviceId, Name, Sha256Hex},
    telemetry::{Budget, Sheds},
};
use serde::{Deserialize, Serialize};

use super::build::{About, Heard};
use crate::state::tolerant;

/// The agent's status at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Process id of the agent that wrote it.
    pub pid: u32,
    /// Unix seconds by the device's clock.
    pub at: u64,
    /// The agent's version.
    pub agent_version: String,
    /// Absent before enrolment.
    pub device_id: Option<DeviceId>,
    /// The fleet.
    pub fleet_id: copal_protocol::ids::FleetId,
    /// The cloud answered the last call.
    pub online: bool,
    /// Why not.
    pub offline: Option<Reason>,
    /// Trusted root: version.
    pub root_version: u64,
    /// Trusted root: fingerprint (payload hash).
    pub root_sha256: Sha256Hex,
    /// Whether the fleet's lock holds here.
    pub lock: LockState,
    /// (assign_epoch, seq) accepted.
    pub accepted: (u64, u64),
    /// (assign_epoch, seq) whose whole content runs and is committed.
    pub applied: Option<(u64, u64)>,
    /// The cloud vouched for the accepted assignment since the start.
    pub fresh: bool,
    /// Everything that should run runs and is committed.
    pub on_target: bool,
    /// Why it is not on target.
    pub reason: Option<Reason>,
    /// How far downloads and trials are.
    pub progress: Option<Progress>,
    /// By app.
    pub apps: BTreeMap<AppId, AppLine>,
    /// The operating system's slots and update; absent where it is not Copal's to update.
    #[serde(default)]
    pub host: Option<HostReport>,
    /// The agent's own update.
    #[serde(default)]
    pub agent: AgentReport,
    /// State files that were lost.
    pub lost: Vec<String>,
    /// How many bytes the channel to the cloud may take in a month, and took; absent where that is not bounded.
    #[serde(default)]
    pub budget: Option<Budget>,
}

/// An app in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppLine {
    /// Committed release, by payload hash.
    pub committed: Option<Sha256Hex>,
    /// Release it should run.
    pub target: Option<Sha256Hex>,
    /// By service.
    pub services: BTreeMap<Name, RunningService>,
    /// Why it is not on target.
    pub reason: Option<Reason>,
}

/// Writes the file whole or not at all, where it says something else than `before`, which is what this process last wrote. For root
/// only: log lines may tell things.
pub(super) fn write(
    path: &Path,
    about: &About,
    heard: &Heard,
    now: u64,
    before: &mut Option<Status>,
) -> io::Result<()> {
    let Heard { status, os, agent, condition, budget, .. } = heard;
    let accepted = (condition.mark.assign_epoch, condition.mark.seq);
    let reason = heard.reason();
    let applied = heard.whole();
    let value = Status {
        pid: std::process::id(),
        at: now,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        device_id: condition.device_id,
        fleet_id: about.fleet_id,
        online: condition.online,
        offline: condition.offline.clone(),
        root_version: condition.root_version,
        root_sha256: condition.root_sha256,
        lock: condition.lock,
        accepted,
        applied,
        fresh: condition.fresh,
        on_target: reason.is_none() && condition.mark.sha256.is_some() && applied == Some(accepted),
        reason,
        progress: heard.progress(),
        apps: status
            .apps
            .iter()
            .map(|(id, app)| {
                let line = AppLine {
                    committed: app.committed.map(|c| c.1),
                    target: app.target.map(|t| t.1),
                    services: app.running.clone(),
                    reason: app.reason.clone(),
                };
                (*id, line)
            })
            .collect(),
        host: os.host.clone(),
        agent: agent.report.clone(),
        lost: condition.lost.clone(),
        budget: *budget,
    };
    if before.as_ref().is_some_and(|before| Status { at: now, ..before.clone() } == value) {
        return Ok(());
    }
    *before = None;
    let temp = path.with_extension("json.tmp");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    io::Write::write_all(&mut file, &serde_json::to_vec_pretty(&value)?)?;
    fs::rename(temp, path)?;
    *before = Some(value);
    Ok(())
}

/// Reads the file; `None` where no agent wrote one since the boot.
///
/// # Errors
/// The system's, and a file that is no status.
pub fn read(path: &Path) -> io::Result<Option<Status>> {
    match fs::read(path) {
        // The agent that wrote it may be newer than this program: it updates itself.
        Ok(bytes) => Ok(Some(tolerant::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl Status {
    /// For people.
    #[must_use]
    pub fn to_text(&self, alive: bool) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(out, "{name:<10} {value}");
        };
        let said = |r: &Reason| format!("{}: {}", r.code, r.message);
        if !alive {
            line("agent", "not running; this is what it last said");
        }
        line("device", &self.device_id.map_or_else(|| "not enrolled yet".to_owned(), |id| id.to_string()));
        line("fleet", &self.fleet_id.to_string());
        let locked = if self.lock == LockState::Locked { ", locked" } else { "" };
        line("root", &format!("version {}{locked}, fingerprint {}", self.root_version, self.root_sha256));
        match &self.offline {
            _ if self.online => line("cloud", "connected"),
            Some(reason) => line("cloud", &said(reason)),
            None => line("cloud", "not reached yet"),
        }
        match (&self.reason, self.on_target) {
            (Some(reason), _) => line("target", &said(reason)),
            (None, true) => line("target", "reached"),
            (None, false) => line("target", "on the way"),
        }
        for lost in &self.lost {
            line("lost", lost);
        }
        if let Some(host) = &self.host {
            line("os", &format!("{} on {}", host.version, host.backend));
            if let Some(reason) = &host.reason {
                line("", &said(reason));
            }
            for (name, slot) in &host.slots {
                let state = serde_json::to_value(slot.state).ok();
                let state = state.as_ref().and_then(|v| v.as_str()).unwrap_or("?").to_owned();
                let runs = if slot.booted { ", runs" } else { "" };
                let version =
                    if slot.version.is_empty() { String::new() } else { format!(" {}", slot.version) };
                line("", &format!("slot {name}{version:<18} {state}{runs}"));
            }
        }
        if let Some(Budget { max_bytes_month, used, sheds, no_channel }) = &self.budget {
            let left_out = match sheds {
                _ if *no_channel => "; too small for a channel: it asks every few hours".to_owned(),
                Sheds::Polls => "; no channel for now: it asks every few hours".to_owned(),
                Sheds::Nothing => String::new(),
                sheds => format!("; left out: {}", sheds.as_str()),
            };
            let share = u128::from(*used) * 100 / u128::from((*max_bytes_month).max(1));
            line("budget", &format!("{share} % of {max_bytes_month} bytes a month{left_out}"));
        }
        if let Some(reason) = &self.agent.reason {
            line("agent", &said(reason));
        }
        for (id, app) in &self.apps {
            let short = |h: Option<Sha256Hex>| {
                h.map_or_else(|| "none".to_owned(), |h| h.to_string()[..12].to_owned())
            };
            line("app", &format!("{id}  committed {}  target {}", short(app.committed), short(app.target)));
            for (name, service) in &app.services {
                let state = serde_json::to_value(service.state).ok();
                let state = state.as_ref().and_then(|v| v.as_str()).unwrap_or("?");
                let exit = service.exit_code.map(|c| format!(" (exit code {c})")).unwrap_or_default();
                let restarts = if service.restarts > 0 {
                    format!(", {} restarts", service.restarts)
                } else {
                    String::new()
                };
                line("", &format!("{name:<20} {state}{exit}{restarts}"));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::{testing::OwnerKeys, verify::AssignmentMark};

    use super::*;
    use crate::{apply::status::AgentStatus, os::OsStatus, selfupdate::SelfStatus, target::Condition};

    #[test]
    fn the_file_is_written_when_it_says_something_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let about = About::this_system(OwnerKeys::fixed().fleet_id);
        let mut heard = Heard {
            status: AgentStatus::default(),
            os: OsStatus::default(),
            agent: SelfStatus::default(),
            condition: Condition {
                device_id: None,
                root_version: 1,
                root_sha256: Sha256Hex::of(b"root"),
                lock: LockState::Open,
                mark: AssignmentMark::default(),
                online: true,
                offline: None,
                refused: None,
                refused_apps: BTreeMap::new(),
                refused_hosts: BTreeMap::new(),
                fresh: true,
                offline_allowed: false,
                lost: Vec::new(),
            },
            budget: None,
            health: None,
        };
        let mut before = None;
        let mut at = |heard: &Heard, now| {
            write(&path, &about, heard, now, &mut before).unwrap();
            read(&path).unwrap().unwrap().at
        };
        assert_eq!(at(&heard, 10), 10);
        heard.health = Some(copal_protocol::diagnosis::HealthReport::default());
        assert_eq!(at(&heard, 20), 10, "a round of checks is not part of it");
        heard.condition.online = false;
        assert_eq!(at(&heard, 30), 30);
    }
}
