//! What the end-to-end tests stand on: a real cloud, real agents, the real CLI, real git and a real engine, all on
//! loopback, each test with its own.
//!
//! In: the binaries of this workspace (`cargo build --workspace` first). Out: handles that clean up when dropped.
//! Never here: shortcuts into the programs' insides; everything goes through what a user has.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure here is the test's failure")]
#![allow(missing_docs, reason = "test support")]

pub mod cloud;
pub mod device;
pub mod engine;
pub mod gate;
pub mod owner;
pub mod proxy;
pub mod pty;
pub mod repo;
pub mod terminal;
pub mod wire;
pub mod world;

use std::{
    future::Future,
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

/// A binary of this workspace, built by the same profile as this test; `COPAL_AGENT` names another agent.
pub fn binary(name: &str) -> PathBuf {
    if name == "copal-agent"
        && let Some(file) = std::env::var_os("COPAL_AGENT")
    {
        return file.into();
    }
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let file = dir.join(name);
    assert!(file.exists(), "{} is missing: run `cargo build --workspace` first", file.display());
    file
}

/// Waits until `probe` gives something; the bound is generous, since tests do not assert timing.
pub async fn eventually<T, F, Fut>(what: &str, seconds: u64, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) if started.elapsed() > Duration::from_secs(seconds) => {
                panic!("not within {seconds} s: {what}; last seen: {last}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// An HTTP client for loopback.
pub fn http() -> reqwest::Client {
    http_trusting([])
}

/// One that trusts this CA (PEM) alone.
pub fn http_under(ca: &[u8]) -> reqwest::Client {
    http_trusting([reqwest::Certificate::from_pem(ca).unwrap()])
}

fn http_trusting(cas: impl IntoIterator<Item = reqwest::Certificate>) -> reqwest::Client {
    // A second call finds it installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .tls_certs_only(cas)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// The agent as another file: the same program, without the debug information that makes a test build larger than what
/// devices accept as an agent, and with bytes at its end that no loader reads.
pub fn another_agent() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("agent");
    let strip = std::process::Command::new("strip").arg("-o").arg(&out).arg(binary("copal-agent")).status();
    assert!(strip.expect("strip, of the tools that linking needs").success());
    let mut agent = std::fs::read(out).unwrap();
    agent.extend([1; 16]);
    agent
}

/// Both streams of a finished command, for messages.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A word no other test has.
pub fn unique() -> String {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).unwrap();
    hex::encode(bytes)
}
