//! Whole updates in process: a bootloader that keeps its promises, a disk in memory, a clock that is told, and power that
//! goes off at any step.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use copal_protocol::{
    documents::{Release, RunningService, ServiceState, SlotState},
    ids::Sha256Hex,
    testing::{NOW, OwnerKeys, sign},
    verify::{self, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified},
};
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tokio::sync::Notify;

use super::*;
use crate::{
    apply::status::AppStatus,
    os::{
        boot::{
            Probe,
            fake::{Boot, Fake},
        },
        machine::Failure,
        ports::Told,
    },
    state::Fs,
    target::model::HostRelease,
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
    /// Which trials were armed, by token.
    armed: Mutex<BTreeMap<Sha256Hex, u32>>,
    steps: Mutex<usize>,
    began: Instant,
    boots: Mutex<u64>,
    booted_at: Mutex<Instant>,
    life: Mutex<Life>,
    /// Releases whose services do not come up.
    sick: Mutex<std::collections::BTreeSet<Sha256Hex>>,
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
            steps: Mutex::new(0),
            began: now,
            boots: Mutex::new(1),
            booted_at: Mutex::new(now),
            life: Mutex::new(life),
            sick: Mutex::default(),
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
        let keys = OwnerKeys::fixed();
        let mut release = keys.host_release(counter, b"image");
        release.rollback_floor = floor;
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
            *self.0.armed.lock().unwrap().entry(*token).or_default() += 1;
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
            fake.commit(slot)
        })
    }
    fn mark_well(&self) -> Result<(), BootError> {
        self.do_it(|fake| fake.mark_well())
    }
    fn rollback(&self) -> Result<(), BootError> {
        self.0.life.lock().unwrap().judged();
        self.do_it(|fake| fake.rollback())
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
            config: config(),
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
        if let Some(mut said) = answer
            && let Ok(Err(why)) = said.try_recv()
        {
            panic!("asked in vain: {}: {}", why.code, why.message);
        }
        let status = seen.borrow().clone();
        Seen { status, end }
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
        let armed = self.armed.lock().unwrap();
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

#[test]
fn a_release_is_installed_tried_and_committed_and_the_slot_below_its_floor_retired() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 20);
        let target = world.target(wants(&new, 0), 5);
        let status = world.settles(Some(target)).await;
        let host = status.host.clone().unwrap();
        assert_eq!(code(&status), None);
        assert_eq!(status.applied, Some((1, 5)));
        assert_eq!(host.release, Some(new.sha256()));
        assert_eq!(host.slots["b"].state, SlotState::Committed);
        assert_eq!(host.slots["a"].state, SlotState::Empty, "the factory's image is below the floor");
        assert!(!world.boot.inner().valid[0]);
        assert_eq!(world.running(), Held::Whole(new.sha256()));
        assert_eq!(*world.boots.lock().unwrap(), 2, "one restart");
        insta::assert_snapshot!(world.boot.inner().calls.join("\n"), @r"
        mark_well
        mark_unbootable b
        arm_trial b
        reboot into the trial
        commit b
        mark_well
        mark_unbootable a
        ");
    });
}

#[test]
fn power_cut_at_any_step_of_a_good_update_ends_in_the_new_release() {
    let steps = in_time(async {
        let world = World::new();
        let new = world.release(20, 20);
        world.settles(Some(world.target(wants(&new, 0), 5))).await;
        *world.steps.lock().unwrap()
    });
    assert!(steps > 30, "{steps}");
    for cut in 0..steps {
        in_time(async {
            let world = World::new();
            let new = world.release(20, 20);
            *world.left.lock().unwrap() = Some(cut);
            let target = world.target(wants(&new, 0), 5);
            let seen = world.agent(Some(target.clone()), HOURS).await;
            if seen.end == End::Off {
                if *world.dead.lock().unwrap() {
                    *world.left.lock().unwrap() = None;
                }
                world.starts();
            }
            for _ in 0..10 {
                let seen = world.agent(Some(target.clone()), HOURS).await;
                if *world.dead.lock().unwrap() {
                    *world.left.lock().unwrap() = None;
                }
                if seen.end == End::Steady {
                    break;
                }
                world.starts();
            }
            let status = world.settles(Some(target)).await;
            assert_eq!(code(&status), None, "cut at {cut}: {status:?}");
            assert_eq!(world.running(), Held::Whole(new.sha256()), "cut at {cut}");
            assert_eq!(*world.floor.lock().unwrap(), 20, "cut at {cut}");
            world.limits_hold();
        });
    }
}

