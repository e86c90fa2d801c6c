//! `copal-agent os status|install|rollback` as a person runs it: the program, as a process of its own, against the updater's
//! real decisions, installer and documents over slots that are files. What boots is simulated; a restart is another run of the updater.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    io::Cursor,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use copal_agent::{
    apply::status::AgentStatus,
    clock::Clock,
    os::{
        self, Deps, Lines, OsConfig, OsStatus, Slot,
        around::Stored,
        boot::{Backend, BootError, Booted, HEAD, Probe},
        disk::RealDisks,
        door,
        health::Hooks,
        ports::Device as Around,
        slots::{Cloud, Slots},
    },
    state::{RealFs, StateDir},
    target::{HostAim, model::Target},
};
use copal_bundle::{
    encode::{Packing, encode},
    file,
};
use copal_protocol::{
    documents::{DocumentRef, HostPayload},
    ids::Sha256Hex,
    keys::SigningKey,
    testing::sign,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};

mod support;
use support::{Device, FakeCloud, Running};

const BLOCKS: usize = 64;

/// A bootloader that keeps its promises, over slots that are files.
struct Board {
    slots: [PathBuf; 2],
    booted: Mutex<Booted>,
    restarted: Notify,
    boots: Mutex<u32>,
}

impl Board {
    fn new(slots: [PathBuf; 2]) -> Arc<Self> {
        let booted = Booted::settled(Slot::A);
        Arc::new(Self { slots, booted: Mutex::new(booted), restarted: Notify::new(), boots: Mutex::new(1) })
    }

    fn slot(&self, slot: Slot) -> &Path {
        &self.slots[usize::from(slot == Slot::B)]
    }

    fn change<T>(&self, change: impl FnOnce(&mut Booted) -> T) -> T {
        change(&mut self.booted.lock().unwrap())
    }
}

impl Backend for Board {
    fn name(&self) -> &'static str {
        "simulated"
    }
    fn probe(&self) -> Result<Probe, BootError> {
        Ok(Probe { backend: "simulated", bootloader: None, good_copies: 2 })
    }
    fn active(&self) -> Result<Booted, BootError> {
        Ok(self.booted.lock().unwrap().clone())
    }
    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        assert_ne!(slot, self.change(|b| b.slot), "I1: the slot that runs is never written");
        let file = fs::File::options().write(true).open(self.slot(slot)).unwrap();
        file.write_all_at(&[0; HEAD], 0).unwrap();
        self.change(|b| b.armed = false);
        Ok(())
    }
    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        Ok(fs::read(self.slot(slot)).unwrap()[1080..1082] == [0x53, 0xef])
    }
    fn arm_trial(&self, slot: Slot, _: &Sha256Hex) -> Result<(), BootError> {
        assert!(self.is_bootable(slot)?, "I4: armed what cannot boot");
        self.change(|b| (b.armed, b.tries, b.arms) = (true, 0, b.arms + 1));
        Ok(())
    }
    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        self.change(|b| {
            assert_eq!(b.slot, slot, "I5: committed what does not run");
            (b.committed, b.trial, b.arms) = (slot, false, 0);
        });
        Ok(())
    }
    fn mark_well(&self) -> Result<(), BootError> {
        self.change(|b| b.tries = 0);
        Ok(())
    }
    fn rollback(&self) -> Result<(), BootError> {
        self.change(|b| b.armed = false);
        Ok(())
    }
    fn reboot(&self, into_trial: bool) -> Result<(), BootError> {
        self.change(|b| {
            b.slot = if into_trial && b.armed { b.committed.other() } else { b.committed };
            (b.trial, b.armed) = (b.slot != b.committed, false);
        });
        *self.boots.lock().unwrap() += 1;
        self.restarted.notify_one();
        Ok(())
    }
}

/// A device on which all is well.
struct Well(Arc<Board>);

impl Around for Well {
    fn now(&self) -> u64 {
        Clock::default().now()
    }
    fn clock_is_set(&self) -> bool {
        true
    }
    fn boot_id(&self) -> String {
        format!("boot-{}", self.0.boots.lock().unwrap())
    }
    fn uptime_s(&self) -> u64 {
        1000
    }
    fn engine(&self) -> BoxFuture<'_, bool> {
        async { true }.boxed()
    }
    fn hooks(&self, _: Duration) -> BoxFuture<'_, Hooks> {
        async { Hooks::Well }.boxed()
    }
    fn lock(&self) -> Result<Box<dyn Send>, Vec<String>> {
        Ok(Box::new(()))
    }
}

