//! BuildRecord: what the builder says it built, from what, how.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document;
use crate::ids::{AppId, Digest, FleetId, Name};

/// Signed by the builder; a Release names it by hash, so that an owner can see what they sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRecord {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The app.
    pub app_id: AppId,
    /// The git commit; empty for an upload.
    #[serde(default)]
    pub commit: String,
    /// The git tree or, for an upload, the SHA-256 of the context.
    pub source: String,
    /// `linux/arm64`.
    pub platform: String,
    /// The engine's name and version.
    pub builder: String,
    /// Unix seconds.
    pub started_at: u64,
    /// Unix seconds.
    pub finished_at: u64,
    /// Config digest by service.
    pub images: BTreeMap<Name, Digest>,
    /// Images taken from elsewhere, by reference, with the digest they were pinned to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub external: BTreeMap<String, Digest>,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(BuildRecord, "build", 256 << 10);
