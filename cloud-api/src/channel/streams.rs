//! Streams over a device's channel. In: what somebody of the cloud wants of a device (a log, a terminal). Out: bytes both ways.
//!
//! ```text
//! Memory::open_stream ──open──▶ device ──opened──▶ CloudStream
//!                     CloudStream ◀──data, with credit──▶ device
//! ```
//! A device gets credit as its reader takes what came, so one that reads slowly, or not at all, costs the cloud
//! `FIRST_CREDIT` bytes a stream and slows the device. A stream ends by either side, when it is dropped, and with the channel.
//! An idle channel keeps nothing of all this but an empty map.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use copal_protocol::{
    channel::{self, Closed, CloudFrame, Credit, DeviceFrame, MAX_STREAMS, Open, StreamOf},
    flow::{self, Overrun, Window},
    ids::DeviceId,
    logs::FEATURE_ONLY,
    text::inert,
};
use http::StatusCode;
use tokio::{sync::Notify, time::timeout};

use super::memory::{Kind, Memory, Place, Turn};
use crate::{auth::bounds::Share, error::Problem};

/// Streams of all devices at once.
pub(super) const MOST: usize = 2_000;
/// Of one person.
const EACH: usize = 100;
/// Logs of one device for one person.
const LOGS_EACH: usize = 3;
/// Of a device's streams those that only a terminal or a support bundle takes: who may only look keeps nobody from those.
const RESERVED: usize = 2;
/// How long a device may take to open one.
const OPENS: Duration = Duration::from_secs(15);
/// The most bytes of one message.
const PIECE: usize = 16 << 10;

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The device has no channel, or lost it, or did not answer.
    DeviceAway,
    /// Its agent has no streams of that kind.
    NotSupported,
    /// It has its channel by long poll.
    NoWebSocket,
    /// The device has as many as it may, or all devices together.
    TooMany,
    /// Whoever asks has as many as one person may.
    TooManyOfOne,
    /// The device said no.
    Refused(Closed),
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::DeviceAway => Self::conflict(
                "device_away",
                "The device is not connected now, or did not answer. Try again when it is online.",
            ),
            StreamError::NotSupported => Self::conflict(
                "not_supported",
                "The device's agent has no streams of that kind; a newer one may.",
            ),
            StreamError::NoWebSocket => Self::conflict(
                "no_websocket",
                "The device is connected by long polling, since something between it and this server lets no WebSocket \
                 through: a reverse proxy that does not pass the header Upgrade on, or a proxy where the device is. Logs, \
                 terminals, live metrics and support bundles need one; commands and deploys do not. How a proxy is set up is in \
                 docs/operations.md (\"A proxy in front\"); the device tries a WebSocket again every quarter of an hour, and when \
                 its agent starts.",
            ),
            StreamError::TooMany => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_streams",
                format!("The device has {MAX_STREAMS} streams at a time, and all devices {MOST}; close one, or try again later."),
            )
            .retry_after(10),
            StreamError::TooManyOfOne => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_streams",
                format!("You have as many streams as one person may, {LOGS_EACH} logs of a device and {EACH} streams in all; close one."),
            )
            .retry_after(10),
            StreamError::Refused(Closed { code, message, .. }) => {
                let code = match code.as_str() {
                    "not_supported" => "not_supported",
                    "too_many_streams" => "too_many_streams",
                    "service_unknown" => "service_unknown",
                    "policy_local" => "policy_local",
                    "over_budget" => "over_budget",
                    "busy" => "busy",
                    _ => "stream_refused",
                };
                let said: String = inert(&message).chars().take(500).collect();
                Self::conflict(code, format!("The device opens no such stream: {said}"))
            }
        }
    }
}

/// What a device has streams of, as its hello said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Features {
    logs: bool,
    terminal: bool,
    metrics: bool,
    bundle: bool,
    /// It leaves out by itself what is not wanted of a log.
    only: bool,
}

impl Features {
    pub(super) fn of(words: &[String]) -> Self {
        let has = |word: &str| words.iter().any(|w| w == word);
        Self {
            logs: has("logs"),
            terminal: has("terminal"),
            metrics: has("metrics"),
            bundle: has("bundle"),
            only: has(FEATURE_ONLY),
        }
    }

    fn have(self, of: &StreamOf) -> bool {
        match of {
            StreamOf::Logs(_) => self.logs,
            StreamOf::Terminal(_) => self.terminal,
            StreamOf::Metrics {} => self.metrics,
            StreamOf::Bundle {} => self.bundle,
            StreamOf::Unknown => false,
        }
    }
}

/// What is to be said to the device.
#[derive(Debug, PartialEq)]
pub(super) enum Say {
    Frame(CloudFrame),
    /// A whole binary message.
    Data(Vec<u8>),
}

