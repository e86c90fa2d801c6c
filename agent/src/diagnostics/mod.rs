//! Health checks of this device, and a bundle for support.
//!
//! In: names of checks, and the device around: its files, the engine, the way to the cloud. Out: one bounded result a subject,
//! with what was measured, by what it was judged, and what to do. Never here: anything that changes the device; a secret in a
//! result; a check that can hold up the others or the agent.
//!
//! Each check is a file of two halves: a thin reader, which takes the root of the files it reads, and a pure judge. [`round`]
//! calls them. What the cloud is asked goes by the agent's own login, so a program beside a running agent asks that one by its
//! [`door`]; all else it sees better itself, outside the agent's sandbox.

mod agent;
pub(crate) mod ask;
pub mod bundle;
mod clock;
mod cloud;
mod disk;
mod disk_health;
mod dns;
pub mod door;
mod engine;
pub mod fetch;
mod firmware;
mod kernel_log;
mod line;
mod memory;
mod mounts;
mod network;
mod oom;
mod partition;
mod proxy;
pub mod redact;
mod registry;
mod round;
mod services;
mod slots;
mod tarball;
mod temperature;
mod tree;
mod undervoltage;
mod update;
mod verdicts;
pub mod watch;
#[cfg(test)]
mod whole_tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use copal_protocol::diagnosis::{Diagnosis, HealthReport, MAX_RESULTS, PROBES, ProbeResult, Verdict};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

pub(crate) use cloud::reach;
pub(crate) use network::Interface as Network;
pub use tree::Tree;
pub(crate) use tree::counter;

use crate::{
    clock::Clock,
    cloud::Cloud,
    engine::{Engine, Whose},
    identity::{Identity, Session},
    settings::Places,
    spool::Notes,
    target::Store,
};

/// What a check may take. Whatever it waits for then hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at files that may go on at once; one that hangs for ever keeps its place.
const LOOKS: usize = 16;
/// One look follows another, so that one thread is enough for all: each has memory of its own that it does not give back. The next
/// waits no longer than this for one that hangs.
const TURN: Duration = Duration::from_millis(250);
/// Rounds at once; others wait.
const ROUNDS: usize = 2;
/// Checks that need the agent's login or its environment.
const OF_THE_AGENT: &[&str] = &[proxy::NAME, line::NAME, cloud::NAME, registry::NAME];

/// What checks look at.
pub struct Deps {
    /// The files of the system.
    pub tree: Tree,
    /// Where the agent keeps its things.
    pub places: Places,
    /// The agent's clock.
    pub clock: Clock,
    /// The container engine.
    pub engine: Engine,
    /// The way to the cloud.
    pub link: Link,
    /// This process is the agent.
    pub inside: bool,
    /// Gives the value of a variable of the environment.
    pub environment: fn(&str) -> Option<String>,
    verdicts: Option<verdicts::Verdicts>,
    counted: disk_health::Counted,
    looks: Arc<Semaphore>,
    turn: tokio::sync::Mutex<()>,
    rounds: Semaphore,
}

/// The way to the cloud.
#[allow(clippy::large_enum_variant, reason = "one in a process")]
pub enum Link {
    /// The device's own login, and the documents it holds.
    Own {
        /// The login.
        session: Arc<Session>,
        /// The documents.
        store: Arc<Store>,
    },
    /// An agent runs beside this program and has the login: it is asked.
    Agent {
        /// The cloud's base URLs.
        bases: Vec<String>,
    },
    /// There is no login to be had.
    None {
        /// A client without one, where the cloud's address is known.
        cloud: Option<Box<Cloud>>,
        /// Why there is none.
        why: String,
        /// An agent runs, and does not answer.
        deaf: bool,
    },
}

/// Names that are no checks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("probe_unknown: there is no check {}; there are: {}", unknown.join(", "), known())]
pub struct UnknownProbes {
    /// The names.
    pub unknown: Vec<String>,
}

