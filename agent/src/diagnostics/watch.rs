//! The checks this device makes by itself, and what they last found. In: time, and updates that ended. Out: the last verdicts for
//! the Report, at once where one changed. What costs many bytes is left to people who ask.
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
    ids::{AppId, Sha256Hex},
};
use tokio::sync::watch;

use super::{Deps, diagnose, registry};
use crate::{
    apply::status::AgentStatus,
    cloud::random,
    state::{StateDir, StateError},
};

const FILE: &str = "health";
/// After a start (a boot, or another agent): services come up first.
const FIRST: Duration = Duration::from_secs(90);
/// After an update was committed: what it does wrong slowly shows by then.
const AFTER_UPDATE: Duration = Duration::from_secs(60);

/// Every how many seconds, where nothing else is set.
pub const EVERY_S: u64 = 6 * 3600;

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
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// Until the first round.
    pub first: Duration,
    /// Between rounds, about; none: rounds only after a start and after updates.
    pub every: Option<Duration>,
    /// From an update's end to a round.
    pub after_update: Duration,
}

impl Rhythm {
    /// As the settings say: 0 for no rounds but those after a start and an update.
    #[must_use]
    pub fn of(every_s: u64) -> Self {
        let every = Duration::from_secs(every_s);
        Self {
            first: FIRST.min(if every.is_zero() { FIRST } else { every }),
            every: (!every.is_zero()).then_some(every),
            after_update: AFTER_UPDATE.min(if every.is_zero() { AFTER_UPDATE } else { every }),
        }
    }
}

/// Makes rounds until dropped.
pub async fn run(
    checks: Arc<Deps>,
    health: Arc<Health>,
    rhythm: Rhythm,
    mut status: watch::Receiver<AgentStatus>,
) {
    let cheap: Vec<String> =
        PROBES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| name != registry::NAME).collect();
    let mut wait = Some(around(rhythm.first, random()));
    loop {
        let committed = commits(&status.borrow_and_update());
        let pause = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let updated = async {
            // A first commit is an update, too: of a device that had nothing.
            if status.wait_for(|now| commits(now) != committed).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = pause => {}
            () = updated => tokio::time::sleep(rhythm.after_update).await,
        }
        if let Ok(round) = diagnose(&checks, &cheap).await {
            health.took(&round);
        }
        wait = rhythm.every.map(|every| around(every, random()));
    }
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
        let rhythm = Rhythm::of(2);
        assert_eq!((rhythm.first, rhythm.every), (Duration::from_secs(2), Some(Duration::from_secs(2))));
        assert_eq!((Rhythm::of(0).first, Rhythm::of(0).every), (FIRST, None));
        assert_eq!(Rhythm::of(EVERY_S).after_update, AFTER_UPDATE);
    }
}
