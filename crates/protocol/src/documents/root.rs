//! Root: which keys may say what. Signed by the owner; everything else is judged by it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::document;
use crate::{
    ids::{FleetId, KeyId, Sha256Hex},
    keys::PublicKey,
};

/// Which keys a device believes, for what, and under which policy. Rotation follows TUF: version N+1 is signed by
/// the root keys of N and of N+1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Format version.
    pub spec: u32,
    /// The fleet this root governs.
    pub fleet_id: FleetId,
    /// 1, then one more each time.
    pub version: u64,
    /// Unix seconds. Owner-signed, so it may raise a device's clock floor.
    pub issued_at: u64,
    /// Unix seconds; after it no new document is accepted until a newer root is.
    pub expires: u64,
    /// Raised by the owner after the cloud was restored from a back-up: assignments order by (epoch, seq).
    pub assign_epoch: u64,
    /// Every key a role below names.
    pub keys: BTreeMap<KeyId, RootKey>,
    /// Who may sign what. No key stands in two roles.
    pub roles: BTreeMap<Role, RoleKeys>,
    /// What the owner allows.
    pub policy: Policy,
    /// Where the cloud is; supersedes `copal.json`.
    #[serde(default, skip_serializing_if = "CloudAddress::is_empty")]
    pub cloud: CloudAddress,
    /// The lowest counter acceptable: by `<app_id>`, `host/<device_type>` or `agent/<arch>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floors: BTreeMap<String, u64>,
    /// Releases that must not run any more, by payload hash.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked_releases: BTreeSet<Sha256Hex>,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Root, "root", 64 << 10);

/// A key as Root lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKey {
    /// Always `ed25519`.
    pub alg: String,
    /// The public key.
    #[serde(rename = "pub")]
    pub public: PublicKey,
    /// For people: "anna's laptop".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The owner's, offline: signs Root.
    Root,
    /// Developers': signs app releases.
    Release,
    /// The OS publisher's: signs host releases.
    Host,
    /// The cloud's builder.
    Builder,
    /// The cloud's online key: Assignment, Freshness, Action.
    Assign,
    /// A person's: signs terminal grants.
    Operator,
}

impl Role {
    /// The word used in documents and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Release => "release",
            Self::Host => "host",
            Self::Builder => "builder",
            Self::Assign => "assign",
            Self::Operator => "operator",
        }
    }
}

/// The keys of a role, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleKeys {
    /// Which keys.
    pub keyids: BTreeSet<KeyId>,
    /// How many distinct ones must sign; at least 1, at most as many as there are.
    pub threshold: u32,
}

/// What the owner allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Whose signature makes a release runnable.
    pub release_mode: ReleaseMode,
    /// Whether the cloud may set any variable or only those a service declared.
    pub env_mode: EnvMode,
    /// Whether and how terminals may be opened.
    pub terminal: TerminalMode,
    /// What services may ask of their host.
    #[serde(default, skip_serializing_if = "AllowPolicy::is_default")]
    pub allow: AllowPolicy,
}

/// Whose signature makes a release runnable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseMode {
    /// The builder's: the cloud is trusted.
    #[default]
    Builder,
    /// The owner's release keys.
    Owner,
    /// Both, each meeting its own threshold.
    Both,
}

/// Which variables the cloud may set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvMode {
    /// Any, except the denied names.
    #[default]
    Open,
    /// Only a service's `overridable_env`.
    Declared,
}

/// Who may authorise a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalMode {
    /// Nobody.
    Off,
    /// An operator's signed grant.
    Grant,
    /// The cloud.
    #[default]
    Cloud,
}

/// What services may ask of their host. Everything is denied unless named here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowPolicy {
    /// `privileged: true`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// `network_mode: host`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// `pid: host`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_pid: bool,
    /// `ipc: host`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_ipc: bool,
    /// Capabilities that may be added, without `CAP_`; `ALL` opens every one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub caps: BTreeSet<String>,
    /// Host device paths; one ending in `*` opens those beginning so.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<String>,
    /// Host paths that may be bound, with all below them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub binds: BTreeSet<String>,
    /// `security_opt` values.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub security_opt: BTreeSet<String>,
    /// `runtime` names.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub runtimes: BTreeSet<String>,
    /// `sysctls` names; those of a container's own network namespace (`net.*`) need no entry.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub sysctls: BTreeSet<String>,
    /// `device_cgroup_rules`, to the letter.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cgroup_rules: BTreeSet<String>,
    /// Volumes with `driver_opts` (which can bind any host path).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub volume_driver_opts: bool,
    /// A newer assignment may come from a bundle or a peer, without Freshness.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
}

impl AllowPolicy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the cloud is and how to know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudAddress {
    /// Base URLs, tried in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// SHA-256 over the DER SubjectPublicKeyInfo of a certificate in the chain (leaf or private CA), base64 as in
    /// RFC 7469. Empty: the public CAs compiled in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_pins: Vec<String>,
}

impl CloudAddress {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
