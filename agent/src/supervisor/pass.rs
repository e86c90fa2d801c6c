//! One turn of the loop.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use copal_protocol::{
    documents::Reason,
    ids::{AppId, Digest, Name},
};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    ABSENT_CAP, Deps, RESYNC,
    app::{App, Apps},
};
use crate::{
    apply::{
        backoff,
        hush::Hush,
        lane::{Hands, Outcome, Stage, Work},
        ports::{ApplyError, Images, Ledger},
        shared::Shared,
        status::{AgentStatus, reason},
        trial::{Choice, Failure, Look, Trial, Verdict},
    },
    engine::EngineApi,
    observe::{State, observe},
    plan::{
        self, Action, Lane, Need, Plan, Policy,
        wanted::{Context, Wanted},
    },
    target::model::Target,
};

/// How often a lock that is held is asked for again.
const LOCK_RETRY: Duration = Duration::from_secs(1);
/// An app with nothing to fall back to gets at least this long between two trials.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// A lane, by app and object.
pub(super) type LaneKey = (AppId, Lane);

/// What is known of a lane between two looks.
#[derive(Default)]
pub(super) struct LaneState {
    pub(super) running: Option<Running>,
    pub(super) failures: u32,
    pub(super) error: Option<ApplyError>,
    pub(super) retry_at: Option<Instant>,
    pub(super) locked: bool,
    pub(super) blocked: Option<plan::Blocked>,
    pub(super) waits: Option<Need>,
}

/// A lane at work.
pub(super) struct Running {
    cancel: CancellationToken,
    pub(super) stage: Arc<Mutex<Stage>>,
    pub(super) done: Arc<AtomicU64>,
    pub(super) total: Arc<AtomicU64>,
}

/// The loop's memory. Losing it costs one look.
pub(super) struct Supervisor {
    pub(super) engine: Arc<dyn EngineApi>,
    images: Arc<dyn Images>,
    ledger: Arc<dyn Ledger>,
    hands: Hands,
    pub(super) cx: Arc<Context>,
    healthy_after_ms: u64,
    started: Instant,
    target: Option<Arc<Target>>,
    pub(super) apps: Apps,
    pub(super) lanes: BTreeMap<LaneKey, LaneState>,
    at_work: JoinSet<Outcome>,
    ids: HashMap<Id, LaneKey>,
    pub(super) state: State,
    pub(super) applied: Option<(u64, u64)>,
    absent: Option<(Duration, Reason)>,
    /// What was said of each lane's failures, and (without a lane) of each app's trials.
    said: BTreeMap<(AppId, Option<Lane>), Hush>,
    retained: Option<BTreeSet<Digest>>,
    status: watch::Sender<AgentStatus>,
}

