//! A small server in memory that keeps what the CLI sends, and a way to run the CLI against it.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State as AxumState,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use copal_protocol::keys::SigningKey;
use serde_json::{Value, json};

pub const TOKEN: &str = "copal_testtoken";
pub const FLEET_ID: &str = "000102030405060708090a0b0c0d0e0f";

#[derive(Default)]
pub struct State {
    /// Method and path → what is answered instead of what the server would.
    pub answers: BTreeMap<String, (u16, String)>,
    pub roots: Vec<Vec<u8>>,
    pub devices: Vec<Value>,
    pub reports: BTreeMap<String, Vec<u8>>,
    /// Everything that came in: method, path, body.
    pub seen: Vec<(String, String)>,
    pub made: bool,
    /// By id: the blob's size, and what of it is here.
    pub uploads: BTreeMap<String, (u64, Vec<u8>)>,
    /// So many pieces are taken by half, and answered as by a server that goes away.
    pub cuts: u32,
    pub host_releases: Vec<Value>,
}

pub type Shared = Arc<Mutex<State>>;

pub fn builder() -> SigningKey {
    SigningKey::from_seed(&[40; 32])
}

pub fn fleet() -> Value {
    json!({
        "slug": "porch", "fleet_id": FLEET_ID, "app_id": "ff0102030405060708090a0b0c0d0e0f",
        "device_type": "generic", "arch": "amd64", "release_mode": "builder", "root_version": 0,
        "devices": { "total": 0, "online": 0, "on_target": 0, "failed": 0 },
        "git_url": "http://127.0.0.1/git/porch.git", "created_at": 1_700_000_000,
        "builder_key": builder().public().to_string(),
        "assign_key": SigningKey::from_seed(&[41; 32]).public().to_string(),
    })
}

pub fn problem(status: u16, code: &str, detail: &str) -> (u16, String) {
    (status, json!({ "status": status, "code": code, "detail": detail }).to_string())
}

async fn answer(AxumState(state): AxumState<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut state = state.lock().unwrap();
    let path = uri.path().trim_start_matches("/api/v1").to_owned();
    let key = format!("{method} {path}");
    state.seen.push((key.clone(), String::from_utf8_lossy(&body).into_owned()));
    let (status, text) = match state.answers.get(&key) {
        Some(answer) => answer.clone(),
        None if path.starts_with("/fleets/porch/uploads") => {
            upload(&mut state, &method, &path, uri.query().unwrap_or_default(), &body)
        }
        None => serve(&mut state, &key, &body),
    };
    let status = StatusCode::from_u16(status).unwrap();
    if status.is_redirection() {
        return (status, [(header::LOCATION, text)]).into_response();
    }
    (status, text).into_response()
}

fn upload(state: &mut State, method: &Method, path: &str, query: &str, body: &Bytes) -> (u16, String) {
    let id = if method == Method::POST {
        let wanted: Value = serde_json::from_slice(body).unwrap();
        let id = wanted["sha256"].as_str().unwrap()[..16].to_owned();
        state.uploads.entry(id.clone()).or_insert((wanted["size"].as_u64().unwrap(), Vec::new()));
        id
    } else {
        path.rsplit('/').next().unwrap().to_owned()
    };
    let cut = method == Method::PATCH && state.cuts > 0;
    let (size, have) = state.uploads.get_mut(&id).unwrap();
    if method == Method::PATCH {
        let offset: usize = query.strip_prefix("offset=").unwrap().parse().unwrap();
        if offset != have.len() {
            return problem(409, "upload_offset", "Go on where it stands.");
        }
        have.extend_from_slice(if cut { &body[..body.len() / 2] } else { body });
    }
    let stands = json!({ "id": id, "offset": have.len(), "size": size, "done": have.len() as u64 == *size });
    if cut {
        state.cuts -= 1;
        return problem(503, "stopping", "The server goes away.");
    }
    (200, stands.to_string())
}

