//! The loop against an engine in memory, in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::needless_pass_by_value, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_protocol::{
    documents::{ImageRef, Reason, Release},
    envelope::Envelope,
    ids::{AppId, Digest, Name, Sha256Hex},
    keys::SigningKey,
    verify,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{Deps, SupervisorSettings, asks::Asked, holds::Holds, run};
use crate::{
    apply::{
        ports::{ApplyError, Images, Ledger, ProgressSink, StateError},
        shared::LOCK_FILE,
        status::AgentStatus,
    },
    engine::{ImageId, RunState, fake::Fake},
    target::model::{AppTarget, Target},
};

mod asks;

const APP: &str = "00112233445566778899aabbccddeeff";

fn app_id() -> AppId {
    APP.parse().unwrap()
}

fn app_target(services: &serde_json::Value, rest: serde_json::Value) -> AppTarget {
    let services: serde_json::Map<_, _> = services
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, pair)| {
            let digest = Digest::of(pair[0].as_str().unwrap().as_bytes());
            let image = json!({"repo": "f/s", "manifest_digest": digest, "config_digest": digest, "config_size": 1,
                "size": 1, "layers": []});
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
        app_id: app_id(),
        release: Arc::new(release),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        retry: 0,
    }
}

/// Two services and a one-shot; `web` behaves as told.
fn three(web_image: &str, web: &str) -> AppTarget {
    app_target(
        &json!({
            "db": ["db1", {"command": ["heals"], "mounts": {"/data": {"type": "volume", "source": "data"}}}],
            "init": ["init1", {"command": ["ends:0"], "restart": "no"}],
            "web": [web_image, {"command": [web], "depends_on": {
                "db": {"condition": "service_healthy"}, "init": {"condition": "service_completed_successfully"}}}],
        }),
        json!({}),
    )
}

fn target(apps: &[AppTarget], seq: u64) -> Arc<Target> {
    let apps = apps.iter().map(|app| (app.app_id, app.clone())).collect();
    Arc::new(Target { order: (1, seq), apps, may_install: true, ..Target::default() })
}

/// Images, and what is remembered: durable like the engine, and dying with it.
#[derive(Clone)]
struct Durable {
    fake: Fake,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    committed: BTreeMap<AppId, AppTarget>,
    trial: BTreeMap<AppId, Sha256Hex>,
    parked: BTreeMap<AppId, (Sha256Hex, Reason)>,
    /// Images whose download fails, by config digest.
    failing: BTreeSet<Digest>,
    /// Downloads begun.
    downloads: usize,
    retained: Option<BTreeSet<Digest>>,
}

impl Durable {
    fn book<T>(&self, f: impl FnOnce(&mut Book) -> T) -> T {
        f(&mut self.book.lock().unwrap())
    }

    fn write(&self, what: &str, f: impl FnOnce(&mut Book)) -> Result<(), StateError> {
        let done = self.fake.change(what.to_owned(), |_| {
            self.book(f);
            Ok(())
        });
        done.map_err(|e| StateError(e.to_string()))
    }
}