fn known() -> String {
    PROBES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl Deps {
    /// Checks of this machine.
    #[must_use]
    pub fn new(places: Places, clock: Clock, engine: Engine, link: Link, inside: bool) -> Self {
        Self {
            tree: Tree::new("/"),
            places,
            clock,
            engine,
            link,
            inside,
            environment: |name| std::env::var(name).ok(),
            verdicts: None,
            counted: disk_health::Counted::default(),
            looks: Arc::new(Semaphore::new(LOOKS)),
            turn: tokio::sync::Mutex::default(),
            rounds: Semaphore::new(ROUNDS),
        }
    }

    /// Tells of verdicts that change from what was `known` on.
    #[must_use]
    pub fn telling(mut self, notes: Notes, known: &HealthReport) -> Self {
        self.verdicts = Some(verdicts::Verdicts::new(notes, known));
        self
    }

    /// The cloud's base URLs, as far as they are known.
    #[must_use]
    pub fn bases(&self) -> Vec<String> {
        match &self.link {
            Link::Own { session, .. } => session.cloud().bases(),
            Link::Agent { bases } => bases.clone(),
            Link::None { cloud, .. } => cloud.as_deref().map(Cloud::bases).unwrap_or_default(),
        }
    }

    /// The proxy that was set from afar.
    fn proxy(&self) -> Option<String> {
        match &self.link {
            Link::Own { session, .. } => session.cloud().proxy(),
            Link::Agent { .. } => None,
            Link::None { cloud, .. } => cloud.as_deref().and_then(Cloud::proxy),
        }
    }

    /// Whose containers are this agent's.
    #[must_use]
    pub fn whose(&self) -> Whose {
        match &self.link {
            Link::Own { session, .. } => Whose::Instance(session.identity(Identity::instance)),
            _ => Whose::Prefix(self.places.name_prefix.clone()),
        }
    }

    /// Reads files away from the thread everything else runs on: a disk that hangs must not hold up the agent.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tree) -> T + Send + 'static,
    ) -> Result<T, String> {
        let place = self.looks.clone().acquire_owned().await.map_err(|e| e.to_string())?;
        let tree = self.tree.clone();
        let turn = self.turn.lock().await;
        let mut looked = tokio::task::spawn_blocking(move || {
            let _place = place;
            read(&tree)
        });
        let soon = tokio::time::timeout(TURN, &mut looked).await;
        drop(turn);
        let looked = match soon {
            Ok(looked) => looked,
            Err(_) => looked.await,
        };
        looked.map_err(|e| format!("the look at it broke off: {e}"))
    }
}

/// Which of the known checks these names ask for; none: all.
///
/// # Errors
/// [`UnknownProbes`], which lists the known ones.
pub fn choose(names: &[String]) -> Result<Vec<&'static str>, UnknownProbes> {
    let is_known = |name: &String| PROBES.iter().any(|(known, _)| known == name);
    let unknown: Vec<String> = names
        .iter()
        .filter(|name| !is_known(name))
        .take(8)
        .map(|name| name.chars().take(40).collect())
        .collect();
    if !unknown.is_empty() {
        return Err(UnknownProbes { unknown });
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    Ok(PROBES.iter().map(|(name, _)| *name).filter(|name| wanted(name)).collect())
}

/// Makes checks, all of them where no name is given: at once, each within [`PATIENCE`]. Results come in the order of
/// [`PROBES`].
///
/// # Errors
/// [`UnknownProbes`].
pub async fn run(deps: &Deps, names: &[String]) -> Result<Vec<ProbeResult>, UnknownProbes> {
    let names = choose(names)?;
    let _round = deps.rounds.acquire().await;
    let round = round::Round::new(deps);
    let (asked, own): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| matches!(deps.link, Link::Agent { .. }) && OF_THE_AGENT.contains(name));
    let own = join_all(own.into_iter().map(|name| one(&round, name)));
    let (own, asked) = tokio::join!(own, Box::pin(ask_agent(deps, &asked)));
    let mut results: Vec<ProbeResult> = own.into_iter().flatten().chain(asked).collect();
    let place = |result: &ProbeResult| PROBES.iter().position(|(name, _)| *name == result.name);
    results.sort_by_key(place);
    if let Some(verdicts) = &deps.verdicts {
        verdicts.seen(&results);
    }
    if results.len() > MAX_RESULTS {
        results.sort_by_key(|result| std::cmp::Reverse(result.verdict));
        results.truncate(MAX_RESULTS);
    }
    Ok(results)
}

/// As [`run`], with the time.
///
/// # Errors
/// As there.
pub async fn diagnose(deps: &Deps, names: &[String]) -> Result<Diagnosis, UnknownProbes> {
    let probes = run(deps, names).await?;
    let taken_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(Diagnosis { probes, taken_at })
}

/// The hottest sensor, thousandths of a degree.
pub(crate) fn hottest(tree: &Tree) -> Option<i64> {
    temperature::read(tree).sensors.into_iter().map(|(_, temp)| temp).max()
}

