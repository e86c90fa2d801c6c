//! One stream, as its source sees it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use copal_protocol::{
    channel::{Credit, DeviceFrame},
    flow::{self, Overrun, Window},
};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::{Out, Say};

/// The most bytes of one message: what is between two streams that both have much to say, or between data and an ack.
pub(super) const PIECE: usize = 16 << 10;

/// The stream is no more: the cloud closed it, or the channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Gone;

/// What the cloud says to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes.
    Data(Bytes),
    /// A terminal's window changed.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// What the socket and the source of one stream share.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// For whoever sends.
    may_send: Notify,
    /// For whoever reads.
    came: Notify,
    gone: Notify,
}

#[derive(Default)]
struct State {
    opened: bool,
    closed: bool,
    credit: flow::Credit,
    window: Window,
    input: VecDeque<Came>,
}

/// [`Input`] that grows: many small messages are one.
enum Came {
    Data(BytesMut),
    Resize(u16, u16),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn data(&self, bytes: &[u8]) -> Result<(), Overrun> {
        let mut state = self.state();
        state.window.came(bytes.len())?;
        match state.input.back_mut() {
            _ if bytes.is_empty() => return Ok(()),
            Some(Came::Data(data)) => data.extend_from_slice(bytes),
            _ => state.input.push_back(Came::Data(bytes.into())),
        }
        self.came.notify_one();
        Ok(())
    }

    pub(super) fn resize(&self, cols: u16, rows: u16) {
        let mut state = self.state();
        // The newest counts; a cloud that only resizes takes no room.
        state.input.retain(|came| !matches!(came, Came::Resize(..)));
        state.input.push_back(Came::Resize(cols, rows));
        self.came.notify_one();
    }

    pub(super) fn credit(&self, bytes: u32) {
        self.state().credit.add(bytes);
        self.may_send.notify_one();
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.may_send.notify_one();
        self.came.notify_one();
        self.gone.notify_waiters();
    }

    pub(super) async fn gone(&self) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            // Registered before looking, so that a close in between is not missed.
            gone.as_mut().enable();
            if self.state().closed {
                return;
            }
            gone.await;
        }
    }
}

/// A stream's two ways, and its end. One task sends and one reads; they may be the same.
pub struct StreamIo {
    stream: u32,
    shared: Arc<Shared>,
    out: mpsc::UnboundedSender<Out>,
    room: Arc<Semaphore>,
}

impl StreamIo {
    pub(super) fn new(
        stream: u32,
        shared: Arc<Shared>,
        out: mpsc::UnboundedSender<Out>,
        room: Arc<Semaphore>,
    ) -> Self {
        Self { stream, shared, out, room }
    }

    /// Says that the stream is open, once.
    pub fn opened(&self) {
        if !std::mem::replace(&mut self.shared.state().opened, true) {
            self.say(Say::Frame(DeviceFrame::Opened { stream: self.stream }));
        }
    }

    /// Sends all of it, waiting for credit. Where the wait is given up, a part may have been sent.
    ///
    /// # Errors
    /// When the stream is no more.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            self.send_some(&mut bytes).await?;
        }
        Ok(())
    }

    /// Sends a first part as soon as there is credit for any, and leaves the rest. Where the wait is given up, nothing was sent.
    ///
    /// # Errors
    /// When the stream is no more.
    pub async fn send_some(&self, bytes: &mut Bytes) -> Result<(), Gone> {
        self.opened();
        loop {
            // Room is for all streams: only who has credit waits for it.
            self.credit().await?;
            let room = tokio::select! {
                room = self.room.clone().acquire_owned() => room.map_err(|_| Gone)?,
                () = self.shared.gone() => return Err(Gone),
            };
            let spent = self.shared.state().credit.spend(bytes.len().min(PIECE));
            if spent > 0 || bytes.is_empty() {
                let (stream, bytes) = (self.stream, bytes.split_to(spent));
                self.say(Say::Data { stream, bytes, room });
                return Ok(());
            }
        }
    }

    async fn credit(&self) -> Result<(), Gone> {
        loop {
            {
                let state = self.shared.state();
                if state.closed {
                    return Err(Gone);
                }
                if !state.credit.is_spent() {
                    return Ok(());
                }
            }
            self.shared.may_send.notified().await;
        }
    }

    /// What the cloud says next; `None` when the stream is no more. Nothing is lost when the wait is given up.
    pub async fn recv(&self) -> Option<Input> {
        self.opened();
        loop {
            {
                let mut state = self.shared.state();
                match state.input.pop_front() {
                    Some(Came::Data(data)) => {
                        if let Some(bytes) = state.window.read(data.len()) {
                            self.say(Say::Frame(DeviceFrame::Credit(Credit { stream: self.stream, bytes })));
                        }
                        return Some(Input::Data(data.freeze()));
                    }
                    Some(Came::Resize(cols, rows)) => return Some(Input::Resize { cols, rows }),
                    None if state.closed => return None,
                    None => {}
                }
            }
            self.shared.came.notified().await;
        }
    }

    /// Waits until the stream is no more.
    pub async fn gone(&self) {
        self.shared.gone().await;
    }

    fn say(&self, say: Say) {
        // Without a reader there is no channel any more; whoever waits is told.
        let _ = self.out.send(Out::Say(say));
    }
}

#[cfg(test)]
impl StreamIo {
    /// One at whose other end nobody says or hears anything.
    pub(crate) fn alone() -> Self {
        let (out, _) = mpsc::unbounded_channel();
        Self::new(1, Arc::default(), out, Arc::new(Semaphore::new(1)))
    }
}
