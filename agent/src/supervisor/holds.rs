//! Services that people stopped. In: which, of which effective target. Out: which of them are to stay stopped. Kept over
//! restarts of the agent (file `holds`); a boot of the device ends them all, and so does another target of their app.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use copal_protocol::ids::{AppId, Name, Sha256Hex};
use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError};

const FILE: &str = "holds";

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    /// The boot they were stopped in.
    boot_id: String,
    /// By app and service: the effective target they were stopped under.
    stopped: BTreeMap<AppId, BTreeMap<Name, Sha256Hex>>,
}

/// The stopped services. Clones are the same.
#[derive(Clone)]
pub struct Holds {
    state: Option<Arc<StateDir>>,
    record: Arc<Mutex<Record>>,
}

impl Holds {
    /// What was stopped in this boot. What cannot be read is forgotten, and said: the services then run.
    #[must_use]
    pub fn open(state: Arc<StateDir>, boot_id: &str) -> Self {
        let found = state.load::<Record>(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "which services were stopped is lost; they are started again");
            None
        });
        let record = found
            .filter(|record| record.boot_id == boot_id)
            .unwrap_or_else(|| Record { boot_id: boot_id.to_owned(), stopped: BTreeMap::new() });
        Self { state: Some(state), record: Arc::new(Mutex::new(record)) }
    }

    /// Holds that are in memory only.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { state: None, record: Arc::default() }
    }

    /// The services of an app that stay stopped under this effective target.
    #[must_use]
    pub fn held(&self, app: AppId, key: Sha256Hex) -> BTreeSet<Name> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let of = record.stopped.get(&app).into_iter().flatten();
        of.filter(|(_, under)| **under == key).map(|(name, _)| name.clone()).collect()
    }

    /// From now on the service stays stopped; durable when it returns.
    ///
    /// # Errors
    /// Where it cannot be written down; then nothing is held.
    pub fn hold(&self, app: AppId, service: &Name, key: Sha256Hex) -> Result<(), StateError> {
        self.change(|stopped| {
            let of = stopped.entry(app).or_default();
            // Those of another target are over.
            of.retain(|_, under| *under == key);
            of.insert(service.clone(), key);
        })
    }

    /// It may run again; durable when it returns.
    ///
    /// # Errors
    /// Where it cannot be written down; then it is still held.
    pub fn release(&self, app: AppId, service: &Name) -> Result<(), StateError> {
        self.change(|stopped| {
            if let Some(of) = stopped.get_mut(&app) {
                of.remove(service);
                if of.is_empty() {
                    stopped.remove(&app);
                }
            }
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<AppId, BTreeMap<Name, Sha256Hex>>),
    ) -> Result<(), StateError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = record.clone();
        change(&mut next.stopped);
        if next == *record {
            return Ok(());
        }
        if let Some(state) = &self.state {
            state.save(FILE, &next)?;
        }
        *record = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RealFs;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_stopped_service_stays_so_over_a_restart_and_not_over_a_boot_or_another_target() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            |boot: &str| Holds::open(Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap()), boot);
        let app = AppId::from_bytes([1; 16]);
        let (one, two) = (Sha256Hex::of(b"1"), Sha256Hex::of(b"2"));
        let holds = open("a");
        holds.hold(app, &name("web"), one).unwrap();
        holds.hold(app, &name("db"), one).unwrap();
        holds.release(app, &name("db")).unwrap();
        let again = open("a");
        assert_eq!(again.held(app, one), BTreeSet::from([name("web")]));
        assert_eq!(again.held(app, two), BTreeSet::new(), "something new runs whole");
        assert_eq!(open("b").held(app, one), BTreeSet::new(), "the device was restarted");
        again.hold(app, &name("db"), two).unwrap();
        assert_eq!(again.held(app, one), BTreeSet::new(), "those of an older target are over");
    }
}
