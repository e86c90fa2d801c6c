//! A budget of bytes against a cloud in this process: what it costs, and what goes on whatever it costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use copal_agent::{
    apply::status::reason,
    channel::{
        self,
        meter::{CHANNEL_MONTH, Meter},
        pace::Pace,
        streams::Kinds,
    },
    clock::{Clock, system_time},
    orders::{self, Acks, Hands},
    spool::{self, BYTES, Folder, Notes, Outbox, Spool},
    state::{RealFs, StateDir},
};
use copal_protocol::{
    channel::{
        AckState, CloudFrame, Command, DeviceFrame, Exchange, Order, Question, SUBPROTOCOL, Stored, Welcome,
        parse_ping,
    },
    documents::{Act, Reason},
    ids::Sha256Hex,
    telemetry::{Budget, Sheds, Summary, Telemetry},
    testing::{OwnerKeys, sign},
    verify,
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

mod support;
use support::{Device, FakeCloud, Running};

/// What exchanges were told, one call each, and are to say.
struct Hub {
    upgrades: AtomicUsize,
    takes: bool,
    sockets: mpsc::UnboundedSender<WebSocket>,
    calls: Mutex<Vec<Vec<DeviceFrame>>>,
    to_say: Mutex<Vec<CloudFrame>>,
    /// What the state route would serve.
    etag: Mutex<Option<Sha256Hex>>,
    ping_s: u32,
}

struct Cloud {
    cloud: FakeCloud,
    hub: Arc<Hub>,
    sockets: mpsc::UnboundedReceiver<WebSocket>,
}

impl Cloud {
    /// `takes`: whether WebSockets pass.
    async fn start(takes: bool, ping_s: u32) -> Self {
        let (opened, sockets) = mpsc::unbounded_channel();
        let hub = Arc::new(Hub {
            upgrades: AtomicUsize::new(0),
            takes,
            sockets: opened,
            calls: Mutex::default(),
            to_say: Mutex::default(),
            etag: Mutex::default(),
            ping_s,
        });
        let routes = Router::new()
            .route("/device/v1/channel", get(open))
            .route("/device/v1/exchange", post(exchange))
            .with_state(hub.clone());
        Self { cloud: FakeCloud::start_routed(|_| {}, routes).await, hub, sockets }
    }

    /// The next channel, welcomed.
    async fn channel(&mut self) -> WebSocket {
        let mut socket = within("a channel", self.sockets.recv()).await.unwrap();
        let Some(Ok(Message::Text(_))) = socket.recv().await else { panic!("no hello") };
        say(&mut socket, &self.hub.welcome()).await;
        socket
    }

    fn told(&self, what: impl Fn(&DeviceFrame) -> bool) -> usize {
        self.hub.calls.lock().unwrap().iter().flatten().filter(|frame| what(frame)).count()
    }

    /// Calls that said hello: channels by exchange, and visits.
    fn hellos(&self) -> usize {
        self.told(|frame| matches!(frame, DeviceFrame::Hello(_)))
    }
}

impl Hub {
    fn welcome(&self) -> CloudFrame {
        CloudFrame::Welcome(Welcome {
            epoch: 1,
            ping_s: self.ping_s,
            lease_s: 3,
            reconnect_window_s: 1,
            etag: *self.etag.lock().unwrap(),
            root: None,
            time: 1_800_000_000,
            stored: Some(0),
        })
    }
}

async fn say(socket: &mut WebSocket, frame: &CloudFrame) {
    socket.send(Message::Text(copal_protocol::channel::write(frame).unwrap().into())).await.unwrap();
}

async fn open(State(hub): State<Arc<Hub>>, upgrade: WebSocketUpgrade) -> Response {
    hub.upgrades.fetch_add(1, SeqCst);
    if !hub.takes {
        return (StatusCode::OK, "hello").into_response();
    }
    upgrade.protocols([SUBPROTOCOL]).on_upgrade(async move |socket| hub.sockets.send(socket).unwrap())
}

async fn exchange(State(hub): State<Arc<Hub>>, request: Request) -> Json<Exchange<CloudFrame>> {
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let said: Exchange<DeviceFrame> = serde_json::from_slice(&body).unwrap();
    let hello = said.frames.iter().any(|frame| matches!(frame, DeviceFrame::Hello(_)));
    let mut frames: Vec<CloudFrame> = hello.then(|| hub.welcome()).into_iter().collect();
    for frame in &said.frames {
        if let DeviceFrame::Batch(batch) = frame {
            let up_to = batch.first_seq + batch.items.len() as u64 - 1;
            frames.push(CloudFrame::Stored(Stored { class: batch.class, up_to }));
        }
    }
    frames.append(&mut hub.to_say.lock().unwrap());
    hub.calls.lock().unwrap().push(said.frames);
    Json(Exchange { frames })
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}"),
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, looking).await;
}

struct Hand(Arc<AtomicUsize>);

