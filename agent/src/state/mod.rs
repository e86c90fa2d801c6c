//! Durable, checksummed files of the agent: keys, roots, marks, targets.
//!
//! In: bytes to keep under a name. Out: the newest intact bytes, or a typed error. Every name is kept in two copies,
//! written one after the other (temp, fsync, rename, fsync of the folder); the newest intact one wins and the other is
//! mended. Never here: a torn or unknown file silently taken for an empty one (it is set aside as `.bad-<n>` with a
//! message), or a write of what is there already. What a newer agent added to a file is passed over (`tolerant`).

mod error;
mod file;
mod fs;
mod store;
pub mod tolerant;

pub use error::StateError;
pub use fs::{Fs, RealFs};
pub use store::StateDir;
