//! The channel against a cloud in this process that speaks real WebSocket, and can be told to misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use copal_agent::{
    apply::status::reason,
    channel::{self, pace::Pace, streams::Kinds},
    clock::Clock,
    orders::{self, Acks, Hands},
    spool::{self, BYTES, Folder, Note, Notes, Outbox, Spool},
};
use copal_protocol::{
    channel::{
        Ack, AckState, Batch, Class, CloudFrame, Command, DeviceFrame, Exchange, Hello, Open, OpenLogs,
        Order, Question, SUBPROTOCOL, Stored, StreamOf, Welcome,
    },
    documents::{Act, Action, Reason},
    ids::{CommandId, Sha256Hex},
    telemetry::{FEATURE, Summary, Telemetry},
    testing::{OwnerKeys, sign},
    verify,
};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};

#[path = "channel/streams.rs"]
mod streams;
mod support;
use support::{Device, FakeCloud, Running};

/// How the cloud takes a WebSocket.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Takes,
    /// Something on the way takes the Upgrade out of the request.
    Stripped,
    /// Full.
    Busy,
    /// Takes it, and never says or reads anything.
    Mute,
}

struct Hub {
    mode: Mutex<Mode>,
    asked: Mutex<usize>,
    sockets: mpsc::UnboundedSender<WebSocket>,
    /// What the exchange route was told, and is to say.
    told: Mutex<Vec<DeviceFrame>>,
    to_say: Mutex<Vec<CloudFrame>>,
    news: Notify,
}

struct Cloud {
    cloud: FakeCloud,
    hub: Arc<Hub>,
    sockets: mpsc::UnboundedReceiver<WebSocket>,
}

impl Cloud {
    async fn start(mode: Mode) -> Self {
        let (opened, sockets) = mpsc::unbounded_channel();
        let hub = Arc::new(Hub {
            mode: Mutex::new(mode),
            asked: Mutex::new(0),
            sockets: opened,
            told: Mutex::default(),
            to_say: Mutex::default(),
            news: Notify::new(),
        });
        let routes = Router::new()
            .route("/device/v1/channel", get(open))
            .route("/device/v1/exchange", post(exchange))
            .with_state(hub.clone());
        Self { cloud: FakeCloud::start_routed(|_| {}, routes).await, hub, sockets }
    }

    fn set(&self, mode: Mode) {
        *self.hub.mode.lock().unwrap() = mode;
    }

    /// The next socket that is opened.
    async fn socket(&mut self) -> WebSocket {
        within("a channel is opened", self.sockets.recv()).await.unwrap()
    }

    /// The next channel, welcomed.
    async fn channel(&mut self) -> Socket {
        let mut socket = Socket(self.socket().await);
        let DeviceFrame::Hello(hello) = socket.hear().await else { panic!("no hello") };
        assert_eq!(hello.boot_id.len(), 32);
        assert!(hello.features.iter().any(|f| f == FEATURE));
        socket.say(&welcome(hello.etag)).await;
        socket
    }
}

async fn open(State(hub): State<Arc<Hub>>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    *hub.asked.lock().unwrap() += 1;
    let mode = *hub.mode.lock().unwrap();
    match mode {
        Mode::Stripped => return (StatusCode::OK, "hello").into_response(),
        Mode::Busy => {
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "{}").into_response();
        }
        Mode::Takes | Mode::Mute => {}
    }
    assert!(headers[header::AUTHORIZATION].to_str().unwrap().starts_with("Bearer "));
    upgrade.protocols([SUBPROTOCOL]).on_upgrade(async move |socket| {
        if mode == Mode::Mute {
            let _socket = socket;
            std::future::pending::<()>().await;
        } else {
            hub.sockets.send(socket).unwrap();
        }
    })
}

