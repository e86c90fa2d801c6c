//! An owner's machine: `copal` with a home of its own.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use copal_protocol::{documents::Root, envelope::Envelope, keys::SigningKey};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{binary, cloud::Cloud, cloud::path, text};

/// The CLI, signed in.
pub struct Owner {
    pub home: TempDir,
}

impl Owner {
    /// Signs in with the cloud's token and makes the owner's keys.
    pub async fn sign_in(cloud: &Cloud) -> Self {
        let owner = Self { home: TempDir::new().unwrap() };
        let mut args = vec!["login", cloud.url.as_str(), "--token-stdin"];
        args.extend(cloud.pin.iter().flat_map(|pin| ["--pin", pin.as_str()]));
        owner.ok_with_input(&args, &cloud.token).await;
        owner.ok(&["keys", "init"]).await;
        owner
    }

    pub async fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(binary("copal"))
            .args(args)
            .env("COPAL_HOME", self.home.path())
            .env("NO_COLOR", "1")
            .env_remove("COPAL_TOKEN")
            .env_remove("COPAL_URL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // A command that reads nothing has closed its end already.
        let _ = pipe.write_all(input.as_bytes()).await;
        drop(pipe);
        child.wait_with_output().await.unwrap()
    }

    pub async fn ok(&self, args: &[&str]) -> String {
        self.ok_with_input(args, "").await
    }

    pub async fn ok_with_input(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        assert!(output.status.success(), "copal {args:?}: {} {}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let out = self.ok(&args).await;
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("copal {args:?} --json: {e}: {out}"))
    }

    /// Makes a fleet for this machine's architecture, with a root of this owner's.
    pub async fn fleet(&self, slug: &str, more: &[&str]) {
        let mut args = vec!["fleet", "create", slug, "--device-type", "generic", "--arch", arch(), "--yes"];
        args.extend_from_slice(more);
        self.ok(&args).await;
    }

    /// Writes a `copal.json` for one device.
    pub async fn device_config(&self, fleet: &str, file: &Path, name: &str) -> PathBuf {
        self.ok(&["device", "config", fleet, "--name", name, "--out", path(file)]).await;
        file.to_owned()
    }
}

impl Owner {
    /// Makes, signs and uploads the next root as an owner with other tools would: `change` is theirs.
    pub async fn next_root(&self, cloud: &Cloud, fleet: &str, change: impl FnOnce(&mut Root)) {
        let newest = cloud.text(&format!("/api/v1/fleets/{fleet}/roots/latest")).await;
        let envelope = Envelope::parse::<Root>(newest.as_bytes()).unwrap();
        let mut root: Root = serde_json::from_slice(envelope.payload()).unwrap();
        root.version += 1;
        change(&mut root);
        let next = Envelope::sign(&root, &[&self.root_key()]).unwrap();
        let (status, body) = cloud.put_bytes(&format!("/fleets/{fleet}/root"), next.to_bytes()).await;
        assert!(status < 300, "{status} {body}");
    }

    /// The owner's root key, out of the file the CLI made.
    fn root_key(&self) -> SigningKey {
        for file in std::fs::read_dir(self.home.path().join("keys/owner")).unwrap().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            if text.contains("role: root") {
                let seed = text.split("\n\n").nth(1).unwrap().lines().next().unwrap();
                return SigningKey::from_seed(&BASE64.decode(seed).unwrap().try_into().unwrap());
            }
        }
        panic!("no root key in {}", self.home.path().display());
    }
}

/// This machine's architecture as OCI spells it.
pub fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}
