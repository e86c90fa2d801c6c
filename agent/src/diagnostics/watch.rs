//! The checks this device makes by itself, and what they last found. In: time, and updates that ended. Out: the last verdicts for
//! the Report, at once where one changed. What costs bytes besides (a part of an image) is looked at once a day.
//!
//! What was found is kept over restarts (file `health`), so that only a change is one; it is written when a verdict changes, and
//! told only after a round of this run, since what is older the cloud has.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use copal_protocol::{
    diagnosis::{Diagnosis, HealthReport, PROBES},
    documents::CHECK_EVERY_S,
    ids::{AppId, Sha256Hex},
    telemetry::{Budget, Sheds},
};
use tokio::{sync::watch, time::Instant};

use super::{Deps, diagnose, registry};
use crate::{
    apply::status::AgentStatus,
    cloud::random,
    state::{StateDir, StateError},
    target::model::Target,
};

const FILE: &str = "health";
/// After a start (a boot, or another agent): services come up first.
const FIRST: Duration = Duration::from_secs(90);
/// After an update was committed: what it does wrong slowly shows by then.
const AFTER_UPDATE: Duration = Duration::from_secs(60);

/// Every how many seconds, where nothing else is set.
pub const EVERY_S: u64 = 6 * 3600;
/// Between two checks of [`COSTLY`], at least; a little less than a day, so that one falls into each.
const COSTLY_EVERY: Duration = Duration::from_secs(23 * 3600);
/// What fetches something for the sake of the check.
const COSTLY: &str = registry::NAME;

/// What the checks last found.
pub struct Health {
    state: Arc<StateDir>,
    known: Mutex<HealthReport>,
    told: watch::Sender<Option<HealthReport>>,
}

impl Health {
    /// What was found before.
    #[must_use]
    pub fn open(state: Arc<StateDir>) -> Self {
        let known = match state.load::<HealthReport>(FILE) {
            Ok(known) => known.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "what health checks found before is lost");
                HealthReport::default()
            }
        };
        Self { state, known: Mutex::new(known), told: watch::Sender::new(None) }
    }

    /// What was found before, for whoever tells of changes.
    #[must_use]
    pub fn known(&self) -> HealthReport {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where reports hear of it.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<Option<HealthReport>> {
        self.told.subscribe()
    }

    /// Takes in a round, whoever asked for it.
    pub fn took(&self, round: &Diagnosis) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = known.take(round);
        for (name, before, now) in &changed {
            let before = before.map_or("not known", |verdict| verdict.as_str());
            tracing::info!(check = name, before, now = now.as_str(), "a health check changed");
        }
        if !changed.is_empty()
            && let Err(error) = self.keep(&known)
        {
            tracing::warn!(%error, "what health checks found cannot be written down");
        }
        self.told.send_replace(Some(known.clone()));
    }

    fn keep(&self, known: &HealthReport) -> Result<(), StateError> {
        self.state.save(FILE, known).map(drop)
    }
}

/// How often what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// Until the first round.
    pub first: Duration,
    /// Between rounds, about; none: rounds only after a start and after updates.
    pub every: Option<Duration>,
    /// From an update's end to a round.
    pub after_update: Duration,
}

impl Rhythm {
    /// As the device's own settings say (0 for no rounds but those after a start and an update), else as its fleet does, within bounds.
    #[must_use]
    pub fn of(own_s: Option<u64>, fleet_s: Option<u32>) -> Self {
        let fleet_s = fleet_s.map(|s| u64::from(s.clamp(*CHECK_EVERY_S.start(), *CHECK_EVERY_S.end())));
        let every = Duration::from_secs(own_s.or(fleet_s).unwrap_or(EVERY_S));
        Self {
            first: FIRST.min(if every.is_zero() { FIRST } else { every }),
            every: (!every.is_zero()).then_some(every),
            after_update: AFTER_UPDATE.min(if every.is_zero() { AFTER_UPDATE } else { every }),
        }
    }
}

/// What rounds go by.
pub struct Hears {
    /// Which updates ended.
    pub status: watch::Receiver<AgentStatus>,
    /// What the fleet says of how often.
    pub targets: watch::Receiver<Option<Arc<Target>>>,
    /// What is left out for want of bytes.
    pub budget: watch::Receiver<Option<Budget>>,
}

