//! `git push` and `git clone` over smart HTTP.
//!
//! In: git clients with a token as password. Out: builds, and refs that only move when their build succeeded.
//! Never here: how a project is built (`build/`), who runs what (`rollouts/`). Git itself does the git: this room
//! speaks HTTP before it and answers its hooks behind it.
//!
//! ```text
//! client ── http ──> git receive-pack ──> pre-receive ──┐   the hook is this binary; it forwards to `run/hook.sock`
//!    ^                     │                            ▼
//!    └── remote: lines ────┴──────────────── listen: plan → copy out of quarantine → build (log streams back)
//!                          └─> refs move ──> post-receive ──> publish
//! ```
//!
//! A release is signed before its ref moves and published after: in between anything may die. A receive-pack that
//! ends, and a cloud that starts, look whether the ref did move, and publish or discard.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use axum::{
    Router,
    routing::{get, post},
};
use tokio::sync::{Semaphore, watch};

use crate::{app::App, auth::Caller, store::fleets::FleetRow};

pub mod hook;
mod http;
mod listen;
mod plan;
mod repo;

/// Pushes at a time; each may wait for its build.
const MAX_PUSHES: usize = 64;

/// Fetches at a time.
const MAX_FETCHES: usize = 16;

/// What this room remembers while the cloud runs.
#[derive(Debug)]
pub struct Memory {
    pushes: Mutex<HashMap<String, Arc<Push>>>,
    /// Who waits for which build, in the order they came.
    waiting: Mutex<HashMap<String, Vec<Arc<Push>>>>,
    push_slots: Arc<Semaphore>,
    fetch_slots: Arc<Semaphore>,
    hook_binary: OnceLock<PathBuf>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            pushes: Mutex::default(),
            waiting: Mutex::default(),
            push_slots: Arc::new(Semaphore::new(MAX_PUSHES)),
            fetch_slots: Arc::new(Semaphore::new(MAX_FETCHES)),
            hook_binary: OnceLock::new(),
        }
    }
}

impl Memory {
    /// Says which program answers git's hooks, instead of this one. For tests, whose own program is another.
    pub fn set_hook_binary(&self, binary: PathBuf) {
        let _ = self.hook_binary.set(binary);
    }

    fn push(&self, id: &str) -> Option<Arc<Push>> {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// One `git push` under way. Its id is the hook's proof: random, known to this process and to the environment of the
/// receive-pack it started, gone when that ends.
#[derive(Debug)]
struct Push {
    id: String,
    caller: Caller,
    fleet: FleetRow,
    /// Set by the first pre-receive: an id opens each hook once.
    pre_seen: AtomicBool,
    post_seen: AtomicBool,
    /// Nobody reads the answer any more.
    gone: AtomicBool,
    /// Releases that wait for their ref.
    prepared: Mutex<Vec<Prepared>>,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
struct Prepared {
    reference: String,
    commit: String,
    release: String,
}

impl Push {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, Vec<Prepared>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/git/<slug>.git/…`.
pub fn router() -> Router<App> {
    Router::new()
        .route("/git/{repo}/info/refs", get(http::info_refs))
        .route("/git/{repo}/git-upload-pack", post(http::upload_pack))
        .route("/git/{repo}/git-receive-pack", post(http::receive_pack))
}

/// Before the first request: cleans up after the last run, makes the hooks, listens for them.
///
/// # Errors
/// When a folder or the socket cannot be made, or git is not installed.
pub async fn start(app: &App) -> anyhow::Result<()> {
    repo::check_git().await?;
    crate::blobs::prepare(app).context("preparing the upload folder")?;
    crate::build::reconcile(app).await.context("cleaning up after builds")?;
    repo::write_hooks(app).context("writing the git hooks")?;
    reconcile(app).await.context("looking after releases whose push was cut off")?;
    listen::start(app).context("listening for git hooks")
}

/// Publishes what was built and whose ref did move before the cloud stopped; discards the rest.
async fn reconcile(app: &App) -> anyhow::Result<()> {
    for release in crate::releases::unpublished(app).await? {
        let moved = release.branch.is_empty()
            || repo::contains(app, release.fleet_id, &release.branch, &release.source).await;
        tracing::info!(release = release.id, moved, "a release was left between build and push");
        let result = if moved {
            crate::releases::publish(app, &release.id).await.map(|_| ())
        } else {
            crate::releases::discard(app, &release.id).await
        };
        if let Err(problem) = result {
            tracing::error!(%problem, release = release.id, "settling a release");
        }
    }
    Ok(())
}