#[test]
fn power_cut_at_any_step_of_a_bad_update_ends_in_the_old_release_with_the_reason() {
    for panics in [false, true] {
        let mut cut = 0;
        loop {
            let more = in_time(async {
                let world = World::new();
                let bad = world.release(20, 0);
                let broken = if panics { &world.panics } else { &world.sick };
                broken.lock().unwrap().insert(bad.sha256());
                *world.left.lock().unwrap() = Some(cut);
                let target = world.target(wants(&bad, 0), 5);
                for _ in 0..20 {
                    let seen = world.agent(Some(target.clone()), HOURS).await;
                    if *world.dead.lock().unwrap() {
                        *world.left.lock().unwrap() = None;
                    }
                    if seen.end == End::Steady {
                        break;
                    }
                    world.starts();
                }
                let more = world.left.lock().unwrap().is_none();
                *world.left.lock().unwrap() = None;
                let status = world.settles(Some(target)).await;
                let host = status.host.clone().unwrap();
                let expected = if panics { "os_no_verdict" } else { "os_unhealthy" };
                assert_eq!(code(&status).as_deref(), Some(expected), "cut at {cut}: {status:?}");
                assert_eq!(host.failed, Some(bad.sha256()));
                assert_eq!(status.applied, None);
                assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())), "cut at {cut}");
                assert_eq!(host.slots["b"].state, SlotState::Bad);
                world.limits_hold();
                // It stays so, and a person's retry is another try.
                let armed = world.armed.lock().unwrap().len();
                world.sick.lock().unwrap().clear();
                world.panics.lock().unwrap().clear();
                let again = world.settles(Some(world.target(wants(&bad, 1), 6))).await;
                assert_eq!(code(&again), None, "cut at {cut}: {again:?}");
                assert_eq!(world.armed.lock().unwrap().len(), armed + 1);
                more
            });
            cut += 1;
            if !more {
                break;
            }
        }
        assert!(cut > 20, "{cut}");
    }
}

#[test]
fn a_cloud_away_in_the_trial_is_no_fault_of_the_release() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().cloud_not_in_trial = true;
        let target = world.target(wants(&new, 0), 5);
        let mut trials = 0;
        // Two days, with a cloud that is away in each trial and for a while after it: trials at growing distances, never parked.
        while world.began.elapsed() < Duration::from_secs(48 * 3600) {
            world.life.lock().unwrap().cloud = trials == 0;
            let seen = world.agent(Some(target.clone()), Duration::from_secs(2000)).await;
            world.life.lock().unwrap().cloud = true;
            let ended = seen.end == End::Off
                || world.agent(Some(target.clone()), Duration::from_secs(26 * 3600)).await.end == End::Off;
            assert!(ended, "{:?}", seen.status);
            world.starts();
            trials += u32::from(world.on_trial());
        }
        assert!((3..=6).contains(&trials), "{trials}");
        while world.on_trial() {
            world.agent(Some(target.clone()), Duration::from_secs(3600)).await;
            world.starts();
        }
        let seen = world.agent(Some(target.clone()), Duration::from_secs(60)).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_cloud_unreachable"));
        assert_eq!(seen.status.host.unwrap().failed, None, "never parked");
        // The cloud is back in the trial, too.
        world.life.lock().unwrap().cloud_not_in_trial = false;
        for _ in 0..4 {
            if world.agent(Some(target.clone()), Duration::from_secs(30 * 3600)).await.end == End::Off {
                world.starts();
            }
        }
        assert_eq!(world.running(), Held::Whole(new.sha256()));
    });
}

