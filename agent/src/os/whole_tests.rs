//! Whole updates on devices in memory: the real decisions, the real installer, the real backends, and models of the
//! bootloaders; the power goes at every single write of a disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Cursor},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_bundle::encode::{Packing, encode};
use copal_protocol::{
    documents::{DocumentRef, Reason, Release},
    ids::Sha256Hex,
    testing::{NOW, OwnerKeys, sign},
    verify::{self, ExpectedRelease, Purpose, ReleaseMarks, Verified},
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{
    Slot,
    act::{Deps, Lines, OsStatus, run, tests::condition},
    boot::{
        Backend, BootError, Booted, Probe,
        sim::{Storage, Tear, World, boot_image, image},
    },
    config::BackendKind,
    health::Hooks,
    install::{Blobs, FetchError, Ranged},
    ports::{Device, Documents},
    slots::Slots,
};
use crate::{
    apply::status::{AgentStatus, reason},
    state::{Fs, RealFs, StateDir},
    target::{HostAim, HostRelease, model::Target},
};

/// The new image's version; the factory's is 1.
const NEW: u8 = 2;

struct Sim {
    world: Mutex<World>,
    storage: Storage,
    ended: Notify,
    booted_at: Mutex<Instant>,
    began: Instant,
    releases: Mutex<BTreeMap<Sha256Hex, Arc<Verified<Release>>>>,
    blobs: Mutex<BTreeMap<Sha256Hex, Vec<u8>>>,
    committed: Mutex<BTreeSet<Sha256Hex>>,
    floor: Mutex<u64>,
    sick: bool,
    panics: bool,
}

/// What the agent holds of a device.
struct Of(Arc<Sim>);

impl Of {
    fn with<T>(&self, call: impl FnOnce(&dyn Backend) -> T) -> T {
        call(self.0.world.lock().unwrap().backend.as_ref())
    }
}

impl Backend for Of {
    fn name(&self) -> &'static str {
        self.with(|b| b.name())
    }
    fn probe(&self) -> Result<Probe, BootError> {
        self.with(|b| b.probe())
    }
    fn active(&self) -> Result<Booted, BootError> {
        self.with(|b| b.active())
    }
    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        self.with(|b| b.mark_unbootable(slot))
    }
    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        self.with(|b| b.is_bootable(slot))
    }
    fn arm_trial(&self, slot: Slot, token: &Sha256Hex) -> Result<(), BootError> {
        assert!(self.0.world.lock().unwrap().version(slot).is_some(), "I4: armed what is not whole");
        self.with(|b| b.arm_trial(slot, token))
    }
    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        assert!(!self.0.sick, "I5: committed what is sick");
        self.with(|b| b.commit(slot))
    }
    fn mark_well(&self) -> Result<(), BootError> {
        self.with(|b| b.mark_well())
    }
    fn rollback(&self) -> Result<(), BootError> {
        self.with(|b| b.rollback())
    }
    fn reboot(&self, into_trial: bool) -> Result<(), BootError> {
        self.0.world.lock().unwrap().restart(into_trial)?;
        self.0.ended.notify_one();
        Ok(())
    }
}

impl Documents for Of {
    fn release(&self, sha256: Sha256Hex) -> Result<Arc<Verified<Release>>, Reason> {
        Ok(self.0.releases.lock().unwrap()[&sha256].clone())
    }
    fn begin(&self, _: Sha256Hex) -> Result<(), Reason> {
        Ok(())
    }
    fn commit(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        if self.0.storage.is_dead() {
            return Err(reason("E_STATE_IO", "the power was cut"));
        }
        self.0.committed.lock().unwrap().insert(sha256);
        *self.0.floor.lock().unwrap() = self.0.releases.lock().unwrap()[&sha256].rollback_floor;
        Ok(())
    }
    fn end(&self, _: Sha256Hex) -> Result<(), Reason> {
        Ok(())
    }
    fn floor(&self) -> u64 {
        *self.0.floor.lock().unwrap()
    }
}

