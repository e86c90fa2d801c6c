//! Whole updates in process: a bootloader that keeps its promises, a disk in memory, a clock that is told, and power that
//! goes off at any step.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err, reason = "tests")]

mod back;
mod chance;
mod troubles;
mod updates;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_protocol::{
    documents::{Reason, Release, RunningService, ServiceState, SlotState},
    ids::Sha256Hex,
    testing::{NOW, OwnerKeys, sign},
    verify::{self, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified},
};
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Ask, Deps, Lines, OsStatus, run};
use crate::{
    apply::status::{AgentStatus, AppStatus, reason},
    os::{
        OsConfig, Slot,
        boot::{
            Backend, BootError, Booted, Probe,
            fake::{Boot, Fake},
        },
        health::Hooks,
        journal::Journal,
        machine::Failure,
        ports::{Device, Documents, From, Installer, Told},
    },
    state::{Fs, StateDir},
    target::{
        Condition, HostAim,
        model::{HostRelease, Target},
    },
};

const FACTORY: &str = "factory";
/// Long enough for everything but the pauses after a trial without the cloud.
const HOURS: Duration = Duration::from_secs(2000);

/// What a slot holds.
#[derive(Debug, Clone, PartialEq)]
enum Held {
    Nothing,
    Half,
    Whole(Sha256Hex),
}

/// Everything that outlives a power cut, and the power.
struct World {
    /// Effects until the power goes off.
    left: Mutex<Option<usize>>,
    dead: Mutex<bool>,
    ended: Notify,
    restarted: Mutex<bool>,
    boot: Fake,
    held: Mutex<[Held; 2]>,
    files: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    releases: Mutex<BTreeMap<Sha256Hex, Arc<Verified<Release>>>>,
    floor: Mutex<u64>,
    /// Releases whose trials were told to be over.
    over: Mutex<Vec<Sha256Hex>>,
    /// Locks held.
    guards: Mutex<usize>,
    /// Which trials were armed, by token; and since the last commit.
    armed: Mutex<BTreeMap<Sha256Hex, u32>>,
    armed_now: Mutex<BTreeMap<Sha256Hex, u32>>,
    steps: Mutex<usize>,
    began: Instant,
    boots: Mutex<u64>,
    booted_at: Mutex<Instant>,
    life: Mutex<Life>,
    /// Releases whose services do not come up.
    sick: Mutex<std::collections::BTreeSet<Sha256Hex>>,
    /// What images say of themselves, where that is not [`config`].
    says: Mutex<BTreeMap<Sha256Hex, OsConfig>>,
    /// Releases whose kernel stops.
    panics: Mutex<std::collections::BTreeSet<Sha256Hex>>,
}

/// What the device lives in.
#[derive(Debug, Clone)]
struct Life {
    cloud: bool,
    /// The cloud is reached from the old slot only.
    cloud_not_in_trial: bool,
    locked: bool,
    window: Option<&'static str>,
    clock: i64,
    install: Result<(), (&'static str, bool)>,
    /// The installer has a fault.
    installer_panics: bool,
    /// The data partition: what writes and reads of it fail with.
    data: [Option<io::ErrorKind>; 2],
    /// The clock is not set, and stands.
    clock_stands: bool,
    reboot_fails: bool,
    /// The data partition is full from the commit or the rollback on.
    full_after_the_trial: bool,
}

impl Life {
    fn judged(&mut self) {
        if self.full_after_the_trial {
            self.data[0] = Some(io::ErrorKind::StorageFull);
        }
    }
}

impl World {
    fn new() -> Arc<Self> {
        let now = Instant::now();
        let life = Life {
            cloud: true,
            cloud_not_in_trial: false,
            locked: false,
            window: None,
            clock: 0,
            install: Ok(()),
            installer_panics: false,
            data: [None; 2],
            clock_stands: false,
            reboot_fails: false,
            full_after_the_trial: false,
        };
        Arc::new(Self {
            left: Mutex::new(None),
            dead: Mutex::new(false),
            ended: Notify::new(),
            restarted: Mutex::new(false),
            boot: Fake::new(),
            held: Mutex::new([Held::Whole(Sha256Hex::of(FACTORY.as_bytes())), Held::Nothing]),
            files: Mutex::default(),
            releases: Mutex::default(),
            floor: Mutex::new(0),
            over: Mutex::default(),
            guards: Mutex::default(),
            armed: Mutex::default(),
            armed_now: Mutex::default(),
            steps: Mutex::new(0),
            began: now,
            boots: Mutex::new(1),
            booted_at: Mutex::new(now),
            life: Mutex::new(life),
            sick: Mutex::default(),
            says: Mutex::default(),
            panics: Mutex::default(),
        })
    }

