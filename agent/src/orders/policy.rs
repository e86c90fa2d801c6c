//! `/etc/copal/policy.toml`: what this device lets itself be told, whatever the cloud says. In: the file. Out: whether an act may
//! be. Read before every act, so that a change counts at once. A file that cannot be read or understood denies everything:
//! whoever wrote one wanted something denied.
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

use std::{collections::BTreeSet, io, path::Path};

use crate::settings::read_bounded;

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
        let text = match read_bounded(path, MAX) {
            Ok(bytes) => String::from_utf8(bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(e) => Err(e),
        };
        let read = text.map_err(|e| e.to_string()).and_then(|text| parse(&text));
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