async fn exchange(State(hub): State<Arc<Hub>>, request: Request) -> Json<Exchange<CloudFrame>> {
    let wait: u64 = request.uri().query().unwrap().strip_prefix("wait=").unwrap().parse().unwrap();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let said: Exchange<DeviceFrame> = serde_json::from_slice(&body).unwrap();
    let mut frames = Vec::new();
    for frame in said.frames {
        if let DeviceFrame::Hello(Hello { etag, .. }) = &frame {
            frames.push(welcome(*etag));
        }
        hub.told.lock().unwrap().push(frame);
    }
    let until = tokio::time::Instant::now() + Duration::from_secs(wait);
    loop {
        frames.append(&mut hub.to_say.lock().unwrap());
        if !frames.is_empty() || tokio::time::timeout_at(until, hub.news.notified()).await.is_err() {
            return Json(Exchange { frames });
        }
    }
}

fn welcome(etag: Option<Sha256Hex>) -> CloudFrame {
    CloudFrame::Welcome(Welcome {
        epoch: 1,
        ping_s: 1,
        lease_s: 3,
        reconnect_window_s: 1,
        etag,
        root: None,
        time: 1_800_000_000,
        stored: Some(0),
    })
}

/// The cloud's end of a channel.
struct Socket(WebSocket);

impl Socket {
    async fn say(&mut self, frame: &CloudFrame) {
        let text = copal_protocol::channel::write(frame).unwrap();
        self.0.send(Message::Text(text.into())).await.unwrap();
    }

    /// The next frame; pings are answered meanwhile.
    async fn hear(&mut self) -> DeviceFrame {
        let next = async {
            loop {
                match self.0.recv().await {
                    Some(Ok(Message::Text(text))) => {
                        return copal_protocol::channel::read(text.as_bytes()).unwrap().unwrap();
                    }
                    Some(Ok(_)) => {}
                    other => panic!("the device went away: {other:?}"),
                }
            }
        };
        within("a frame comes", next).await
    }

    /// The next ack that is an end.
    async fn end(&mut self) -> Ack {
        loop {
            if let DeviceFrame::Ack(ack) = self.hear().await
                && ack.state.is_final()
            {
                return ack;
            }
        }
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}"),
    }
}

#[derive(Default)]
struct Counting(Mutex<Vec<Act>>);

struct Hand(Arc<Counting>);

impl Hands for Hand {
    fn act(&self, act: Act) -> BoxFuture<'static, Result<String, Reason>> {
        self.0.0.lock().unwrap().push(act);
        Box::pin(std::future::ready(Ok("so it is".to_owned())))
    }

    fn answer(&self, _: Question) -> BoxFuture<'static, Result<Value, Reason>> {
        Box::pin(std::future::ready(Err(reason("not_supported", "not here"))))
    }
}

