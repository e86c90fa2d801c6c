//! One WebSocket, from its request to its end.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use axum::{
    Extension,
    body::Bytes,
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::HeaderMap,
    response::Response,
};
use copal_protocol::channel::{self, CloudFrame, DeviceFrame, Hello, MAX_MESSAGE, SUBPROTOCOL};
use tokio::time::{self, timeout};

use super::{
    frames,
    memory::{Greeting, Kind, Place, Turn},
    streams::{Features, Say},
};
use crate::{
    app::App,
    devices::{
        self,
        limit::{Bucket, Rate},
        memory::Entry,
    },
    error::{Problem, Result},
    serve::Admission,
};

/// Read at a time. The library's default keeps 128 KiB for each of what may be ten thousand sockets.
const READ_BUFFER: usize = 1 << 10;
/// Messages of one device. One that says more is heard later, and its line fills up meanwhile.
pub(super) const MESSAGES: Rate = Rate { burst: 500.0, per_second: 100.0 };
/// Messages of data: their bytes are bounded by credit, so what counts is that they are not too small.
const DATA: Rate = Rate { burst: 4_000.0, per_second: 1_000.0 };

/// Opens a device's channel.
pub(super) async fn open(
    State(app): State<App>,
    headers: HeaderMap,
    admission: Option<Extension<Admission>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let (entry, cuts) = app.devices.speaker(&headers)?;
    devices::heard(&app, &entry);
    let upgrade = upgrade.map_err(|e| {
        Problem::bad_request(
            "upgrade_missing",
            format!("This is no WebSocket's request ({e}). Where the network lets none through, use /device/v1/exchange."),
        )
    })?;
    if !upgrade.requested_protocols().any(|p| p == SUBPROTOCOL) {
        return Err(Problem::bad_request(
            "subprotocol_unknown",
            format!("The channel speaks {SUBPROTOCOL}; ask for it in Sec-WebSocket-Protocol."),
        ));
    }
    let greeting = app.channels.greet(entry.device_id)?;
    let tasks = app.channels.tasks.clone();
    Ok(upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| {
            let (messages, data) = (Bucket::default(), Bucket::default());
            let channel = Channel { app, entry, cuts, socket, messages, data, _admission: admission };
            // A task of its own, so that what waited for the upgrade goes with its end: a channel is idle for days.
            tasks.spawn(Box::new(channel).run(greeting));
            std::future::ready(())
        }))
}

/// An open socket.
struct Channel {
    app: App,
    entry: Arc<Entry>,
    cuts: u32,
    socket: WebSocket,
    messages: Bucket,
    data: Bucket,
    /// The connection's place among all of the listener's: it holds a file.
    _admission: Option<Extension<Admission>>,
}

/// How a channel ends.
enum End {
    /// The device is told why.
    Bye(&'static str),
    /// There is nobody to tell.
    Gone,
}

/// What came.
enum Came {
    Frame(DeviceFrame),
    /// Data of a stream, with its number.
    Data(Bytes),
    /// A sign of life, or what this version leaves aside.
    Life,
    /// A ping, and within how many seconds the next one comes.
    Ping(u32),
    End(End),
}

impl Channel {
    /// What happens once, or at the end, is apart (boxed), as in `frames::next`: an idle channel keeps room for waiting only.
    async fn run(mut self: Box<Self>, greeting: Greeting) {
        let end = match Box::pin(self.hello(greeting)).await {
            Ok((hello, place)) => self.turn(hello, place).await,
            Err(end) => end,
        };
        if let End::Bye(code) = end {
            let bye = self.app.channels.timing().bye;
            let frame = frames::bye(&self.app, code);
            let _ = timeout(bye, Box::pin(self.farewell(&frame, code))).await;
        }
    }

