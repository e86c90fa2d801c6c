//! The health gate: whether an effective target has proved itself. A pure state machine; what was seen and the time (in
//! milliseconds since any fixed moment) are arguments.
//!
//! A trial goes well when every service with a health check is healthy, every other one has stayed up, and every one-shot
//! has ended with 0, all at the same time and for as long as the app asks. It goes badly with the first service that
//! crashes in a loop, ends, turns unhealthy, cannot be started, or is not there in time.

use std::collections::BTreeMap;

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