/// A device with a channel.
struct Agent {
    running: Running,
    _device: Device,
    counting: Arc<Counting>,
    notes: Notes,
    outbox: Arc<Outbox>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Agent {
    fn start(cloud: &Cloud) -> Self {
        Self::start_at(cloud, pace())
    }

    fn start_at(cloud: &Cloud, pace: Pace) -> Self {
        Self::start_with(cloud, pace, Kinds::default(), None)
    }

    fn start_with(cloud: &Cloud, pace: Pace, streams: Kinds, max_bytes_month: Option<u64>) -> Self {
        let device = Device::of(&cloud.cloud);
        let notes = Notes::default();
        let folder = Box::new(Folder::new(device.dir.path().join("spool")));
        let outbox = Outbox::new(Spool::open(folder, &"b".repeat(32), BYTES), notes.clone(), &"b".repeat(32));
        let outbox = Arc::new(outbox);
        let running = device.start();
        let counting = Arc::new(Counting::default());
        let acks = Arc::new(Acks::default());
        let (commands, told) = mpsc::channel(32);
        let (store, session) = (running.store.clone(), running.session.clone());
        let judge = move |envelope: &copal_protocol::envelope::Envelope| {
            let device = session.identity(copal_agent::identity::Identity::device).unwrap();
            verify::action(&store.root(), &device, envelope)
        };
        let orders = orders::run(
            orders::Deps {
                state: running.state.clone(),
                judge: Box::new(judge),
                epoch: Box::new(|| 1),
                hands: Arc::new(Hand(counting.clone())),
                policy: device.dir.path().join("policy.toml"),
                acks: acks.clone(),
                boot_id: "b".repeat(32),
                uptime_s: Box::new(|| 0),
                // Not set: the documents of these tests have a fixed date.
                clock: Clock::new(|| 12),
                notes: Notes::default(),
                now: 0,
            },
            told,
        );
        let channel = channel::run(channel::Deps {
            session: running.session.clone(),
            nudges: running.nudges.clone(),
            condition: running.condition.clone(),
            commands,
            acks,
            state: running.state.clone(),
            clock: Clock::default(),
            pace,
            max_bytes_month,
            moved: watch::Sender::new(0).subscribe(),
            streams,
            outbox: outbox.clone(),
            budget: watch::Sender::new(None),
            spare: watch::Sender::new(false),
        });
        let writing = spool::run(notes.clone(), outbox.clone());
        let tasks = vec![tokio::spawn(orders), tokio::spawn(channel), tokio::spawn(writing)];
        Self { running, _device: device, counting, notes, outbox, tasks }
    }

    fn done(&self) -> usize {
        self.counting.0.lock().unwrap().len()
    }

    async fn up(&self, up: bool) {
        let mut nudges = self.running.nudges.subscribe();
        within("the channel is up or down", nudges.wait_for(|n| n.up == up)).await.unwrap();
    }
}

fn pace() -> Pace {
    Pace {
        pong: Duration::from_millis(500),
        first: Duration::ZERO,
        window: Duration::from_millis(100),
        longest: Duration::from_millis(500),
        welcome: Duration::from_secs(3),
        wait_s: 2,
        ..Pace::default()
    }
}

fn action(seq: u64) -> Action {
    OwnerKeys::fixed().action(seq, Act::RestartService { service: "web".parse().unwrap() })
}

fn command(action: &Action) -> CloudFrame {
    let order = Order::Action(sign(action, &[&OwnerKeys::fixed().assign]));
    CloudFrame::Cmd(Command { id: action.id, age_s: 0, order })
}

#[tokio::test]
async fn while_a_channel_is_up_polls_rest_and_a_hint_ends_the_rest() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    agent.up(true).await;
    let first = cloud.cloud.deploy(1, 10);
    socket.say(&CloudFrame::Hint { etag: Some(first), root: None }).await;
    agent.running.runs(cloud.cloud.app(), first).await;
    // The next poll of what is settled is an hour away; only the hint can bring this one.
    let second = cloud.cloud.publish(&support::release(&cloud.cloud.keys, 11), &[&cloud.cloud.keys.builder]);
    let envelope = cloud.cloud.assign(&cloud.cloud.draft(2, &[second]));
    socket.say(&CloudFrame::Hint { etag: Some(envelope.payload_sha256()), root: None }).await;
    agent.running.runs(cloud.cloud.app(), second).await;
}