fn image(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes: Vec<u8> = (0..BLOCKS * 512)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    bytes
}

struct Scene {
    dir: tempfile::TempDir,
    cloud: FakeCloud,
    device: Device,
    board: Arc<Board>,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cloud = FakeCloud::start().await;
        let device = Device::of(&cloud);
        let slots = ["a", "b"].map(|slot| dir.path().join(slot));
        fs::write(&slots[0], image(1)).unwrap();
        fs::write(&slots[1], vec![0; image(1).len()]).unwrap();
        let scene = Self { board: Board::new(slots), dir, cloud, device };
        fs::write(scene.path("copal.json"), serde_json::to_vec(&scene.device.file).unwrap()).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the image that runs says of itself.
    fn config(&self) -> OsConfig {
        let version = if self.board.change(|b| b.slot) == Slot::A { "1.0.0" } else { "2.0.0" };
        let [a, b] = &self.board.slots;
        OsConfig::parse(
            &serde_json::to_vec(&serde_json::json!({
                "backend": "grub", "device_type": self.device.file.device_type, "version": version, "data_schema": 1,
                "env_files": ["/nonexistent/0", "/nonexistent/1"], "slots": {"a": {"rootfs": a}, "b": {"rootfs": b}},
            }))
            .unwrap(),
        )
        .unwrap()
    }

    fn write_config(&self) {
        fs::write(self.path("os.json"), serde_json::to_vec(&self.config()).unwrap()).unwrap();
    }

    /// The agent's part, through restarts, for ever.
    async fn agent(&self, running: &Running) {
        loop {
            self.write_config();
            let config = self.config();
            let state = Arc::new(StateDir::open(self.device.dir.path(), Arc::new(RealFs)).unwrap());
            let cloud = Arc::new(Cloud(running.session.clone()));
            let deps = Deps {
                installer: Arc::new(Slots::new(config.clone(), Arc::new(RealDisks), cloud, state.clone())),
                config,
                boot: self.board.clone(),
                documents: Arc::new(Stored(running.store.clone())),
                device: Arc::new(Well(self.board.clone())),
                state,
            };
            let target = Target { os: HostAim::None, may_install: true, ..Target::default() };
            let (_t, targets) = watch::channel(Some(Arc::new(target)));
            let (_a, apps) = watch::channel(AgentStatus { applied: Some((1, 1)), ..AgentStatus::default() });
            let (asking, asks) = mpsc::channel(4);
            let (status, _s) = watch::channel(OsStatus::default());
            let lines = Lines { targets, condition: running.condition.clone(), apps, asks, status };
            let run_dir = self.path("run");
            tokio::select! {
                () = os::run(deps, lines) => {}
                () = door::serve(&run_dir, running.store.clone(), Clock::default(), asking) => {}
                () = self.board.restarted.notified() => {}
            }
        }
    }

    /// The program; its exit code and both of its outputs.
    async fn program(&self, words: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_copal-agent"));
        command.arg("os").args(words).arg("--config").arg(self.path("copal.json"));
        command.arg("--state-dir").arg(self.device.dir.path()).arg("--run-dir").arg(self.path("run"));
        command.env("COPAL_OS_CONFIG", self.path("os.json")).stdin(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.output());
        let ended = tokio::time::timeout(Duration::from_secs(240), ended).await;
        let output = ended.unwrap_or_else(|_| panic!("{words:?} did not end")).unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    async fn refused(&self, words: &[&str], why: &str) {
        let (code, _, error) = self.program(words).await;
        assert_eq!(code, 1, "{words:?}: {error}");
        assert!(error.contains(why), "{words:?}: {why:?} is not in {error}");
    }

    async fn status(&self) -> Value {
        let (code, out, error) = self.program(&["status", "--json"]).await;
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).unwrap()
    }

