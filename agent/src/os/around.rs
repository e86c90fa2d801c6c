//! The device around the slots, as it is: the kernel's files, the engine, update locks, the image's health checks.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::{
    documents::{Reason, Release},
    ids::Sha256Hex,
    verify::{Error, Verified},
};
use futures_util::future::BoxFuture;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    health::Hooks,
    ports::{Device, Documents},
};
use crate::{
    apply::{
        shared::{Locked, Shared},
        status::reason,
    },
    clock::{self, Clock},
    engine::Engine,
    target::{HostPart, Store},
};

/// A health check that takes longer failed.
const HOOK_TIME: Duration = Duration::from_secs(60);
/// Between looks at a running check.
const POLL: Duration = Duration::from_millis(20);
/// More files than this in the folder of health checks are not run, and that is said.
const HOOKS: usize = 64;
/// Bytes of what a failed check printed that are told.
const SAID: usize = 2000;

/// This device.
pub struct ThisDevice {
    /// The agent's clock.
    pub clock: Clock,
    /// The container engine.
    pub engine: Engine,
    /// Holds the locks of services.
    pub run_dir: PathBuf,
    /// The folder of health checks.
    pub hooks: PathBuf,
}

impl Device for ThisDevice {
    fn now(&self) -> u64 {
        self.clock.now()
    }

    fn clock_is_set(&self) -> bool {
        !self.clock.is_unset()
    }

    fn boot_id(&self) -> String {
        clock::boot_id()
    }

    fn uptime_s(&self) -> u64 {
        clock::uptime_s()
    }

    fn engine(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { self.engine.version().await.is_ok() })
    }

    fn hooks(&self, total: Duration) -> BoxFuture<'_, Hooks> {
        Box::pin(run_hooks(&self.hooks, total))
    }

    fn lock(&self) -> Result<Box<dyn Send>, Vec<String>> {
        let shared = Shared::new(self.run_dir.clone());
        let (mut held, mut theirs) = (Vec::new(), Vec::new());
        // What is there is asked, whatever the target says: a lock binds also while its app is being taken away.
        for (app, service) in lock_folders(&self.run_dir.join("locks")) {
            let (Ok(app), Ok(service)) = (app.parse(), service.parse()) else { continue };
            match shared.lock(app, &service) {
                Ok(Locked::Ours(lock)) => held.extend(lock),
                Ok(Locked::Theirs) => theirs.push(service.to_string()),
                Err(error) => {
                    tracing::warn!(%app, %service, %error, "the update lock cannot be asked for");
                    theirs.push(service.to_string());
                }
            }
        }
        if theirs.is_empty() { Ok(Box::new(held)) } else { Err(theirs) }
    }
}

/// Folders `<app>/<service>` in which a lock may lie.
fn lock_folders(locks: &Path) -> Vec<(String, String)> {
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    names(locks)
        .into_iter()
        .flat_map(|app| names(&locks.join(&app)).into_iter().map(move |service| (app.clone(), service)))
        .collect()
}

/// Runs every executable of a folder, in the order of their names; the first that fails is told. `total` is for all of them.
async fn run_hooks(folder: &Path, total: Duration) -> Hooks {
    let folder = folder.to_owned();
    // A thread of its own: the agent's only one goes on.
    match tokio::task::spawn_blocking(move || run_all(&folder, Instant::now() + total)).await {
        Ok(hooks) => hooks,
        Err(e) => Hooks::Sick(reason("os_unhealthy", format!("the health checks could not be run: {e}"))),
    }
}

fn run_all(folder: &Path, deadline: Instant) -> Hooks {
    let mut found: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Hooks::Well,
        Err(e) => {
            let message = format!("the folder of health checks {} cannot be read: {e}", folder.display());
            return Hooks::Sick(reason("os_unhealthy", message));
        }
    };
    found.retain(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0));
    found.sort();
    if found.len() > HOOKS {
        let message =
            format!("{} holds {} health checks, at most {HOOKS} are run", folder.display(), found.len());
        return Hooks::Sick(reason("os_unhealthy", message));
    }
    for path in found {
        let time = HOOK_TIME.min(deadline.saturating_duration_since(Instant::now()));
        if let Err(why) = run_hook(&path, time) {
            return Hooks::Sick(why);
        }
    }
    Hooks::Well
}

fn run_hook(path: &Path, time: Duration) -> Result<(), Reason> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut said = Vec::new();
    let what = match watch_hook(path, time, &mut said) {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(status)) => match status.code() {
            Some(code) => format!("exited with {code}"),
            None => "was killed".to_owned(),
        },
        Ok(None) => format!("did not end within {} s", time.as_secs_f32().ceil()),
        Err(e) => format!("could not be run: {e}"),
    };
    let mut why = reason("os_unhealthy", format!("health check {name} {what}"));
    why.log_tail = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    Err(why)
}

