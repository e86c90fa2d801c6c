//! How this device and its services fare: CPU, memory, disk, network, temperature. In: files of the kernel, the services that run.
//! Out: a summary an hour, what the device has where that changed, and samples every 5 s while somebody watches.
//!
//! 1. Every 30 s the kernel's files are read ([`read`]); what lies between two looks is added up ([`sums`]). Pure, but for the
//!    reading, which is away from the thread everything else runs on.
//! 2. A minute after the start, and then every hour, the sum goes out as telemetry: least, mean, greatest, last.
//! 3. The same looks see the wall clock jump, and whether addresses, clock source or budget are others than before ([`facts`]).
//!
//! Nothing is written to the disk, and no container is asked. Never here: a judgement, which is the health checks'; a wait for the
//! engine.

mod facts;
mod live;
mod read;
mod sums;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use copal_protocol::telemetry::{Budget, Telemetry};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use self::{
    facts::Around,
    read::Raw,
    sums::{Drift, Sums},
};
use crate::{
    apply::status::AgentStatus,
    channel::pace::share,
    clock::{Clock, system_time},
    cloud::random,
    diagnostics::{self, Tree},
    spool::{Note, Notes, Outbox},
};

pub use live::Live;

/// Between looks.
const LOOK: Duration = Duration::from_secs(30);
/// The first summary, and those after it.
const FIRST: Duration = Duration::from_secs(60);
/// Between looks at what the device has.
const FACTS: Duration = Duration::from_secs(300);
/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What metrics are made of.
#[derive(Clone)]
pub struct Deps {
    /// The files of the system.
    pub tree: Tree,
    /// The folder whose disk is measured.
    pub state_dir: PathBuf,
    /// The services.
    pub status: watch::Receiver<AgentStatus>,
    /// Wall clock.
    pub clock: Clock,
    /// Seconds between summaries.
    pub every: Duration,
    /// What the channel may take, where that is bounded.
    pub budget: watch::Receiver<Option<Budget>>,
    /// Why the device booted.
    pub boot_reason: &'static str,
    /// What health checks look at: whether a proxy is on the way to the cloud.
    pub checks: Arc<diagnostics::Deps>,
    /// A look is under way. One that hangs (a sensor's driver) is not joined by others: each would hold a thread.
    pub looking: Arc<AtomicBool>,
}

impl Deps {
    /// Looks; `None` where that takes too long, or one that did is not over yet.
    async fn look(&self) -> Option<Raw> {
        if self.looking.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (tree, state_dir, over) = (self.tree.clone(), self.state_dir.clone(), self.looking.clone());
        let services = read::services(&self.status.borrow());
        let looking = tokio::task::spawn_blocking(move || {
            let raw = read::read(&tree, &state_dir, &services);
            over.store(false, Ordering::Release);
            raw
        });
        tokio::time::timeout(PATIENCE, looking).await.ok()?.ok()
    }

    fn unix(&self) -> Option<u64> {
        (!self.clock.is_unset()).then(|| self.clock.now())
    }
}

/// Measures until dropped.
pub async fn run(deps: Deps, notes: Notes, outbox: Arc<Outbox>) {
    let mut ticks = tokio::time::interval(LOOK.min(deps.every));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sums = Sums::default();
    let mut due = Instant::now() + FIRST.min(deps.every);
    let mut first = true;
    let mut drift = Drift::new(system_time(), Instant::now().into_std());
    let mut around = Around::default();
    let mut facts_due = Instant::now() + LOOK.min(deps.every);
    loop {
        ticks.tick().await;
        if let Some((code, by)) = drift.look(system_time(), Instant::now().into_std(), deps.clock.floor()) {
            notes.note(clock_note(code, by));
        }
        let Some(raw) = deps.look().await else { continue };
        sums.add(raw, Instant::now().into_std());
        if Instant::now() >= due {
            if let Some(summary) = sums.take(deps.unix()) {
                outbox.telemetry(&Telemetry::Metrics(summary));
            }
            // Devices that started together do not tell together.
            due += if first { share(deps.every, random()) } else { deps.every };
            first = false;
            due = due.max(Instant::now());
        }
        if Instant::now() >= facts_due {
            facts_due = Instant::now() + FACTS.min(deps.every);
            if let Some(news) = around.look(&deps).await {
                outbox.telemetry(&Telemetry::Facts(Box::new(news)));
            }
        }
    }
}

fn clock_note(code: &str, by: i64) -> Note {
    let message = match code {
        "set" => "the clock was set".to_owned(),
        _ if by < 0 => format!("the clock jumped back by {} s", by.unsigned_abs()),
        _ => format!("the clock jumped ahead by {by} s"),
    };
    Note::new("clock", code, &message).with("by_s", by)
}