impl Hands for Hand {
    fn act(&self, _: Act) -> BoxFuture<'static, Result<String, Reason>> {
        self.0.fetch_add(1, SeqCst);
        Box::pin(std::future::ready(Ok("so it is".to_owned())))
    }

    fn answer(&self, _: Question) -> BoxFuture<'static, Result<Value, Reason>> {
        Box::pin(std::future::ready(Err(reason("not_supported", "not here"))))
    }
}

/// A device with a budget.
struct Agent {
    running: Running,
    _device: Device,
    done: Arc<AtomicUsize>,
    outbox: Arc<Outbox>,
    budget: watch::Receiver<Option<Budget>>,
    spare: watch::Receiver<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Agent {
    /// Of whose budget so many bytes were used before it started.
    fn start(cloud: &Cloud, clock: Clock, budget: Option<u64>, used: u64) -> Self {
        let device = Device::of(&cloud.cloud);
        let notes = Notes::default();
        let folder = Box::new(Folder::new(device.dir.path().join("spool")));
        let outbox = Outbox::new(Spool::open(folder, &"b".repeat(32), BYTES), notes.clone(), &"b".repeat(32));
        let outbox = Arc::new(outbox);
        let running = device.start();
        running.state.save("meter", &json!({"month": 0, "bytes": {"streams": [used, 0]}})).unwrap();
        let (budget_writer, told) = watch::channel(None);
        let (spare_writer, spare) = watch::channel(false);
        let done = Arc::new(AtomicUsize::new(0));
        let acks = Arc::new(Acks::default());
        let (commands, received) = mpsc::channel(32);
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
                hands: Arc::new(Hand(done.clone())),
                policy: device.dir.path().join("policy.toml"),
                acks: acks.clone(),
                boot_id: "b".repeat(32),
                uptime_s: Box::new(|| 0),
                // Not set: the documents of these tests have a fixed date.
                clock: Clock::new(|| 12),
                notes: Notes::default(),
                now: 0,
            },
            received,
        );
        let channel = channel::run(channel::Deps {
            session: running.session.clone(),
            nudges: running.nudges.clone(),
            condition: running.condition.clone(),
            commands,
            acks,
            state: running.state.clone(),
            clock,
            pace: pace(),
            max_bytes_month: budget,
            moved: watch::Sender::new(0).subscribe(),
            streams: Kinds::default(),
            outbox: outbox.clone(),
            budget: budget_writer,
            spare: spare_writer,
        });
        let writing = spool::run(notes, outbox.clone());
        let tasks = vec![tokio::spawn(orders), tokio::spawn(channel), tokio::spawn(writing)];
        Self { running, _device: device, done, outbox, budget: told, spare, tasks }
    }

    fn sheds(&self) -> Option<Sheds> {
        self.budget.borrow().map(|budget| budget.sheds)
    }
}

fn pace() -> Pace {
    Pace {
        pong: Duration::from_millis(500),
        first: Duration::ZERO,
        window: Duration::from_millis(100),
        longest: Duration::from_millis(500),
        welcome: Duration::from_secs(3),
        wait_s: 0,
        look: Duration::from_millis(20),
        visits: (Duration::from_millis(300), Duration::from_secs(1)),
        stay: Duration::from_millis(200),
        ..Pace::default()
    }
}

/// What may be used of a budget by now.
fn allowed(budget: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
    let mut meter = Meter::open(state, Some(budget), Arc::default());
    meter.shed(Some(system_time()));
    let (mut least, mut most) = (0, budget + 1);
    while most - least > 1 {
        let middle = least.midpoint(most);
        *(if meter.until_room(middle).is_zero() { &mut least } else { &mut most }) = middle;
    }
    least
}

/// Of a month, so much that a day's share is ten megabytes or so.
const LARGE: u64 = 300_000_000;

