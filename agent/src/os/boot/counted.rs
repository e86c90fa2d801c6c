//! A bootloader that counts boots itself, in a state that it shares with the agent: U-Boot and GRUB. They differ in where the state
//! lies; the steps are the same, and stand in `docs/os-updates.md`.

use std::sync::Arc;

use copal_protocol::ids::Sha256Hex;

use super::{
    Backend, BootError, Booted, Probe, Slot, heads,
    kernel::{Kernel, Words, boot_tag, check_root},
    state::{BootState, is_behind},
    store::{Loaded, Store},
};
use crate::os::{OsConfig, disk::Disks};

/// See the module.
pub(crate) struct Counted<S> {
    pub name: &'static str,
    pub store: S,
    pub config: OsConfig,
    pub disks: Arc<dyn Disks>,
    pub kernel: Arc<dyn Kernel>,
}

/// What one look at the kernel and the disk found.
struct Seen {
    words: Words,
    loaded: Loaded,
    booted: Booted,
}

pub(crate) fn limit(config: &OsConfig) -> u8 {
    u8::try_from(config.trial_limit).unwrap_or(u8::MAX)
}

/// The first bytes of a release, which arms are counted by.
pub(crate) fn arms_key(release: &Sha256Hex) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *release.as_bytes();
    [a, b, c, d, e, f, g, h]
}

impl<S: Store> Counted<S> {
    fn look(&self) -> Result<Seen, BootError> {
        let cmdline = self.kernel.cmdline().map_err(|source| BootError::Read {
            what: "the kernel's command line",
            device: "/proc/cmdline".into(),
            source,
        })?;
        let words = Words::parse(&cmdline).map_err(|what| BootError::RootMismatch { what })?;
        check_root(&*self.kernel, &self.config, words.slot)?;
        let loaded = self.store.load()?;
        let booted = booted(&words, loaded.state.as_ref())?;
        Ok(Seen { words, loaded, booted })
    }

    /// The state to change: what the disk says, or, where that is lost, what this boot proves.
    fn base(&self, seen: &Seen) -> BootState {
        let fresh = || BootState {
            generation: seen.words.generation.unwrap_or(0),
            echo: seen.words.echo.unwrap_or(0),
            trial: seen.booted.trial,
            ..BootState::new(seen.booted.committed, limit(&self.config))
        };
        let state = seen.loaded.state.clone().unwrap_or_else(fresh);
        BootState { limit: limit(&self.config), ..state }
    }

    /// Whether this boot's bootloader read what the agent wrote, and saved where the agent reads.
    fn canary(&self, seen: &Seen) -> Result<(), String> {
        let Some(state) = &seen.loaded.state else {
            return Err("both copies of the boot state are damaged; they are written anew once the running slot is committed or well".to_owned());
        };
        if seen.words.fell.as_deref() == Some("nosave") {
            return Err("the bootloader could not save its count in this boot".to_owned());
        }
        let Some(echo) = seen.words.echo else {
            return Err("the bootloader's script is not Copal's: it does not tell the canary".to_owned());
        };
        let tag = boot_tag(&*self.kernel).map_err(|e| e.to_string())?;
        if state.echo != echo || seen.words.generation.is_some_and(|g| is_behind(state.generation, g)) {
            return Err("what the bootloader saved in this boot is not on the disk".to_owned());
        }
        if state.echo != state.canary && state.canary != tag {
            return Err("the bootloader did not read what the agent wrote before this boot".to_owned());
        }
        Ok(())
    }
}

/// Puts the kernel's words and the boot state together.
fn booted(words: &Words, state: Option<&BootState>) -> Result<Booted, BootError> {
    let slot = words.slot;
    let Some(state) = state else {
        // Lost after this boot began, or before it and the bootloader could not write a new one. Its words stand.
        return Ok(Booted {
            slot,
            trial: words.trial,
            committed: if words.trial { slot.other() } else { slot },
            tries: 0,
            arms: 0,
            arms_for: None,
            armed: false,
            fell_back: true,
            fell_why: Some("lost".to_owned()),
        });
    };
    let mismatch = |what: String| Err(BootError::RootMismatch { what });
    if !words.trial && slot != state.committed {
        return mismatch(format!(
            "slot {slot} was booted as the committed one, the boot state has committed {}",
            state.committed
        ));
    }
    // A slot that was booted on trial and is the committed one by now was committed in this boot; the next trial may be armed already.
    let nosave = words.fell.as_deref() == Some("nosave");
    let fell_why = if nosave { words.fell.clone() } else { state.fell.clone() };
    Ok(Booted {
        slot,
        trial: words.trial && slot != state.committed,
        committed: state.committed,
        tries: state.tries.into(),
        arms: state.arms.into(),
        arms_for: state.arms_for,
        armed: state.trial && slot == state.committed,
        fell_back: fell_why.is_some(),
        fell_why,
    })
}

