//! Streams over the channel: bytes that the cloud asked for, as they come. In: what the cloud says of a stream. Out: what is to be
//! said, one thing at a time, in its order.
//!
//! ```text
//! open ──▶ a source of its kind, a task of its own ──data, closed──▶ the socket
//!          ◀──data, resize, credit, closed── the socket
//! ```
//! Terminals and live metrics have a way out of their own and go first: a log or a bundle with much to say does not hold up what a person
//! types. After [`FAIR`] messages in a row of the first, the others have one.
//! A source waits when it has no credit, so a reader that stops costs the device what is under way and nothing more. A stream
//! ends when its source does, when the cloud closes it, or with the channel; a source that does not end then is cut off.
//! Never here: what a stream carries.

mod io;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use copal_protocol::{
    channel::{Closed, Credit, DeviceFrame, MAX_STREAMS, Open, StreamOf},
    documents::TerminalTarget,
    logs::FEATURE_ONLY,
};
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use self::io::Shared;
pub use self::io::{Gone, Input, StreamIo};

/// Messages of data that wait to be sent, of all streams of a lane together.
const ROOM: usize = 4;
/// Messages of the first lane in a row, while the other waits.
const FAIR: u32 = 8;
/// How long a source may go on after its stream is no more.
const GRACE: Duration = Duration::from_secs(5);

/// How a stream ends, as the cloud is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Stable.
    pub code: String,
    /// For people; at most 2,000 characters.
    pub message: String,
    /// Of a terminal whose shell ended: what it ended with.
    pub exit_code: Option<i64>,
}

impl End {
    /// All was said.
    #[must_use]
    pub fn ended() -> Self {
        Self::because("ended", "")
    }

    /// For a reason.
    #[must_use]
    pub fn because(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), exit_code: None }
    }
}

/// What streams of one kind come from.
pub trait Source: Send + Sync {
    /// Feeds one stream until it ends. It is open with [`StreamIo::opened`], or with the first that is sent or read;
    /// what ends before that was refused.
    fn run(&self, of: StreamOf, io: StreamIo) -> BoxFuture<'static, End>;
}

/// What this agent has streams of.
#[derive(Clone, Default)]
pub struct Kinds {
    /// Service logs.
    pub logs: Option<Arc<dyn Source>>,
    /// Terminals.
    pub terminal: Option<Arc<dyn Source>>,
    /// Samples of metrics.
    pub metrics: Option<Arc<dyn Source>>,
    /// Support bundles.
    pub bundle: Option<Arc<dyn Source>>,
}

impl Kinds {
    /// As a hello says it.
    #[must_use]
    pub fn features(&self) -> Vec<String> {
        let named = [
            ("logs", self.logs.is_some()),
            ("terminal", self.terminal.is_some()),
            ("metrics", self.metrics.is_some()),
            ("bundle", self.bundle.is_some()),
            (FEATURE_ONLY, self.logs.is_some()),
        ];
        named.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
    }

    fn of(&self, of: &StreamOf) -> Option<&Arc<dyn Source>> {
        match of {
            StreamOf::Logs(_) => self.logs.as_ref(),
            StreamOf::Terminal(_) => self.terminal.as_ref(),
            StreamOf::Metrics {} => self.metrics.as_ref(),
            StreamOf::Bundle {} => self.bundle.as_ref(),
            StreamOf::Unknown => None,
        }
    }
}

/// What is to be said next.
pub(super) enum Say {
    Frame(DeviceFrame),
    /// Room for another message is made when this is dropped.
    Data {
        stream: u32,
        bytes: Bytes,
        room: OwnedSemaphorePermit,
    },
}

/// On their way to the socket.
enum Out {
    Say(Say),
    End(u32, End),
}

/// What waits to be said, of streams that matter alike.
struct Lane {
    out: (mpsc::UnboundedSender<Out>, mpsc::UnboundedReceiver<Out>),
    room: Arc<Semaphore>,
}

impl Default for Lane {
    fn default() -> Self {
        // Data takes its room first, and other frames are few: one or two a stream, and one for half its credit.
        Self { out: mpsc::unbounded_channel(), room: Arc::new(Semaphore::new(ROOM)) }
    }
}

/// Whether somebody waits for each byte of it.
fn goes_first(of: &StreamOf) -> bool {
    match of {
        StreamOf::Terminal(open) => !matches!(open.target, TerminalTarget::Recording(_)),
        StreamOf::Metrics {} => true,
        StreamOf::Logs(_) | StreamOf::Bundle {} | StreamOf::Unknown => false,
    }
}

/// The streams of one channel.
pub(super) struct Streams {
    kinds: Kinds,
    open: HashMap<u32, Arc<Shared>>,
    /// Those that somebody asked for once and waits for, some of them no more.
    awaited: Vec<u32>,
    /// Sources that have not ended, those of streams that are no more among them.
    sources: Arc<AtomicUsize>,
    first: Lane,
    then: Lane,
    /// What was taken from the first lane since the other had something.
    in_a_row: u32,
}

impl Streams {
    pub(super) fn new(kinds: Kinds) -> Self {
        Self {
            kinds,
            open: HashMap::new(),
            awaited: Vec::new(),
            sources: Arc::default(),
            first: Lane::default(),
            then: Lane::default(),
            in_a_row: 0,
        }
    }

