//! A small fake cloud on loopback, and a device that talks to it. The cloud signs with fixed keys known to everybody and
//! can be told to lie.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test support; each test file uses its part"
)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use copal_agent::{
    apply::ports::Ledger as _,
    clock::Clock,
    cloud::{Address, Cloud, Limits},
    identity::{Identity, Session},
    state::{RealFs, StateDir},
    target::{Channels, Checker, Condition, Nudges, Pace, Store, StoreSettings, Sync, model::Target},
};
use copal_protocol::{
    config::DeviceFile,
    device_api::{
        ChallengeResponse, DeviceState, EnrolRequest, EnrolResponse, FreshnessRequest, LoginRequest,
        LoginResponse,
    },
    documents::{Assignment, Release, Root},
    envelope::Envelope,
    ids::{AppId, Sha256Hex},
    keys::{PublicKey, SigningKey},
    testing::{OwnerKeys, sign},
    verify::Platform,
};
use serde_json::json;
use tokio::sync::watch;

/// How a route may be made to lie: path in, answer out; `None` is the honest one.
pub type Lie = Box<dyn Fn(&str) -> Option<Response> + Send + std::marker::Sync>;

#[derive(Default)]
pub struct Inner {
    pub roots: Vec<Envelope>,
    pub assignment: Option<Envelope>,
    pub releases: HashMap<Sha256Hex, Envelope>,
    pub blobs: HashMap<String, Vec<u8>>,
    pub device_key: Option<PublicKey>,
    pub links: Vec<String>,
    /// At the last login.
    link_shown: Option<String>,
    pub tokens: Vec<String>,
    /// Problem code that login gives.
    pub login_refused: Option<(u16, &'static str)>,
    pub lie: Option<Lie>,
    /// What was asked: method and path with query.
    pub log: Vec<String>,
    pub reports: Vec<Envelope>,
    pub fresh: Freshness,
}

#[derive(Default, Clone, Copy, PartialEq)]
pub enum Freshness {
    #[default]
    Honest,
    WrongNonce,
    OtherSeq,
    Down,
}

pub struct FakeCloud {
    pub keys: OwnerKeys,
    pub inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    pub url: String,
    server: Option<tokio::task::JoinHandle<()>>,
    pub root: Root,
}

struct Shared {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    keys: OwnerKeys,
}

impl FakeCloud {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Root)) -> Self {
        Self::start_routed(change, Router::new()).await
    }

    /// With more routes than these.
    pub async fn start_routed(change: impl FnOnce(&mut Root), more: Router) -> Self {
        let keys = OwnerKeys::fixed();
        let mut root = keys.root();
        change(&mut root);
        let inner =
            Arc::new(Mutex::new(Inner { roots: vec![sign(&root, &[&keys.root])], ..Inner::default() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changed, _) = watch::channel(0);
        let shared =
            Arc::new(Shared { inner: inner.clone(), changed: changed.clone(), keys: OwnerKeys::fixed() });
        let router = Router::new().fallback(answer).with_state(shared).merge(more);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { keys, inner, changed, url, server: Some(server), root }
    }

    /// The port answers nobody any more.
    pub fn go_down(&mut self) {
        self.server.take().unwrap().abort();
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        let result = f(&mut self.inner.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    pub fn lie(&self, lie: impl Fn(&str) -> Option<Response> + Send + std::marker::Sync + 'static) {
        self.with(|i| i.lie = Some(Box::new(lie)));
    }

    pub fn honest(&self) {
        self.with(|i| i.lie = None);
    }

    /// Serves this release without assigning it.
    pub fn publish(&self, release: &Release, by: &[&SigningKey]) -> Sha256Hex {
        let envelope = sign(release, by);
        let hash = envelope.payload_sha256();
        self.with(|i| i.releases.insert(hash, envelope));
        hash
    }

    /// An assignment for the enrolled device.
    pub fn draft(&self, seq: u64, releases: &[Sha256Hex]) -> Assignment {
        let mut assignment = self.keys.assignment(seq, releases);
        let key = self.with(|i| i.device_key).unwrap_or_else(|| self.keys.device.public());
        assignment.device_key_sha256 = key.id();
        assignment
    }

    pub fn assign(&self, assignment: &Assignment) -> Envelope {
        let envelope = sign(assignment, &[&self.keys.assign]);
        self.serve(envelope.clone());
        envelope
    }

    pub fn serve(&self, envelope: Envelope) {
        self.with(|i| i.assignment = Some(envelope));
    }

    /// Publishes release `counter` signed by the builder and assigns it as `seq`.
    pub fn deploy(&self, seq: u64, counter: u64) -> Sha256Hex {
        let hash = self.publish(&release(&self.keys, counter), &[&self.keys.builder]);
        self.assign(&self.draft(seq, &[hash]));
        hash
    }

    pub fn asked(&self, what: &str) -> usize {
        self.with(|i| i.log.iter().filter(|l| l.contains(what)).count())
    }

    pub fn app(&self) -> AppId {
        self.keys.app_id
    }
}

/// A release with an image for this machine.
pub fn release(keys: &OwnerKeys, counter: u64) -> Release {
    let mut release = keys.release(counter);
    for service in release.services.values_mut() {
        let image = service.images.values().next().unwrap().clone();
        service.images.insert(copal_agent::settings::platform(), image);
    }
    release
}

fn problem(status: u16, code: &str) -> Response {
    let body = json!({"status": status, "code": code, "title": code}).to_string();
    (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, "application/problem+json")], body)
        .into_response()
}

fn json_answer<T: serde::Serialize>(value: &T) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_vec(value).unwrap()).into_response()
}

