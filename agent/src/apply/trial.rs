//! The health gate: whether an effective target has proved itself. A pure state machine; what was seen and the time (in
//! milliseconds since any fixed moment) are arguments.
//!
//! A trial goes well when every service with a health check is healthy, every other one has stayed up, and every one-shot
//! has ended with 0, all at the same time and for as long as the app asks. It goes badly with the first service that
//! crashes in a loop, ends, turns unhealthy, cannot be started, or is not there in time.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    ids::{Name, Sha256Hex},
    spec::Restart,
};

use super::ports::ApplyError;
use crate::{
    engine::{Container, Health, RunState},
    observe::AppState,
    plan::wanted::{WantedApp, WantedService},
};

/// Restarts by the engine within a trial that make a crash loop.
const CRASHES: u64 = 3;
/// Failed starts in a row that end a trial: one may be a port that the old container has just let go.
const START_FAILURES: u32 = 3;
/// Time a service gets until it runs (or is healthy), where it says nothing.
const START_TIMEOUT_MS: u64 = 300_000;

/// A trial under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The effective target on trial.
    pub key: Sha256Hex,
    /// Restarts of containers that were there before, by id.
    before: BTreeMap<String, u64>,
    /// Since when each service is not as it should be.
    waiting_since: BTreeMap<Name, u64>,
    /// Since when all is well, and which starts that speaks of.
    steady: Option<(u64, Vec<(String, String)>)>,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Now.
    pub now_ms: u64,
    /// What should run.
    pub wanted: &'a WantedApp,
    /// What does.
    pub app: &'a AppState,
    /// Services whose lane fails: how often in a row, and how.
    pub failed: &'a BTreeMap<Name, (u32, ApplyError)>,
    /// The same for its networks and volumes.
    pub object_failed: Option<&'a (u32, ApplyError)>,
    /// How long all has to be well, where no service says.
    pub healthy_after_ms: u64,
    /// Services that a person stopped: waited for without a limit, as they say nothing of the release.
    pub held: &'a BTreeSet<Name>,
}

/// How a trial stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not known yet.
    Going {
        /// When it ends well if nothing fails; absent while something is not well.
        ends_ms: Option<u64>,
        /// When it is worth looking again, event or not.
        look_ms: Option<u64>,
        /// The first service that is waited for.
        waits_for: Option<Name>,
    },
    /// It proved itself.
    Passed,
    /// It did not.
    Failed(Failure),
}

/// How a trial went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `crash_loop`, `exited`, `unhealthy`, `start_failed` or `start_timeout`.
    pub code: &'static str,
    /// The service.
    pub service: Option<Name>,
    /// Its exit code.
    pub exit_code: Option<i64>,
    /// Its container, for its last words.
    pub container: Option<String>,
    /// A sentence.
    pub message: String,
}

/// How a service stands.
enum Standing {
    Well,
    Waiting,
    Bad(Failure),
}

impl Trial {
    /// Begins (or begins again, after a restart of the agent: the time starts anew).
    #[must_use]
    pub fn begin(key: Sha256Hex, app: Option<&AppState>) -> Self {
        let before = app
            .into_iter()
            .flat_map(|app| app.services.values().flatten())
            .map(|seen| (seen.container.id.clone(), seen.container.restarts))
            .collect();
        Self { key, before, waiting_since: BTreeMap::new(), steady: None }
    }

