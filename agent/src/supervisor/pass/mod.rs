//! One turn of the loop, and the loop's memory.
//!
//! In: the newest target, and what the engine shows. Out: lanes set to work, entries in the ledger, a status, and the
//! time of the next look. The order is the same each time: [`wanted`] says what should be, the planner what differs,
//! [`judge`] ends trials that passed or failed, [`lanes`] sets to work what is free, [`settle`] tidies up behind. Nothing
//! here waits for a lane, and nothing is remembered that the next look would not show again.

mod asked;
mod judge;
mod lanes;
mod settle;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use copal_protocol::{
    documents::Reason,
    ids::{AppId, Digest},
};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::Instant,
};

use self::asked::{Emptied, Pending};
pub(super) use self::lanes::{LaneKey, LaneState, Running};
use super::{ABSENT_CAP, Deps, RESYNC, app::Apps, holds::Holds};
use crate::{
    apply::{
        hush::Hush,
        lane::{Hands, Outcome},
        ports::{Images, Ledger},
        shared::Shared,
        status::{AgentStatus, reason},
    },
    engine::EngineApi,
    observe::{State, observe},
    plan::{self, Lane, wanted::Context},
    target::model::Target,
};

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
    pub(super) holds: Holds,
    asks: Vec<Pending>,
    purges: JoinSet<Emptied>,
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
            holds: deps.holds,
            asks: Vec::new(),
            purges: JoinSet::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Looks, decides, sets lanes to work. Gives the time of the next look, whatever happens.
    pub(super) async fn pass(&mut self, target: Option<Arc<Target>>) -> Instant {
        self.take(target);
        self.expire_asks();
        let Some(target) = self.target.clone() else {
            self.begin_asks(&Target::default());
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
        self.begin_asks(&target);
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
            self.end_asks(&plan, &mut next);
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
}
