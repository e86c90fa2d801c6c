//! Sending Reports: signed, numbered durably, kept until the cloud took them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::{diagnosis::HealthReport, documents::Report, envelope::Envelope, telemetry::Budget};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    build::{About, Heard, report},
    status,
};
use crate::{
    apply::status::AgentStatus,
    clock::Clock,
    cloud::{Backoff, Call, random},
    identity::{Identity, Session},
    os::OsStatus,
    selfupdate::SelfStatus,
    spool::Notes,
    state::{StateDir, StateError},
    target::Condition,
};

const FILE: &str = "report";
/// Numbers taken from the disk at a time, so that a report costs no write.
const BLOCK: u64 = 1000;
/// Changes that come together make one report.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// Between reports that differ in progress alone.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// No report before this restart had a number as high as this.
    reserved: u64,
}

/// Numbers reports over the device's life; none is used twice.
pub struct Counter {
    state: Arc<StateDir>,
    next: u64,
    reserved: u64,
}

impl Counter {
    /// Goes on above every number given before.
    ///
    /// # Errors
    /// The system's failures. A lost file is begun above what the clock says, which no device reached by counting.
    pub fn open(state: Arc<StateDir>, now: u64) -> Result<Self, StateError> {
        let reserved = match state.load::<Record>(FILE) {
            Ok(record) => record.map_or(0, |r| r.reserved),
            Err(e @ (StateError::Lost { .. } | StateError::Content { .. })) => {
                tracing::error!(error = %e, "the report counter is lost; it goes on from the clock");
                now
            }
            Err(e) => return Err(e),
        };
        Ok(Self { state, next: reserved, reserved })
    }

    /// The next number. Where the disk takes nothing any more it is given all the same: after a restart the cloud knows
    /// it as an old one, and says so ([`Self::leap`]); a device that is silent would tell nobody about its disk.
    pub fn take(&mut self) -> u64 {
        self.next += 1;
        if self.next > self.reserved {
            let reserved = self.next + BLOCK;
            match self.state.save(FILE, &Record { reserved }) {
                Ok(_) => self.reserved = reserved,
                Err(e) => tracing::warn!(code = e.code(), error = %e, "the report's number cannot be kept"),
            }
        }
        self.next
    }

    /// The cloud has seen a higher one (a restored disk): far above.
    pub fn leap(&mut self, now: u64) {
        self.next = self.next.max(now).saturating_add(BLOCK);
    }
}

/// Where the tasks are heard.
pub struct Listening {
    /// From the supervisor.
    pub status: watch::Receiver<AgentStatus>,
    /// From the operating system's updater.
    pub os: watch::Receiver<OsStatus>,
    /// From the agent's own.
    pub agent: watch::Receiver<SelfStatus>,
    /// From the synchronisation.
    pub condition: watch::Receiver<Condition>,
    /// From the channel.
    pub budget: watch::Receiver<Option<Budget>>,
    /// From the health checks.
    pub health: watch::Receiver<Option<HealthReport>>,
    /// From the channel: bytes are to be spared, what is not pressing waits.
    pub spare: watch::Receiver<bool>,
}

impl Listening {
    fn now(&mut self) -> Heard {
        Heard {
            status: self.status.borrow_and_update().clone(),
            os: self.os.borrow_and_update().clone(),
            agent: self.agent.borrow_and_update().clone(),
            condition: self.condition.borrow_and_update().clone(),
            budget: *self.budget.borrow_and_update(),
            health: self.health.borrow_and_update().clone(),
        }
    }

    /// Waits for a change, at most `wait`; whether one came. Where the other ends are gone, waits for ever.
    async fn changed_within(&mut self, wait: Option<Duration>) -> bool {
        let change = async {
            tokio::select! {
                Ok(()) = self.status.changed() => {}
                Ok(()) = self.os.changed() => {}
                Ok(()) = self.agent.changed() => {}
                Ok(()) = self.condition.changed() => {}
                Ok(()) = self.budget.changed() => {}
                Ok(()) = self.health.changed() => {}
                Ok(()) = self.spare.changed() => {}
                else => std::future::pending().await,
            }
        };
        match wait {
            Some(wait) => tokio::time::timeout(wait, change).await.is_ok(),
            None => {
                change.await;
                true
            }
        }
    }
}

/// Reports changes until dropped.
pub struct Reporter {
    /// Speaks for the device.
    pub session: Arc<Session>,
    /// What does not change.
    pub about: About,
    /// Wall clock.
    pub clock: Clock,
    /// Numbers.
    pub counter: Counter,
    /// The tasks.
    pub heard: Listening,
    /// Where `status.json` is.
    pub status_file: std::path::PathBuf,
    /// Where what happened is told.
    pub notes: Notes,
}