impl Images for Durable {
    fn ensure<'a>(
        &'a self,
        _: AppId,
        _: &'a Name,
        image: &'a ImageRef,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<ImageId, ApplyError>> {
        async move {
            self.book(|b| b.downloads += 1);
            progress(0, 10);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.book(|b| b.failing.contains(&image.config_digest)) {
                return Err(ApplyError::new("image_failed", "the registry is away"));
            }
            let id = ImageId(image.config_digest.to_string());
            let change = self.fake.change("pull".into(), |w| {
                w.images.insert(id.clone());
                Ok(())
            });
            change.map_err(|e| ApplyError::engine("image_failed", &e))?;
            Ok(id)
        }
        .boxed()
    }

    fn present<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>, ApplyError>> {
        let id = ImageId(image.config_digest.to_string());
        let there = self.fake.world(|w| w.images.contains(&id));
        futures_util::future::ready(Ok(there.then_some(id))).boxed()
    }

    fn release<'a>(&'a self, _: &'a ImageId) -> BoxFuture<'a, Result<(), ApplyError>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn retain<'a>(&'a self, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), ApplyError>> {
        self.book(|b| b.retained = Some(keep.clone()));
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl Ledger for Durable {
    fn committed(&self, app: AppId) -> Option<AppTarget> {
        self.book(|b| b.committed.get(&app).cloned())
    }

    fn commit(&self, target: &AppTarget) -> Result<(), StateError> {
        self.write("commit", |b| {
            b.committed.insert(target.app_id, target.clone());
            b.trial.remove(&target.app_id);
            b.parked.remove(&target.app_id);
        })
    }

    fn trial(&self, app: AppId) -> Option<Sha256Hex> {
        self.book(|b| b.trial.get(&app).copied())
    }

    fn begin_trial(&self, target: &AppTarget) -> Result<(), StateError> {
        self.write("begin trial", |b| _ = b.trial.insert(target.app_id, target.key()))
    }

    fn park(&self, app: AppId, key: Sha256Hex, reason: &Reason) -> Result<(), StateError> {
        self.write("park", |b| {
            b.trial.remove(&app);
            b.parked.insert(app, (key, reason.clone()));
        })
    }

    fn parked(&self, app: AppId) -> Option<(Sha256Hex, Reason)> {
        self.book(|b| b.parked.get(&app).cloned())
    }

    fn apps(&self) -> Vec<AppId> {
        self.book(|b| b.committed.keys().chain(b.trial.keys()).copied().collect())
    }

    fn drop_app(&self, app: AppId) -> Result<(), StateError> {
        self.write("drop app", |b| {
            b.committed.remove(&app);
            b.trial.remove(&app);
            b.parked.remove(&app);
        })
    }
}

/// A device: what is durable, and the agent's life on it.
struct Device {
    durable: Durable,
    run_dir: tempfile::TempDir,
    targets: watch::Sender<Option<Arc<Target>>>,
    status: watch::Receiver<AgentStatus>,
    holds: Holds,
    asking: mpsc::Sender<Asked>,
    agent: tokio::task::JoinHandle<()>,
}

impl Device {
    fn new() -> Self {
        let durable = Durable { fake: Fake::new(), book: Arc::default() };
        let run_dir = tempfile::tempdir().unwrap();
        let holds = Holds::in_memory();
        let (targets, status, asking, agent) = boot(&durable, run_dir.path(), None, &holds);
        Self { durable, run_dir, targets, status, holds, asking, agent }
    }

    fn set(&self, target: Arc<Target>) {
        self.targets.send_replace(Some(target));
    }

    /// The agent is killed and started again; the target is read from disk.
    async fn restart(&mut self) {
        self.agent.abort();
        let _ = (&mut self.agent).await;
        self.durable.fake.world(|w| (w.dies_at, w.absent) = (None, false));
        let target = self.targets.borrow().clone();
        (self.targets, self.status, self.asking, self.agent) =
            boot(&self.durable, self.run_dir.path(), target, &self.holds);
    }

    fn fake(&self) -> &Fake {
        &self.durable.fake
    }

    /// Lets time pass until `done`, at most ten minutes of it.
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..60_000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let names: Vec<_> = self
            .fake()
            .world(|w| w.containers.values().map(|(c, _)| format!("{} {:?}", c.name, c.state)).collect());
        panic!("never: {what}; {names:?}; {:#?}", self.status.borrow());
    }

    async fn rest(&self) {
        tokio::time::sleep(Duration::from_secs(70)).await;
    }

    fn applied(&self) -> Option<u64> {
        self.status.borrow().applied.map(|(_, seq)| seq)
    }

    fn reason(&self) -> Option<Reason> {
        self.status.borrow().telling().cloned()
    }

    fn code(&self) -> String {
        self.reason().map(|r| r.code).unwrap_or_default()
    }

    /// Every container as `service image state`, sorted; a service with two stands twice.
    fn runs(&self) -> Vec<String> {
        let mut all: Vec<String> = self.fake().world(|w| {
            w.containers
                .values()
                .map(|(c, behaviour)| {
                    format!("{} {behaviour} {:?}", c.name.replace("copal-00112233-", ""), c.state)
                })
                .collect()
        });
        all.sort();
        all
    }

    fn id(&self, service: &str) -> String {
        self.fake().by_name(&format!("copal-00112233-{service}")).unwrap().id
    }

    async fn installed(apps: &[AppTarget]) -> Self {
        let device = Self::new();
        device.set(target(apps, 1));
        device.until("installed", |d| d.applied() == Some(1)).await;
        device
    }
}

