//! What is open, for whoever stands at the device: a file a session in the folder `terminals` of the run folder. It is there before
//! the shell is and goes after its last process. Removing or renaming it ends the session. In memory, since a disk that takes
//! nothing any more is one reason to look: it outlives the agent, and no process outlives a boot.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use copal_protocol::{documents::TerminalTarget, ids::SessionId};
use serde::{Deserialize, Serialize};

use crate::{channel::streams::End, settings::read_bounded};

const FOLDER: &str = "terminals";
const MAX_FILE: u64 = 16 << 10;
/// Of a session that is to end and has not yet.
const ENDING: &str = "ending";
const OPEN: &str = "json";

/// One open terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its session.
    pub session_id: SessionId,
    /// What it opened.
    pub target: TerminalTarget,
    /// Who opened it.
    pub who: String,
    /// Why.
    pub reason: String,
    /// Unix seconds; absent where the clock was not set.
    pub since: Option<u64>,
    /// By an operator's grant, rather than the cloud's word.
    pub granted: bool,
    /// By which of Root's keys: `who` is what its holder says to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// The container's id.
    pub container: Option<String>,
    /// The shell that runs.
    pub shell: String,
    /// The engine's name of its process.
    pub exec: Option<String>,
    /// The shell's process on this device.
    pub pid: Option<i32>,
}

impl Record {
    /// Who opened it, for people: under a grant with the keys that vouch for it.
    #[must_use]
    pub fn by(&self) -> String {
        match &self.signed_by {
            Some(keys) => format!("{} ({keys})", self.who),
            None => self.who.clone(),
        }
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// Below the run folder; made when it is needed.
    #[must_use]
    pub fn of(run_dir: &Path) -> Self {
        Self(run_dir.join(FOLDER))
    }

    fn path(&self, session: SessionId, kind: &str) -> PathBuf {
        self.0.join(format!("{session}.{kind}"))
    }

    /// Shows a session that is about to be opened.
    ///
    /// # Errors
    /// Where it cannot, or one of this id is open: a second would be shown in its place, and end with it.
    pub(super) fn claim(&self, record: &Record) -> Result<(), End> {
        let path = self.path(record.session_id, OPEN);
        let new = self.make().and_then(|()| {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(drop)
        });
        match new {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(unseen(&path, &e)),
            Ok(()) if !self.path(record.session_id, ENDING).exists() => {}
            taken => {
                if taken.is_ok() {
                    let _ = fs::remove_file(&path);
                }
                let why = format!("a session {} is open on this device: open another", record.session_id);
                return Err(End::because("session_taken", why));
            }
        }
        self.write(record).inspect_err(|_| self.remove(record.session_id))
    }

    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Shows what became of it.
    ///
    /// # Errors
    /// Where it cannot: then it is not opened.
    pub(super) fn write(&self, record: &Record) -> Result<(), End> {
        let path = self.path(record.session_id, OPEN);
        self.put(&path, record).map_err(|e| unseen(&path, &e))
    }

    fn put(&self, path: &Path, record: &Record) -> io::Result<()> {
        use io::Write as _;
        self.make()?;
        let next = path.with_extension("next");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        fs::rename(next, path)
    }

    /// Whether nobody at the device ended it.
    pub(super) fn is_open(&self, session: SessionId) -> bool {
        self.path(session, OPEN).exists()
    }

    /// The session is over.
    pub(super) fn remove(&self, session: SessionId) {
        for kind in [OPEN, ENDING] {
            let _ = fs::remove_file(self.path(session, kind));
        }
    }

    /// Asks a session to end; whether there was one. It is gone when [`Self::is_there`] says no.
    #[must_use]
    pub fn ask_end(&self, session: SessionId) -> bool {
        fs::rename(self.path(session, OPEN), self.path(session, ENDING)).is_ok()
    }

    /// Whether a session is open, or ends and has not ended yet.
    #[must_use]
    pub fn is_there(&self, session: SessionId) -> bool {
        [OPEN, ENDING].iter().any(|kind| self.path(session, kind).exists())
    }

    /// All there are, oldest first where times are known. Files that are none of ours are left aside.
    #[must_use]
    pub fn all(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let ours = |path: &PathBuf| path.extension().is_some_and(|e| e == OPEN || e == ENDING);
        let read = |path: PathBuf| serde_json::from_slice(&read_bounded(&path, MAX_FILE).ok()?).ok();
        let mut found: Vec<Record> = entries.map(|e| e.path()).filter(ours).filter_map(read).collect();
        found.sort_by_key(|record| (record.since, record.session_id));
        found
    }
}

fn unseen(path: &Path, error: &io::Error) -> End {
    let why = format!(
        "{} cannot be written ({error}), and a terminal that cannot be seen is not opened",
        path.display()
    );
    End::because("failed", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_seen_and_can_be_ended_by_anyone_who_can_write_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(dir.path());
        assert_eq!(folder.all(), []);
        let session_id = SessionId::from_bytes([7; 16]);
        let record = Record {
            session_id,
            target: TerminalTarget::Host,
            who: "anna".to_owned(),
            reason: "it is slow".to_owned(),
            since: Some(5),
            granted: false,
            signed_by: None,
            container: None,
            shell: "/bin/sh".to_owned(),
            exec: None,
            pid: Some(3),
        };
        folder.claim(&record).unwrap();
        assert_eq!(folder.claim(&record).unwrap_err().code, "session_taken");
        fs::write(dir.path().join("terminals/other.json"), "{}").unwrap();
        assert_eq!(folder.all(), [record]);
        assert!(folder.is_open(session_id));
        assert!(folder.ask_end(session_id) && !folder.ask_end(session_id));
        assert!(!folder.is_open(session_id) && folder.is_there(session_id));
        assert!(folder.claim(&folder.all()[0]).is_err() && !folder.is_open(session_id), "it still ends");
        assert_eq!(folder.all().len(), 1, "it is seen until it is gone");
        folder.remove(session_id);
        assert!(!folder.is_there(session_id));
    }
}
