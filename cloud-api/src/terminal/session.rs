//! One session, from its WebSocket to its end.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use copal_protocol::{
    channel::{Closed, OpenTerminal, StreamOf},
    documents::{MAX_TERMINAL_BYTES, TerminalMode},
    text::one_line,
};
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{
    COMES_S, Held, make,
    recording::Recording,
    rows::{self, Ended, SessionRow},
    tell,
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    channel::{Came, CloudStream, StreamError},
    devices::limit::{Bucket, Rate},
    error::{Problem, Result},
    store::fleets,
};

/// Whether who opened it still may is looked at this often.
const ACCESS: Duration = Duration::from_secs(2);
/// A ping this often keeps proxies from closing a quiet terminal.
const PING: Duration = Duration::from_secs(20);
/// The device keeps the bounds of a session; where it does not, the cloud does, this much later.
const SLACK: Duration = Duration::from_secs(30);
/// The same of its bytes. Under a grant they are ciphertext, which is a little more.
const MOST_BYTES: u64 = MAX_TERMINAL_BYTES + (MAX_TERMINAL_BYTES >> 3);
/// New sizes of the window; one that comes faster is passed over, and a window that is drawn says its last one again.
const SIZES: Rate = Rate { burst: 50.0, per_second: 10.0 };
/// Characters kept of what a device says of the end.
const MESSAGE: usize = 1_000;
/// How long the last message may take.
const LAST: Duration = Duration::from_secs(2);

/// What a person's side says in text messages; bytes typed are binary ones.
#[derive(Debug, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
enum Says {
    /// The window changed.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// What the cloud says in text messages; bytes of the terminal are binary ones.
#[derive(Debug, Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum Told<'a> {
    /// The device opened it.
    Opened,
    /// Nothing follows.
    Closed {
        code: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<i64>,
    },
}

fn text(told: &Told<'_>) -> Message {
    Message::Text(serde_json::to_string(told).unwrap_or_default().into())
}

/// What a session's parts share.
struct Session<'a> {
    app: &'a App,
    fleet_id: String,
    row: &'a SessionRow,
    caller: &'a Caller,
    held: &'a Held<'a>,
    recording: Mutex<Option<Recording>>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Runs a session that `caller` asked for over their WebSocket, to its end.
pub(crate) async fn run(app: App, fleet_id: String, row: SessionRow, caller: Caller, socket: WebSocket) {
    let (mut to_person, from_person) = socket.split();
    let closed = match app.terminals.take(&row.id) {
        None => {
            Closed::new(0, "taken", "This session has a WebSocket already, or too many terminals are open.")
        }
        Some(held) => {
            let session = Session {
                app: &app,
                fleet_id,
                row: &row,
                caller: &caller,
                held: &held,
                recording: Mutex::new(None),
                bytes_in: AtomicU64::new(0),
                bytes_out: AtomicU64::new(0),
            };
            let closed = Box::pin(session.talk(&mut to_person, from_person)).await;
            if let Err(problem) = session.end(&closed).await {
                tracing::error!(session = row.id, %problem, "the end of a terminal could not be written down");
            }
            closed
        }
    };
    let Closed { code, message, exit_code, .. } = &closed;
    let last = async {
        let told = Told::Closed { code, message, exit_code: *exit_code };
        let _ = to_person.send(text(&told)).await;
        let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _ = to_person.send(Message::Close(Some(frame))).await;
    };
    let _ = timeout(LAST, last).await;
}