#[test]
fn a_release_that_keeps_the_cloud_away_is_given_up_after_one_round_of_trials() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        // Only the old slot reaches it, and at once.
        world.life.lock().unwrap().cloud_not_in_trial = true;
        let target = world.target(wants(&new, 0), 5);
        let mut trials = 0;
        let status = loop {
            let seen = world.agent(Some(target.clone()), Duration::from_secs(26 * 3600)).await;
            if seen.end == End::Steady {
                break seen.status;
            }
            world.starts();
            trials += u32::from(world.on_trial());
            assert!(trials < 10, "tried for ever");
        };
        assert_eq!(trials, 3);
        assert_eq!(code(&status).as_deref(), Some("os_cloud_unreachable"));
        assert_eq!(status.host.unwrap().failed, Some(new.sha256()));
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        // A person asks again.
        world.life.lock().unwrap().cloud_not_in_trial = false;
        world.settles(Some(world.target(wants(&new, 1), 6))).await;
        assert_eq!(world.running(), Held::Whole(new.sha256()));
    });
}

#[test]
fn power_lost_in_trials_is_told_apart_and_the_trials_are_counted() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        let target = world.target(wants(&new, 0), 5);
        let mut boots = 0;
        // Whoever pulls the plug does it whenever the trial has been up for five seconds.
        let status = loop {
            let most = if world.on_trial() { Duration::from_secs(5) } else { HOURS };
            let seen = world.agent(Some(target.clone()), most).await;
            if seen.end == End::Steady && !world.on_trial() {
                break seen.status;
            }
            world.starts();
            boots += 1;
            assert!(boots < 30, "the device restarts for ever");
        };
        assert_eq!(code(&status).as_deref(), Some("os_power_lost"));
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        assert_eq!(world.armed.lock().unwrap()[&new.sha256()], 3);
    });
}

#[test]
fn locks_and_the_window_hold_the_restart_back_and_a_changed_mind_cancels() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().locked = true;
        let target = world.target(wants(&new, 0), 5);
        let hour = Duration::from_secs(3600);
        let seen = world.agent(Some(target.clone()), hour).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_waiting_lock"));
        assert_eq!(seen.status.host.unwrap().progress.unwrap().stage, "os_waiting");
        world.life.lock().unwrap().locked = false;
        // NOW is 08:00 UTC.
        world.life.lock().unwrap().window = Some("22:30-04:00");
        let target = world.target(wants(&new, 0), 5);
        let seen = world.agent(Some(target), hour).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_waiting_window"));
        assert!(!world.boot.inner().valid[1], "not bootable while it waits");
        let seen = world.agent(Some(world.target(HostAim::None, 6)), hour).await;
        assert_eq!((code(&seen.status), seen.status.applied), (None, Some((1, 6))));
        assert_eq!(seen.status.host.unwrap().slots["b"].state, SlotState::Empty);
        let journal = Journal::load(&StateDir::open("/s", world.clone()).unwrap()).unwrap();
        assert_eq!(journal.last.unwrap().reason.unwrap().code, "os_cancelled");
        assert_eq!(*world.boots.lock().unwrap(), 1);
    });
}

#[test]
fn a_release_that_cannot_be_written_is_given_up_after_three_times_and_a_dead_network_never() {
    in_time(async {
        for (code_, passing, parked) in [("os_readback", false, true), ("os_download", true, false)] {
            let world = World::new();
            let new = world.release(20, 0);
            world.life.lock().unwrap().install = Err((code_, passing));
            let target = world.target(wants(&new, 0), 5);
            let status = world.settles(Some(target.clone())).await;
            assert_eq!(code(&status).as_deref(), Some(code_));
            assert_eq!(status.host.unwrap().failed.is_some(), parked);
            world.life.lock().unwrap().install = Ok(());
            let status = world.settles(Some(target)).await;
            assert_eq!(code(&status).is_some(), parked);
        }
    });
}

