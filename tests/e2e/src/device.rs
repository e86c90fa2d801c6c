//! A device: a running `copal-agent` with folders and a container name prefix of its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    binary,
    cloud::path,
    engine::{self, OwnEngine},
    unique,
    wire::Wire,
};

/// An agent. Killed when dropped; its containers, networks and volumes go with it.
pub struct Device {
    pub dir: TempDir,
    pub prefix: String,
    pub docker_host: Option<String>,
    /// More of the environment of its commands.
    pub env: Vec<(String, String)>,
    netns: Option<String>,
    /// What its agent takes for the kernel's id of the boot.
    boot_id: Option<PathBuf>,
    /// A script that makes a mount namespace of its agent's own what it should be.
    pub mounts: Option<String>,
    child: Option<Child>,
}

impl Device {
    /// A device that has a `copal.json` but was never started.
    pub fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            prefix: format!("e2e-{}", unique()),
            docker_host: None,
            env: Vec::new(),
            netns: None,
            boot_id: None,
            mounts: None,
            child: None,
        }
    }

    /// The same, whose agent sees the content of this file as the kernel's id of the boot, as it stands when the agent starts.
    #[must_use]
    pub fn booting_as(mut self, boot_id: PathBuf) -> Self {
        self.boot_id = Some(boot_id);
        self
    }

    /// The same, beside an engine of its own.
    pub fn beside(engine: &OwnEngine) -> Self {
        let mut device = Self::new();
        device.docker_host = Some(engine.host());
        device.netns = Some(engine.netns.clone());
        device
    }

    /// The same, at the far end of a wire. The engine is this machine's, which knows nothing of the wire: images cannot be pulled.
    pub fn behind(wire: &Wire) -> Self {
        let mut device = Self::new();
        device.netns = Some(wire.netns.clone());
        device
    }

    /// Another variable of its agent's environment.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// What its agent says of itself; null before it has said anything.
    pub async fn status(&self) -> serde_json::Value {
        let output = self.command("status").arg("--json").output().await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("copal.json")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn policy_file(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .unwrap();
        let mut command = self.command("run");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().unwrap());
    }

    /// A subcommand with this device's folders.
    pub fn command(&self, word: &str) -> Command {
        // Each word of this becomes the next, so that the agent has the process id of the first.
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        if let Some(netns) = &self.netns {
            words.extend(["nsenter".into(), format!("--net=/run/netns/{netns}").into()]);
        }
        // The kernel's own id of the boot never changes; another one is of this process alone.
        let boot_id = self.boot_id.as_deref();
        let boot_id =
            boot_id.map(|file| format!("mount --bind {} /proc/sys/kernel/random/boot_id", path(file)));
        let mounts: Vec<String> = boot_id.into_iter().chain(self.mounts.clone()).collect();
        if !mounts.is_empty() {
            let script = format!("set -e; {}\nexec \"$@\"", mounts.join("\n"));
            words.extend(["unshare", "--mount", "sh", "-c", &script, "sh"].map(Into::into));
        }
        words.push(binary("copal-agent").into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(word)
            .args(["--state-dir", path(&self.state_dir()), "--run-dir", path(&self.run_dir())])
            .args(["--policy", path(&self.policy_file())])
            .args(["--config", path(&self.config_file()), "--name-prefix", &self.prefix])
            // An agent on trial has to be well for this long.
            .env("COPAL_AGENT_TRIAL_S", "2")
            // A change of the network is undone so soon.
            .env("COPAL_NETWORK_TRIAL", "8")
            // A test that tells a device to restart must not restart this machine.
            .env("COPAL_REBOOT_COMMAND", "/bin/true")
            .env("RUST_LOG", "info,copal_agent=debug")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(host) = &self.docker_host {
            command.args(["--docker-host", host]);
        }
        command
    }

    /// SIGKILL, as a power cut would end it.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// SIGTERM, as systemd would end it.
    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            child.wait().await.unwrap();
        }
    }

    /// Holds the agent still (SIGSTOP), or lets it go on (SIGCONT).
    pub fn hold(&self, still: bool) {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.pid().try_into().unwrap());
        kill(pid, if still { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Bytes this agent's process wrote to disk so far.
    pub fn written_bytes(&self) -> u64 {
        let pid = self.child.as_ref().and_then(Child::id).unwrap();
        let io = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("io")).unwrap();
        io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
    }

    /// Sockets on which the agent's process can be spoken to by somebody it did not speak to first: TCP that listens, UDP that is bound
    /// and not connected. As the kernel shows them: the protocol and the local address.
    pub fn open_ports(&self) -> Vec<String> {
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        let open = std::fs::read_dir(process.join("fd")).unwrap();
        let open = open
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()?.into_os_string().into_string().ok());
        let open: Vec<String> = open.collect();
        let mut found = Vec::new();
        for protocol in ["tcp", "tcp6", "udp", "udp6"] {
            // Without IPv6 there is no such file.
            let table = std::fs::read_to_string(process.join("net").join(protocol)).unwrap_or_default();
            for socket in table.lines().skip(1) {
                let socket: Vec<&str> = socket.split_whitespace().collect();
                let (local, remote, state, inode) = (socket[1], socket[2], socket[3], socket[9]);
                let waits =
                    if protocol.starts_with("tcp") { state == "0A" } else { remote.ends_with(":0000") };
                if waits && open.contains(&format!("socket:[{inode}]")) {
                    found.push(format!("{protocol} {local}"));
                }
            }
        }
        assert!(open.iter().any(|fd| fd.starts_with("socket:")), "its channel is a socket: {open:?}");
        found
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap()
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
        engine::remove_all(&self.prefix, self.docker_host.as_deref());
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- last lines of the agent {}", self.prefix);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