impl Supervisor {
    pub(super) fn new(deps: Deps, status: watch::Sender<AgentStatus>) -> Self {
        let cx = Arc::new(deps.settings.context());
        let shared = Shared::new(deps.settings.run_dir.clone());
        Self {
            hands: Hands::new(deps.engine.clone(), deps.images.clone(), cx.clone(), shared),
            engine: deps.engine,
            images: deps.images,
            ledger: deps.ledger,
            cx,
            healthy_after_ms: u64::try_from(deps.settings.healthy_after.as_millis()).unwrap_or(u64::MAX),
            started: Instant::now(),
            target: None,
            apps: Apps::new(),
            lanes: BTreeMap::new(),
            at_work: JoinSet::new(),
            ids: HashMap::new(),
            state: State::default(),
            applied: None,
            absent: None,
            said: BTreeMap::new(),
            retained: None,
            status,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Looks, decides, sets lanes to work. Gives the time of the next look, whatever happens.
    pub(super) async fn pass(&mut self, target: Option<Arc<Target>>) -> Instant {
        self.take(target);
        let Some(target) = self.target.clone() else {
            self.tell();
            return Instant::now() + RESYNC;
        };
        match observe(self.engine.as_ref(), &self.cx.instance).await {
            Ok(state) => {
                if self.absent.take().is_some() {
                    tracing::info!("the container engine answers again");
                }
                self.state = state;
            }
            Err(error) => return self.engine_fails(&error),
        }
        // Judging can change what is wanted, once for each app: a failed trial falls back, a passed one is committed.
        for _ in 0..=target.apps.len() {
            let wanted = self.resolve(&target);
            self.look_for_images(&wanted).await;
            let plan = plan::plan(&self.state, &wanted, &self.policy());
            let (again, mut next) = self.judge(&plan).await;
            if again {
                continue;
            }
            self.dispatch(&plan, &mut next);
            self.finish_removed(&target, &plan);
            self.mark_applied(&target, &plan);
            self.retain(&target).await;
            self.tell();
            return next;
        }
        self.tell();
        Instant::now()
    }

    fn take(&mut self, target: Option<Arc<Target>>) {
        let same = match (&self.target, &target) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if same || target.is_none() {
            return;
        }
        // The fallback is verified when it is loaded, and a new root may have revoked it.
        for (id, app) in &mut self.apps {
            app.committed = self.ledger.committed(*id);
            app.parked = self.ledger.parked(*id).or(app.parked.take());
        }
        self.target = target;
    }

    fn engine_fails(&mut self, error: &crate::engine::EngineError) -> Instant {
        let wait =
            self.absent.as_ref().map_or(Duration::from_millis(250), |(wait, _)| (*wait * 2).min(ABSENT_CAP));
        if self.absent.is_none() {
            tracing::warn!(%error, "the container engine cannot be asked; trying again");
        }
        let message =
            format!("{error}; containers that run are not touched, and it is tried again every few seconds");
        self.absent = Some((wait, reason("engine_absent", message)));
        self.tell();
        Instant::now() + wait
    }

    /// What should be, app by app; cancels lanes of apps whose effective target changed.
    fn resolve(&mut self, target: &Target) -> Wanted {
        let mut wanted = Wanted::default();
        for (id, want) in &target.apps {
            let app = self.apps.entry(*id).or_insert_with(|| App::load(*id, self.ledger.as_ref()));
            let before = app.wanted.clone();
            let had = app.key;
            let changed = app.resolve(&self.cx, want, self.ledger.trial(*id), target.may_install);
            if changed {
                // Of another target the same failure is news.
                self.said.retain(|(of, _), _| of != id);
            }
            if changed && had.is_some() {
                supersede(&mut self.lanes, *id, before.as_deref(), app.wanted.as_deref());
            }
            if let Some(one) = app.wanted.as_ref().filter(|_| app.key != had) {
                self.hands.prepare(*id, one);
            }
            match &app.wanted {
                Some(one) => drop(wanted.apps.insert(*id, one.clone())),
                // Nothing may run that is not committed, and nothing is.
                None => drop(wanted.frozen.insert(*id)),
            }
        }
        for (id, app) in &mut self.apps {
            if !target.apps.contains_key(id) && app.target.is_some() {
                supersede(&mut self.lanes, *id, app.wanted.as_deref(), None);
                *app = App { committed: app.committed.take(), ..App::default() };
            }
        }
        wanted
    }

    fn policy(&self) -> Policy {
        let failing = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.error.is_some() || lane.blocked.is_some())
            .filter_map(|((app, lane), _)| Some((*app, lane.service()?.clone())))
            .collect();
        Policy { prefix: self.cx.prefix.clone(), failing }
    }

    async fn look_for_images(&mut self, wanted: &Wanted) {
        for (id, app) in &wanted.apps {
            for service in plan::needs_image(&self.state, *id, app) {
                let digest = service.image.config_digest;
                if self.state.images.contains_key(&digest) {
                    continue;
                }
                match self.images.present(&service.image).await {
                    Ok(Some(image)) => drop(self.state.images.insert(digest, image)),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "an image cannot be looked for"),
                }
            }
        }
    }

