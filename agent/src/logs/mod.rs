//! Service logs. In: what our containers say, as the engine keeps it. Out: lines, numbered, without secrets, in a ring on disk for
//! each service, and from there as streams.
//!
//! ```text
//! engine ──[collect]: lines, redacted──▶ [rate] ──▶ [ring] on disk ──[read]──▶ [source]: a stream of the channel
//! ```
//! | file | what it does |
//! |---|---|
//! | `split` | from the engine's messages to lines with their times; pure |
//! | `rate` | how much of a service is kept; pure |
//! | `ring` | numbers and writes them, and lets go of the oldest |
//! | `read` | reads them in order, across services and restarts |
//! | `collect` | follows every container of ours |
//! | `source` | feeds the streams |
//!
//! Where a container's log was left off is read from the ring itself: the time of its last line there. So what was written once is
//! never written again, and what was not is read from the engine after a restart. Lines outlive their containers.
//! Nothing leaves the device here: a stream is asked for by a person, who is in the audit log. Never here: a wait of a container for
//! its reader.

mod collect;
mod rate;
mod read;
mod ring;
mod source;
mod split;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

pub use collect::run;
pub use rate::Rate;
pub use source::Logs;
use tokio::sync::watch;

use crate::{engine::Engine, state::StateDir};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one service.
    pub service: u64,
    /// Bytes of all services together.
    pub all: u64,
    /// Bytes of one file of a service: so much is let go of at a time.
    pub file: u64,
    /// Of one service.
    pub rate: Rate,
}

impl Limits {
    /// With so many bytes for a service, and for all of them.
    #[must_use]
    pub fn of(service: u64, all: u64) -> Self {
        Self { service, all, file: service / 8, rate: Rate::default() }
    }
}

/// What the collector works with.
pub struct Deps {
    /// The engine.
    pub engine: Engine,
    /// Label of this agent's containers.
    pub instance: String,
    /// Where the rings are.
    pub dir: PathBuf,
    /// How much.
    pub limits: Limits,
    /// Holds what numbers were given.
    pub state: Arc<StateDir>,
    /// Of this boot.
    pub boot_id: String,
    /// Values known to be secret now.
    pub secrets: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Told the number of the last line that can be read.
    pub written: watch::Sender<u64>,
}