type Life = (
    watch::Sender<Option<Arc<Target>>>,
    watch::Receiver<AgentStatus>,
    mpsc::Sender<Asked>,
    tokio::task::JoinHandle<()>,
);

fn boot(durable: &Durable, run_dir: &std::path::Path, target: Option<Arc<Target>>, holds: &Holds) -> Life {
    let (targets, wants) = watch::channel(target);
    let (tells, status) = watch::channel(AgentStatus::default());
    let deps = Deps {
        engine: Arc::new(durable.fake.clone()),
        images: Arc::new(durable.clone()),
        ledger: Arc::new(durable.clone()),
        settings: SupervisorSettings {
            instance: "test".into(),
            prefix: "copal".into(),
            hash_key: [1; 32],
            run_dir: run_dir.to_owned(),
            platform: "linux/amd64".into(),
            device_id: "d".into(),
            device_type: "generic".into(),
            healthy_after: Duration::from_secs(10),
        },
        holds: holds.clone(),
        notes: crate::spool::Notes::default(),
    };
    let (asking, asks) = mpsc::channel(8);
    (targets, status, asking, tokio::spawn(run(deps, wants, tells, asks)))
}

const V1: [&str; 3] = ["db heals Running", "init ends:0 Exited", "web runs Running"];

#[tokio::test(start_paused = true)]
async fn what_is_installed_is_committed_and_then_nothing_is_written_any_more() {
    let mut device = Device::installed(&[three("web1", "runs")]).await;
    assert_eq!(device.runs(), V1);
    assert_eq!(device.reason(), None);
    let writes = device.fake().writes();
    device.rest().await;
    device.restart().await;
    device.rest().await;
    // The same again under another order, and asked for once more.
    device.set(target(&[three("web1", "runs")], 2));
    device.until("applied", |d| d.applied() == Some(2)).await;
    assert_eq!(device.fake().writes(), writes, "{:?}", device.fake().world(|w| w.writes.clone()));
}

#[tokio::test(start_paused = true)]
async fn services_that_did_not_change_keep_their_containers() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let before = (device.id("db"), device.id("init"), device.id("web"));
    device.set(target(&[three("web2", "runs")], 2));
    device.until("updated", |d| d.applied() == Some(2)).await;
    assert_eq!((device.id("db"), device.id("init")), (before.0, before.1));
    assert_ne!(device.id("web"), before.2);
    assert_eq!(device.runs(), V1);
    let kept = device.durable.book(|b| b.retained.clone()).unwrap();
    assert!(!kept.contains(&Digest::of(b"web1")) && kept.contains(&Digest::of(b"web2")));
}