impl Session<'_> {
    async fn talk(
        &self,
        to_person: &mut SplitSink<WebSocket, Message>,
        mut from_person: futures_util::stream::SplitStream<WebSocket>,
    ) -> Closed {
        let ended = |code: &str, message: &str| Closed::new(0, code, message);
        let killed = || ended("killed", "Somebody ended the session in the cloud.");
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = self.held.kill.cancelled() => return killed(),
            () = self.app.stopping.cancelled() => return ended("cloud_restarted", "The cloud stops."),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(closed) => return closed,
        };
        if to_person.send(text(&Told::Opened)).await.is_err() {
            return ended("left", "Whoever opened it went away.");
        }
        let typed = async {
            let mut sizes = Bucket::default();
            loop {
                let Some(Ok(message)) = from_person.next().await else {
                    return ended("left", "Whoever opened it went away.");
                };
                match message {
                    Message::Binary(bytes) => {
                        if let Some(closed) = carried(&self.bytes_in, &self.bytes_out, bytes.len()) {
                            return closed;
                        }
                        if stream.send(&bytes).await.is_err() {
                            // How it ended is read where it is read.
                            std::future::pending::<()>().await;
                        }
                    }
                    Message::Text(words) => match serde_json::from_str(&words) {
                        Ok(Says::Resize { cols, rows }) if !make::is_size(cols, rows) => {
                            return ended("protocol", "A size that no window has.");
                        }
                        Ok(Says::Resize { .. }) if !sizes.take(SIZES, Instant::now()) => {}
                        Ok(Says::Resize { cols, rows }) => {
                            stream.resize(cols, rows);
                            if let Err(closed) = self.recorded(|r| r.resize(cols, rows)) {
                                return closed;
                            }
                        }
                        Err(_) => return ended("protocol", "A text message that is none of a terminal."),
                    },
                    Message::Close(_) => return ended("left", "Whoever opened it closed it."),
                    Message::Ping(_) | Message::Pong(_) => {}
                }
            }
        };
        let shown = async {
            let mut pings = interval(PING);
            pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pings.reset();
            loop {
                let came = tokio::select! {
                    came = stream.recv() => came,
                    _ = pings.tick() => {
                        if to_person.send(Message::Ping(Bytes::new())).await.is_err() {
                            return ended("left", "Whoever opened it went away.");
                        }
                        continue;
                    }
                };
                match came {
                    Came::Closed(closed) => return closed,
                    Came::Data(bytes) => {
                        if let Some(closed) = carried(&self.bytes_out, &self.bytes_in, bytes.len()) {
                            return closed;
                        }
                        if let Err(closed) = self.recorded(|r| r.output(&bytes)) {
                            return closed;
                        }
                        if to_person.send(Message::Binary(bytes)).await.is_err() {
                            return ended("left", "Whoever opened it went away.");
                        }
                    }
                }
            }
        };
        let watched = async {
            loop {
                sleep(ACCESS).await;
                if let Err(problem) = self.still_may().await {
                    return ended("access_lost", problem.detail());
                }
                if let Err(closed) = self.recorded(Recording::flush) {
                    return closed;
                }
            }
        };
        let most = Duration::from_secs(self.row.max_s.unsigned_abs()) + SLACK;
        let closed = tokio::select! {
            () = sleep(most) => ended("time_over", "It lasted as long as it may, and the device did not end it."),
            closed = typed => closed,
            closed = shown => closed,
            closed = watched => closed,
            () = self.held.kill.cancelled() => killed(),
            () = self.app.stopping.cancelled() => ended("cloud_restarted", "The cloud stops."),
        };
        stream.close(&closed.code, &closed.message);
        closed
    }

    /// Has the device open it.
    async fn open(&self) -> std::result::Result<CloudStream, Closed> {
        let failed = |problem: &Problem| Closed::new(0, "failed", problem.detail());
        let row = self.row;
        let session_id = row.id.parse().map_err(|e| failed(&Problem::internal(e)))?;
        let device = row.device_id.parse().map_err(|e| failed(&Problem::internal(e)))?;
        let size = |n: i64| u16::try_from(n).unwrap_or(80);
        let seconds = |n: i64| u32::try_from(n).unwrap_or(1);
        // Ciphertext is recorded by the device, which can read it.
        let recorded = row.mode == "cloud";
        let open = OpenTerminal {
            session_id,
            target: row.target().map_err(|p| failed(&p))?,
            cols: size(row.cols),
            rows: size(row.rows),
            who: row.who.clone(),
            reason: row.reason.clone(),
            max_s: seconds(row.max_s),
            idle_s: seconds(row.idle_s),
            max_bytes: MAX_TERMINAL_BYTES,
            // Who records it follows from that; a device under another Root refuses rather than have nobody do it.
            mode: Some(if recorded { TerminalMode::Cloud } else { TerminalMode::Grant }),
        };
        let title = format!("{}: {} by {}: {}", row.device_id, open.target, row.who, row.reason);
        let stream = match self.app.channels.open_stream(device, StreamOf::Terminal(open), &row.user_id).await
        {
            Ok(stream) => stream,
            Err(StreamError::Refused(closed)) => {
                let message = one_line(&closed.message, MESSAGE);
                return Err(Closed { code: code_of(&closed.code), message, ..closed });
            }
            Err(error) => {
                let problem = Problem::from(error);
                return Err(Closed::new(0, problem.code(), problem.detail()));
            }
        };
        if recorded {
            let begun = Recording::begin(
                &self.app.config,
                &row.id,
                (size(row.cols), size(row.rows)),
                app::now(),
                &title,
            );
            let begun = begun.map_err(|e| {
                tracing::error!(session = row.id, error = %e, "a recording cannot be begun");
                Closed::new(0, "failed", "The recording cannot be written, and nothing goes on unrecorded.")
            })?;
            *self.recording.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        }
        let noted = async {
            let mut tx = self.app.db.write().await?;
            let live = rows::opened(&mut tx, &row.id, recorded, app::now_i64()).await?;
            tx.commit().await?;
            Ok(live)
        };
        match noted.await {
            Ok(true) => {}
            Ok(false) => return Err(Closed::new(0, "killed", "The session was ended before it began.")),
            Err(problem) => return Err(failed(&problem)),
        }
        tell(self.app, &self.fleet_id, row);
        Ok(stream)
    }

    fn recorded(
        &self,
        what: impl FnOnce(&mut Recording) -> std::io::Result<()>,
    ) -> std::result::Result<(), Closed> {
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(recording) = recording.as_mut() else { return Ok(()) };
        what(recording).map_err(|error| {
            tracing::error!(session = self.row.id, %error, "a recording cannot go on");
            Closed::new(0, "recording_failed", "The recording cannot go on, and nothing goes on unrecorded.")
        })
    }

    /// Asks with the very credentials the WebSocket was opened with.
    async fn still_may(&self) -> Result<()> {
        let fleet = fleets::by_id(self.app, self.fleet_id.parse().map_err(Problem::internal)?).await?;
        self.caller.still_may(self.app, make::needs(&self.row.target()?), Some(&fleet)).await?;
        let device = self.row.device_id.parse().map_err(Problem::internal)?;
        let row = crate::devices::rows::by_id(self.app, device).await?;
        let row = row.ok_or_else(|| Problem::not_found("such device"))?;
        crate::devices::memory::refuse_unless_accepted(row.device_state()?)
    }

    async fn end(&self, closed: &Closed) -> Result<()> {
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = Ended {
            closed: Closed {
                code: code_of(&closed.code),
                message: one_line(&closed.message, MESSAGE),
                ..closed.clone()
            },
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            recording: recording.map(Recording::finish),
        };
        let mut tx = self.app.db.write().await?;
        if rows::ended(&mut tx, &self.row.id, &end, app::now_i64()).await? {
            let detail = json!({
                "session": self.row.id, "code": end.closed.code, "exit_code": end.closed.exit_code, "bytes_in": end.bytes_in,
                "bytes_out": end.bytes_out, "recording_sha256": end.recording.map(|(_, sha256)| sha256),
            });
            let object = format!("device:{}", self.row.device_id);
            audit::note(&mut tx, self.caller, "terminal.end", &object, detail).await?;
        }
        tx.commit().await?;
        tell(self.app, &self.fleet_id, self.row);
        Ok(())
    }
}

