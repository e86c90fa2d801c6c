//! The Raspberry Pi's own firmware: `autoboot.txt` on the first partition names the boot partition of the committed slot and that
//! of the other one, which a restart with the argument `0 tryboot` boots once.
//!
//! In: the device tree (the only witness of what was booted), `autoboot.txt`, the counts in raw sectors as with U-Boot.
//! Out: one sector of `autoboot.txt` written in place at a commit, and nothing else of the first partition, ever.
//! Never here: trust in `autoboot.txt` about what runs; a restart into a trial that was not counted.
//!
//! The firmware counts nothing: a trial is one boot, and after a commit a slot that does not start any more has no other way than
//! the firmware's own walk to the next bootable partition. The agent counts arms, so that a power cut in a healthy trial can be
//! retried and a dead slot is not tried for ever. `model` (tests) has what is known of the firmware.

pub(crate) mod autoboot;
pub(crate) mod board;
pub(crate) mod fat;
#[cfg(test)]
pub(crate) mod model;

use std::{io, path::Path, sync::Arc};

use copal_protocol::ids::Sha256Hex;

use self::autoboot::Autoboot;
use super::{
    Backend, BootError, Booted, Probe, Slot,
    counted::{arm_counted, limit, refuse_active},
    heads,
    kernel::{Kernel, boot_tag, check_root},
    state::BootState,
    store::{Loaded, RawStore, Store, put},
};
use crate::os::{
    OsConfig,
    disk::{Access, Disk, Disks},
};

const FILE: &str = "autoboot.txt";
const NAME: &[u8; 11] = b"AUTOBOOTTXT";

/// See the module.
pub(crate) struct Tryboot {
    pub store: RawStore,
    pub autoboot: std::path::PathBuf,
    pub config: OsConfig,
    pub disks: Arc<dyn Disks>,
    pub kernel: Arc<dyn Kernel>,
}

/// What one look at the device found.
struct Seen {
    /// The boot partitions' numbers of slot a and b.
    numbers: [u32; 2],
    /// What `autoboot.txt` says, if it is whole and names these two.
    file: Option<Autoboot>,
    loaded: Loaded,
    booted: Booted,
    /// The firmware's word that this is the one boot of a trial.
    tryboot: bool,
}

impl Tryboot {
    fn word(&self, property: &'static str) -> Result<Option<u32>, BootError> {
        let bytes = self.kernel.device_tree(property).map_err(|source| BootError::Read {
            what: property,
            device: "/proc/device-tree".into(),
            source,
        })?;
        Ok(bytes.and_then(|b| b.try_into().ok()).map(u32::from_be_bytes))
    }

    fn boot_device(&self, slot: Slot) -> &Path {
        let devices = self.config.devices(slot);
        // `backend()` refuses a configuration without it.
        devices.boot.as_deref().unwrap_or(&devices.rootfs)
    }

    fn numbers(&self) -> Result<[u32; 2], BootError> {
        let number = |slot| {
            let device = self.boot_device(slot);
            self.kernel.partition_number(device).map_err(|source| BootError::Read {
                what: "the partition's number",
                device: device.into(),
                source,
            })
        };
        Ok([number(Slot::A)?, number(Slot::B)?])
    }

    /// Opens the first partition, and finds the file and its sector.
    fn find(&self, access: Access) -> io::Result<(Box<dyn Disk>, fat::FileAt, [u8; 512])> {
        let disk = self.disks.open(&self.autoboot, access)?;
        disk.drop_caches()?;
        let place = fat::find(&*disk, NAME)?;
        if place.size > 512 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is larger than the 512 bytes that the firmware reads",
            ));
        }
        let mut sector = [0; 512];
        disk.read_at(place.offset, &mut sector)?;
        Ok((disk, place, sector))
    }

    fn read_file(&self) -> Result<Option<Autoboot>, BootError> {
        match self.find(Access::Read) {
            Ok((_, place, sector)) => Ok(Autoboot::parse(&sector[..place.size])),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(source) => Err(BootError::Read { what: FILE, device: self.autoboot.clone(), source }),
        }
    }

    fn write_file(&self, file: Autoboot) -> Result<(), BootError> {
        let write = |source| BootError::Write { what: FILE, device: self.autoboot.clone(), source };
        let (disk, place, before) = self.find(Access::Write).map_err(write)?;
        let sector = file.sector(place, &before).ok_or_else(|| {
            write(io::Error::new(
                io::ErrorKind::InvalidData,
                "its size leaves no room for the two partitions",
            ))
        })?;
        put(&*disk, &self.autoboot, place.offset, &sector, FILE)
    }

    fn look(&self) -> Result<Seen, BootError> {
        let mismatch = |what: String| BootError::RootMismatch { what };
        let numbers = self.numbers()?;
        let partition = self.word("chosen/bootloader/partition")?;
        let slot = Slot::BOTH.into_iter().zip(numbers).find(|(_, n)| Some(*n) == partition).map(|(s, _)| s);
        let slot = slot.ok_or_else(|| {
            mismatch(format!("the firmware booted partition {partition:?}, the slots are {numbers:?}"))
        })?;
        let tryboot = self.word("chosen/bootloader/tryboot")? == Some(1);
        check_root(&*self.kernel, &self.config, slot)?;
        let ours = |f: &Autoboot| numbers == [f.normal, f.trial] || numbers == [f.trial, f.normal];
        let file = self.read_file()?.filter(ours);
        let loaded = self.store.load()?;
        let tag = boot_tag(&*self.kernel)?;
        let booted = booted(slot, tryboot, file.map(|f| of(numbers, f.normal)), loaded.state.as_ref(), tag);
        Ok(Seen { numbers, file, loaded, booted, tryboot })
    }

    fn base(&self, seen: &Seen) -> BootState {
        let limit = limit(&self.config);
        let fresh = || BootState::new(seen.booted.committed, limit);
        BootState {
            limit,
            committed: seen.booted.committed,
            ..seen.loaded.state.clone().unwrap_or_else(fresh)
        }
    }
}

