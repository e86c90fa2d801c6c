//! `copal-agent diagnose` and `support-bundle` as a person runs them: the program, as a process of its own, with the agent away,
//! beside it, and beside one that hangs; with the cloud well, lying and down; with the engine of this machine, and without.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use copal_agent::{
    clock::Clock,
    diagnostics::{self, Deps, Link, door},
    engine::Engine,
    settings::Places,
};
use copal_protocol::{
    diagnosis::{Diagnosis, PROBES, ProbeResult, Verdict},
    ids::Digest,
};
use nix::fcntl::{Flock, FlockArg};

mod support;
use support::{Device, FakeCloud, body, release};

const CONFIG: &[u8] = br#"{"architecture":"any","os":"linux"}"#;

static SCENES: AtomicU32 = AtomicU32::new(0);

struct Scene {
    dir: tempfile::TempDir,
    cloud: FakeCloud,
    device: Device,
    /// Unlike any other scene's: they share the engine.
    prefix: String,
}

impl Scene {
    async fn new() -> Self {
        let cloud = FakeCloud::start().await;
        let device = Device::of(&cloud);
        let prefix = format!("cpprobes{}x{}", std::process::id(), SCENES.fetch_add(1, Ordering::Relaxed));
        let scene = Self { dir: tempfile::tempdir().unwrap(), cloud, device, prefix };
        fs::write(scene.path("copal.json"), serde_json::to_vec(&scene.device.file).unwrap()).unwrap();
        fs::create_dir(scene.path("run")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self) -> Places {
        Places {
            config: Some(self.path("copal.json")),
            state_dir: self.device.dir.path().to_owned(),
            run_dir: self.path("run"),
            docker_host: Some(format!("unix://{}", self.path("engine.sock").display())),
            name_prefix: self.prefix.clone(),
            os_config: self.path("os.json"),
            policy: self.path("policy.toml"),
            max_bytes_month: None,
            spool_bytes: 4 << 20,
            metrics_every_s: 3600,
            log_bytes_service: 4 << 20,
            log_bytes: 32 << 20,
            check_every: Some(0),
            hurry: 1,
            reboot_command: "false".to_owned(),
            leds: "/nowhere".into(),
        }
    }

    /// The program; its exit code and both of its outputs.
    async fn program(&self, words: &[&str]) -> (i32, String, String) {
        let places = self.places();
        let mut command = Command::new(env!("CARGO_BIN_EXE_copal-agent"));
        command.args(words).arg("--config").arg(self.path("copal.json"));
        command.arg("--state-dir").arg(&places.state_dir).arg("--run-dir").arg(&places.run_dir);
        if !words.contains(&"--docker-host") {
            command.arg("--docker-host").arg(places.docker_host.as_deref().unwrap());
        }
        command.arg("--name-prefix").arg(&places.name_prefix).env("COPAL_OS_CONFIG", &places.os_config);
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        command.env("RUST_LOG", "error").stdin(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.output());
        let ended = tokio::time::timeout(Duration::from_secs(240), ended).await;
        let output = ended.unwrap_or_else(|_| panic!("{words:?} did not end")).unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    async fn diagnose(&self, names: &[&str]) -> Vec<ProbeResult> {
        let (code, out, error) = self.program(&[&["diagnose", "--json"], names].concat()).await;
        let diagnosis: Diagnosis = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{error}"));
        assert!(diagnosis.is_sound());
        assert_eq!(code, i32::from(diagnosis.worst() == Verdict::Failed), "{out}{error}");
        diagnosis.probes
    }

    async fn finds(&self, name: &str, verdict: Verdict, word: &str) {
        let results = self.diagnose(&[name]).await;
        assert_eq!(results[0].verdict, verdict, "{results:?}");
        assert!(results[0].detail.contains(word), "{word}: {results:?}");
        assert!(verdict != Verdict::Failed || !results[0].advice.is_empty(), "{results:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_whether_cloud_and_images_can_be_reached() {
    let scene = Scene::new().await;
    // Before the agent ever ran: the cloud is there, and nothing is made on its account.
    scene.finds("cloud", Verdict::Unknown, "a cloud answers").await;
    scene.finds("registry", Verdict::Unknown, "never ran here").await;
    assert_eq!(fs::read_dir(scene.device.dir.path()).unwrap().count(), 0, "no keys were made");
    assert_eq!(scene.cloud.asked("/device/v1/enrol"), 0);

    let mut wanted = release(&scene.cloud.keys, 1);
    for service in wanted.services.values_mut() {
        let image = service.images.get_mut(&copal_agent::settings::platform()).unwrap();
        (image.config_digest, image.config_size) = (Digest::of(CONFIG), CONFIG.len() as u64);
    }
    let hash = scene.cloud.publish(&wanted, &[&scene.cloud.keys.builder]);
    let running = scene.device.start();
    running.condition("online", |c| c.online).await;
    scene.cloud.assign(&scene.cloud.draft(1, &[hash]));
    running.runs(scene.cloud.app(), hash).await;
    drop(running);

    scene.finds("cloud", Verdict::Ok, "holds the newest assignment").await;
    scene.finds("registry", Verdict::Failed, "404").await;
    let blob = Digest::of(CONFIG).to_string();
    scene.cloud.with(|inner| inner.blobs.insert(blob.clone(), CONFIG.to_vec()));
    scene.finds("registry", Verdict::Ok, "is what is signed").await;
    scene.cloud.with(|inner| inner.blobs.insert(blob, b"another".to_vec()));
    scene.finds("registry", Verdict::Failed, "is signed").await;

    scene.cloud.lie(|_| Some(body(200, "text/html", "<html>Sign in to this network</html>")));
    scene.finds("cloud", Verdict::Failed, "sign-in page").await;
    scene.cloud.lie(|path| {
        let refused = r#"{"status":403,"code":"device_revoked","detail":"a person took it out"}"#;
        path.ends_with("/login").then(|| body(403, "application/problem+json", refused))
    });
    scene.finds("cloud", Verdict::Failed, "device_revoked").await;
    scene.cloud.lie(|path| path.ends_with("/state").then(|| body(200, "application/json", "{}")));
    scene.finds("cloud", Verdict::Failed, "is refused").await;
    let mut scene = scene;
    scene.cloud.go_down();
    scene.finds("cloud", Verdict::Failed, "127.0.0.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_an_agent_its_login_is_used_and_one_that_hangs_is_told() {
    let scene = Scene::new().await;
    let running = scene.device.start();
    running.condition("online", |c| c.online).await;
    let file = fs::File::create(scene.device.dir.path().join("lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    scene.finds("cloud", Verdict::Unknown, "does not answer in").await;

    let logins = scene.cloud.asked("/device/v1/login");
    let link = Link::Own { session: running.session.clone(), store: running.store.clone() };
    let engine = Engine::connect(scene.places().docker_host.as_deref());
    let deps = Arc::new(Deps::new(scene.places(), Clock::default(), engine, link, true));
    let person = async {
        while !door::is_open(&scene.places().run_dir) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scene.finds("cloud", Verdict::Ok, "nothing is assigned yet").await;
        let (code, out, error) = scene.program(&["diagnose", "cloud", "cpu"]).await;
        assert_eq!(code, 1, "{out}");
        assert!(error.contains("probe_unknown: there is no check cpu; there are: clock"), "{error}");
    };
    tokio::select! {
        () = door::serve(deps) => unreachable!("it serves for ever"),
        () = person => {}
    }
    assert_eq!(scene.cloud.asked("/device/v1/login"), logins, "no second login");
    drop(lock);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_engine_cloud_or_agent_is_explained_in_words() {
    let mut scene = Scene::new().await;
    scene.cloud.go_down();
    let names = ["proxy", "cloud", "registry", "engine", "agent", "slots", "update", "services"];
    let (code, out, _) = scene.program(&[&["diagnose"], &names[..]].concat()).await;
    assert_eq!(code, 1, "{out}");
    let out =
        out.replace(&scene.cloud.url, "<cloud>").replace(&scene.dir.path().display().to_string(), "<dir>");
    let out = out.replace(&scene.device.dir.path().display().to_string(), "<state>");
    insta::assert_snapshot!(out);

    let (code, out, _) = scene.program(&["diagnose", "--list"]).await;
    assert_eq!((code, out.lines().count()), (0, PROBES.len()), "{out}");
    // Everything at once, on whatever this machine is.
    let results = scene.diagnose(&[]).await;
    for (name, _) in PROBES {
        assert!(results.iter().any(|result| result.name == *name), "{name} says nothing");
    }
}

fn docker(args: &[&str]) -> String {
    let out = Command::new("docker").args(args).stderr(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A container of ours, made by hand.
struct Container(String);

impl Container {
    fn start(scene: &Scene, service: &str, options: &[&str], script: &str) -> Self {
        let usable = std::path::Path::new("/var/run/docker.sock").exists()
            && std::path::Path::new("/bin/busybox").exists();
        assert!(usable, "no container engine, or no /bin/busybox: run tests/setup.sh engine");
        let name = format!("{}-5a5a5a5a-{service}", scene.prefix);
        let made = Self(name.clone());
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
        let image = format!("{name}:test");
        let mut import = Command::new("docker")
            .args(["import", "-", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        import.stdin.take().unwrap().write_all(&tar.into_inner().unwrap()).unwrap();
        assert!(import.wait().unwrap().success());
        let labels =
            [("instance", "cpprobes"), ("app", "5a5a5a5a112233445566778899aabbcc"), ("service", service)];
        let labels = labels.map(|(key, value)| format!("--label=io.copal.{key}={value}"));
        let mut words = vec!["run", "-d", "--name", &name];
        words.extend(labels.iter().map(String::as_str));
        words.extend(options);
        // A health check needs /bin/sh.
        let script = format!("/bin/busybox --install -s /bin; exec {script}");
        words.extend([image.as_str(), "/bin/busybox", "sh", "-c", &script]);
        docker(&words);
        made
    }

    async fn wait(&self, field: &str, value: &str) {
        for _ in 0..240 {
            if docker(&["inspect", "-f", field, &self.0]) == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("{field} of {} never became {value}", self.0);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-fv", &self.0]).output();
        let _ = Command::new("docker").args(["rmi", &format!("{}:test", self.0)]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_killed_for_want_of_memory_is_told() {
    let scene = Scene::new().await;
    // The longest line there is: it is held in memory until it ends.
    let greedy = Container::start(
        &scene,
        "oom",
        &["--memory=16m", "--memory-swap=16m"],
        "/bin/busybox tail -n 1 /dev/zero",
    );
    greedy.wait("{{.State.Status}}", "exited").await;
    let results = scene.diagnose(&["oom", "services", "--docker-host", "unix:///var/run/docker.sock"]).await;
    let of =
        |name: &str| results.iter().find(|r| r.name == name && r.subject.as_deref() == Some("oom")).unwrap();
    assert_eq!(of("oom").verdict, Verdict::Warning, "{results:?}");
    assert!(of("oom").detail.contains("want of memory"), "{results:?}");
    assert_eq!(of("services").verdict, Verdict::Failed, "{results:?}");
    assert!(of("services").detail.contains("ended with code 137"), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_service_is_told_and_bundled_without_its_secret() {
    let scene = Scene::new().await;
    let options = [
        "-e",
        "DB_KEY=hunter2-planted",
        "--health-interval=1s",
        "--health-retries=1",
        "--health-cmd=echo no login with $DB_KEY; exit 3",
    ];
    let service = Container::start(&scene, "web", &options, "sleep 600");
    service.wait("{{.State.Health.Status}}", "unhealthy").await;
    let real = ["--docker-host", "unix:///var/run/docker.sock"];
    let results = scene.diagnose(&[&["services", "engine", "oom"], &real[..]].concat()).await;
    let of = |name: &str| results.iter().find(|r| r.name == name).unwrap();
    let web = of("services");
    assert_eq!((web.subject.as_deref(), web.verdict), (Some("web"), Verdict::Failed), "{results:?}");
    assert!(
        web.detail.contains("its check ended with") && web.detail.contains("no login with (redacted)"),
        "{web:?}"
    );
    assert_ne!(of("engine").verdict, Verdict::Failed, "{results:?}");

    let file = scene.path("bundle.tar.gz");
    let (code, out, error) =
        scene.program(&[&["support-bundle", file.to_str().unwrap()], &real[..]].concat()).await;
    assert_eq!(code, 0, "{out}{error}");
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()).read_to_end(&mut whole).unwrap();
    assert!(whole.len() <= diagnostics::bundle::MOST);
    let text = String::from_utf8_lossy(&whole);
    assert!(text.contains(&format!("containers/{}.json", service.0)) && text.contains("DB_KEY=(redacted)"));
    assert!(!text.contains("hunter2-planted"), "the secret is in the bundle");
    assert!(
        !text.contains("\"secret\"") && !text.contains("token.secret"),
        "copal.json's token is in the bundle"
    );
    let (code, _, error) =
        scene.program(&[&["support-bundle", file.to_str().unwrap()], &real[..]].concat()).await;
    assert!(code == 1 && error.contains("cannot be written"), "a file that is there stays: {error}");
}
