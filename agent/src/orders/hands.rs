//! Does what was decided: through the supervisor, the synchronisation, the kernel. Thin.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use copal_protocol::{
    channel::Question,
    documents::{Act, Reason},
};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{blink, pause::Pause};
use crate::{
    apply::status::reason,
    diagnostics::{self, watch::Health},
    network::{Change, Network},
    supervisor::asks::{Ask, Asked},
    target::Checker,
};

/// What was said last before a restart gets this long to leave.
const FAREWELL: Duration = Duration::from_secs(3);
/// A restart that does not come within this failed.
const REBOOT: Duration = Duration::from_secs(120);

/// Whoever does things.
pub trait Hands: Send + Sync {
    /// Does it; a sentence for people where it came about.
    fn act(&self, act: Act) -> BoxFuture<'static, Result<String, Reason>>;
    /// Answers; code `not_supported` where this agent cannot.
    fn answer(&self, question: Question) -> BoxFuture<'static, Result<Value, Reason>>;
    /// How an act ended that the end of an agent cut short, where that can be known.
    fn after_restart(&self, _act: &Act) -> Option<Result<String, Reason>> {
        None
    }
}

/// The real ones.
pub struct RealHands {
    /// The supervisor's ear.
    pub asks: mpsc::Sender<Asked>,
    /// The pause of updates.
    pub pause: Arc<Pause>,
    /// Looks for updates.
    pub updates: Checker,
    /// The command that restarts the device.
    pub reboot: Vec<String>,
    /// The kernel's lights.
    pub leds: PathBuf,
    /// What health checks look at.
    pub checks: Arc<diagnostics::Deps>,
    /// What they last found.
    pub health: Arc<Health>,
    /// The proxy and the time servers.
    pub network: Arc<Network>,
}

impl RealHands {
    fn ask(&self, what: Ask) -> BoxFuture<'static, Result<String, Reason>> {
        let asks = self.asks.clone();
        Box::pin(async move {
            let away = || reason("interrupted", "the supervisor went away in the middle of it");
            let (answer, heard) = oneshot::channel();
            asks.send(Asked { what, answer }).await.map_err(|_| away())?;
            heard.await.map_err(|_| away())?
        })
    }
}

impl Hands for RealHands {
    fn act(&self, act: Act) -> BoxFuture<'static, Result<String, Reason>> {
        match act {
            Act::RestartService { service } => self.ask(Ask::Restart(service)),
            Act::StopService { service } => self.ask(Ask::Stop(service)),
            Act::StartService { service } => self.ask(Ask::Start(service)),
            Act::PurgeData { volume } => self.ask(Ask::Purge(volume)),
            Act::PauseUpdates { for_s } => {
                let paused = self.pause.pause(for_s).map_err(|e| reason(e.code(), e.to_string()));
                let until = for_s.map_or_else(|| "until resumed".to_owned(), |s| format!("for {s} s"));
                ready(paused.map(|()| format!("updates are paused {until}")))
            }
            Act::ResumeUpdates {} => {
                let resumed = self.pause.resume().map_err(|e| reason(e.code(), e.to_string()));
                ready(resumed.map(|()| "updates go on".to_owned()))
            }
            Act::CheckUpdate {} => {
                let updates = self.updates.clone();
                Box::pin(async move { updates.check().await })
            }
            Act::Reboot {} => Box::pin(reboot(self.reboot.clone())),
            Act::SetNetwork { proxy, ntp } => {
                let (network, checks) = (self.network.clone(), self.checks.clone());
                Box::pin(async move { network.set(Change { proxy, ntp }, &checks.link).await })
            }
            Act::Blink { for_s } => match blink::find(&self.leds) {
                None => ready(Err(reason("no_led", "this device has no light that the kernel knows"))),
                Some(led) => Box::pin(async move {
                    let name = led.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    match blink::blink(&led, Duration::from_secs(for_s.into())).await {
                        Ok(()) => Ok(format!("{name} blinked for {for_s} s")),
                        Err(e) => Err(reason("no_led", format!("{name} cannot be made to blink: {e}"))),
                    }
                }),
            },
        }
    }

    fn answer(&self, question: Question) -> BoxFuture<'static, Result<Value, Reason>> {
        match question {
            Question::Probes { names } => {
                let (checks, health) = (self.checks.clone(), self.health.clone());
                Box::pin(async move {
                    let found = diagnostics::diagnose(&checks, &names)
                        .await
                        .map_err(|e| reason("probe_unknown", e.to_string()))?;
                    health.took(&found);
                    serde_json::to_value(found).map_err(|e| reason("result_too_large", e.to_string()))
                })
            }
            Question::Network {} => ready(Ok(self.network.shown())),
        }
    }

    fn after_restart(&self, act: &Act) -> Option<Result<String, Reason>> {
        let Act::SetNetwork { proxy, ntp } = act else { return None };
        Some(self.network.ended(&Change { proxy: proxy.clone(), ntp: ntp.clone() }))
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

/// Returns only where the restart did not happen.
async fn reboot(command: Vec<String>) -> Result<String, Reason> {
    let failed =
        |why: String| reason("os_reboot", format!("cannot restart the device by {command:?}: {why}"));
    let (program, arguments) = command.split_first().ok_or_else(|| failed("no command is set".to_owned()))?;
    tokio::time::sleep(FAREWELL).await;
    tracing::warn!("the device restarts because a person asked");
    let (program, arguments) = (program.clone(), arguments.to_vec());
    let ran = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).status());
    // What waits for something that never comes is left to itself, and other commands are taken again.
    match tokio::time::timeout(REBOOT, ran).await {
        Err(_) => return Err(failed(format!("it did not end within {} s", REBOOT.as_secs()))),
        Ok(Err(e)) => return Err(failed(e.to_string())),
        Ok(Ok(Err(e))) => return Err(failed(e.to_string())),
        Ok(Ok(Ok(status))) if !status.success() => return Err(failed(status.to_string())),
        Ok(Ok(Ok(_))) => {}
    }
    tokio::time::sleep(REBOOT).await;
    Err(reason("os_reboot", "the device was told to restart and did not: restart it by hand"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn the_command_that_restarts_runs_and_a_restart_that_does_not_come_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let ran = dir.path().join("ran");
        let command = words(&format!("touch {}", ran.display()));
        let restart = tokio::spawn(reboot(command));
        while !ran.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!restart.is_finished(), "it waits for its end");
        restart.abort();
        for (command, word) in [
            (words("exit 3"), "exit status: 3"),
            (vec!["/no/such".to_owned()], "No such file"),
            (Vec::new(), "no command"),
        ] {
            let why = reboot(command).await.unwrap_err();
            assert_eq!(why.code, "os_reboot");
            assert!(why.message.contains(word), "{}", why.message);
        }
    }
}