impl Device for Of {
    fn now(&self) -> u64 {
        NOW + self.0.began.elapsed().as_secs()
    }
    fn clock_is_set(&self) -> bool {
        true
    }
    fn boot_id(&self) -> String {
        self.0.world.lock().unwrap().kernel.said().boot.to_string()
    }
    fn uptime_s(&self) -> u64 {
        self.0.booted_at.lock().unwrap().elapsed().as_secs()
    }
    fn engine(&self) -> BoxFuture<'_, bool> {
        let trial = self.active().is_ok_and(|b| b.trial);
        async move { !(trial && self.0.sick) }.boxed()
    }
    fn hooks(&self, _: Duration) -> BoxFuture<'_, Hooks> {
        async { Hooks::Well }.boxed()
    }
    fn lock(&self) -> Result<Box<dyn Send>, Vec<String>> {
        Ok(Box::new(()))
    }
}

impl Blobs for Of {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        let blob = self.0.blobs.lock().unwrap()[&sha256].clone();
        let end = usize::try_from(to).unwrap().min(blob.len());
        let bytes = blob[usize::try_from(from).unwrap()..end].to_vec();
        async move { Ok(Ranged { from, stream: stream::iter([Ok(bytes.into())]).boxed() }) }.boxed()
    }
}

/// The data partition: nothing reaches it once the power is gone.
struct Data(Storage);

impl Data {
    fn on(&self) -> io::Result<()> {
        if self.0.is_dead() { Err(io::Error::other("the power was cut")) } else { Ok(()) }
    }
}

impl Fs for Data {
    fn read(&self, path: &Path, max: usize) -> io::Result<Vec<u8>> {
        RealFs.read(path, max)
    }
    fn write_synced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.on()?;
        std::fs::write(path, bytes)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.on()?;
        RealFs.rename(from, to)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.on()
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.on()?;
        RealFs.remove(path)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.make_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFs.list(dir)
    }
}

impl Sim {
    fn new(kind: BackendKind, sick: bool, panics: bool) -> Arc<Self> {
        let mut world = World::new(kind);
        world.boot(|_| false);
        let storage = world.storage.clone();
        let now = Instant::now();
        Arc::new(Self {
            world: Mutex::new(world),
            storage,
            ended: Notify::new(),
            booted_at: Mutex::new(now),
            began: now,
            releases: Mutex::default(),
            blobs: Mutex::default(),
            committed: Mutex::default(),
            floor: Mutex::new(0),
            sick,
            panics,
        })
    }

    /// A release of the new image, on the server.
    fn release(&self, kind: BackendKind) -> Arc<Verified<Release>> {
        let keys = OwnerKeys::fixed();
        let mut release = keys.host_release(20, b"");
        release.rollback_floor = 20;
        release.version = semver::Version::new(2, 0, 0);
        let mut payloads = vec![("rootfs", image(NEW))];
        if kind == BackendKind::Tryboot {
            payloads.push(("boot", boot_image(NEW)));
        }
        for (name, bytes) in payloads {
            let (mut data, mut index) = (Vec::new(), Vec::new());
            encode(&mut Cursor::new(&bytes), &Packing::default(), &mut data, &mut index, |_| {}).unwrap();
            let mut payload = release.payloads["rootfs"].clone();
            payload.size = bytes.len() as u64;
            payload.sha256 = Sha256Hex::of(&bytes);
            payload.index =
                Some(DocumentRef { sha256: Sha256Hex::of(&index), size: Some(index.len() as u64) });
            release.payloads.insert(name.parse().unwrap(), payload);
            let mut blobs = self.blobs.lock().unwrap();
            blobs.insert(Sha256Hex::of(&index), index);
            blobs.insert(Sha256Hex::of(&data), data);
        }
        let envelope = sign(&release, &[&keys.host]);
        let expected = ExpectedRelease::host(envelope.payload_sha256());
        let root = keys.trusted(&keys.root());
        let platform = copal_protocol::testing::platform();
        let purpose = Purpose::Install { now: NOW };
        let marks = ReleaseMarks::default();
        let found = verify::release(&root, &expected, &marks, &platform, purpose, &envelope).unwrap();
        let found = Arc::new(found);
        self.releases.lock().unwrap().insert(found.sha256(), found.clone());
        found
    }

