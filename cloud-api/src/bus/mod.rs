//! Between the rooms, and later between replicas: "this changed, look again". An event is a hint; whoever misses one
//! reads the database and is right.

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
            | Self::Fleet { fleet_id, .. } => fleet_id,
        }
    }
}

/// Carries events. Publish only after the change is committed.
pub trait Bus: Send + Sync + std::fmt::Debug {
    /// Tells everyone.
    fn publish(&self, event: Event);
    /// Listens from now on; a slow listener is told how much it missed and should read anew.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
}

/// Within one process.
#[derive(Debug)]
pub struct LocalBus(broadcast::Sender<Event>);

impl Default for LocalBus {
    fn default() -> Self {
        Self(broadcast::Sender::new(4096))
    }
}

impl Bus for LocalBus {
    fn publish(&self, event: Event) {
        // Nobody listening is no failure.
        let _ = self.0.send(event);
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
