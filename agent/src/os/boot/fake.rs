//! A device in memory with a bootloader that keeps its promises: for tests of whoever drives a [`Backend`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use copal_protocol::ids::Sha256Hex;

use super::{Backend, BootError, Booted, Probe, Slot};

/// The device.
pub(crate) struct Fake(Mutex<Inner>);

/// What a test may look at and change.
#[derive(Debug, Clone)]
pub(crate) struct Inner {
    pub booted: Booted,
    /// Whether the heads of slot a and b are there: set by the test's installer.
    pub valid: [bool; 2],
    pub limit: u32,
    /// The trial that the boot state orders.
    pub on_trial: bool,
    /// What `probe` refuses with, if anything.
    pub unsuitable: Option<&'static str>,
    /// Every writing call fails with `os_write` while this stands.
    pub broken_disk: bool,
    /// Each call that changed something, and each reboot, in order.
    pub calls: Vec<String>,
}

/// How a boot ends, as seen from the bootloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// The agent runs.
    Up,
    /// Dies before the agent; the bootloader gets another turn.
    Dies,
}

impl Fake {
    /// Boots slot a, committed; b is empty.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Inner {
            booted: Booted::settled(Slot::A),
            valid: [true, false],
            limit: 3,
            on_trial: false,
            unsuitable: None,
            broken_disk: false,
            calls: Vec::new(),
        }))
    }

    /// The device, to look at or change.
    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device starts until a boot is up: `how` says of each attempt of a slot how it ends.
    pub(crate) fn boot(&self, how: impl Fn(Slot) -> Boot) -> Booted {
        let mut inner = self.inner();
        loop {
            if inner.booted.tries >= inner.limit && inner.on_trial {
                inner.on_trial = false;
                inner.booted.tries = 0;
                inner.booted.fell_back = true;
                inner.booted.fell_why = Some("tries".to_owned());
            }
            let committed = inner.booted.committed;
            let other = inner.valid[committed.other() as usize];
            if inner.booted.tries >= inner.limit && !inner.on_trial && other && !inner.booted.fell_back {
                inner.on_trial = true;
                inner.booted.tries = 0;
                inner.booted.fell_back = true;
                inner.booted.fell_why = Some("sick".to_owned());
            }
            inner.booted.trial = inner.on_trial;
            inner.booted.armed = false;
            inner.booted.slot = if inner.on_trial { committed.other() } else { committed };
            inner.booted.tries += 1;
            let slot = inner.booted.slot;
            assert!(inner.booted.tries < 20, "no slot starts");
            if inner.valid[slot as usize] && how(slot) == Boot::Up {
                return inner.booted.clone();
            }
        }
    }

    fn write(&self, call: String) -> Result<MutexGuard<'_, Inner>, BootError> {
        let mut inner = self.inner();
        if inner.broken_disk {
            let source = std::io::Error::other("the disk is gone");
            return Err(BootError::Write { what: "the boot state", device: "/dev/fake".into(), source });
        }
        inner.calls.push(call);
        Ok(inner)
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self) -> Result<Probe, BootError> {
        match self.inner().unsuitable {
            Some(what) => Err(BootError::Probe { what: what.to_owned(), next: "use another board" }),
            None => Ok(Probe { backend: "fake", bootloader: None, good_copies: 2 }),
        }
    }

    fn active(&self) -> Result<Booted, BootError> {
        Ok(self.inner().booted.clone())
    }

    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        if slot == self.inner().booted.slot {
            return Err(BootError::SlotActive { slot, why: "runs" });
        }
        let mut inner = self.write(format!("mark_unbootable {slot}"))?;
        inner.valid[slot as usize] = false;
        inner.on_trial = false;
        inner.booted.armed = false;
        Ok(())
    }

    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        Ok(self.inner().valid[slot as usize])
    }

    fn arm_trial(&self, slot: Slot, release: &Sha256Hex) -> Result<(), BootError> {
        let (booted, limit, valid) = {
            let inner = self.inner();
            (inner.booted.clone(), inner.limit, inner.valid)
        };
        if slot == booted.slot {
            return Err(BootError::SlotActive { slot, why: "runs" });
        }
        if !valid[slot as usize] {
            return Err(BootError::SlotInvalid {
                slot,
                device: "/dev/fake".into(),
                why: "has no superblock",
            });
        }
        let mut key = [0; 8];
        key.copy_from_slice(&release.as_bytes()[..8]);
        let arms = if booted.arms_for == Some(key) { booted.arms } else { 0 };
        if arms >= limit {
            return Err(BootError::TrialsUsed { slot, arms, limit });
        }
        let mut inner = self.write(format!("arm_trial {slot}"))?;
        inner.on_trial = true;
        let booted = &mut inner.booted;
        (booted.arms, booted.arms_for, booted.armed, booted.tries) = (arms + 1, Some(key), true, 0);
        (booted.fell_back, booted.fell_why) = (false, None);
        Ok(())
    }

    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        let booted = self.inner().booted.clone();
        if booted.slot == slot && booted.committed == slot {
            return Ok(());
        }
        if booted.slot != slot || !booted.trial {
            return Err(BootError::NotTrial { slot, why: "it does not run on trial" });
        }
        let mut inner = self.write(format!("commit {slot}"))?;
        inner.on_trial = false;
        let booted = &mut inner.booted;
        (booted.committed, booted.trial, booted.tries, booted.arms, booted.arms_for) =
            (slot, false, 0, 0, None);
        (booted.fell_back, booted.fell_why) = (false, None);
        Ok(())
    }

    fn mark_well(&self) -> Result<(), BootError> {
        if self.inner().booted.trial {
            return Ok(());
        }
        let mut inner = self.write("mark_well".to_owned())?;
        let armed = inner.booted.armed;
        let booted = &mut inner.booted;
        if !armed {
            booted.tries = 0;
        }
        (booted.fell_back, booted.fell_why) = (false, None);
        Ok(())
    }

    fn rollback(&self) -> Result<(), BootError> {
        {
            let inner = self.inner();
            let slot = inner.booted.committed;
            if inner.booted.trial && !inner.valid[slot as usize] {
                let why = "has no superblock";
                return Err(BootError::SlotInvalid { slot, device: "/dev/fake".into(), why });
            }
        }
        let mut inner = self.write("rollback".to_owned())?;
        inner.on_trial = false;
        inner.booted.armed = false;
        inner.booted.tries = 0;
        Ok(())
    }

    fn reboot(&self, into_trial: bool) -> Result<(), BootError> {
        self.write(format!("reboot {}", if into_trial { "into the trial" } else { "plainly" })).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_that_dies_comes_back_and_one_that_lives_can_be_committed() {
        let device = Fake::new();
        let release = Sha256Hex::of(b"r");
        assert_eq!(device.arm_trial(Slot::B, &release).unwrap_err().code(), "os_slot_invalid");
        device.inner().valid[1] = true;
        device.arm_trial(Slot::B, &release).unwrap();
        let booted = device.boot(|slot| if slot == Slot::B { Boot::Dies } else { Boot::Up });
        assert_eq!((booted.slot, booted.trial, booted.fell_back), (Slot::A, false, true));
        assert_eq!(device.commit(Slot::B).unwrap_err().code(), "os_not_trial");
        device.arm_trial(Slot::B, &release).unwrap();
        assert_eq!(device.boot(|_| Boot::Up).slot, Slot::B);
        device.commit(Slot::B).unwrap();
        assert_eq!(device.boot(|_| Boot::Up).slot, Slot::B);
    }
}
