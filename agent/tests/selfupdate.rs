//! The agent's own update, with real processes: which binary `copal-agent run` becomes (the fetched ones are scripts that
//! say what they were told), and whole updates against a fake cloud.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::response::IntoResponse as _;
use copal_agent::{
    selfupdate::record::{Build, Record, STARTS, Trial, Verdict},
    state::{RealFs, StateDir},
};
use copal_protocol::{
    documents::{HostPayload, HostTarget, Report},
    ids::Sha256Hex,
};

mod support;
use support::FakeCloud;

const AGENT: &str = env!("CARGO_BIN_EXE_copal-agent");
const SAYS: &str = "#!/bin/sh\necho \"$COPAL_AGENT_ROLE of $COPAL_AGENT_BASE with $*\"\n";

struct Device {
    dir: tempfile::TempDir,
}

impl Device {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("agent")).unwrap();
        Self { dir }
    }

    fn state(&self) -> StateDir {
        StateDir::open(self.dir.path(), Arc::new(RealFs)).unwrap()
    }

    fn record(&self) -> Record {
        self.state().load("agent-update").unwrap().unwrap_or_default()
    }

    fn keep(&self, record: &Record) {
        self.state().save("agent-update", record).unwrap();
    }

    /// Puts a binary where a fetched one is.
    fn fetched(&self, content: &str, version: &str) -> Build {
        let file = Sha256Hex::of(content.as_bytes());
        let path = self.path(file);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Build { release: file, retry: 0, file, version: version.parse().unwrap() }
    }

    fn path(&self, file: Sha256Hex) -> std::path::PathBuf {
        self.dir.path().join("agent").join(file.to_string())
    }

    /// Without a `copal.json` the installed one ends at once with 78, which tells it apart.
    fn run(&self) -> Output {
        let nothing = Path::new("/nonexistent/copal.json");
        Command::new(AGENT)
            .args(["run", "--state-dir"])
            .arg(self.dir.path())
            .arg("--run-dir")
            .arg(self.dir.path().join("run"))
            .arg("--config")
            .arg(nothing)
            .env_remove("COPAL_AGENT_ROLE")
            .output()
            .unwrap()
    }
}