/// The streams of one channel.
#[derive(Debug, Default)]
pub(super) struct Streams {
    state: Mutex<State>,
    /// There is something to say.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    /// The last number that was given.
    last: u32,
    open: BTreeMap<u32, Arc<Shared>>,
    /// Bounded: data by its credit, credit by what came, the rest to a few a stream.
    say: VecDeque<Say>,
}

impl Streams {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, say: Say) {
        let mut state = self.state();
        if !state.over {
            state.say.push_back(say);
            self.news.notify_one();
        }
    }

    fn add(&self, of: StreamOf, who: &str) -> Result<(u32, Arc<Shared>), StreamError> {
        let mut state = self.state();
        if state.over {
            return Err(StreamError::DeviceAway);
        }
        let looks = matches!(of, StreamOf::Logs { .. } | StreamOf::Metrics {});
        let looking = state.open.values().filter(|shared| shared.looks).count();
        if state.open.len() >= MAX_STREAMS || (looks && looking >= MAX_STREAMS - RESERVED) {
            return Err(StreamError::TooMany);
        }
        let logs_of = (matches!(of, StreamOf::Logs { .. }) && !who.is_empty()).then(|| who.to_owned());
        let own = |shared: &&Arc<Shared>| logs_of.is_some() && shared.logs_of == logs_of;
        if state.open.values().filter(own).count() >= LOGS_EACH {
            return Err(StreamError::TooManyOfOne);
        }
        state.last += 1;
        let (stream, shared) = (state.last, Arc::new(Shared { looks, logs_of, ..Shared::default() }));
        state.open.insert(stream, Arc::clone(&shared));
        state.say.push_back(Say::Frame(CloudFrame::Open(Open { stream, of })));
        self.news.notify_one();
        Ok((stream, shared))
    }

    /// The next to say.
    pub(super) fn next(&self) -> Option<Say> {
        self.state().say.pop_front()
    }

    /// The channel is over, and so is every stream of it.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.over = true;
        state.say.clear();
        for (stream, shared) in std::mem::take(&mut state.open) {
            shared.close(Closed::new(stream, "device_away", "The device's channel ended."));
        }
    }

    /// A binary message of the device.
    pub(super) fn data(&self, message: &[u8]) -> Result<(), Overrun> {
        let (stream, bytes) = channel::parse_data(message).ok_or(Overrun)?;
        let shared = self.state().open.get(&stream).cloned();
        // Where there is none, it just ended.
        shared.map_or(Ok(()), |shared| shared.data(bytes))
    }

    /// Takes a frame, where it is one of streams.
    pub(super) fn take(&self, frame: DeviceFrame) -> Option<DeviceFrame> {
        let mut state = self.state();
        match frame {
            DeviceFrame::Opened { stream } => {
                if let Some(shared) = state.open.get(&stream) {
                    shared.opened();
                }
            }
            DeviceFrame::Closed(closed) => {
                if let Some(shared) = state.open.remove(&closed.stream) {
                    shared.close(closed);
                }
            }
            DeviceFrame::Credit(Credit { stream, bytes }) => {
                if let Some(shared) = state.open.get(&stream) {
                    shared.credit(bytes);
                }
            }
            frame => return Some(frame),
        }
        None
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.state().open.len()
    }
}

/// What the socket and whoever holds a stream share.
#[derive(Debug, Default)]
struct Shared {
    /// Whether it only looks.
    looks: bool,
    /// Of logs: whose they are.
    logs_of: Option<String>,
    state: Mutex<OneState>,
    /// For whoever reads, or waits until it is open.
    came: Notify,
    /// For whoever sends.
    may_send: Notify,
}

#[derive(Debug, Default)]
struct OneState {
    opened: bool,
    closed: Option<Closed>,
    credit: flow::Credit,
    window: Window,
    came: BytesMut,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, OneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copied, since a message is a part of a buffer that it would keep alive.
    fn data(&self, bytes: &[u8]) -> Result<(), Overrun> {
        let mut state = self.state();
        state.window.came(bytes.len())?;
        state.came.extend_from_slice(bytes);
        self.came.notify_one();
        Ok(())
    }

    fn opened(&self) {
        self.state().opened = true;
        self.came.notify_one();
    }

    fn credit(&self, bytes: u32) {
        self.state().credit.add(bytes);
        self.may_send.notify_one();
    }

    fn close(&self, closed: Closed) {
        self.state().closed.get_or_insert(closed);
        self.came.notify_one();
        self.may_send.notify_one();
    }
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Came {
    /// Bytes, all that are here.
    Data(Bytes),
    /// Its end; `device_away` where the channel ended.
    Closed(Closed),
}

/// The stream is no more; [`CloudStream::recv`] tells why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// An open stream. One task sends and one reads; they may be the same. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct CloudStream {
    turn: Arc<Turn>,
    stream: u32,
    shared: Arc<Shared>,
    /// Bytes the reader was given last: it took them when it asks for more.
    lent: Mutex<usize>,
    _place: Place,
    _share: Option<Share>,
}

