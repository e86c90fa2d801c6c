//! One build at a time, fleets taking turns. A build belongs to the cloud, not to the push that asked for it: whoever
//! asks for the same while it waits or runs joins it, and nobody's leaving ends it.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use http::StatusCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Follower, Request, Status, log::Log, rows, run, source_file};
use crate::{
    app::App,
    error::{Problem, Result},
};

/// Builds that may wait, in all and of one fleet.
const MAX_WAITING: usize = 100;
const MAX_WAITING_OF_FLEET: usize = 10;

/// Sources of ended builds kept for each fleet, so that they can be tried again.
const KEPT_SOURCES: i64 = 5;

/// What came of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A release, prepared and not published.
    Succeeded {
        /// Its id.
        release: String,
    },
    /// None.
    Failed {
        /// Why, for whoever pushed.
        error: String,
    },
}

/// A build that waits or runs.
#[derive(Debug)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What it builds.
    pub request: Request,
    pub(super) log: Log,
    pub(super) cancel: CancellationToken,
    done: watch::Sender<Option<Outcome>>,
}

impl Job {
    /// Its log from the beginning, to its end.
    #[must_use]
    pub fn follow(&self) -> Follower {
        self.log.follow()
    }

    /// Waits for it.
    pub async fn outcome(&self) -> Outcome {
        let mut done = self.done.subscribe();
        match done.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("waited for"),
            Err(_) => Outcome::Failed { error: "the cloud stopped".to_owned() },
        }
    }

    fn is(&self, request: &Request) -> bool {
        let mine = &self.request;
        mine.fleet.fleet_id == request.fleet.fleet_id
            && mine.source == request.source
            && mine.branch == request.branch
            && mine.options == request.options
            && mine.fleet.arch == request.fleet.arch
    }
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<String, Arc<Job>>,
    waiting: VecDeque<Arc<Job>>,
    working: bool,
    turn: u64,
    last_turn: HashMap<copal_protocol::ids::FleetId, u64>,
}

/// The builds that wait and the one that runs.
#[derive(Debug, Default)]
pub struct Queue(Mutex<State>);

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A build that waits or runs.
    #[must_use]
    pub fn job(&self, id: &str) -> Option<Arc<Job>> {
        self.lock().jobs.get(id).cloned()
    }

    /// The build that an equal request already caused and that has not ended.
    #[must_use]
    pub fn find(&self, request: &Request) -> Option<Arc<Job>> {
        self.lock().jobs.values().find(|job| job.is(request)).cloned()
    }

    /// Ends every build, because the cloud stops.
    pub fn cancel_all(&self) {
        for job in self.lock().jobs.values() {
            job.cancel.cancel();
        }
    }

    /// Whose turn it is: the fleet that was served longest ago; within it, who came first.
    fn next(&self) -> Option<Arc<Job>> {
        let mut state = self.lock();
        let turn_of = |job: &Arc<Job>| state.last_turn.get(&job.request.fleet.fleet_id).copied().unwrap_or(0);
        let Some(index) = (0..state.waiting.len()).min_by_key(|&i| (turn_of(&state.waiting[i]), i)) else {
            state.working = false;
            return None;
        };
        let job = state.waiting.remove(index)?;
        state.turn += 1;
        let turn = state.turn;
        state.last_turn.insert(job.request.fleet.fleet_id, turn);
        Some(job)
    }
}