fn serve(state: &mut State, key: &str, body: &Bytes) -> (u16, String) {
    let not_found = || problem(404, "not_found", "There is no such thing.");
    let ok = |value: Value| (200, value.to_string());
    match key {
        "GET /me" => ok(json!({ "email": "anna@example.org", "role": "owner" })),
        "GET /fleets" if state.made => ok(json!({ "items": [fleet()], "next": null })),
        "GET /fleets" => ok(json!({ "items": [], "next": null })),
        "POST /fleets" => {
            state.made = true;
            ok(fleet())
        }
        "GET /fleets/porch" => ok(fleet()),
        "PUT /fleets/porch/root" => {
            state.roots.push(body.to_vec());
            ok(json!({ "version": state.roots.len() }))
        }
        "POST /fleets/porch/enrolment-tokens" => {
            ok(json!({ "id": "abc", "token": "abc.def", "uses": 1, "expires_at": 1_800_000_000 }))
        }
        "GET /fleets/porch/enrolment-tokens" => {
            let token = json!({ "id": "abc", "note": "porch-1", "uses": 2, "created_at": 1_700_000_000, "expires_at": 1_800_000_000 });
            ok(json!({ "items": [token], "next": null }))
        }
        "DELETE /fleets/porch/enrolment-tokens/abc" | "DELETE /fleets/porch" => (204, String::new()),
        "POST /fleets/porch/host-releases" => {
            let made = json!({
                "id": "ab".repeat(32), "line": "agent", "version": "1.2.3", "fleet": "porch", "device_types": [],
                "arch": ["amd64"], "counter": 7, "size": 9, "devices_given": 0, "devices_on": 0, "is_target": false,
                "created_at": 1_700_000_000, "payloads": {}, "signed_by": [], "rollback_floor": 0,
            });
            state.host_releases.push(made.clone());
            ok(made)
        }
        "GET /fleets/porch/host-releases" => ok(json!({ "items": state.host_releases, "next": null })),
        "PUT /fleets/porch/reboot-window" => (200, String::from_utf8(body.to_vec()).unwrap()),
        "GET /fleets/porch/devices" => ok(json!({ "items": state.devices, "next": null })),
        _ => {
            if let Some(version) = key.strip_prefix("GET /fleets/porch/roots/") {
                let index = version.parse::<usize>().unwrap_or(state.roots.len());
                let root = index.checked_sub(1).and_then(|i| state.roots.get(i));
                return root.map_or_else(not_found, |r| (200, String::from_utf8(r.clone()).unwrap()));
            }
            let device = key.strip_prefix("GET /devices/").and_then(|rest| rest.strip_suffix("/report"));
            match device.and_then(|id| state.reports.get(id)) {
                Some(report) => (200, String::from_utf8(report.clone()).unwrap()),
                None => not_found(),
            }
        }
    }
}

/// Runs the server on a thread of its own until the test ends; gives its address.
pub fn start(state: &Shared) -> String {
    let (send, receive) = std::sync::mpsc::channel();
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            // As large as a piece of an upload.
            let limit = axum::extract::DefaultBodyLimit::max(16 << 20);
            let router = Router::new().fallback(answer).layer(limit).with_state(state);
            axum::serve(listener, router).await.unwrap();
        });
    });
    format!("http://{}", receive.recv().unwrap())
}

/// An owner's machine and a server.
pub struct World {
    pub home: tempfile::TempDir,
    pub state: Shared,
    pub url: String,
}

impl World {
    /// Signed in, with keys.
    pub fn new() -> Self {
        let state = Shared::default();
        let url = start(&state);
        let world = Self { home: tempfile::tempdir().unwrap(), state, url };
        world.ok(&["login", &world.url, "--token-stdin"], TOKEN);
        world.ok(&["keys", "init"], "");
        world
    }

    /// With a fleet.
    pub fn with_fleet() -> Self {
        let world = Self::new();
        world.ok(&["fleet", "create", "porch", "--arch", "amd64", "--yes"], "");
        world
    }

    pub fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_copal"))
            .args(args)
            .env_clear()
            .env("COPAL_HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what should fail; gives the exit code and the error.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args, "");
        assert!(!output.status.success(), "{args:?} went well: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub fn answer(&self, key: &str, answer: (u16, String)) {
        self.state.lock().unwrap().answers.insert(key.to_owned(), answer);
    }
}
