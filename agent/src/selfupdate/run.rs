//! The running agent's part: fetch what is wanted and put it on trial; on trial, say whether it is well.

use std::{path::PathBuf, sync::Arc, time::Duration};

use copal_protocol::{
    documents::{AgentReport, HostPayload, Progress, Reason},
    verify::Error,
};
use tokio::{sync::watch, time::Instant};

use super::{
    FOLDER, RECORD,
    fetch::{Fetch, FetchError, MAX_BYTES, hash_of},
    launch::Launched,
    place,
    record::{Build, Record, Trial, Verdict},
};
use crate::{
    apply::status::{AgentStatus, reason},
    clock::Clock,
    cloud::{Backoff, random},
    engine::EngineApi,
    identity::Session,
    state::{StateDir, StateError},
    target::{
        Condition, Store,
        model::{HostAim, HostPart, HostRelease, PAUSED, Target},
    },
};

/// How long a trial must be well without a break.
const WELL: Duration = Duration::from_secs(30);
/// When a trial that is not well by then is undone.
const DEADLINE: Duration = Duration::from_secs(300);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// How long an update of apps may hold the agent's own back.
const PATIENCE: Duration = Duration::from_secs(600);
/// Wrong bytes are not downloaded again sooner than this, unless the target changes.
const COSTLY: Duration = Duration::from_secs(600);
/// An inconclusive trial is made again after this many seconds; twice as many each further time.
const AGAIN_S: u64 = 3600;

/// The signed file of a release of the agent.
fn payload(wanted: &HostRelease) -> Option<&HostPayload> {
    wanted.release.payloads.get("agent")
}

fn build(wanted: &HostRelease, payload: &HostPayload) -> Build {
    Build {
        release: wanted.release.sha256(),
        retry: wanted.retry,
        file: payload.sha256,
        version: wanted.release.version.clone(),
    }
}

/// How long trials take; shorter in tests.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a trial must be well without a break.
    pub well: Duration,
    /// When a trial that is not well by then is undone.
    pub deadline: Duration,
    /// How long an update of apps may hold the agent's own back.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { well: WELL, deadline: DEADLINE, patience: PATIENCE }
    }
}

impl Pace {
    /// As the environment asks: `COPAL_AGENT_TRIAL_S` is how long a trial must be well, and a tenth of its deadline.
    #[must_use]
    pub fn from_environment() -> Self {
        let asked = std::env::var("COPAL_AGENT_TRIAL_S").ok().and_then(|text| text.parse::<u64>().ok());
        asked.filter(|s| (1..=3600).contains(s)).map_or_else(Self::default, |s| {
            let well = Duration::from_secs(s);
            Self { well, deadline: well * 10, ..Self::default() }
        })
    }
}

/// How the agent's own update stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SelfStatus {
    /// As reports carry it.
    pub report: AgentReport,
    /// (assign_epoch, seq) of the newest target whose agent runs, committed (or which names none).
    pub applied: Option<(u64, u64)>,
}

/// What it works with.
pub struct Updater {
    /// To the cloud.
    pub session: Arc<Session>,
    /// Durable state.
    pub state: Arc<StateDir>,
    /// Wall clock, to tell when a trial ends.
    pub clock: Clock,
    /// When this process began.
    pub since: Instant,
    /// Answers in health.
    pub engine: Arc<dyn EngineApi>,
    /// Remembers what was begun and committed, with its floors.
    pub store: Arc<Store>,
    /// What this process is.
    pub launched: Launched,
    /// How long things take.
    pub pace: Pace,
    /// What should run; `None` until something is known.
    pub targets: watch::Receiver<Option<Arc<Target>>>,
    /// How the cloud answers.
    pub condition: watch::Receiver<Condition>,
    /// How the apps stand.
    pub status: watch::Receiver<AgentStatus>,
    /// What is told.
    pub told: watch::Sender<SelfStatus>,
}

