//! How the slots stand, whole, for a person at the device.

use std::collections::BTreeMap;

use copal_protocol::documents::{HostReport, Reason};
use serde::{Deserialize, Serialize};

use super::{
    OsConfig, Slot,
    boot::Booted,
    door::short,
    journal::{Content, Image, Journal, Stage},
};

/// What `copal-agent os status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotsStatus {
    /// The running image's version.
    pub version: semver::Version,
    /// What it is made for.
    pub device_type: String,
    /// What chooses the slot.
    pub backend: String,
    /// The lowest counter that may run here.
    pub floor: u64,
    /// What was booted.
    pub boot: Option<BootStatus>,
    /// Why that is not known.
    pub boot_unknown: Option<Reason>,
    /// What is in each slot, in words.
    pub slots: BTreeMap<Slot, String>,
    /// What is remembered.
    pub journal: Journal,
    /// As the report has it; absent where no agent runs.
    pub host: Option<HostReport>,
}

/// What was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStatus {
    /// The slot that runs.
    pub slot: Slot,
    /// It runs on trial.
    pub trial: bool,
    /// The slot that the boot state trusts.
    pub committed: Slot,
    /// Boots since a slot last said that it is well.
    pub tries: u32,
    /// Trials armed for the release tried last.
    pub arms: u32,
    /// A trial is armed and did not begin.
    pub armed: bool,
    /// The bootloader went back by itself.
    pub fell_back: bool,
    /// Why.
    pub fell_why: Option<String>,
}

impl SlotsStatus {
    /// Puts it together.
    #[must_use]
    pub fn new(
        config: &OsConfig,
        floor: u64,
        booted: Result<Booted, Reason>,
        journal: Journal,
        host: Option<HostReport>,
    ) -> Self {
        let (boot, boot_unknown) = match booted {
            Ok(booted) => (Some(booted), None),
            Err(why) => (None, Some(why)),
        };
        let boot = boot.map(|b| BootStatus {
            slot: b.slot,
            trial: b.trial,
            committed: b.committed,
            tries: b.tries,
            arms: b.arms,
            armed: b.armed,
            fell_back: b.fell_back,
            fell_why: b.fell_why,
        });
        let runs = boot.as_ref().map(|b| b.slot);
        let slots = Slot::BOTH
            .into_iter()
            .map(|slot| {
                let mut text = content(&journal, slot);
                if runs == Some(slot) {
                    text = format!("{} (runs), {text}", config.version);
                }
                (slot, text)
            })
            .collect();
        let backend = serde_json::to_value(config.backend).ok();
        Self {
            version: config.version.clone(),
            device_type: config.device_type.clone(),
            backend: backend.as_ref().and_then(|v| v.as_str()).unwrap_or_default().to_owned(),
            floor,
            boot,
            boot_unknown,
            slots,
            journal,
            host,
        }
    }
}

fn content(journal: &Journal, slot: Slot) -> String {
    if let Some(a) = journal.attempt.as_ref().filter(|a| a.slot == slot) {
        let how = match a.stage {
            Stage::Installing => "is being written",
            Stage::Ready => "is whole and waits for its trial",
            Stage::Armed => "is tried",
        };
        return format!("{} {how}", named(&a.image()));
    }
    match journal.slots.get(&slot) {
        None => "content not known (the factory's, or none)".to_owned(),
        Some(Content::Empty) => "empty".to_owned(),
        Some(Content::Release(image)) => {
            let bad = if image.bad { ", was tried and undone" } else { "" };
            format!("{}{bad}", named(image))
        }
    }
}

fn named(image: &Image) -> String {
    match image.factory {
        Some(_) => format!("the factory's image {}", image.version),
        None => format!("{} ({})", image.version, short(image.release)),
    }
}