/// Bytes in use, and bytes that may still be written, of the file system a folder is on.
pub(crate) fn room(folder: &std::path::Path) -> std::io::Result<(u64, u64)> {
    disk::read(folder, "").room.map(|room| (room.used, room.free))
}

/// Whether a time service keeps the clock right, and which.
pub(crate) fn time_service(tree: &Tree, now: u64, floor: u64) -> (Option<bool>, &'static str) {
    let seen = clock::read(tree, now, floor);
    (seen.synchronised, if seen.synchronised.is_some() { seen.source } else { "" })
}

/// The proxy the way to the cloud goes by, without user and password.
pub(crate) fn proxy_in_use(deps: &Deps) -> Option<String> {
    proxy::in_use(deps.proxy(), deps.environment, &deps.bases())
}

async fn one(round: &round::Round<'_>, name: &'static str) -> Vec<ProbeResult> {
    match tokio::time::timeout(PATIENCE, round.probe(name)).await {
        Ok(results) => results,
        Err(_) => {
            let detail = format!("not seen within {} s: something it looks at hangs", PATIENCE.as_secs());
            vec![ProbeResult::new(name, Verdict::Unknown, &detail)]
        }
    }
}

async fn ask_agent(deps: &Deps, names: &[&str]) -> Vec<ProbeResult> {
    if names.is_empty() {
        return Vec::new();
    }
    let owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    match door::ask(&deps.places.run_dir, &owned).await {
        Ok(diagnosis) => diagnosis.probes,
        Err(why) => {
            let detail = format!("the running agent has the login, and does not answer: {why}");
            names.iter().map(|name| ProbeResult::new(name, Verdict::Unknown, &detail)).collect()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, fs};

    use copal_protocol::{
        documents::{AgentReport, LockState},
        ids::Sha256Hex,
        testing::OwnerKeys,
    };

    use super::*;
    use crate::report::Status;

    /// A tree of these files.
    pub(crate) fn plant(files: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let tree = Tree::new(dir.path());
        (dir, tree)
    }

    /// Everything below one folder.
    pub(crate) fn places(dir: &std::path::Path) -> Places {
        Places {
            config: Some(dir.join("copal.json")),
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            docker_host: Some(format!("unix://{}/engine.sock", dir.display())),
            name_prefix: "copal".to_owned(),
            os_config: dir.join("os.json"),
            policy: dir.join("policy.toml"),
            max_bytes_month: None,
            spool_bytes: 4 << 20,
            metrics_every_s: 3600,
            log_bytes_service: 4 << 20,
            log_bytes: 32 << 20,
            check_every: Some(0),
            hurry: 1,
            reboot_command: "false".to_owned(),
            leds: "/nowhere".into(),
        }
    }

    /// Of a device on which all is well.
    pub(crate) fn status() -> Status {
        let keys = OwnerKeys::fixed();
        Status {
            pid: std::process::id(),
            at: 1_800_000_000,
            agent_version: "0.1.0".to_owned(),
            device_id: Some(keys.device_id),
            fleet_id: keys.fleet_id,
            online: true,
            offline: None,
            root_version: 1,
            root_sha256: Sha256Hex::of(b"root"),
            lock: LockState::Open,
            accepted: (1, 1),
            applied: Some((1, 1)),
            fresh: true,
            on_target: true,
            reason: None,
            progress: None,
            apps: BTreeMap::new(),
            host: None,
            agent: AgentReport::default(),
            lost: Vec::new(),
            budget: None,
        }
    }

    #[test]
    fn names_that_are_no_checks_are_refused_with_those_that_are() {
        let all = choose(&[]).unwrap();
        assert_eq!(all.len(), PROBES.len());
        assert_eq!(
            choose(&["oom".to_owned(), "clock".to_owned(), "oom".to_owned()]).unwrap(),
            ["clock", "oom"]
        );
        let error = choose(&["clock".to_owned(), "cpu".to_owned()]).unwrap_err().to_string();
        assert!(
            error.starts_with("probe_unknown: there is no check cpu; there are: clock, disk,"),
            "{error}"
        );
    }

    #[test]
    fn every_check_has_its_own_name() {
        let here = [
            clock::NAME,
            disk::NAME,
            disk_health::NAME,
            memory::NAME,
            oom::NAME,
            temperature::NAME,
            undervoltage::NAME,
            network::NAME,
            dns::NAME,
            proxy::NAME,
            line::NAME,
            cloud::NAME,
            registry::NAME,
            engine::NAME,
            agent::NAME,
            slots::NAME,
            update::NAME,
            services::NAME,
        ];
        assert_eq!(here.to_vec(), PROBES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
