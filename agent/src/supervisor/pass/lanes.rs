//! Lanes: which are set to work, and what is made of how they ended.
//!
//! A lane at work is left alone. Its outcome is only taken in here; whether that speaks against a release is judged
//! elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use copal_protocol::ids::AppId;
use tokio::{task::Id, time::Instant};
use tokio_util::sync::CancellationToken;

use super::Supervisor;
use crate::{
    apply::{
        backoff,
        lane::{Outcome, Stage, Work},
        ports::ApplyError,
        trial::Trial,
    },
    plan::{self, Action, Lane, Need, Plan},
};

/// How often a lock that is held is asked for again.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// A lane, by app and object.
pub(in crate::supervisor) type LaneKey = (AppId, Lane);

/// What is known of a lane between two looks.
#[derive(Default)]
pub(in crate::supervisor) struct LaneState {
    pub(in crate::supervisor) running: Option<Running>,
    pub(in crate::supervisor) failures: u32,
    pub(in crate::supervisor) error: Option<ApplyError>,
    pub(in crate::supervisor) retry_at: Option<Instant>,
    pub(in crate::supervisor) locked: bool,
    pub(in crate::supervisor) blocked: Option<plan::Blocked>,
    pub(in crate::supervisor) waits: Option<Need>,
}

/// A lane at work.
pub(in crate::supervisor) struct Running {
    cancel: CancellationToken,
    pub(in crate::supervisor) stage: Arc<Mutex<Stage>>,
    pub(in crate::supervisor) done: Arc<AtomicU64>,
    pub(in crate::supervisor) total: Arc<AtomicU64>,
}

impl Supervisor {
    /// Sets every lane to work that is free, not waiting, and has a first step that needs nothing.
    pub(super) fn dispatch(&mut self, plan: &Plan, next: &mut Instant) {
        let now = Instant::now();
        let planned: BTreeSet<LaneKey> =
            plan.apps.iter().flat_map(|(id, app)| app.lanes.keys().map(|lane| (*id, lane.clone()))).collect();
        self.lanes.retain(|key, lane| lane.running.is_some() || planned.contains(key));
        for (id, app_plan) in &plan.apps {
            for (lane, lane_plan) in &app_plan.lanes {
                let key = (*id, lane.clone());
                let state = self.lanes.entry(key.clone()).or_default();
                if state.running.is_some() {
                    continue;
                }
                state.blocked.clone_from(&lane_plan.blocked);
                state.waits = None;
                if state.blocked.is_some() {
                    // What failed before is not what stands in the way now.
                    state.error = None;
                }
                if let Some(at) = state.retry_at.filter(|at| *at > now) {
                    *next = (*next).min(at);
                    continue;
                }
                let actions: Vec<Action> = lane_plan
                    .steps
                    .iter()
                    .take_while(|step| step.after.is_empty())
                    .map(|step| step.action.clone())
                    .collect();
                if actions.is_empty() {
                    state.waits = lane_plan.steps.first().and_then(|step| step.after.first()).cloned();
                    continue;
                }
                if self.ready(*id, &actions) {
                    self.spawn(key, actions);
                }
            }
        }
    }

    /// A trial is written down before its first effect; a download is none.
    fn ready(&mut self, id: AppId, actions: &[Action]) -> bool {
        let Some(app) = self.apps.get_mut(&id) else { return true };
        if !app.on_trial() || app.trial.is_some() || actions.iter().all(|a| matches!(a, Action::Download)) {
            return true;
        }
        let (Some(key), Some(target)) = (app.key, &app.target) else { return true };
        if self.ledger.trial(id) != Some(key)
            && let Err(error) = self.ledger.begin_trial(target)
        {
            tracing::error!(app = %id, %error, "the trial cannot be written down, so it does not begin");
            return false;
        }
        // With nothing behind it, and just failed: what is set to work now is its next try.
        if app.first_failure.as_ref().is_none_or(|(.., until)| *until <= Instant::now()) {
            app.trial = Some(Trial::begin(key, self.state.apps.get(&id)));
        }
        true
    }

