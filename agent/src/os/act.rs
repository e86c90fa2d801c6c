//! Does what [`machine`] decides: looks, decides, does one step, and again. Thin: what is remembered after a step is
//! [`machine::after`]'s word, what is done is one call of a port.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use copal_protocol::documents::{HostReport, Reason};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    OsConfig, Slot,
    boot::{Backend, BootError, Booted},
    config::BackendKind,
    health::{self, Hooks, Look},
    journal::{Attempt, Before, FirstLook, Journal, Key, Parked, Stage},
    machine::{self, Aim, Facts, Failure, Gate, Health, Step, Wanted, Work},
    ports::{Device, Documents, From, Installer},
    told::SlotsStatus,
};
use crate::{
    apply::status::{AgentStatus, reason},
    state::{StateDir, StateError},
    target::{Condition, HostAim, HostPart, model::Target},
};

/// Between looks: at an installation or a trial, where an update waits, and where there is none.
const LOOK: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// After a step that failed, first and longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// A preflight that refused is asked again after this.
const PREFLIGHT: Duration = Duration::from_secs(600);
/// The last report before a restart gets this long to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// A restart that does not come within this failed.
const REBOOT: Duration = Duration::from_secs(120);
/// From here on services had their time to start.
const SETTLED_S: u64 = 180;
/// A health check that failed is asked again after this.
const HOOKS: Duration = Duration::from_secs(5);

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

    async fn look(&mut self, journal: &Journal) -> Facts {
        if self.booted.as_ref().is_none_or(Result::is_err) {
            let found = self.boot(|boot| boot.active()).await;
            self.booted = Some(found.map_err(|Trouble(why)| why));
        }
        let booted = self.booted.clone().expect("looked at just now");
        let uptime_s = self.deps.device.uptime_s();
        let target = self.lines.targets.borrow_and_update().clone();
        let online = self.lines.condition.borrow_and_update().online;
        let trial = booted.as_ref().is_ok_and(|b| b.trial);
        let waiting = journal.attempt.as_ref().is_some_and(|a| a.stage != Stage::Installing);
        let engine = if trial || waiting || !self.told { self.deps.device.engine().await } else { true };
        let (services, all_well) = health::services(&self.lines.apps.borrow_and_update());
        let looked = self.lines.apps.borrow().applied.is_some();
        let now_well = Before { cloud: online, engine, services };
        let gate = self.gate(target.as_deref());
        let settled = uptime_s >= SETTLED_S || (looked && all_well && (engine || !self.deps.config.engine));
        let aim = aim(target.as_deref());
        let key = if let Aim::Release(wanted) = &aim { Some(wanted.key) } else { None };
        let pause_left = self.pause_left(journal, uptime_s);
        let paused = |a: &Attempt| pause_left > 0 || (a.inconclusive > 0 && !online);
        let free = waiting
            && !trial
            && gate == Gate::Open
            && settled
            && !journal.attempt.as_ref().is_some_and(paused);
        let locks = if free { self.lock() } else { Vec::new() };
        let health = match &booted {
            Ok(b) if b.trial || machine::unproven(b, journal) => {
                self.health(journal, b.slot, &now_well, uptime_s).await
            }
            _ => Health::Going(String::new()),
        };
        let way_back = match &booted {
            Ok(b) if b.trial => self.way_back(b.slot.other()).await,
            _ => true,
        };
        let preflight = self
            .preflight
            .as_ref()
            .filter(|(of, at, found)| Some(*of) == key && (found.is_ok() || at.elapsed() < PREFLIGHT));
        Facts {
            boot_id: self.deps.device.boot_id(),
            uptime_s,
            booted,
            version: self.deps.config.version.clone(),
            trial_limit: self.deps.config.trial_limit,
            one_shot: self.deps.config.backend == BackendKind::Tryboot,
            floor: self.deps.documents.floor(),
            works: engine || !self.deps.config.engine,
            told: self.told,
            aim,
            may_install: target.as_ref().is_some_and(|t| t.may_install),
            online,
            same: self.same.filter(|(of, _)| Some(*of) == key).map(|(_, same)| same),
            preflight: preflight.map(|(_, _, found)| found.clone()),
            work: self.work(),
            gate,
            settled,
            locks,
            health,
            way_back,
            blind: self.blind.clone(),
            pause_left,
            now_well,
        }
    }

    fn pause_left(&mut self, journal: &Journal, uptime_s: u64) -> u64 {
        let Some((attempt, pause)) = journal.attempt.as_ref().and_then(|a| Some((a, a.pause.as_ref()?)))
        else {
            self.pause = None;
            return 0;
        };
        let nth = attempt.failures + attempt.faults + attempt.inconclusive;
        pause.left(self.deps.device.now(), uptime_s, nth, &mut self.pause)
    }

    /// Whether a slot could boot. One that cannot be read cannot; that is asked again.
    async fn way_back(&mut self, slot: Slot) -> bool {
        if let Some(known) = self.way_back {
            return known;
        }
        match self.boot(move |boot| boot.is_bootable(slot)).await {
            Ok(found) => *self.way_back.insert(found),
            Err(Trouble(why)) => {
                tracing::warn!(code = why.code, message = why.message, "the other slot cannot be looked at");
                false
            }
        }
    }

    /// How the installation stands. One that ended without a word (a fault of this program) failed.
    fn work(&self) -> Work {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.worker.as_ref().is_some_and(|worker| worker.task.is_finished());
        if ended && matches!(*work, Work::Busy { .. }) {
            let why = reason("os_write", "the installation broke off: see the agent's log");
            *work = Work::Failed(Failure { reason: why, passing: false });
        }
        work.clone()
    }

    fn gate(&self, target: Option<&Target>) -> Gate {
        let Some(window) = target.and_then(|t| t.reboot_window) else { return Gate::Open };
        if !self.deps.device.clock_is_set() {
            return Gate::NoClock;
        }
        match window.opens_in(self.deps.device.now()) {
            0 => Gate::Open,
            wait => Gate::Opens(wait),
        }
    }

    /// Takes the locks of all services, or gives the names of those who hold theirs.
    fn lock(&mut self) -> Vec<String> {
        if self.guards.is_none() {
            match self.deps.device.lock() {
                Ok(guards) => self.guards = Some(guards),
                Err(names) => return names,
            }
        }
        Vec::new()
    }

    async fn health(&mut self, journal: &Journal, slot: Slot, now: &Before, uptime_s: u64) -> Health {
        let attempt = journal.tried(slot);
        let boot_id = self.deps.device.boot_id();
        let noted = attempt.and_then(|a| a.trials.iter().find(|t| t.boot_id == boot_id)).map(|t| t.uptime_s);
        let since = noted.unwrap_or_else(|| *self.trial_seen.get_or_insert(uptime_s));
        let before = Some(&health::expected(journal, slot));
        let mut look = Look {
            elapsed_s: uptime_s.saturating_sub(since),
            timeout_s: self.deps.config.health_timeout_s,
            has_engine: self.deps.config.engine,
            now: now.clone(),
            hooks: Hooks::NotRun,
            well_for_s: 0,
            blind: self.blind.clone(),
        };
        let rest_is_well = health::missing(&look, before).is_empty();
        let stale = self.hooks.1.is_none_or(|at| at.elapsed() >= HOOKS);
        if !rest_is_well {
            self.hooks = (Hooks::NotRun, None);
            self.well_since = None;
        } else if self.hooks.0 != Hooks::Well && stale {
            // What is left of the trial's time is for all of them, and the wait for them ends with it.
            let left = look.timeout_s.saturating_sub(look.elapsed_s).max(HOOKS.as_secs());
            let left = Duration::from_secs(left);
            let ran = tokio::time::timeout(left + HOOKS, self.deps.device.hooks(left)).await;
            let late = || Hooks::Sick(reason("os_unhealthy", "the health checks did not end in time"));
            self.hooks = (ran.unwrap_or_else(|_| late()), Some(Instant::now()));
        }
        if self.hooks.0 == Hooks::Well {
            let since = *self.well_since.get_or_insert_with(Instant::now);
            look.well_for_s = since.elapsed().as_secs();
        } else {
            self.well_since = None;
        }
        look.hooks = self.hooks.0.clone();
        health::judge(&look, before)
    }

    async fn act(&mut self, step: &Step, facts: &Facts, journal: &Journal, now: u64) -> Result<(), Trouble> {
        let next = machine::after(step, facts, journal, now);
        if let Some(over) = &journal.attempt
            && next.attempt.is_none()
            && !matches!(step, Step::Settle)
        {
            self.end(over.key);
        }
        match step {
            Step::Rest | Step::Wait(_) => {}
            Step::Note | Step::Judge(_) => {
                // A journal that cannot be written must not keep a sick trial from being undone.
                self.remember(next);
            }
            Step::Commit => {
                let slot = facts.booted.as_ref().map_or(Slot::A, |b| b.slot);
                self.boot(move |boot| boot.commit(slot)).await?;
            }
            Step::Keep(why) => {
                tracing::error!(code = why.code, message = why.message, "the slot that runs is kept");
                let slot = facts_slot(facts);
                self.boot(move |boot| boot.commit(slot)).await?;
                self.remember(next);
            }
            Step::GoBack => {
                let verdict = journal.attempt.as_ref().and_then(|a| a.verdict.as_ref());
                let why = verdict
                    .map(|v| v.reason.clone())
                    .or_else(|| journal.parked.as_ref().map(|p| p.reason.clone()));
                self.tell(facts, journal, why);
                self.boot(|boot| boot.rollback()).await?;
                self.restart(false).await?;
            }
            Step::Settle => {
                // First, and whatever becomes of the rest: a data partition that is full must not cost the committed slot its
                // boots.
                if facts.works && !self.told {
                    match self.boot(|boot| boot.mark_well()).await {
                        Ok(()) => self.told = true,
                        Err(Trouble(why)) => {
                            tracing::warn!(
                                code = why.code,
                                message = why.message,
                                "the slot is not called well"
                            );
                        }
                    }
                }
                if let Some(attempt) = &journal.attempt {
                    self.deps.documents.commit(attempt.key.release)?;
                }
                self.keep(next)?;
                self.deps.installer.forget(facts_slot(facts)).await;
            }
            Step::Disarm => {
                self.remember(next);
                self.boot(|boot| boot.rollback()).await?;
            }
            Step::MarkWell => {
                self.boot(|boot| boot.mark_well()).await?;
                self.told = true;
                if next != *journal {
                    self.remember(next);
                }
            }
            Step::Retire(slot) => {
                let slot = *slot;
                self.boot(move |boot| boot.mark_unbootable(slot)).await?;
                self.keep(next)?;
            }
            Step::Compare => self.compare(facts).await?,
            Step::Adopt => {
                if let Aim::Release(wanted) = &facts.aim {
                    self.deps.documents.commit(wanted.key.release)?;
                }
                self.keep(next)?;
            }
            Step::Preflight => self.check(facts).await,
            Step::Install => self.install(journal).await?,
            Step::Failed(failure) => {
                tracing::warn!(
                    code = failure.reason.code,
                    message = failure.reason.message,
                    "the installation failed"
                );
                self.stop_work().await;
                let parks = next.attempt.is_none();
                self.keep(next)?;
                if parks {
                    self.deps.installer.forget(facts_slot(facts).other()).await;
                }
            }
            Step::Installed => {
                self.stop_work().await;
                self.keep(next)?;
            }
            Step::Cancel => self.cancel(facts, journal, next).await?,
            Step::Arm => self.arm(facts, journal, next).await?,
            Step::Reboot => {
                let what = journal.attempt.as_ref().map_or_else(String::new, |a| a.version.to_string());
                let why =
                    reason("os_trial", format!("the device restarts into operating system {what} on trial"));
                self.tell(facts, journal, Some(why));
                self.restart(true).await?;
            }
            Step::Conclude(conclusion) => {
                tracing::warn!(
                    code = conclusion.reason.code,
                    message = conclusion.reason.message,
                    "the trial was undone"
                );
                self.remember(next);
                if conclusion.then == machine::Then::Park {
                    self.deps.installer.forget(facts_slot(facts).other()).await;
                }
            }
            // What stands before the word that the system works must not wait for the disk.
            Step::Forget | Step::Unarm => self.remember(next),
            Step::GiveUp(why) => {
                tracing::warn!(code = why.code, message = why.message, "the release keeps the cloud away");
                self.keep(next)?;
                self.deps.installer.forget(facts_slot(facts).other()).await;
            }
            Step::Begin(_) | Step::Doubt(_) | Step::Park(_) | Step::Differs | Step::Reached => {
                self.keep(next)?;
            }
        }
        self.failures = 0;
        Ok(())
    }

    async fn compare(&mut self, facts: &Facts) -> Result<(), Trouble> {
        let Aim::Release(wanted) = &facts.aim else { return Ok(()) };
        let release = self.deps.documents.release(wanted.key.release)?;
        let same = self.deps.installer.same(&release, facts_slot(facts)).await?;
        self.same = Some((wanted.key, same));
        Ok(())
    }

    /// Everything that is known before the first byte is written.
    async fn check(&mut self, facts: &Facts) {
        let Aim::Release(wanted) = &facts.aim else { return };
        let found = self.suits(wanted, facts_slot(facts).other()).await;
        if let Err(why) = &found {
            tracing::warn!(
                code = why.code,
                message = why.message,
                "the operating system cannot be installed here"
            );
        }
        self.preflight = Some((wanted.key, Instant::now(), found));
    }

    async fn suits(&self, wanted: &Wanted, slot: Slot) -> Result<(), Reason> {
        let release = self.deps.documents.release(wanted.key.release)?;
        let have = self.deps.config.data_schema;
        if let Some(reads) = release.data_schema
            && reads < have
        {
            let message = format!(
                "{} reads data of format {reads}, this device's is {have}: going back would lose it",
                release.version
            );
            return Err(reason("os_incompatible", message));
        }
        self.boot(|boot| boot.probe()).await.map_err(|Trouble(why)| why)?;
        self.deps.installer.check(&release, slot).await
    }

    async fn install(&mut self, journal: &Journal) -> Result<(), Trouble> {
        let Some(attempt) = &journal.attempt else { return Ok(()) };
        let slot = attempt.slot;
        let release = self.deps.documents.release(attempt.key.release)?;
        // Each time: a slot that is being written must not boot, whatever became of it meanwhile.
        self.boot(move |boot| boot.mark_unbootable(slot)).await?;
        let from = attempt.file.clone().map_or(From::Cloud, From::File);
        let work = self.work.clone();
        let set = move |now: Work| *work.lock().unwrap_or_else(PoisonError::into_inner) = now;
        set(Work::Busy { verifying: false, done: 0, total: 0 });
        let tell = set.clone();
        let told = Arc::new(move |verifying, done, total| tell(Work::Busy { verifying, done, total }));
        let cancel = CancellationToken::new();
        let work = self.deps.installer.install(release, slot, from, told, cancel.clone());
        let task = tokio::spawn(async move {
            match work.await {
                Ok(()) => set(Work::Done),
                Err(failure) => set(Work::Failed(failure)),
            }
        });
        self.worker = Some(Worker { task, cancel });
        Ok(())
    }

    async fn stop_work(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.cancel.cancel();
            // It ends soon, so that no write of it comes after what follows.
            let _ = (&mut worker.task).await;
        }
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Work::Idle;
    }

    async fn cancel(&mut self, facts: &Facts, journal: &Journal, next: Journal) -> Result<(), Trouble> {
        let ended = next.last.as_ref().and_then(|l| l.reason.clone());
        self.tell(facts, journal, ended);
        self.stop_work().await;
        if let Some(attempt) = journal.attempt.as_ref().filter(|a| !a.back) {
            let slot = attempt.slot;
            self.boot(move |boot| boot.mark_unbootable(slot)).await?;
            self.deps.installer.forget(slot).await;
        }
        self.keep(next)
    }

    async fn arm(&mut self, facts: &Facts, journal: &Journal, next: Journal) -> Result<(), Trouble> {
        let Some(attempt) = next.attempt.clone() else { return Ok(()) };
        let (slot, token) = (attempt.slot, attempt.token());
        let release = self.deps.documents.release(attempt.key.release)?;
        self.deps.documents.begin(attempt.key.release)?;
        self.keep(next)?;
        let there = attempt.back || attempt.whole;
        let finished = if there { Ok(()) } else { self.deps.installer.finish(&release, slot).await };
        let armed = match finished {
            Err(failure) => Err(failure.reason),
            Ok(()) => self.boot(move |boot| boot.arm_trial(slot, &token)).await.map_err(|Trouble(why)| why),
        };
        if let Err(why) = armed {
            tracing::warn!(code = why.code, message = why.message, "no trial was armed");
            let next = machine::not_armed(&why, journal, self.deps.device.now());
            if next.attempt.is_none() {
                self.end(attempt.key);
            }
            self.keep(next)?;
            let shown = self.journal.clone().unwrap_or_default();
            self.tell(facts, &shown, Some(why));
        }
        Ok(())
    }

    /// Restarts; returns only where that did not happen.
    async fn restart(&mut self, into_trial: bool) -> Result<(), Trouble> {
        tokio::time::sleep(FAREWELL).await;
        self.boot(move |boot| boot.reboot(into_trial)).await?;
        tokio::time::sleep(REBOOT).await;
        Err(Trouble(reason("os_reboot", "the device was told to restart and did not: restart it by hand")))
    }

    /// Its trials are over, and none was committed: it is judged as new from here on.
    fn end(&self, key: Key) {
        if let Err(why) = self.deps.documents.end(key.release) {
            tracing::warn!(
                code = why.code,
                message = why.message,
                "that a release was begun stays written down"
            );
        }
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
        let host = machine::view(self.deps.boot.name(), facts, journal, why.or_else(refused));
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

    /// A person at the device asks; the device's own floor and the running slot bind as ever.
    async fn asked(&mut self, ask: Ask) -> Result<String, Reason> {
        let refused = |message: &str| Err(reason("os_cancelled", message));
        let booted = self.boot(|boot| boot.active()).await.map_err(|Trouble(why)| why);
        if ask == Ask::Status {
            let host = self.lines.status.borrow().host.clone();
            let journal = self.journal.clone().unwrap_or_default();
            let floor = self.deps.documents.floor();
            let told = SlotsStatus::new(&self.deps.config, floor, booted, journal, host);
            return serde_json::to_string(&told).map_err(|e| reason("os_cancelled", e.to_string()));
        }
        let booted = booted?;
        if let Some(why) = &self.blind {
            return Err(why.clone());
        }
        let Some(journal) = self.journal.clone() else {
            return refused("the journal of OS updates is not readable");
        };
        if booted.trial || booted.armed {
            return refused("a trial is under way; wait until it ended (copal-agent os status)");
        }
        let slot = booted.slot.other();
        let target = self.lines.targets.borrow().clone();
        let (attempt, parked) = match ask {
            Ask::Install { wanted, file } => {
                if journal.image(booted.slot).is_some_and(|i| i.release == wanted.key.release) {
                    return refused("this release runs already");
                }
                self.suits(&wanted, slot).await?;
                let mut attempt = Attempt::new(wanted.key, wanted.version, wanted.counter, slot);
                attempt.file = Some(file);
                (attempt, journal.parked.clone())
            }
            Ask::Status | Ask::Rollback => {
                let Some(image) =
                    journal.image(slot).filter(|i| !i.bad && journal.attempt.is_none()).cloned()
                else {
                    return refused("the other slot holds no release that is known to be whole");
                };
                let floor = self.deps.documents.floor();
                if image.counter < floor {
                    let message =
                        format!("{} (counter {}) is below the floor {floor}", image.version, image.counter);
                    return Err(reason("os_rolled_back", message));
                }
                self.deps.documents.release(image.release)?;
                let why = reason(
                    "os_rolled_back",
                    format!("a person at the device went back to {}", image.version),
                );
                let parked = match aim(target.as_deref()) {
                    Aim::Release(wanted) => Some(Parked { key: wanted.key, reason: why }),
                    _ => journal.parked.clone(),
                };
                // Each time counts anew: a person asks.
                let key = Key { release: image.release, retry: self.deps.device.now() };
                let mut attempt = Attempt::new(key, image.version, image.counter, slot);
                attempt.back = true;
                attempt.stage = Stage::Ready;
                (attempt, parked)
            }
        };
        if journal.attempt.is_some() {
            self.stop_work().await;
        }
        let said = format!("{} is put into slot {slot} and tried", attempt.version);
        let attempt = Attempt { by_hand: true, ..attempt };
        let mut next = Journal { parked, ..journal };
        if !attempt.back {
            next.slots.remove(&slot);
        }
        next.attempt = Some(attempt);
        self.keep(next).map_err(|Trouble(why)| why)?;
        Ok(said)
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

#[cfg(test)]
#[path = "act_tests.rs"]
pub(crate) mod tests;