/// The slot with this boot partition; `numbers` were checked to have it.
fn of(numbers: [u32; 2], number: u32) -> Slot {
    if numbers[0] == number { Slot::A } else { Slot::B }
}

fn pointing_at(numbers: [u32; 2], slot: Slot) -> Autoboot {
    let [a, b] = numbers;
    match slot {
        Slot::A => Autoboot { normal: a, trial: b },
        Slot::B => Autoboot { normal: b, trial: a },
    }
}

/// Puts together what the firmware says of this boot, what it would boot next (`named`), and the counts. `tag` is this boot's number.
fn booted(slot: Slot, tryboot: bool, named: Option<Slot>, state: Option<&BootState>, tag: u32) -> Booted {
    // The firmware acts on the file, so the file is what is committed. Where a power cut tore it, it is what the counts say; and
    // where they are gone, too, nothing is known, and what runs is on trial.
    let committed = named.or(state.map(|s| s.committed)).unwrap_or(slot.other());
    let trial = slot != committed;
    let armed_for = state.filter(|s| s.trial && s.committed == committed);
    // It went into the trial in an earlier boot, and is back.
    let returned = !trial && armed_for.is_some_and(|s| s.tries > 0 && s.canary != tag);
    let fell_why = if trial && !tryboot {
        Some("walk")
    } else if returned {
        Some("tries")
    } else {
        None
    };
    Booted {
        slot,
        trial,
        committed,
        tries: state.map_or(0, |s| s.tries.into()),
        arms: state.map_or(0, |s| s.arms.into()),
        arms_for: state.and_then(|s| s.arms_for),
        armed: !trial && armed_for.is_some() && !returned,
        fell_back: fell_why.is_some(),
        fell_why: fell_why.map(str::to_owned),
    }
}

