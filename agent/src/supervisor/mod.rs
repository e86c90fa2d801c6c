//! The loop: observe → plan → apply, until what runs is what should.
//!
//! In: targets, what people ask of services ([`asks`]), and whatever makes it worth looking again (a new target, an event of the engine, a lane that ended, a
//! timer, and every 30 s nothing at all). Out: effects through [`crate::apply`], and an [`AgentStatus`]. An event only
//! makes it look sooner: what is done follows from what is seen, so a lost event delays and never loses.
//!
//! Tasks: this loop; one that follows the engine's events and pokes the loop; one for each lane at work. Only the loop
//! decides. A lane at work is left alone, unless a newer target cancels it; it is planned for again only after it ended
//! *and* the engine was looked at since.

mod app;
pub mod asks;
pub mod holds;
mod pass;
#[cfg(test)]
mod tests;
mod view;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    apply::{
        ports::{Images, Ledger},
        status::AgentStatus,
    },
    engine::{EngineApi, EngineEvent},
    plan::{labels, wanted::Context},
    spool::{Note, Notes},
    target::model::Target,
};
use asks::Asked;
use holds::Holds;
use pass::Supervisor;

/// A look without any reason: bounds how long a lost event matters.
const RESYNC: Duration = Duration::from_secs(30);
/// Events come in bursts; a look is due this long after the first.
const DEBOUNCE: Duration = Duration::from_millis(30);
/// Longest wait for an engine that does not answer.
const ABSENT_CAP: Duration = Duration::from_secs(5);
/// How often a download's progress is told.
const TELL: Duration = Duration::from_millis(500);

/// What the supervisor is set to.
#[derive(Debug, Clone)]
pub struct SupervisorSettings {
    /// Value of the instance label: this agent's, on an engine it may share.
    pub instance: String,
    /// Begins every name.
    pub prefix: String,
    /// Device-local secret of the config hash; must never change.
    pub hash_key: [u8; 32],
    /// Holds locks and secrets; lost at boot.
    pub run_dir: PathBuf,
    /// `linux/amd64`, …
    pub platform: String,
    /// The device, for its containers.
    pub device_id: String,
    /// Its type, for its containers.
    pub device_type: String,
    /// How long an app has to be well where it does not say.
    pub healthy_after: Duration,
}

/// What the supervisor works with.
pub struct Deps {
    /// The engine.
    pub engine: Arc<dyn EngineApi>,
    /// Brings images.
    pub images: Arc<dyn Images>,
    /// Remembers what was committed.
    pub ledger: Arc<dyn Ledger>,
    /// Settings.
    pub settings: SupervisorSettings,
    /// What people stopped.
    pub holds: Holds,
    /// Where what happened is told.
    pub notes: Notes,
}

/// Runs until the sender of targets is dropped. `None` is a target not known yet: nothing is touched. Dropping the
/// future stops at once, as a power cut would; containers run on.
pub async fn run(
    deps: Deps,
    mut targets: watch::Receiver<Option<Arc<Target>>>,
    status: watch::Sender<AgentStatus>,
    mut asks: mpsc::Receiver<Asked>,
) {
    let (poke, mut pokes) = mpsc::channel(1);
    let settings = (deps.settings.instance.clone(), deps.settings.prefix.clone());
    let follower = follow(deps.engine.clone(), settings, deps.notes.clone(), poke);
    let _follower = AbortOnDrop(tokio::spawn(follower));
    let mut supervisor = Supervisor::new(deps, status);
    loop {
        let target = targets.borrow_and_update().clone();
        let next = supervisor.pass(target).await;
        loop {
            tokio::select! {
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                Some(()) = pokes.recv() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    let _ = pokes.try_recv();
                    break;
                }
                () = supervisor.work_ends() => break,
                Some(asked) = asks.recv() => {
                    supervisor.ask(asked);
                    break;
                }
                () = tokio::time::sleep_until(next) => break,
                () = tokio::time::sleep(TELL), if supervisor.is_downloading() => supervisor.tell(),
            }
        }
    }
}

impl SupervisorSettings {
    fn context(&self) -> Context {
        Context {
            instance: self.instance.clone(),
            prefix: self.prefix.clone(),
            hash_key: self.hash_key,
            platform: self.platform.clone(),
            device_id: self.device_id.clone(),
            device_type: self.device_type.clone(),
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Pokes at every event that may concern us, and whenever the stream had to be opened anew: what happened meanwhile is
/// not told again.
async fn follow(
    engine: Arc<dyn EngineApi>,
    (instance, prefix): (String, String),
    notes: Notes,
    poke: mpsc::Sender<()>,
) {
    let names = format!("{prefix}-");
    let mut wait = Duration::from_millis(250);
    loop {
        let opened = Instant::now();
        let mut events = engine.events();
        // A full channel is a poke that has not been seen yet.
        let _ = poke.try_send(());
        while let Some(Ok(event)) = events.next().await {
            if concerns(&event, &instance, &names) {
                tracing::debug!(kind = event.kind, action = event.action, name = event.name, "engine event");
                if event.action == "oom"
                    && let Some(service) = event.labels.get(labels::SERVICE)
                {
                    let message = format!("service {service} ran out of the memory it may have");
                    notes.note(Note::new("service", "oom", &message).with("service", service.as_str()));
                }
                let _ = poke.try_send(());
            }
        }
        if poke.is_closed() {
            return;
        }
        if opened.elapsed() > Duration::from_secs(10) {
            wait = Duration::from_millis(250);
        }
        let _ = poke.try_send(());
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(ABSENT_CAP);
    }
}

/// Ours by label, or by a name we may want.
fn concerns(event: &EngineEvent, instance: &str, names: &str) -> bool {
    event.labels.get(labels::INSTANCE).is_some_and(|i| i == instance) || event.name.starts_with(names)
}
