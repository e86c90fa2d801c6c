//! Between the rooms, and later between replicas: "this changed, look again". An event is a hint; whoever misses one
//! reads the database and is right.

use std::{collections::VecDeque, sync::Mutex};

use serde::Serialize;
use tokio::sync::broadcast;

/// Something changed. Carries ids, never content: the listener reads what it may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A device's row, state or assignment.
    Device {
        /// Its fleet.
        fleet_id: String,
        /// The device.
        id: String,
    },
    /// A release came or changed its status.
    Release {
        /// Its fleet.
        fleet_id: String,
        /// The release.
        id: String,
    },
    /// A build came, moved on or ended.
    Build {
        /// Its fleet.
        fleet_id: String,
        /// The build.
        id: String,
    },
    /// A command came, moved on or ended.
    Command {
        /// Its fleet.
        fleet_id: String,
        /// The device it is for.
        device_id: String,
        /// The command.
        id: String,
    },
    /// A terminal came, was opened or ended.
    Session {
        /// Its fleet.
        fleet_id: String,
        /// The device it is on.
        device_id: String,
        /// The session.
        id: String,
    },
    /// A fleet's own settings or root.
    Fleet {
        /// The fleet.
        fleet_id: String,
        /// Its slug.
        id: String,
    },
}

impl Event {
    /// The fleet it belongs to.
    #[must_use]
    pub fn fleet_id(&self) -> &str {
        match self {
            Self::Device { fleet_id, .. }
            | Self::Release { fleet_id, .. }
            | Self::Build { fleet_id, .. }
            | Self::Command { fleet_id, .. }
            | Self::Session { fleet_id, .. }
            | Self::Fleet { fleet_id, .. } => fleet_id,
        }
    }
}

/// An event with its number, for listeners that come back and ask what they missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Rises; across restarts too, so that a number of an earlier run is not taken for one of this.
    pub id: u64,
    /// What changed.
    pub event: Event,
}

/// How many past events are kept for listeners that come back.
pub const KEPT: usize = 1_000;

/// Carries events. Publish only after the change is committed.
pub trait Bus: Send + Sync + std::fmt::Debug {
    /// Tells everyone.
    fn publish(&self, event: Event);
    /// Listens from now on; a slow listener is told how much it missed and should read anew.
    fn subscribe(&self) -> broadcast::Receiver<Numbered>;
    /// What came after `id`; `None` when that is further back than what is kept, and the listener should read anew.
    fn since(&self, id: u64) -> Option<Vec<Numbered>>;
}

/// Within one process.
#[derive(Debug)]
pub struct LocalBus {
    sender: broadcast::Sender<Numbered>,
    past: Mutex<Past>,
}

#[derive(Debug)]
struct Past {
    first: u64,
    next: u64,
    kept: VecDeque<Numbered>,
}

impl Default for LocalBus {
    fn default() -> Self {
        // A run has fewer than a million events a second, so numbers of a later run are always greater.
        let first = (crate::app::now() << 20) + 1;
        Self {
            sender: broadcast::Sender::new(4096),
            past: Mutex::new(Past { first, next: first, kept: VecDeque::with_capacity(KEPT) }),
        }
    }
}

impl LocalBus {
    fn past(&self) -> std::sync::MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Bus for LocalBus {
    fn publish(&self, event: Event) {
        // Sent under the lock, so that listeners see numbers in order.
        let mut past = self.past();
        let numbered = Numbered { id: past.next, event };
        past.next += 1;
        if past.kept.len() == KEPT {
            past.kept.pop_front();
        }
        past.kept.push_back(numbered.clone());
        // Nobody listening is no failure.
        let _ = self.sender.send(numbered);
    }

    fn subscribe(&self) -> broadcast::Receiver<Numbered> {
        self.sender.subscribe()
    }

    fn since(&self, id: u64) -> Option<Vec<Numbered>> {
        let past = self.past();
        let oldest = past.kept.front().map_or(past.next, |n| n.id);
        if id >= past.next || id.saturating_add(1) < oldest.max(past.first) {
            return None;
        }
        Some(past.kept.iter().filter(|n| n.id > id).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> Event {
        Event::Device { fleet_id: "f".to_owned(), id: n.to_string() }
    }

    #[test]
    fn a_listener_that_comes_back_gets_what_it_missed_or_is_told_to_read_anew() {
        let bus = LocalBus::default();
        let mut live = bus.subscribe();
        bus.publish(event(0));
        let first = live.try_recv().unwrap().id;
        for n in 1..=KEPT {
            bus.publish(event(n));
        }
        assert_eq!(bus.since(first).unwrap().len(), KEPT);
        assert_eq!(bus.since(first + KEPT as u64), Some(vec![]));
        bus.publish(event(9));
        assert_eq!(bus.since(first), None, "one is lost");
        assert_eq!(bus.since(first + 10_000), None, "a number of another run");
        assert_eq!(bus.since(3), None);
    }
}
