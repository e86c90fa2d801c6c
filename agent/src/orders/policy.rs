//! `/etc/copal/policy.toml`: what this device lets itself be told, whatever the cloud says. In: the file. Out: whether an act may
//! be. Read before every act, so that a change counts at once. A file that cannot be read or understood denies everything:
//! whoever wrote one wanted something denied. So does one that another than root could have written: it says nothing for sure.
//!
//! The few lines it may have are read here, strictly:
//!
//! ```toml
//! [actions]
//! deny = ["reboot", "purge_data"]
//!
//! [terminal]
//! enabled = true
//! host = false
//! ```

use std::{collections::BTreeSet, fs, io, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use nix::unistd::Uid;

/// Where it is looked for.
pub const PLACE: &str = "/etc/copal/policy.toml";
const MAX: u64 = 64 << 10;
/// Every verb that can be denied.
pub const VERBS: &[&str] = &[
    "restart_service",
    "stop_service",
    "start_service",
    "purge_data",
    "pause_updates",
    "resume_updates",
    "reboot",
    "check_update",
    "blink",
    "set_network",
];

/// What is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    deny: BTreeSet<String>,
    /// No terminal at all.
    no_terminal: bool,
    /// Whether a terminal on the host itself is allowed.
    pub host_terminal: bool,
    /// Why nothing is allowed.
    broken: Option<String>,
}

impl Policy {
    /// Reads the file; everything but a host terminal is allowed where there is none.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let broken = |why: String| Self { broken: Some(why), ..Self::default() };
        // A link that leads nowhere is there, and something was meant to be at its end.
        if fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Self::default();
        }
        let read = read(path).map_err(|e| e.to_string()).and_then(|text| parse(&text));
        read.unwrap_or_else(|why| broken(format!("{}: {why}; mend it on the device", path.display())))
    }

    fn usable(&self) -> Result<(), String> {
        match &self.broken {
            Some(why) => {
                Err(format!("the policy file of this device cannot be used, so nothing is allowed: {why}"))
            }
            None => Ok(()),
        }
    }

    /// Whether a terminal may be: any, or one on the host itself.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn check_terminal(&self, host: bool) -> Result<(), String> {
        self.usable()?;
        if self.no_terminal {
            return Err(
                "the policy file of this device denies terminals ([terminal] enabled = false)".to_owned()
            );
        }
        if host && !self.host_terminal {
            let why = "a terminal on the device itself is allowed by its policy file only ([terminal] host = true in /etc/copal/policy.toml)";
            return Err(why.to_owned());
        }
        Ok(())
    }

    /// Whether an act of this verb may be.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn check(&self, verb: &str) -> Result<(), String> {
        self.usable()?;
        if self.deny.contains(verb) {
            return Err(format!("the policy file of this device denies {verb}"));
        }
        Ok(())
    }
}

