//! What the supervisor knows of one app between two looks: all of it can be had again from the ledger and the target.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use copal_protocol::{
    documents::Reason,
    ids::{AppId, Name, Sha256Hex},
};
use tokio::time::Instant;

use crate::{
    apply::{
        ports::{ApplyError, Ledger},
        status::reason,
        trial::{Choice, Trial, choose},
    },
    plan::wanted::{self, Context, WantedApp},
    target::model::{AppTarget, PAUSED},
};

/// One app.
#[derive(Default)]
pub(super) struct App {
    /// What it should run; absent where it should not be here.
    pub(super) target: Option<AppTarget>,
    /// The fallback.
    pub(super) committed: Option<AppTarget>,
    /// What failed, and why.
    pub(super) parked: Option<(Sha256Hex, Reason)>,
    /// Which of them is brought about.
    pub(super) choice: Option<Choice>,
    /// Key of the effective target that is brought about.
    pub(super) key: Option<Sha256Hex>,
    /// That, made one with this device.
    pub(super) wanted: Option<Arc<WantedApp>>,
    /// Why the target cannot even be planned.
    pub(super) refused: Option<ApplyError>,
    /// Its trial, once begun.
    pub(super) trial: Option<Trial>,
    /// Unix seconds at which the trial ends well if nothing fails.
    pub(super) trial_ends: Option<u64>,
    /// The service the trial waits for.
    pub(super) waits_for: Option<Name>,
    /// With nothing to fall back to: how the last trial failed, how many did, and when the next may begin.
    pub(super) first_failure: Option<(Reason, u32, Instant)>,
    /// Services that a person stopped.
    pub(super) held: BTreeSet<Name>,
    /// A person wants nothing new to be installed for now.
    pub(super) paused: bool,
}

impl App {
    /// Loads what is remembered.
    pub(super) fn load(app: AppId, ledger: &dyn Ledger) -> Self {
        Self { committed: ledger.committed(app), parked: ledger.parked(app), ..Self::default() }
    }

    /// Chooses what is brought about; whether that changed.
    pub(super) fn resolve(
        &mut self,
        cx: &Context,
        target: &AppTarget,
        trial: Option<Sha256Hex>,
        may_install: bool,
    ) -> bool {
        let key = target.key();
        if self.target.as_ref().map(AppTarget::key) != Some(key) {
            self.first_failure = None;
        }
        let committed = self.committed.as_ref().map(AppTarget::key);
        let parked = self.parked.as_ref().map(|(key, _)| *key);
        let mut choice = choose(key, committed, parked, trial, may_install);
        self.target = Some(target.clone());
        self.refused = None;
        let mut chosen = match choice {
            Choice::Steady | Choice::Trial | Choice::First => Some(target),
            Choice::Fallback | Choice::Hold => self.committed.as_ref(),
        };
        if (self.key, self.choice) == (chosen.map(AppTarget::key), Some(choice)) && self.wanted.is_some() {
            return false;
        }
        let mut wanted = chosen.map(|t| make(cx, t));
        if let Some(Err(error)) = &wanted
            && choice != Choice::Steady
        {
            // What runs goes on; the target is refused as a whole.
            self.refused = Some(error.clone());
            choice = Choice::Hold;
            chosen = self.committed.as_ref();
            wanted = chosen.map(|t| make(cx, t));
        }
        let wanted = match wanted {
            Some(Ok(mut wanted)) => {
                wanted.whole = choice == Choice::Trial;
                wanted.retry_one_shots = choice == Choice::First;
                Some(Arc::new(wanted))
            }
            Some(Err(error)) => {
                self.refused = Some(error);
                None
            }
            None => None,
        };
        let new_key = chosen.map(AppTarget::key);
        let changed = self.key != new_key;
        self.key = new_key;
        self.choice = Some(choice);
        self.wanted = wanted;
        if !self.on_trial() || self.trial.as_ref().map(|t| t.key) != self.key {
            self.trial = None;
            self.trial_ends = None;
            self.waits_for = None;
        }
        changed
    }

    /// Whether what is brought about has to prove itself.
    pub(super) fn on_trial(&self) -> bool {
        matches!(self.choice, Some(Choice::Trial | Choice::First))
    }

    /// Why the app is not on target, as far as choosing goes.
    pub(super) fn choice_reason(&self) -> Option<Reason> {
        if let Some(error) = &self.refused {
            return Some(reason(&error.code, &error.message));
        }
        match self.choice? {
            Choice::Fallback => self.parked.as_ref().map(|(_, why)| why.clone()),
            Choice::Hold if self.paused => Some(reason("paused", PAUSED)),
            Choice::Hold => Some(reason(
                "not_fresh",
                "the cloud has not yet vouched for this assignment as its newest, so nothing new is installed",
            )),
            Choice::First => self.first_failure.as_ref().map(|(why, ..)| why.clone()),
            Choice::Steady | Choice::Trial => None,
        }
    }
}

fn make(cx: &Context, target: &AppTarget) -> Result<WantedApp, ApplyError> {
    let release = &target.release;
    wanted::app(cx, target.app_id, release, release.sha256(), &target.env, &target.secrets)
}

/// Apps by id.
pub(super) type Apps = BTreeMap<AppId, App>;
