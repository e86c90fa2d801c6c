//! One device: its storage, its bootloader, its kernel, and an installer that keeps to the contract of the heads.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use copal_protocol::ids::Sha256Hex;

use super::{
    super::{
        Backend, BootError, HEAD, Slot, grub,
        kernel::Kernel,
        state::{self, BootState},
        store::{RawStore, Store},
        tryboot::{autoboot::Autoboot, board, fat, model::Firmware},
        with_kernel, write_head,
    },
    Storage,
};
use crate::os::{
    OsConfig,
    config::BackendKind,
    disk::{Access, Disks as _},
};

/// What the kernel of this boot says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub cmdline: String,
    pub root: Option<Slot>,
    pub boot: u64,
    pub partition: u32,
    pub tryboot: bool,
    pub ran: Vec<Vec<String>>,
    /// Another board than a good one.
    pub vcio_missing: bool,
}

pub(crate) struct SimKernel(pub Mutex<Said>);

impl SimKernel {
    pub(crate) fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.lock().unwrap()
    }
}

fn slot_of(path: &Path) -> Option<Slot> {
    let name = path.to_str()?;
    Slot::BOTH.into_iter().find(|slot| name.ends_with(&format!("-{slot}")))
}

impl Kernel for SimKernel {
    fn cmdline(&self) -> io::Result<String> {
        Ok(self.said().cmdline.clone())
    }
    fn mountinfo(&self) -> io::Result<String> {
        let minor = self.said().root.map_or(9, |slot| slot as u8 + 1);
        Ok(format!("22 1 259:{minor} / / ro,relatime shared:1 - ext4 /dev/root ro\n"))
    }
    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot {}\n", self.said().boot))
    }
    fn device_number(&self, path: &Path) -> io::Result<(u64, u64)> {
        slot_of(path).map(|slot| (259, slot as u64 + 1)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn partition_number(&self, path: &Path) -> io::Result<u32> {
        slot_of(path).map(|slot| slot as u32 + 2).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn device_tree(&self, property: &str) -> io::Result<Option<Vec<u8>>> {
        let facts = board::tests::good();
        let said = self.said();
        let word = match property {
            "system/linux,revision" => facts.revision,
            "chosen/bootloader/build-timestamp" => facts.built,
            "chosen/bootloader/partition" => Some(said.partition),
            "chosen/bootloader/tryboot" => Some(said.tryboot.into()),
            _ => None,
        };
        Ok(word.map(|w| w.to_be_bytes().to_vec()))
    }
    fn has(&self, path: &Path) -> bool {
        path == Path::new("/dev/vcio") && !self.said().vcio_missing
    }
    fn run(&self, command: &[String]) -> Result<(), String> {
        self.said().ran.push(command.to_vec());
        Ok(())
    }
}

pub(crate) struct World {
    pub kind: BackendKind,
    pub storage: Storage,
    pub kernel: Arc<SimKernel>,
    pub backend: Box<dyn Backend>,
    pub config: OsConfig,
    firmware: Firmware,
}

const SIZE: usize = 3 * HEAD;

/// A slot's root image: every byte depends on the version.
pub(crate) fn image(version: u8) -> Vec<u8> {
    let mut bytes = vec![version; SIZE];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    bytes
}

/// A slot's boot image.
pub(crate) fn boot_image(version: u8) -> Vec<u8> {
    let mut bytes = fat::tests::small(b"CONFIG  TXT", b"arm_64bit=1\n");
    bytes[HEAD..HEAD + 8].fill(version);
    let last = bytes.len() - 1;
    bytes[last] = version;
    bytes
}

const CONFIG: &str = r#"{"device_type":"sim","version":"1.0.0","disk":"/sim/disk","state_offsets":[4096,8192],
  "env_files":["/sim/env0","/sim/env1"],"autoboot":"/sim/p1","backend":"BACKEND",
  "slots":{"a":{"rootfs":"/sim/root-a"BOOT-a},"b":{"rootfs":"/sim/root-b"BOOT-b}}}"#;

impl World {
    /// A device fresh from its image: version 1 in slot a, committed; b empty. Not booted yet.
    pub(crate) fn new(kind: BackendKind) -> Self {
        let (name, pi) = match kind {
            BackendKind::Uboot => ("uboot", false),
            BackendKind::Grub => ("grub", false),
            BackendKind::Tryboot => ("tryboot", true),
        };
        let mut text = CONFIG.replace("BACKEND", name);
        for slot in Slot::BOTH {
            let boot = if pi { format!(r#","boot":"/sim/boot-{slot}""#) } else { String::new() };
            text = text.replace(&format!("BOOT-{slot}"), &boot);
        }
        let config = OsConfig::parse(text.as_bytes()).unwrap();
        let storage = Storage::default();
        let mut disk = vec![0; 16384];
        disk[446 + 4] = 0x83;
        disk[446 + 8] = 24;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let state = BootState::new(Slot::A, 3);
        disk[4096..8192].copy_from_slice(&state.encode());
        disk[8192..12288].copy_from_slice(&state.encode());
        storage.add("/sim/disk", disk);
        storage.add("/sim/env0", grub::encode(&state));
        storage.add("/sim/env1", grub::encode(&state));
        let file = Autoboot { normal: 2, trial: 3 }.render(96).unwrap();
        storage.add("/sim/p1", fat::tests::small(b"AUTOBOOTTXT", &file));
        storage.add("/sim/root-a", image(1));
        storage.add("/sim/root-b", vec![0; SIZE]);
        storage.add("/sim/boot-a", boot_image(1));
        storage.add("/sim/boot-b", vec![0; boot_image(1).len()]);
        let kernel = Arc::new(SimKernel(Mutex::new(Said::default())));
        let backend = with_kernel(&config, Arc::new(storage.clone()), kernel.clone()).unwrap();
        Self { kind, storage, kernel, backend, config, firmware: Firmware::default() }
    }

    /// The version in a slot, if it is complete; `None` if anything of it is missing or mixed.
    pub(crate) fn version(&self, slot: Slot) -> Option<u8> {
        let root = self.storage.bytes(&self.config.devices(slot).rootfs);
        let version = root[SIZE - 1];
        let boot = self.config.devices(slot).boot.as_ref();
        let whole =
            root == image(version) && boot.is_none_or(|b| self.storage.bytes(b) == boot_image(version));
        whole.then_some(version)
    }

    /// As the bootloader sees it.
    fn is_bootable(&self, slot: Slot) -> bool {
        let devices = self.config.devices(slot);
        let root = self.storage.bytes(&devices.rootfs);
        root[1080..1082] == [0x53, 0xef]
    }

    /// What an installation does: heads last, the boot partition's last of all.
    pub(crate) fn install(&self, slot: Slot, version: u8) -> Result<(), BootError> {
        self.backend.mark_unbootable(slot)?;
        let devices = self.config.devices(slot);
        let mut parts: Vec<(&PathBuf, Vec<u8>)> = vec![(&devices.rootfs, image(version))];
        parts.extend(devices.boot.as_ref().map(|boot| (boot, boot_image(version))));
        let write = |device: &PathBuf, from: usize, bytes: &[u8]| -> Result<(), BootError> {
            let error = |source| BootError::Write { what: "the image", device: device.clone(), source };
            let disk = self.storage.open(device, Access::Write).map_err(error)?;
            for (at, block) in (from..).step_by(HEAD).zip(bytes.chunks(HEAD)) {
                disk.write_at(at as u64, block).map_err(error)?;
            }
            disk.sync().map_err(error)
        };
        for (device, bytes) in &parts {
            write(device, HEAD, &bytes[HEAD..])?;
        }
        for (device, bytes) in &parts {
            let error = |source| BootError::Write { what: "the head", device: (*device).clone(), source };
            let disk = self.storage.open(device, Access::Write).map_err(error)?;
            write_head(&*disk, device, bytes.first_chunk().unwrap())?;
        }
        Ok(())
    }

    /// Installs into the slot that does not run, and arms.
    pub(crate) fn update(&self, version: u8) -> Result<(), BootError> {
        let booted = self.backend.active()?;
        let slot = booted.slot.other();
        self.backend.probe()?;
        self.install(slot, version)?;
        self.backend.arm_trial(slot, &Sha256Hex::of(&[version]))
    }

    /// Restarts by the backend's own command.
    pub(crate) fn restart(&mut self, into_trial: bool) -> Result<(), BootError> {
        self.backend.reboot(into_trial)?;
        let command = self.kernel.said().ran.last().cloned().unwrap_or_default();
        self.firmware.flag = command.last().is_some_and(|word| word == "0 tryboot");
        Ok(())
    }

    /// The power comes back, and the device boots until a kernel and an agent run. `dies` says of a slot that its system does not
    /// come that far.
    ///
    /// # Panics
    /// If a slot is started that is not complete, or none comes up.
    pub(crate) fn boot(&mut self, dies: impl Fn(Slot) -> bool) -> Slot {
        for _ in 0..20 {
            if self.storage.revive() {
                self.firmware.flag = false;
            }
            let Some(slot) = self.turn() else { continue };
            assert!(self.version(slot).is_some(), "slot {slot} was started, and is not complete");
            if dies(slot) {
                continue;
            }
            let mut said = self.kernel.said();
            said.boot += 1;
            said.root = Some(slot);
            drop(said);
            self.backend.active().unwrap();
            return slot;
        }
        panic!("no slot comes up");
    }

    /// One turn of the bootloader: the slot whose kernel it starts.
    fn turn(&mut self) -> Option<Slot> {
        if self.kind == BackendKind::Tryboot { self.firmware_turn() } else { self.counted_turn() }
    }

    fn firmware_turn(&mut self) -> Option<Slot> {
        let p1 = self.storage.open(Path::new("/sim/p1"), Access::Read).unwrap();
        let file = fat::find(&*p1, b"AUTOBOOTTXT").ok().map(|place| {
            let mut bytes = vec![0; place.size.min(512)];
            p1.read_at(place.offset, &mut bytes).unwrap();
            bytes
        });
        let bootable = |partition| {
            let slot = match partition {
                2 => Slot::A,
                3 => Slot::B,
                _ => return false,
            };
            let boot = self.storage.bytes(self.config.devices(slot).boot.as_ref().unwrap());
            boot[510..512] == [0x55, 0xaa]
        };
        let found =
            self.firmware.clone().boot(file.as_deref(), bootable).expect("the firmware finds a partition");
        self.firmware.flag = false;
        let slot = if found.partition == 2 { Slot::A } else { Slot::B };
        let mut said = self.kernel.said();
        (said.partition, said.tryboot) = (found.partition, found.tryboot);
        drop(said);
        // A kernel without its root panics and restarts.
        self.is_bootable(slot).then_some(slot)
    }

    /// `boot.cmd` and `grub.cfg`, by their numbered steps.
    fn counted_turn(&mut self) -> Option<Slot> {
        let raw = RawStore {
            disks: Arc::new(self.storage.clone()),
            disk: "/sim/disk".into(),
            offsets: [4096, 8192],
        };
        let env = grub::EnvStore {
            disks: Arc::new(self.storage.clone()),
            files: ["/sim/env0".into(), "/sim/env1".into()],
        };
        let grub = self.kind == BackendKind::Grub;
        // 2. The newest good copy.
        let loaded = if grub { env.load() } else { raw.load() }.unwrap();
        // 3. What it asks for.
        let mut state = loaded.state.clone().unwrap_or_else(|| {
            let slot = if self.is_bootable(Slot::A) { Slot::A } else { Slot::B };
            BootState {
                trial: true,
                canary: 0,
                fell: Some("lost".to_owned()),
                generation: u32::from(grub),
                ..BootState::new(slot.other(), 3)
            }
        });
        if loaded.state.is_some() && state.tries >= state.limit {
            if state.trial {
                (state.trial, state.tries) = (false, 0);
                state.fell.get_or_insert_with(|| "tries".to_owned());
            } else if self.is_bootable(state.committed.other()) {
                (state.trial, state.tries, state.fell) = (true, 0, Some("sick".to_owned()));
            }
        }
        // 4. Count it.
        state.tries = (state.tries + 1).min(if grub { 9 } else { 0xfe });
        state.echo = state.canary;
        let saved = if grub { self.grub_save(&loaded, &state) } else { raw.save(&loaded, &state) };
        if self.storage.is_dead() {
            return None;
        }
        state.generation = state.generation.wrapping_add(u32::from(!grub));
        if saved.is_err() && loaded.state.is_some() {
            (state.trial, state.fell) = (false, Some("nosave".to_owned()));
        }
        // 5. Start it.
        let slot = if state.trial { state.committed.other() } else { state.committed };
        if !self.is_bootable(slot) {
            return None;
        }
        let generation = if grub { String::new() } else { format!("copal.gen={:x} ", state.generation) };
        self.kernel.said().cmdline = format!(
            "root=PARTUUID=x copal.slot={slot} copal.trial={} {generation}copal.echo={:x} copal.fell={}",
            u8::from(state.trial),
            state.echo,
            state.fell.as_deref().unwrap_or("-")
        );
        Some(slot)
    }

    /// GRUB does not raise the generation.
    fn grub_save(&self, loaded: &super::super::store::Loaded, state: &BootState) -> Result<(), BootError> {
        let error = |source| BootError::Write { what: "env", device: "/sim/env".into(), source };
        for copy in [1 - loaded.newest, loaded.newest] {
            let disk = self
                .storage
                .open(Path::new(["/sim/env0", "/sim/env1"][copy]), Access::Write)
                .map_err(error)?;
            disk.write_at(0, &grub::encode(state)).map_err(error)?;
        }
        Ok(())
    }

    /// Damages both copies of the boot state.
    pub(crate) fn damage_state(&self) {
        self.storage.change(Path::new("/sim/disk"), |disk| {
            for at in [4096, 8192] {
                disk[at + 100] ^= 1;
                disk[at + state::SIZE - 1] ^= 1;
            }
        });
        for env in ["/sim/env0", "/sim/env1"] {
            self.storage.change(Path::new(env), |bytes| bytes[..40].fill(0));
        }
    }
}