    /// One effect: before it, and after it, the power may go off.
    fn step(&self) -> bool {
        if *self.dead.lock().unwrap() {
            return false;
        }
        *self.steps.lock().unwrap() += 1;
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            Some(0) => {
                *self.dead.lock().unwrap() = true;
                self.ended.notify_one();
                false
            }
            Some(n) => {
                *n -= 1;
                true
            }
            None => true,
        }
    }

    fn release(&self, counter: u64, floor: u64) -> Arc<Verified<Release>> {
        self.release_with(counter, |release| release.rollback_floor = floor)
    }

    fn release_with(&self, counter: u64, change: impl FnOnce(&mut Release)) -> Arc<Verified<Release>> {
        let keys = OwnerKeys::fixed();
        let mut release = keys.host_release(counter, b"image");
        change(&mut release);
        let envelope = sign(&release, &[&keys.host]);
        let platform: Platform = copal_protocol::testing::platform();
        let expected = ExpectedRelease::host(envelope.payload_sha256());
        let root = keys.trusted(&keys.root());
        let purpose = Purpose::Install { now: NOW };
        let marks = ReleaseMarks::default();
        let found =
            Arc::new(verify::release(&root, &expected, &marks, &platform, purpose, &envelope).unwrap());
        self.releases.lock().unwrap().insert(found.sha256(), found.clone());
        found
    }

    fn data(&self, what: usize) -> io::Result<()> {
        self.life.lock().unwrap().data[what].map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn says(&self, image: Sha256Hex, change: impl FnOnce(&mut OsConfig)) {
        change(self.says.lock().unwrap().entry(image).or_insert_with(config));
    }

    fn running(&self) -> Held {
        let slot = self.boot.inner().booted.slot;
        self.held.lock().unwrap()[slot as usize].clone()
    }

    fn on_trial(&self) -> bool {
        self.boot.inner().booted.trial
    }

    fn is_sick(&self) -> bool {
        matches!(self.running(), Held::Whole(r) if self.sick.lock().unwrap().contains(&r))
    }
}

/// The services' locks.
struct Guard(Arc<World>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.guards.lock().unwrap() -= 1;
    }
}

/// A backend whose power can go.
struct Mortal(Arc<World>);

fn off<T>() -> Result<T, BootError> {
    let source = io::Error::other("the power went off");
    Err(BootError::Write { what: "the boot state", device: "/dev/fake".into(), source })
}

impl Mortal {
    fn do_it<T>(&self, call: impl FnOnce(&Fake) -> Result<T, BootError>) -> Result<T, BootError> {
        if !self.0.step() {
            return off();
        }
        let result = call(&self.0.boot);
        if self.0.step() { result } else { off() }
    }
}

