//! A support bundle over a stream of the channel: gathered, written into memory within a bound, sent as the cloud takes it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use copal_protocol::channel::StreamOf;
use futures_util::future::BoxFuture;

use super::{Deps, bundle};
use crate::{
    channel::streams::{End, Source, StreamIo},
    state::StateDir,
};

/// The most bytes of a bundle, compressed. Its parts are bounded before compression; this is for memory.
const MOST: usize = 12 << 20;

/// Where bundles come from.
pub struct Bundles {
    checks: Arc<Deps>,
    state: Arc<StateDir>,
    /// One at a time: each costs memory, and a look at everything.
    busy: Arc<AtomicBool>,
}

impl Bundles {
    /// Of this agent.
    #[must_use]
    pub fn new(checks: Arc<Deps>, state: Arc<StateDir>) -> Self {
        Self { checks, state, busy: Arc::default() }
    }
}

impl Source for Bundles {
    fn run(&self, _of: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        let (checks, state, busy) = (self.checks.clone(), self.state.clone(), self.busy.clone());
        Box::pin(async move {
            if busy.swap(true, Relaxed) {
                return End::because("busy", "a bundle is being made already");
            }
            let _free = Free(busy);
            io.opened();
            tracing::info!("a support bundle is made because a person asked");
            let gathered = bundle::gather(&checks).await;
            let writing = tokio::task::spawn_blocking(move || {
                bundle::write(Bounded(Vec::new()), &checks, &gathered, Some(&state))
            });
            let bytes = match writing.await.map_err(std::io::Error::other).and_then(|written| written) {
                Ok(Bounded(bytes)) => bytes,
                Err(e) => return End::because("bundle_failed", format!("it cannot be made: {e}")),
            };
            match io.send(bytes.into()).await {
                Ok(()) => End::ended(),
                Err(gone) => End::because("gone", gone.to_string()),
            }
        })
    }
}

struct Free(Arc<AtomicBool>);

impl Drop for Free {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// Memory that does not grow beyond a bound.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MOST {
            return Err(std::io::Error::other(format!("it has more than {} MiB", MOST >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