/// Its text, where nobody but root, or the user the agent runs as, could have written it.
fn read(path: &Path) -> io::Result<String> {
    let file = fs::File::open(path)?;
    // Of what was opened, whatever the path leads to by now.
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if let Err(why) = is_trusted(meta.uid(), meta.mode(), Uid::effective().as_raw()) {
        return Err(io::Error::other(why));
    }
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(io::Error::other(format!("larger than {MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Whether a file's word counts.
fn is_trusted(owner: u32, mode: u32, own: u32) -> Result<(), String> {
    if owner != 0 && owner != own {
        return Err(format!("it belongs to user {owner}: chown root it"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("others may write it (mode {:o}): chmod 644 it", mode & 0o7777));
    }
    Ok(())
}

fn parse(text: &str) -> Result<Policy, String> {
    let mut policy = Policy::default();
    let mut section = String::new();
    let mut seen = BTreeSet::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let wrong = |what: &str| Err(format!("line {}: {what}", number + 1));
        let line = plain(line);
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.trim().clone_into(&mut section);
            if !matches!(section.as_str(), "actions" | "terminal") {
                return wrong("only [actions] and [terminal] are known");
            }
            if !seen.insert(section.clone()) {
                return wrong("this section stands twice");
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return wrong("neither a section nor a setting");
        };
        let (key, mut value) = (key.trim(), value.trim().to_owned());
        while value.starts_with('[') && !value.ends_with(']') {
            let Some((_, more)) = lines.next() else { return wrong("a list that does not end") };
            value.push_str(&plain(more));
        }
        if !seen.insert(format!("{section}.{key}")) {
            return wrong("this setting stands twice");
        }
        match (section.as_str(), key) {
            ("actions", "deny") => match verbs(&value) {
                Ok(verbs) => policy.deny = verbs,
                Err(why) => return wrong(&why),
            },
            ("terminal", "host" | "enabled") => {
                let value = match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return wrong("host and enabled are true or false"),
                };
                match key {
                    "host" => policy.host_terminal = value,
                    _ => policy.no_terminal = !value,
                }
            }
            _ => return wrong("a setting that is not known here"),
        }
    }
    Ok(policy)
}

/// The line without its comment. No string that may stand here has a `#` in it.
fn plain(line: &str) -> String {
    line.split('#').next().unwrap_or_default().trim().to_owned()
}

fn verbs(list: &str) -> Result<BTreeSet<String>, String> {
    let inside = list.strip_prefix('[').and_then(|l| l.strip_suffix(']')).ok_or("deny is a list")?;
    let mut verbs = BTreeSet::new();
    let inside = inside.trim();
    for item in inside.strip_suffix(',').unwrap_or(inside).split(',').filter(|_| !inside.is_empty()) {
        let item = item.trim();
        let quoted = |q: char| item.strip_prefix(q).and_then(|i| i.strip_suffix(q));
        let verb = quoted('"').or_else(|| quoted('\'')).ok_or("a list of quoted words")?;
        if !VERBS.contains(&verb) {
            return Err(format!("{verb:?} is no action; known are {}", VERBS.join(", ")));
        }
        verbs.insert(verb.to_owned());
    }
    Ok(verbs)
}

#[cfg(test)]
mod tests {
    use copal_protocol::documents::Act;

    use super::*;

    #[test]
    fn what_stands_there_is_denied_and_nothing_else() {
        let text = "# ours\n[actions]\ndeny = [ \"reboot\", # never\n  'purge_data',\n]\n\n[terminal]\nhost = true\n";
        let policy = parse(text).unwrap();
        assert!(policy.host_terminal);
        assert_eq!(
            VERBS.iter().filter(|v| policy.check(v).is_err()).collect::<Vec<_>>(),
            [&"purge_data", &"reboot"]
        );
        assert_eq!((policy.check_terminal(false), policy.check_terminal(true)), (Ok(()), Ok(())));
        let off = parse("[terminal]\nhost = true\nenabled = false").unwrap();
        assert!(off.check_terminal(false).is_err() && off.check_terminal(true).is_err());
        let usual = parse("[terminal]\nenabled = true").unwrap();
        assert!(usual.check_terminal(false).is_ok() && usual.check_terminal(true).is_err());
        for nothing in ["", "[actions]\ndeny = []", "[actions]\n[terminal]\nhost=false\n"] {
            assert_eq!(parse(nothing).unwrap(), Policy::default(), "{nothing}");
        }
    }

    #[test]
    fn a_file_that_is_not_understood_denies_everything() {
        for bad in [
            "deny = [\"reboot\"]",
            "[actions]\ndeny = \"reboot\"",
            "[actions]\ndeny = [reboot]",
            "[actions]\ndeny = [\"reboots\"]",
            "[actions]\ndeny = [\"reboot\"",
            "[actions]\nallow = []",
            "[action]\ndeny = []",
            "[actions]\ndeny = []\ndeny = []",
            "[actions]\n[actions]",
            "[terminal]\nhost = yes",
            "[terminal]\nenabled = 1",
            "[terminal]\nenabled = true\nenabled = false",
            "reboot",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        assert_eq!(Policy::load(&path), Policy::default());
        for bytes in [&b"[x]"[..], b"\xff", &[b' '; (MAX + 1) as usize]] {
            std::fs::write(&path, bytes).unwrap();
            let policy = Policy::load(&path);
            assert!(policy.check("blink").unwrap_err().contains("policy.toml"));
            assert!(policy.check_terminal(false).is_err() && policy.check_terminal(true).is_err());
        }
    }

    #[test]
    fn a_file_that_another_could_have_written_or_a_link_to_nowhere_denies_everything() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "[terminal]\nhost = true\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for (bits, usable) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false), (0o644, true)] {
            mode(bits);
            assert_eq!(Policy::load(&path).check("blink").is_ok(), usable, "{bits:o}");
        }
        for (owner, own, trusted) in
            [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false), (33, 1000, false)]
        {
            assert_eq!(is_trusted(owner, 0o100_644, own).is_ok(), trusted, "{owner} {own}");
        }
        let link = dir.path().join("link.toml");
        symlink(&path, &link).unwrap();
        assert!(Policy::load(&link).check_terminal(true).is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(Policy::load(&link).check("blink").is_err(), "something was meant to be there");
        assert!(Policy::load(dir.path()).check("blink").is_err());
        assert_eq!(Policy::load(&path), Policy::default());
    }

    #[test]
    fn every_act_can_be_denied() {
        let service = || "web".parse().unwrap();
        for act in [
            Act::RestartService { service: service() },
            Act::StopService { service: service() },
            Act::StartService { service: service() },
            Act::PurgeData { volume: None },
            Act::PauseUpdates { for_s: None },
            Act::ResumeUpdates {},
            Act::Reboot {},
            Act::CheckUpdate {},
            Act::Blink { for_s: 1 },
            Act::SetNetwork { proxy: None, ntp: None },
        ] {
            assert!(VERBS.contains(&act.verb()), "{act:?}");
        }
    }
}
