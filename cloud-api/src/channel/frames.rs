//! What is to be said to a device now, and what to do with what it said; the same by WebSocket and by exchange.

use std::sync::atomic::Ordering::Relaxed;

use copal_protocol::{
    channel::{CloudFrame, DeviceFrame, Hello, Welcome},
    telemetry::FEATURE,
};

use super::memory::{Told, Turn};
use crate::{
    app::{self, App},
    commands,
    devices::{memory::Entry, report},
    error::Result,
    store::fleets,
    telemetry,
};

/// Answers a hello.
pub(super) async fn welcome(app: &App, entry: &Entry, turn: &Turn, hello: &Hello) -> Result<CloudFrame> {
    // From here on it is in memory.
    Box::pin(fleets::latest_root(app, entry.fleet_id)).await?;
    let timing = app.channels.timing();
    let seconds = |d: std::time::Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let now = news(app, entry);
    tracing::debug!(device = %entry.device_id, epoch = turn.epoch, agent = %hello.agent_version.escape_debug(), "channel");
    *turn.told() = now;
    let tells = hello.features.iter().any(|f| f == FEATURE);
    let stored = if tells { Some(telemetry::events::up_to(app, entry.device_id).await?) } else { None };
    Ok(CloudFrame::Welcome(Welcome {
        epoch: turn.epoch,
        ping_s: seconds(timing.ping),
        lease_s: seconds(timing.lease()),
        reconnect_window_s: app.channels.window_s(),
        etag: now.etag,
        root: now.root,
        time: app::now(),
        stored,
    }))
}

/// What a device can look for now.
fn news(app: &App, entry: &Entry) -> Told {
    Told { etag: entry.etag(), root: app.roots.version(entry.fleet_id) }
}

/// A goodbye.
pub(super) fn bye(app: &App, code: &str) -> CloudFrame {
    CloudFrame::Bye { code: code.to_owned(), retry_within_s: app.channels.window_s() }
}

/// Why a channel is over, as the device is told; `None` while it is not.
pub(super) fn over(app: &App, entry: &Entry, turn: Option<&Turn>, cuts: u32) -> Option<&'static str> {
    if let Err(problem) = entry.may_speak(cuts) {
        return Some(problem.code());
    }
    if turn.is_some_and(Turn::is_replaced) {
        return Some("replaced");
    }
    if turn.is_some_and(|turn| turn.dead.load(Relaxed)) {
        return Some("silent");
    }
    app.stopping.is_cancelled().then_some("restarting")
}

/// The next thing to say; `None` when there is nothing.
pub(super) async fn next(app: &App, entry: &Entry, turn: &Turn) -> Result<Option<CloudFrame>> {
    let now = news(app, entry);
    if std::mem::replace(&mut *turn.told(), now) != now {
        return Ok(Some(CloudFrame::Hint { etag: now.etag, root: now.root }));
    }
    // Taken back first: what is asked from here on sets it again.
    if turn.work.swap(false, Relaxed) {
        // Apart: an idle channel must not keep room for what it does once a day.
        let command = Box::pin(commands::next(app, entry, turn.epoch)).await;
        if !matches!(command, Ok(None)) {
            turn.work.store(true, Relaxed);
        }
        return Ok(command?.map(CloudFrame::Cmd));
    }
    Ok(None)
}

/// Takes a frame; what to say to it. A hello and a goodbye are its caller's.
pub(super) async fn take(app: &App, entry: &Entry, frame: DeviceFrame) -> Result<Option<CloudFrame>> {
    match frame {
        DeviceFrame::Ack(ack) => commands::answer(app, entry, &ack).await?,
        DeviceFrame::Report { envelope } => {
            // The newest report says everything, so one that is refused is made good by the next.
            match report::accept(app, entry, &envelope.to_bytes()).await {
                Err(problem) if problem.status().is_client_error() => {
                    tracing::debug!(device = %entry.device_id, %problem, "a report on the channel");
                }
                other => other?,
            }
        }
        DeviceFrame::Batch(batch) => {
            return telemetry::take(app, entry, batch).await.map(|stored| Some(CloudFrame::Stored(stored)));
        }
        // Of streams a WebSocket takes what is said itself, and there are none elsewhere.
        DeviceFrame::Hello(_)
        | DeviceFrame::Leave { .. }
        | DeviceFrame::Opened { .. }
        | DeviceFrame::Closed(_)
        | DeviceFrame::Credit(_) => {}
    }
    Ok(None)
}
