//! The proxy and the time servers that are set from afar. In: a change a person asked for, signed as every act is. Out: a way to the
//! cloud and a time service that use it; or what was before.
//!
//! 1. The change is written down beside what holds, durably, before anything is done.
//! 2. It is applied: every new connection to the cloud goes by it, and the channel comes back by it.
//! 3. Where the cloud answers by a new connection within [`TRIAL`], it is written down as what holds. Else, or where it cannot be
//!    written down, what was before is applied again.
//! 4. An agent that starts and finds a change on trial undoes it: whatever ended the one before, it had not reached the cloud.
//!
//! Never here: a wait by the wall clock, which time servers may set; a proxy's password in a log or an answer.

mod record;
mod time;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copal_protocol::{
    documents::Reason,
    network::{secrets_of, shown_proxy},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

pub use self::{
    record::{Change, Last, Record, Settings},
    time::{Kind, TimeService},
};
use crate::{
    apply::status::reason,
    cloud::Cloud,
    diagnostics::{self, Link},
    state::{StateDir, StateError},
};

const FILE: &str = "network";
/// How long the cloud may take to answer after a change.
const TRIAL: Duration = Duration::from_secs(120);
/// Before the first look, and between looks: a time service that was just told needs a moment, and so does a proxy.
const LOOK: Duration = Duration::from_secs(3);

/// What is set on this device.
pub struct Network {
    state: Arc<StateDir>,
    cloud: Arc<Cloud>,
    time: TimeService,
    record: Mutex<Record>,
    /// One change at a time.
    busy: tokio::sync::Mutex<()>,
    /// Counts changes of the way to the cloud.
    moved: watch::Sender<u64>,
    trial: Duration,
}

impl Network {
    /// What was set before. A change that was on trial is undone.
    #[must_use]
    pub fn open(state: Arc<StateDir>, cloud: Arc<Cloud>, root: &Path) -> Self {
        let record = load(&state);
        let network = Self {
            state,
            cloud,
            time: TimeService::new(root),
            record: Mutex::new(record.clone()),
            busy: tokio::sync::Mutex::default(),
            moved: watch::Sender::new(0),
            trial: trial(),
        };
        if record.trial.is_some() {
            tracing::warn!(
                "a change of proxy or time servers was not confirmed when the agent ended; it is undone"
            );
            network
                .note(record.reverted("the agent or the device ended before the cloud was reached: undone"));
        }
        let now = network.record().now.clone();
        if let Err(why) = network.time.set(&now.ntp) {
            tracing::warn!(why, "the time service cannot be told its servers");
        }
        network.cloud.set_proxy(now.proxy);
        network
    }

    /// How often the way to the cloud changed.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Tries a change. Ends when it is kept, or undone.
    ///
    /// # Errors
    /// `busy`, `not_supported`, `reverted`, `ntp_failed`, or that it cannot be written down. Then all is as it was.
    pub async fn set(&self, change: Change, link: &Link) -> Result<String, Reason> {
        let _one =
            self.busy.try_lock().map_err(|_| reason("busy", "another change is on trial; ask again"))?;
        let before = self.record().clone();
        let wanted = before.now.with(&change);
        if wanted.ntp != before.now.ntp && !wanted.ntp.is_empty() && self.time.kind().is_none() {
            let message = "neither systemd-timesyncd nor chrony runs here, so no time servers can be set";
            return Err(reason("not_supported", message));
        }
        let trying = before.trying(change);
        self.save(&trying).map_err(|e| reason(e.code(), e.to_string()))?;
        tracing::info!("a change of proxy or time servers is tried");
        // Undone where this is dropped in between, too: the agent may be told to stop.
        let mut undo = Undo { network: self, settings: Some(before.now.clone()) };
        let applied = self.apply(&wanted).await;
        let reached = match applied {
            Ok(()) => self.reached(link).await.map_err(|why| ("reverted", why)),
            Err(why) => Err(("ntp_failed", why)),
        };
        let (code, why) = match reached {
            Ok(took) => {
                let message = format!("set; the cloud was reached with it after {} s", took.as_secs());
                match self.save(&trying.kept(&message)) {
                    Ok(()) => {
                        undo.settings = None;
                        tracing::info!("the cloud was reached; the change stays");
                        return Ok(message);
                    }
                    Err(e) => ("reverted", format!("it cannot be written down: {e}")),
                }
            }
            Err(failed) => failed,
        };
        undo.settings = None;
        // What speaks of a proxy's URL may repeat it.
        let hidden = wanted.proxy.as_deref().map(secrets_of).unwrap_or_default();
        let why = hidden.iter().fold(why, |why, secret| why.replace(secret.as_str(), "(redacted)"));
        let message = format!("undone, {why}");
        let back = self.apply(&before.now).await;
        self.note(trying.reverted(&message));
        tracing::warn!(why, "a change of proxy or time servers is undone");
        match back {
            Ok(()) => Err(reason(code, message)),
            Err(also) => Err(reason(code, format!("{message}; and the time servers of before: {also}"))),
        }
    }