fn document(envelope: &Envelope) -> Response {
    let etag = format!("\"{}\"", envelope.payload_sha256());
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], envelope.to_bytes())
        .into_response()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    {
        let mut inner = shared.inner.lock().unwrap();
        inner.log.push(format!("{} {}", parts.method, parts.uri));
        if let Some(lied) = inner.lie.as_ref().and_then(|lie| lie(&path)) {
            return lied;
        }
    }
    let open = matches!(path.as_str(), "/device/v1/enrol" | "/device/v1/challenge" | "/device/v1/login");
    if !open && !has_token(&shared, &parts.headers) {
        return problem(401, "token_invalid");
    }
    match (parts.method, path.as_str()) {
        (Method::POST, "/device/v1/enrol") => enrol(&shared, &body),
        (Method::POST, "/device/v1/challenge") => {
            json_answer(&ChallengeResponse { challenge: Sha256Hex::of(b"challenge") })
        }
        (Method::POST, "/device/v1/login") => login(&shared, &body),
        (Method::GET, "/device/v1/state") => {
            state(&shared, &parts.headers, parts.uri.query().unwrap_or("")).await
        }
        (Method::POST, "/device/v1/freshness") => freshness(&shared, &body),
        (Method::POST, "/device/v1/report") => {
            shared.inner.lock().unwrap().reports.push(Envelope::parse_any(&body).unwrap());
            StatusCode::NO_CONTENT.into_response()
        }
        (Method::GET, path) => get(&shared, path, &parts.headers),
        _ => problem(404, "not_found"),
    }
}

fn has_token(shared: &Shared, headers: &HeaderMap) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let inner = shared.inner.lock().unwrap();
    shown.strip_prefix("Bearer ").is_some_and(|t| inner.tokens.iter().any(|known| known == t))
}

fn enrol(shared: &Shared, body: &Bytes) -> Response {
    let request: EnrolRequest = serde_json::from_slice(body).unwrap();
    let mac = copal_protocol::enrol::token_mac(
        "secret",
        shared.keys.fleet_id,
        "token",
        &request.public_key,
        &request.seal_key,
    );
    if mac != request.token_mac {
        return problem(403, "enrolment_token_invalid");
    }
    let mut inner = shared.inner.lock().unwrap();
    if inner.device_key.is_some_and(|k| k != request.public_key) {
        return problem(403, "enrolment_token_used");
    }
    inner.device_key = Some(request.public_key);
    json_answer(&EnrolResponse { device_id: shared.keys.device_id, state: DeviceState::Accepted })
}

fn login(shared: &Shared, body: &Bytes) -> Response {
    let request: LoginRequest = serde_json::from_slice(body).unwrap();
    let mut inner = shared.inner.lock().unwrap();
    if let Some((status, code)) = inner.login_refused {
        return problem(status, code);
    }
    let Some(key) = inner.device_key else { return problem(401, "login_refused") };
    let message = copal_protocol::enrol::login_message(request.device_id, request.challenge);
    let mut sig = [0; 64];
    hex::decode_to_slice(&request.signature, &mut sig).unwrap();
    if !key.verifies(&message, &sig) {
        return problem(401, "login_refused");
    }
    // The newest link, or the one shown last: the answer to that may have been lost.
    let (known, shown) = (inner.links.len(), request.refresh_link);
    if known > 0 && shown.as_ref() != inner.links.last() && shown != inner.link_shown {
        return problem(409, "clone_suspected");
    }
    inner.link_shown = shown;
    let link = format!("link-{known}");
    let token = format!("token-{known}");
    inner.links.push(link.clone());
    inner.tokens.push(token.clone());
    json_answer(&LoginResponse { token, expires_in: 1800, refresh_link: link })
}

