//! The operating system's two slots: install into the one that does not run, try it, keep it or go back.
//!
//! In: the host release a verified document names, what the boot state and the kernel say, locks, a window for reboots.
//! Out: a slot written, read back and tried; a commit or the old slot; one reason where the device is not on target.
//! Never here: a write to the slot that runs; a boot flag moved before a read-back; a commit from anywhere but the trial
//! and before it is well; a container touched before the reboot.
//!
//! A device is one with two slots where its image says so: `/etc/copal/os.json` ([`config`]). Elsewhere this room idles.

mod act;
pub mod around;
pub mod boot;
pub mod config;
pub mod disk;
pub mod door;
pub mod health;
pub mod install;
pub mod journal;
pub mod machine;
pub mod ports;
mod slot;
pub mod slots;
mod told;
#[cfg(test)]
mod whole_tests;

pub use act::{Ask, Asked, Deps, Lines, OsStatus, run, unmanaged};
pub use config::OsConfig;
pub use slot::Slot;
pub use told::{BootStatus, SlotsStatus};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    fn codes(folder: &Path, found: &mut std::collections::BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                codes(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let quoted = text.split('"').filter(|word| word.starts_with("os_"));
                let code =
                    |word: &&str| word.len() > 3 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                found.extend(quoted.filter(code).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_reason_of_this_room_stands_in_the_protocol_text() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = std::collections::BTreeSet::new();
        codes(&here.join("src/os"), &mut found);
        let text = fs::read_to_string(here.join("../docs/protocol.md")).unwrap();
        assert!(found.len() > 20, "{found:?}");
        // A stage of progress is no reason.
        found.remove("os_waiting");
        for code in found {
            assert!(text.contains(&format!("\n| `{code}` | ")), "{code} has no row");
        }
    }
}
