//! Release: what may run. Immutable; signed by the builder, by the owner, or by both.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::document;
use crate::{
    ids::{AppId, Digest, FleetId, Name, Sha256Hex},
    spec::{NetworkSpec, ServiceSpec, VolumeSpec},
};

/// One version of an app, or of the host (operating system, agent).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Format version.
    pub spec: u32,
    /// The fleet it is for.
    pub fleet_id: FleetId,
    /// App or host.
    pub kind: ReleaseKind,
    /// The app; absent for a host release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    /// Rises with every release of the app: `max(previous + 1, Unix seconds)`.
    pub counter: u64,
    /// Semantic version.
    pub version: semver::Version,
    /// The git commit it was built from; empty when it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; after it the release is not newly installed. What runs goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Once this release is committed, nothing with a lower counter is accepted.
    #[serde(default)]
    pub rollback_floor: u64,
    /// What it runs on.
    #[serde(default)]
    pub compat: Compat,
    /// Hash of the BuildRecord payload it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_record: Option<Sha256Hex>,
    /// App releases: the services.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<Name, ServiceRelease>,
    /// App releases: named volumes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Name, VolumeSpec>,
    /// App releases: networks; `default` is implied where a service names none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Name, NetworkSpec>,
    /// Host releases: what to write, by payload name (`rootfs`, `boot`, `agent`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub payloads: BTreeMap<Name, HostPayload>,
    /// Host releases: version of the data partition's schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_schema: Option<u64>,
    /// Host releases: the lowest version that may update to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<semver::Version>,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Release, "release", 1 << 20);

/// What a release is a version of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseKind {
    /// Containers.
    App,
    /// Operating system or agent.
    Host,
}

/// What a release runs on. Empty sets mean any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compat {
    /// Device types, such as `raspberrypi4-64`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub device_types: BTreeSet<String>,
    /// Architectures as OCI spells them: `amd64`, `arm64`, `arm`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub arch: BTreeSet<String>,
    /// The oldest agent that understands it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_agent: Option<semver::Version>,
    /// The oldest operating system it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_os: Option<semver::Version>,
}

/// A service of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRelease {
    /// How it is run.
    pub spec: ServiceSpec,
    /// Variables the cloud may set even where `env_mode` is declared.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub overridable_env: BTreeSet<String>,
    /// Its image for each platform, such as `linux/arm64`.
    pub images: BTreeMap<String, ImageRef>,
}

/// An image, named by what it contains. Its identity is `config_digest` and the layers' `diff_id`s,
/// whatever manifest carried it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Repository in the cloud's registry: `<fleet>/<service>`.
    pub repo: String,
    /// The manifest as the registry stores it.
    pub manifest_digest: Digest,
    /// The config blob.
    pub config_digest: Digest,
    /// Bytes of the config blob.
    pub config_size: u64,
    /// Bytes of config and all layers as stored.
    pub size: u64,
    /// Lowest first.
    pub layers: Vec<Layer>,
}

/// A layer as the registry stores it, and what it unpacks to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Digest of the stored (compressed) blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// Something a host release writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPayload {
    /// Bytes.
    pub size: u64,
    /// Of all of them.
    pub sha256: Sha256Hex,
    /// The chunk index, a blob of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<super::DocumentRef>,
    /// dm-verity root hash, carried so that integrity at rest can come later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity_root: Option<Sha256Hex>,
}
