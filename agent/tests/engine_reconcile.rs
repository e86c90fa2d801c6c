//! The supervisor on the container engine of this machine. Without an engine (or a static busybox to make images of) these
//! tests say so and do nothing. Everything they make has a prefix of its own, and goes with the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_agent::{
    apply::{
        ports::{ApplyError, Images, Ledger, ProgressSink, StateError},
        status::AgentStatus,
    },
    engine::{Engine, EngineApi as _, ImageId},
    supervisor::{
        self, Deps, SupervisorSettings,
        asks::{Ask, Asked},
        holds::Holds,
    },
    target::model::{AppTarget, Secret, Target},
};
use copal_protocol::{
    documents::{ImageRef, Reason, Release},
    envelope::Envelope,
    ids::{AppId, Digest, Name, Sha256Hex},
    keys::SigningKey,
    verify,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

const APP: &str = "5a5a5a5a112233445566778899aabbcc";

fn docker(args: &[&str]) -> String {
    let out = Command::new("docker").args(args).stderr(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn try_docker(args: &[&str]) {
    let _ = Command::new("docker").args(args).output();
}

/// An image of nothing but busybox, unlike that of any other salt; gives its id.
fn image(prefix: &str, salt: &str) -> Digest {
    let name = format!("{prefix}:{salt}");
    let made = Command::new("docker").args(["image", "inspect", "-f", "{{.Id}}", &name]).output().unwrap();
    if made.status.success() {
        return String::from_utf8(made.stdout).unwrap().trim().parse().unwrap();
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
    let recipe = format!(
        "FROM scratch\nCOPY bin /bin\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\nEXPOSE 80 9000\n\
         VOLUME /var/lib/thing\nLABEL cptest={prefix} salt={salt}\nCMD [\"sleep\", \"86400\"]\n"
    );
    let mut header = tar::Header::new_gnu();
    header.set_size(recipe.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "Dockerfile", recipe.as_bytes()).unwrap();
    let context = tar.into_inner().unwrap();
    let mut build = Command::new("docker")
        // Without the cache: what it names another test may remove at this moment.
        .args(["build", "-q", "--no-cache", "-t", &name, "-"])
        .env("DOCKER_BUILDKIT", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    build.stdin.take().unwrap().write_all(&context).unwrap();
    let out = build.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    docker(&["image", "inspect", "-f", "{{.Id}}", &name]).parse().unwrap()
}

/// Images that are already here, and a ledger in memory.
#[derive(Clone, Default)]
struct Durable {
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    committed: BTreeMap<AppId, AppTarget>,
    trial: BTreeMap<AppId, Sha256Hex>,
    parked: BTreeMap<AppId, (Sha256Hex, Reason)>,
}

impl Durable {
    fn book<T>(&self, f: impl FnOnce(&mut Book) -> T) -> T {
        f(&mut self.book.lock().unwrap())
    }
}

impl Images for Durable {
    fn ensure<'a>(
        &'a self,
        _: AppId,
        _: &'a Name,
        image: &'a ImageRef,
        _: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<ImageId, ApplyError>> {
        futures_util::future::ready(Ok(ImageId(image.config_digest.to_string()))).boxed()
    }

    fn present<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>, ApplyError>> {
        futures_util::future::ready(Ok(Some(ImageId(image.config_digest.to_string())))).boxed()
    }

    fn release<'a>(&'a self, _: &'a ImageId) -> BoxFuture<'a, Result<(), ApplyError>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn retain<'a>(&'a self, _: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), ApplyError>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl Ledger for Durable {
    fn committed(&self, app: AppId) -> Option<AppTarget> {
        self.book(|b| b.committed.get(&app).cloned())
    }
    fn commit(&self, target: &AppTarget) -> Result<(), StateError> {
        self.book(|b| {
            b.committed.insert(target.app_id, target.clone());
            b.trial.remove(&target.app_id);
            b.parked.remove(&target.app_id);
        });
        Ok(())
    }
    fn trial(&self, app: AppId) -> Option<Sha256Hex> {
        self.book(|b| b.trial.get(&app).copied())
    }
    fn begin_trial(&self, target: &AppTarget) -> Result<(), StateError> {
        self.book(|b| b.trial.insert(target.app_id, target.key()));
        Ok(())
    }
    fn park(&self, app: AppId, key: Sha256Hex, reason: &Reason) -> Result<(), StateError> {
        self.book(|b| {
            b.trial.remove(&app);
            b.parked.insert(app, (key, reason.clone()));
        });
        Ok(())
    }
    fn parked(&self, app: AppId) -> Option<(Sha256Hex, Reason)> {
        self.book(|b| b.parked.get(&app).cloned())
    }
    fn apps(&self) -> Vec<AppId> {
        self.book(|b| b.committed.keys().copied().collect())
    }
    fn drop_app(&self, app: AppId) -> Result<(), StateError> {
        self.book(|b| drop(b.committed.remove(&app)));
        Ok(())
    }
}

struct Device {
    prefix: String,
    durable: Durable,
    run_dir: tempfile::TempDir,
    targets: watch::Sender<Option<Arc<Target>>>,
    status: watch::Receiver<AgentStatus>,
    holds: Holds,
    asking: mpsc::Sender<Asked>,
    agent: tokio::task::JoinHandle<()>,
    seq: u64,
}

impl Device {
    fn new(test: &str) -> Self {
        let usable = Path::new("/var/run/docker.sock").exists() && Path::new("/bin/busybox").exists();
        assert!(usable, "no container engine, or no /bin/busybox: run tests/setup.sh engine");
        let prefix = format!("cptest-{test}-{}", std::process::id());
        let (durable, run_dir) = (Durable::default(), tempfile::tempdir().unwrap());
        let holds = Holds::in_memory();
        let (targets, status, asking, agent) = boot(&prefix, &durable, run_dir.path(), None, &holds);
        Self { prefix, durable, run_dir, targets, status, holds, asking, agent, seq: 0 }
    }

    fn set(&mut self, app: AppTarget) {
        self.seq += 1;
        let apps = BTreeMap::from([(app.app_id, app)]);
        self.targets.send_replace(Some(Arc::new(Target {
            order: (1, self.seq),
            apps,
            may_install: true,
            ..Target::default()
        })));
    }

    async fn restart(&mut self) {
        self.agent.abort();
        let _ = (&mut self.agent).await;
        let target = self.targets.borrow().clone();
        (self.targets, self.status, self.asking, self.agent) =
            boot(&self.prefix, &self.durable, self.run_dir.path(), target, &self.holds);
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1200 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}; {:?}; {:#?}", self.containers(), self.status.borrow());
    }

    async fn ask(&self, what: Ask) -> Result<String, Reason> {
        let (answer, heard) = oneshot::channel();
        self.asking.send(Asked { what, answer }).await.unwrap();
        heard.await.unwrap()
    }

    async fn applied(&self) {
        self.until("applied", |d| d.status.borrow().applied == Some((1, d.seq))).await;
    }

    fn code(&self) -> String {
        self.status.borrow().telling().map(|r| r.code.clone()).unwrap_or_default()
    }

    fn name(&self, what: &str) -> String {
        format!("{}-5a5a5a5a-{what}", self.prefix)
    }

    fn inspect(&self, service: &str, format: &str) -> String {
        docker(&["inspect", "-f", format, &self.name(service)])
    }

    fn containers(&self) -> Vec<String> {
        let filter = format!("label=io.copal.instance={}", self.prefix);
        let mut all: Vec<String> =
            docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.State}}"])
                .lines()
                .map(|line| line.replace(&self.name(""), ""))
                .collect();
        all.sort();
        all
    }

    /// What tells a restart or a new container from none.
    fn lives(&self) -> String {
        let filter = format!("label=io.copal.instance={}", self.prefix);
        let ids = docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]);
        let mut args =
            vec!["inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.RestartCount}} {{.State.Status}}"];
        args.extend(ids.lines());
        docker(&args)
    }

    fn app(&self, services: &Value, rest: &Value) -> AppTarget {
        let services: serde_json::Map<_, _> = services
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, pair)| {
                let digest = image(&self.prefix, pair[0].as_str().unwrap());
                let image = json!({"repo": "f/s", "manifest_digest": digest, "config_digest": digest,
                    "config_size": 1, "size": 1, "layers": []});
                (name.clone(), json!({"spec": pair[1], "images": {"linux/amd64": image}}))
            })
            .collect();
        let mut release = json!({"spec": 1, "fleet_id": APP, "kind": "app", "app_id": APP, "counter": 1,
            "version": "1.0.0", "created_at": 1, "services": services});
        release.as_object_mut().unwrap().extend(rest.as_object().cloned().unwrap_or_default());
        let release: Release = serde_json::from_value(release).unwrap();
        let key = SigningKey::from_seed(&[9; 32]);
        let envelope = Envelope::sign(&release, &[&key]).unwrap();
        let release = verify::signed_by::<Release>(&key.public(), APP.parse().unwrap(), &envelope).unwrap();
        AppTarget {
            app_id: APP.parse().unwrap(),
            release: Arc::new(release),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            retry: 0,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.agent.abort();
        let filter = format!("label=io.copal.instance={}", self.prefix);
        for (list, remove) in [
            // By the image's label, so that the foreign ones of these tests go too.
            (vec!["ps", "-aq", "--filter", &format!("label=cptest={}", self.prefix)], vec!["rm", "-fv"]),
            (vec!["network", "ls", "-q", "--filter", &filter], vec!["network", "rm"]),
            (vec!["volume", "ls", "-q", "--filter", &filter], vec!["volume", "rm"]),
            (vec!["images", "--filter", &format!("label=cptest={}", self.prefix), "-q"], vec!["rmi"]),
        ] {
            let Ok(out) = Command::new("docker").args(list).output() else { continue };
            let ids = String::from_utf8_lossy(&out.stdout).into_owned();
            let ids: BTreeSet<&str> = ids.lines().collect();
            if !ids.is_empty() {
                try_docker(&remove.into_iter().chain(ids).collect::<Vec<_>>());
            }
        }
    }
}

