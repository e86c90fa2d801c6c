//! The proxy and the time servers that are set from afar. In: a change a person asked for, signed as every act is. Out: a way to the
//! cloud and a time service that use it; or what was before.
//!
//! 1. The change is written down beside what holds, durably, before anything is done.
//! 2. It is applied: every new connection to the cloud goes by it, and the channel comes back by it.
//! 3. Where the cloud answers by a new connection within [`TRIAL`], it is written down as what holds. Else, or where it cannot be
//!    written down, what was before is applied again.
//! 4. An agent that starts and finds a change on trial undoes it: whatever ended the one before, it had not reached the cloud.
//! 5. What was kept can stop working: a proxy is switched off, a time server turns the clock until no certificate is valid. Where the
//!    cloud was not reached for long, what was before and what the device came with are gone by in turns with what is set; what
//!    reaches the cloud stays ([`Network::guard`]).
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
    record::{Change, FALLS, Last, Pace, Record, Settings, turn},
    time::{Kind, TimeService},
};
use crate::{
    apply::status::reason,
    cloud::Cloud,
    diagnostics::{self, Link},
    spool::{Note, Notes},
    state::{StateDir, StateError},
};

const FILE: &str = "network";
/// How long a person's change waits where the ways are looked after in that moment.
const SOON: Duration = Duration::from_secs(5);
/// How often the cloud is asked for the sake of finding a way to it, while one has its turn.
const ASKS: u32 = 4;

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
    pace: Pace,
}

impl Network {
    /// What was set before. A change that was on trial is undone.
    #[must_use]
    pub fn open(state: Arc<StateDir>, cloud: Arc<Cloud>, root: &Path, pace: Pace) -> Self {
        let record = load(&state);
        record.proxies().for_each(|proxy| cloud.hide(proxy));
        let network = Self {
            state,
            cloud,
            time: TimeService::new(root),
            record: Mutex::new(record.clone()),
            busy: tokio::sync::Mutex::default(),
            moved: watch::Sender::new(0),
            pace,
        };
        if record.trial.is_some() {
            tracing::warn!(
                "a change of proxy or time servers was not confirmed when the agent ended; it is undone"
            );
            network
                .note(record.reverted("the agent or the device ended before the cloud was reached: undone"));
        }
        let started = network.record().started();
        if started != *network.record() {
            network.note(started);
        }
        let now = network.record().now.clone();
        if let Err(why) = network.time.set(&now.ntp, false) {
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
        let _one = tokio::time::timeout(SOON, self.busy.lock())
            .await
            .map_err(|_| reason("busy", "another change is on trial; ask again"))?;
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
        let applied = self.apply(&wanted, false).await;
        let reached = match applied {
            Ok(()) => self.reached(link, self.pace.trial).await.map_err(|why| ("reverted", why)),
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
        let back = self.apply(&before.now, true).await;
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
            Some(last) if last.is_of(change) && last.kept => Ok(last.message.clone()),
            Some(last) if last.is_of(change) => Err(reason("reverted", last.message.clone())),
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

    /// Where `back`, the clock may have been turned, and is to be turned back.
    async fn apply(&self, settings: &Settings, back: bool) -> Result<(), String> {
        let (time, servers) = (self.time.clone(), settings.ntp.clone());
        let told = tokio::task::spawn_blocking(move || time.set(&servers, back)).await;
        self.go_by(settings.proxy.clone());
        told.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// From now on the cloud is reached this way, by new connections.
    fn go_by(&self, proxy: Option<String>) {
        self.cloud.set_proxy(proxy);
        self.moved.send_modify(|n| *n += 1);
    }

    /// Waits until the cloud answers; after how long.
    async fn reached(&self, link: &Link, patience: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        loop {
            tokio::time::sleep(self.pace.look.min(patience)).await;
            match diagnostics::reach(link).await {
                Ok(()) => return Ok(began.elapsed()),
                Err(why) if began.elapsed() >= patience => {
                    let seconds = patience.as_secs();
                    return Err(format!("the cloud was not reached with it for {seconds} s: {why}"));
                }
                Err(_) => {}
            }
        }
    }

    /// Sees to it that what was set does not keep the device from the cloud. Runs until dropped.
    pub async fn guard(&self, link: &Link, notes: &Notes) {
        let (mut held, mut since) = (self.record().now.clone(), Instant::now());
        loop {
            tokio::time::sleep(self.pace.watch).await;
            let Ok(_one) = self.busy.try_lock() else { continue };
            let record = self.record().clone();
            if record.now != held {
                (held, since) = (record.now.clone(), Instant::now());
            }
            let Some(unreached) = self.cloud.unreached() else {
                let proven =
                    record.proven || (record.ways().len() > 1 && since.elapsed() >= self.pace.proven);
                let now = Record { unreached_s: 0, proven, ..record.clone() };
                if now != record {
                    self.note(now);
                }
                continue;
            };
            let lasts = unreached.since.elapsed();
            if record.is_lost(lasts, unreached.by_time, &self.pace) {
                self.take_turns(record, link, notes).await;
            }
        }
    }

    /// Goes by one way after the other until one reaches the cloud. What is set is tried once more before it gives way.
    async fn take_turns(&self, record: Record, link: &Link, notes: &Notes) {
        let ways = record.ways();
        tracing::warn!("the cloud is not reached by what was set; what was before is tried in turns with it");
        let mut reaches = 0;
        for number in 0.. {
            reaches = turn(number, ways.len());
            if let Err(why) = self.apply(&ways[reaches], true).await {
                tracing::warn!(why, "the time service cannot be told its servers");
            }
            if self.comes_through(link, self.pace.turn).await {
                break;
            }
        }
        let by_another = reaches > 0;
        let stays = !by_another
            || (record.falls < FALLS && {
                let _ = self.apply(&record.now, true).await;
                self.comes_through(link, self.pace.trial).await
            });
        if stays {
            tracing::info!("what was set reaches the cloud again; it stays");
            let again = if by_another { record.fallen() } else { Record { unreached_s: 0, ..record } };
            return self.note(again);
        }
        let way = ways[reaches].clone();
        let what =
            if way == Settings::default() { "what the device came with" } else { "what was set before" };
        let message = format!(
            "the cloud was not reached for long by what was set, and by {what} it was: that holds again"
        );
        tracing::warn!(message);
        self.note(record.replaced(way.clone(), &message));
        let shown = way.proxy.as_deref().map(shown_proxy);
        notes.note(
            Note::new("network", "went_back", &message).with("proxy", shown).with("ntp", way.ntp.join(" ")),
        );
        if let Err(why) = self.apply(&way, true).await {
            tracing::warn!(why, "the time service cannot be told its servers");
        }
    }

    /// Whether anything of the cloud's comes through the way that is gone by now: who is refused by it has reached it.
    async fn comes_through(&self, link: &Link, patience: Duration) -> bool {
        let began = Instant::now();
        // A device may go on with this for weeks, and pay for every byte: what others ask the cloud tells as much.
        let mut ask_at = Duration::ZERO;
        loop {
            tokio::time::sleep(self.pace.look.min(patience)).await;
            if began.elapsed() >= ask_at {
                ask_at = began.elapsed() + patience / ASKS;
                let _ = diagnostics::reach(link).await;
            }
            if self.cloud.unreached().is_none() {
                return true;
            }
            if began.elapsed() >= patience {
                return false;
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