    /// Judges by one more look.
    pub fn look(&mut self, look: &Look<'_>) -> Verdict {
        let mut starts = Vec::new();
        let mut waits_for = None;
        let mut look_ms: Option<u64> = None;
        if let Some((times, error)) = look.object_failed.filter(|(times, _)| *times >= START_FAILURES) {
            return Verdict::Failed(Failure {
                code: "start_failed",
                service: None,
                exit_code: None,
                container: None,
                message: format!("after {times} tries: {}", error.message),
            });
        }
        for (name, service) in &look.wanted.services {
            if look.held.contains(name) {
                self.waiting_since.remove(name);
                waits_for.get_or_insert_with(|| name.clone());
                continue;
            }
            let container = look
                .app
                .services
                .get(name)
                .into_iter()
                .flatten()
                .filter(|seen| seen.hash == service.hash)
                .map(|seen| &seen.container)
                .max_by_key(|c| c.state == RunState::Running);
            match self.standing(name, service, container, look) {
                Standing::Bad(failure) => return Verdict::Failed(failure),
                Standing::Well => {
                    self.waiting_since.remove(name);
                    starts.extend(container.map(|c| (c.id.clone(), c.started_at.clone())));
                }
                Standing::Waiting => {
                    waits_for.get_or_insert_with(|| name.clone());
                    // Its time runs from when it was first tried; before that it waits for images, locks or others.
                    if container.is_none() && !look.failed.contains_key(name) {
                        continue;
                    }
                    let since = *self.waiting_since.entry(name.clone()).or_insert(look.now_ms);
                    let limit = service.spec.start_timeout_ms().unwrap_or(START_TIMEOUT_MS);
                    if look.now_ms.saturating_sub(since) >= limit {
                        return Verdict::Failed(Failure {
                            code: "start_timeout",
                            service: Some(name.clone()),
                            exit_code: None,
                            container: container.map(|c| c.id.clone()),
                            message: format!("service {name} was not up within {} s", limit.div_ceil(1000)),
                        });
                    }
                    look_ms = Some(look_ms.map_or(since + limit, |at| at.min(since + limit)));
                }
            }
        }
        if waits_for.is_some() {
            self.steady = None;
            return Verdict::Going { ends_ms: None, look_ms, waits_for };
        }
        let since = match &self.steady {
            Some((since, of)) if *of == starts => *since,
            _ => {
                self.steady = Some((look.now_ms, starts));
                look.now_ms
            }
        };
        let ends = since + healthy_after(look.wanted, look.healthy_after_ms);
        if look.now_ms >= ends {
            return Verdict::Passed;
        }
        Verdict::Going { ends_ms: Some(ends), look_ms: Some(ends), waits_for: None }
    }

    fn standing(
        &self,
        name: &Name,
        service: &WantedService,
        container: Option<&Container>,
        look: &Look<'_>,
    ) -> Standing {
        let bad = |code, c: Option<&Container>, exit_code, message| {
            let container = c.map(|c| c.id.clone());
            Standing::Bad(Failure { code, service: Some(name.clone()), exit_code, container, message })
        };
        if let Some((times, error)) = look.failed.get(name)
            && *times >= START_FAILURES
            && condemns(&error.code)
        {
            let message = format!("service {name} cannot be started, after {times} tries: {}", error.message);
            return bad(
                "start_failed",
                container,
                container.map(|c| c.exit_code).filter(|code| *code != 0),
                message,
            );
        }
        let Some(c) = container else { return Standing::Waiting };
        let crashes = c.restarts.saturating_sub(self.before.get(&c.id).copied().unwrap_or(0));
        if crashes >= CRASHES {
            let message = format!("service {name} ended {crashes} times, last with code {}", c.exit_code);
            return bad("crash_loop", Some(c), Some(c.exit_code), message);
        }
        match (c.state, c.health) {
            (RunState::Running, Health::Unhealthy) => {
                bad("unhealthy", Some(c), None, format!("service {name} fails its health check"))
            }
            (RunState::Running, Health::Starting) => Standing::Waiting,
            (RunState::Running, _) if service.spec.is_one_shot() => Standing::Waiting,
            (RunState::Running, _) => Standing::Well,
            (RunState::Exited, _) => match service.spec.restart {
                Restart::No | Restart::OnFailure { .. } if c.exit_code == 0 => Standing::Well,
                Restart::No | Restart::OnFailure { .. } => bad(
                    "exited",
                    Some(c),
                    Some(c.exit_code),
                    format!("service {name} ended with code {}", c.exit_code),
                ),
                // Stopped by hand; the lane starts it again.
                Restart::Always | Restart::UnlessStopped => Standing::Waiting,
            },
            _ => Standing::Waiting,
        }
    }
}

/// Whether a lane's failure speaks against the target, rather than against the network, the disk or the engine.
pub(crate) fn condemns(code: &str) -> bool {
    matches!(code, "start_failed" | "exited" | "E_CONTAINER_DRIFT" | "E_CONTAINER_IMAGE")
}

