//! The system's time service, and a file of ours in the folder it reads besides its own settings: what is in `/run` is gone after
//! a boot, and the agent writes it again when it starts. In: time servers. Out: that file, and a service that read it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::diagnostics::ask;

/// What telling a service to read its settings may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A time service that can be told its servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// systemd-timesyncd.
    Timesyncd,
    /// chrony.
    Chrony,
}

/// The system's time service.
#[derive(Debug, Clone)]
pub struct TimeService {
    root: PathBuf,
}

impl TimeService {
    /// Of the system whose files are below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Which one runs, where it can be told.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        if self.root.join("run/systemd/timesync").is_dir() {
            return Some(Kind::Timesyncd);
        }
        let runs =
            ["run/chrony/chronyd.pid", "run/chronyd.pid"].iter().any(|pid| self.root.join(pid).exists());
        (runs && self.chrony().is_some()).then_some(Kind::Chrony)
    }

    /// Its name for people.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        Some(match self.kind()? {
            Kind::Timesyncd => "systemd-timesyncd",
            Kind::Chrony => "chrony",
        })
    }

    /// A folder chrony reads sources from.
    fn chrony(&self) -> Option<PathBuf> {
        let folders = ["run/chrony-dhcp", "etc/chrony/sources.d"];
        folders.iter().map(|folder| self.root.join(folder)).find(|folder| folder.is_dir())
    }

    /// The file of ours, and what is in it.
    fn file(&self, kind: Kind, servers: &[String]) -> Option<(PathBuf, String)> {
        Some(match kind {
            Kind::Timesyncd => {
                let path = self.root.join("run/systemd/timesyncd.conf.d/50-copal.conf");
                // The empty line takes away what the system's own settings list.
                (path, format!("# Set by copal-agent.\n[Time]\nNTP=\nNTP={}\n", servers.join(" ")))
            }
            Kind::Chrony => {
                let lines: String = servers.iter().map(|s| format!("server {s} iburst prefer\n")).collect();
                (self.chrony()?.join("copal.sources"), format!("# Set by copal-agent.\n{lines}"))
            }
        })
    }

    /// Makes the service use these; none: the system's own again. Where `step`, the clock is turned at once to what they say, however far
    /// off it is. Blocks for as long as the service takes.
    ///
    /// # Errors
    /// The system's, for people.
    pub fn set(&self, servers: &[String], step: bool) -> Result<(), String> {
        let Some(kind) = self.kind() else {
            return if servers.is_empty() {
                Ok(())
            } else {
                Err("there is no time service that can be told".to_owned())
            };
        };
        let Some((path, text)) = self.file(kind, servers) else { return Ok(()) };
        let told = |e: io::Error| format!("{}: {e}", path.display());
        let before = fs::read_to_string(&path).ok();
        if servers.is_empty() {
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(told)?,
            }
        } else {
            if before.as_deref() == Some(text.as_str()) {
                return Ok(());
            }
            write(&path, &text).map_err(told)?;
        }
        let (program, words): (&str, &[&str]) = match kind {
            Kind::Timesyncd => ("systemctl", &["try-restart", "systemd-timesyncd.service"]),
            Kind::Chrony => ("chronyc", &["reload", "sources"]),
        };
        // Elsewhere than on this machine there is nobody to tell.
        if self.root == Path::new("/") && ask::ask(program, words, PATIENCE).is_none() {
            return Err(format!("{program} {} failed or took too long", words.join(" ")));
        }
        // systemd-timesyncd does so by itself; chrony goes years at a snail's pace, but for what it first hears after this.
        if step && kind == Kind::Chrony && self.root == Path::new("/") {
            let _ = ask::ask("chronyc", &["makestep", "1", "3"], PATIENCE);
        }
        Ok(())
    }
}

/// The service runs as another user and reads it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let temp = path.with_extension("tmp");
    fs::write(&temp, text)?;
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o644))?;
    fs::rename(temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn each_service_is_told_in_its_own_words_and_its_own_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let time = TimeService::new(dir.path());
        assert_eq!((time.kind(), time.name()), (None, None));
        assert!(time.set(&servers(&["a"]), false).is_err());
        assert_eq!(time.set(&[], true), Ok(()), "there is nothing to take back");

        fs::create_dir_all(dir.path().join("run/chrony-dhcp")).unwrap();
        assert_eq!(time.kind(), None, "it does not run");
        fs::create_dir_all(dir.path().join("run/chrony")).unwrap();
        fs::write(dir.path().join("run/chrony/chronyd.pid"), "1").unwrap();
        time.set(&servers(&["10.0.0.1", "ntp.example"]), false).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap_or_default();
        assert!(
            read("run/chrony-dhcp/copal.sources")
                .contains("server 10.0.0.1 iburst prefer\nserver ntp.example")
        );

        fs::create_dir_all(dir.path().join("run/systemd/timesync")).unwrap();
        assert_eq!(time.name(), Some("systemd-timesyncd"));
        time.set(&servers(&["10.0.0.1", "ntp.example"]), false).unwrap();
        let file = "run/systemd/timesyncd.conf.d/50-copal.conf";
        assert!(read(file).ends_with("[Time]\nNTP=\nNTP=10.0.0.1 ntp.example\n"), "{}", read(file));
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        time.set(&[], true).unwrap();
        assert!(!dir.path().join(file).exists());
    }
}
