//! Frames of the channel between a device and its cloud: one WebSocket, text messages of JSON, binary ones for streams.
//!
//! Truth stays with the poll: a [`CloudFrame::Hint`] names what the state route would serve and nothing else, so that losing or
//! repeating one is harmless. Commands are done once, by id. A frame whose `t` the reader does not know is left aside: what a
//! side can do it says in its first frame.
//!
//! The same frames pass by `POST /device/v1/exchange` where a network lets no WebSocket through. Streams need the WebSocket.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    documents::{Delivery, TerminalMode, TerminalTarget},
    envelope::Envelope,
    ids::{CommandId, Name, SessionId, Sha256Hex},
    json::{self, JsonError},
    logs::Only,
};

/// The WebSocket's subprotocol: the version of all this.
pub const SUBPROTOCOL: &str = "copal.channel.v1";
/// The largest message of either side, bytes.
pub const MAX_MESSAGE: usize = 256 << 10;
/// How deep a frame may be nested.
pub const MAX_DEPTH: usize = 16;
/// The most frames in one exchange.
pub const MAX_FRAMES: usize = 64;
/// The most streams of one device at a time.
pub const MAX_STREAMS: usize = 8;
/// Bytes of a stream that may be under way before the receiver gave credit for more.
pub const FIRST_CREDIT: u32 = 64 << 10;
/// Bytes before the data of a binary message: the stream's number, big endian.
pub const STREAM_HEAD: usize = 4;

/// What a device says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceFrame {
    /// First of all.
    Hello(Hello),
    /// Where a command stands.
    Ack(Ack),
    /// A signed Report, as the report route takes it.
    Report {
        /// The document.
        envelope: Envelope,
    },
    /// Things of one class, in the order they happened.
    Batch(Batch),
    /// A stream is open: data may flow.
    Opened {
        /// Its number.
        stream: u32,
    },
    /// A stream is no more, or was refused.
    Closed(Closed),
    /// More bytes of a stream may be sent.
    Credit(Credit),
    /// The device goes by itself, and says when it is heard again. With a WebSocket the last frame of it.
    Leave {
        /// Why: `budget`.
        code: String,
        /// It is heard again within so many seconds, if all is well.
        back_within_s: u32,
    },
}

/// What the cloud says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum CloudFrame {
    /// Answers [`DeviceFrame::Hello`].
    Welcome(Welcome),
    /// The state route would serve this now.
    Hint {
        /// Its `ETag`; absent where nothing is assigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        etag: Option<Sha256Hex>,
        /// Version of the newest Root; absent where there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        root: Option<u64>,
    },
    /// Do this.
    Cmd(Command),
    /// What was said is stored: the device may forget it.
    Stored(Stored),
    /// Open a stream.
    Open(Open),
    /// A stream is no more.
    Closed(Closed),
    /// More bytes of a stream may be sent.
    Credit(Credit),
    /// A terminal's window changed.
    Resize {
        /// Its stream.
        stream: u32,
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// The cloud ends the channel.
    Bye {
        /// Why: `restarting`, `replaced`, `device_revoked`, `protocol`, `silent`.
        code: String,
        /// Come back within so many seconds, at a moment of your own choosing.
        retry_within_s: u32,
    },
}

/// A device's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Of the agent.
    pub agent_version: String,
    /// The kernel's boot id, 32 hex digits.
    pub boot_id: String,
    /// Seconds since the boot.
    pub uptime_s: u64,
    /// What it can do beyond this version's frames: `logs`, `terminal`, `metrics`, `telemetry`.
    #[serde(default)]
    pub features: Vec<String>,
    /// The assignment it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Sha256Hex>,
}