type Life = (
    watch::Sender<Option<Arc<Target>>>,
    watch::Receiver<AgentStatus>,
    mpsc::Sender<Asked>,
    tokio::task::JoinHandle<()>,
);

fn boot(prefix: &str, durable: &Durable, run_dir: &Path, target: Option<Arc<Target>>, holds: &Holds) -> Life {
    let (targets, wants) = watch::channel(target);
    let (tells, status) = watch::channel(AgentStatus::default());
    let deps = Deps {
        engine: Arc::new(Engine::connect(None)),
        images: Arc::new(durable.clone()),
        ledger: Arc::new(durable.clone()),
        settings: SupervisorSettings {
            instance: prefix.to_owned(),
            prefix: prefix.to_owned(),
            hash_key: [1; 32],
            run_dir: run_dir.to_owned(),
            platform: "linux/amd64".into(),
            device_id: "d".into(),
            device_type: "generic".into(),
            healthy_after: Duration::from_millis(1500),
        },
        holds: holds.clone(),
        notes: copal_agent::spool::Notes::default(),
    };
    let (asking, asks) = mpsc::channel(8);
    (targets, status, asking, tokio::spawn(supervisor::run(deps, wants, tells, asks)))
}

/// Quick to stop: the first process ignores nothing.
fn quick(script: &str) -> Value {
    json!({"command": ["sh", "-c", format!("trap 'exit 0' TERM; {script}; sleep 86400 & wait")]})
}

