//! `copal.json`: what a device is given before its first start. Made by the CLI with the owner's root; never by the
//! server, which could supply a root of its own.

use serde::{Deserialize, Serialize};

use crate::ids::FleetId;

/// The file itself. Spelled `copal.json` on the boot partition or in `/etc/copal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFile {
    /// Format version, 1.
    pub spec: u32,
    /// The fleet to join.
    pub fleet_id: FleetId,
    /// Base URL of the cloud.
    pub cloud_url: String,
    /// Pins as in [`crate::documents::CloudAddress::tls_pins`]; empty under a public CA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_pins: Vec<String>,
    /// The owner's newest Root, as its envelope.
    pub root: serde_json::Value,
    /// Enrolment token, `id.secret`.
    pub enrolment_token: String,
    /// Device type of the fleet.
    pub device_type: String,
    /// What people will call the device; the host name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Known to this card and the CLI alone, `id.secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introduction: Option<String>,
}
