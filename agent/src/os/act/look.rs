//! What is seen: everything that is decided by, in one look.

use std::{sync::PoisonError, time::Duration};

use tokio::time::Instant;

use super::{Trouble, Updater, aim};
use crate::{
    apply::status::reason,
    os::{
        Slot,
        config::BackendKind,
        health::{self, Hooks, Look},
        journal::{Attempt, Before, Journal, Stage},
        machine::{self, Aim, Facts, Failure, Gate, Health, Work},
    },
    target::model::Target,
};

/// From here on services had their time to start.
const SETTLED_S: u64 = 180;
/// A health check that failed is asked again after this.
const HOOKS: Duration = Duration::from_secs(5);
/// A preflight that refused is asked again after this.
const PREFLIGHT: Duration = Duration::from_secs(600);

impl Updater {
    pub(super) async fn look(&mut self, journal: &Journal) -> Facts {
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
        // Where there is no engine, and none is meant to be, there are no services to wait for.
        let seen = if engine { looked } else { !self.deps.config.engine };
        let settled = uptime_s >= SETTLED_S || (all_well && seen);
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
            own_floor: self.deps.config.floor,
            data_schema: self.deps.config.data_schema,
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
}