#[tokio::test]
async fn where_a_days_share_is_used_the_channel_ends_with_a_word_and_visits_take_its_place() {
    let mut cloud = Cloud::start(true, 300).await;
    let agent = Agent::start(&cloud, Clock::default(), Some(LARGE), allowed(LARGE) - 200_000);
    let mut socket = cloud.channel().await;
    assert_eq!(agent.sheds(), Some(Sheds::Telemetry), "a little is left");
    assert!(!*agent.spare.borrow());
    // What comes counts, whatever it is.
    for _ in 0..3 {
        let text = format!(r#"{{"t":"sing","song":"{}"}}"#, "la".repeat(50_000));
        if socket.send(Message::Text(text.into())).await.is_err() {
            break;
        }
    }
    let word = within("it says that it goes", async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => {
                    let frame = copal_protocol::channel::read::<DeviceFrame>(text.as_bytes()).unwrap();
                    if let Some(DeviceFrame::Leave { code, back_within_s }) = frame {
                        return (code, back_within_s);
                    }
                }
                Some(Ok(_)) => {}
                other => panic!("it went without a word: {other:?}"),
            }
        }
    })
    .await;
    assert_eq!(word.0, "budget");
    assert!((1..1000).contains(&word.1), "{word:?}");
    until("it visits", || cloud.hellos() >= 3).await;
    assert_eq!(cloud.hub.upgrades.load(SeqCst), 1, "no other channel is opened");
    let nudges = agent.running.nudges.borrow().clone();
    assert!(nudges.seldom && !nudges.up, "{nudges:?}");
    let first = cloud.hub.calls.lock().unwrap()[0].clone();
    assert!(
        matches!(first[..], [DeviceFrame::Hello(_), .., DeviceFrame::Leave { .. }]),
        "one call: {first:?}"
    );
    until("the event that says so is told", || cloud.told(|f| matches!(f, DeviceFrame::Batch(_))) > 0).await;
    agent.outbox.telemetry(&Telemetry::Metrics(Summary::default()));

    // What is urgent goes on: an update, and what people asked for.
    cloud.cloud.deploy(7, 7);
    *cloud.hub.etag.lock().unwrap() =
        cloud.cloud.with(|i| i.assignment.as_ref().map(copal_protocol::envelope::Envelope::payload_sha256));
    until("the update is heard of", || agent.running.condition.borrow().mark.seq == 7).await;
    let act = OwnerKeys::fixed().action(1, Act::RestartService { service: "web".parse().unwrap() });
    let order = Order::Action(sign(&act, &[&OwnerKeys::fixed().assign]));
    cloud.hub.to_say.lock().unwrap().push(CloudFrame::Cmd(Command { id: act.id, age_s: 0, order }));
    until("what is asked for is done", || agent.done.load(SeqCst) == 1).await;
    let ended = |f: &DeviceFrame| matches!(f, DeviceFrame::Ack(ack) if ack.state == AckState::Done);
    until("and told", || cloud.told(ended) > 0).await;
    let telemetry = |f: &DeviceFrame| matches!(f, DeviceFrame::Batch(b) if b.class == copal_protocol::channel::Class::Telemetry);
    assert_eq!(cloud.told(telemetry), 0, "which is left out");
}

static LATER: AtomicU64 = AtomicU64::new(0);

fn later() -> u64 {
    system_time() + LATER.load(SeqCst)
}

#[tokio::test]
async fn a_channel_comes_back_when_there_is_room_again() {
    let mut cloud = Cloud::start(true, 300).await;
    let agent = Agent::start(&cloud, Clock::new(later), Some(LARGE), allowed(LARGE) + 1_000_000);
    until("it visits", || cloud.hellos() >= 2).await;
    assert_eq!(cloud.hub.upgrades.load(SeqCst), 0);
    let mut spare = agent.spare.clone();
    within("bytes are spared", spare.wait_for(|spare| *spare)).await.unwrap();
    LATER.store(86_400, SeqCst);
    let _socket = cloud.channel().await;
    until("it is up", || agent.running.nudges.borrow().up).await;
    assert!(!*agent.spare.borrow() && !agent.running.nudges.borrow().seldom);
    assert_eq!(agent.sheds(), Some(Sheds::Nothing));
}

#[tokio::test]
async fn a_budget_that_no_channel_fits_into_never_opens_one_and_requests_count() {
    let cloud = Cloud::start(true, 300).await;
    let agent = Agent::start(&cloud, Clock::default(), Some(CHANNEL_MONTH / 4), 0);
    until("it visits", || cloud.hellos() >= 3).await;
    assert_eq!(cloud.hub.upgrades.load(SeqCst), 0);
    let told = agent.budget.borrow().unwrap();
    assert!(told.no_channel && told.sheds == Sheds::Polls);
    assert!(told.used > 0, "logins, polls and visits take their part");
}

#[tokio::test]
async fn exchanges_by_long_poll_are_counted_with_what_lies_around_them_and_end_with_the_budget() {
    let cloud = Cloud::start(false, 300).await;
    let agent = Agent::start(&cloud, Clock::default(), Some(LARGE), allowed(LARGE) - 100_000);
    let leaves = |f: &DeviceFrame| matches!(f, DeviceFrame::Leave { .. });
    until("it leaves", || cloud.told(leaves) > 0).await;
    let calls = cloud.hub.calls.lock().unwrap().len();
    assert!((20..300).contains(&calls), "a call takes about a kilobyte: {calls} calls");
    assert_eq!(agent.sheds(), Some(Sheds::Polls));
    until("it visits", || cloud.hellos() >= 4).await;
    // A visit is a call or two; none is held, and none follows the other at once.
    let empty = |calls: &[Vec<DeviceFrame>]| calls.iter().filter(|call| call.is_empty()).count();
    let before = empty(&cloud.hub.calls.lock().unwrap());
    let visits = cloud.hellos();
    until("more visits", || cloud.hellos() >= visits + 2).await;
    assert_eq!(empty(&cloud.hub.calls.lock().unwrap()), before);
}

#[tokio::test]
async fn pings_say_when_the_next_one_comes() {
    let mut cloud = Cloud::start(true, 300).await;
    let _agent = Agent::start(&cloud, Clock::default(), None, 0);
    let mut socket = cloud.channel().await;
    // It pings every three minutes, which is beyond the lease of three seconds: it says so at once.
    let ping = within("a ping", async {
        loop {
            if let Some(Ok(Message::Ping(payload))) = socket.recv().await {
                return parse_ping(&payload);
            }
        }
    })
    .await;
    assert_eq!(ping, Some((0, 180)));
}