fn merged(mut a: Value, b: &Value) -> Value {
    a.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
    a
}

/// What engines default, reorder or drop, all at once.
fn awkward() -> Value {
    merged(
        quick("true"),
        &json!({
            "ports": [{"target": 9000, "protocol": "tcp"}, {"target": 80, "protocol": "tcp", "host_ip": "127.0.0.1"}],
            "expose": ["80/tcp", "9000/tcp", "9001/udp"],
            "mounts": {"/data": {"type": "volume", "source": "data"}, "/tmp": {"type": "tmpfs", "size": 1_048_576},
                "/nameless": {"type": "volume"}},
            "networks": {"back": {"aliases": ["store"]}, "front": {}},
            "healthcheck": {"test": ["CMD", "true"], "interval_ms": 1000},
            "ulimits": {"nofile": {"soft": 1024, "hard": 2048}},
            "sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "extra_hosts": {"gw": "host-gateway"}, "cap_drop": ["NET_RAW", "MKNOD"], "init": true,
            "security_opt": ["no-new-privileges:true"], "group_add": ["20"], "dns": ["192.0.2.1"], "dns_opt": ["ndots:1"],
            "mem_limit": 67_108_864, "cpu_shares": 512, "shm_size": 1_048_576, "oom_score_adj": 10, "read_only": true,
            "logging": {"driver": "json-file", "options": {"max-size": "1m"}}, "stop_signal": "SIGTERM",
            "stop_grace_period_ms": 1500, "labels": {"b": "2", "a": "1"}, "hostname": "h", "tty": true
        }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_target_writes_nothing_to_the_engine() {
    let mut device = Device::new("same");
    let once = json!({"restart": "no", "command": ["true"]});
    let app = device.app(
        &json!({"awkward": ["a", awkward()], "once": ["a", once],
            "beside": ["a", merged(quick("true"), &json!({"network_mode": "service:awkward", "pid": "service:awkward"}))]}),
        &json!({"volumes": {"data": {}}, "networks": {"back": {"internal": true}}}),
    );
    device.set(app.clone());
    device.applied().await;
    let before = device.lives();
    let mut events = Engine::connect(None).events();
    device.restart().await;
    device.set(app);
    device.applied().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(device.lives(), before);
    assert_eq!(device.containers(), ["awkward running", "beside running", "once exited"]);
    // Health checks report, and nothing else happens.
    while let Some(Some(Ok(event))) = events.next().now_or_never() {
        let ours = event.name.starts_with(&device.prefix);
        assert!(!ours || event.action.starts_with("health_status"), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_keeps_data_and_what_did_not_change() {
    let mut device = Device::new("update");
    let store = merged(
        quick("test -f /data/x || date > /data/x; test -f /var/lib/thing/x || date > /var/lib/thing/x"),
        &json!({"mounts": {"/data": {"type": "volume", "source": "data"}}}),
    );
    let release = |device: &Device, web: &str, store_salt: &str| {
        device.app(&json!({"web": [web, quick("true")], "store": [store_salt, store]}), &json!({}))
    };
    let app = release(&device, "w1", "s1");
    device.set(app);
    device.applied().await;
    let store_id = device.inspect("store", "{{.Id}}");
    let read =
        |device: &Device| docker(&["exec", &device.name("store"), "cat", "/data/x", "/var/lib/thing/x"]);
    let data = read(&device);
    let app = release(&device, "w2", "s1");
    device.set(app);
    device.applied().await;
    assert_eq!(device.inspect("store", "{{.Id}}"), store_id);
    let app = release(&device, "w2", "s2");
    device.set(app);
    device.applied().await;
    assert_ne!(device.inspect("store", "{{.Id}}"), store_id);
    assert_eq!(read(&device), data, "named volumes, and those the image declares");
    assert_eq!(device.containers(), ["store running", "web running"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_ends_is_undone_with_its_last_words() {
    let mut device = Device::new("bad");
    let app = device.app(&json!({"web": ["w1", quick("true")]}), &json!({}));
    device.set(app);
    device.applied().await;
    let dying = json!({"command": ["sh", "-c", "echo the disk is on fire; printf '\\033]0;x\\007'; exit 7"]});
    let app = device.app(&json!({"web": ["w2", dying], "new": ["w2", quick("true")]}), &json!({}));
    device.set(app);
    device.until("rolled back", |d| d.code() == "rolled_back" && d.containers() == ["web running"]).await;
    let why = device.status.borrow().telling().cloned().unwrap();
    assert_eq!((why.service.unwrap().as_str(), why.exit_code), ("web", Some(7)));
    assert!(why.log_tail.iter().any(|line| line == "the disk is on fire"), "{:?}", why.log_tail);
    assert!(!why.log_tail.concat().contains('\u{1b}'));
    // One that cannot even be started.
    let app = device.app(&json!({"web": ["w3", {"command": ["/no/such/program"]}]}), &json!({}));
    device.set(app);
    device
        .until("rolled back", |d| {
            d.code() == "rolled_back"
                && d.durable.book(|b| b.parked.values().any(|(_, why)| why.message.contains("start_failed")))
        })
        .await;
    device.until("the old one runs", |d| d.containers() == ["web running"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_by_hand_comes_back_and_what_is_foreign_stays() {
    let mut device = Device::new("heal");
    image(&device.prefix, "w1");
    let foreign = device.name("foreign");
    let w1 = format!("{}:w1", device.prefix);
    docker(&["run", "-d", "--name", &foreign, "--tmpfs", "/var/lib/thing", &w1]);
    let serve = merged(
        quick("mkdir -p /www; echo hello > /www/index.html; httpd -p 80 -h /www"),
        &json!({"ports": [{"target": 80, "protocol": "tcp", "host_ip": "127.0.0.1"}]}),
    );
    let app = device.app(
        &json!({"web": ["w1", serve], "foreign": ["w1", quick("true")], "b": ["w1", quick("true")]}),
        &json!({}),
    );
    device.set(app);
    device.until("web and b run", |d| d.containers() == ["b running", "web running"]).await;
    device.until("reported", |d| d.code() == "conflict").await;
    // A container.
    docker(&["rm", "-f", &device.name("b")]);
    device.until("b is back", |d| d.containers() == ["b running", "web running"]).await;
    // A network, under a running container that publishes a port. With the agent away: it would join them again before
    // the network can be removed.
    device.agent.abort();
    let (web, network) = (device.inspect("web", "{{.Id}}"), device.name("default"));
    for container in ["web", "b"] {
        docker(&["network", "disconnect", "-f", &network, &device.name(container)]);
    }
    docker(&["network", "rm", &network]);
    device.restart().await;
    let joined =
        format!("{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.NetworkID}}}}{{{{end}}}}");
    device.until("web is in its network again", |d| !d.inspect("web", &joined).is_empty()).await;
    device.until("b too", |d| !d.inspect("b", &joined).is_empty()).await;
    assert_eq!(device.inspect("web", "{{.Id}}"), web, "it was not restarted for that");
    device
        .until("the port answers", |d| {
            let port = docker(&["port", &d.name("web"), "80/tcp"]);
            std::net::TcpStream::connect(port.lines().next().unwrap_or_default()).is_ok()
        })
        .await;
    assert_eq!(
        docker(&["inspect", "-f", "{{.State.Status}} {{.Config.Labels}}", &foreign]).split(' ').next(),
        Some("running")
    );
    docker(&["rm", "-fv", &foreign]);
    device
        .until("the name is free, and taken", |d| {
            d.containers() == ["b running", "foreign running", "web running"]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_held_in_a_container_holds_its_update() {
    let mut device = Device::new("lock");
    let app = device.app(&json!({"web": ["w1", quick("true")]}), &json!({}));
    device.set(app);
    device.applied().await;
    let id = device.inspect("web", "{{.Id}}");
    // Held from here, on the very file the container sees and may write.
    let path = device.run_dir.path().join("locks").join(APP).join("web").join("update.lock");
    let inside = docker(&["exec", &device.name("web"), "stat", "-c", "%i %a", "/run/copal/update.lock"]);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(inside, format!("{} 666", std::os::unix::fs::MetadataExt::ino(&meta)));
    let file = std::fs::File::open(&path).unwrap();
    file.lock().unwrap();
    let app = device.app(&json!({"web": ["w2", quick("true")]}), &json!({}));
    device.set(app);
    device.until("locked", |d| d.code() == "locked").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(device.inspect("web", "{{.Id}}"), id);
    drop(file);
    device.applied().await;
    assert_ne!(device.inspect("web", "{{.Id}}"), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_a_file_for_its_service_and_nowhere_else() {
    let mut device = Device::new("secret");
    let web: Name = "web".parse().unwrap();
    let mut app =
        device.app(&json!({"web": ["w1", merged(quick("true"), &json!({"user": "1000:1000"}))]}), &json!({}));
    app.secrets.insert(web.clone(), BTreeMap::from([("TOKEN".to_owned(), Secret(b"hunter2".to_vec()))]));
    app.env.insert(web.clone(), BTreeMap::from([("PLAIN".to_owned(), "visible".to_owned())]));
    device.set(app.clone());
    device.applied().await;
    let first = device.inspect("web", "{{.Id}}");
    assert_eq!(docker(&["exec", &device.name("web"), "cat", "/run/secrets/TOKEN"]), "hunter2");
    let all = docker(&["inspect", &device.name("web")]);
    assert!(
        !all.contains("hunter2") && all.contains("PLAIN=visible") && all.contains("COPAL_SERVICE_NAME=web")
    );
    // Another value is another container, and the old value is gone from the host.
    app.secrets.insert(web, BTreeMap::from([("TOKEN".to_owned(), Secret(b"hunter3".to_vec()))]));
    device.set(app);
    device.applied().await;
    assert_ne!(device.inspect("web", "{{.Id}}"), first);
    assert_eq!(docker(&["exec", &device.name("web"), "cat", "/run/secrets/TOKEN"]), "hunter3");
    let folders = std::fs::read_dir(device.run_dir.path().join("secrets").join(APP).join("web")).unwrap();
    assert_eq!(folders.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strategies_and_health_on_a_real_engine() {
    let mut device = Device::new("strategy");
    let with = |strategy: &str, script: &str| {
        let labels = json!({"io.copal.update.strategy": strategy, "io.copal.update.handover-timeout": "1h"});
        merged(quick(script), &json!({"user": "1000:1000", "labels": labels}))
    };
    // `up` is healthy once its file is there; `after` waits for that.
    let up = |script: &str| {
        let check = json!({"test": ["CMD", "test", "-f", "/tmp/up"], "interval_ms": 500, "retries": 2});
        merged(quick(script), &json!({"healthcheck": check}))
    };
    let after = merged(quick("true"), &json!({"depends_on": {"up": {"condition": "service_healthy"}}}));
    let release = |device: &Device, salt: &str, up_script: &str| {
        let over = with("hand-over", "touch $COPAL_HANDOVER_COMPLETE_PATH");
        let services = json!({"kill": [salt, with("kill-then-download", "true")], "over": [salt, over],
            "up": [salt, up(up_script)], "after": [salt, after]});
        device.app(&services, &json!({}))
    };
    let app = release(&device, "s1", "sleep 1; mkdir -p /tmp; touch /tmp/up");
    device.set(app);
    device.applied().await;
    let all = ["after running", "kill running", "over running", "up running"];
    assert_eq!(device.containers(), all);
    let app = release(&device, "s2", "mkdir -p /tmp; touch /tmp/up");
    device.set(app);
    device.applied().await;
    assert_eq!(device.containers(), all);
    let ids = device.inspect("over", "{{.Image}}");
    let app = release(&device, "s3", "true");
    device.set(app);
    device
        .until("rolled back", |d| {
            d.code() == "rolled_back" && d.containers() == all && d.inspect("over", "{{.Image}}") == ids
        })
        .await;
    let why = device.status.borrow().telling().cloned().unwrap();
    assert!(why.message.contains("unhealthy"), "{why:?}");
    assert_eq!(why.service.unwrap().as_str(), "up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_converges_with_one_container_a_service() {
    let mut device = Device::new("kill");
    let keeps = merged(
        quick("test -f /data/x || date > /data/x"),
        &json!({"mounts": {"/data": {"type": "volume", "source": "data"}}}),
    );
    let release = |device: &Device, salt: &str| {
        device.app(
            &json!({"a": [salt, keeps], "b": [salt, quick("true")], "c": ["fixed", quick("true")]}),
            &json!({}),
        )
    };
    let app = release(&device, "k0");
    device.set(app);
    device.applied().await;
    let (fixed, data) =
        (device.inspect("c", "{{.Id}}"), docker(&["exec", &device.name("a"), "cat", "/data/x"]));
    for round in 0..8_u64 {
        let app = release(&device, if round % 2 == 0 { "k1" } else { "k0" });
        device.set(app);
        tokio::time::sleep(Duration::from_millis(40 + round * 170)).await;
        device.restart().await;
    }
    device.applied().await;
    assert_eq!(device.containers(), ["a running", "b running", "c running"]);
    assert_eq!(device.inspect("c", "{{.Id}}"), fixed);
    assert_eq!(docker(&["exec", &device.name("a"), "cat", "/data/x"]), data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_ask_of_services_comes_about_on_a_real_engine() {
    let mut device = Device::new("asks");
    let store = merged(
        quick("test -f /data/x || cat /proc/sys/kernel/random/uuid > /data/x"),
        &json!({"mounts": {"/data": {"type": "volume", "source": "data"}}}),
    );
    let app = device.app(&json!({"store": ["s1", store], "web": ["w1", quick("true")]}), &json!({}));
    device.set(app);
    device.applied().await;
    let run = |device: &Device, of: &str| device.inspect(of, "{{.Id}} {{.State.StartedAt}}");
    let read = |device: &Device| docker(&["exec", &device.name("store"), "cat", "/data/x"]);
    let name = |text: &str| -> Name { text.parse().unwrap() };
    let (web, store_run) = (run(&device, "web"), run(&device, "store"));

    device.ask(Ask::Restart(name("web"))).await.unwrap();
    let again = run(&device, "web");
    assert_eq!(again.split(' ').next(), web.split(' ').next(), "the same container");
    assert_ne!(again, web, "in another run");
    assert_eq!(run(&device, "store"), store_run);

    device.ask(Ask::Stop(name("web"))).await.unwrap();
    assert_eq!(device.containers(), ["store running", "web exited"]);
    device.restart().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(device.containers(), ["store running", "web exited"], "over a restart of the agent");
    device.ask(Ask::Start(name("web"))).await.unwrap();
    assert_eq!(device.containers(), ["store running", "web running"]);

    let data = read(&device);
    device.ask(Ask::Purge(None)).await.unwrap();
    device.until("all run again", |d| d.containers() == ["store running", "web running"]).await;
    assert_ne!(read(&device), data, "the volume is another");
    docker(&["image", "inspect", &format!("{}:s1", device.prefix)]);
    assert_eq!(device.ask(Ask::Purge(Some(name("nothing")))).await.unwrap_err().code, "volume_unknown");
}
