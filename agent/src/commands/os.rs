//! `copal-agent os`: the slots, for a person at the device. Works without the cloud; what is asked is done by the running
//! agent, which judges it as it judges the cloud's targets.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use copal_protocol::documents::Reason;

use super::rooms::Rooms;
use crate::{
    os::{
        OsConfig, SlotsStatus, boot,
        disk::RealDisks,
        door::{self, Answer, Request},
        journal::Journal,
    },
    settings::Places,
    state::tolerant,
};

/// Between two looks while an update is followed.
const FOLLOW: Duration = Duration::from_secs(2);
/// So often in a row an agent may not answer while it is followed.
const MISSED: u32 = 30;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum OsCommand {
    /// The slots, what is in them, what is under way, and why the last update did not stay.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Install a bundle file and try it: signed by the host role, not below the floor, made for this device type.
    Install {
        /// The bundle (*.copal).
        file: PathBuf,
        /// Do not wait until it is installed.
        #[arg(long)]
        no_wait: bool,
    },
    /// Go back to the release in the other slot, if it is whole and not below the floor.
    Rollback {
        /// Do not wait until the device restarts.
        #[arg(long)]
        no_wait: bool,
    },
}

/// Does it; whether it ended well.
///
/// # Errors
/// Not root, no slots, no agent to ask, or why it was refused.
pub fn os(places: &Places, command: &OsCommand) -> anyhow::Result<bool> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("this is for root: run it with sudo");
    }
    if OsConfig::load(&places.os_config).map_err(anyhow::Error::msg)?.is_none() {
        bail!(
            "os_not_managed: there is no {}, so this device's operating system is not Copal's to update",
            places.os_config.display()
        );
    }
    match command {
        OsCommand::Status { json } => {
            let status = status(places)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print!("{}", to_text(&status));
            }
            Ok(true)
        }
        OsCommand::Install { file, no_wait } => {
            let file = std::path::absolute(file).with_context(|| file.display().to_string())?;
            begin(places, &Request::Install { file }, *no_wait)
        }
        OsCommand::Rollback { no_wait } => begin(places, &Request::Rollback, *no_wait),
    }
}

fn ask(places: &Places, request: &Request) -> anyhow::Result<Option<Answer>> {
    door::ask(&places.run_dir, request)
        .context("the running agent did not answer; it restarts the device just now, or hangs (systemctl status copal-agent)")
}

fn status(places: &Places) -> anyhow::Result<SlotsStatus> {
    match ask(places, &Request::Status)? {
        // The agent that runs may be newer than this program: it updates itself.
        Some(Answer::Done(text)) => Ok(tolerant::from_slice(text.as_bytes())?),
        Some(Answer::Refused(why)) => bail!("{}: {}", why.code, why.message),
        None => without_agent(places),
    }
}

/// No agent runs: what it would say, from the disk.
fn without_agent(places: &Places) -> anyhow::Result<SlotsStatus> {
    let rooms = Rooms::open(places)?;
    let _lock = rooms
        .lock()
        .context("an agent runs, but does not answer at its socket; is its --run-dir another?")?;
    let config = rooms.os.clone().context("there is no os.json")?;
    let booted = boot::open(&config, std::sync::Arc::new(RealDisks)).and_then(|boot| boot.active());
    let journal = Journal::load(&rooms.state)?;
    let booted = booted.map_err(|e| crate::apply::status::reason(e.code(), e.to_string()));
    Ok(SlotsStatus::new(&config, rooms.store.os_floor(), booted, journal, None))
}

