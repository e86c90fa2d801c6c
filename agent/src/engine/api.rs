//! The engine as the rest of the agent sees it: plain values, and a trait that tests answer from memory.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    ids::Name,
    spec::{NetworkSpec, ServiceSpec, VolumeSpec},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};

use super::{EngineError, EngineVersion, ImageId};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Made, never started.
    Created,
    /// Runs (paused counts: someone asked for it).
    Running,
    /// Ended; the engine will start it again.
    Restarting,
    /// Ended.
    Exited,
    /// Being removed, or broken for good.
    Dead,
}

/// What its health check says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// There is no health check.
    #[default]
    None,
    /// Not known yet.
    Starting,
    /// Passes.
    Healthy,
    /// Fails.
    Unhealthy,
}

/// A container as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// The image it was made from.
    pub image: ImageId,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// What it does.
    pub state: RunState,
    /// What its health check says.
    #[serde(default)]
    pub health: Health,
    /// Code of its last end; 0 before the first.
    #[serde(default)]
    pub exit_code: i64,
    /// How often the engine restarted it.
    #[serde(default)]
    pub restarts: u64,
    /// The engine's time of its last start; only compared for equality.
    #[serde(default)]
    pub started_at: String,
    /// Seconds it gets to stop.
    #[serde(default = "default_grace")]
    pub grace_s: u32,
    /// Networks it is part of: name → the network's id, empty before its first start.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// Containers whose namespaces it shares, by id.
    #[serde(default)]
    pub shares: BTreeSet<String>,
    /// It has all of the host.
    #[serde(default)]
    pub privileged: bool,
    /// Why the engine could not describe it; then only id, name and labels are true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

fn default_grace() -> u32 {
    DEFAULT_GRACE_S
}

/// Seconds a container gets to stop where it says nothing: the engine's own default.
pub const DEFAULT_GRACE_S: u32 = 10;

/// Every container: ours described, the others by name only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Containers {
    /// Ours, by the instance label.
    pub own: Vec<Container>,
    /// Names of all others.
    pub foreign: BTreeSet<String>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// How a container joins a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The network's name in the engine.
    pub network: String,
    /// Names it has there.
    pub aliases: BTreeSet<String>,
    /// Fixed address.
    pub ipv4: Option<String>,
    /// Fixed address.
    pub ipv6: Option<String>,
}

/// What is mounted where, every name being the engine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPoint {
    /// A volume.
    Volume {
        /// The engine's name of it.
        name: String,
        /// Not writable.
        read_only: bool,
        /// Do not copy what the image has there.
        nocopy: bool,
    },
    /// A host path.
    Bind {
        /// The host path.
        source: String,
        /// Not writable.
        read_only: bool,
        /// `rprivate`, …
        propagation: Option<String>,
        /// Make an empty folder where there is none, rather than fail.
        create: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
    },
}

/// A container to be made. Everything is resolved: no name in it means anything but to the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRequest {
    /// Its name.
    pub name: String,
    /// Its image, by id.
    pub image: ImageId,
    /// How it is run; mounts, networks and namespaces are taken from the fields below instead.
    pub spec: ServiceSpec,
    /// All its variables.
    pub env: BTreeMap<String, String>,
    /// All its labels.
    pub labels: Labels,
    /// The network it is made with; further ones are joined before it starts.
    pub network: Option<Join>,
    /// `host`, `none`, `bridge` or `container:<id>`, instead of a network.
    pub network_mode: Option<String>,
    /// `host` or `container:<id>`.
    pub pid_mode: Option<String>,
    /// `host`, `private`, `shareable` or `container:<id>`.
    pub ipc_mode: Option<String>,
    /// By path inside.
    pub mounts: BTreeMap<String, MountPoint>,
}

/// A network to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// How.
    pub spec: NetworkSpec,
    /// All its labels.
    pub labels: Labels,
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeRequest {
    /// Its name.
    pub name: String,
    /// How.
    pub spec: VolumeSpec,
    /// All its labels.
    pub labels: Labels,
}

/// Something happened that may concern us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    /// `container`, `network` or `volume`.
    pub kind: String,
    /// `die`, `health_status: healthy`, `destroy`, …
    pub action: String,
    /// Name of the object, as far as the event tells.
    pub name: String,
    /// Its labels, where the event tells them (containers).
    pub labels: Labels,
}

/// What the agent asks of an engine.
pub trait EngineApi: Send + Sync {
    /// What it is; also the way to see whether it answers.
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion, EngineError>>;
    /// Every container; ours have the label `io.copal.instance` with this value.
    fn containers<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Containers, EngineError>>;
    /// One container.
    fn container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Container>, EngineError>>;
    /// Every network.
    fn networks(&self) -> BoxFuture<'_, Result<Vec<Network>, EngineError>>;
    /// Every volume.
    fn volumes(&self) -> BoxFuture<'_, Result<Vec<Volume>, EngineError>>;
    /// Makes a container and gives its id.
    fn create<'a>(&'a self, request: &'a ContainerRequest) -> BoxFuture<'a, Result<String, EngineError>>;
    /// Starts one; fine where it runs.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Asks it to stop, and kills it after `grace_s`; fine where it does not run or is gone.
    fn stop<'a>(&'a self, id: &'a str, grace_s: u32) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Removes a stopped one, with its anonymous volumes; fine where it is gone.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Gives it another name.
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Joins it to a network; fine where it is part of it.
    fn join<'a>(&'a self, id: &'a str, join: &'a Join) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Takes it out of a network; fine where it is not part of it.
    fn leave<'a>(&'a self, id: &'a str, network: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Makes a network.
    fn create_network<'a>(&'a self, request: &'a NetworkRequest) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Removes a network; fine where it is gone.
    fn remove_network<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Makes a volume.
    fn create_volume<'a>(&'a self, request: &'a VolumeRequest) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Removes a volume with its data; fine where it is gone, refused where a container has it. Only ever asked for by a
    /// person: data outlives releases.
    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>>;
    /// Paths the image declares as volumes.
    fn image_volumes<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Vec<String>, EngineError>>;
    /// A container's last lines, safe to print: at most 50 of 500 bytes. Empty where they cannot be read.
    fn log_tail<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Vec<String>>;
    /// What happens from now on, until the engine goes.
    fn events(&self) -> BoxStream<'static, Result<EngineEvent, EngineError>>;
}

/// The service a `service:<name>` names.
#[must_use]
pub fn service_ref(mode: Option<&str>) -> Option<Name> {
    mode?.strip_prefix("service:")?.parse().ok()
}