async fn state(shared: &Shared, headers: &HeaderMap, query: &str) -> Response {
    let wait: u64 = query.strip_prefix("wait=").and_then(|w| w.parse().ok()).unwrap_or(0);
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("")
        .trim_matches('"')
        .to_owned();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait);
    let mut changed = shared.changed.subscribe();
    loop {
        let now = shared.inner.lock().unwrap().assignment.clone();
        match now {
            Some(a) if a.payload_sha256().to_string() != known => return document(&a),
            _ => {}
        }
        let has_one = shared.inner.lock().unwrap().assignment.is_some();
        if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
            let status = if has_one { StatusCode::NOT_MODIFIED } else { StatusCode::NO_CONTENT };
            return status.into_response();
        }
    }
}

fn freshness(shared: &Shared, body: &Bytes) -> Response {
    let request: FreshnessRequest = serde_json::from_slice(body).unwrap();
    let inner = shared.inner.lock().unwrap();
    let Some(newest) = &inner.assignment else { return problem(404, "not_found") };
    let assignment: Assignment = serde_json::from_slice(newest.payload()).unwrap();
    let mut fresh = shared.keys.freshness(request.nonce, newest, assignment.seq);
    fresh.assign_epoch = assignment.assign_epoch;
    match inner.fresh {
        Freshness::Honest => {}
        Freshness::WrongNonce => fresh.nonce = Sha256Hex::of(b"an older one"),
        Freshness::OtherSeq => fresh.seq += 1,
        Freshness::Down => return problem(503, "busy"),
    }
    document(&sign(&fresh, &[&shared.keys.assign]))
}

fn get(shared: &Shared, path: &str, headers: &HeaderMap) -> Response {
    let inner = shared.inner.lock().unwrap();
    if let Some(version) = path.strip_prefix("/device/v1/roots/") {
        let found = version.parse::<usize>().ok().and_then(|v| inner.roots.get(v.checked_sub(1)?));
        return found.map_or_else(|| problem(404, "root_unknown"), document);
    }
    if let Some(hash) = path.strip_prefix("/device/v1/releases/") {
        let found = hash.parse().ok().and_then(|h: Sha256Hex| inner.releases.get(&h));
        return found.map_or_else(|| problem(404, "not_found"), document);
    }
    if let Some(blob) = path.rsplit_once("/blobs/").and_then(|(_, digest)| inner.blobs.get(digest)) {
        let from = headers
            .get(header::RANGE)
            .and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        return match from {
            Some(from) => (StatusCode::PARTIAL_CONTENT, blob[from..].to_vec()).into_response(),
            None => blob.clone().into_response(),
        };
    }
    problem(404, "not_found")
}

/// A device with a state folder; started and stopped at will.
pub struct Device {
    pub dir: tempfile::TempDir,
    pub file: DeviceFile,
    root: copal_protocol::verify::Verified<Root>,
}

pub struct Running {
    pub session: Arc<Session>,
    pub store: Arc<Store>,
    pub targets: watch::Receiver<Option<Arc<Target>>>,
    pub condition: watch::Receiver<Condition>,
    pub nudges: watch::Sender<Nudges>,
    pub updates: Checker,
    pub state: Arc<StateDir>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn pace() -> Pace {
    Pace {
        seldom: Duration::from_secs(3600),
        wait_s: 2,
        poll: Duration::from_millis(100),
        slow: Duration::from_millis(50),
        roots: Duration::from_secs(3600),
        rest: Duration::from_secs(3600),
    }
}

pub fn quick() -> Limits {
    Limits { first_byte: Duration::from_secs(3), window: Duration::from_secs(1), least: 1 << 10 }
}

impl Device {
    pub fn of(cloud: &FakeCloud) -> Self {
        let root_envelope = sign(&cloud.root, &[&cloud.keys.root]);
        let file = DeviceFile {
            spec: 1,
            fleet_id: cloud.keys.fleet_id,
            cloud_url: cloud.url.clone(),
            tls_pins: Vec::new(),
            root: serde_json::from_slice(&root_envelope.to_bytes()).unwrap(),
            enrolment_token: "token.secret".to_owned(),
            device_type: "generic".to_owned(),
            name: None,
            introduction: None,
        };
        let root = cloud.keys.trusted(&cloud.root);
        Self { dir: tempfile::tempdir().unwrap(), file, root }
    }