impl Backend for Tryboot {
    fn name(&self) -> &'static str {
        "tryboot"
    }

    fn probe(&self) -> Result<Probe, BootError> {
        let probe = |(what, next)| BootError::Probe { what, next };
        let built = self.word("chosen/bootloader/build-timestamp")?;
        let facts = board::Facts {
            revision: self.word("system/linux,revision")?,
            built,
            partition: self.word("chosen/bootloader/partition")?,
            tryboot: self.word("chosen/bootloader/tryboot")?,
            vcio: self.kernel.has(Path::new("/dev/vcio")),
            eeprom_locked: self.config_locks_eeprom()?,
        };
        board::judge(&facts).map_err(probe)?;
        self.store.check_layout()?;
        let seen = self.look()?;
        if seen.file.is_none() {
            let next = "restart the device: the agent mends it once the running slot is well";
            return Err(probe((
                format!("{FILE} is damaged or names other partitions than {:?}", seen.numbers),
                next,
            )));
        }
        // Whoever has it mounted may write over what is written here.
        self.find(Access::Write).map_err(|e| {
            probe((format!("{} cannot be opened for writing: {e}", self.autoboot.display()), "unmount it"))
        })?;
        Ok(Probe {
            backend: self.name(),
            bootloader: built.map(|b| b.to_string()),
            good_copies: seen.loaded.good,
        })
    }

    fn active(&self) -> Result<Booted, BootError> {
        self.look().map(|seen| seen.booted)
    }

    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        let seen = self.look()?;
        refuse_active(&seen.booted, slot)?;
        if seen.loaded.state.as_ref().is_some_and(|s| s.trial) {
            self.rollback()?;
        }
        heads::destroy(&*self.disks, &self.config, slot)
    }

    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        heads::are_there(&*self.disks, &self.config, slot)
    }

    fn arm_trial(&self, slot: Slot, release: &Sha256Hex) -> Result<(), BootError> {
        let seen = self.look()?;
        refuse_active(&seen.booted, slot)?;
        heads::check(&*self.disks, &self.config, slot)?;
        self.store.check_layout()?;
        if seen.file != Some(pointing_at(seen.numbers, seen.booted.slot)) {
            return Err(BootError::Arm {
                slot,
                why: format!("{FILE} is damaged; it is mended once the running slot is well"),
            });
        }
        arm_counted(&self.store, &seen.loaded, &self.base(&seen), slot, release)
    }

    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        let seen = self.look()?;
        let booted = &seen.booted;
        if booted.slot != slot {
            return Err(BootError::NotTrial { slot, why: "it does not run" });
        }
        let called_off = seen.loaded.state.as_ref().is_some_and(|s| !s.trial);
        if booted.trial && seen.tryboot && called_off {
            return Err(BootError::NotTrial { slot, why: "its trial was called off" });
        }
        if !booted.trial && seen.loaded.state.as_ref().is_some_and(|s| s.committed == slot) {
            return Ok(());
        }
        // 1. What the firmware acts on. 2. The counts. A cut between them is a commit whose counts `mark_well` catches up on.
        if seen.file != Some(pointing_at(seen.numbers, slot)) {
            self.write_file(pointing_at(seen.numbers, slot))?;
        }
        let base = self.base(&seen);
        let next = BootState { committed: slot, trial: false, tries: 0, arms: 0, arms_for: None, ..base };
        if seen.loaded.good == 2 && seen.loaded.state.as_ref() == Some(&next) {
            return Ok(());
        }
        self.store.save(&seen.loaded, &next)
    }

    fn mark_well(&self) -> Result<(), BootError> {
        let seen = self.look()?;
        if seen.booted.trial {
            return Ok(());
        }
        if seen.file.is_none() {
            self.write_file(pointing_at(seen.numbers, seen.booted.slot))?;
        }
        let base = self.base(&seen);
        let next = if seen.booted.armed { base } else { BootState { trial: false, tries: 0, ..base } };
        if seen.loaded.good == 2 && seen.loaded.state.as_ref() == Some(&next) {
            return Ok(());
        }
        self.store.save(&seen.loaded, &next)
    }

    fn rollback(&self) -> Result<(), BootError> {
        let seen = self.look()?;
        let base = self.base(&seen);
        if seen.booted.trial {
            heads::check(&*self.disks, &self.config, seen.booted.committed)?;
            // Without a whole file the firmware would walk to whichever slot comes first.
            if seen.file.is_none() {
                self.write_file(pointing_at(seen.numbers, seen.booted.committed))?;
            }
        }
        if !base.trial {
            return Ok(());
        }
        self.store.save(&seen.loaded, &BootState { trial: false, tries: 0, ..base })
    }

    fn reboot(&self, into_trial: bool) -> Result<(), BootError> {
        let mut command = self.config.reboot.clone();
        if into_trial {
            let seen = self.look()?;
            if !seen.booted.armed {
                return Err(BootError::Reboot { command, why: "no trial is armed".to_owned() });
            }
            // Counted before it begins, with the number of this boot, so that the next one knows that it came back.
            let next = BootState { tries: 1, canary: boot_tag(&*self.kernel)?, ..self.base(&seen) };
            self.store.save(&seen.loaded, &next)?;
            command.push("0 tryboot".to_owned());
        }
        self.kernel.run(&command).map_err(|why| BootError::Reboot { command, why })
    }
}

impl Tryboot {
    /// Whether the `config.txt` on the boot partition that runs locks the EEPROM.
    fn config_locks_eeprom(&self) -> Result<bool, BootError> {
        let partition = self.word("chosen/bootloader/partition")?;
        let Some((slot, _)) =
            Slot::BOTH.into_iter().zip(self.numbers()?).find(|(_, n)| Some(*n) == partition)
        else {
            return Ok(false);
        };
        let device = self.boot_device(slot);
        let read = || -> io::Result<Vec<u8>> {
            let disk = self.disks.open(device, Access::Read)?;
            let place = fat::find(&*disk, b"CONFIG  TXT")?;
            // Image builders write it in one piece; past 16 KiB nobody keeps settings.
            let mut bytes = vec![0; place.size.min(16 << 10)];
            disk.read_at(place.offset, &mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => {
                Ok(String::from_utf8_lossy(&bytes).lines().any(|l| l.trim() == "eeprom_write_protect=1"))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(false),
            Err(source) => Err(BootError::Read { what: "config.txt", device: device.into(), source }),
        }
    }
}