    /// Judges every trial under way. Whether anything that is wanted changed by that, and when to look again.
    async fn judge(&mut self, plan: &Plan) -> (bool, Instant) {
        let mut next = Instant::now() + RESYNC;
        let now_ms = self.now_ms();
        let mut verdicts = Vec::new();
        let empty = crate::observe::AppState::default();
        for (id, app) in &mut self.apps {
            let (Some(wanted), true) = (&app.wanted, app.on_trial()) else { continue };
            let Some(key) = app.key else { continue };
            let seen = self.state.apps.get(id).unwrap_or(&empty);
            if app.first_failure.as_ref().is_some_and(|(.., until)| *until > Instant::now()) {
                next = next.min(app.first_failure.as_ref().map_or(next, |(.., until)| *until));
                continue;
            }
            if app.trial.is_none() {
                // Journalled before: the agent was restarted within the trial. Nothing to do: it begins with no effect.
                let idle = plan.apps.get(id).is_none_or(|p| p.lanes.is_empty());
                if self.ledger.trial(*id) != Some(key) {
                    if !idle {
                        continue;
                    }
                    let Some(target) = &app.target else { continue };
                    if let Err(error) = self.ledger.begin_trial(target) {
                        tracing::error!(%error, "the trial cannot be written down");
                        continue;
                    }
                }
                app.trial = Some(Trial::begin(key, Some(seen)));
            }
            let Some(trial) = &mut app.trial else { continue };
            let failed = failures(&self.lanes, *id);
            let object_failed = object_failure(&self.lanes, *id);
            let look = Look {
                now_ms,
                wanted,
                app: seen,
                failed: &failed,
                object_failed: object_failed.as_ref(),
                healthy_after_ms: self.healthy_after_ms,
            };
            match trial.look(&look) {
                Verdict::Going { ends_ms, look_ms, waits_for } => {
                    if let Some(at) = look_ms {
                        next = next.min(self.started + Duration::from_millis(at));
                    }
                    let left = ends_ms.map(|ends| ends.saturating_sub(now_ms).div_ceil(1000));
                    let ends = left.map(|left| unix_now() + left);
                    // Whole seconds of two clocks: a difference of one is none.
                    if ends.is_none()
                        || app.trial_ends.is_none_or(|old| ends.is_some_and(|new| new.abs_diff(old) > 1))
                    {
                        app.trial_ends = ends;
                    }
                    app.waits_for = waits_for;
                }
                verdict => verdicts.push((*id, verdict)),
            }
        }
        let mut changed = false;
        for (id, verdict) in verdicts {
            changed |= match verdict {
                Verdict::Passed => self.commit(id),
                Verdict::Failed(failure) => self.undo(id, failure).await,
                Verdict::Going { .. } => false,
            };
        }
        (changed, next)
    }

    fn commit(&mut self, id: AppId) -> bool {
        let Some(app) = self.apps.get_mut(&id) else { return false };
        let Some(target) = app.target.clone() else { return false };
        if let Err(error) = self.ledger.commit(&target) {
            tracing::error!(app = %id, %error, "the release proved itself but cannot be committed; trying again");
            return false;
        }
        tracing::info!(app = %id, release = %target.release.sha256(), "committed");
        app.committed = Some(target);
        app.parked = None;
        app.first_failure = None;
        true
    }

    /// Ends a trial badly: back to what is committed, or, with nothing to go back to, another try later.
    async fn undo(&mut self, id: AppId, failure: Failure) -> bool {
        let log_tail = match &failure.container {
            Some(container) => self.engine.log_tail(container).await,
            None => Vec::new(),
        };
        let Some(app) = self.apps.get_mut(&id) else { return false };
        let (Some(key), Some(target)) = (app.key, app.target.clone()) else { return false };
        let said = self.said.entry((id, None)).or_default();
        if let Some(times) = said.failed(failure.code, &failure.message) {
            tracing::warn!(app = %id, code = failure.code, times, "the trial failed: {}", failure.message);
        }
        let mut why = reason(failure.code, failure.message.clone());
        why.release = Some(target.release.sha256());
        why.service.clone_from(&failure.service);
        why.exit_code = failure.exit_code;
        why.log_tail = log_tail;
        app.trial = None;
        app.trial_ends = None;
        if app.choice == Some(Choice::First) {
            let times = app.first_failure.as_ref().map_or(1, |(_, times, _)| times + 1);
            let wait = backoff::wait(times, backoff::random()).max(FIRST_RETRY);
            let until = Instant::now() + wait;
            app.first_failure = Some((why, times, until));
            if let Some(service) = failure.service {
                self.lanes.entry((id, Lane::Service(service))).or_default().retry_at = Some(until);
            }
            return false;
        }
        why.code = "rolled_back".to_owned();
        why.message = format!("{} ({}); the release before it runs again", failure.message, failure.code);
        if let Err(error) = self.ledger.park(id, key, &why) {
            // Rolled back all the same; after a restart of the agent it would be tried once more.
            tracing::error!(app = %id, %error, "what failed cannot be written down");
        }
        app.parked = Some((key, why));
        true
    }

