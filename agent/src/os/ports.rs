//! What the flow needs from others: an installer, the store of documents, and the device around it. Each has a fake in the
//! tests, so that power can be cut between any two effects.

use std::sync::Arc;

use copal_protocol::{
    documents::{Reason, Release},
    ids::Sha256Hex,
    verify::Verified,
};
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Slot, health::Hooks, machine::Failure};

/// Told how an installation goes: whether it reads back already, bytes had, bytes to have.
pub type Told = Arc<dyn Fn(bool, u64, u64) + Send + Sync>;

/// Where an installation's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The cloud.
    Cloud,
    /// A bundle file a person brought.
    File(std::path::PathBuf),
}

/// Writes slots.
pub trait Installer: Send + Sync {
    /// Whether the release fits this device: the right payloads, room in the slot, room for the journal. Writes nothing.
    fn check<'a>(&'a self, release: &'a Release, slot: Slot) -> BoxFuture<'a, Result<(), Reason>>;

    /// Writes every payload but its first bytes into a slot that cannot boot, and reads it back past all caches.
    /// Resumes what was begun. A cancelled one ends soon, with any result.
    fn install(
        &self,
        release: Arc<Verified<Release>>,
        slot: Slot,
        from: From,
        told: Told,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Failure>>;

    /// Gives the slot its first bytes, from what was verified: from here on it could boot.
    fn finish<'a>(&'a self, release: &'a Verified<Release>, slot: Slot)
    -> BoxFuture<'a, Result<(), Failure>>;

    /// Forgets what was begun in a slot.
    fn forget<'a>(&'a self, slot: Slot) -> BoxFuture<'a, ()>;

    /// Whether a slot holds exactly the release's payloads.
    fn same<'a>(&'a self, release: &'a Release, slot: Slot) -> BoxFuture<'a, Result<bool, Reason>>;
}

/// The documents, and what is remembered of them.
pub trait Documents: Send + Sync {
    /// A release that was accepted here, judged again by today's root.
    ///
    /// # Errors
    /// Why it may not be used.
    fn release(&self, sha256: Sha256Hex) -> Result<Arc<Verified<Release>>, Reason>;
    /// Written before it may boot.
    ///
    /// # Errors
    /// Why it may not be used, or cannot be written down.
    fn begin(&self, sha256: Sha256Hex) -> Result<(), Reason>;
    /// It proved itself: floors rise.
    ///
    /// # Errors
    /// Why that cannot be written down.
    fn commit(&self, sha256: Sha256Hex) -> Result<(), Reason>;
    /// Its trials are over and it did not prove itself: it is judged as new again.
    ///
    /// # Errors
    /// Why that cannot be written down.
    fn end(&self, sha256: Sha256Hex) -> Result<(), Reason>;
    /// The lowest counter that may run here.
    fn floor(&self) -> u64;
}

/// The device around the slots.
pub trait Device: Send + Sync {
    /// Unix seconds, never below what is known.
    fn now(&self) -> u64;
    /// Whether that is more than a floor.
    fn clock_is_set(&self) -> bool;
    /// The kernel's id of this boot.
    fn boot_id(&self) -> String;
    /// Seconds since it.
    fn uptime_s(&self) -> u64;
    /// Whether the container engine answers.
    fn engine(&self) -> BoxFuture<'_, bool>;
    /// Runs the image's own health checks, all of them within `total`.
    fn hooks(&self, total: std::time::Duration) -> BoxFuture<'_, Hooks>;
    /// Takes every service's update lock; they are held until the answer is dropped.
    ///
    /// # Errors
    /// The services that hold theirs.
    fn lock(&self) -> Result<Box<dyn Send>, Vec<String>>;
}