    /// Opens a stream; what to say where it is refused at once.
    pub(super) fn open(&mut self, Open { stream, of }: Open) -> Option<DeviceFrame> {
        if self.open.contains_key(&stream) {
            tracing::warn!(stream, "the cloud opens a stream twice");
            return None;
        }
        let Some(source) = self.kinds.of(&of) else { return Some(unknown(stream)) };
        if self.open.len() >= MAX_STREAMS || self.sources.load(Relaxed) >= 2 * MAX_STREAMS {
            let message = format!("this device has {MAX_STREAMS} streams at a time; close one of them");
            return Some(closed(stream, End::because("too_many_streams", message)));
        }
        let shared = Arc::new(Shared::default());
        self.awaited.retain(|stream| self.open.contains_key(stream));
        if matches!(of, StreamOf::Terminal(_) | StreamOf::Bundle {}) {
            self.awaited.push(stream);
        }
        self.open.insert(stream, shared.clone());
        let lane = if goes_first(&of) { &self.first } else { &self.then };
        let io = StreamIo::new(stream, shared.clone(), lane.out.0.clone(), lane.room.clone());
        let mut running = Running::new(stream, &self.sources, lane.out.0.clone());
        let source = source.run(of, io);
        tokio::spawn(async move {
            let over = async {
                shared.gone().await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                end = source => running.ended(end),
                () = over => {}
            }
        });
        None
    }

    /// Whether somebody has a terminal, or fetches a bundle.
    pub(super) fn are_awaited(&self) -> bool {
        self.awaited.iter().any(|stream| self.open.contains_key(stream))
    }

    /// Bytes from the cloud; what to say to them, if anything.
    pub(super) fn data(&mut self, stream: u32, bytes: &[u8]) -> Option<DeviceFrame> {
        // Of one that just ended, or of none.
        let shared = self.open.get(&stream)?;
        if shared.data(bytes).is_ok() {
            return None;
        }
        self.closed(stream);
        Some(closed(stream, End::because("credit_exceeded", "more came than there was leave for")))
    }

    pub(super) fn resize(&self, stream: u32, cols: u16, rows: u16) {
        if let Some(shared) = self.open.get(&stream) {
            shared.resize(cols, rows);
        }
    }

    pub(super) fn credit(&self, Credit { stream, bytes }: Credit) {
        if let Some(shared) = self.open.get(&stream) {
            shared.credit(bytes);
        }
    }

    /// The cloud wants no more of it.
    pub(super) fn closed(&mut self, stream: u32) {
        if let Some(shared) = self.open.remove(&stream) {
            shared.close();
        }
    }

    /// The next to say, when there is something. Nothing is lost when the wait for it is given up.
    pub(super) async fn next(&mut self) -> Say {
        loop {
            match self.recv().await {
                Some(Out::Say(say)) if self.wanted(&say) => return say,
                Some(Out::Say(_)) => {}
                Some(Out::End(stream, end)) => {
                    if let Some(shared) = self.open.remove(&stream) {
                        shared.close();
                        return Say::Frame(closed(stream, end));
                    }
                }
                // One sender is held here.
                None => std::future::pending().await,
            }
        }
    }

    async fn recv(&mut self) -> Option<Out> {
        let (first, then) = (self.first.out.1.recv(), self.then.out.1.recv());
        let (is_first, out) = if self.in_a_row < FAIR {
            tokio::select! { biased; out = first => (true, out), out = then => (false, out) }
        } else {
            tokio::select! { biased; out = then => (false, out), out = first => (true, out) }
        };
        self.in_a_row = if is_first { self.in_a_row.saturating_add(1) } else { 0 };
        out
    }

    /// Whether the stream is still open: what was on its way when the cloud closed it is of no use.
    fn wanted(&self, say: &Say) -> bool {
        let stream = match say {
            Say::Data { stream, .. } | Say::Frame(DeviceFrame::Opened { stream }) => stream,
            Say::Frame(DeviceFrame::Credit(credit)) => &credit.stream,
            Say::Frame(_) => return true,
        };
        self.open.contains_key(stream)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.open.values().for_each(|shared| shared.close());
    }
}

/// A source at work. Says its end however it comes.
struct Running {
    stream: u32,
    sources: Arc<AtomicUsize>,
    out: mpsc::UnboundedSender<Out>,
    end: End,
}

impl Running {
    fn new(stream: u32, sources: &Arc<AtomicUsize>, out: mpsc::UnboundedSender<Out>) -> Self {
        sources.fetch_add(1, Relaxed);
        let end = End::because("failed", "the stream's source ended before its time");
        Self { stream, sources: sources.clone(), out, end }
    }

    fn ended(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sources.fetch_sub(1, Relaxed);
        let end = std::mem::replace(&mut self.end, End::ended());
        // Without a reader there is no channel any more.
        let _ = self.out.send(Out::End(self.stream, end));
    }
}

/// Refuses a stream of a kind that there is none of here.
pub(super) fn unknown(stream: u32) -> DeviceFrame {
    closed(stream, End::because("not_supported", "this agent opens no streams of that kind here"))
}

/// Says why a stream is not opened.
pub(super) fn refused(stream: u32, why: End) -> DeviceFrame {
    closed(stream, why)
}

fn closed(stream: u32, End { code, message, exit_code }: End) -> DeviceFrame {
    DeviceFrame::Closed(Closed { stream, code, message: message.chars().take(2000).collect(), exit_code })
}
