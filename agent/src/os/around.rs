//! The device around the slots, as it is: the kernel's files, the engine, update locks, the image's health checks.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use copal_protocol::{
    documents::{Reason, Release},
    ids::Sha256Hex,
    verify::{Error, Verified},
};
use futures_util::future::BoxFuture;

use super::{
    health::Hooks,
    ports::{Device, Documents},
};
use crate::{
    apply::{
        shared::{Locked, Shared},
        status::reason,
    },
    clock::Clock,
    engine::Engine,
    target::{HostPart, Store},
};

/// A health check that takes longer failed.
const HOOK_TIME: Duration = Duration::from_secs(60);
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
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().replace('-', "")
    }

    fn uptime_s(&self) -> u64 {
        let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
        text.split(['.', ' ']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn engine(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { self.engine.version().await.is_ok() })
    }

    fn hooks(&self) -> BoxFuture<'_, Hooks> {
        Box::pin(run_hooks(&self.hooks, HOOK_TIME))
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

/// Runs every executable of a folder, in the order of their names; the first that fails is told.
async fn run_hooks(folder: &Path, time: Duration) -> Hooks {
    let mut found: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Hooks::Well,
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
        if let Err(why) = run_hook(&path, time).await {
            return Hooks::Sick(why);
        }
    }
    Hooks::Well
}

async fn run_hook(path: &Path, time: Duration) -> Result<(), Reason> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sick = |what: String, said: &[u8]| {
        let mut why = reason("os_unhealthy", format!("health check {name} {what}"));
        let said = &said[said.len().saturating_sub(SAID)..];
        why.log_tail = String::from_utf8_lossy(said).lines().map(str::to_owned).collect();
        why
    };
    let path = path.to_owned();
    // A thread of its own: the agent's only one goes on, and a check that hangs is killed by `timeout`, with its children.
    let seconds = time.as_secs().max(1).to_string();
    let ran = tokio::task::spawn_blocking(move || {
        std::process::Command::new("timeout")
            .args(["-k", "5", &seconds])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
    });
    match ran.await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let mut said = output.stdout;
            said.extend(output.stderr);
            let what = match output.status.code() {
                Some(124 | 137) => format!("did not end within {} s", time.as_secs()),
                Some(code) => format!("exited with {code}"),
                None => "was killed".to_owned(),
            };
            Err(sick(what, &said))
        }
        Ok(Err(e)) => Err(sick(format!("could not be run: {e}"), &[])),
        Err(e) => Err(sick(format!("could not be run: {e}"), &[])),
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
}