impl<S: Store> Backend for Counted<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn probe(&self) -> Result<Probe, BootError> {
        self.store.check_layout()?;
        let seen = self.look()?;
        self.canary(&seen).map_err(|what| BootError::Probe {
            what,
            next: "write its disk anew from an image made for this board; no slot was touched",
        })?;
        Ok(Probe { backend: self.name, bootloader: None, good_copies: seen.loaded.good })
    }

    fn active(&self) -> Result<Booted, BootError> {
        self.look().map(|seen| seen.booted)
    }

    fn mark_unbootable(&self, slot: Slot) -> Result<(), BootError> {
        let seen = self.look()?;
        refuse_active(&seen.booted, slot)?;
        // First the order to try it, then what would be tried.
        if seen.booted.armed {
            self.rollback()?;
        }
        heads::destroy(&*self.disks, &self.config, slot)
    }

    fn is_bootable(&self, slot: Slot) -> Result<bool, BootError> {
        heads::are_there(&*self.disks, &self.config, slot)
    }

    fn arm_trial(&self, slot: Slot, release: &Sha256Hex) -> Result<(), BootError> {
        // 1. The slot is not the one that runs, its heads are there, and the bootloader saves.
        let seen = self.look()?;
        refuse_active(&seen.booted, slot)?;
        if seen.words.trial && seen.booted.trial {
            return Err(BootError::Arm { slot, why: "another trial runs".to_owned() });
        }
        heads::check(&*self.disks, &self.config, slot)?;
        self.store.check_layout()?;
        self.canary(&seen).map_err(|why| BootError::Arm { slot, why })?;
        // 2. Count, and only then arm.
        arm_counted(&self.store, &seen.loaded, &self.base(&seen), slot, release)
    }

    fn commit(&self, slot: Slot) -> Result<(), BootError> {
        let seen = self.look()?;
        let booted = &seen.booted;
        if booted.slot != slot {
            return Err(BootError::NotTrial { slot, why: "it does not run" });
        }
        if booted.committed == slot {
            return Ok(());
        }
        if seen.loaded.state.as_ref().is_some_and(|state| !state.trial) {
            return Err(BootError::NotTrial { slot, why: "its trial was called off" });
        }
        let base = self.base(&seen);
        let next = BootState {
            committed: slot,
            trial: false,
            tries: 0,
            arms: 0,
            arms_for: None,
            fell: None,
            canary: self.next_canary(&base)?,
            ..base
        };
        self.store.save(&seen.loaded, &next)
    }

    fn mark_well(&self) -> Result<(), BootError> {
        let seen = self.look()?;
        if seen.booted.trial {
            return Ok(());
        }
        let base = self.base(&seen);
        let tries = if seen.booted.armed { base.tries } else { 0 };
        let next = BootState { tries, fell: None, canary: self.next_canary(&base)?, ..base };
        if seen.loaded.good == 2 && seen.loaded.state.as_ref() == Some(&next) {
            return Ok(());
        }
        self.store.save(&seen.loaded, &next)
    }

    fn rollback(&self) -> Result<(), BootError> {
        let seen = self.look()?;
        let base = self.base(&seen);
        if !base.trial {
            return Ok(());
        }
        if seen.booted.trial {
            // There must be something to go back to.
            heads::check(&*self.disks, &self.config, base.committed)?;
        }
        self.store.save(&seen.loaded, &BootState { trial: false, tries: 0, ..base })
    }

    fn reboot(&self, _into_trial: bool) -> Result<(), BootError> {
        let command = self.config.reboot.clone();
        self.kernel.run(&command).map_err(|why| BootError::Reboot { command, why })
    }
}

impl<S: Store> Counted<S> {
    /// A new canary, if the last one came back; else the old stays, as the sign that it did not.
    fn next_canary(&self, state: &BootState) -> Result<u32, BootError> {
        if state.echo == state.canary { boot_tag(&*self.kernel) } else { Ok(state.canary) }
    }
}

/// Refuses the slot that runs, and the committed one.
pub(crate) fn refuse_active(booted: &Booted, slot: Slot) -> Result<(), BootError> {
    if slot == booted.slot {
        return Err(BootError::SlotActive { slot, why: "runs" });
    }
    if slot == booted.committed {
        return Err(BootError::SlotActive { slot, why: "is the committed slot" });
    }
    Ok(())
}

/// Counts one more trial of `release` in `slot`, with nothing armed; arms it only if both copies hold the count.
///
/// # Errors
/// [`BootError::TrialsUsed`] past the limit, [`BootError::Arm`] where the state cannot be kept.
pub(crate) fn arm_counted(
    store: &impl Store,
    loaded: &Loaded,
    base: &BootState,
    slot: Slot,
    release: &Sha256Hex,
) -> Result<(), BootError> {
    let arm = |why: String| BootError::Arm { slot, why };
    let counted = count_arm(base, slot, arms_key(release))?;
    store.save(loaded, &counted).map_err(|e| arm(e.to_string()))?;
    let loaded = store.load()?;
    let held =
        loaded.state.as_ref().is_some_and(|s| s.arms == counted.arms && s.arms_for == counted.arms_for);
    if !held || loaded.good != 2 {
        return Err(arm("the count of trials does not stay on the disk".to_owned()));
    }
    store.save(&loaded, &BootState { trial: true, ..counted }).map_err(|e| arm(e.to_string()))
}

/// The state with one more arm counted for this release, and nothing armed.
fn count_arm(base: &BootState, slot: Slot, key: [u8; 8]) -> Result<BootState, BootError> {
    let arms = if base.arms_for == Some(key) { base.arms } else { 0 };
    if arms >= base.limit {
        return Err(BootError::TrialsUsed { slot, arms: arms.into(), limit: base.limit.into() });
    }
    Ok(BootState { trial: false, tries: 0, arms: arms + 1, arms_for: Some(key), fell: None, ..base.clone() })
}