    fn spawn(&mut self, key: LaneKey, actions: Vec<Action>) {
        let wanted = self.apps.get(&key.0).and_then(|app| app.wanted.clone());
        let service = key.1.service().and_then(|name| wanted.as_ref()?.services.get(name).cloned());
        let image = service.as_ref().and_then(|s| self.state.images.get(&s.image.config_digest)).cloned();
        let (done, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let first =
            if actions.first() == Some(&Action::Download) { Stage::Downloading } else { Stage::Applying };
        let stage = Arc::new(Mutex::new(first));
        let progress = {
            let (done, total) = (done.clone(), total.clone());
            Arc::new(move |had: u64, of: u64| {
                done.store(had, Ordering::Relaxed);
                total.store(of, Ordering::Relaxed);
            })
        };
        let cancel = CancellationToken::new();
        let work =
            Work { app: key.0, lane: key.1.clone(), actions, wanted, image, progress, stage: stage.clone() };
        let (hands, token) = (self.hands.clone(), cancel.clone());
        let handle = self.at_work.spawn(async move { hands.run(work, token).await });
        self.ids.insert(handle.id(), key.clone());
        self.lanes.entry(key).or_default().running = Some(Running { cancel, stage, done, total });
    }

    /// Waits for a lane (or the emptying of volumes) to end, and takes in all that have. Never ends while none is at work.
    pub(in crate::supervisor) async fn work_ends(&mut self) {
        tokio::select! {
            Some(ended) = self.at_work.join_next_with_id() => self.take_in(ended),
            Some(ended) = self.purges.join_next() => self.take_emptied(ended),
            else => std::future::pending().await,
        }
        while let Some(ended) = self.at_work.try_join_next_with_id() {
            self.take_in(ended);
        }
    }

    fn take_in(&mut self, ended: Result<(Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok(pair) => pair,
            Err(error) => {
                let failed = ApplyError::new("start_failed", format!("a lane ended abnormally: {error}"));
                (error.id(), Outcome::Failed(failed))
            }
        };
        let Some(key) = self.ids.remove(&id) else { return };
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let cancelled = lane.running.take().is_some_and(|r| r.cancel.is_cancelled());
        match outcome {
            // Superseded: its failure says nothing of what is wanted now.
            _ if cancelled => {}
            Outcome::Cancelled => {}
            Outcome::Done => {
                self.said.remove(&(key.0, Some(key.1.clone())));
                *lane = LaneState { retry_at: lane.retry_at, ..LaneState::default() };
            }
            Outcome::Locked => {
                lane.locked = true;
                lane.error = None;
                lane.retry_at = Some(Instant::now() + LOCK_RETRY);
            }
            Outcome::Failed(error) => {
                lane.locked = false;
                lane.failures += 1;
                let wait = backoff::wait(lane.failures, backoff::random());
                let said = self.said.entry((key.0, Some(key.1.clone()))).or_default();
                if let Some(times) = said.failed(&error.code, &error.message) {
                    tracing::warn!(app = %key.0, lane = %key.1, %error, times, wait_ms = wait.as_millis(), "failed");
                }
                lane.retry_at = Some(Instant::now() + wait);
                lane.error = Some(error);
            }
        }
    }

    /// Whether an image is on its way.
    pub(in crate::supervisor) fn is_downloading(&self) -> bool {
        self.lanes.values().filter_map(|lane| lane.running.as_ref()).any(Running::downloads)
    }
}

impl Running {
    /// Calls it off: it ends between two effects.
    pub(in crate::supervisor) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(in crate::supervisor) fn downloads(&self) -> bool {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) == Stage::Downloading
    }
}

/// Ends what a newer target wants otherwise, and forgets how often it failed. A lane whose service is the same in both
/// goes on: its download is still wanted.
pub(super) fn supersede(
    lanes: &mut BTreeMap<LaneKey, LaneState>,
    id: AppId,
    before: Option<&plan::wanted::WantedApp>,
    after: Option<&plan::wanted::WantedApp>,
) {
    for ((app, lane), state) in lanes.iter_mut().filter(|((app, _), _)| *app == id) {
        debug_assert_eq!(*app, id);
        let hash = |of: Option<&plan::wanted::WantedApp>| {
            lane.service().and_then(|name| of?.services.get(name)).map(|service| service.hash.clone())
        };
        let (old, new) = (hash(before), hash(after));
        let same = old.is_some() && old == new;
        let running = state.running.take();
        if let Some(running) = running.as_ref().filter(|_| !same) {
            running.cancel.cancel();
        }
        *state = LaneState { running, ..LaneState::default() };
    }
}
