//! What the engine shows, asked by the engine's own client: tests do not go by what the agent says of itself.

use std::process::Command;

use serde_json::Value;

/// The engine's client.
pub fn docker(host: Option<&str>, args: &[&str]) -> String {
    let mut command = Command::new("docker");
    if let Some(host) = host {
        command.args(["-H", host]);
    }
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", crate::text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The `docker inspect` of every container whose name begins with the prefix.
pub fn containers(prefix: &str, host: Option<&str>) -> Vec<Value> {
    let ids = docker(host, &["ps", "-aq", "--no-trunc", "--filter", &format!("name=^/?{prefix}-")]);
    let mut all = Vec::new();
    for id in ids.split_whitespace() {
        let mut command = Command::new("docker");
        if let Some(host) = host {
            command.args(["-H", host]);
        }
        // One that goes away meanwhile is not there.
        let output = command.args(["inspect", id]).output().unwrap();
        if let Ok(Value::Array(one)) = serde_json::from_slice(&output.stdout) {
            all.extend(one);
        }
    }
    all
}

/// The running container of a service, if exactly one runs.
pub fn service(prefix: &str, service: &str, host: Option<&str>) -> Option<Value> {
    let mut found: Vec<Value> = containers(prefix, host)
        .into_iter()
        .filter(|c| c["Config"]["Labels"]["io.copal.service"] == service && c["State"]["Running"] == true)
        .collect();
    (found.len() == 1).then(|| found.remove(0))
}

/// Address of a container on the first of its networks.
pub fn address(container: &Value) -> Option<String> {
    container["NetworkSettings"]["Networks"]
        .as_object()?
        .values()
        .find_map(|n| n["IPAddress"].as_str())
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
}

/// Takes away everything a prefix names.
pub fn remove_all(prefix: &str, host: Option<&str>) {
    for (list, remove) in [
        (vec!["ps", "-aq", "--filter"], vec!["rm", "-fv"]),
        (vec!["network", "ls", "-q", "--filter"], vec!["network", "rm"]),
        (vec!["volume", "ls", "-q", "--filter"], vec!["volume", "rm", "-f"]),
    ] {
        let with_host = |args: &[&str], filter: Option<&str>| {
            let mut command = Command::new("docker");
            if let Some(host) = host {
                command.args(["-H", host]);
            }
            command.args(args).args(filter).output()
        };
        let filter = format!("name={prefix}-");
        let Ok(output) = with_host(&list, Some(&filter)) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ids: Vec<&str> = text.split_whitespace().collect();
        if !ids.is_empty() {
            let args: Vec<&str> = remove.iter().copied().chain(ids).collect();
            let _ = with_host(&args, None);
        }
    }
}

/// An engine of the test's own, in a network namespace of its own: it can be stopped without disturbing others, and has
/// none of the images the cloud's builder made. Needs root, as any engine does.
pub struct OwnEngine {
    dir: tempfile::TempDir,
    pub netns: String,
    child: Option<std::process::Child>,
}

impl OwnEngine {
    pub fn start() -> Self {
        let netns = format!("e2e-{}", crate::unique());
        ip(&["netns", "add", &netns]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        let mut engine = Self { dir: tempfile::TempDir::new().unwrap(), netns, child: None };
        engine.run();
        engine
    }

    /// Its address for `--docker-host`.
    pub fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    /// A listener on the namespace's loopback: who connects there reaches this process.
    pub fn listen(&self) -> std::net::TcpListener {
        let file = std::fs::File::open(format!("/run/netns/{}", self.netns)).unwrap();
        // A socket belongs to the namespace of the thread that makes it; the thread is given up afterwards.
        std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap()
        })
        .join()
        .unwrap()
    }

    /// What a page answers to someone on this machine.
    pub fn page(&self, url: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.netns))
            .args(["curl", "-fsS", "--noproxy", "*", "--max-time", "5", url])
            .output()
            .unwrap();
        assert!(output.status.success(), "{url}: {}", crate::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run(&mut self) {
        let dir = self.dir.path();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        // `ip netns exec` would mount another /sys, without the cgroups the engine needs.
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("dockerd")
            .arg(format!("--data-root={}", dir.join("data").display()))
            .arg(format!("--exec-root={}", dir.join("exec").display()))
            .arg(format!("--pidfile={}", dir.join("pid").display()))
            .arg(format!("--host={}", self.host()))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("util-linux is installed");
        self.child = Some(child);
        for _ in 0..600 {
            let mut ask = Command::new("docker");
            if ask.args(["-H", &self.host(), "version"]).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("no engine after 60 s: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
    }

    /// Ends it as `systemctl stop docker` would: its containers stop.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again.
    pub fn again(&mut self) {
        self.stop();
        self.run();
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.stop();
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
        // Mounts a killed container left would keep the folder.
        let dir = self.dir.path().display().to_string();
        for line in std::fs::read_to_string("/proc/mounts").unwrap_or_default().lines().rev() {
            if let Some(mount) = line.split(' ').nth(1).filter(|m| m.starts_with(&dir)) {
                let _ = Command::new("umount").args(["-l", mount]).output();
            }
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args:?}: {}", crate::text(&output));
}