#[test]
fn the_factorys_image_is_recognised_as_the_release_it_is() {
    in_time(async {
        let world = World::new();
        let mut release = OwnerKeys::fixed().host_release(20, b"image");
        release.version = "0.9.0".parse().unwrap();
        let keys = OwnerKeys::fixed();
        let envelope = sign(&release, &[&keys.host]);
        let expected = ExpectedRelease::host(envelope.payload_sha256());
        let root = keys.trusted(&keys.root());
        let platform = copal_protocol::testing::platform();
        let purpose = Purpose::Install { now: NOW };
        let found = Arc::new(
            verify::release(&root, &expected, &ReleaseMarks::default(), &platform, purpose, &envelope)
                .unwrap(),
        );
        world.releases.lock().unwrap().insert(found.sha256(), found.clone());
        world.held.lock().unwrap()[0] = Held::Whole(found.sha256());
        let status = world.settles(Some(world.target(wants(&found, 0), 5))).await;
        assert_eq!((code(&status), status.applied), (None, Some((1, 5))));
        assert_eq!(status.host.unwrap().release, Some(found.sha256()));
        assert_eq!(*world.boots.lock().unwrap(), 1, "nothing was installed");
    });
}

#[test]
fn a_person_goes_back_and_the_target_is_not_put_there_again() {
    in_time(async {
        let world = World::new();
        let (old, new) = (world.release(19, 0), world.release(20, 0));
        world.settles(Some(world.target(wants(&old, 0), 4))).await;
        let target = world.target(wants(&new, 0), 5);
        world.settles(Some(target.clone())).await;
        assert_eq!(world.running(), Held::Whole(new.sha256()));
        let hour = Duration::from_secs(3600);
        let seen = world.agent_with(Some(target.clone()), hour, Some(Ask::Rollback)).await;
        assert_eq!(seen.end, End::Off);
        world.starts();
        let status = world.settles(Some(target)).await;
        assert_eq!(world.running(), Held::Whole(old.sha256()));
        assert_eq!(code(&status).as_deref(), Some("os_rolled_back"));
        // Another target is installed as ever.
        let newer = world.release(21, 0);
        world.settles(Some(world.target(wants(&newer, 0), 6))).await;
        assert_eq!(world.running(), Held::Whole(newer.sha256()));
    });
}

#[test]
fn what_failed_its_trial_is_never_committed_though_three_power_cuts_give_it_another_turn() {
    in_time(async {
        let world = World::new();
        let bad = world.release(20, 0);
        world.sick.lock().unwrap().insert(bad.sha256());
        let target = world.target(wants(&bad, 0), 5);
        world.settles(Some(target.clone())).await;
        assert!(!world.boot.inner().valid[1], "what failed is made unbootable once the old slot is well");
        assert_eq!(*world.over.lock().unwrap(), [bad.sha256()], "a later try of it is judged as new");

        // And where that could not be done: its head is there, and nothing the agent sees tells that it is sick.
        world.boot.inner().valid[1] = true;
        world.sick.lock().unwrap().clear();
        for _ in 0..4 {
            world.starts();
        }
        assert!(world.on_trial() && world.running() == Held::Whole(bad.sha256()));
        let status = world.settles(Some(target)).await;
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        assert_eq!(code(&status).as_deref(), Some("os_unhealthy"));
    });
}

#[test]
fn a_full_data_partition_costs_the_committed_slot_none_of_its_boots() {
    in_time(async {
        // Full from the first boot of the new system on that was committed; and from the old one's on that had to go back.
        for sick in [false, true] {
            let world = World::new();
            let new = world.release(20, 0);
            if sick {
                world.sick.lock().unwrap().insert(new.sha256());
            }
            let target = world.target(wants(&new, 0), 5);
            world.life.lock().unwrap().full_after_the_trial = true;
            for _ in 0..10 {
                world.agent(Some(target.clone()), HOURS).await;
                let trial = world.on_trial();
                let full = world.life.lock().unwrap().data[0].is_some();
                assert!(
                    trial || world.boot.inner().booted.tries == 0,
                    "sick {sick}, full {full}: not called well"
                );
                world.starts();
            }
            assert!(world.life.lock().unwrap().data[0].is_some(), "the trial was judged");
            assert!(!world.on_trial());
            let expected = if sick { Sha256Hex::of(FACTORY.as_bytes()) } else { new.sha256() };
            assert_eq!(world.running(), Held::Whole(expected));
        }
    });
}

