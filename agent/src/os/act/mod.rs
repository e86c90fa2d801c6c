//! Does what [`machine`] decides: looks, decides, does one step, and again. Thin: what is remembered after a step is
//! [`machine::after`]'s word, what is done is one call of a port.

mod asked;
mod look;
mod steps;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_protocol::documents::{HostReport, Reason};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::status::{AgentStatus, reason},
    os::{
        OsConfig, Slot,
        boot::{Backend, BootError, Booted},
        health::Hooks,
        journal::{FirstLook, Journal, Key, Stage},
        machine::{self, Aim, Facts, Step, Wanted, Work},
        ports::{Device, Documents, Installer},
    },
    state::{StateDir, StateError},
    target::{
        Condition, HostAim, HostPart,
        model::{PAUSED, Target},
    },
};

/// Between looks: at an installation or a trial, where an update waits, and where there is none.
const LOOK: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// After a step that failed, first and longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How the operating system stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OsStatus {
    /// (assign_epoch, seq) of the newest target whose operating system runs, committed.
    pub applied: Option<(u64, u64)>,
    /// For the report; absent where the operating system is not Copal's to update.
    pub host: Option<HostReport>,
    /// Why it is not on target, where `host` does not say.
    pub reason: Option<Reason>,
}

/// What a person asks for at the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Install this release from this bundle file. Its document was judged and is kept.
    Install {
        /// Which.
        wanted: Wanted,
        /// The bundle.
        file: PathBuf,
    },
    /// Go back to the release in the other slot.
    Rollback,
    /// Tell how the slots stand, as JSON.
    Status,
}

/// An [`Ask`] with its answer: what was begun, or why nothing was.
pub type Asked = (Ask, oneshot::Sender<Result<String, Reason>>);

/// What the updater works with.
pub struct Deps {
    /// The image's word.
    pub config: OsConfig,
    /// The bootloader.
    pub boot: Arc<dyn Backend>,
    /// Writes slots.
    pub installer: Arc<dyn Installer>,
    /// The documents.
    pub documents: Arc<dyn Documents>,
    /// The device around.
    pub device: Arc<dyn Device>,
    /// Keeps the journal.
    pub state: Arc<StateDir>,
}

/// What it listens to and tells.
pub struct Lines {
    /// What should run.
    pub targets: watch::Receiver<Option<Arc<Target>>>,
    /// How the synchronisation stands.
    pub condition: watch::Receiver<Condition>,
    /// How the services are.
    pub apps: watch::Receiver<AgentStatus>,
    /// What people at the device ask for.
    pub asks: mpsc::Receiver<Asked>,
    /// How the operating system is.
    pub status: watch::Sender<OsStatus>,
}

/// Runs until dropped.
pub async fn run(deps: Deps, lines: Lines) {
    let mut updater = Updater::new(deps, lines);
    loop {
        updater.turn().await;
    }
}

