//! Report: what a device says of itself. Signed by the device, so that the cloud cannot make one up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document;
use crate::diagnosis::HealthReport;
use crate::ids::{AppId, DeviceId, Digest, FleetId, Name, Sha256Hex};

/// A device's state, whole each time; the newest (boot_id, report_counter) wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device.
    pub device_id: DeviceId,
    /// The kernel's boot id, 32 hex digits.
    pub boot_id: String,
    /// Rises over the device's life; never reused.
    pub report_counter: u64,
    /// The root the device trusts.
    pub root_version: u64,
    /// Payload hash of that root.
    pub root_sha256: Sha256Hex,
    /// Whether the lock predicate holds here.
    pub lock: LockState,
    /// `assign_epoch` of the newest accepted assignment.
    #[serde(default)]
    pub assign_epoch: u64,
    /// `seq` of the newest accepted assignment; 0 before the first.
    #[serde(default)]
    pub seq_accepted: u64,
    /// `seq` whose whole content runs and is committed.
    #[serde(default)]
    pub seq_applied: u64,
    /// Runs without a Freshness answer (from a bundle or peer).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfresh: bool,
    /// What runs, by app and service.
    #[serde(default)]
    pub running: BTreeMap<AppId, BTreeMap<Name, RunningService>>,
    /// The committed release of each app, by payload hash.
    #[serde(default)]
    pub committed: BTreeMap<AppId, Sha256Hex>,
    /// Why the device is not on target; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How far downloads and trials are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The operating system's slots and update; absent where the agent does not manage the operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// The agent's own update; absent where it does not update itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReport>,
    /// What the device's health checks last found; absent before the first round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthReport>,
    /// The agent's version.
    pub agent_version: String,
    /// The operating system, as os-release's PRETTY_NAME gives it.
    #[serde(default)]
    pub os_version: String,
    /// OCI architecture.
    pub arch: String,
    /// The device's wall clock, Unix seconds; may be wrong.
    pub time: u64,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Report, "report", 256 << 10);

/// Whether a fleet's lock holds on the device that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockState {
    /// The cloud can make the device run code.
    Open,
    /// It cannot.
    Locked,
}

/// A service as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningService {
    /// The image its container was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<Digest>,
    /// What it does.
    pub state: ServiceState,
    /// How often the engine restarted it.
    #[serde(default)]
    pub restarts: u64,
    /// The engine's id of the container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Exit code of the last run, where it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
}

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// No container.
    Absent,
    /// Its image is coming.
    Downloading,
    /// Made, not started.
    Created,
    /// Started, health not known yet.
    Starting,
    /// Runs; has no health check.
    Running,
    /// Runs, and its health check passes.
    Healthy,
    /// Runs, and its health check fails.
    Unhealthy,
    /// The engine starts it again and again.
    Restarting,
    /// Ended with 0 and was meant to.
    Completed,
    /// Ended and was not meant to, or with another code.
    Exited,
}

/// The most last lines that a reason has.
pub const MAX_TAIL_LINES: usize = 200;
/// The most bytes of one of them.
pub const MAX_TAIL_LINE: usize = 500;
/// The most bytes of all of them. Every report repeats its reason, and must stay well below its own bound, however each byte is
/// escaped.
pub const MAX_TAIL_BYTES: usize = 25_000;

/// Lets go of the first of a reason's last lines until they are within their bounds; each is within its own already.
pub fn bound_tail(lines: &mut Vec<String>) {
    let mut bytes = 0;
    let fit = lines.iter().rev().take(MAX_TAIL_LINES).take_while(|line| {
        bytes += line.len();
        bytes <= MAX_TAIL_BYTES
    });
    let fit = fit.count();
    lines.drain(..lines.len() - fit);
}

/// Why a device is not on target: one, the most telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Stable: an `E_…` of verification, or one of `docs/protocol.md`'s reason codes (`downloading`, `locked`, `rolled_back`, …).
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// The release it speaks of, by payload hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Sha256Hex>,
    /// The service it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Name>,
    /// Exit code of that service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Its last lines, within [`MAX_TAIL_LINES`], [`MAX_TAIL_LINE`] and [`MAX_TAIL_BYTES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
}

/// The operating system of a device with two slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostReport {
    /// What chooses the slot: `uboot`, `grub`, `tryboot`.
    pub backend: String,
    /// The slots, `a` and `b`.
    pub slots: BTreeMap<String, SlotReport>,
    /// Payload hash of the release that runs; absent where the factory's runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Sha256Hex>,
    /// Version of the operating system that runs.
    pub version: String,
    /// Why it is not on its target; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How far the update is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The release that was undone last; not tried again until the target changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Sha256Hex>,
}

/// A slot of the operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotReport {
    /// How it stands.
    pub state: SlotState,
    /// Whether the kernel that runs came from it.
    #[serde(default)]
    pub booted: bool,
    /// Payload hash of what is in it, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Sha256Hex>,
    /// Version of what is in it; empty where not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// How a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// The boot state trusts it.
    Committed,
    /// Complete and verified; the other one is trusted.
    Ready,
    /// Boots on trial.
    Trial,
    /// Is being written; cannot boot.
    Installing,
    /// Holds nothing that could boot.
    Empty,
    /// Was tried and undone.
    Bad,
}

/// The agent's own update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentReport {
    /// Payload hash of the release that runs; absent where the installed one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<Sha256Hex>,
    /// Why it is not on its target; absent when it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How far the update is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The release that was undone last; not tried again until the target changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Sha256Hex>,
}

/// How far an update is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// `downloading`, `applying` or `trial`; of the host `os_downloading`, `os_verifying`, `os_waiting`, `os_trial`; of the
    /// agent `agent_downloading`, `agent_trial`.
    pub stage: String,
    /// Bytes had.
    pub done: u64,
    /// Bytes to have; 0 when not known.
    pub total: u64,
    /// Unix seconds at which the trial ends well if nothing fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial_ends: Option<u64>,
}