    /// One boot's agent; its last word, and whether the device goes off.
    async fn agent(self: &Arc<Self>, state: &Path, target: &Arc<Target>) -> (OsStatus, bool) {
        let config = self.world.lock().unwrap().config.clone();
        let of = Arc::new(Of(self.clone()));
        let state = Arc::new(StateDir::open(state, Arc::new(Data(self.storage.clone()))).unwrap());
        let slots = Slots::new(config.clone(), Arc::new(self.storage.clone()), of.clone(), state.clone());
        let deps = Deps {
            config,
            boot: of.clone(),
            installer: Arc::new(slots),
            documents: of.clone(),
            device: of,
            state,
        };
        let (_t, targets) = watch::channel(Some(target.clone()));
        let (_c, condition) = watch::channel(condition());
        let (_a, apps) = watch::channel(AgentStatus { applied: Some((1, 1)), ..AgentStatus::default() });
        let (_asking, asks) = mpsc::channel(1);
        let (status, seen) = watch::channel(OsStatus::default());
        let cut = async {
            while !self.storage.is_dead() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let off = tokio::select! {
            () = run(deps, Lines { targets, condition, apps, asks, status }) => unreachable!(),
            () = self.ended.notified() => true,
            () = cut => true,
            () = tokio::time::sleep(Duration::from_secs(900)) => false,
        };
        let status = seen.borrow().clone();
        (status, off)
    }

    /// Boots and agents until the device rests.
    async fn settles(self: &Arc<Self>, state: &Path, target: &Arc<Target>) -> OsStatus {
        for _ in 0..30 {
            let (status, off) = self.agent(state, target).await;
            if !off {
                return status;
            }
            let mut world = self.world.lock().unwrap();
            let whole = [world.version(Slot::A), world.version(Slot::B)];
            world.boot(|slot| self.panics && whole[slot as usize] == Some(NEW));
            *self.booted_at.lock().unwrap() = Instant::now();
        }
        panic!("the device restarts for ever");
    }
}

fn code(status: &OsStatus) -> Option<String> {
    status.host.as_ref()?.reason.as_ref().map(|r| r.code.clone())
}

/// Updates a device whose power goes at the given write; how many writes there were.
fn update(kind: BackendKind, sick: bool, panics: bool, cut: Option<(usize, Tear)>) -> usize {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let state: PathBuf = dir.path().join("state");
        let sim = Sim::new(kind, sick, panics);
        let release = sim.release(kind);
        let os = HostAim::Release(HostRelease { release: release.clone(), retry: 0 });
        let target = Arc::new(Target { order: (1, 5), os, may_install: true, ..Target::default() });
        let before = sim.storage.writes();
        if let Some((at, tear)) = cut {
            sim.storage.cut_at(at, tear);
        }
        let status = sim.settles(&state, &target).await;
        let running = sim.world.lock().unwrap().backend.active().unwrap();
        let version = sim.world.lock().unwrap().version(running.slot);
        let at = format!("{kind:?}, sick {sick}, panics {panics}, cut {cut:?}: {status:?}");
        assert!(!running.trial && running.committed == running.slot, "{at}");
        if sick || panics {
            let expected = if sick { "os_unhealthy" } else { "os_no_verdict" };
            assert_eq!(code(&status).as_deref(), Some(expected), "{at}");
            assert_eq!((version, sim.committed.lock().unwrap().len()), (Some(1), 0), "{at}");
        } else {
            assert_eq!(code(&status), None, "{at}");
            assert_eq!((version, status.applied), (Some(NEW), Some((1, 5))), "{at}");
            assert!(sim.committed.lock().unwrap().contains(&release.sha256()), "{at}");
        }
        sim.storage.writes() - before
    })
}

const KINDS: [BackendKind; 3] = [BackendKind::Uboot, BackendKind::Grub, BackendKind::Tryboot];

#[test]
fn power_cut_at_every_write_of_a_good_update_ends_in_the_new_system() {
    for kind in KINDS {
        let writes = update(kind, false, false, None);
        assert!(writes > 10, "{kind:?}: {writes}");
        for at in 0..writes {
            for tear in [Tear::Whole, Tear::First(1)] {
                update(kind, false, false, Some((at, tear)));
            }
        }
    }
}

#[test]
fn power_cut_at_every_write_of_a_bad_update_ends_in_the_old_system_with_its_reason() {
    for kind in KINDS {
        for (sick, panics) in [(true, false), (false, true)] {
            let writes = update(kind, sick, panics, None);
            for at in 0..writes {
                update(kind, sick, panics, Some((at, Tear::First(1))));
            }
        }
    }
}