/// Makes rounds until dropped. `own_s`: how often by the device's own settings.
pub async fn run(checks: Arc<Deps>, health: Arc<Health>, own_s: Option<u64>, hears: Hears) {
    let Hears { mut status, mut targets, budget } = hears;
    let mut fleet_s = said(targets.borrow_and_update().as_ref());
    let mut rhythm = Rhythm::of(own_s, fleet_s);
    let mut due = Some(Instant::now() + around(rhythm.first, random()));
    // When the costly one was made last.
    let mut paid: Option<Instant> = None;
    loop {
        let committed = commits(&status.borrow_and_update());
        let pause = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let updated = async {
            // A first commit is an update, too: of a device that had nothing.
            if status.wait_for(|now| commits(now) != committed).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let otherwise = async {
            match targets.wait_for(|now| said(now.as_ref()) != fleet_s).await {
                Ok(now) => said(now.as_ref()),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            () = updated => tokio::time::sleep(rhythm.after_update).await,
            now = otherwise => {
                fleet_s = now;
                let next = Rhythm::of(own_s, fleet_s);
                // The first round comes when it comes.
                if next != rhythm && health.told.borrow().is_some() {
                    due = next.every.map(|every| Instant::now() + around(every, random()));
                }
                rhythm = next;
                continue;
            }
        }
        let pays = may_cost(*budget.borrow(), paid.map(|at| at.elapsed()));
        if pays {
            paid = Some(Instant::now());
        }
        if let Ok(round) = diagnose(&checks, &names(pays)).await {
            health.took(&round);
        }
        due = rhythm.every.map(|every| Instant::now() + around(every, random()));
    }
}

/// Whether a round may look at what costs bytes: once a day, and not where they are scarce. `since`: it last did.
fn may_cost(budget: Option<Budget>, since: Option<Duration>) -> bool {
    budget.is_none_or(|b| b.sheds == Sheds::Nothing) && since.is_none_or(|since| since >= COSTLY_EVERY)
}

/// What a round looks at.
fn names(pays: bool) -> Vec<String> {
    let all = PROBES.iter().map(|(name, _)| (*name).to_owned());
    all.filter(|name| pays || name != COSTLY).collect()
}

/// What the fleet says of how often.
fn said(target: Option<&Arc<Target>>) -> Option<u32> {
    target.and_then(|target| target.check_every_s)
}

/// The release each app is committed to.
fn commits(status: &AgentStatus) -> BTreeMap<AppId, Sha256Hex> {
    status.apps.iter().filter_map(|(id, app)| Some((*id, app.committed?.1))).collect()
}

/// Nine to eleven tenths of it: devices that were switched on together do not look, and report, together for ever.
fn around(time: Duration, random: u64) -> Duration {
    let permille = u32::try_from(900 + random % 201).unwrap_or(1000);
    time / 1000 * permille
}

#[cfg(test)]
mod tests {
    use copal_protocol::diagnosis::{ProbeResult, Verdict};

    use super::*;
    use crate::state::RealFs;

    #[test]
    fn only_changes_are_written_and_they_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Health::open(Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap()));
        let round =
            |taken_at, verdict| Diagnosis { probes: vec![ProbeResult::new("disk", verdict, "x")], taken_at };
        let health = open();
        assert!(health.told().borrow().is_none(), "what is older the cloud has");
        health.took(&round(1, Verdict::Failed));
        let written = || std::fs::read(dir.path().join("health.a")).unwrap_or_default();
        let first = written();
        health.took(&round(2, Verdict::Failed));
        assert_eq!(written(), first, "flash is spared");
        assert_eq!(health.told().borrow().as_ref().unwrap().taken_at, 2, "and all the same it is told");
        drop(health);
        let health = open();
        assert_eq!(health.known.lock().unwrap().checks["disk"].verdict, Verdict::Failed);
        health.took(&round(3, Verdict::Ok));
        assert_eq!(open().known.lock().unwrap().worst(), Verdict::Ok);
    }

    #[test]
    fn devices_do_not_look_at_the_same_moment() {
        let hour = Duration::from_secs(3600);
        assert_eq!(
            (around(hour, 0), around(hour, 100), around(hour, 200)),
            (hour / 10 * 9, hour, hour / 10 * 11)
        );
        let s = Duration::from_secs;
        let rhythm = Rhythm::of(Some(2), Some(600));
        assert_eq!((rhythm.first, rhythm.every), (s(2), Some(s(2))), "the device's own word counts");
        assert_eq!((Rhythm::of(Some(0), None).first, Rhythm::of(Some(0), None).every), (FIRST, None));
        assert_eq!(Rhythm::of(None, None).after_update, AFTER_UPDATE);
        for (fleet, every) in [(None, EVERY_S), (Some(3600), 3600), (Some(0), 600), (Some(u32::MAX), 604_800)]
        {
            assert_eq!(Rhythm::of(None, fleet).every, Some(s(every)), "{fleet:?}");
        }
    }

    #[test]
    fn what_costs_bytes_is_looked_at_once_a_day_and_not_where_they_are_scarce() {
        let hours = |h: u64| Some(Duration::from_secs(h * 3600));
        let budget = |sheds| Some(Budget { max_bytes_month: 10, used: 9, sheds, no_channel: false });
        for (budget, since, may) in [
            (None, None, true),
            (None, hours(6), false),
            (None, hours(24), true),
            (budget(Sheds::Nothing), hours(24), true),
            (budget(Sheds::Logs), hours(24), false),
            (budget(Sheds::Polls), None, false),
        ] {
            assert_eq!(may_cost(budget, since), may, "{budget:?} {since:?}");
        }
        assert_eq!(names(true).len(), PROBES.len());
        assert!(names(false).len() == PROBES.len() - 1 && !names(false).contains(&COSTLY.to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_follow_the_fleets_word_from_the_next_one_on() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path().join("state"), Arc::new(RealFs)).unwrap());
        let health = Arc::new(Health::open(state));
        let checks = Arc::new(crate::diagnostics::whole_tests::bare(dir.path()));
        let (target, targets) = watch::channel(None);
        let (_budget, budget) = watch::channel(None);
        let (_status, status) = watch::channel(AgentStatus::default());
        let mut told = health.told();
        let looking = run(checks, health.clone(), None, Hears { status, targets, budget });
        let person = async {
            let mut rounds = async |count: usize| {
                let began = Instant::now();
                for _ in 0..count {
                    told.changed().await.unwrap();
                }
                began.elapsed().as_secs() / 60
            };
            assert!((1..4).contains(&rounds(1).await), "after a start");
            let usual = rounds(2).await;
            assert!((10 * 60..14 * 60).contains(&usual), "every six hours or so: {usual} min");
            target.send_replace(Some(Arc::new(Target { check_every_s: Some(3600), ..Target::default() })));
            let often = rounds(2).await;
            assert!((100..140).contains(&often), "every hour or so: {often} min");
            target.send_replace(Some(Arc::new(Target::default())));
            let usual = rounds(1).await;
            assert!((5 * 60..7 * 60).contains(&usual), "as before: {usual} min");
        };
        tokio::select! {
            () = looking => unreachable!("it looks for ever"),
            () = person => {}
        }
    }
}
