//! Samples for whoever watches: a line every 5 s on a stream, for as long as that is open.

use std::time::Duration;

use bytes::Bytes;
use copal_protocol::{channel::StreamOf, telemetry::LIVE_S};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Deps, sums::Sums};
use crate::channel::streams::{End, Source, StreamIo};

/// The first line comes after this: there has to be something between two looks.
const FIRST: Duration = Duration::from_secs(1);

/// Says when it is dropped, however that comes.
struct Over;

impl Drop for Over {
    fn drop(&mut self) {
        tracing::debug!("nobody watches any more");
    }
}

/// The source of metrics streams.
pub struct Live(pub Deps);

impl Source for Live {
    fn run(&self, _: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        let deps = self.0.clone();
        Box::pin(async move {
            io.opened();
            tracing::debug!("somebody watches");
            let _over = Over;
            let mut sums = Sums::default();
            let mut wait = Duration::ZERO;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = io.gone() => return End::ended(),
                }
                let first = wait.is_zero();
                wait = if first { FIRST } else { Duration::from_secs(LIVE_S.into()) };
                let Some(raw) = deps.look().await else { continue };
                sums.add(raw, Instant::now().into_std());
                let Some(summary) = sums.take(deps.unix()) else { continue };
                let Ok(mut line) = serde_json::to_vec(&summary) else { continue };
                line.push(b'\n');
                // A reader that is slow gets fewer lines, each of a longer span.
                if io.send(Bytes::from(line)).await.is_err() {
                    return End::ended();
                }
            }
        })
    }
}
