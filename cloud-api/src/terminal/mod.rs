//! Terminals: a person's shell on a device, through the device's channel.
//!
//! In: what a person asks (`api/terminal.rs`), the bytes of their WebSocket and of the device's stream. Out: the same bytes the other way,
//! a recording, rows, the audit log. Never here: whether a device opens one; that is the device's own judgement. Where its
//! Root asks for a grant these bytes are ciphertext, and nothing here could read or record them.
//!
//! | file | what it does |
//! |---|---|
//! | `make` | asking for one: judged, written down, audited |
//! | `brake` | no new ones for now; all of them ended |
//! | `session` | one session, from its WebSocket to its end |
//! | `recording` | what is kept of it |
//! | `keep` | what ended with the cloud; what is too old |
//! | `rows` | the database |
//!
//! A session's life: a person asks, and says why (`opening`) → the same person comes with a WebSocket within 30 s → the device opens it
//! (`open`) → it ends by the shell, by either side's bounds, by a kill, or because who opened it may no longer (looked at every 2 s).

pub(crate) mod brake;
mod keep;
mod make;
mod recording;
pub(crate) mod rows;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

pub(crate) use keep::recordings_of;
pub use keep::{expire, reconcile};
pub(crate) use make::{Asked, make, needs};
pub(crate) use recording::path as recording_path;
pub(crate) use session::{kill, run};

use crate::{app::App, bus::Event};

/// Seconds in which whoever asked must come.
pub(crate) const COMES_S: u64 = 30;
/// Sessions at once, of all devices.
const MOST: usize = 200;

/// Sessions in memory: those somebody holds a WebSocket of.
#[derive(Debug, Default)]
pub struct Memory {
    live: Mutex<HashMap<String, CancellationToken>>,
}

impl Memory {
    fn live(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session for one WebSocket; `None` where it has one, or there are too many.
    fn take<'a>(&'a self, id: &str) -> Option<Held<'a>> {
        let mut live = self.live();
        if live.contains_key(id) || live.len() >= MOST {
            return None;
        }
        let kill = CancellationToken::new();
        live.insert(id.to_owned(), kill.clone());
        Some(Held { memory: self, id: id.to_owned(), kill })
    }

    /// Ends one at once, where it is live.
    pub(crate) fn kill(&self, id: &str) -> bool {
        let found = self.live().get(id).cloned();
        found.as_ref().inspect(|kill| kill.cancel()).is_some()
    }

    /// Whether somebody holds it.
    fn is_live(&self, id: &str) -> bool {
        self.live().contains_key(id)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.live().len()
    }
}

/// A session that somebody holds.
struct Held<'a> {
    memory: &'a Memory,
    id: String,
    kill: CancellationToken,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.memory.live().remove(&self.id);
    }
}

/// Tells listeners that a session moved on.
fn tell(app: &App, fleet_id: &str, row: &rows::SessionRow) {
    app.bus.publish(Event::Session {
        fleet_id: fleet_id.to_owned(),
        device_id: row.device_id.clone(),
        id: row.id.clone(),
    });
}