impl Backend for Mortal {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn probe(&self) -> Result<Probe, BootError> {
        self.0.boot.probe()
    }
    fn active(&self) -> Result<Booted, BootError> {
        if *self.0.dead.lock().unwrap() { off() } else { self.0.boot.active() }
    }
    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        self.do_it(|fake| fake.mark_unbootable(slot))
    }
    fn arm_trial(&self, slot: Slot, token: &Sha256Hex) -> Result<(), BootError> {
        self.do_it(|fake| {
            let held = self.0.held.lock().unwrap()[slot as usize].clone();
            assert!(matches!(held, Held::Whole(_)), "I4: armed {held:?}");
            fake.arm_trial(slot, token)?;
            for armed in [&self.0.armed, &self.0.armed_now] {
                *armed.lock().unwrap().entry(*token).or_default() += 1;
            }
            Ok(())
        })
    }
    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        self.0.boot.is_bootable(slot)
    }
    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        self.do_it(|fake| {
            let booted = fake.inner().booted.clone();
            // What proved itself once takes over from a committed slot that does not start; nothing is compared then.
            let took_over = booted.fell_why.as_deref() == Some("sick");
            let again = booted.slot == slot && booted.committed == slot;
            assert!(again || (booted.trial && booted.slot == slot), "I5: committed {slot} from {booted:?}");
            assert!(again || took_over || !self.0.is_sick(), "I5: committed what is sick");
            self.0.life.lock().unwrap().judged();
            if !again {
                // What proved itself may be tried anew, as where the journal of it was lost.
                self.0.armed_now.lock().unwrap().clear();
            }
            fake.commit(slot)
        })
    }
    fn mark_well(&self) -> Result<(), BootError> {
        self.do_it(Backend::mark_well)
    }
    fn rollback(&self) -> Result<(), BootError> {
        self.0.life.lock().unwrap().judged();
        self.do_it(Backend::rollback)
    }
    fn reboot(&self, into_trial: bool) -> Result<(), BootError> {
        if self.0.life.lock().unwrap().reboot_fails {
            return off();
        }
        self.do_it(|fake| fake.reboot(into_trial))?;
        *self.0.restarted.lock().unwrap() = true;
        self.0.ended.notify_one();
        Ok(())
    }
}

impl Fs for World {
    fn read(&self, path: &Path, _: usize) -> io::Result<Vec<u8>> {
        self.data(1)?;
        self.files.lock().unwrap().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn write_synced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.data(0)?;
        let kept = if self.step() { bytes } else { &bytes[..bytes.len() / 2] };
        if kept.len() < bytes.len() && !path.exists() {
            return Err(io::Error::other("the power went off"));
        }
        self.files.lock().unwrap().insert(path.to_owned(), kept.to_vec());
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.step() {
            return Err(io::Error::other("the power went off"));
        }
        let mut files = self.files.lock().unwrap();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), bytes);
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        if self.step() { Ok(()) } else { Err(io::Error::other("the power went off")) }
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().unwrap().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        Ok(files.keys().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }
}

struct Around(Arc<World>);

impl Installer for Around {
    fn check<'a>(&'a self, _: &'a Release, _: Slot) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async { Ok(()) })
    }
    fn install(
        &self,
        release: Arc<Verified<Release>>,
        slot: Slot,
        _: From,
        told: Told,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        let world = self.0.clone();
        Box::pin(async move {
            let broken = |code: &str, passing| Err(Failure { reason: reason(code, "by the test"), passing });
            for part in 0..3_u64 {
                if cancel.is_cancelled() || !world.step() {
                    return broken("os_cancelled", true);
                }
                let inner = world.boot.inner().clone();
                assert_ne!(inner.booted.slot, slot, "I1: the running slot is written");
                assert!(!inner.valid[slot as usize], "I2: a slot that could boot is written");
                world.held.lock().unwrap()[slot as usize] = Held::Half;
                told(part == 2, part, 2);
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            assert!(!world.life.lock().unwrap().installer_panics, "a fault of the installer");
            let outcome = world.life.lock().unwrap().install;
            if let Err((code, passing)) = outcome {
                return broken(code, passing);
            }
            if !world.step() {
                return broken("os_write", true);
            }
            world.held.lock().unwrap()[slot as usize] = Held::Whole(release.sha256());
            Ok(())
        })
    }
    fn finish<'a>(
        &'a self,
        release: &'a Verified<Release>,
        slot: Slot,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let off = || Failure { reason: reason("os_write", "the power went off"), passing: true };
            if !self.0.step() {
                return Err(off());
            }
            let held = self.0.held.lock().unwrap()[slot as usize].clone();
            let Held::Whole(found) = held else { panic!("I3: {held:?} is made bootable") };
            assert_eq!(self.0.releases.lock().unwrap()[&found].counter, release.counter, "I3");
            self.0.boot.inner().valid[slot as usize] = true;
            if self.0.step() { Ok(()) } else { Err(off()) }
        })
    }
    fn forget<'a>(&'a self, _: Slot) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
    fn same<'a>(&'a self, release: &'a Release, slot: Slot) -> BoxFuture<'a, Result<bool, Reason>> {
        let held = self.0.held.lock().unwrap()[slot as usize].clone();
        let same = matches!(held, Held::Whole(r)
            if self.0.releases.lock().unwrap().get(&r).is_some_and(|r| r.counter == release.counter));
        Box::pin(async move { Ok(same) })
    }
}