#[tokio::test]
async fn a_root_that_the_cloud_speaks_of_is_walked_to_at_once_and_looked_for_once() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    agent.up(true).await;
    let first = cloud.cloud.deploy(1, 10);
    socket.say(&CloudFrame::Hint { etag: Some(first), root: Some(1) }).await;
    agent.running.runs(cloud.cloud.app(), first).await;
    // Polls rest for an hour, and so do walks; the assignment stays what it is.
    let keys = OwnerKeys::fixed();
    let mut root = agent.running.store.root().clone().into_inner();
    root.version = 2;
    cloud.cloud.with(|c| c.roots.push(sign(&root, &[&keys.root])));
    socket.say(&CloudFrame::Hint { etag: Some(first), root: Some(2) }).await;
    agent.running.condition("the second root is trusted", |c| c.root_version == 2).await;
    // One that is only spoken of is asked for once.
    socket.say(&CloudFrame::Hint { etag: Some(first), root: Some(9) }).await;
    within("it is looked for", async {
        while cloud.cloud.asked("/device/v1/roots/3") < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    agent.running.nudges.send_modify(|n| n.asked += 1);
    let polls = cloud.cloud.asked("/device/v1/state");
    within("it polls", async {
        while cloud.cloud.asked("/device/v1/state") == polls {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(cloud.cloud.asked("/device/v1/roots/3"), 2);
    assert_eq!(agent.running.store.root().version, 2);
}

#[tokio::test]
async fn a_pause_keeps_what_is_new_from_being_installed_and_its_end_lets_it() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    agent.up(true).await;
    let pause = |paused| agent.running.nudges.send_modify(|n| n.paused = paused);
    pause(true);
    let hash = cloud.cloud.deploy(1, 10);
    socket.say(&CloudFrame::Hint { etag: Some(hash), root: None }).await;
    let app = cloud.cloud.app();
    let target = agent.running.target("paused", |t| t.paused && t.apps.contains_key(&app)).await;
    assert!(!target.may_install);
    pause(false);
    agent.running.runs(app, hash).await;
}

#[tokio::test]
async fn losing_the_channel_returns_to_polls_at_once_and_it_comes_back() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    agent.up(true).await;
    let first = cloud.cloud.deploy(1, 10);
    socket.say(&CloudFrame::Hint { etag: Some(first), root: None }).await;
    agent.running.runs(cloud.cloud.app(), first).await;
    cloud.set(Mode::Busy);
    drop(socket);
    agent.up(false).await;
    let second = cloud.cloud.deploy(2, 11);
    agent.running.runs(cloud.cloud.app(), second).await;
    cloud.set(Mode::Takes);
    let mut socket = cloud.channel().await;
    agent.up(true).await;
    let bye = CloudFrame::Bye { code: "restarting".to_owned(), retry_within_s: 1 };
    socket.say(&bye).await;
    agent.up(false).await;
    cloud.channel().await;
    agent.up(true).await;
}

#[tokio::test]
async fn commands_repeated_and_out_of_order_are_each_done_once() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    for seq in [5, 3, 5, 4, 3] {
        socket.say(&command(&action(seq))).await;
    }
    // One that comes again while it is under way is answered once.
    let mut ends = std::collections::BTreeSet::new();
    while ends.len() < 3 {
        let end = socket.end().await;
        assert_eq!((end.state, end.message.as_str()), (AckState::Done, "so it is"));
        ends.insert(end.id);
    }
    // One that comes after it ended gets the same answer.
    socket.say(&command(&action(9))).await;
    socket.say(&command(&action(4))).await;
    let (mut nine, mut four) = (0, 0);
    while nine == 0 || four == 0 {
        let end = socket.end().await;
        nine += usize::from(end.id == action(9).id);
        four += usize::from(end.id == action(4).id);
        assert_eq!(end.message, "so it is");
    }
    assert_eq!(agent.done(), 4);
}

#[tokio::test]
async fn forged_foreign_replayed_and_late_actions_are_refused_with_their_codes() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    let keys = OwnerKeys::fixed();
    let real = action(7);
    let envelope = |action: &Action, key| Order::Action(sign(action, &[key]));
    let cmd = |id: CommandId, age_s, order| CloudFrame::Cmd(Command { id, age_s, order });
    let mut foreign = action(8);
    foreign.device_id = copal_protocol::ids::DeviceId::from_bytes([7; 16]);
    let late = action(9);
    let mut expected = vec![
        (cmd(real.id, 0, envelope(&real, &keys.builder)), AckState::Rejected, "E_SIG_WRONG_ROLE"),
        (cmd(foreign.id, 0, envelope(&foreign, &keys.assign)), AckState::Rejected, "E_DEVICE_MISMATCH"),
        (cmd(late.id, 3601, envelope(&late, &keys.assign)), AckState::Expired, "expired"),
        // A replayed action under a new name.
        (
            cmd(CommandId::from_bytes([9; 16]), 0, envelope(&late, &keys.assign)),
            AckState::Rejected,
            "E_PAYLOAD",
        ),
    ];
    for (frame, state, code) in expected.drain(..) {
        socket.say(&frame).await;
        let ack = socket.end().await;
        assert_eq!((ack.state, ack.code.as_deref()), (state, Some(code)));
    }
    assert_eq!(agent.done(), 0);
    socket.say(&command(&real)).await;
    assert_eq!(socket.end().await.state, AckState::Done);
}