#[tokio::test(start_paused = true)]
async fn a_bad_release_undoes_itself_and_is_not_tried_again() {
    for (behaviour, code) in [("crashes:3", "crash_loop"), ("sick", "unhealthy"), ("refuses", "start_failed")]
    {
        let mut device = Device::installed(&[three("web1", "runs")]).await;
        let db = device.id("db");
        device.set(target(&[three("web2", behaviour)], 2));
        // What is told is so: that the one before runs again is not said before it does.
        let said = |d: &Device, words: &str| d.reason().is_some_and(|why| why.message.ends_with(words));
        device.until("rolled back", |d| d.code() == "rolled_back").await;
        assert!(device.runs() == V1 || said(&device, "is being brought back"), "{:?}", device.reason());
        device.until("the old one is said to run", |d| said(d, "runs again")).await;
        assert_eq!(device.runs(), V1);
        let why = device.reason().unwrap();
        assert!(why.message.contains(code), "{why:?}");
        assert_eq!(why.service.unwrap().as_str(), "web");
        assert_eq!(why.log_tail, ["last words"]);
        assert_eq!(why.exit_code, (code == "crash_loop").then_some(3));
        assert_eq!(device.id("db"), db, "what did not change served both");
        let writes = device.fake().writes();
        device.restart().await;
        device.rest().await;
        assert_eq!(device.fake().writes(), writes, "not retried");
        assert_eq!(device.code(), "rolled_back");
        // Asked for again by a person, it is tried again.
        let mut again = three("web2", behaviour);
        again.retry = 1;
        device.set(target(&[again], 3));
        device.until("tried again", |d| d.fake().writes() > writes).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_stopped_for_a_release_that_failed_runs_again() {
    // Stopped, it ends with 0, and its policy would let that be.
    let spec = |behaviour: &str| json!({"command": [behaviour], "restart": {"on_failure": {"max": 0}}});
    let release =
        |image: &str, behaviour: &str| app_target(&json!({"web": [image, spec(behaviour)]}), json!({}));
    let device = Device::installed(&[release("web1", "runs")]).await;
    let id = device.id("web");
    device.set(target(&[release("web2", "refuses")], 2));
    device.until("rolled back", |d| d.code() == "rolled_back" && d.runs() == ["web runs Running"]).await;
    assert_eq!(device.id("web"), id);
}

#[tokio::test(start_paused = true)]
async fn a_failed_one_shot_undoes_the_release() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let mut bad = three("web1", "runs");
    let services = json!({"init": ["init2", {"command": ["ends:4"], "restart": "no"}], "web": ["web1", {"command": ["runs"]}]});
    bad.release = app_target(&services, json!({})).release;
    device.set(target(&[bad], 2));
    device.until("rolled back", |d| d.code() == "rolled_back" && d.runs() == V1).await;
    assert_eq!(device.reason().unwrap().exit_code, Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_bad_variable_does_not_condemn_the_release() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let with = |behaviour: &str, value: &str| {
        let mut app = three("web2", behaviour);
        let web: Name = "web".parse().unwrap();
        app.env.insert(web, BTreeMap::from([("V".to_owned(), value.to_owned())]));
        app
    };
    device.set(target(&[with("sick", "bad")], 2));
    device.until("rolled back", |d| d.code() == "rolled_back" && d.runs() == V1).await;
    device.set(target(&[with("runs", "good")], 3));
    device.until("applied", |d| d.applied() == Some(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_can_never_start_does_not_fill_the_log() {
    let lines = Lines::default();
    let log = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let device = Device::new();
    device.set(target(&[three("web1", "refuses")], 1));
    device.until("reported", |d| d.code() == "start_failed").await;
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("times=16"), "it goes on trying, and says so now and then:\n{text}");
    let said = text.lines().filter(|l| l.contains("web")).count();
    assert!(said <= 16, "{said} lines:\n{text}");
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_the_way_now_is_told_and_not_what_failed_before() {
    let device = Device::new();
    device.set(target(&[three("web1", "refuses")], 1));
    device.until("reported", |d| d.code() == "start_failed").await;
    // Ours is taken away, and someone else's takes its name.
    device.fake().world(|w| {
        w.containers.retain(|_, (c, _)| !c.name.ends_with("-web"));
        w.foreign("copal-00112233-web");
    });
    device.fake().tell("container", "destroy", "copal-00112233-web");
    device.until("the conflict is told", |d| d.code() == "conflict").await;
}

/// A log kept in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn with_nothing_to_fall_back_to_it_keeps_trying_and_says_why() {
    let mut device = Device::new();
    device.set(target(&[three("web1", "sick")], 1));
    device.until("reported", |d| d.code() == "unhealthy").await;
    device.restart().await;
    device.until("still here", |d| d.runs().len() == 3).await;
    device.set(target(&[three("web2", "runs")], 2));
    device.until("applied", |d| d.applied() == Some(2)).await;
    assert_eq!(device.runs(), V1);
}

#[tokio::test(start_paused = true)]
async fn a_failing_download_touches_nothing_and_is_retried() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.durable.book(|b| b.failing.insert(Digest::of(b"web2")));
    let writes = device.fake().writes();
    device.set(target(&[three("web2", "runs")], 2));
    device.until("reported", |d| d.code() == "image_failed").await;
    device.rest().await;
    assert!(device.durable.book(|b| b.downloads) > 5, "it goes on");
    assert_eq!((device.fake().writes(), device.runs()), (writes, V1.map(str::to_owned).to_vec()));
    device.durable.book(|b| b.failing.clear());
    device.until("applied", |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_holds_the_update_and_nothing_else() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let path = device.run_dir.path().join("locks").join(APP).join("web").join(LOCK_FILE);
    let file = std::fs::File::open(path).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    device.set(target(&[three("web2", "runs")], 2));
    device.until("reported", |d| d.code() == "locked").await;
    device.rest().await;
    assert_eq!((device.code().as_str(), device.runs()), ("locked", V1.map(str::to_owned).to_vec()));
    assert_eq!(device.reason().unwrap().service.unwrap().as_str(), "web");
    drop(lock);
    device.until("applied", |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_waits_for_the_word_of_the_new_one() {
    let spec = |image: &str| {
        let spec = json!({"command": ["runs"], "labels": {"io.copal.update.strategy": "hand-over",
            "io.copal.update.handover-timeout": "1h"}});
        app_target(&json!({"web": [image, spec]}), json!({}))
    };
    let device = Device::installed(&[spec("web1")]).await;
    device.set(target(&[spec("web2")], 2));
    device.until("both run", |d| d.runs().iter().filter(|r| r.ends_with("Running")).count() == 2).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(device.runs().len(), 2, "the old one serves until the new one is ready");
    let folder = device.run_dir.path().join("locks").join(APP).join("web");
    std::fs::write(folder.join("handover-complete"), "").unwrap();
    device.until("applied", |d| d.applied() == Some(2)).await;
    assert_eq!(device.runs(), ["web runs Running"]);
}

#[tokio::test(start_paused = true)]
async fn what_others_break_is_mended_and_what_is_others_is_left_alone() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    // A container.
    let web = device.id("web");
    device.fake().world(|w| w.containers.remove(&web));
    device.fake().tell("container", "destroy", "copal-00112233-web");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(device.runs(), V1);
    // A network, from under running containers: they join the new one and run on.
    let web = device.id("web");
    device.fake().world(|w| {
        w.networks.clear();
        w.containers.values_mut().for_each(|(c, _)| c.networks.clear());
    });
    device.fake().tell("network", "destroy", "copal-00112233-default");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(device.id("web"), web);
    assert!(!device.fake().by_name("copal-00112233-web").unwrap().networks.is_empty());
    // A foreign container takes the name of the next service.
    device.fake().world(|w| w.foreign("copal-00112233-extra"));
    let mut services = json!({"extra": ["x", {}], "other": ["o", {}]});
    services["web"] = json!(["web1", {"command": ["runs"]}]);
    device.set(target(&[app_target(&services, json!({}))], 2));
    device.until("reported", |d| d.code() == "conflict").await;
    device.until("others go on", |d| d.runs().contains(&"other runs Running".to_owned())).await;
    device.rest().await;
    let foreign = device.fake().by_name("copal-00112233-extra").unwrap();
    assert_eq!((foreign.image.0.as_str(), foreign.state), ("sha256:foreign", RunState::Running));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_goes_leaves_its_data() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.set(target(&[], 2));
    device.until("gone", |d| d.runs().is_empty() && d.applied() == Some(2)).await;
    device.until("forgotten", |d| d.durable.book(|b| b.committed.is_empty())).await;
    device.fake().world(|w| {
        assert!(w.networks.is_empty());
        assert_eq!(w.volumes.keys().collect::<Vec<_>>(), ["copal-00112233-data"]);
    });
    assert!(device.status.borrow().apps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_absent_engine_is_a_reason_and_not_an_end() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.fake().world(|w| w.absent = true);
    device.set(target(&[three("web2", "runs")], 2));
    device.until("reported", |d| d.code() == "engine_absent").await;
    device.rest().await;
    device.fake().world(|w| w.absent = false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_ne!(device.code(), "engine_absent");
    device.until("applied", |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_word_that_it_is_newest_nothing_new_is_installed() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let mut stale = (*target(&[three("web2", "runs")], 2)).clone();
    stale.may_install = false;
    device.set(Arc::new(stale));
    device.until("reported", |d| d.code() == "not_fresh").await;
    device.rest().await;
    assert_eq!(device.runs(), V1);
    assert_eq!(device.durable.book(|b| b.downloads), 3);
}

#[tokio::test(start_paused = true)]
async fn a_newer_target_wins_over_one_under_way() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.durable.book(|b| b.failing.insert(Digest::of(b"web2")));
    device.set(target(&[three("web2", "runs")], 2));
    device.until("reported", |d| d.code() == "image_failed").await;
    let before = device.id("web");
    device.set(target(&[three("web3", "runs")], 3));
    device
        .until("on trial", |d| d.fake().by_name("copal-00112233-web").is_some_and(|c| c.id != before))
        .await;
    assert_eq!(device.code(), "trial");
    device.set(target(&[three("web1", "runs")], 4));
    device.until("back", |d| d.applied() == Some(4) && d.runs() == V1).await;
    assert_eq!(device.reason(), None);
}

/// Kills the agent at every single effect of bringing `to` about, before and after it, and lets it start again.
async fn die_everywhere(from: Option<AppTarget>, to: AppTarget, ends: impl Fn(&Device) -> bool) {
    let mut at = 0;
    loop {
        let mut finished = false;
        for after in [false, true] {
            let mut device = match &from {
                Some(app) => Device::installed(std::slice::from_ref(app)).await,
                None => Device::new(),
            };
            let db = from.as_ref().map(|_| device.id("db"));
            let number = device.fake().writes() + at;
            device.fake().world(|w| w.dies_at = Some((number, after)));
            device.set(target(std::slice::from_ref(&to), 2));
            device.until("the end or death", |d| d.fake().died() || ends(d)).await;
            finished |= !device.fake().died();
            device.restart().await;
            device.until("converged", &ends).await;
            device.rest().await;
            let what =
                format!("died at {at}, after: {after}: {:?}", device.fake().world(|w| w.writes.clone()));
            assert!(ends(&device), "{what}");
            assert_eq!(device.runs(), V1, "{what}");
            assert_eq!(
                db.unwrap_or_else(|| device.id("db")),
                device.id("db"),
                "restarted needlessly; {what}"
            );
            device.fake().world(|w| {
                assert_eq!(w.volumes.len(), 1, "{what}");
                assert_eq!(w.networks.len(), 1, "{what}");
            });
            let writes = device.fake().writes();
            device.restart().await;
            device.rest().await;
            assert_eq!(device.fake().writes(), writes, "{what}");
        }
        if finished {
            assert!(at > 5, "too few effects to mean anything: {at}");
            return;
        }
        at += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn dying_anywhere_in_an_install_ends_installed() {
    die_everywhere(None, three("web1", "runs"), |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn dying_anywhere_in_an_update_ends_updated() {
    die_everywhere(Some(three("web1", "runs")), three("web2", "runs"), |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn dying_anywhere_in_a_bad_update_ends_with_the_old_release() {
    let back = |d: &Device| d.code() == "rolled_back" && d.runs() == V1;
    die_everywhere(Some(three("web1", "runs")), three("web2", "crashes:1"), back).await;
}
