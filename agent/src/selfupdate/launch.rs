//! The first thing `copal-agent run` does: become the binary that should run.

use std::{
    ffi::{CString, OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use copal_protocol::ids::Sha256Hex;
use nix::fcntl::{Flock, FlockArg};

use super::{
    RECORD, place,
    record::{Build, Record, Start, Verdict},
};
use crate::{
    settings::Places,
    state::{RealFs, StateDir, StateError},
};

/// Tells a started binary what it is. Part of what an installed binary promises to newer ones.
const ROLE: &str = "COPAL_AGENT_ROLE";
/// Tells it which binary started it.
const LAUNCHER: &str = "COPAL_AGENT_LAUNCHER";
/// Tells it that binary's version.
const BASE: &str = "COPAL_AGENT_BASE";

/// What this process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// On trial; else installed or committed.
    pub on_trial: bool,
    /// The installed binary.
    pub launcher: PathBuf,
    /// Its version.
    pub base: semver::Version,
}

/// Becomes the binary that should run; returns where this process is it already. Nothing that goes wrong here keeps an
/// agent from running: the installed one is always left.
#[must_use]
pub fn launch(places: &Places) -> Launched {
    if let Some(told) = told() {
        return told;
    }
    let launcher = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/copal-agent"));
    let installed = Launched { on_trial: false, launcher, base: crate::version() };
    // Nothing was ever fetched: nothing to read, and nothing to make.
    if places.state_dir.join(super::FOLDER).is_dir()
        && let Err(e) = choose(&places.state_dir, &installed)
    {
        tracing::error!(error = %e, "which agent to run is not known; the installed one runs");
    }
    installed
}

fn told() -> Option<Launched> {
    let on_trial = match std::env::var(ROLE).ok()?.as_str() {
        "trial" => true,
        "committed" => false,
        _ => return None,
    };
    let launcher = PathBuf::from(std::env::var_os(LAUNCHER)?);
    let base = std::env::var(BASE).ok()?.parse().ok()?;
    Some(Launched { on_trial, launcher, base })
}

fn choose(state_dir: &Path, installed: &Launched) -> Result<(), StateError> {
    let _lock = match lock(state_dir) {
        Lock::Ours(lock) => Some(lock),
        // Whoever holds it runs already, and the record is his.
        Lock::Theirs => return Ok(()),
        // A disk that takes no writes any more: a trial cannot be counted there, but what was committed can run.
        Lock::Unwritable => None,
    };
    let state = StateDir::open(state_dir, Arc::new(RealFs))?;
    let mut record: Record = state.load(RECORD)?.unwrap_or_default();
    loop {
        let start = record.start(&installed.base);
        // The count is on the disk before the start: an agent that takes the device down is counted all the same.
        let start = match state.save(RECORD, &record) {
            Ok(_) => start,
            Err(e) => {
                tracing::error!(error = %e, "starts cannot be counted on this disk; the committed agent runs");
                record.committed.clone().map_or(Start::Installed, Start::Committed)
            }
        };
        match start {
            Start::Installed => return Ok(()),
            Start::Committed(build) => {
                let error = become_binary(state_dir, &build, "committed", installed);
                tracing::error!(version = %build.version, error = %error, "the committed agent does not start; the installed one runs");
                return Ok(());
            }
            Start::Trial(build) => {
                let error = become_binary(state_dir, &build, "trial", installed);
                tracing::error!(version = %build.version, error = %error, "the agent on trial does not start");
                record.undo(Verdict {
                    code: "agent_exec".to_owned(),
                    message: format!("agent {} could not be started: {error}", build.version),
                    again_after: None,
                });
                state.save(RECORD, &record)?;
            }
        }
    }
}

enum Lock {
    Ours(#[allow(dead_code, reason = "held until dropped")] Flock<fs::File>),
    Theirs,
    Unwritable,
}

fn lock(state_dir: &Path) -> Lock {
    let path = state_dir.join("lock");
    let Ok(file) = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path) else {
        return Lock::Unwritable;
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_or(Lock::Theirs, Lock::Ours)
}

/// Does not return where it succeeds.
fn become_binary(state_dir: &Path, build: &Build, role: &str, installed: &Launched) -> io::Error {
    let path = place(state_dir, build.file);
    match fs::read(&path) {
        Ok(bytes) if Sha256Hex::of(&bytes) == build.file => {}
        Ok(_) => return io::Error::other(format!("{} was damaged on the disk", path.display())),
        Err(e) => return io::Error::new(e.kind(), format!("{}: {e}", path.display())),
    }
    tracing::info!(version = %build.version, role, "starting the fetched agent");
    let told = [
        (ROLE, OsStr::new(role)),
        (LAUNCHER, installed.launcher.as_os_str()),
        (BASE, OsStr::new(&installed.base.to_string())),
    ]
    .map(|(name, value)| (OsString::from(name), value.to_owned()));
    execute(&path, told)
}

/// Goes back to the installed binary, in the same process, so that it decides anew. Returns only where that fails.
#[must_use]
pub fn again(launched: &Launched) -> io::Error {
    execute(&launched.launcher, [])
}

/// Becomes this program, with the same arguments; of what a launcher tells, it hears only `told`. By the system call
/// itself: the library's way would hand what is no program for this machine to a shell.
fn execute(path: &Path, told: impl IntoIterator<Item = (OsString, OsString)>) -> io::Error {
    let arguments: Vec<OsString> =
        std::iter::once(path.as_os_str().to_owned()).chain(std::env::args_os().skip(1)).collect();
    let kept =
        std::env::vars_os().filter(|(name, _)| ![ROLE, LAUNCHER, BASE].iter().any(|ours| name == ours));
    let variables: Vec<OsString> = kept
        .chain(told)
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect();
    let text = |text: &OsString| CString::new(text.as_bytes()).map_err(io::Error::from);
    let all = |list: Vec<OsString>| list.iter().map(text).collect::<io::Result<Vec<_>>>();
    let executed = all(arguments).and_then(|arguments| {
        let path = text(&path.as_os_str().to_owned())?;
        nix::unistd::execve(&path, &arguments, &all(variables)?).map_err(io::Error::from)
    });
    let Err(error) = executed;
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