    /// The first frame, in time.
    async fn hello(&mut self, greeting: Greeting) -> Result<(Hello, Option<Place>), End> {
        let in_time = time::sleep(self.app.channels.timing().hello);
        let mut in_time = pin!(in_time);
        loop {
            let (app, entry, cuts) = (self.app.clone(), Arc::clone(&self.entry), self.cuts);
            let came = tokio::select! {
                message = self.socket.recv() => came(message),
                () = &mut in_time => return Err(End::Bye("protocol")),
                code = over(&app, &entry, None, cuts) => return Err(End::Bye(code)),
            };
            match came {
                Came::Frame(DeviceFrame::Hello(hello)) => return Ok((hello, greeting.over())),
                Came::Frame(_) | Came::Data(_) => return Err(End::Bye("protocol")),
                // Neither pings nor frames of a later version buy more time.
                Came::Life | Came::Ping(_) => {}
                Came::End(end) => return Err(end),
            }
        }
    }

    async fn turn(&mut self, hello: Hello, _place: Option<Place>) -> End {
        let turn = self.app.channels.begin(&self.entry, Kind::Socket, Features::of(&hello.features));
        // Whatever ends this, the device's turn ends with it.
        let _ended = Ended { app: self.app.clone(), entry: Arc::clone(&self.entry), turn: Arc::clone(&turn) };
        // Apart, as in `frames::next`.
        let welcome = Box::pin(frames::welcome(&self.app, &self.entry, &turn, &hello)).await;
        drop(hello);
        let Ok(welcome) = welcome else {
            return End::Bye("restarting");
        };
        let talk = async {
            self.send(text(&welcome)?, &turn).await?;
            self.talk(&turn).await
        };
        match talk.await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn talk(&mut self, turn: &Turn) -> Result<std::convert::Infallible, End> {
        let mut silent = pin!(time::sleep(self.app.channels.lease(turn)));
        loop {
            let entry = Arc::clone(&self.entry);
            // Registered before looking, so that a change in between is not missed.
            let mut changed = pin!(entry.changed.notified());
            changed.as_mut().enable();
            if let Some(code) = frames::over(&self.app, &self.entry, Some(turn), self.cuts) {
                return Err(End::Bye(code));
            }
            if turn.ping.swap(false, Relaxed) {
                self.send(Message::Ping(Bytes::new()), turn).await?;
            }
            if let Some(say) = turn.streams.next() {
                let message = match say {
                    Say::Frame(frame) => text(&frame)?,
                    Say::Data(bytes) => Message::Binary(bytes.into()),
                };
                self.send(message, turn).await?;
                continue;
            }
            match frames::next(&self.app, &self.entry, turn).await {
                Ok(Some(frame)) => {
                    self.send(text(&frame)?, turn).await?;
                    continue;
                }
                Ok(None) => {}
                // The database, most likely; the device comes back later, and nothing is lost.
                Err(_) => return Err(End::Bye("restarting")),
            }
            let app = self.app.clone();
            let came = tokio::select! {
                message = self.socket.recv() => came(message),
                () = &mut changed => continue,
                () = turn.streams.news.notified() => continue,
                () = app.stopping.cancelled() => continue,
                () = &mut silent => return Err(End::Gone),
            };
            if let Came::End(end) = came {
                return Err(end);
            }
            if let Came::Ping(every_s) = came {
                turn.pings_every(every_s);
            }
            silent.as_mut().reset(time::Instant::now() + self.app.channels.lease(turn));
            self.app.channels.heard(&self.entry, turn);
            devices::heard(&self.app, &self.entry);
            while !match came {
                Came::Data(_) => self.data.take(DATA, Instant::now()),
                _ => self.messages.take(MESSAGES, Instant::now()),
            } {
                time::sleep(std::time::Duration::from_millis(20)).await;
            }
            match came {
                Came::Frame(DeviceFrame::Hello(_)) => return Err(End::Bye("protocol")),
                Came::Frame(DeviceFrame::Leave { code, back_within_s }) => {
                    tracing::debug!(device = %self.entry.device_id, code = %code.escape_debug(), back_within_s, "leaves");
                    self.app.channels.leaves(&self.entry, turn, back_within_s);
                    return Err(End::Gone);
                }
                Came::Data(message) => {
                    turn.streams.data(&message).map_err(|_| End::Bye("protocol"))?;
                }
                Came::Frame(frame) => {
                    let Some(frame) = turn.streams.take(frame) else { continue };
                    // Apart, as in `frames::next`.
                    match Box::pin(frames::take(&self.app, &self.entry, frame)).await {
                        Ok(Some(answer)) => self.send(text(&answer)?, turn).await?,
                        Ok(None) => {}
                        Err(_) => return Err(End::Bye("restarting")),
                    }
                }
                Came::Life | Came::Ping(_) | Came::End(_) => {}
            }
        }
    }

    /// Sends a message. A device that does not read is cut off, and so is one that was revoked meanwhile.
    async fn send(&mut self, message: Message, turn: &Turn) -> Result<(), End> {
        let (app, entry, cuts) = (self.app.clone(), Arc::clone(&self.entry), self.cuts);
        let patience = app.channels.timing().write;
        let sent = tokio::select! {
            sent = timeout(patience, self.socket.send(message)) => sent,
            _ = over(&app, &entry, Some(turn), cuts) => return Err(End::Gone),
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => {
                tracing::debug!(device = %self.entry.device_id, "does not read; its channel is cut");
                Err(End::Gone)
            }
        }
    }

    async fn farewell(&mut self, frame: &CloudFrame, code: &'static str) -> Option<()> {
        self.socket.send(Message::text(channel::write(frame).ok()?)).await.ok()?;
        let close = match code {
            "protocol" => close_code::PROTOCOL,
            "restarting" => close_code::RESTART,
            _ => close_code::POLICY,
        };
        let reason = code.into();
        self.socket.send(Message::Close(Some(CloseFrame { code: close, reason }))).await.ok()?;
        // The other side closes; whatever it said before is of no interest any more.
        while let Some(Ok(_)) = self.socket.recv().await {}
        Some(())
    }
}

/// Waits until a channel is over.
async fn over(app: &App, entry: &Entry, turn: Option<&Turn>, cuts: u32) -> &'static str {
    loop {
        let mut changed = pin!(entry.changed.notified());
        changed.as_mut().enable();
        if let Some(code) = frames::over(app, entry, turn, cuts) {
            return code;
        }
        tokio::select! {
            () = changed => {}
            () = app.stopping.cancelled() => {}
        }
    }
}

fn text(frame: &CloudFrame) -> Result<Message, End> {
    channel::write(frame).map(Message::text).map_err(|_| End::Gone)
}

fn came(message: Option<Result<Message, axum::Error>>) -> Came {
    let text = match message {
        Some(Ok(Message::Text(text))) => Bytes::from(text),
        Some(Ok(Message::Ping(payload))) => {
            return channel::parse_ping(&payload).map_or(Came::Life, |(_, every_s)| Came::Ping(every_s));
        }
        Some(Ok(Message::Pong(_))) => return Came::Life,
        Some(Ok(Message::Binary(message))) => return Came::Data(message),
        Some(Ok(Message::Close(_))) | None => return Came::End(End::Gone),
        Some(Err(error)) => {
            tracing::debug!(%error, "channel");
            return Came::End(End::Bye("protocol"));
        }
    };
    match channel::read::<DeviceFrame>(&text) {
        Ok(Some(frame)) => Came::Frame(frame),
        Ok(None) => Came::Life,
        Err(error) => {
            tracing::debug!(%error, "a frame that is none");
            Came::End(End::Bye("protocol"))
        }
    }
}

/// Ends a turn when it is dropped.
struct Ended {
    app: App,
    entry: Arc<Entry>,
    turn: Arc<Turn>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.app.channels.end(&self.entry, &self.turn);
    }
}
