//! What should run: fetch → verify → store.
//!
//! In: documents from the cloud, and those stored before. Out: a [`model::Target`] on a watch channel, and the store of
//! what was committed, is on trial or is parked. Never here: a document believed before [`copal_protocol::verify`]
//! accepted it; a change to what runs because something could not be fetched or was refused.

mod check;
mod condition;
mod judge;
pub mod model;
mod nudges;
mod store;
mod stored;
mod sync;

pub use check::{Checked, Checker};
pub use condition::Condition;
pub use model::{HostAim, HostPart, HostRelease};
pub use nudges::Nudges;
pub use store::{Refused, Resolved, Store, StoreSettings};
pub use sync::{Channels, Pace, Sync};