impl Reporter {
    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        // What the cloud has: compared without number and time.
        let mut sent = None;
        let mut last_sent: Option<Instant> = None;
        let mut retry_at: Option<Instant> = None;
        let mut before: Option<Heard> = None;
        let mut shown = None;
        loop {
            let heard = self.heard.now();
            if let Some(before) = &before {
                self.notes.changed(before, &heard);
            }
            before = Some(heard.clone());
            let now = self.clock.now();
            if let Err(e) = status::write(&self.status_file, &self.about, &heard, now, &mut shown) {
                tracing::debug!(error = %e, "the status file cannot be written");
            }
            let spare = *self.heard.spare.borrow_and_update();
            let now = report(&self.about, &uncounted(&heard), 0, 0);
            let quiet = match (&now, &sent) {
                (Some(now), Some(sent)) if only_progress_differs(now, sent) => last_sent
                    .map(|at| PROGRESS_EVERY.saturating_sub(at.elapsed()))
                    .filter(|left| !left.is_zero() && now.progress.is_some()),
                _ => None,
            };
            let wanted = now != sent && now.as_ref().is_some_and(|now| !spare || presses(now, sent.as_ref()));
            let held =
                retry_at.map(|at| at.saturating_duration_since(Instant::now())).filter(|d| !d.is_zero());
            let wait = match (wanted, held, quiet) {
                (false, ..) => None,
                (true, Some(left), _) | (true, None, Some(left)) => Some(left),
                (true, None, None) => {
                    match self.send(&heard).await {
                        Ok(()) => {
                            backoff.succeeded(Instant::now());
                            sent = now;
                            last_sent = Some(Instant::now());
                            retry_at = None;
                        }
                        Err(asked) => {
                            let wait = backoff.failed(Instant::now(), asked, random());
                            retry_at = Some(Instant::now() + wait);
                        }
                    }
                    self.heard.changed_within(Some(DEBOUNCE)).await;
                    continue;
                }
            };
            let changed = self.heard.changed_within(wait).await;
            if changed {
                // A try that failed because there was no network is worth another when the network is back.
                if self.heard.condition.borrow().online && !heard.condition.online {
                    retry_at = None;
                }
                tokio::time::sleep(DEBOUNCE).await;
            }
        }
    }

    /// Sends one; the server's wish for a pause where it failed.
    async fn send(&mut self, heard: &Heard) -> Result<(), Option<Duration>> {
        let counter = self.counter.take();
        let Some(document) = report(&self.about, heard, counter, self.clock.now()) else {
            return Ok(());
        };
        let signed =
            self.session.identity(|identity: &Identity| Envelope::sign(&document, &[identity.signing()]));
        let envelope = signed.map_err(|e| {
            tracing::error!(error = %e, "no report: it cannot be written as JSON");
            None
        })?;
        match self.session.call(Call::post("/device/v1/report", envelope.to_bytes(), 16 << 10)).await {
            Ok(_) => Ok(()),
            Err(e) => {
                tracing::debug!(code = e.code(), error = %e, "the report will be sent again");
                if e.code() == "report_old" {
                    self.counter.leap(self.clock.now());
                }
                match e {
                    crate::identity::SessionError::Cloud(e) => Err(e.retry_after()),
                    _ => Err(None),
                }
            }
        }
    }
}

/// Without the bytes that were counted: a report of them would be counted, too.
fn uncounted(heard: &Heard) -> Heard {
    Heard { budget: heard.budget.map(|budget| Budget { used: 0, ..budget }), ..heard.clone() }
}

/// Whether a report does not wait while bytes are spared: how an update ended is waited for.
fn presses(now: &Report, sent: Option<&Report>) -> bool {
    let ends = |report: &Report| {
        let host = report.host.as_ref().map(|host| (host.release, host.failed));
        (report.seq_applied, report.lock, report.committed.clone(), host)
    };
    sent.is_none_or(|sent| ends(now) != ends(sent))
}

fn only_progress_differs(a: &Report, b: &Report) -> bool {
    let stage = |r: &Report| r.progress.as_ref().map(|p| p.stage.clone());
    let (mut a2, mut b2) = (a.clone(), b.clone());
    (a2.progress, b2.progress) = (None, None);
    for report in [&mut a2, &mut b2] {
        for progress in report
            .host
            .iter_mut()
            .map(|h| &mut h.progress)
            .chain(report.agent.iter_mut().map(|a| &mut a.progress))
        {
            *progress = None;
        }
    }
    a2 == b2 && stage(a) == stage(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RealFs;

    #[test]
    fn numbers_rise_over_restarts_and_cost_one_write_in_a_thousand() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
            Counter::open(state, 0).unwrap()
        };
        let mut counter = open();
        let first: Vec<u64> = (0..3).map(|_| counter.take()).collect();
        assert_eq!(first, [1, 2, 3]);
        let stored = std::fs::read(dir.path().join("report.a")).unwrap();
        for _ in 0..900 {
            counter.take();
        }
        assert_eq!(std::fs::read(dir.path().join("report.a")).unwrap(), stored);
        let after = open().take();
        assert!(after > 903, "{after}");
    }

    #[test]
    fn a_disk_that_takes_nothing_does_not_silence_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path().join("state"), Arc::new(RealFs)).unwrap());
        let mut counter = Counter::open(state, 0).unwrap();
        std::fs::remove_dir(dir.path().join("state")).unwrap();
        assert_eq!([counter.take(), counter.take()], [1, 2]);
    }
}