    /// How a change ended that the end of an agent cut short.
    ///
    /// # Errors
    /// Why it was undone, or was never begun.
    pub fn ended(&self, change: &Change) -> Result<String, Reason> {
        match &self.record().last {
            Some(last) if last.change == *change && last.kept => Ok(last.message.clone()),
            Some(last) if last.change == *change => Err(reason("reverted", last.message.clone())),
            _ => Err(reason("reverted", "the agent ended before it was begun: nothing was changed")),
        }
    }

    /// What is set, as it may be shown.
    #[must_use]
    pub fn shown(&self) -> Value {
        let record = self.record();
        let proxy = record.now.proxy.as_deref().map(shown_proxy);
        json!({
            "proxy": proxy, "ntp": record.now.ntp, "ntp_service": self.time.name(), "trying": record.trial.is_some(),
            "last": record.last.as_ref().map(|last| last.message.clone()),
        })
    }

    async fn apply(&self, settings: &Settings) -> Result<(), String> {
        let (time, servers) = (self.time.clone(), settings.ntp.clone());
        let told = tokio::task::spawn_blocking(move || time.set(&servers)).await;
        self.go_by(settings.proxy.clone());
        told.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// From now on the cloud is reached this way, by new connections.
    fn go_by(&self, proxy: Option<String>) {
        self.cloud.set_proxy(proxy);
        self.moved.send_modify(|n| *n += 1);
    }

    /// Waits until the cloud answers; after how long.
    async fn reached(&self, link: &Link) -> Result<Duration, String> {
        let began = Instant::now();
        loop {
            tokio::time::sleep(LOOK.min(self.trial)).await;
            match diagnostics::reach(link).await {
                Ok(()) => return Ok(began.elapsed()),
                Err(why) if began.elapsed() >= self.trial => {
                    let seconds = self.trial.as_secs();
                    return Err(format!("the cloud was not reached with it for {seconds} s: {why}"));
                }
                Err(_) => {}
            }
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, record: &Record) -> Result<(), StateError> {
        self.state.save(FILE, record)?;
        *self.record() = record.clone();
        Ok(())
    }

    /// As [`Self::save`], where it holds all the same: at worst it is undone once more after a restart.
    fn note(&self, record: Record) {
        if let Err(error) = self.state.save(FILE, &record) {
            tracing::warn!(%error, "how a change of proxy or time servers ended cannot be written down");
        }
        *self.record() = record;
    }
}

/// Goes back where a trial ends without a verdict.
struct Undo<'a> {
    network: &'a Network,
    settings: Option<Settings>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(settings) = self.settings.take() {
            self.network.go_by(settings.proxy);
        }
    }
}

/// The proxy that is set, for programs beside the agent.
#[must_use]
pub fn proxy(state: &StateDir) -> Option<String> {
    load(state).now.proxy
}

fn load(state: &StateDir) -> Record {
    state
        .load::<Record>(FILE)
        .unwrap_or_else(|error| {
            tracing::error!(%error, "which proxy and time servers were set is lost; the system's own count");
            None
        })
        .unwrap_or_default()
}

/// Tests cannot wait for two minutes.
fn trial() -> Duration {
    let set = std::env::var("COPAL_NETWORK_TRIAL").ok().and_then(|text| text.parse().ok());
    set.map_or(TRIAL, |seconds: u64| Duration::from_secs(seconds.clamp(1, 600)))
}
