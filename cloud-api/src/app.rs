//! What every handler shares.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use object_store::{ObjectStore, local::LocalFileSystem};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    auth, blobs, build,
    bus::{Bus, LocalBus},
    channel,
    config::Config,
    devices, git,
    keys::ServerKeys,
    registry,
    store::{Db, fleets},
    telemetry, terminal, uploads,
};

/// The running cloud; cheap to clone.
pub type App = Arc<Inner>;

/// See [`App`]. Rooms that keep something in memory (sessions, the state cache, running builds) put it here as a
/// field of their own type.
#[derive(Debug)]
pub struct Inner {
    /// Settings.
    pub config: Config,
    /// The database.
    pub db: Db,
    /// Blobs, at `sha256/<2 hex>/<64 hex>`.
    pub blobs: Arc<dyn ObjectStore>,
    /// The server's keys.
    pub keys: ServerKeys,
    /// Hints between rooms.
    pub bus: Arc<dyn Bus>,
    /// Signing in.
    pub auth: auth::Memory,
    /// Devices: where each stands, who is logged in.
    pub devices: devices::Memory,
    /// Channels of devices: whose is open.
    pub channels: Arc<channel::Memory>,
    /// Devices whose metrics somebody watches.
    pub live: telemetry::Memory,
    /// Woken when a round begins.
    pub rounds: Notify,
    /// The newest root of each fleet.
    pub roots: fleets::Roots,
    /// Keeps writers of blobs and their collector apart.
    pub blob_gate: blobs::Gate,
    /// Builds that wait and the one that runs.
    pub builds: build::Queue,
    /// Pushes under way.
    pub git: git::Memory,
    /// Registry tokens and uploads in progress.
    pub registry: registry::Memory,
    /// Uploads being written to.
    pub uploads: uploads::Memory,
    /// Terminals that are open.
    pub terminals: terminal::Memory,
    /// Set when the cloud is about to stop: streams and long polls end, requests finish.
    pub stopping: CancellationToken,
}

/// Opens everything a data folder holds.
///
/// # Errors
/// When a folder, the database or a key cannot be opened; says which.
pub async fn open(config: Config) -> anyhow::Result<App> {
    for dir in [config.blobs(), config.git(), config.logs(), config.recordings(), config.run()] {
        std::fs::create_dir_all(&dir).with_context(|| format!("making the folder {}", dir.display()))?;
    }
    let db = Db::open(&config.database()).await?;
    let blobs = LocalFileSystem::new_with_prefix(config.blobs())
        .with_context(|| format!("opening the blob folder {}", config.blobs().display()))?;
    let keys = ServerKeys::open(&config.keys())?;
    let devices = devices::Memory::load(&db).await?;
    Ok(Arc::new(Inner {
        db,
        blobs: Arc::new(blobs),
        keys,
        bus: Arc::new(LocalBus::default()),
        auth: auth::Memory::default(),
        devices,
        channels: Arc::default(),
        live: telemetry::Memory::default(),
        rounds: Notify::new(),
        roots: fleets::Roots::default(),
        blob_gate: blobs::Gate::default(),
        builds: build::Queue::default(),
        git: git::Memory::default(),
        registry: registry::Memory::default(),
        uploads: uploads::Memory::default(),
        terminals: terminal::Memory::default(),
        stopping: CancellationToken::new(),
        config,
    }))
}

/// Unix seconds by the wall clock.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// [`now`] as the database keeps it.
#[must_use]
pub fn now_i64() -> i64 {
    i64::try_from(now()).unwrap_or(i64::MAX)
}