/// How long all has to be well: the longest any service asks for.
#[must_use]
pub fn healthy_after(wanted: &WantedApp, default_ms: u64) -> u64 {
    wanted.services.values().filter_map(|s| s.spec.healthy_after_ms()).max().unwrap_or(default_ms)
}

/// Which effective target of an app is brought about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The target, which is the committed one.
    Steady,
    /// The target, on trial; what is committed stands behind it.
    Trial,
    /// The target, on trial, with nothing behind it.
    First,
    /// The committed one: the target was tried and failed.
    Fallback,
    /// The committed one, if there is one: the target may not be installed (yet).
    Hold,
}

/// Chooses, by the keys of the effective targets.
#[must_use]
pub fn choose(
    target: Sha256Hex,
    committed: Option<Sha256Hex>,
    parked: Option<Sha256Hex>,
    trial: Option<Sha256Hex>,
    may_install: bool,
) -> Choice {
    match committed {
        Some(key) if key == target => Choice::Steady,
        Some(_) if parked == Some(target) => Choice::Fallback,
        // What was begun under a fresh word is finished without one.
        _ if !may_install && trial != Some(target) => Choice::Hold,
        Some(_) => Choice::Trial,
        None => Choice::First,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::ImageId, observe::Seen, plan::wanted::WantedNetwork};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn wanted(services: &[(&str, &str)]) -> WantedApp {
        let services = services
            .iter()
            .map(|(service, spec)| {
                let spec: copal_protocol::spec::ServiceSpec = serde_json::from_str(spec).unwrap();
                let digest = copal_protocol::ids::Digest::of(b"");
                let one = WantedService {
                    image: copal_protocol::documents::ImageRef {
                        repo: "r".into(),
                        manifest_digest: digest,
                        config_digest: digest,
                        config_size: 1,
                        size: 1,
                        layers: Vec::new(),
                    },
                    env: BTreeMap::new(),
                    secrets: BTreeMap::new(),
                    hash: format!("v1:{service}"),
                    strategy: spec.strategy(),
                    joins: BTreeMap::new(),
                    peers: std::collections::BTreeSet::new(),
                    spec,
                };
                (name(service), one)
            })
            .collect();
        WantedApp {
            release: Sha256Hex::of(b"r"),
            whole: true,
            retry_one_shots: false,
            services,
            networks: BTreeMap::<Name, WantedNetwork>::new(),
            volumes: BTreeMap::new(),
        }
    }

    fn container(service: &str, state: RunState) -> Container {
        Container {
            id: format!("id-{service}"),
            name: service.into(),
            image: ImageId("i".into()),
            labels: BTreeMap::new(),
            state,
            health: Health::None,
            exit_code: 0,
            restarts: 0,
            started_at: "first".into(),
            grace_s: 10,
            networks: BTreeMap::new(),
            shares: std::collections::BTreeSet::new(),
            privileged: false,
            unreadable: None,
        }
    }

    fn app(containers: &[Container]) -> AppState {
        let mut app = AppState::default();
        for container in containers {
            let hash = format!("v1:{}", container.name);
            let seen = Seen { hash, container: container.clone() };
            app.services.insert(name(&container.name), vec![seen]);
        }
        app
    }

    fn begin() -> Trial {
        Trial::begin(Sha256Hex::of(b"k"), None)
    }

    fn look(trial: &mut Trial, now_ms: u64, wanted: &WantedApp, app: &AppState) -> Verdict {
        let failed = BTreeMap::new();
        trial.look(&Look {
            now_ms,
            wanted,
            app,
            failed: &failed,
            object_failed: None,
            healthy_after_ms: 1000,
            held: &BTreeSet::new(),
        })
    }

    fn ends(verdict: &Verdict) -> Option<u64> {
        match verdict {
            Verdict::Going { ends_ms, .. } => *ends_ms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_has_to_be_well_at_once_for_as_long_as_asked() {
        let want = wanted(&[("a", r#"{"labels":{"io.copal.update.healthy-after":"3s"}}"#), ("b", "{}")]);
        let (a, mut b) = (container("a", RunState::Running), container("b", RunState::Running));
        let mut trial = begin();
        assert_eq!(ends(&look(&mut trial, 100, &want, &app(&[a.clone(), b.clone()]))), Some(3100));
        // A restart in between, even one that was over before anybody looked, begins the time anew.
        (b.restarts, b.started_at) = (1, "second".into());
        let both = app(&[a.clone(), b.clone()]);
        assert_eq!(ends(&look(&mut trial, 2000, &want, &both)), Some(5000));
        assert_eq!(ends(&look(&mut trial, 4999, &want, &both)), Some(5000));
        b.health = Health::Starting;
        assert_eq!(ends(&look(&mut trial, 4999, &want, &app(&[a, b]))), None);
        assert_eq!(ends(&look(&mut trial, 5000, &want, &both)), Some(8000));
        assert_eq!(look(&mut trial, 8000, &want, &both), Verdict::Passed);
    }

    #[test]
    fn what_is_not_up_in_time_fails_from_when_it_was_first_tried() {
        let want = wanted(&[("a", r#"{"labels":{"io.copal.update.start-timeout":"10s"}}"#)]);
        let mut a = container("a", RunState::Running);
        a.health = Health::Starting;
        let mut trial = begin();
        // Nothing yet: its image comes, or someone holds its lock.
        assert_eq!(ends(&look(&mut trial, 50_000, &want, &app(&[]))), None);
        let starting = app(&[a]);
        let Verdict::Going { look_ms, waits_for, .. } = look(&mut trial, 60_000, &want, &starting) else {
            panic!()
        };
        assert_eq!((look_ms, waits_for), (Some(70_000), Some(name("a"))));
        let Verdict::Failed(failure) = look(&mut trial, 70_000, &want, &starting) else { panic!() };
        assert_eq!((failure.code, failure.service), ("start_timeout", Some(name("a"))));
    }

    #[test]
    fn restarts_before_the_trial_do_not_count() {
        let want = wanted(&[("a", "{}")]);
        let mut a = container("a", RunState::Running);
        a.restarts = 40;
        let mut trial = Trial::begin(Sha256Hex::of(b"k"), Some(&app(&[a.clone()])));
        a.restarts = 42;
        assert!(ends(&look(&mut trial, 0, &want, &app(&[a.clone()]))).is_some());
        a.restarts = 43;
        let Verdict::Failed(failure) = look(&mut trial, 1, &want, &app(&[a])) else { panic!() };
        assert_eq!(failure.code, "crash_loop");
    }

    #[test]
    fn a_one_shot_is_well_once_it_ended_well() {
        let want = wanted(&[("a", r#"{"restart":"no"}"#)]);
        let mut trial = begin();
        let mut a = container("a", RunState::Running);
        assert_eq!(ends(&look(&mut trial, 0, &want, &app(&[a.clone()]))), None);
        a.state = RunState::Exited;
        assert_eq!(ends(&look(&mut trial, 1, &want, &app(&[a.clone()]))), Some(1001));
        a.exit_code = 9;
        let Verdict::Failed(failure) = look(&mut trial, 2, &want, &app(&[a])) else { panic!() };
        assert_eq!((failure.code, failure.exit_code), ("exited", Some(9)));
    }

    #[test]
    fn the_choice_follows_from_the_keys() {
        let [t, c] = [Sha256Hex::of(b"t"), Sha256Hex::of(b"c")];
        for (committed, parked, trial, fresh, choice) in [
            (Some(t), None, None, false, Choice::Steady),
            (Some(t), Some(t), None, true, Choice::Steady),
            (Some(c), Some(t), None, true, Choice::Fallback),
            (Some(c), Some(c), None, true, Choice::Trial),
            (Some(c), None, None, false, Choice::Hold),
            (Some(c), None, Some(t), false, Choice::Trial),
            (None, None, None, false, Choice::Hold),
            (None, Some(t), None, true, Choice::First),
            (None, None, Some(t), false, Choice::First),
        ] {
            assert_eq!(
                choose(t, committed, parked, trial, fresh),
                choice,
                "{committed:?} {parked:?} {trial:?} {fresh}"
            );
        }
    }
}