/// Runs a check in a process group of its own, which is killed when its time is over (`None`). Its output is read as it
/// comes and never waited for: a child that it leaves behind may hold the pipe open for ever.
fn watch_hook(path: &Path, time: Duration, said: &mut Vec<u8>) -> io::Result<Option<ExitStatus>> {
    let (mut output, theirs) = io::pipe()?;
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let until = Instant::now() + time;
    let mut child = Command::new(path)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    loop {
        // First whether it ended: what it said before that is in the pipe then.
        let ended = child.try_wait()?;
        drain(&mut output, said);
        if ended.is_some() {
            return Ok(ended);
        }
        if Instant::now() >= until {
            if let Ok(group) = i32::try_from(child.id()) {
                // It may have ended by itself.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            // One that hangs in the kernel does not even die.
            std::thread::spawn(move || child.wait());
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Takes what is in the pipe, and keeps the end of all of it. A check that writes faster than this reads gets no more than
/// one turn.
fn drain(output: &mut io::PipeReader, said: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    for _ in 0..64 {
        match output.read(&mut piece) {
            Ok(n) if n > 0 => said.extend_from_slice(&piece[..n]),
            _ => break,
        }
        let over = said.len().saturating_sub(SAID);
        said.drain(..over);
    }
}

/// The store, as the updater asks it.
pub struct Stored(pub Arc<Store>);

fn refused(e: Error) -> Reason {
    reason(e.code.as_str(), e.detail)
}

impl Documents for Stored {
    fn release(&self, sha256: Sha256Hex) -> Result<Arc<Verified<Release>>, Reason> {
        self.0.host_document(HostPart::Os, sha256).map(Arc::new).map_err(refused)
    }

    fn begin(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        self.0.begin_host(HostPart::Os, sha256).map_err(refused)
    }

    fn commit(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        self.0.commit_host(HostPart::Os, sha256).map_err(|e| reason(e.code(), e.to_string()))
    }

    fn end(&self, sha256: Sha256Hex) -> Result<(), Reason> {
        self.0.end_host(HostPart::Os, sha256).map_err(|e| reason(e.code(), e.to_string()))
    }

    fn floor(&self) -> u64 {
        self.0.os_floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn every_health_check_has_to_exit_with_0_in_its_time() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run_hooks(&dir.path().join("none"), HOOK_TIME).await, Hooks::Well);
        script(dir.path(), "10-good", "exit 0");
        fs::write(dir.path().join("README"), "no check").unwrap();
        assert_eq!(run_hooks(dir.path(), HOOK_TIME).await, Hooks::Well);
        script(dir.path(), "20-modem", "echo no carrier; exit 3");
        let Hooks::Sick(why) = run_hooks(dir.path(), HOOK_TIME).await else { panic!("well") };
        assert_eq!(why.message, "health check 20-modem exited with 3");
        assert_eq!(why.log_tail, ["no carrier"]);
        script(dir.path(), "20-modem", "sleep 30");
        let Hooks::Sick(why) = run_hooks(dir.path(), Duration::from_secs(1)).await else { panic!("well") };
        assert_eq!(why.message, "health check 20-modem did not end within 1 s");
    }

    #[tokio::test]
    async fn health_checks_share_one_deadline_and_nobody_waits_for_what_they_leave_behind() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "10-daemon", "sleep 1000 & echo \"$!\" >&2; exit 0");
        let patient = Duration::from_secs(120);
        let ran = tokio::time::timeout(patient, run_hooks(dir.path(), HOOK_TIME)).await;
        assert_eq!(ran, Ok(Hooks::Well));
        script(dir.path(), "10-daemon", "yes | head -c 5000000; echo \"the end\"; exit 4");
        let Hooks::Sick(why) = run_hooks(dir.path(), HOOK_TIME).await else { panic!("well") };
        assert_eq!(why.log_tail.last().unwrap(), "the end");
        assert!(why.log_tail.len() <= SAID);
        script(dir.path(), "10-daemon", "exit 0");
        for n in 20..60 {
            script(dir.path(), &format!("{n}-slow"), "sleep 1000");
        }
        let ran = tokio::time::timeout(patient, run_hooks(dir.path(), Duration::from_secs(2))).await;
        let Ok(Hooks::Sick(why)) = ran else { panic!("{ran:?}") };
        assert!(why.message.contains("20-slow"), "{}", why.message);
    }
}