impl Updater {
    /// Works until another binary should take this process's place (see [`super::launch::again`]).
    pub async fn run(mut self) {
        let mut record = match self.state.load::<Record>(RECORD) {
            Ok(record) => record.unwrap_or_default(),
            Err(e) => {
                tracing::error!(error = %e, "what is known of agents cannot be read; the agent does not update itself");
                self.tell(|r| r.reason = Some(reason(e.code(), e.to_string())));
                return std::future::pending().await;
            }
        };
        if self.launched.on_trial && self.on_trial(&mut record).await {
            return;
        }
        self.clean(&record);
        let mut backoff = Backoff::default();
        loop {
            let target = self.targets.borrow_and_update().clone();
            let wanted = target.as_deref().and_then(|t| aim(&t.agent));
            let held = match target.as_deref() {
                Some(t) if t.may_install => None,
                Some(t) if t.paused => Some(("paused", PAUSED)),
                _ => Some(("not_fresh", "the cloud has not vouched yet that this is the newest assignment")),
            };
            let order = target.as_deref().map(|t| t.order);
            let wait = match self.step(&mut record, wanted, held).await {
                Ok(Step::Restart) => return,
                Ok(Step::Wait(wait)) => wait,
                Ok(Step::OnTarget) => {
                    self.told.send_if_modified(|now| std::mem::replace(&mut now.applied, order) != order);
                    None
                }
                Err(e) => {
                    let wait = backoff.failed(std::time::Instant::now(), None, random());
                    let wait = if e.is_costly() { wait.max(COSTLY) } else { wait };
                    tracing::warn!(error = %e, retry_s = wait.as_secs(), "the agent's own update waits");
                    self.tell(|r| {
                        r.reason = Some(of(reason(e.code(), e.to_string()), wanted));
                        r.progress = None;
                    });
                    Some(wait)
                }
            };
            let sleep = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(86_400)));
            tokio::select! {
                changed = self.targets.changed() => if changed.is_err() { return std::future::pending().await },
                () = sleep => {}
            }
        }
    }

    /// Compares what runs with what should, and brings it.
    async fn step(
        &mut self,
        record: &mut Record,
        wanted: Option<&HostRelease>,
        held: Option<(&str, &str)>,
    ) -> Result<Step, StepError> {
        let runs = record.committed.clone();
        self.tell(|r| {
            *r = AgentReport {
                release: runs.as_ref().map(|build| build.release),
                failed: record.parked.as_ref().map(|p| p.build.release),
                ..AgentReport::default()
            }
        });
        let Some(wanted) = wanted else { return Ok(Step::OnTarget) };
        if runs.as_ref().is_some_and(|b| (b.release, b.retry) == (wanted.release.sha256(), wanted.retry)) {
            return Ok(Step::OnTarget);
        }
        if let Some(verdict) = record.parked(wanted.release.sha256(), wanted.retry) {
            // Counted by this process's own clock: a wall clock may stand still in 1970, or be set back by years.
            let left =
                verdict.again_after.map(|s| Duration::from_secs(s).saturating_sub(self.since.elapsed()));
            if left != Some(Duration::ZERO) {
                self.tell(|r| r.reason = Some(of(reason(&verdict.code, &verdict.message), Some(wanted))));
                return Ok(Step::Wait(left));
            }
        }
        if let Some((code, message)) = held {
            self.tell(|r| r.reason = Some(of(reason(code, message), Some(wanted))));
            return Ok(Step::Wait(None));
        }
        let Some(payload) = payload(wanted) else { return Err(StepError::NoAgent) };
        if payload.size > MAX_BYTES {
            return Err(StepError::TooLarge(payload.size));
        }
        let build = build(wanted, payload);
        if self.is_this_binary(&build).await {
            // A person installed the very one: nothing to try.
            tracing::info!(version = %build.version, "the wanted agent runs already");
            self.store.commit_host(HostPart::Agent, build.release)?;
            record.trial = Some(Trial { build, starts: 0, had_cloud: true, had_engine: true, verdict: None });
            record.commit(self.launched.base.clone());
            self.state.save(RECORD, record)?;
            return Ok(Step::Wait(Some(Duration::ZERO)));
        }
        // As it was when the download began: what a cloud that went away since hides, a trial must not be excused for.
        let had_cloud = self.condition.borrow().online;
        self.fetch(wanted, payload).await?;
        self.wait_for_apps().await;
        // Perhaps hours went by: what is wanted now is looked at again, and the root may have changed.
        let now = self.targets.borrow().as_deref().and_then(|t| aim(&t.agent).cloned());
        if now.as_ref() != Some(wanted) {
            return Ok(Step::Wait(Some(Duration::ZERO)));
        }
        self.store.begin_host(HostPart::Agent, build.release)?;
        record.trial = Some(Trial {
            build,
            starts: 0,
            had_cloud,
            had_engine: self.engine.version().await.is_ok(),
            verdict: None,
        });
        self.state.save(RECORD, record)?;
        tracing::info!(version = %wanted.release.version, "another agent goes on trial; containers stay up");
        Ok(Step::Restart)
    }

    async fn fetch(&self, wanted: &HostRelease, payload: &HostPayload) -> Result<(), FetchError> {
        let total = payload.size;
        let tell = |done: u64| {
            self.tell(|r| {
                let message = format!("agent {} is being downloaded", wanted.release.version);
                r.reason = Some(of(reason("agent_downloading", message), Some(wanted)));
                r.progress =
                    Some(Progress { stage: "agent_downloading".to_owned(), done, total, trial_ends: None });
            });
        };
        tell(0);
        let state_dir = self.state.path();
        let fetch = Fetch { session: &self.session, state_dir, file: payload.sha256, size: total };
        fetch.bring(tell).await
    }

    /// Restarting the agent never harms an update of apps, but begins its trial's clock anew.
    async fn wait_for_apps(&mut self) {
        let busy = |status: &AgentStatus| status.apps.values().any(|app| app.progress.is_some());
        let idle = self.status.wait_for(|status| !busy(status));
        let _ = tokio::time::timeout(self.pace.patience, idle).await;
    }

    async fn is_this_binary(&self, build: &Build) -> bool {
        let Ok(this) = std::env::current_exe() else { return false };
        // Only the installed one may stand for itself: a fetched one is in the record already.
        this == self.launched.launcher
            && hash_of(&this).await.is_ok_and(|(hash, _)| hash == build.file)
            && self.keep(&this, build).await.is_ok()
    }

    /// A copy in the folder of fetched ones: the installed one may be replaced under us.
    async fn keep(&self, this: &std::path::Path, build: &Build) -> std::io::Result<()> {
        let folder = self.state.path().join(FOLDER);
        tokio::fs::create_dir_all(&folder).await?;
        let to = place(self.state.path(), build.file);
        let temp: PathBuf = to.with_extension("part");
        tokio::fs::copy(this, &temp).await?;
        tokio::fs::File::open(&temp).await?.sync_all().await?;
        tokio::fs::rename(&temp, &to).await?;
        tokio::fs::File::open(&folder).await?.sync_all().await
    }

    /// Whether this trial is to be left (its verdict is durable then); else it was committed.
    async fn on_trial(&mut self, record: &mut Record) -> bool {
        let Some(trial) = record.trial.clone() else {
            tracing::error!("started as a trial that the record does not know; going back");
            return true;
        };
        let began = Instant::now();
        let mut well_since: Option<Instant> = None;
        let verdict = loop {
            let health = self.health(&trial).await;
            let now = Instant::now();
            well_since = if health.is_well() { well_since.or(Some(now)) } else { None };
            if well_since.is_some_and(|since| now - since >= self.pace.well) {
                break None;
            }
            if now - began >= self.pace.deadline {
                break Some(health.verdict(&trial.build, self.pace.deadline));
            }
            let message = format!("agent {} is on trial", trial.build.version);
            self.tell(|r| {
                r.reason =
                    Some(Reason { release: Some(trial.build.release), ..reason("agent_trial", message) });
                let ends = self.clock.now() + self.pace.well.as_secs();
                r.progress.get_or_insert(Progress {
                    stage: "agent_trial".to_owned(),
                    done: 0,
                    total: 0,
                    trial_ends: Some(ends),
                });
            });
            tokio::time::sleep(LOOK.min(self.pace.well)).await;
        };
        match verdict {
            None => {
                let committed = self.store.commit_host(HostPart::Agent, trial.build.release).and_then(|()| {
                    record.commit(self.launched.base.clone());
                    self.state.save(RECORD, record)
                });
                match committed {
                    Ok(_) => {
                        tracing::info!(version = %trial.build.version, "this agent is well and committed");
                        self.launched.on_trial = false;
                        false
                    }
                    Err(e) => {
                        // Not written down, it is on trial still: the next start counts.
                        tracing::error!(error = %e, "the commit could not be written; the agent before goes on");
                        true
                    }
                }
            }
            Some(verdict) => {
                tracing::error!(code = verdict.code, message = verdict.message, "this agent is undone");
                if let Some(trial) = &mut record.trial {
                    trial.verdict = Some(verdict);
                }
                if let Err(e) = self.state.save(RECORD, record) {
                    tracing::error!(error = %e, "the verdict could not be written; the starts are counted instead");
                }
                true
            }
        }
    }

    async fn health(&self, trial: &Trial) -> Health {
        let engine = !trial.had_engine || self.engine.version().await.is_ok();
        let cloud = !trial.had_cloud || self.condition.borrow().online;
        Health { engine, cloud }
    }

    /// Removes binaries nobody needs any more.
    fn clean(&self, record: &Record) {
        let keep: Vec<String> = record.files().map(|file| file.to_string()).collect();
        let folder = self.state.path().join(FOLDER);
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !keep.contains(&name) && !name.ends_with(".part") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut AgentReport)) {
        self.told.send_if_modified(|now| {
            let before = now.clone();
            change(&mut now.report);
            *now != before
        });
    }
}

