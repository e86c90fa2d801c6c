//! A running `copal-cloud` with a data folder of its own.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{binary, eventually};

pub const ADMIN: &str = "anna@example.org";
pub const PASSWORD: &str = "correct horse battery staple";

/// A cloud. Killed when dropped; its folder goes with it.
pub struct Cloud {
    pub dir: TempDir,
    child: Option<Child>,
    pub url: String,
    pub token: String,
    /// What devices and the CLI pin; only with a private CA.
    pub pin: Option<String>,
    http: reqwest::Client,
    /// Whether it listens on all addresses, not on loopback alone.
    wide: bool,
    /// How many files it may open.
    files: Option<u64>,
}

impl Cloud {
    /// Plain HTTP, on loopback.
    pub async fn start() -> Self {
        Self::start_as(&[], false).await
    }

    /// Under a private CA of its own, with a certificate for 127.0.0.1 and these other names.
    pub async fn start_private_ca(names: &[&str]) -> Self {
        Self::start_as(&[&["127.0.0.1"], names].concat(), false).await
    }

    /// The same, on all of this machine's addresses; people go by loopback.
    pub async fn start_reachable(names: &[&str]) -> Self {
        Self::start_as(&[&["127.0.0.1"], names].concat(), true).await
    }

    async fn start_as(names: &[&str], wide: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let mut http = crate::http();
        let mut pin = None;
        if !names.is_empty() {
            let mut args = vec!["tls", "init", "--data", path(dir.path())];
            args.extend(names.iter().flat_map(|name| ["--name", name]));
            let said = run(&args, "").await;
            pin = said.lines().map(str::trim).find(|l| l.len() == 44 && l.ends_with('=')).map(str::to_owned);
            assert!(pin.is_some(), "no pin in: {said}");
            http = crate::http_under(&std::fs::read(dir.path().join("tls/ca.crt")).unwrap());
        }
        run(&["admin", "create", "--data", path(dir.path()), "--email", ADMIN, "--password-stdin"], PASSWORD)
            .await;
        let token =
            run(&["token", "create", "--data", path(dir.path()), "--email", ADMIN, "--name", "tests"], "")
                .await;
        let token = token.trim().to_owned();
        let mut cloud = Self { dir, child: None, url: String::new(), token, pin, http, wide, files: None };
        cloud.spawn(0).await;
        cloud
    }

    async fn spawn(&mut self, mut port: u16) {
        let scheme = if self.pin.is_some() { "https" } else { "http" };
        let mut listen = vec!["--listen".to_owned(), format!("127.0.0.1:{port}")];
        if self.wide {
            // It has to be told an address that people can call, and so the port.
            if port == 0 {
                port = std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
            }
            listen[1] = format!("[::]:{port}");
            listen.extend(["--url".to_owned(), format!("{scheme}://127.0.0.1:{port}")]);
        }
        let file = self.dir.path().join("run/listen");
        let _ = std::fs::remove_file(&file);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("cloud.log"))
            .unwrap();
        let mut command = match self.files {
            None => Command::new(binary("copal-cloud")),
            Some(files) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files}:{files}")).arg(binary("copal-cloud"));
                command
            }
        };
        let child = command
            .args(["serve", "--data", path(self.dir.path())])
            .args(&listen)
            .args(self.pin.iter().map(|_| "--tls-private-ca"))
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let log = self.dir.path().join("cloud.log");
        let address = eventually("the cloud listens", 60, || async {
            std::fs::read_to_string(&file)
                .ok()
                .filter(|a| a.contains(':'))
                .ok_or_else(|| std::fs::read_to_string(&log).unwrap_or_default())
        })
        .await;
        let port = address.trim().rsplit_once(':').unwrap().1;
        self.url = format!("{scheme}://127.0.0.1:{port}");
    }

    /// Ends it as a power cut would.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Starts it again on the same port.
    pub async fn restart(&mut self) {
        self.kill().await;
        self.spawn(self.port()).await;
    }

    /// The same, where it may open so many files; as many as the system lets it where none is said.
    pub async fn restart_with_files(&mut self, files: Option<u64>) {
        self.files = files;
        self.restart().await;
    }

    /// Writes a back-up while it runs.
    pub async fn back_up(&self, file: &Path) {
        run(&["backup", "--data", path(self.dir.path()), "--out", path(file)], "").await;
    }

    /// Loses its machine: what was backed up is served from a new folder, at the same address.
    pub async fn come_back_from(&mut self, file: &Path) {
        self.kill().await;
        self.dir = TempDir::new().unwrap();
        run(&["restore", "--data", path(self.dir.path()), "--in", path(file)], "").await;
        self.restart().await;
    }

    /// Host and port it listens on.
    pub fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address().rsplit_once(':').unwrap().1.parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("cloud.log")).unwrap_or_default()
    }

    pub async fn get(&self, route: &str) -> Value {
        let (status, body) = self.try_call("GET", route, None).await;
        assert!(status < 300, "GET {route}: {status} {body}");
        body
    }

    pub async fn call(&self, method: &str, route: &str, body: Value) -> Value {
        let (status, answer) = self.try_call(method, route, Some(body)).await;
        assert!(status < 300, "{method} {route}: {status} {answer}");
        answer
    }

    /// Status and body of whatever it answers.
    pub async fn try_call(&self, method: &str, route: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self
            .http
            .request(method.parse().unwrap(), format!("{}/api/v1{route}", self.url))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Status and answer to raw bytes.
    pub async fn put_bytes(&self, route: &str, body: Vec<u8>) -> (u16, String) {
        let request = self.http.put(format!("{}/api/v1{route}", self.url)).bearer_auth(&self.token);
        let request = request.header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn text(&self, route: &str) -> String {
        let request = self.http.get(format!("{}{route}", self.url)).bearer_auth(&self.token);
        request.send().await.unwrap().text().await.unwrap()
    }
}

pub(crate) fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// Runs an administrative command of the cloud; gives its standard output.
pub async fn run(args: &[&str], stdin: &str) -> String {
    use tokio::io::AsyncWriteExt as _;
    let mut child = Command::new(binary("copal-cloud"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(stdin.as_bytes()).await.unwrap();
    drop(pipe);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "copal-cloud {args:?}: {}", crate::text(&output));
    String::from_utf8(output.stdout).unwrap()
}