    /// Sets every lane to work that is free, not waiting, and has a first step that needs nothing.
    fn dispatch(&mut self, plan: &Plan, next: &mut Instant) {
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

    /// Waits for a lane to end, and takes in all that have. Never ends while none is at work.
    pub(super) async fn lane_ends(&mut self) {
        match self.at_work.join_next_with_id().await {
            Some(ended) => self.take_in(ended),
            None => std::future::pending().await,
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

    /// Forgets apps that are gone altogether.
    fn finish_removed(&mut self, target: &Target, plan: &Plan) {
        let known: BTreeSet<AppId> = self.apps.keys().copied().chain(self.ledger.apps()).collect();
        for id in known.into_iter().filter(|id| !target.apps.contains_key(id)) {
            let there = plan.apps.get(&id).is_some_and(|p| !p.lanes.is_empty())
                || self.lanes.keys().any(|(app, _)| *app == id);
            if there {
                continue;
            }
            match self.ledger.drop_app(id) {
                Ok(()) => {
                    self.said.retain(|(of, _), _| *of != id);
                    self.apps.remove(&id);
                }
                Err(error) => tracing::error!(app = %id, %error, "an app that is gone cannot be forgotten"),
            }
        }
    }

    fn mark_applied(&mut self, target: &Target, plan: &Plan) {
        let all = plan.is_empty()
            && target
                .apps
                .keys()
                .all(|id| self.apps.get(id).is_some_and(|a| a.choice == Some(Choice::Steady)));
        if all {
            self.applied = Some(target.order);
        }
    }

    /// Lets go of images once nothing is on its way any more. Asked for only when the answer can be another one.
    async fn retain(&mut self, target: &Target) {
        if self.applied != Some(target.order) {
            return;
        }
        let mut keep = BTreeSet::new();
        for app in self.apps.values().filter_map(|app| app.committed.as_ref()) {
            for service in app.release.services.values() {
                keep.extend(service.images.values().map(|image| image.config_digest));
            }
        }
        if self.retained.as_ref() == Some(&keep) {
            return;
        }
        match self.images.retain(&keep).await {
            Ok(()) => self.retained = Some(keep),
            Err(error) => tracing::warn!(%error, "old images stay for now"),
        }
    }

    /// Tells how things stand, if that is news.
    pub(super) fn tell(&self) {
        let mut status = self.view();
        status.reason = match (&self.target, &self.absent) {
            (None, _) => Some(reason("no_assignment", "no assignment has reached this device yet")),
            (Some(_), Some((_, why))) => Some(why.clone()),
            _ => None,
        };
        self.status.send_if_modified(|old| {
            let news = *old != status;
            *old = status;
            news
        });
    }

    /// Whether an image is on its way.
    pub(super) fn is_downloading(&self) -> bool {
        self.lanes.values().filter_map(|lane| lane.running.as_ref()).any(Running::downloads)
    }
}

impl Running {
    pub(super) fn downloads(&self) -> bool {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) == Stage::Downloading
    }
}

/// Ends what a newer target wants otherwise, and forgets how often it failed. A lane whose service is the same in both
/// goes on: its download is still wanted.
fn supersede(
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

/// Services whose lane fails in a way that speaks against the target. None does while another lane of the app is at
/// work: what fails may wait for a port or an address that the other one is about to let go.
fn failures(lanes: &BTreeMap<LaneKey, LaneState>, id: AppId) -> BTreeMap<Name, (u32, ApplyError)> {
    let at_work = |lane: &LaneState| lane.running.as_ref().is_some_and(|running| !running.downloads());
    if lanes.iter().any(|((app, _), lane)| *app == id && at_work(lane)) {
        return BTreeMap::new();
    }
    lanes
        .iter()
        .filter(|((app, _), _)| *app == id)
        .filter_map(|((_, lane), state)| {
            let error = state.error.clone().filter(|e| crate::apply::trial::condemns(&e.code))?;
            Some((lane.service()?.clone(), (state.failures, error)))
        })
        .collect()
}

/// The same for networks and volumes. A network that is only being removed is none of the trial's business.
fn object_failure(lanes: &BTreeMap<LaneKey, LaneState>, id: AppId) -> Option<(u32, ApplyError)> {
    lanes
        .iter()
        .filter(|((app, lane), _)| *app == id && lane.service().is_none())
        .filter_map(|(_, state)| {
            let error = state.error.clone().filter(|e| crate::apply::trial::condemns(&e.code))?;
            Some((state.failures, error))
        })
        .max_by_key(|(failures, _)| *failures)
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