fn aim(agent: &HostAim) -> Option<&HostRelease> {
    match agent {
        HostAim::Release(release) => Some(release),
        HostAim::Unknown | HostAim::None | HostAim::Refused(_) => None,
    }
}

enum Step {
    OnTarget,
    Restart,
    Wait(Option<Duration>),
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{}", .0.detail)]
    Refused(#[from] Error),
    #[error("the release carries no agent: it was assigned as an agent by mistake")]
    NoAgent,
    #[error("the agent has {0} bytes, at most {MAX_BYTES} are accepted")]
    TooLarge(u64),
}

impl StepError {
    /// Trying again means downloading all of it again.
    const fn is_costly(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Corrupt { .. }))
    }

    fn code(&self) -> &str {
        match self {
            Self::Fetch(e) => e.code(),
            Self::State(e) => e.code(),
            Self::Refused(e) => e.code.as_str(),
            Self::NoAgent | Self::TooLarge(_) => "E_PAYLOAD",
        }
    }
}

/// What a trial is judged by.
#[derive(Debug, Clone, Copy)]
struct Health {
    engine: bool,
    cloud: bool,
}

impl Health {
    const fn is_well(self) -> bool {
        self.engine && self.cloud
    }

    /// A cloud that is away proves nothing against the agent; it is tried again later.
    fn verdict(self, build: &Build, after: Duration) -> Verdict {
        let (version, s) = (&build.version, after.as_secs());
        if !self.engine {
            return Verdict {
                code: "agent_unhealthy".to_owned(),
                message: format!(
                    "agent {version} did not reach the container engine within {s} s, which the agent before it did; that one runs again"
                ),
                again_after: None,
            };
        }
        Verdict {
            code: "agent_cloud_unreachable".to_owned(),
            message: format!(
                "agent {version} did not reach the cloud within {s} s, which the agent before it did; that one runs again, and this one is tried again later"
            ),
            again_after: Some(AGAIN_S),
        }
    }
}

fn of(reason: Reason, wanted: Option<&HostRelease>) -> Reason {
    Reason { release: wanted.map(|w| w.release.sha256()), ..reason }
}