#[tokio::test]
async fn an_end_that_nobody_confirmed_is_told_again_on_the_next_channel_and_one_confirmed_is_not() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    socket.say(&command(&action(1))).await;
    assert_eq!(socket.end().await.id, action(1).id);
    // Read by the network, not by the cloud: no pong follows the ping that came after it.
    drop(socket);
    let mut socket = cloud.channel().await;
    assert_eq!(socket.end().await.id, action(1).id);
    socket.say(&command(&action(2))).await;
    assert_eq!(socket.end().await.id, action(2).id);
    // Reading on answers the ping.
    socket.say(&command(&action(3))).await;
    assert_eq!(socket.end().await.id, action(3).id);
    drop(socket);
    let mut socket = cloud.channel().await;
    let again = socket.end().await.id;
    assert!(again != action(1).id && again != action(2).id, "the cloud has those: {again}");
    assert_eq!(agent.done(), 3);
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_noticed() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    // Nobody reads it any more, and TCP says nothing: the kernel takes what is sent.
    let half_open = cloud.channel().await;
    agent.up(true).await;
    let _next = cloud.channel().await;
    drop(half_open);
}

#[tokio::test]
async fn where_no_upgrade_passes_frames_are_exchanged_and_a_websocket_is_tried_again() {
    let mut cloud = Cloud::start(Mode::Stripped).await;
    let agent = Agent::start_at(&cloud, Pace { socket_again: Duration::from_secs(8), ..pace() });
    agent.up(true).await;
    assert_eq!(*cloud.hub.asked.lock().unwrap(), 1);
    let first = cloud.cloud.deploy(1, 10);
    cloud.hub.to_say.lock().unwrap().extend([
        CloudFrame::Hint { etag: Some(first), root: None },
        command(&action(1)),
        command(&action(1)),
    ]);
    cloud.hub.news.notify_waiters();
    agent.running.runs(cloud.cloud.app(), first).await;
    let told = || {
        let told = cloud.hub.told.lock().unwrap();
        told.iter()
            .any(|f| matches!(f, DeviceFrame::Ack(a) if a.id == action(1).id && a.state == AckState::Done))
    };
    within("the end is told", async {
        while !told() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(agent.done(), 1);
    cloud.set(Mode::Takes);
    let mut socket = cloud.channel().await;
    socket.say(&command(&action(2))).await;
    assert_eq!(socket.end().await.id, action(2).id);
}

#[tokio::test]
async fn a_proxy_that_takes_the_upgrade_and_swallows_the_rest_is_seen_through() {
    let cloud = Cloud::start(Mode::Mute).await;
    let agent = Agent::start(&cloud);
    agent.up(true).await;
    assert!(cloud.hub.told.lock().unwrap().iter().any(|f| matches!(f, DeviceFrame::Hello(_))));
    drop(agent);
}

#[tokio::test]
async fn a_full_cloud_is_asked_again_and_not_by_exchange() {
    let mut cloud = Cloud::start(Mode::Busy).await;
    let agent = Agent::start(&cloud);
    within("it was asked twice", async {
        while *cloud.hub.asked.lock().unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(cloud.hub.told.lock().unwrap().is_empty(), "no exchange");
    cloud.set(Mode::Takes);
    let _socket = cloud.channel().await;
    agent.up(true).await;
}

#[tokio::test]
async fn frames_of_a_later_cloud_are_left_aside_and_what_is_no_frame_ends_the_channel() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let _agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    socket.0.send(Message::Text(r#"{"t":"sing","song":[1]}"#.into())).await.unwrap();
    socket.0.send(Message::Binary(vec![0, 0, 0, 1, 7].into())).await.unwrap();
    let open = r#"{"t":"open","stream":3,"of":{"kind":"logs","tail":1}}"#;
    socket.0.send(Message::Text(open.into())).await.unwrap();
    let DeviceFrame::Closed(closed) = socket.hear().await else { panic!("not closed") };
    assert_eq!((closed.stream, closed.code.as_str()), (3, "not_supported"));
    socket.0.send(Message::Text(r#"{"t":"hint","etag":7}"#.into())).await.unwrap();
    let mut socket = cloud.channel().await;
    // Larger than any message may be.
    socket.0.send(Message::Text("x".repeat(300 << 10).into())).await.unwrap();
    cloud.channel().await;
}

/// Asks for a WebSocket at a name that only a proxy could know; a child of the test below, with a proxy in its environment.
#[tokio::test]
async fn asks_for_a_websocket_as_the_environment_says() {
    if std::env::var_os("COPAL_TEST_CHILD").is_none() {
        return;
    }
    let address = copal_agent::cloud::Address::new(&["https://cloud.invalid".to_owned()], &[]).unwrap();
    let cloud = copal_agent::cloud::Cloud::new(address, Clock::default(), support::quick());
    let error = cloud.upgrade("/device/v1/channel", "secret-token", SUBPROTOCOL).await.err().unwrap();
    assert!(!error.to_string().contains("secret-token"), "{error}");
}

#[tokio::test]
async fn a_websocket_goes_through_the_proxy_and_not_where_it_is_told_not_to() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    let serve = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let n = stream.read(&mut head).await.unwrap();
            heard.lock().unwrap().push(String::from_utf8_lossy(&head[..n]).into_owned());
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let child = |no_proxy: &'static str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "asks_for_a_websocket_as_the_environment_says"])
            .env("COPAL_TEST_CHILD", "1")
            .env("HTTPS_PROXY", &proxy)
            .env("NO_PROXY", no_proxy);
        child
    };
    for (no_proxy, asked) in [("other.invalid", 1), ("cloud.invalid", 1)] {
        let mut child = child(no_proxy);
        let ended = tokio::task::spawn_blocking(move || child.output());
        let out = within("the child ends", ended).await.unwrap().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        assert_eq!(seen.lock().unwrap().len(), asked, "NO_PROXY={no_proxy}");
    }
    let head = seen.lock().unwrap()[0].clone();
    assert!(head.starts_with("CONNECT cloud.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert!(!head.contains("secret-token"), "the proxy sees no credential: {head}");
    serve.abort();
}

/// The events of a batch, by their numbers.
fn events(batch: &Batch) -> Vec<(u64, String)> {
    let code = |item: &Value| item["code"].as_str().unwrap().to_owned();
    (batch.first_seq..).zip(batch.items.iter().map(code)).collect()
}

impl Socket {
    /// The next batch of this class; other frames are passed over.
    async fn batch(&mut self, class: Class) -> Batch {
        loop {
            if let DeviceFrame::Batch(batch) = self.hear().await
                && batch.class == class
            {
                return batch;
            }
        }
    }
}

#[tokio::test]
async fn events_are_sent_until_the_cloud_has_them_also_over_another_channel() {
    let mut cloud = Cloud::start(Mode::Takes).await;
    let agent = Agent::start(&cloud);
    let mut socket = cloud.channel().await;
    agent.notes.note(Note::new("clock", "set", "first"));
    let first = socket.batch(Class::Event).await;
    assert_eq!((events(&first), first.dropped), (vec![(1, "set".to_owned())], 0));
    // The channel breaks before it was told to be stored.
    drop(socket);
    agent.notes.note(Note::new("clock", "jumped", "second"));
    let mut socket = cloud.channel().await;
    let mut again = socket.batch(Class::Event).await;
    assert_eq!(events(&again)[0], (1, "set".to_owned()));
    let last = |batch: &Batch| batch.first_seq + batch.items.len() as u64 - 1;
    socket.say(&CloudFrame::Stored(Stored { class: Class::Event, up_to: last(&again) })).await;
    if last(&again) == 1 {
        again = socket.batch(Class::Event).await;
        socket.say(&CloudFrame::Stored(Stored { class: Class::Event, up_to: last(&again) })).await;
    }
    assert_eq!(last(&again), 2);
    // Telemetry goes the same way.
    agent.outbox.telemetry(&Telemetry::Metrics(Summary::default()));
    assert_eq!(socket.batch(Class::Telemetry).await.first_seq, 1);
    while agent.outbox.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn events_pass_where_no_websocket_does() {
    let cloud = Cloud::start(Mode::Stripped).await;
    let agent = Agent::start(&cloud);
    agent.notes.note(Note::new("clock", "set", "first"));
    let told = || cloud.hub.told.lock().unwrap().iter().any(|f| matches!(f, DeviceFrame::Batch(_)));
    within("the event is told", async {
        while !told() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cloud.hub.to_say.lock().unwrap().push(CloudFrame::Stored(Stored { class: Class::Event, up_to: 1 }));
    cloud.hub.news.notify_waiters();
    within("it is forgotten", async {
        while agent.outbox.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