/// Where Copal does not update the operating system: says so if it is asked to.
pub async fn unmanaged(mut targets: watch::Receiver<Option<Arc<Target>>>, status: watch::Sender<OsStatus>) {
    loop {
        let found = targets.borrow_and_update().as_ref().map(|t| (t.order, t.os.clone()));
        let told = match found {
            Some((_, HostAim::Release(wanted))) => OsStatus {
                reason: Some(Reason {
                    release: Some(wanted.release.sha256()),
                    ..reason(
                        "os_not_managed",
                        "this device's image has no second slot (there is no /etc/copal/os.json), so its operating system is not \
                         updated: write an image of Copal's to its card, or take the device out of the OS deployment",
                    )
                }),
                ..OsStatus::default()
            },
            Some((order, HostAim::None)) => OsStatus { applied: Some(order), ..OsStatus::default() },
            Some((_, HostAim::Unknown | HostAim::Refused(_))) | None => OsStatus::default(),
        };
        status.send_if_modified(|old| {
            let news = *old != told;
            *old = told;
            news
        });
        if targets.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A step that could not be done.
struct Trouble(Reason);

impl std::convert::From<Reason> for Trouble {
    fn from(why: Reason) -> Self {
        Self(why)
    }
}

impl std::convert::From<BootError> for Trouble {
    fn from(e: BootError) -> Self {
        Self(reason(e.code(), e.to_string()))
    }
}

impl std::convert::From<StateError> for Trouble {
    fn from(e: StateError) -> Self {
        let code = if matches!(e, StateError::Full { .. } | StateError::ReadOnly { .. }) {
            "os_data_full"
        } else {
            e.code()
        };
        Self(reason(code, e.to_string()))
    }
}

struct Worker {
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.task.abort();
    }
}

struct Updater {
    deps: Deps,
    lines: Lines,
    journal: Option<Journal>,
    /// Why the journal cannot be read: an empty one stands in, which is never written.
    blind: Option<Reason>,
    booted: Option<Result<Booted, Reason>>,
    told: bool,
    same: Option<(Key, bool)>,
    preflight: Option<(Key, Instant, Result<(), Reason>)>,
    work: Arc<Mutex<Work>>,
    worker: Option<Worker>,
    /// Held from the look to the restart.
    guards: Option<Box<dyn Send>>,
    /// Since when the trial is well, and what its hooks said when.
    well_since: Option<Instant>,
    hooks: (Hooks, Option<Instant>),
    /// Whether the other slot could boot, in a trial.
    way_back: Option<bool>,
    pause: Option<FirstLook>,
    /// Where the journal cannot be written, the trial's time counts from here.
    trial_seen: Option<u64>,
    failures: u32,
    applied: Option<(u64, u64)>,
}

impl Updater {
    fn new(deps: Deps, lines: Lines) -> Self {
        Self {
            deps,
            lines,
            journal: None,
            blind: None,
            way_back: None,
            pause: None,
            booted: None,
            told: false,
            same: None,
            preflight: None,
            work: Arc::new(Mutex::new(Work::Idle)),
            worker: None,
            guards: None,
            well_since: None,
            hooks: (Hooks::NotRun, None),
            trial_seen: None,
            failures: 0,
            applied: None,
        }
    }

    /// One look, one decision, one step; waits where there is nothing to do.
    async fn turn(&mut self) {
        let journal = self.journal();
        let facts = self.look(&journal).await;
        let now = self.deps.device.now();
        let step = machine::decide(&facts, &journal);
        if !matches!(step, Step::Arm | Step::Reboot) {
            self.guards = None;
        }
        match &step {
            Step::Rest | Step::Wait(_) => {
                let why = if let Step::Wait(why) = &step { Some(why.clone()) } else { None };
                self.failures = 0;
                self.tell(&facts, &journal, why);
                let trial = facts.booted.as_ref().is_ok_and(|b| b.trial);
                let wait = match &facts.work {
                    Work::Idle if !trial && journal.attempt.is_none() => LOOK[2],
                    Work::Idle if !trial => LOOK[1],
                    _ => LOOK[0],
                };
                self.rest(wait).await;
                return;
            }
            _ => tracing::info!(step = ?Brief(&step), "operating system"),
        }
        if let Err(Trouble(why)) = self.act(&step, &facts, &journal, now).await {
            // Whatever was to happen under the services' locks did not: they go on with their own updates meanwhile.
            self.guards = None;
            self.failures += 1;
            if self.failures.is_power_of_two() {
                tracing::warn!(
                    code = why.code,
                    message = why.message,
                    times = self.failures,
                    "operating system"
                );
            }
            let journal = self.journal.clone().unwrap_or(journal);
            self.tell(&facts, &journal, Some(why));
            let wait = AGAIN.0.saturating_mul(1 << self.failures.min(10)).min(AGAIN.1);
            self.booted = None;
            self.rest(wait).await;
        }
        // Whatever was done, the boot state is looked at anew.
        self.booted = None;
    }

    /// What is remembered. While it cannot be read, that is nothing, and each look asks again.
    fn journal(&mut self) -> Journal {
        if let (Some(journal), None) = (&self.journal, &self.blind) {
            return journal.clone();
        }
        let journal = match Journal::load(&self.deps.state) {
            Ok(mut journal) => {
                // The first bytes of the slot were in the memory of an agent that is gone: what is there is compared
                // once more, which brings them.
                if let Some(attempt) = journal.attempt.as_mut().filter(|a| !a.back && !a.whole) {
                    attempt.stage =
                        if attempt.stage == Stage::Ready { Stage::Installing } else { attempt.stage };
                }
                self.blind = None;
                journal
            }
            Err(e) => {
                let Trouble(why) = e.into();
                if self.blind.is_none() {
                    tracing::error!(code = why.code, message = why.message, "no OS update is begun");
                }
                self.blind = Some(why);
                Journal::default()
            }
        };
        self.journal = Some(journal.clone());
        journal
    }

    /// Writes the journal where that is possible; else it counts until this agent ends. For what must go on.
    fn remember(&mut self, next: Journal) {
        if let Err(Trouble(why)) = self.keep(next.clone()) {
            tracing::error!(code = why.code, message = why.message, "this goes on without a note of it");
            if self.blind.is_none() {
                self.journal = Some(next);
            }
        }
    }

    /// Writes the journal; what it says counts from when it is durable.
    fn keep(&mut self, next: Journal) -> Result<(), Trouble> {
        if let Some(why) = &self.blind {
            return Err(Trouble(why.clone()));
        }
        next.save(&self.deps.state)?;
        self.journal = Some(next);
        Ok(())
    }

    /// Calls the bootloader's backend off this thread. Whatever it says of the boot is looked at anew afterwards.
    async fn boot<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Backend) -> Result<T, BootError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let boot = self.deps.boot.clone();
        match tokio::task::spawn_blocking(move || call(boot.as_ref())).await {
            Ok(result) => Ok(result?),
            Err(e) => Err(Trouble(reason(
                "os_probe_failed",
                format!("a call of the boot backend ended abnormally: {e}"),
            ))),
        }
    }

    fn tell(&mut self, facts: &Facts, journal: &Journal, why: Option<Reason>) {
        let there = match &facts.aim {
            Aim::None => true,
            Aim::Release(wanted) => facts.booted.as_ref().is_ok_and(|b| {
                !b.trial && journal.image(b.slot).is_some_and(|i| i.release == wanted.key.release)
            }),
            Aim::Unknown | Aim::Refused(_) => false,
        };
        if there && why.is_none() {
            self.applied = self.lines.targets.borrow().as_ref().map(|t| t.order);
        }
        // What was refused before it became a target is no step of ours, and still why the newest does not run.
        let refused = || self.lines.condition.borrow().refused_hosts.get(&HostPart::Os).cloned();
        let mut why = why.or_else(refused);
        let paused = self.lines.targets.borrow().as_ref().is_some_and(|t| t.paused);
        if let Some(why) = why.as_mut().filter(|why| paused && why.code == "not_fresh") {
            // It may not be installed for another cause than a cloud that is silent.
            (why.code, why.message) = ("paused".to_owned(), PAUSED.to_owned());
        }
        let host = machine::view(self.deps.boot.name(), facts, journal, why);
        let told = OsStatus { applied: self.applied, host: Some(host), reason: None };
        self.lines.status.send_if_modified(|old| {
            let news = *old != told;
            *old = told;
            news
        });
    }

    /// Waits until something changed or `most` is over.
    async fn rest(&mut self, most: Duration) {
        let asked = tokio::select! {
            _ = self.lines.targets.changed() => None,
            _ = self.lines.condition.changed() => None,
            asked = self.lines.asks.recv() => asked,
            () = tokio::time::sleep(most) => None,
        };
        if let Some((ask, answer)) = asked {
            let said = self.asked(ask).await;
            let _ = answer.send(said);
        }
    }
}

fn facts_slot(facts: &Facts) -> Slot {
    facts.booted.as_ref().map_or(Slot::A, |b| b.slot)
}

fn aim(target: Option<&Target>) -> Aim {
    match target.map(|t| &t.os) {
        None | Some(HostAim::Unknown) => Aim::Unknown,
        Some(HostAim::None) => Aim::None,
        Some(HostAim::Refused(code)) => Aim::Refused(code.to_string()),
        Some(HostAim::Release(found)) => Aim::Release(Wanted {
            key: Key { release: found.release.sha256(), retry: found.retry },
            version: found.release.version.clone(),
            counter: found.release.counter,
        }),
    }
}

/// A step's name, for the log.
struct Brief<'a>(&'a Step);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(text.split(['(', ' ', '{']).next().unwrap_or_default())
    }
}
