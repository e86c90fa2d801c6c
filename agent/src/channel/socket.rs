//! One WebSocket, from its opening to its end.
//!
//! 1. Upgrade a request; say hello; the welcome must come in its time.
//! 2. Frames in go to [`Talk`]; acks go out as they come, a ping after the last: its pong shows that the cloud read them.
//! 3. Streams say one thing at a time, in turn with everything else; while anything is written, what comes is read on.
//! 4. Ping when nothing was sent for long, and say when the next one comes. Two pings without an answer: the other side is gone,
//!    whatever TCP says.
//! 5. When a budget of bytes is used, say so and go; but not from a terminal or a bundle that somebody waits for.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Instant};

use copal_protocol::{
    channel::{
        self, CloudFrame, DeviceFrame, FIRST_CREDIT, MAX_MESSAGE, MAX_STREAMS, SUBPROTOCOL, parse_ping,
        ping_payload,
    },
    telemetry::Sheds,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    End, Line,
    meter::Traffic,
    pace::{Due, Watch},
    streams::{self, Say, Streams},
    talk,
};
use crate::cloud::{NoSocket, Upgraded};

const PATH: &str = "/device/v1/channel";
/// Acks sent in one go.
const ACKS: usize = 16;
/// Bytes read while writing: all that streams may have under way, and a frame.
const AHEAD: usize = MAX_STREAMS * FIRST_CREDIT as usize + MAX_MESSAGE;

struct Socket<'a> {
    line: &'a mut Line,
    socket: WebSocketStream<Upgraded>,
    /// What came while something was written.
    came: VecDeque<Message>,
    streams: Streams,
    watch: Watch,
    /// When the welcome came.
    up: Option<Instant>,
}

