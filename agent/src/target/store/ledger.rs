//! What was committed, is on trial or is parked, as the supervisor asks for it.

use copal_protocol::{
    documents::Reason,
    ids::{AppId, Sha256Hex},
    verify::Purpose,
};

use super::{AppRecord, EARLIER, Store, StoredTarget};
use crate::{
    apply::ports::{Ledger, StateError as LedgerError},
    target::model::AppTarget,
};

impl Store {
    fn stored(&self, target: &AppTarget) -> Result<StoredTarget, LedgerError> {
        let key = target.key();
        let inner = self.lock();
        let known = inner.known.get(&key).cloned().or_else(|| {
            let record = inner.apps.get(&target.app_id)?;
            record.trial.iter().find(|(k, _)| *k == key).map(|(_, t)| t.clone())
        });
        known.ok_or_else(|| LedgerError(format!("the target {key} was not given out by this store")))
    }

    fn change(&self, app: AppId, change: impl FnOnce(&mut AppRecord)) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let mut record = inner.apps.get(&app).cloned().unwrap_or_default();
        change(&mut record);
        self.state.save(&file(app), &record).map_err(|e| LedgerError(e.to_string()))?;
        inner.apps.insert(app, record);
        Ok(())
    }
}

fn file(app: AppId) -> String {
    format!("app-{app}")
}

impl Ledger for Store {
    fn committed(&self, app: AppId) -> Option<AppTarget> {
        let mut inner = self.lock();
        let (target, stored) = self.fallback(&inner, app)?;
        inner.known.insert(target.key(), stored);
        Some(target)
    }

    fn commit(&self, target: &AppTarget) -> Result<(), LedgerError> {
        let stored = self.stored(target)?;
        self.change(target.app_id, |record| {
            if let Some(before) = record.committed.take()
                && before.release != stored.release
            {
                record.earlier.retain(|t| t.release != before.release && t.release != stored.release);
                record.earlier.insert(0, before);
                record.earlier.truncate(EARLIER);
            }
            record.committed = Some(stored);
            record.trial = None;
            record.parked = None;
        })?;
        let mut inner = self.lock();
        let mut marks = inner.marks.clone();
        let entry = marks.releases.entry(target.app_id).or_default();
        *entry = entry.committed(&target.release);
        self.state.save("marks", &marks).map_err(|e| LedgerError(e.to_string()))?;
        inner.marks = marks;
        self.tidy(&inner);
        Ok(())
    }

    fn trial(&self, app: AppId) -> Option<Sha256Hex> {
        self.lock().apps.get(&app)?.trial.as_ref().map(|(key, _)| *key)
    }

    fn begin_trial(&self, target: &AppTarget) -> Result<(), LedgerError> {
        let stored = self.stored(target)?;
        {
            // The root may have changed since the target was given out. Time does not count here: a download may be slow.
            let inner = self.lock();
            let begun = self.purpose(&inner, stored.app_id, stored.release) == Purpose::KeepRunning;
            let purpose = if begun { Purpose::KeepRunning } else { Purpose::Install { now: 0 } };
            self.release(&inner, &stored, purpose, None).map_err(|e| LedgerError(e.to_string()))?;
        }
        self.change(target.app_id, |record| record.trial = Some((target.key(), stored)))
    }

    fn park(&self, app: AppId, key: Sha256Hex, reason: &Reason) -> Result<(), LedgerError> {
        self.change(app, |record| {
            record.trial = None;
            record.parked = Some((key, reason.clone()));
        })
    }

    fn parked(&self, app: AppId) -> Option<(Sha256Hex, Reason)> {
        self.lock().apps.get(&app)?.parked.clone()
    }

    fn apps(&self) -> Vec<AppId> {
        self.lock().apps.keys().copied().collect()
    }

    fn drop_app(&self, app: AppId) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        self.state.remove(&file(app)).map_err(|e| LedgerError(e.to_string()))?;
        inner.apps.remove(&app);
        self.tidy(&inner);
        Ok(())
    }
}
