//! What the device says of itself: to the cloud as signed Reports, to people here as a status file.
//!
//! In: what supervisor, updaters and synchronisation say of themselves. Out: a Report each time something changed, sent until
//! the cloud took it; `status.json` in the run folder (a tmpfs). Never here: a secret, or a log line longer or more of them
//! than a Report may carry.

mod build;
mod send;
mod status;

pub use build::{About, Heard, report};
pub use send::{Counter, Listening, Reporter};
pub use status::{Status, read as read_status};