impl Documents for Around {
    fn release(&self, sha256: Sha256Hex) -> Result<Arc<Verified<Release>>, Reason> {
        self.0.releases.lock().unwrap().get(&sha256).cloned().ok_or_else(|| reason("E_TRANSPORT", "not here"))
    }
    fn begin(&self, _: Sha256Hex) -> Result<(), Reason> {
        if self.0.step() { Ok(()) } else { Err(reason("E_TRANSPORT", "the power went off")) }
    }
    fn commit(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        self.0.data(0).map_err(|e| reason("os_data_full", e.to_string()))?;
        if !self.0.step() {
            return Err(reason("E_TRANSPORT", "the power went off"));
        }
        assert!(!self.0.on_trial(), "floors rise after the commit only");
        let floor = self.0.releases.lock().unwrap()[&sha256].rollback_floor;
        let mut now = self.0.floor.lock().unwrap();
        *now = floor.max(*now);
        Ok(())
    }
    fn end(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        self.0.over.lock().unwrap().push(sha256);
        Ok(())
    }
    fn floor(&self) -> u64 {
        *self.0.floor.lock().unwrap()
    }
}

impl Device for Around {
    fn now(&self) -> u64 {
        let Life { clock, clock_stands, .. } = *self.0.life.lock().unwrap();
        if clock_stands {
            return NOW;
        }
        (NOW + self.0.began.elapsed().as_secs()).saturating_add_signed(clock)
    }
    fn clock_is_set(&self) -> bool {
        true
    }
    fn boot_id(&self) -> String {
        format!("boot-{}", self.0.boots.lock().unwrap())
    }
    fn uptime_s(&self) -> u64 {
        self.0.booted_at.lock().unwrap().elapsed().as_secs()
    }
    fn engine(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
    fn hooks(&self, _: Duration) -> BoxFuture<'_, Hooks> {
        Box::pin(async { Hooks::Well })
    }
    fn lock(&self) -> Result<Box<dyn Send>, Vec<String>> {
        if self.0.life.lock().unwrap().locked {
            return Err(vec!["web".to_owned()]);
        }
        *self.0.guards.lock().unwrap() += 1;
        Ok(Box::new(Guard(self.0.clone())))
    }
}

/// How a run of the agent ended.
#[derive(Debug, PartialEq)]
enum End {
    /// The device restarts: asked to, or without power.
    Off,
    /// It rests.
    Steady,
}

fn config() -> OsConfig {
    OsConfig::parse(
        br#"{"backend":"grub","device_type":"generic","version":"0.9.0","env_files":["/a","/b"],
            "slots":{"a":{"rootfs":"/dev/a"},"b":{"rootfs":"/dev/b"}}}"#,
    )
    .unwrap()
}

struct Seen {
    status: OsStatus,
    end: End,
    /// What a person was answered.
    answer: Option<Result<String, Reason>>,
}

impl World {
    fn target(&self, os: HostAim, seq: u64) -> Arc<Target> {
        let window = self.life.lock().unwrap().window.map(|w| w.parse().unwrap());
        Arc::new(Target {
            order: (1, seq),
            os,
            reboot_window: window,
            may_install: true,
            ..Target::default()
        })
    }

    /// One boot's agent: until the power goes, it restarts the device, or `most` is over.
    async fn agent(self: &Arc<Self>, target: Option<Arc<Target>>, most: Duration) -> Seen {
        self.agent_with(target, most, None).await
    }

