//! Many devices in one process, for load: each has a key, connections and an address of its own, enrols, logs in, polls, holds a
//! channel, verifies what it is assigned against the owner's root, reports, and tells events and telemetry, at an agent's pace.
//! Only the engine is pretended: what is assigned runs at once.
//!
//! In: a `copal.json` whose enrolment token is good for as many devices. Out: counts and times. Never here: a limit of what
//! is good; who measures says that beside the number.
//!
//! | file | what it does |
//! |---|---|
//! | `device` | keys, enrolment, login, what a device remembers |
//! | `sync` | polls, documents |
//! | `channel`, `link` | the channel, and how it is opened |
//! | `report` | reports |
//! | `tell` | events and telemetry, on their way to the cloud |
//! | `orders` | commands |
//! | `http`, `wire`, `counted` | connections, each a device's own, and what passes by them |
//! | `pace`, `seen` | how often what; what was seen |
#![forbid(unsafe_code)]

mod channel;
mod counted;
mod device;
mod http;
mod link;
mod orders;
mod pace;
mod report;
mod seen;
mod sync;
mod tell;
mod wire;

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use copal_protocol::{
    config::DeviceFile,
    documents::Root,
    envelope::Envelope,
    verify::{self, Verified},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
pub use pace::Pace;
pub use seen::{Passed, Seen, Way};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{device::Device, link::Link, wire::Wires};

/// Files of this process beside connections.
const OTHER_FILES: u64 = 128;
/// Between looks at connections that idle.
const TIDY: Duration = Duration::from_millis(500);
/// Devices that enrol at a time.
const ENROL: usize = 32;

/// What all devices of a simulation share: nothing that an agent has for itself.
pub(crate) struct Shared {
    pub(crate) file: DeviceFile,
    /// The version of the Root in the file.
    pub(crate) first_root: u64,
    root: RwLock<Arc<Verified<Root>>>,
    pub(crate) wires: Wires,
    pub(crate) link: Link,
    pub(crate) seen: Seen,
    /// Places for connections by HTTP: what the files this process may open leave beside the channels.
    pub(crate) room: Arc<Semaphore>,
    places: usize,
    /// Milliseconds for which idle connections are kept.
    kept: AtomicU64,
}

impl Shared {
    /// The newest Root any device verified.
    pub(crate) fn root(&self) -> Arc<Verified<Root>> {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_root(&self, newer: Verified<Root>) {
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
        if newer.version > root.version {
            *root = Arc::new(newer);
        }
    }

    /// Whether an idle connection may be kept.
    pub(crate) fn has_room(&self) -> bool {
        self.room.available_permits() > self.places / 8
    }
}

/// A fleet of pretended devices.
pub struct Fleet {
    shared: Arc<Shared>,
    devices: Vec<Arc<Device>>,
    running: JoinSet<()>,
    pace: Pace,
}

impl Fleet {
    /// Enrols devices and logs them in, some at a time. None holds a connection afterwards.
    ///
    /// # Errors
    /// What `copal.json` holds, too few files, or the cloud's refusal of a device.
    pub async fn enrol(file: DeviceFile, count: usize) -> anyhow::Result<Self> {
        let places = places(count, raise_file_limit()?)?;
        let root = Envelope::parse::<Root>(file.root.to_string().as_bytes())?;
        let root = verify::first_root(&root, file.fleet_id)?;
        let wires = Wires::new(&file)?;
        let link = Link::new(&wires).context("setting up the channel")?;
        let shared = Arc::new(Shared {
            file,
            first_root: root.version,
            root: RwLock::new(Arc::new(root)),
            wires,
            link,
            seen: Seen::default(),
            room: Arc::new(Semaphore::new(places)),
            places,
            kept: AtomicU64::new(u64::try_from(http::KEPT.as_millis())?),
        });
        let devices = stream::iter(0..count)
            .map(|number| {
                let shared = shared.clone();
                async move { Device::enrol(shared, number).await.map(Arc::new) }
            })
            .buffered(ENROL)
            .try_collect()
            .await?;
        Ok(Self { shared, devices, running: JoinSet::new(), pace: Pace::default() })
    }

    /// Lets devices that begin from now on do by themselves as much as this.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Lets devices keep idle connections for so long: an agent does for 90 s.
    pub fn keep(&self, idle: Duration) {
        self.shared.kept.store(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Starts every device at a moment of its own within `window`: polls, channel and all.
    pub fn connect(&mut self, window: Duration) {
        for device in &self.devices {
            self.running.spawn(device.clone().live(self.pace.clone(), window));
        }
        let (devices, shared) = (self.devices.clone(), self.shared.clone());
        self.running.spawn(async move {
            loop {
                tokio::time::sleep(TIDY).await;
                let idle = Duration::from_millis(shared.kept.load(Relaxed));
                devices.iter().for_each(|device| device.let_go(idle));
            }
        });
    }

    /// Breaks all connections at once, as a power cut of the cloud's network would, and stops the devices.
    pub async fn cut(&mut self) {
        self.running.shutdown().await;
        self.devices.iter().for_each(|device| device.let_go(Duration::ZERO));
        self.shared.seen.connected.store(0, Relaxed);
    }

    /// Has every device poll once, within `window` and one after the other, as after its hours of rest: with a login and a look for
    /// newer roots.
    pub async fn poll(&self, window: Duration) {
        let mut ticks = self.ticks(window);
        for device in &self.devices {
            ticks.tick().await;
            device.age().await;
            device.poll_now();
        }
    }

    /// Has every device report what its health checks found, in the same manner.
    pub async fn report(&self, window: Duration) {
        let mut ticks = self.ticks(window);
        for device in &self.devices {
            ticks.tick().await;
            device.age().await;
            device.aged.store(false, Relaxed);
            device.checked.notify_one();
        }
    }

    /// Has every device tell a summary of an hour, in the same manner; by its channel, which needs no login.
    pub async fn summarise(&self, window: Duration) {
        let mut ticks = self.ticks(window);
        for device in &self.devices {
            ticks.tick().await;
            device.summarise(Duration::from_secs(3600));
        }
    }

    fn ticks(&self, window: Duration) -> tokio::time::Interval {
        let apart = window / u32::try_from(self.devices.len().max(1)).unwrap_or(u32::MAX);
        tokio::time::interval(apart.max(Duration::from_micros(1)))
    }

    /// Waits until something seen satisfies `enough`; whether it did within `patience`.
    pub async fn until(&self, patience: Duration, enough: impl Fn(&Seen) -> bool) -> bool {
        let seen = &self.shared.seen;
        let waiting = async {
            loop {
                let news = seen.news.notified();
                if enough(seen) {
                    return;
                }
                // Some counts change without a word.
                let _ = tokio::time::timeout(Duration::from_millis(100), news).await;
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }
}

/// How many connections by HTTP fit beside the channels of so many devices, if this process may open so many files: at most two for each.
///
/// # Errors
/// Where little more than the channels fits: the devices would stand in each other's way more than the cloud does.
fn places(devices: usize, files: u64) -> anyhow::Result<usize> {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let (least, other) = (devices / 4 + ENROL, usize::try_from(OTHER_FILES).unwrap_or(0));
    let left = files.saturating_sub(devices).saturating_sub(other);
    if left < least {
        let need = devices + least + other;
        anyhow::bail!("{devices} devices need {need} open files; this process may have {files} (ulimit -Hn)");
    }
    Ok(left.min(2 * devices + ENROL))
}

/// Raises the number of files this process may open to what the system lets it; gives it.
///
/// # Errors
/// The system's.
pub fn raise_file_limit() -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_the_files_there_are_and_too_few_are_told() {
        assert_eq!(places(100, 1_000_000).unwrap(), 232, "two each");
        let tight = places(10_000, 20_000).unwrap();
        assert!(tight + 10_000 <= 20_000 && tight > 5_000, "{tight}");
        let error = places(10_000, 10_500).unwrap_err().to_string();
        assert!(error.contains("12660") && error.contains("10500"), "{error}");
    }
}