#[test]
fn a_journal_that_cannot_be_read_keeps_no_trial_and_costs_no_boot() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        let target = world.target(wants(&new, 0), 5);
        while world.agent(Some(target.clone()), HOURS).await.end == End::Off {
            world.starts();
            if world.on_trial() {
                break;
            }
        }
        world.life.lock().unwrap().data[1] = Some(io::ErrorKind::PermissionDenied);
        let seen = world.agent(Some(target.clone()), HOURS).await;
        assert_eq!(seen.end, End::Off, "the trial is undone: {:?}", seen.status);
        world.starts();
        assert!(!world.on_trial());
        world.agent(Some(target.clone()), HOURS).await;
        assert_eq!(world.boot.inner().booted.tries, 0, "called well");
        // It can be read again.
        world.life.lock().unwrap().data[1] = None;
        let status = world.settles(Some(target)).await;
        assert_eq!((code(&status), world.running()), (None, Held::Whole(new.sha256())));
    });
}

#[test]
fn a_slot_alone_is_kept_where_the_boot_state_was_lost_and_the_cloud_is_away() {
    in_time(async {
        let world = World::new();
        {
            let mut inner = world.boot.inner();
            (inner.booted.committed, inner.booted.trial, inner.on_trial) = (Slot::B, true, true);
            (inner.booted.fell_back, inner.booted.fell_why) = (true, Some("lost".to_owned()));
        }
        world.life.lock().unwrap().cloud = false;
        let seen = world.agent(None, HOURS).await;
        assert_eq!(seen.end, End::Steady, "no restart");
        assert_eq!(world.boot.inner().booted.committed, Slot::A);
    });
}

#[test]
fn a_pause_ends_though_the_clock_stands() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        (world.life.lock().unwrap().install, world.life.lock().unwrap().clock_stands) =
            (Err(("os_download", true)), true);
        let target = world.target(wants(&new, 0), 5);
        world.agent(Some(target.clone()), Duration::from_secs(400)).await;
        world.life.lock().unwrap().install = Ok(());
        let status = world.settles(Some(target)).await;
        assert_eq!((code(&status), world.running()), (None, Held::Whole(new.sha256())));
    });
}

#[test]
fn a_restart_that_does_not_come_gives_the_services_their_locks_back() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().reboot_fails = true;
        let target = world.target(wants(&new, 0), 5);
        let (mut held, mut free) = (0, 0);
        let watch = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if world.boot.inner().booted.armed {
                    *(if *world.guards.lock().unwrap() > 0 { &mut held } else { &mut free }) += 1;
                }
            }
        };
        tokio::select! {
            () = watch => unreachable!(),
            _ = world.agent(Some(target), Duration::from_secs(900)) => {}
        }
        assert!(free > held && held > 0, "free {free} s, held {held} s");
    });
}

#[test]
fn an_installer_that_breaks_off_is_a_failure_like_others() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().installer_panics = true;
        let target = world.target(wants(&new, 0), 5);
        let status = world.settles(Some(target)).await;
        assert_eq!(code(&status).as_deref(), Some("os_write"));
        assert_eq!(status.host.unwrap().failed, Some(new.sha256()));
    });
}