    async fn agent_with(
        self: &Arc<Self>,
        target: Option<Arc<Target>>,
        most: Duration,
        ask: Option<Ask>,
    ) -> Seen {
        *self.dead.lock().unwrap() = false;
        *self.restarted.lock().unwrap() = false;
        let life = self.life.lock().unwrap().clone();
        let around = Arc::new(Around(self.clone()));
        let deps = Deps {
            config: match self.running() {
                Held::Whole(image) => self.says.lock().unwrap().get(&image).cloned().unwrap_or_else(config),
                _ => config(),
            },
            boot: Arc::new(Mortal(self.clone())),
            installer: around.clone(),
            documents: around.clone(),
            device: around,
            state: Arc::new(StateDir::open("/s", self.clone()).unwrap()),
        };
        let mut condition = condition();
        condition.online = life.cloud && !(life.cloud_not_in_trial && self.on_trial());
        let mut apps = AgentStatus { applied: Some((1, 1)), ..AgentStatus::default() };
        let state = if self.is_sick() { ServiceState::Restarting } else { ServiceState::Healthy };
        let web = RunningService {
            config_digest: None,
            state,
            restarts: 0,
            container_id: String::new(),
            exit_code: None,
        };
        let app = AppStatus { running: [("web".parse().unwrap(), web)].into(), ..AppStatus::default() };
        apps.apps.insert(OwnerKeys::fixed().app_id, app);
        let (_t, targets) = watch::channel(target);
        let (_c, condition) = watch::channel(condition);
        let (_a, apps) = watch::channel(apps);
        let (asking, asks) = mpsc::channel(1);
        let (status, seen) = watch::channel(OsStatus::default());
        let lines = Lines { targets, condition, apps, asks, status };
        let answer = ask.map(|ask| {
            let (answer, said) = oneshot::channel();
            asking.try_send((ask, answer)).unwrap();
            said
        });
        let end = tokio::select! {
            () = run(deps, lines) => unreachable!(),
            () = self.ended.notified() => End::Off,
            () = tokio::time::sleep(most) => End::Steady,
        };
        let answer = answer.and_then(|mut said| said.try_recv().ok());
        let status = seen.borrow().clone();
        Seen { status, end, answer }
    }

    /// The device starts again.
    fn starts(&self) {
        *self.boots.lock().unwrap() += 1;
        *self.booted_at.lock().unwrap() = Instant::now();
        let held = self.held.lock().unwrap().clone();
        let panics = self.panics.lock().unwrap().clone();
        let booted = self.boot.boot(|slot| match &held[slot as usize] {
            Held::Whole(release) if panics.contains(release) => Boot::Dies,
            _ => Boot::Up,
        });
        let now = &held[booted.slot as usize];
        assert!(matches!(now, Held::Whole(_)), "I2: {now:?} runs");
    }

    /// Boots and agents until the device rests.
    async fn settles(self: &Arc<Self>, target: Option<Arc<Target>>) -> OsStatus {
        for _ in 0..60 {
            let seen = self.agent(target.clone(), HOURS).await;
            if seen.end == End::Steady {
                return seen.status;
            }
            self.starts();
        }
        panic!("the device restarts for ever");
    }

    fn limits_hold(&self) {
        let armed = self.armed_now.lock().unwrap();
        assert!(armed.values().all(|n| *n <= 3), "more trials than may be: {armed:?}");
    }
}

/// All is well with the cloud.
pub(crate) fn condition() -> Condition {
    let root = OwnerKeys::fixed().trusted(&OwnerKeys::fixed().root());
    Condition {
        device_id: None,
        root_version: 1,
        root_sha256: root.sha256(),
        lock: copal_protocol::documents::LockState::Open,
        mark: verify::AssignmentMark::default(),
        online: true,
        offline: None,
        refused: None,
        refused_apps: BTreeMap::new(),
        refused_hosts: BTreeMap::new(),
        fresh: true,
        offline_allowed: false,
        lost: Vec::new(),
    }
}

fn wants(release: &Arc<Verified<Release>>, retry: u64) -> HostAim {
    HostAim::Release(HostRelease { release: release.clone(), retry })
}

fn code(status: &OsStatus) -> Option<String> {
    status.host.as_ref()?.reason.as_ref().map(|r| r.code.clone())
}

fn in_time<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(work)
}
