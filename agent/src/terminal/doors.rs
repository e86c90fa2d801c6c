//! Who starts a shell: the engine in a container, the kernel on the device itself.

use copal_protocol::documents::TerminalTarget;
use futures_util::future::BoxFuture;

use super::{host, open::Record, service};
use crate::{channel::streams::End, engine::Engine};

pub use super::pty::{Control, Pty};

/// The variable by which processes of a session are known.
pub const MARK: &str = "COPAL_TERMINAL";

/// Starts shells and ends them.
pub trait Doors: Send + Sync {
    /// Finds what is to be opened, and notes it in the record. Nothing of the session runs yet.
    fn find<'a>(&'a self, record: &'a mut Record) -> BoxFuture<'a, Result<(), End>>;
    /// Opens it.
    fn open<'a>(&'a self, record: &'a mut Record, cols: u16, rows: u16) -> BoxFuture<'a, Result<Pty, End>>;
    /// Ends every process of a session; fine where there is none. What cannot be ended goes into the log.
    fn kill<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, ()>;
}

/// This device's.
pub struct OwnDoors {
    /// The engine.
    pub engine: Engine,
    /// By which our containers are known.
    pub instance: String,
}

impl Doors for OwnDoors {
    fn find<'a>(&'a self, record: &'a mut Record) -> BoxFuture<'a, Result<(), End>> {
        Box::pin(async move {
            match record.target.clone() {
                TerminalTarget::Service(name) => service::find(self, &name, record).await,
                _ => host::find(record),
            }
        })
    }

    fn open<'a>(&'a self, record: &'a mut Record, cols: u16, rows: u16) -> BoxFuture<'a, Result<Pty, End>> {
        Box::pin(async move {
            match &record.target {
                TerminalTarget::Service(_) => service::open(&self.engine, record, cols, rows).await,
                _ => host::open(record, cols, rows),
            }
        })
    }

    fn kill<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            match &record.target {
                TerminalTarget::Service(_) => service::kill(&self.engine, record).await,
                _ => host::kill(record).await,
            }
        })
    }
}
