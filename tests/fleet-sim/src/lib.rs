//! Many devices in one process, for load: each has a key of its own, enrols, logs in, verifies its assignment against
//! the owner's root, holds a channel and reports. Only the engine is pretended: what is assigned runs at once.
//!
//! In: a `copal.json` whose enrolment token is good for as many devices. Out: counts and times. Never here: a limit of what
//! is good; who measures says that beside the number.
#![forbid(unsafe_code)]

mod counted;
mod device;
mod http;
mod link;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use copal_protocol::{
    config::DeviceFile,
    documents::Root,
    envelope::Envelope,
    verify::{self, Verified},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::Notify, task::JoinSet};

use crate::{device::Device, http::Http, link::Link};

/// What all devices of a simulation share.
pub(crate) struct Shared {
    pub(crate) file: DeviceFile,
    pub(crate) root: Verified<Root>,
    pub(crate) http: Http,
    pub(crate) link: Link,
    pub(crate) seen: Seen,
}

/// What was seen, added up over all devices.
#[derive(Debug, Default)]
pub struct Seen {
    /// Channels open now.
    pub connected: AtomicU64,
    /// Channels that were opened since the start.
    pub opened: AtomicU64,
    /// Attempts that were told to come back later (503, 429).
    pub refused: AtomicU64,
    /// Attempts that failed otherwise.
    pub failed: AtomicU64,
    /// Hints that named something new.
    pub hints: AtomicU64,
    /// Assignments verified and pretended to run.
    pub applied: AtomicU64,
    /// Reports the cloud took.
    pub reports: AtomicU64,
    /// Bytes written to sockets, TLS included.
    pub sent: AtomicU64,
    /// Bytes read from sockets, TLS included.
    pub received: AtomicU64,
    why: Mutex<Option<String>>,
    moments: Mutex<Moments>,
    news: Notify,
}

#[derive(Default)]
struct Moments {
    hinted: Vec<Instant>,
    applied: Vec<Instant>,
    lags: Vec<Duration>,
}

impl std::fmt::Debug for Moments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hinted, {} applied", self.hinted.len(), self.applied.len())
    }
}

impl Seen {
    fn moments(&self) -> std::sync::MutexGuard<'_, Moments> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failed(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Relaxed);
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
    }

    /// Why the last attempt failed.
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn hinted(&self, at: Instant) {
        self.hints.fetch_add(1, Relaxed);
        self.moments().hinted.push(at);
    }

    pub(crate) fn verified(&self, lag: Duration) {
        self.moments().lags.push(lag);
    }

    pub(crate) fn applied(&self) {
        self.applied.fetch_add(1, Relaxed);
        self.moments().applied.push(Instant::now());
        self.news.notify_waiters();
    }

    pub(crate) fn channel(&self, open: bool) {
        if open {
            self.opened.fetch_add(1, Relaxed);
            self.connected.fetch_add(1, Relaxed);
        } else {
            self.connected.fetch_sub(1, Relaxed);
        }
        self.news.notify_waiters();
    }

    /// Forgets the moments so far.
    pub fn forget_moments(&self) {
        *self.moments() = Moments::default();
    }

    /// How long after its hint each assignment was fetched and verified, ascending.
    pub fn lags(&self) -> Vec<Duration> {
        let mut lags = self.moments().lags.clone();
        lags.sort();
        lags
    }

    /// When each hint came and when each assignment ran, since `start`, ascending.
    pub fn since(&self, start: Instant) -> (Vec<Duration>, Vec<Duration>) {
        let moments = self.moments();
        let sorted = |list: &[Instant]| {
            let mut all: Vec<Duration> = list.iter().map(|at| at.saturating_duration_since(start)).collect();
            all.sort();
            all
        };
        (sorted(&moments.hinted), sorted(&moments.applied))
    }
}

/// A fleet of pretended devices.
pub struct Fleet {
    shared: Arc<Shared>,
    devices: Vec<Arc<Device>>,
    running: JoinSet<()>,
}

impl Fleet {
    /// Enrols devices and logs them in, some at a time.
    ///
    /// # Errors
    /// What `copal.json` holds, or the cloud's first refusal.
    pub async fn enrol(file: DeviceFile, count: usize) -> anyhow::Result<Self> {
        let root = Envelope::parse::<Root>(file.root.to_string().as_bytes())?;
        let root = verify::first_root(&root, file.fleet_id)?;
        let seen = Seen::default();
        let http = Http::new(&file).context("setting up HTTP")?;
        let link = Link::new(&file).context("setting up the channel")?;
        let shared = Arc::new(Shared { file, root, http, link, seen });
        let devices = stream::iter(0..count)
            .map(|number| {
                let shared = shared.clone();
                async move { Device::enrol(shared, number).await.map(Arc::new) }
            })
            .buffered(32)
            .try_collect()
            .await?;
        Ok(Self { shared, devices, running: JoinSet::new() })
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Opens every device's channel, each at a moment of its own within `window`, and keeps it open.
    pub fn connect(&mut self, window: Duration) {
        for device in &self.devices {
            let (device, shared) = (device.clone(), self.shared.clone());
            self.running.spawn(async move { device.stay_connected(&shared, window).await });
        }
    }

    /// Breaks all connections at once, as a power cut of the cloud's network would.
    pub async fn cut(&mut self) {
        self.running.shutdown().await;
        self.shared.seen.connected.store(0, Relaxed);
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