impl Memory {
    /// Opens a stream of a device for a person, or for all who look where `who` is empty, and waits until the device opened it.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn open_stream(
        &self,
        device: DeviceId,
        mut of: StreamOf,
        who: &str,
    ) -> Result<CloudStream, StreamError> {
        let turn = self.turn(device).ok_or(StreamError::DeviceAway)?;
        if turn.kind == Kind::Exchange {
            return Err(StreamError::NoWebSocket);
        }
        if !turn.features.have(&of) {
            return Err(StreamError::NotSupported);
        }
        if let StreamOf::Logs(open) = &mut of
            && !turn.features.only
        {
            // A field that it does not know would end its channel.
            open.only = None;
        }
        let share = match who {
            "" => None,
            who => Some(self.shares.take(who, EACH).ok_or(StreamError::TooManyOfOne)?),
        };
        let place = Place::take(&self.streams, MOST).ok_or(StreamError::TooMany)?;
        let (stream, shared) = turn.streams.add(of, who)?;
        let stream = CloudStream { turn, stream, shared, lent: Mutex::new(0), _place: place, _share: share };
        match timeout(OPENS, stream.opened()).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(closed)) if closed.code == "device_away" => Err(StreamError::DeviceAway),
            Ok(Err(closed)) => Err(StreamError::Refused(closed)),
            Err(_) => Err(StreamError::DeviceAway),
        }
    }
}

impl CloudStream {
    async fn opened(&self) -> Result<(), Closed> {
        loop {
            {
                let state = self.shared.state();
                if state.opened {
                    return Ok(());
                }
                if let Some(closed) = &state.closed {
                    return Err(closed.clone());
                }
            }
            self.shared.came.notified().await;
        }
    }

    /// Whether the device leaves out by itself what is not wanted of a log.
    pub(crate) fn sieves(&self) -> bool {
        self.turn.features.only
    }

    /// What comes next: data, and at last its end. Nothing is lost when the wait is given up. Asking for more is what gives the
    /// device credit for what was brought before.
    pub(crate) async fn recv(&self) -> Came {
        let lent = std::mem::take(&mut *self.lent());
        if let Some(bytes) = self.shared.state().window.read(lent) {
            self.turn.streams.say(Say::Frame(CloudFrame::Credit(Credit { stream: self.stream, bytes })));
        }
        loop {
            {
                let mut state = self.shared.state();
                if !state.came.is_empty() {
                    let bytes = std::mem::take(&mut state.came).freeze();
                    *self.lent() = bytes.len();
                    return Came::Data(bytes);
                }
                if let Some(closed) = &state.closed {
                    return Came::Closed(closed.clone());
                }
            }
            self.shared.came.notified().await;
        }
    }

    /// Sends all of it, waiting for credit. Where the wait is given up, a part may have been sent.
    ///
    /// # Errors
    /// When the stream is no more.
    pub(crate) async fn send(&self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let spent = {
                let mut state = self.shared.state();
                if state.closed.is_some() {
                    return Err(Gone);
                }
                state.credit.spend(bytes.len().min(PIECE))
            };
            if spent == 0 {
                self.shared.may_send.notified().await;
                continue;
            }
            let (now, rest) = bytes.split_at(spent);
            self.turn.streams.say(Say::Data(channel::data(self.stream, now)));
            bytes = rest;
        }
        Ok(())
    }

    /// Tells a terminal its window's size. Of several that were not sent yet, the newest counts.
    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        let stream = self.stream;
        let mut state = self.turn.streams.state();
        state.say.retain(
            |say| !matches!(say, Say::Frame(CloudFrame::Resize { stream: other, .. }) if *other == stream),
        );
        drop(state);
        self.turn.streams.say(Say::Frame(CloudFrame::Resize { stream, cols, rows }));
    }

    /// Closes it, with a reason for the device's log.
    pub(crate) fn close(self, code: &str, message: &str) {
        self.leave(Closed::new(self.stream, code, message));
    }

    fn leave(&self, closed: Closed) {
        let known = self.turn.streams.state().open.remove(&self.stream).is_some();
        if known {
            self.shared.close(closed.clone());
            self.turn.streams.say(Say::Frame(CloudFrame::Closed(closed)));
        }
    }

    fn lent(&self) -> MutexGuard<'_, usize> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CloudStream {
    fn drop(&mut self) {
        self.leave(Closed::new(self.stream, "ended", ""));
    }
}
