//! What this device has. In: the system's files. Out: the whole of it, where it is not what was last told.

use std::time::Duration;

use copal_protocol::telemetry::{Facts, InterfaceFacts};
use tokio::time::Instant;

use super::{Deps, PATIENCE};
use crate::{
    clock::{system_time, uptime_s},
    diagnostics::{Network, counter, proxy_in_use, room, time_service},
};

/// The most interfaces, and addresses of one.
const INTERFACES: usize = 16;
const ADDRESSES: usize = 8;

/// What another process tells of the clock is believed so long where it keeps it right, and where not: asking wakes a service, whose
/// coming and going the system's journal writes down.
const CLOCK: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(900));

/// Whether the clock is kept right, and by what.
type Kept = (Option<bool>, &'static str);

/// What was last told.
#[derive(Debug, Default)]
pub(super) struct Around {
    told: Option<Facts>,
    clock: Option<(Kept, Instant)>,
}

impl Around {
    /// Looks; gives what there is where that is news.
    pub(super) async fn look(&mut self, deps: &Deps) -> Option<Facts> {
        let of = deps.clone();
        let believed = |((right, _), at): &(Kept, Instant)| {
            at.elapsed() < if *right == Some(true) { CLOCK.0 } else { CLOCK.1 }
        };
        let known = self.clock.filter(believed);
        let looking = tokio::task::spawn_blocking(move || look(&of, known.map(|(kept, _)| kept)));
        let (mut facts, kept) = tokio::time::timeout(PATIENCE, looking).await.ok()?.ok()?;
        self.clock = known.or(Some((kept, Instant::now())));
        facts.budget = *deps.budget.borrow();
        // A clock's seconds, and bytes that are counted on, are no news by themselves.
        let same = self.told.as_ref().is_some_and(|told| quiet(told) == quiet(&facts));
        if same {
            return None;
        }
        self.told = Some(facts.clone());
        Some(facts)
    }
}

/// Without what changes all the time.
fn quiet(facts: &Facts) -> Facts {
    let mut quiet = facts.clone();
    quiet.booted_at = facts.booted_at.map(|at| at / 600);
    if let Some(budget) = &mut quiet.budget {
        // The report tells of it as it is used.
        budget.used = 0;
    }
    quiet
}

fn look(deps: &Deps, known: Option<Kept>) -> (Facts, Kept) {
    let tree = &deps.tree;
    let clock_set = !deps.clock.is_unset();
    let kept = match known {
        // Where this is there nobody has to be asked.
        Some(known) if !tree.has("run/systemd/timesync/synchronized") => known,
        _ => time_service(tree, system_time(), deps.clock.floor()),
    };
    let (clock_synchronised, clock_source) = kept;
    let meminfo = tree.text("proc/meminfo").unwrap_or_default();
    let stat = tree.text("proc/stat").unwrap_or_default();
    let cores = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
    let facts = Facts {
        interfaces: Network::look(tree).into_iter().take(INTERFACES).map(interface).collect(),
        proxy: proxy_in_use(&deps.checks),
        clock_source: clock_source.to_owned(),
        clock_synchronised,
        clock_set,
        booted_at: clock_set.then(|| deps.clock.now().saturating_sub(uptime_s())),
        boot_reason: deps.boot_reason.to_owned(),
        kernel: tree.line("proc/sys/kernel/osrelease").unwrap_or_default(),
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory: counter(&meminfo, "MemTotal:").unwrap_or(0).saturating_mul(1024),
        disk: room(&deps.state_dir).map_or(0, |(used, free)| used.saturating_add(free)),
        budget: None,
    };
    (facts, kept)
}

fn interface(seen: Network) -> InterfaceFacts {
    InterfaceFacts {
        name: seen.name,
        state: seen.state,
        addresses: seen.addresses.into_iter().take(ADDRESSES).collect(),
        routes: seen.routes,
        signal: seen.signal.map(|percent| percent / 10 * 10),
    }
}
