//! The program itself, against a fake cloud and the engine of this machine: enrols, verifies, pulls, runs, reports;
//! started again without a cloud, it goes on. Without an engine or a static busybox the test says so and does nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use copal_protocol::{
    documents::{ImageRef, Layer, Release, Report, ServiceState},
    ids::Digest,
    testing::sign,
    verify,
};
use serde_json::json;

mod support;
use support::{FakeCloud, release};

const BUSYBOX: &str = "/bin/busybox";

struct Program {
    dir: tempfile::TempDir,
    prefix: String,
    child: Option<Child>,
}

impl Program {
    fn of(cloud: &FakeCloud) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = support::Device::of(cloud).file;
        std::fs::write(dir.path().join("copal.json"), serde_json::to_vec(&file).unwrap()).unwrap();
        let prefix = format!("whole-{}", std::process::id());
        Self { dir, prefix, child: None }
    }

    fn command(&self, word: &str) -> Command {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_copal-agent"));
        command.arg(word).arg("--config").arg(at("copal.json")).arg("--state-dir").arg(at("state"));
        command.arg("--run-dir").arg(at("run")).args(["--name-prefix", &self.prefix]);
        command
    }

    fn start(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        self.child = Some(self.command("run").stdin(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn containers(&self) -> Vec<String> {
        let out = Command::new("docker")
            .args(["ps", "-aq", "--no-trunc", "--filter", &format!("name=^{}-", self.prefix)])
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
        for id in self.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &id]).output();
        }
        for kind in ["network", "volume"] {
            let filter = format!("name={}-", self.prefix);
            let out = Command::new("docker").args([kind, "ls", "-q", "--filter", &filter]).output().unwrap();
            for id in String::from_utf8(out.stdout).unwrap().lines() {
                let _ = Command::new("docker").args([kind, "rm", id]).output();
            }
        }
        let instance = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        if let Some(at) = instance.find("instance=\"") {
            let id = &instance[at + 10..at + 26];
            let out = Command::new("docker")
                .args(["images", "--format", "{{.Repository}}:{{.Tag}}"])
                .output()
                .unwrap();
            for name in String::from_utf8(out.stdout).unwrap().lines().filter(|n| n.contains(id)) {
                let _ = Command::new("docker").args(["rmi", name]).output();
            }
        }
    }
}

fn busybox_image(cloud: &FakeCloud) -> ImageRef {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name(BUSYBOX, "busybox").unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let stored = gz.finish().unwrap();
    let config = json!({
        "architecture": copal_agent::settings::arch(), "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sleep", "1000"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]},
    })
    .to_string()
    .into_bytes();
    let image = ImageRef {
        repo: "demo/web".to_owned(),
        manifest_digest: Digest::of(b"the registry's own"),
        config_digest: Digest::of(&config),
        config_size: config.len() as u64,
        size: (config.len() + stored.len()) as u64,
        layers: vec![Layer {
            digest: Digest::of(&stored),
            size: stored.len() as u64,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            diff_id: Digest::of(&tar),
        }],
    };
    cloud.with(|i| {
        i.blobs.insert(image.config_digest.to_string(), config);
        i.blobs.insert(image.layers[0].digest.to_string(), stored);
    });
    image
}

fn with_image(cloud: &FakeCloud, counter: u64, image: &ImageRef) -> Release {
    let mut made = release(&cloud.keys, counter);
    for service in made.services.values_mut() {
        service.images = [(copal_agent::settings::platform(), image.clone())].into();
        service.spec.labels.insert("io.copal.update.healthy-after".into(), "1s".into());
        service.spec.stop_grace_period_ms = Some(100);
    }
    made
}

async fn report(cloud: &FakeCloud, what: &str, like: impl Fn(&Report) -> bool) -> Report {
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let (newest, key) = cloud.with(|i| (i.reports.last().cloned(), i.device_key));
        if let (Some(envelope), Some(key)) = (newest, key) {
            let report = verify::signed_by::<Report>(&key, cloud.keys.fleet_id, &envelope).unwrap();
            if like(&report) {
                return report.into_inner();
            }
            assert!(tokio::time::Instant::now() < until, "no report {what}: {report:?}");
        }
        assert!(tokio::time::Instant::now() < until, "no report at all");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_enrols_runs_reports_and_goes_on_without_its_cloud() {
    let usable = Path::new("/var/run/docker.sock").exists() && Path::new(BUSYBOX).exists();
    assert!(usable, "no container engine, or no static {BUSYBOX}: run tests/setup.sh engine");
    let mut cloud = FakeCloud::start().await;
    let mut program = Program::of(&cloud);
    program.start();
    report(&cloud, "waiting", |r| r.reason.as_ref().is_some_and(|r| r.code == "no_assignment")).await;

    let image = busybox_image(&cloud);
    let hash = cloud.publish(&with_image(&cloud, 10, &image), &[&cloud.keys.builder]);
    cloud.assign(&cloud.draft(1, &[hash]));
    let told = report(&cloud, "on target", |r| r.seq_applied == 1 && r.reason.is_none()).await;
    let service = &told.running[&cloud.app()]["web"];
    assert_eq!(service.state, ServiceState::Running);
    assert_eq!(service.config_digest, Some(image.config_digest));
    assert_eq!(told.committed[&cloud.app()], hash);
    let before = program.containers();
    assert_eq!(before.len(), 1);

    // A release signed by the wrong role: told, and the container stays the very same.
    let bad = sign(&with_image(&cloud, 11, &image), &[&cloud.keys.assign]);
    let bad_hash = bad.payload_sha256();
    cloud.with(|i| i.releases.insert(bad_hash, bad));
    cloud.assign(&cloud.draft(2, &[bad_hash]));
    let told =
        report(&cloud, "refused", |r| r.reason.as_ref().is_some_and(|r| r.code == "E_SIG_WRONG_ROLE")).await;
    assert_eq!((told.seq_accepted, told.seq_applied), (2, 1));
    assert_eq!(program.containers(), before);

    // Status, for programs and people.
    let out = program.command("status").arg("--json").output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(status["reason"]["code"], "E_SIG_WRONG_ROLE");
    assert_eq!(status["agent_running"], true);
    let text = String::from_utf8(program.command("status").output().unwrap().stdout).unwrap();
    assert!(text.contains("E_SIG_WRONG_ROLE") && text.contains("running"), "{text}");

    // A second agent over the same state is turned away.
    let second = program.command("run").output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another"));

    // The cloud goes, the agent is killed, the container too: it comes back from what is stored.
    cloud.go_down();
    program.kill();
    assert!(Command::new("docker").args(["rm", "-f", &before[0]]).output().unwrap().status.success());
    program.start();
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let now = program.containers();
        if now.len() == 1 && now != before {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "the container did not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