fn on_trial(build: Build) -> Record {
    let trial = Trial { build, starts: 0, had_cloud: true, had_engine: true, verdict: None };
    Record { trial: Some(trial), ..Record::default() }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_trial_takes_the_place_of_the_installed_one_and_is_counted_first() {
    let device = Device::new();
    device.keep(&on_trial(device.fetched(SAYS, "9.0.0")));
    for start in 1..=STARTS {
        let said = said(&device.run());
        let version = env!("CARGO_PKG_VERSION");
        assert!(said.starts_with(&format!("trial of {version} with run --state-dir")), "{said}");
        assert_eq!(device.record().trial.unwrap().starts, start);
    }
    let output = device.run();
    assert_eq!(output.status.code(), Some(78), "the installed one runs again");
    let record = device.record();
    assert_eq!(record.trial, None);
    assert_eq!(record.parked.unwrap().verdict.code, "agent_no_verdict");
}

#[test]
fn a_bad_trial_gives_way_to_the_committed_one() {
    let device = Device::new();
    let good = device.fetched(SAYS, "8.0.0");
    let mut record = on_trial(good);
    record.commit(env!("CARGO_PKG_VERSION").parse().unwrap());
    let bad = device.fetched("#!/bin/sh\necho bad\n", "9.0.0");
    record.trial = on_trial(bad).trial;
    let verdict = Verdict { code: "agent_unhealthy".to_owned(), message: String::new(), again_after: None };
    record.trial.as_mut().unwrap().verdict = Some(verdict);
    device.keep(&record);
    for _ in 0..2 {
        assert!(said(&device.run()).starts_with("committed of "));
    }
}

#[test]
fn what_is_not_the_signed_file_or_no_program_is_never_started() {
    for damage in ["changed", "missing", "not a program"] {
        let device = Device::new();
        let content = if damage == "not a program" { "\x7fELF nonsense" } else { SAYS };
        let build = device.fetched(content, "9.0.0");
        match damage {
            "changed" => fs::write(device.path(build.file), "#!/bin/sh\necho evil\n").unwrap(),
            "missing" => fs::remove_file(device.path(build.file)).unwrap(),
            _ => {}
        }
        device.keep(&on_trial(build));
        let output = device.run();
        assert_eq!((output.status.code(), said(&output).as_str()), (Some(78), ""), "{damage}");
        assert_eq!(device.record().parked.unwrap().verdict.code, "agent_exec", "{damage}");
    }
}

#[test]
fn on_a_disk_that_takes_no_writes_the_committed_one_runs_and_no_trial_does() {
    let device = Device::new();
    let mut record = on_trial(device.fetched(SAYS, "8.0.0"));
    record.commit(env!("CARGO_PKG_VERSION").parse().unwrap());
    record.trial = on_trial(device.fetched("#!/bin/sh\necho uncounted\n", "9.0.0")).trial;
    device.keep(&record);
    // Writes go to a temporary file first; where a folder has that name, they fail, for root as well.
    for copy in ["a", "b"] {
        fs::create_dir(device.dir.path().join(format!("agent-update.{copy}.tmp"))).unwrap();
    }
    assert!(said(&device.run()).starts_with("committed of "));
    let lock = device.dir.path().join("lock");
    let _ = fs::remove_file(&lock);
    fs::create_dir(&lock).unwrap();
    assert!(said(&device.run()).starts_with("committed of "), "without a lock file, too");
}

#[test]
fn a_damaged_committed_one_or_record_leaves_the_installed_one() {
    let device = Device::new();
    let build = device.fetched(SAYS, "9.0.0");
    let mut record = on_trial(build.clone());
    record.commit(env!("CARGO_PKG_VERSION").parse().unwrap());
    device.keep(&record);
    fs::write(device.path(build.file), "").unwrap();
    assert_eq!(device.run().status.code(), Some(78));
    for copy in ["a", "b"] {
        fs::write(device.dir.path().join(format!("agent-update.{copy}")), "torn").unwrap();
    }
    assert_eq!(device.run().status.code(), Some(78));
}

/// A device whose agent is started again whenever it ends, as systemd does.
struct Supervised {
    cloud: FakeCloud,
    device: Device,
    stop: Arc<AtomicBool>,
    keeper: Option<std::thread::JoinHandle<()>>,
    pid: Arc<AtomicU32>,
    starts: Arc<AtomicU32>,
}

impl Supervised {
    async fn start() -> Self {
        let cloud = FakeCloud::start().await;
        let device = Device { dir: tempfile::tempdir().unwrap() };
        let file = support::Device::of(&cloud).file;
        fs::write(device.dir.path().join("copal.json"), serde_json::to_vec(&file).unwrap()).unwrap();
        let (stop, pid, starts) = (Arc::default(), Arc::default(), Arc::default());
        let keeper = std::thread::spawn({
            let (stop, pid, starts) = (Arc::clone(&stop), Arc::clone(&pid), Arc::clone(&starts));
            let dir = device.dir.path().to_owned();
            move || keep_up(&dir, &stop, &pid, &starts)
        });
        Self { cloud, device, stop, keeper: Some(keeper), pid, starts }
    }

    /// Publishes an agent and assigns it; what names it.
    fn deploy(&self, seq: u64, counter: u64, binary: &[u8]) -> Sha256Hex {
        let keys = &self.cloud.keys;
        let mut release = keys.host_release(counter, binary);
        let file = HostPayload { index: None, ..release.payloads.remove("rootfs").unwrap() };
        self.cloud.with(|i| i.blobs.insert(file.sha256.to_string(), binary.to_vec()));
        release.payloads.insert("agent".parse().unwrap(), file);
        release.compat.device_types.clear();
        release.compat.arch = [copal_agent::settings::arch().to_owned()].into();
        let sha256 = self.cloud.publish(&release, &[&keys.host]);
        let mut assignment = self.cloud.draft(seq, &[]);
        assignment.agent = Some(HostTarget { sha256, retry: 0 });
        self.cloud.assign(&assignment);
        sha256
    }

    /// Waits for a report like this.
    async fn says(&self, what: &str, like: impl Fn(&Report) -> bool) -> Report {
        for _ in 0..600 {
            let reports = self.cloud.with(|i| i.reports.clone());
            let found =
                reports.iter().map(|e| serde_json::from_slice::<Report>(e.payload()).unwrap()).rfind(&like);
            if let Some(found) = found {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never {what}: {}", fs::read_to_string(self.device.dir.path().join("log")).unwrap());
    }

    async fn joined(&self) {
        self.says("a first word", |_| true).await;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Ok(pid) = i32::try_from(self.pid.load(Ordering::SeqCst)) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        self.keeper.take().unwrap().join().unwrap();
    }
}

fn keep_up(dir: &Path, stop: &AtomicBool, pid: &AtomicU32, starts: &AtomicU32) {
    while !stop.load(Ordering::SeqCst) {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut child = Command::new(AGENT)
            .arg("run")
            .args(["--config".as_ref(), dir.join("copal.json").as_os_str()])
            .args(["--state-dir".as_ref(), dir.as_os_str()])
            .args(["--run-dir".as_ref(), dir.join("run").as_os_str()])
            .args(["--name-prefix", "selfupdate"])
            .env("COPAL_AGENT_TRIAL_S", "1")
            .env_remove("COPAL_AGENT_ROLE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        starts.fetch_add(1, Ordering::SeqCst);
        pid.store(child.id(), Ordering::SeqCst);
        child.wait().unwrap();
    }
}

/// This agent, with bytes at its end that no loader reads: another file, the same program. Without the debug information, with
/// which a test build may be larger than what is accepted as an agent.
fn another(n: u8) -> Vec<u8> {
    static STRIPPED: OnceLock<Vec<u8>> = OnceLock::new();
    let stripped = STRIPPED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("agent");
        let strip = Command::new("strip").arg("-o").arg(&out).arg(AGENT).status();
        assert!(strip.expect("strip, of the tools that linking needs").success());
        fs::read(out).unwrap()
    });
    let mut binary = stripped.clone();
    binary.extend([n; 16]);
    binary
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_updates_itself_in_the_same_process_and_stays_updated() {
    let device = Supervised::start().await;
    device.joined().await;
    let release = device.deploy(2, 2, &another(1));
    let committed = |r: &Report| {
        let agent = r.agent.as_ref().unwrap();
        agent.release == Some(release) && agent.reason.is_none() && r.reason.is_none()
    };
    device.says("committed", committed).await;
    assert_eq!(device.starts.load(Ordering::SeqCst), 1, "nobody had to start it again");
    let record = device.device.record();
    assert_eq!(record.committed.unwrap().release, release);
    let exe = fs::read_link(format!("/proc/{}/exe", device.pid.load(Ordering::SeqCst))).unwrap();
    assert!(exe.starts_with(device.device.dir.path().join("agent")), "{exe:?}");
    // A second one takes the first one's place, and the first one's file goes.
    let release = device.deploy(3, 3, &another(2));
    device.says("committed again", |r| r.agent.as_ref().unwrap().release == Some(release)).await;
    let files = fs::read_dir(device.device.dir.path().join("agent")).unwrap().count();
    assert_eq!(files, 1, "only what runs is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_at_once_gives_way_to_the_one_before_and_is_not_tried_again() {
    let device = Supervised::start().await;
    device.joined().await;
    let release = device.deploy(2, 2, b"#!/bin/sh\nexit 1\n");
    let undone = |r: &Report| r.agent.as_ref().unwrap().failed == Some(release);
    let report = device.says("undone", undone).await;
    let reason = report.agent.unwrap().reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.release), ("agent_no_verdict", Some(release)));
    let starts = device.starts.load(Ordering::SeqCst);
    assert_eq!(starts, STARTS + 1, "one more for each start that was counted");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(device.starts.load(Ordering::SeqCst), starts);
    // Another release is another matter.
    let release = device.deploy(3, 3, &another(1));
    device.says("committed", |r| r.agent.as_ref().unwrap().release == Some(release)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_reach_the_cloud_is_undone_and_due_again_later() {
    let device = Supervised::start().await;
    device.joined().await;
    // On trial it hears nothing but refusals.
    let folder = device.device.dir.path().join("agent");
    let wanted = another(1);
    device.cloud.lie(move |path| {
        let tried = fs::read_dir(&folder).ok()?.flatten().any(|e| e.path().extension().is_none());
        let answer = || (axum::http::StatusCode::SERVICE_UNAVAILABLE, "").into_response();
        (tried && !path.contains("/blobs/")).then(answer)
    });
    let release = device.deploy(2, 2, &wanted);
    for _ in 0..600 {
        if device.device.record().parked.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    device.cloud.honest();
    let parked = device.device.record().parked.unwrap();
    assert_eq!((parked.build.release, parked.verdict.code.as_str()), (release, "agent_cloud_unreachable"));
    assert!(parked.verdict.again_after.is_some());
    let waiting = |r: &Report| {
        r.agent.as_ref().unwrap().reason.as_ref().is_some_and(|r| r.code == "agent_cloud_unreachable")
    };
    device.says("waiting", waiting).await;
    assert_eq!(device.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_the_host_key_did_not_sign_are_never_started() {
    let device = Supervised::start().await;
    device.joined().await;
    device.cloud.lie(|path| {
        path.contains("/device/v1/blobs/").then(|| "#!/bin/sh\ntouch /tmp/copal-evil\n".into_response())
    });
    device.deploy(2, 2, &another(1));
    let corrupt =
        |r: &Report| r.agent.as_ref().unwrap().reason.as_ref().is_some_and(|r| r.code == "agent_corrupt");
    device.says("corrupt", corrupt).await;
    assert_eq!(device.device.record().trial, None);
    // Signed by the builder instead of the host's key: not even fetched.
    let keys = &device.cloud.keys;
    let mut release = keys.host_release(5, b"x");
    let file = HostPayload { index: None, ..release.payloads.remove("rootfs").unwrap() };
    release.payloads.insert("agent".parse().unwrap(), file);
    release.compat.device_types.clear();
    release.compat.arch = [copal_agent::settings::arch().to_owned()].into();
    let sha256 = device.cloud.publish(&release, &[&keys.builder]);
    let mut assignment = device.cloud.draft(3, &[]);
    assignment.agent = Some(HostTarget { sha256, retry: 0 });
    device.cloud.assign(&assignment);
    device.says("refused", |r| r.reason.as_ref().is_some_and(|r| r.code == "E_SIG_WRONG_ROLE")).await;
}