/// What may happen to a device.
#[derive(Debug, Clone)]
enum Event {
    Target(u8, u64),
    NoTarget,
    Unknown,
    Cloud(bool),
    CloudNotInTrial(bool),
    Locked(bool),
    Sick(u8, bool),
    Panics(u8, bool),
    Install(bool, bool),
    ClockBy(i64),
    JournalLost,
    /// The device runs so long, and then loses power.
    PowerCut(u64),
    /// The power goes at the n-th effect from here.
    CutAt(usize),
    /// It runs so long.
    Runs(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3_u8, 0..2_u64).prop_map(|(r, retry)| Event::Target(r, retry)),
        1 => Just(Event::NoTarget),
        1 => Just(Event::Unknown),
        1 => any::<bool>().prop_map(Event::Cloud),
        1 => any::<bool>().prop_map(Event::CloudNotInTrial),
        1 => any::<bool>().prop_map(Event::Locked),
        2 => (0..3_u8, any::<bool>()).prop_map(|(r, b)| Event::Sick(r, b)),
        1 => (0..3_u8, any::<bool>()).prop_map(|(r, b)| Event::Panics(r, b)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(good, passing)| Event::Install(good, passing)),
        1 => (-100_000..100_000_i64).prop_map(Event::ClockBy),
        1 => Just(Event::JournalLost),
        4 => (0..400_u64).prop_map(Event::PowerCut),
        4 => (0..60_usize).prop_map(Event::CutAt),
        4 => (0..4000_u64).prop_map(Event::Runs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_whole_release_runs_trials_are_bounded_and_in_the_end_the_target_or_a_reason(
        events in proptest::collection::vec(event(), 1..25),
    ) {
        in_time(async {
            let world = World::new();
            let releases = [world.release(20, 0), world.release(21, 20), world.release(22, 0)];
            let mut target = None;
            let mut seq = 0;
            for event in events {
                seq += 1;
                let mut runs = Duration::from_secs(0);
                match event {
                    Event::Target(r, retry) => {
                        let release = &releases[usize::from(r)];
                        let aim = if release.counter < *world.floor.lock().unwrap() {
                            HostAim::Refused(verify::Code::ReleaseRollback)
                        } else {
                            wants(release, retry)
                        };
                        target = Some(world.target(aim, seq));
                    }
                    Event::NoTarget => target = Some(world.target(HostAim::None, seq)),
                    Event::Unknown => target = None,
                    Event::Cloud(on) => world.life.lock().unwrap().cloud = on,
                    Event::CloudNotInTrial(on) => world.life.lock().unwrap().cloud_not_in_trial = on,
                    Event::Locked(on) => world.life.lock().unwrap().locked = on,
                    Event::Sick(r, on) => set(&world.sick, releases[usize::from(r)].sha256(), on),
                    Event::Panics(r, on) => {
                        // A committed release does not begin to panic: two such slots would be no updater's fault.
                        let hash = releases[usize::from(r)].sha256();
                        let held = world.held.lock().unwrap().contains(&Held::Whole(hash));
                        set(&world.panics, hash, on && !held);
                    }
                    Event::Install(good, passing) => {
                        world.life.lock().unwrap().install = if good { Ok(()) } else { Err(("os_write", passing)) };
                    }
                    Event::ClockBy(by) => world.life.lock().unwrap().clock += by,
                    Event::JournalLost => {
                        for bytes in world.files.lock().unwrap().values_mut() {
                            bytes.fill(0);
                        }
                    }
                    Event::PowerCut(after) => runs = Duration::from_secs(after),
                    Event::CutAt(n) => {
                        *world.left.lock().unwrap() = Some(n);
                        runs = Duration::from_secs(1000);
                    }
                    Event::Runs(long) => runs = Duration::from_secs(long),
                }
                if !runs.is_zero() {
                    let until = Instant::now() + runs;
                    while Instant::now() < until {
                        let left = until - Instant::now();
                        let seen = world.agent(target.clone(), left).await;
                        if *world.dead.lock().unwrap() {
                            *world.left.lock().unwrap() = None;
                        }
                        if seen.end == End::Off {
                            world.starts();
                        }
                    }
                    *world.left.lock().unwrap() = None;
                    if matches!(event, Event::PowerCut(_)) {
                        world.starts();
                    }
                }
            }
            // Calm: the last target, a good network, nobody holds a lock.
            {
                let mut life = world.life.lock().unwrap();
                (life.cloud, life.cloud_not_in_trial, life.locked, life.install) = (true, false, false, Ok(()));
            }
            let good = world.release(30, 0);
            for hash in [&world.sick, &world.panics] {
                hash.lock().unwrap().clear();
            }
            let target = world.target(wants(&good, 0), 1000);
            // A pause of a day may stand between.
            for _ in 0..3 {
                world.settles(Some(target.clone())).await;
                tokio::time::advance(Duration::from_secs(86_400)).await;
            }
            let status = world.settles(Some(target)).await;
            prop_assert_eq!(code(&status), None, "{:?}", status);
            prop_assert_eq!(world.running(), Held::Whole(good.sha256()));
            world.limits_hold();
            Ok(())
        })?;
    }
}

fn set(of: &Mutex<std::collections::BTreeSet<Sha256Hex>>, hash: Sha256Hex, on: bool) {
    let mut of = of.lock().unwrap();
    if on {
        of.insert(hash);
    } else {
        of.remove(&hash);
    }
}