    /// A bundle of version 2.
    fn bundle(&self, name: &str, counter: u64, data_schema: u64, by: &SigningKey) -> String {
        let bytes = image(2);
        let (mut data, mut index) = (Vec::new(), Vec::new());
        encode(&mut Cursor::new(&bytes), &Packing::default(), &mut data, &mut index, |_| {}).unwrap();
        let mut release = self.cloud.keys.host_release(counter, &bytes);
        release.version = "2.0.0".parse().unwrap();
        release.data_schema = Some(data_schema);
        let of_index = DocumentRef { sha256: Sha256Hex::of(&index), size: Some(index.len() as u64) };
        let payload = HostPayload {
            size: bytes.len() as u64,
            sha256: Sha256Hex::of(&bytes),
            index: Some(of_index),
            verity_root: None,
        };
        release.payloads = [("rootfs".parse().unwrap(), payload)].into();
        let envelope = sign(&release, &[by]).to_bytes();
        let path = self.path(name);
        let mut out = fs::File::create(&path).unwrap();
        for (name, bytes) in [("release.json", &envelope), ("rootfs.index", &index), ("rootfs.data", &data)] {
            file::begin(&mut out, name, bytes.len() as u64).unwrap();
            std::io::Write::write_all(&mut out, bytes).unwrap();
            file::pad(&mut out, bytes.len() as u64).unwrap();
        }
        file::finish(&mut out).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_the_device_sees_installs_and_goes_back() {
    let scene = Scene::new().await;
    if !nix::unistd::Uid::effective().is_root() {
        scene.refused(&["status"], "this is for root").await;
        return;
    }
    fs::create_dir_all(scene.path("run")).unwrap();
    scene.refused(&["status"], "os_not_managed").await;
    scene.write_config();
    scene.refused(&["rollback"], "start it (systemctl start copal-agent)").await;
    // Without an agent the disk says what it can: not what was booted, on a machine that has no such slots.
    let (code, out, error) = scene.program(&["status"]).await;
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("system     1.0.0") && out.contains("runs       os_"), "{out}");

    let running = scene.device.start();
    running.condition("online", |c| c.online).await;
    let good = scene.bundle("good.copal", 20, 1, &scene.cloud.keys.host);
    let stranger = scene.bundle("stranger.copal", 21, 1, &scene.cloud.keys.release);
    let older = scene.bundle("older.copal", 22, 0, &scene.cloud.keys.host);
    let person = async {
        tokio::time::timeout(Duration::from_secs(30), async {
            while !scene.path("run/os/door").exists() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap();
        let (code, out, error) = scene.program(&["status"]).await;
        assert_eq!(code, 0, "{error}");
        assert!(out.contains("runs       slot a; slot a is committed"), "{out}");
        scene.refused(&["install", "/nonexistent.copal"], "/nonexistent.copal").await;
        scene.refused(&["install", &stranger], "E_SIG_WRONG_ROLE").await;
        scene.refused(&["install", &older], "os_incompatible").await;
        scene.refused(&["rollback"], "not known here").await;
        assert_eq!(*scene.board.boots.lock().unwrap(), 1, "nothing was done so far");

        let (code, out, error) = scene.program(&["install", &good]).await;
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("2.0.0 is put into slot b and tried"), "{out}");
        let status = scene.status().await;
        assert_eq!(
            (&status["boot"]["slot"], &status["boot"]["committed"], &status["version"]),
            (&"b".into(), &"b".into(), &"2.0.0".into()),
            "{status}"
        );
        assert!(fs::read(scene.board.slot(Slot::B)).unwrap() == image(2), "the slot holds the image");
        assert!(fs::read(scene.board.slot(Slot::A)).unwrap() == image(1), "the other was not touched");
        scene.refused(&["install", &good], "runs already").await;

        // The image the device came with: no release names it.
        let (code, out, error) = scene.program(&["rollback"]).await;
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("1.0.0 in slot a is tried"), "{out}");
        let status = scene.status().await;
        assert_eq!(status["boot"]["committed"], "a", "{status}");
        assert_eq!(status["slots"]["a"], "1.0.0 (runs), the factory's image 1.0.0");
        assert_eq!(*scene.board.boots.lock().unwrap(), 3);

        // What was there before is whole no more.
        let file = fs::File::options().write(true).open(scene.board.slot(Slot::B)).unwrap();
        file.write_all_at(&[0; HEAD], 0).unwrap();
        scene.refused(&["rollback", "--no-wait"], "os_slot_invalid").await;
        let (code, out, error) = scene.program(&["install", &good, "--no-wait"]).await;
        assert_eq!((code, out.contains("is put into slot b")), (0, true), "{out}{error}");
    };
    tokio::select! {
        () = scene.agent(&running) => unreachable!("an agent runs for ever"),
        () = person => {}
    }
}