/// The cloud's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// Numbers the device's channels: what an older one says of itself no longer counts.
    pub epoch: u64,
    /// Seconds between pings, at most. A device goes up to that as far as its network keeps idle lines, and says in each ping how
    /// long it is until the next ([`ping_payload`]).
    pub ping_s: u32,
    /// The device counts as connected for so many seconds after it was heard, until a ping says how often it pings.
    pub lease_s: u32,
    /// When the channel breaks, come back at a random moment within so many seconds.
    pub reconnect_window_s: u32,
    /// What the state route would serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Sha256Hex>,
    /// Version of the newest Root; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<u64>,
    /// The cloud's clock, Unix seconds. Never raises the device's floor.
    pub time: u64,
    /// The cloud has the device's events up to this number. Only for a device that says `telemetry` in its hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
}

/// Something a device is to do or to tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Names it. The same id again gets the same answer, and nothing is done twice.
    pub id: CommandId,
    /// Seconds since it was asked for, by the cloud's clock.
    pub age_s: u32,
    /// What.
    pub order: Order,
}

/// What a command carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// A signed [`Action`](crate::documents::Action): something changes.
    Action(Envelope),
    /// A question: nothing changes.
    Read(Read),
}

/// A question, which needs no signature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// What to tell.
    pub what: Question,
    /// Seconds in which it may begin.
    pub ttl_s: u32,
    /// Whether it waits for a device that is away.
    pub delivery: Delivery,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// The health checks, or some of them.
    Probes {
        /// Their names; empty: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        names: Vec<String>,
    },
    /// The proxy and the time servers that are set.
    Network {},
}

/// Where a command stands on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The command.
    pub id: CommandId,
    /// How far it is.
    pub state: AckState,
    /// Stable, where it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// For people; at most 2,000 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was asked for. Integers only, as everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckState {
    /// Understood, written down, and about to be done.
    Accepted,
    /// Being done.
    Running,
    /// Ended well.
    Done,
    /// Ended, and not well; `code` says why.
    Failed,
    /// Not done, for `code`.
    Rejected,
    /// Came too late.
    Expired,
    /// The device died in the middle of it. Whether it was done is not known, and it is not begun again.
    Unknown,
}

impl AckState {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

/// What data is worth, when not all of it can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Kept on the device until the cloud has it.
    Event,
    /// The newest counts.
    Telemetry,
}

/// Things that happened, numbered without a gap from `first_seq` on. Events are taken where `first_seq - dropped` is at most one
/// above what the cloud has; else it says what it has, and takes nothing: so none is passed over that may still come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Of which class.
    pub class: Class,
    /// The boot they were numbered in.
    pub boot_id: String,
    /// The first one's number; numbers rise over the device's life.
    pub first_seq: u64,
    /// How many numbers just before hold nothing any more: they were lost, for want of room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// The things.
    pub items: Vec<Value>,
}

/// What the cloud has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// Of which class.
    pub class: Class,
    /// Up to this number, itself included.
    pub up_to: u64,
}

/// A stream the cloud wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Its number, unique on this channel.
    pub stream: u32,
    /// Of what.
    pub of: StreamOf,
}

/// What a stream carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamOf {
    /// Lines of logs, each a JSON object and a line end.
    Logs(OpenLogs),
    /// A shell's terminal, bytes both ways. Where the device's Root asks for grants, [`records`](crate::terminal) instead.
    Terminal(OpenTerminal),
    /// Samples of metrics every [`LIVE_S`](crate::telemetry::LIVE_S) seconds, each a [`Summary`](crate::telemetry::Summary) and a
    /// line end.
    Metrics {},
    /// A support bundle: the bytes of a `tar.gz`, whole where it ends as `ended`.
    Bundle {},
    /// Of a later version: refused, and no reason to end the channel.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// Logs the cloud wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenLogs {
    /// Of these services; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Name>,
    /// After this number; absent: the newest `tail` lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// How many lines from before, of those that are wanted.
    #[serde(default)]
    pub tail: u32,
    /// Whether to go on with what comes.
    #[serde(default)]
    pub follow: bool,
    /// Which of them; absent: all. Told only to a device that says it has [`FEATURE_ONLY`](crate::logs::FEATURE_ONLY).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Only>,
}