fn begin(places: &Places, request: &Request, no_wait: bool) -> anyhow::Result<bool> {
    match ask(places, request)? {
        Some(Answer::Done(said)) => println!("{said}"),
        Some(Answer::Refused(why)) => bail!("{}: {}", why.code, why.message),
        None => {
            bail!("no agent answers in {}: start it (systemctl start copal-agent)", places.run_dir.display())
        }
    }
    if no_wait {
        return Ok(true);
    }
    let mut last = None;
    let mut missed = 0;
    loop {
        std::thread::sleep(FOLLOW);
        let now = match status(places) {
            Ok(now) => now,
            // It ends with the device's restart, and may end before this program does.
            Err(_) if missed < MISSED => {
                missed += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        missed = 0;
        let shown = now.host.as_ref().and_then(|h| h.reason.clone());
        if shown != last {
            if let Some(why) = &shown {
                println!("{}", why.message);
            }
            last = shown;
        }
        if now.journal.attempt.is_none() {
            let why = now.journal.last.and_then(|ended| ended.reason);
            return match why {
                Some(why) => bail!("{}: {}", why.code, why.message),
                None => Ok(true),
            };
        }
    }
}

fn to_text(status: &SlotsStatus) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    let said = |why: &Reason| format!("{}: {}", why.code, why.message);
    line("system", &format!("{} for {}, started by {}", status.version, status.device_type, status.backend));
    match &status.boot {
        Some(boot) => {
            let trial = if boot.trial { ", on trial" } else { "" };
            line("runs", &format!("slot {}{trial}; slot {} is committed", boot.slot, boot.committed));
            line("boots", &format!("{} since it was last well; {} trials armed", boot.tries, boot.arms));
            if boot.fell_back {
                let why = boot.fell_why.as_deref().unwrap_or("unknown");
                line("", &format!("the bootloader went back by itself ({why})"));
            }
        }
        None => line("runs", &status.boot_unknown.as_ref().map_or_else(|| "not known".to_owned(), said)),
    }
    for (slot, content) in &status.slots {
        line(&format!("slot {slot}"), content);
    }
    if status.floor > 0 {
        line("floor", &format!("nothing below counter {} may run", status.floor));
    }
    match status.host.as_ref().and_then(|h| h.reason.as_ref()) {
        Some(why) => line("now", &said(why)),
        None if status.journal.attempt.is_some() => line("now", "an update is under way; no agent runs"),
        None => line("now", "at rest"),
    }
    if let Some(ended) = &status.journal.last {
        let what = ended.version.as_ref().map_or_else(|| "the bootloader".to_owned(), ToString::to_string);
        let how = ended.reason.as_ref().map_or_else(|| "committed".to_owned(), said);
        line("last", &format!("{what}, {how}"));
    }
    if let Some(parked) = &status.journal.parked {
        line(
            "parked",
            &format!("{} is not tried again until the target changes", door::short(parked.key.release)),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use copal_protocol::ids::Sha256Hex;

    use super::*;
    use crate::os::{
        Slot,
        journal::{Attempt, Content, Ended, Image, Key, Parked},
    };

    #[test]
    fn a_person_sees_the_slots_and_why_the_last_update_did_not_stay() {
        let config = OsConfig::parse(
            br#"{"backend":"grub","device_type":"generic","version":"1.0.0","env_files":["/a","/b"],
                "slots":{"a":{"rootfs":"/dev/a"},"b":{"rootfs":"/dev/b"}}}"#,
        )
        .unwrap();
        let version = semver::Version::new(2, 0, 0);
        let key = Key { release: Sha256Hex::of(b"new"), retry: 0 };
        let why = crate::apply::status::reason("os_unhealthy", "service web was well before and is not");
        let image = Image { bad: true, ..Attempt::new(key, version.clone(), 20, Slot::B).image() };
        let journal = Journal {
            slots: [
                (Slot::A, Content::Release(Image::of_factory(Slot::A, &config.version, 0, 1))),
                (Slot::B, Content::Release(image)),
            ]
            .into(),
            last: Some(Ended { key: Some(key), version: Some(version), at: 0, reason: Some(why.clone()) }),
            parked: Some(Parked { key, reason: why }),
            ..Journal::default()
        };
        let booted = boot::Booted { arms: 1, ..boot::Booted::settled(Slot::A) };
        let status = SlotsStatus::new(&config, 10, Ok(booted), journal, None);
        let again: SlotsStatus = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
        assert_eq!(again, status);
        insta::assert_snapshot!(to_text(&status));
    }
}