    pub fn start(&self) -> Running {
        let state = Arc::new(StateDir::open(self.dir.path(), Arc::new(RealFs)).unwrap());
        let clock = Clock::default();
        let identity = Identity::open(state.clone(), &self.file).unwrap();
        let address = Address::new(std::slice::from_ref(&self.file.cloud_url), &[]).unwrap();
        let cloud = Arc::new(Cloud::new(address, clock.clone(), quick()));
        let session = Arc::new(Session::new(cloud, state.clone(), self.file.clone(), identity));
        let platform = Platform {
            device_type: self.file.device_type.clone(),
            arch: copal_agent::settings::arch().to_owned(),
            agent: copal_agent::version(),
            os: None,
        };
        let settings = StoreSettings {
            platform,
            oci: copal_agent::settings::platform(),
            os_floor: 0,
            clock: clock.clone(),
        };
        let first = serde_json::to_vec(&self.file.root).unwrap();
        let store =
            Arc::new(Store::open(state.clone(), session.clone(), settings, (&self.root, &first)).unwrap());
        let (sync, Channels { targets, condition, checked }) =
            Sync::new(session.clone(), store.clone(), clock, pace());
        let (nudges, nudged) = watch::channel(Nudges::default());
        let task = tokio::spawn(sync.listening(nudged).run());
        let updates = Checker { nudges: nudges.clone(), checked };
        Running { session, store, targets, condition, nudges, updates, state, task }
    }

    /// Name, bytes and time of change of every state file.
    pub fn files(&self) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
        let mut files: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                let name = e.file_name().into_string().unwrap();
                (name, std::fs::read(e.path()).unwrap(), e.metadata().unwrap().modified().unwrap())
            })
            .collect();
        files.sort();
        files
    }
}

impl Running {
    /// Waits until the target is like this.
    pub async fn target(&self, what: &str, like: impl Fn(&Target) -> bool) -> Arc<Target> {
        let mut targets = self.targets.clone();
        let found = async {
            loop {
                if let Some(t) = targets.borrow_and_update().as_ref().filter(|t| like(t)) {
                    return t.clone();
                }
                targets.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(15), found).await {
            Ok(target) => target,
            Err(_) => panic!("no target {what}: {:?}, {:?}", self.targets.borrow(), self.condition.borrow()),
        }
    }

    /// Waits until the app's target is this release and may be installed.
    pub async fn runs(&self, app: AppId, release: Sha256Hex) -> Arc<Target> {
        self.target(&format!("with release {release}"), |t| {
            t.may_install && t.apps.get(&app).is_some_and(|a| a.release.sha256() == release)
        })
        .await
    }

    /// As the supervisor does after a good trial.
    pub async fn commits(&self, app: AppId, release: Sha256Hex) {
        let target = self.runs(app, release).await;
        self.store.begin_trial(&target.apps[&app]).unwrap();
        self.store.commit(&target.apps[&app]).unwrap();
    }

    /// Waits until the condition is like this.
    pub async fn condition(&self, what: &str, like: impl Fn(&Condition) -> bool) -> Condition {
        let mut condition = self.condition.clone();
        let found = async {
            loop {
                let now = condition.borrow_and_update().clone();
                if like(&now) {
                    return now;
                }
                condition.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(15), found).await {
            Ok(condition) => condition,
            Err(_) => panic!("never {what}: {:?}", self.condition.borrow()),
        }
    }

    /// Waits until the newest is refused with this code.
    pub async fn refuses(&self, code: &str) {
        self.condition(&format!("refused with {code}"), |c| c.refusal().is_some_and(|r| r.code == code))
            .await;
    }

    pub async fn offline(&self, code: &str) -> String {
        let is = |c: &Condition| !c.online && c.offline.as_ref().is_some_and(|r| r.code == code);
        self.condition(&format!("offline with {code}"), is).await.offline.unwrap().message
    }

    pub fn release_now(&self, app: AppId) -> Option<Sha256Hex> {
        self.targets.borrow().as_ref()?.apps.get(&app).map(|a| a.release.sha256())
    }
}

pub fn body(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, content_type)], body.into())
        .into_response()
}