pub(super) async fn run(line: &mut Line) -> End {
    let upgraded = match line.session.upgrade(PATH, SUBPROTOCOL).await {
        Ok(upgraded) => upgraded,
        Err(NoSocket::Failed(error)) => return End::Refused(error),
        Err(NoSocket::NotTaken(why)) => return End::NotTaken(why),
    };
    // The defaults keep 256 KiB for each connection that hardly ever says anything.
    let config = WebSocketConfig::default()
        .read_buffer_size(1 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
    let watch = Watch::new(line.pace.welcome, line.pace.pong, Instant::now());
    let opened = Instant::now();
    let streams = Streams::new(line.talk.kinds.clone());
    let mut socket = Socket { line, socket, came: VecDeque::new(), streams, watch, up: None };
    let why = match socket.talk(opened).await {
        Ok(never) => match never {},
        Err(why) => why,
    };
    let up = socket.up.map(|since| since.elapsed());
    match why {
        Over::Bye(bye) => End::Bye(bye, up.unwrap_or_default()),
        Over::Budget => End::Budget,
        Over::Broken(why) => match up {
            Some(up) => {
                if let Some(idle) = socket.watch.died_idle(Instant::now()) {
                    socket.line.keepalive.died(idle);
                }
                End::Broken(why, up)
            }
            // Something on the way may take the upgrade and swallow what follows.
            None => End::Unwelcome(why),
        },
    }
}

enum Over {
    Bye(talk::Bye),
    /// The budget of bytes is used; the cloud knows.
    Budget,
    Broken(String),
}

enum Never {}

fn broken<T>(why: impl Into<String>) -> Result<T, Over> {
    Err(Over::Broken(why.into()))
}

impl Socket<'_> {
    async fn talk(&mut self, opened: Instant) -> Result<Never, Over> {
        self.line.talk.acks.restart();
        self.line.talk.outbox.restart();
        let hello = self.line.talk.hello(true);
        self.say(&hello).await?;
        loop {
            self.go_if_used_up().await?;
            let (acks, outbox) = (self.line.talk.acks.clone(), self.line.talk.outbox.clone());
            tokio::select! {
                // From the top.
                () = tokio::time::sleep(self.line.pace.look) => {}
                message = next(&mut self.came, &mut self.socket) => self.take(message?).await?,
                say = self.streams.next(), if self.up.is_some() => self.say_of_stream(say).await?,
                () = acks.news(), if self.up.is_some() => self.send_acks().await?,
                () = outbox.news(), if self.up.is_some() => self.send_batches().await?,
                () = tokio::time::sleep_until(self.watch.next().into()) => {
                    if self.up.is_none() && opened.elapsed() >= self.line.pace.welcome {
                        return broken("no welcome came");
                    }
                    match self.watch.due(Instant::now()) {
                        Due::Nothing => {}
                        Due::Ping => self.ping(0).await?,
                        Due::Dead => return broken("two pings were not answered"),
                    }
                }
            }
        }
    }

    /// Goes where the budget of bytes is used, with a word on when it is heard again.
    async fn go_if_used_up(&mut self) -> Result<(), Over> {
        if self.up.is_none() || self.line.tell_budget() < Sheds::Polls || self.streams.are_awaited() {
            return Ok(());
        }
        let leave = self.line.leave();
        self.say(&leave).await?;
        self.line.visits.left(&self.line.meter);
        let _ = self.send(Message::Close(None)).await;
        // Whoever goes while something is on its way to it takes its last words back.
        let silence = async { while let Some(Ok(_)) = self.socket.next().await {} };
        let _ = tokio::time::timeout(self.line.pace.pong, silence).await;
        Err(Over::Budget)
    }

    async fn take(&mut self, message: Message) -> Result<(), Over> {
        let now = self.line.unix();
        if self.watch.heard(Instant::now()) {
            self.line.keepalive.survived(self.line.ping);
            self.set_every();
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Pong(bytes) => {
                self.line.meter.received(Traffic::Control, bytes.len(), now);
                if let Some((number, _)) = parse_ping(&bytes) {
                    self.line.talk.acks.taken(number);
                }
                return Ok(());
            }
            Message::Ping(bytes) => {
                // The answer is written with the next read.
                self.line.meter.received(Traffic::Control, 2 * bytes.len(), now);
                return Ok(());
            }
            Message::Close(_) => return broken("the cloud closed the channel"),
            Message::Binary(bytes) => {
                self.line.meter.received(Traffic::Streams, bytes.len(), now);
                let Some((stream, bytes)) = channel::parse_data(&bytes) else {
                    return broken("the cloud sent data of no stream");
                };
                return match self.streams.data(stream, bytes) {
                    Some(reply) => self.say(&reply).await,
                    None => Ok(()),
                };
            }
            Message::Frame(_) => return Ok(()),
        };
        let frame = match channel::read::<CloudFrame>(text.as_bytes()) {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                self.line.meter.received(Traffic::Control, text.len(), now);
                return Ok(());
            }
            Err(error) => return broken(format!("the cloud said what is no frame: {error}")),
        };
        self.line.meter.received(talk::heard(&frame), text.len(), now);
        let frame = match frame {
            CloudFrame::Open(open) => {
                if let Some(end) = self.line.refuses(&open.of) {
                    return self.say(&streams::refused(open.stream, end)).await;
                }
                return match self.streams.open(open) {
                    Some(reply) => self.say(&reply).await,
                    None => Ok(()),
                };
            }
            CloudFrame::Credit(credit) => {
                self.streams.credit(credit);
                return Ok(());
            }
            CloudFrame::Closed(closed) => {
                self.streams.closed(closed.stream);
                return Ok(());
            }
            CloudFrame::Resize { stream, cols, rows } => {
                self.streams.resize(stream, cols, rows);
                return Ok(());
            }
            frame => frame,
        };
        let taken = self.line.talk.take(frame);
        if let Some(bye) = taken.bye {
            return Err(Over::Bye(bye));
        }
        if let Some(welcome) = taken.welcome {
            self.up.get_or_insert_with(Instant::now);
            self.line.welcome(&welcome);
            self.set_every();
            // Before the cloud takes it for gone it has to hear how seldom it is heard.
            if self.line.keepalive.every(self.line.ping) * 5 / 2 > self.line.lease {
                self.ping(0).await?;
            }
            self.send_acks().await?;
            self.send_batches().await?;
        }
        if let Some(reply) = taken.reply {
            self.say(&reply).await?;
        }
        Ok(())
    }

    fn set_every(&mut self) {
        self.watch.set_every(self.line.keepalive.every(self.line.ping));
    }

    async fn send_acks(&mut self) -> Result<(), Over> {
        loop {
            let (acks, last) = self.line.talk.acks.take(ACKS);
            let Some(last) = last else { return Ok(()) };
            let ends = acks.iter().any(|ack| ack.state.is_final());
            for ack in acks {
                self.say(&DeviceFrame::Ack(ack)).await?;
            }
            if ends {
                self.ping(last).await?;
            }
        }
    }

    async fn send_batches(&mut self) -> Result<(), Over> {
        while let Some(batch) = self.line.batch() {
            self.say(&batch).await?;
        }
        Ok(())
    }

    async fn say(&mut self, frame: &DeviceFrame) -> Result<(), Over> {
        let text = match channel::write(frame) {
            Ok(text) if text.len() <= MAX_MESSAGE => text,
            // What is said here is bounded where it is made.
            _ => return Ok(()),
        };
        let now = self.line.unix();
        self.line.meter.sent(talk::said(frame), text.len(), now);
        self.send(Message::Text(text.into())).await?;
        self.watch.sent(Instant::now());
        Ok(())
    }

    /// A ping that names the last ack before it.
    async fn ping(&mut self, acks: u64) -> Result<(), Over> {
        let every = self.line.keepalive.every(self.line.ping).as_secs_f64().ceil();
        let payload = ping_payload(acks, every as u32);
        let now = self.line.unix();
        self.line.meter.sent(Traffic::Control, payload.len(), now);
        self.send(Message::Ping(payload.to_vec().into())).await?;
        self.watch.pinged(Instant::now());
        Ok(())
    }

    async fn say_of_stream(&mut self, say: Say) -> Result<(), Over> {
        let (stream, bytes, room) = match say {
            Say::Frame(frame) => return self.say(&frame).await,
            Say::Data { stream, bytes, room } => (stream, bytes, room),
        };
        let now = self.line.unix();
        self.line.meter.sent(Traffic::Streams, bytes.len(), now);
        let sent = self.send(Message::Binary(channel::data(stream, &bytes).into())).await;
        self.watch.sent(Instant::now());
        drop(room);
        sent
    }

    /// Writes a message, and reads on meanwhile: were both sides to write and neither to read, nothing would move again.
    async fn send(&mut self, message: Message) -> Result<(), Over> {
        let Self { socket, came, .. } = self;
        let mut message = Some(message);
        let mut ahead: usize = came.iter().map(Message::len).sum();
        let written = poll_fn(|cx| {
            loop {
                let step = match message {
                    Some(_) => socket.poll_ready_unpin(cx),
                    None => socket.poll_flush_unpin(cx),
                };
                match (step, message.take()) {
                    (Poll::Ready(Ok(())), Some(message)) => {
                        if let Err(error) = socket.start_send_unpin(message) {
                            return Poll::Ready(broken(error.to_string()));
                        }
                    }
                    (Poll::Ready(Ok(())), None) => return Poll::Ready(Ok(())),
                    (Poll::Ready(Err(error)), _) => return Poll::Ready(broken(error.to_string())),
                    (Poll::Pending, kept) => {
                        message = kept;
                        break;
                    }
                }
            }
            while ahead < AHEAD {
                match socket.poll_next_unpin(cx) {
                    Poll::Ready(read) => {
                        let read = match read_one(read) {
                            Ok(read) => read,
                            Err(over) => return Poll::Ready(Err(over)),
                        };
                        ahead += read.len();
                        came.push_back(read);
                    }
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        });
        match tokio::time::timeout(self.line.pace.write, written).await {
            Ok(written) => written,
            Err(_) => broken("nothing can be written: nobody reads any more"),
        }
    }
}

/// The next message: what was read while something was written, first.
async fn next(came: &mut VecDeque<Message>, socket: &mut WebSocketStream<Upgraded>) -> Result<Message, Over> {
    match came.pop_front() {
        Some(message) => Ok(message),
        None => read_one(socket.next().await),
    }
}

fn read_one(read: Option<Result<Message, Error>>) -> Result<Message, Over> {
    match read {
        None => broken("the cloud closed the connection"),
        Some(Err(error)) => broken(error.to_string()),
        Some(Ok(message)) => Ok(message),
    }
}