/// A terminal the cloud wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenTerminal {
    /// Names the session, on both sides.
    pub session_id: SessionId,
    /// What to open.
    pub target: TerminalTarget,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Who asks, as the cloud knows them; for people at the device.
    pub who: String,
    /// Why.
    pub reason: String,
    /// Seconds it may last; the device's own bound is not passed.
    pub max_s: u32,
    /// Seconds without a byte typed after which it ends; the same.
    pub idle_s: u32,
    /// Bytes it may carry, both ways together; the same.
    pub max_bytes: u64,
    /// Who may authorise one by the Root that the cloud goes by, and so who records it. A device that goes by another refuses. Absent:
    /// an older cloud's, and the device's Root alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TerminalMode>,
}

/// The end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// Its number.
    pub stream: u32,
    /// Stable: `ended`, or why not.
    pub code: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Of a terminal whose shell ended: what it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
}

impl Closed {
    /// The end of a stream that is no terminal, or whose shell did not end.
    #[must_use]
    pub fn new(stream: u32, code: &str, message: impl Into<String>) -> Self {
        Self { stream, code: code.to_owned(), message: message.into(), exit_code: None }
    }
}

/// Leave to send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credit {
    /// The stream.
    pub stream: u32,
    /// So many bytes more.
    pub bytes: u32,
}

/// `POST /device/v1/exchange`: what the device has to say; held until the cloud has something to say, at most `wait` seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange<F> {
    /// At most [`MAX_FRAMES`].
    pub frames: Vec<F>,
}

/// A side's frames, and the words they begin with.
pub trait Frame: Serialize + serde::de::DeserializeOwned {
    /// Every `t` this version knows.
    const KNOWN: &'static [&'static str];
}

impl Frame for DeviceFrame {
    const KNOWN: &'static [&'static str] =
        &["hello", "ack", "report", "batch", "opened", "closed", "credit", "leave"];
}

impl Frame for CloudFrame {
    const KNOWN: &'static [&'static str] =
        &["welcome", "hint", "cmd", "stored", "open", "closed", "credit", "resize", "bye"];
}

/// Reads one frame; `None` where its `t` is of a later version.
///
/// # Errors
/// Text that is no frame, or a known one of another shape.
pub fn read<F: Frame>(text: &[u8]) -> Result<Option<F>, JsonError> {
    /// A later frame may have other fields: its name is looked at before they are.
    #[derive(Deserialize)]
    struct NameOnly {
        t: String,
    }
    json::check(text, MAX_DEPTH)?;
    let NameOnly { t } = json::typed(text)?;
    if !F::KNOWN.contains(&t.as_str()) {
        return Ok(None);
    }
    json::typed(text).map(Some)
}

/// Writes one frame.
///
/// # Errors
/// Only where a result holds what JSON cannot.
pub fn write<F: Frame>(frame: &F) -> Result<String, serde_json::Error> {
    serde_json::to_string(frame)
}

/// A binary message of a stream.
#[must_use]
pub fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(STREAM_HEAD + bytes.len());
    message.extend_from_slice(&stream.to_be_bytes());
    message.extend_from_slice(bytes);
    message
}

