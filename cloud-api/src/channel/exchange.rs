//! `POST /device/v1/exchange`: the channel's frames by long poll, for networks that let no WebSocket through.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode},
};
use copal_protocol::{
    channel::{self, CloudFrame, DeviceFrame, Exchange, MAX_DEPTH, MAX_FRAMES, MAX_MESSAGE},
    json,
};
use serde_json::Value;

use super::{
    frames,
    memory::{Kind, Turn},
    socket::MESSAGES,
    streams::Features,
};
use crate::{
    app::App,
    devices::{self, limit::Rate, memory::Entry, state},
    error::{Problem, Result},
};

/// Hellos of one device: each begins a new turn, in which every command that has not ended is sent again.
const HELLOS: Rate = Rate { burst: 20.0, per_second: 0.2 };
/// The most bytes of a request.
pub(super) const MAX_BODY: usize = 1 << 20;

/// Takes what a device says, and answers what there is to say, as soon as there is something.
pub(super) async fn exchange(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Exchange<CloudFrame>>> {
    let wait = state::wait(query.as_deref())?;
    let (entry, cuts) = app.devices.speaker(&headers)?;
    devices::heard(&app, &entry);
    let said = read(&body)?;
    let hellos = said.iter().filter(|frame| matches!(frame, DeviceFrame::Hello(_))).count();
    if hellos > 1 {
        return Err(Problem::bad_request("frame_malformed", "An exchange has one hello at most."));
    }
    // The request itself, and each frame.
    let messages = u16::try_from(said.len() + 1).unwrap_or(u16::MAX);
    if !entry.may_say((messages, MESSAGES), (u16::from(hellos == 1), HELLOS), Instant::now()) {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            "This device says more than it may; wait and come again.",
        )
        .retry_after(5));
    }
    let mut out = Vec::new();
    let mut turn = app.channels.latest(entry.device_id);
    let mut leaves = None;
    for frame in said {
        match frame {
            DeviceFrame::Hello(hello) => {
                let opened = app.channels.begin(&entry, Kind::Exchange, Features::default());
                out.push(frames::welcome(&app, &entry, &opened, &hello).await?);
                turn = Some(opened);
            }
            DeviceFrame::Leave { back_within_s, .. } => leaves = Some(back_within_s),
            frame => out.extend(frames::take(&app, &entry, frame).await?),
        }
    }
    let turn = match turn {
        Some(turn) if turn.kind == Kind::Exchange => turn,
        // Its WebSocket is the newer channel; what it said counts, what there is to say goes there.
        Some(_) => return Ok(Json(Exchange { frames: vec![frames::bye(&app, "replaced")] })),
        // The cloud began anew, or the device stayed away for long; it need not care.
        None => app.channels.begin(&entry, Kind::Exchange, Features::default()),
    };
    app.channels.heard(&entry, &turn);
    let call = turn.calls.fetch_add(1, Relaxed) + 1;
    // An older request of the device that is still held has no reader any more.
    entry.changed.notify_waiters();
    let Some(within_s) = leaves else {
        return hold(&app, &entry, &turn, Held { cuts, call, wait: Duration::from_secs(wait) }, out).await;
    };
    // What waits for it goes along; what comes after that waits until it is there again.
    let answer = hold(&app, &entry, &turn, Held { cuts, call, wait: Duration::ZERO }, out).await;
    app.channels.leaves(&entry, &turn, within_s);
    answer
}

struct Held {
    cuts: u32,
    call: u32,
    wait: Duration,
}

async fn hold(
    app: &App,
    entry: &Arc<Entry>,
    turn: &Turn,
    held: Held,
    mut out: Vec<CloudFrame>,
) -> Result<Json<Exchange<CloudFrame>>> {
    // As polls that are held: what many devices wait for keeps nobody out. One that finds no place asks again before long.
    let place = if held.wait.is_zero() { None } else { app.channels.hold() };
    let wait = if place.is_some() { held.wait } else { Duration::ZERO };
    let mut deadline = pin!(tokio::time::sleep(wait));
    loop {
        let mut changed = pin!(entry.changed.notified());
        changed.as_mut().enable();
        // As every route of a device that was shut out answers.
        entry.may_speak(held.cuts)?;
        if let Some(code) = frames::over(app, entry, Some(turn), held.cuts) {
            out.push(frames::bye(app, code));
        } else if turn.calls.load(Relaxed) == held.call {
            while out.len() < MAX_FRAMES
                && let Some(frame) = frames::next(app, entry, turn).await?
            {
                out.push(frame);
            }
        } else {
            return Ok(Json(Exchange { frames: out }));
        }
        if !out.is_empty() {
            return Ok(Json(Exchange { frames: out }));
        }
        tokio::select! {
            () = changed => {}
            () = app.stopping.cancelled() => {}
            () = &mut deadline => return Ok(Json(Exchange { frames: out })),
        }
    }
}

/// Reads frames, leaving those of a later version aside.
fn read(body: &[u8]) -> Result<Vec<DeviceFrame>> {
    let bad = |why: String| Problem::bad_request("frame_malformed", why);
    let exchange: Exchange<Value> = json::from_slice(body, MAX_DEPTH + 2)
        .map_err(|e| bad(format!("The body is not an exchange of frames: {e}.")))?;
    if exchange.frames.len() > MAX_FRAMES {
        return Err(bad(format!("An exchange has at most {MAX_FRAMES} frames.")));
    }
    let mut frames = Vec::new();
    for (n, frame) in exchange.frames.iter().enumerate() {
        let text = frame.to_string();
        if text.len() > MAX_MESSAGE {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "frame_too_large",
                format!("Frame {n} has more than {MAX_MESSAGE} bytes."),
            ));
        }
        frames.extend(
            channel::read::<DeviceFrame>(text.as_bytes()).map_err(|e| bad(format!("Frame {n}: {e}.")))?,
        );
    }
    Ok(frames)
}
