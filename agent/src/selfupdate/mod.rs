//! The agent's own update, where it is installed on someone's Debian or Raspberry Pi OS: the new one runs on trial
//! beside the old, and whatever goes wrong, the old one is back by itself. Containers are not touched.
//!
//! In: the agent release of a verified assignment. Out: another binary in this process's place, and an
//! [`AgentReport`](copal_protocol::documents::AgentReport). Never here: a write to the installed binary; a binary
//! started whose hash the owner's host key did not sign.
//!
//! 1. `copal-agent run` of the *installed* binary looks at the record first ([`launch`]): it counts a start of the
//!    trial, or takes the committed binary, or itself; checks the file's hash; and becomes it (`exec`, same process).
//! 2. The running agent fetches a wanted one into `agent/` of its state folder and writes the trial down ([`run`]).
//! 3. It becomes the installed binary again, which goes on with 1.
//! 4. On trial, the new agent commits itself once the cloud and the engine answer it as they answered the old one; else
//!    it writes its verdict down and goes back to 1. One that crashes or hangs is started by systemd and counted: after
//!    [`record::STARTS`] starts without a verdict the old one runs again.
//!
//! What an installed binary understands of the record must not change: an old launcher starts new agents for years.

mod fetch;
pub mod launch;
pub mod record;
mod run;

pub use run::{Pace, SelfStatus, Updater};

use std::path::{Path, PathBuf};

use copal_protocol::ids::Sha256Hex;

/// The folder of fetched binaries, within the state folder.
const FOLDER: &str = "agent";
/// The record's name in the state folder.
const RECORD: &str = "agent-update";

/// Where a binary is kept.
fn place(state_dir: &Path, file: Sha256Hex) -> PathBuf {
    state_dir.join(FOLDER).join(file.to_string())
}
