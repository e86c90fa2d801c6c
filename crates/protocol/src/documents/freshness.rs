//! Freshness: the cloud's word that an assignment is still the newest, against a nonce of the device.

use serde::{Deserialize, Serialize};

use super::document;
use crate::ids::{DeviceId, FleetId, Sha256Hex};

/// Asked for at boot, before anything new is installed, and daily.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device that asked.
    pub device_id: DeviceId,
    /// 32 bytes hex, from the device.
    pub nonce: Sha256Hex,
    /// Payload hash of the newest assignment.
    pub assignment_sha256: Sha256Hex,
    /// Its `assign_epoch`.
    pub assign_epoch: u64,
    /// Its `seq`.
    pub seq: u64,
    /// The cloud's clock, Unix seconds. Never raises the persisted floor: it is not owner-signed.
    pub time: u64,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Freshness, "freshness", 16 << 10);