/// Queues a build of the tar at `source` (which is taken), or joins the equal one that waits or runs; the flag says
/// which.
///
/// # Errors
/// 429 `builds_waiting` when too many wait; otherwise when disk or database fail.
pub async fn submit(app: &App, request: Request, source: &Path) -> Result<(Arc<Job>, bool)> {
    if let Some(job) = app.builds.find(&request) {
        return Ok((job, true));
    }
    let id = crate::registry::random_id().map_err(Problem::internal)?;
    let log = Log::create(&log_file(app, &id), app.config.build.log).map_err(Problem::internal)?;
    let kept = source_file(app, &id);
    tokio::fs::rename(source, &kept).await.map_err(Problem::internal)?;
    let job = Arc::new(Job {
        id: id.clone(),
        request,
        log,
        cancel: app.stopping.child_token(),
        done: watch::Sender::new(None),
    });
    {
        let mut state = app.builds.lock();
        // Looked again under the lock: two equal pushes may have come this far together.
        let twin = state.jobs.values().find(|have| have.is(&job.request)).cloned();
        let of_fleet = |have: &Arc<Job>| have.request.fleet.fleet_id == job.request.fleet.fleet_id;
        let full = state.waiting.len() >= MAX_WAITING
            || state.waiting.iter().filter(|have| of_fleet(have)).count() >= MAX_WAITING_OF_FLEET;
        if twin.is_some() || full {
            drop(state);
            let _ = std::fs::remove_file(log_file(app, &id));
            let _ = std::fs::remove_file(&kept);
            return twin.map(|job| (job, true)).ok_or_else(|| {
                Problem::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "builds_waiting",
                    "Too many builds wait already; push again when some are through.",
                )
                .retry_after(60)
            });
        }
        state.jobs.insert(id.clone(), job.clone());
    }
    if let Err(error) = rows::insert(app, &id, &job.request).await {
        app.builds.lock().jobs.remove(&id);
        return Err(error.into());
    }
    let begin = {
        let mut state = app.builds.lock();
        state.waiting.push_back(job.clone());
        !std::mem::replace(&mut state.working, true)
    };
    if begin {
        tokio::spawn(work(app.clone()));
    } else {
        job.log.say("Waiting for another build to end.");
    }
    Ok((job, false))
}

/// Where a build's log is.
#[must_use]
pub(crate) fn log_file(app: &App, id: &str) -> std::path::PathBuf {
    app.config.logs().join(format!("{id}.log"))
}

/// Builds until nothing waits.
async fn work(app: App) {
    while let Some(job) = app.builds.next() {
        // A panic in a build must neither stop the queue nor leave anyone waiting.
        let inner = tokio::spawn(Box::pin(one(app.clone(), job.clone())));
        if let Err(error) = inner.await {
            tracing::error!(%error, build = job.id, "a build ended abnormally");
            end(&app, &job, Err(super::BuildError::internal("abnormal end"))).await;
        }
    }
}

async fn one(app: App, job: Arc<Job>) {
    let fleet = job.request.fleet.fleet_id.to_string();
    if let Err(error) = rows::started(&app, &fleet, &job.id).await {
        tracing::error!(%error, build = job.id, "noting the start of a build");
    }
    let limit = super::time_limit(&app);
    let result = tokio::select! {
        result = tokio::time::timeout(limit, Box::pin(run::build(&app, &job))) => result.unwrap_or_else(|_| {
            Err(super::BuildError::new(format!(
                "the build took longer than {} minutes and was ended; make it smaller, or raise `build.time_s` in the cloud's settings",
                limit.as_secs() / 60
            )))
        }),
        () = job.cancel.cancelled() => Err(super::BuildError::new(format!(
            "interrupted: the cloud stopped while this was being built. Push again, or: copal build retry {}", job.id
        ))),
    };
    if result.is_err() {
        run::clean(&app, false).await;
    }
    end(&app, &job, result).await;
}

async fn end(app: &App, job: &Job, result: std::result::Result<String, super::BuildError>) {
    let fleet = job.request.fleet.fleet_id.to_string();
    let (status, outcome) = match result {
        Ok(release) => (Status::Succeeded, Outcome::Succeeded { release }),
        Err(error) => {
            job.log.say(&format!("\nFAILED  {error}"));
            (Status::Failed, Outcome::Failed { error: error.to_string() })
        }
    };
    let (error, release) = match &outcome {
        Outcome::Succeeded { release } => (None, Some(release.as_str())),
        Outcome::Failed { error } => (Some(error.as_str()), None),
    };
    if let Err(error) = rows::finished(app, &fleet, &job.id, status, error, release).await {
        tracing::error!(%error, build = job.id, "noting the end of a build");
    }
    job.log.end();
    app.builds.lock().jobs.remove(&job.id);
    job.done.send_replace(Some(outcome));
    if let Err(error) = forget_sources(app, &fleet).await {
        tracing::warn!(%error, "removing old sources");
    }
}

/// Keeps the sources of a fleet's newest builds only.
async fn forget_sources(app: &App, fleet_id: &str) -> sqlx::Result<()> {
    let old: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM builds WHERE fleet_id = $1 AND status NOT IN ('queued', 'running')
         ORDER BY created_at DESC, id DESC LIMIT 50 OFFSET $2",
    )
    .bind(fleet_id)
    .bind(KEPT_SOURCES)
    .fetch_all(app.db.read())
    .await?;
    for id in old {
        let _ = tokio::fs::remove_file(source_file(app, &id)).await;
    }
    Ok(())
}