/// Counts what goes one way; the end, where that is more than both ways may carry.
fn carried(this: &AtomicU64, other: &AtomicU64, bytes: usize) -> Option<Closed> {
    let bytes = bytes as u64;
    let all = this.fetch_add(bytes, Relaxed) + bytes + other.load(Relaxed);
    let over =
        || Closed::new(0, "bytes_over", "It carried as much as it may, and the device did not end it.");
    (all > MOST_BYTES).then(over)
}

/// A code as a device said it; what cannot be one is `failed`.
fn code_of(code: &str) -> String {
    let sound =
        (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if sound { code.to_owned() } else { "failed".to_owned() }
}

/// Ends a session for somebody: at once where it is live, or before it begins.
///
/// # Errors
/// When the database fails.
pub(crate) async fn kill(app: &App, caller: &Caller, fleet_id: &str, row: &SessionRow) -> Result<()> {
    let mut tx = app.db.write().await?;
    let object = format!("device:{}", row.device_id);
    audit::record(&mut tx, caller, "terminal.kill", &object, json!({"session": row.id})).await?;
    let live = app.terminals.kill(&row.id);
    if !live {
        let closed = Closed::new(0, "killed", "The session was ended before it began.");
        let end = Ended { closed, bytes_in: 0, bytes_out: 0, recording: None };
        rows::ended(&mut tx, &row.id, &end, app::now_i64()).await?;
    }
    tx.commit().await?;
    tell(app, fleet_id, row);
    Ok(())
}

/// Ends a session that nobody came for.
pub(super) fn expire_later(app: &App, row: &SessionRow) {
    let (app, id) = (app.clone(), row.id.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = sleep(Duration::from_secs(COMES_S + 5)) => {}
            () = app.stopping.cancelled() => return,
        }
        if app.terminals.is_live(&id) {
            return;
        }
        let closed = Closed::new(0, "not_come", "Nobody came for the session.");
        let end = Ended { closed, bytes_in: 0, bytes_out: 0, recording: None };
        let ended = async {
            let mut tx = app.db.write().await?;
            rows::ended(&mut tx, &id, &end, app::now_i64()).await?;
            tx.commit().await?;
            Ok::<_, Problem>(())
        };
        if let Err(problem) = ended.await {
            tracing::warn!(session = id, %problem, "a terminal that nobody came for could not be ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_either_way_counts_against_one_bound() {
        let (one, other) = (AtomicU64::new(0), AtomicU64::new(MOST_BYTES - 10));
        assert!(carried(&one, &other, 10).is_none());
        assert_eq!(carried(&one, &other, 1).unwrap().code, "bytes_over");
        assert_eq!(carried(&other, &one, 1).unwrap().code, "bytes_over");
        const { assert!(MOST_BYTES > MAX_TERMINAL_BYTES) };
    }
}
