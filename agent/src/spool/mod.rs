//! What happened on this device, kept until the cloud has it. In: events of all rooms ([`Notes`]). Out: batches for the channel
//! ([`Outbox`]), and telemetry beside them.
//!
//! ```text
//! rooms ──note──▶ notes ──every 2 s──▶ disk ──batch──▶ outbox ──▶ channel ──▶ cloud
//!                (memory)             (spool/)          ▲  └── telemetry (memory)
//!                                                       └────────── stored ──────────┘
//! ```
//! 1. An event gets its number when it is written, and is sent only after: numbers rise over the device's life, and none is
//!    given twice.
//! 2. What the cloud says it stored is removed; a segment at a time, so that flash is spared.
//! 3. The spool is bounded. Where it is full the oldest events go; their numbers are missing then, and the batch after says how
//!    many. Telemetry is in memory alone, the newest counts, and is given up before any event.
//!
//! Nothing is written when nothing happens. Never here: a wait for the network; a secret; an event that is half written.

mod boot;
mod changes;
mod disk;
mod notes;
mod outbox;
mod rate;
mod segment;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

pub use boot::{Boot, boot};
pub use disk::{Folder, Spool};
pub use notes::{Note, Notes};
pub use outbox::Outbox;

/// Bytes the events may take on the disk, where nothing else is set.
pub const BYTES: u64 = 4 << 20;
/// Events that come together are written together.
const TOGETHER: Duration = Duration::from_secs(2);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// Writes what is noted until dropped.
pub async fn run(notes: Notes, outbox: Arc<Outbox>) {
    loop {
        notes.came().await;
        tokio::time::sleep(TOGETHER).await;
        while let Err(error) = outbox.keep(&notes) {
            tracing::warn!(%error, "events cannot be written down; they wait in memory");
            tokio::time::sleep(AGAIN).await;
        }
    }
}