/// The stream of a binary message, and what it carries.
#[must_use]
pub fn parse_data(message: &[u8]) -> Option<(u32, &[u8])> {
    let (head, bytes) = message.split_first_chunk::<STREAM_HEAD>()?;
    Some((u32::from_be_bytes(*head), bytes))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The payload of a device's ping: the number of the last ack before it, which the pong says was read, and the seconds in which
/// the next ping comes at the latest.
#[must_use]
pub fn ping_payload(acks: u64, within_s: u32) -> [u8; 12] {
    let mut payload = [0; 12];
    payload[..8].copy_from_slice(&acks.to_be_bytes());
    payload[8..].copy_from_slice(&within_s.to_be_bytes());
    payload
}

/// Reads [`ping_payload`]; `None` where it is of another shape.
#[must_use]
pub fn parse_ping(payload: &[u8]) -> Option<(u64, u32)> {
    let payload: [u8; 12] = payload.try_into().ok()?;
    let (acks, within_s) = payload.split_at(8);
    Some((u64::from_be_bytes(acks.try_into().ok()?), u32::from_be_bytes(within_s.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{documents::Act, logs::Moment, testing::OwnerKeys};

    #[track_caller]
    fn there_and_back<F: Frame + PartialEq + std::fmt::Debug>(frame: &F, wire: &Value) {
        let text = write(frame).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), *wire);
        assert!(F::KNOWN.contains(&wire["t"].as_str().unwrap()));
        assert_eq!(read::<F>(text.as_bytes()).unwrap().as_ref(), Some(frame));
    }

    #[test]
    fn frames_are_what_the_protocol_says() {
        let id = "00112233445566778899aabbccddeeff".parse().unwrap();
        there_and_back(
            &DeviceFrame::Hello(Hello {
                agent_version: "0.1.0".to_owned(),
                boot_id: "b".repeat(32),
                uptime_s: 7,
                features: vec!["logs".to_owned()],
                etag: None,
            }),
            &json!({"t": "hello", "agent_version": "0.1.0", "boot_id": "b".repeat(32), "uptime_s": 7, "features": ["logs"]}),
        );
        there_and_back(&CloudFrame::Hint { etag: None, root: None }, &json!({"t": "hint"}));
        there_and_back(&CloudFrame::Hint { etag: None, root: Some(2) }, &json!({"t": "hint", "root": 2}));
        let what = Question::Probes { names: vec![] };
        let order = Order::Read(Read { what, ttl_s: 30, delivery: Delivery::Direct });
        there_and_back(
            &CloudFrame::Cmd(Command { id, age_s: 0, order }),
            &json!({"t": "cmd", "id": id, "age_s": 0,
                "order": {"read": {"what": {"verb": "probes"}, "ttl_s": 30, "delivery": "direct"}}}),
        );
        let ack =
            Ack { id, state: AckState::Done, code: None, message: String::new(), result: Some(json!([1])) };
        there_and_back(
            &DeviceFrame::Ack(ack),
            &json!({"t": "ack", "id": id, "state": "done", "result": [1]}),
        );
        there_and_back(
            &DeviceFrame::Credit(Credit { stream: 3, bytes: 9 }),
            &json!({"t": "credit", "stream": 3, "bytes": 9}),
        );
        let of = StreamOf::Logs(OpenLogs { tail: 10, follow: true, ..OpenLogs::default() });
        there_and_back(
            &CloudFrame::Open(Open { stream: 3, of }),
            &json!({"t": "open", "stream": 3, "of": {"kind": "logs", "tail": 10, "follow": true}}),
        );
        let only = Only {
            since: Some(Moment::AgoS(600)),
            until: Some(Moment::At(1_800_000_000)),
            search: Some("oops".to_owned()),
            match_case: true,
        };
        let of = StreamOf::Logs(OpenLogs { after: Some(7), only: Some(only), ..OpenLogs::default() });
        there_and_back(
            &CloudFrame::Open(Open { stream: 3, of }),
            &json!({"t": "open", "stream": 3, "of": {"kind": "logs", "after": 7, "tail": 0, "follow": false, "only":
                {"since": {"ago_s": 600}, "until": {"at": 1_800_000_000}, "search": "oops", "match_case": true}}}),
        );
        let session_id = SessionId::from_bytes([7; 16]);
        for (target, wire) in [
            (TerminalTarget::Service("web".parse().unwrap()), json!({"service": "web"})),
            (TerminalTarget::Host, json!("host")),
            (TerminalTarget::Recording(session_id), json!({"recording": session_id})),
        ] {
            let (who, reason) = ("anna".to_owned(), "it is slow".to_owned());
            let (cols, rows, max_s, idle_s, max_bytes) = (80, 24, 900, 300, 1 << 20);
            let mode = (target != TerminalTarget::Host).then_some(TerminalMode::Grant);
            let mut of = json!({"kind": "terminal", "session_id": session_id, "target": wire, "cols": 80, "rows": 24, "who": "anna",
                "reason": "it is slow", "max_s": 900, "idle_s": 300, "max_bytes": 1 << 20});
            if mode.is_some() {
                of["mode"] = "grant".into();
            }
            let open =
                OpenTerminal { session_id, target, cols, rows, who, reason, max_s, idle_s, max_bytes, mode };
            there_and_back(
                &CloudFrame::Open(Open { stream: 3, of: StreamOf::Terminal(open) }),
                &json!({"t": "open", "stream": 3, "of": of}),
            );
        }
        there_and_back(
            &DeviceFrame::Closed(Closed { exit_code: Some(3), ..Closed::new(3, "ended", "") }),
            &json!({"t": "closed", "stream": 3, "code": "ended", "exit_code": 3}),
        );
        let later = br#"{"t":"open","stream":4,"of":{"kind":"dance","steps":[1,2]}}"#;
        let Some(CloudFrame::Open(Open { of, .. })) = read(later).unwrap() else { panic!("not read") };
        assert_eq!(of, StreamOf::Unknown, "of a later version");
    }

    #[test]
    fn a_command_carries_an_action_that_still_verifies() {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let envelope = crate::testing::sign(&keys.action(1, Act::Reboot {}), &[&keys.assign]);
        let command =
            Command { id: CommandId::from_bytes([1; 16]), age_s: 5, order: Order::Action(envelope) };
        let text = write(&CloudFrame::Cmd(command)).unwrap();
        let Some(CloudFrame::Cmd(Command { order: Order::Action(read), .. })) =
            read(text.as_bytes()).unwrap()
        else {
            panic!("{text}")
        };
        assert_eq!(crate::verify::action(&root, &keys.identity(), &read).unwrap().act, Act::Reboot {});
    }

    #[test]
    fn a_later_frame_is_left_aside_and_a_wrong_one_refused() {
        assert_eq!(read::<CloudFrame>(br#"{"t":"sing","song":[{"a":1}]}"#).unwrap(), None);
        for bad in [
            &b"{}"[..],
            b"[]",
            br#"{"t":"hint","etag":"x"}"#,
            br#"{"t":"credit","stream":1}"#,
            br#"{"t":"credit","stream":1,"bytes":-1}"#,
            br#"{"t":"credit","stream":1,"bytes":1.5}"#,
            br#"{"t":"credit","stream":1,"stream":2,"bytes":1}"#,
            br#"{"t":"stored","class":"event","up_to":1,"more":1}"#,
            br#"{"t":"hint"} x"#,
        ] {
            assert!(read::<CloudFrame>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_ping_names_the_last_ack_and_says_when_the_next_one_comes() {
        assert_eq!(parse_ping(&ping_payload(7, 360)), Some((7, 360)));
        assert_eq!(parse_ping(&[0; 8]), None, "another shape is a ping and nothing else");
        let leave = br#"{"t":"leave","code":"budget","back_within_s":900}"#;
        let left = DeviceFrame::Leave { code: "budget".to_owned(), back_within_s: 900 };
        assert_eq!(read::<DeviceFrame>(leave).unwrap(), Some(left));
    }

    #[test]
    fn data_names_its_stream() {
        assert_eq!(parse_data(&data(0x0102_0304, b"\0\xff")), Some((0x0102_0304, &b"\0\xff"[..])));
        assert_eq!(parse_data(&[0, 0, 1]), None);
    }
}
