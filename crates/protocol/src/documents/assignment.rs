//! Assignment: which releases one device should run now. Signed by the cloud's online key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document;
use crate::{
    ids::{AppId, DeviceId, FleetId, Name, Sha256Hex},
    window::Window,
};

/// What one device should run. Its signed bytes are stored and served, never made again for unchanged content;
/// the ETag of the state route is the SHA-256 of its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device; no other accepts it.
    pub device_id: DeviceId,
    /// SHA-256 of the device's public key: an id given anew does not inherit old assignments.
    pub device_key_sha256: Sha256Hex,
    /// The root the cloud went by; a device behind it walks first.
    pub root_version: u64,
    /// From Root; with `seq` it orders assignments.
    pub assign_epoch: u64,
    /// Rises only when the content changes.
    pub seq: u64,
    /// Unix seconds.
    pub issued_at: u64,
    /// The apps to run; empty means none.
    #[serde(default)]
    pub apps: Vec<AppTarget>,
    /// The operating system to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostTarget>,
    /// The agent to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<HostTarget>,
    /// Variables in the clear.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<AppId, EnvByService>,
    /// Variables sealed to the device's X25519 key (see [`crate::seal`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sealed: BTreeMap<AppId, SealedByService>,
    /// Settings of the agent itself.
    #[serde(default)]
    pub config: DeviceConfig,
    /// Unix seconds; the change waits until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Assignment, "assignment", 256 << 10);

/// Service → variable → value.
pub type EnvByService = BTreeMap<Name, BTreeMap<String, String>>;
/// Service → variable → base64 ciphertext.
pub type SealedByService = BTreeMap<Name, BTreeMap<String, String>>;

/// An app and the release of it to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppTarget {
    /// The app.
    pub app_id: AppId,
    /// Payload hash of the Release.
    pub sha256: Sha256Hex,
    /// Rises when a person asks to try a parked release again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The host release (operating system or agent) to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTarget {
    /// Payload hash of the Release.
    pub sha256: Sha256Hex,
    /// Rises when a person asks to try a parked release again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry: u64,
}

/// A document or blob by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRef {
    /// Its SHA-256 (of the payload, for a signed document).
    pub sha256: Sha256Hex,
    /// Its bytes, where it is a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Settings of the agent itself; typed, so that the cloud cannot reach past them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceConfig {
    /// Seconds between polls without a long poll; 10 to 86,400. Absent: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_interval_s: Option<u32>,
    /// When the device may reboot into another operating system; absent: at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot_window: Option<Window>,
    /// Seconds between the health checks a device makes by itself, about; within [`CHECK_EVERY_S`]. Absent: as the device says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_every_s: Option<u32>,
}

/// How often a device may be told to check itself, in seconds: every ten minutes, or every week.
pub const CHECK_EVERY_S: std::ops::RangeInclusive<u32> = 600..=604_800;
