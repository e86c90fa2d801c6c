//! Follows the log of every container of ours, whatever becomes of it, of the engine, and of this process.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use copal_protocol::logs::unix;
use futures_util::StreamExt as _;
use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};

use super::{
    Deps,
    rate::Account,
    ring::Rings,
    split::{Line, Splitter},
};
use crate::{
    clock::system_time,
    diagnostics::redact::{Redactor, is_secret},
    engine::{Engine, EngineApi as _, Ours, Since},
    plan::labels,
};

/// Containers are looked for this often, besides when the engine tells of one.
const LOOK: Duration = Duration::from_secs(30);
/// Lines are written this often: whoever follows reads what was written.
const WRITE: Duration = Duration::from_millis(250);
/// A count of lines that were not kept is told this often while it grows.
const COUNT: Duration = Duration::from_secs(5);
/// Between two tries to follow one container.
const AGAIN: Duration = Duration::from_secs(2);
/// Lines of a container whose log was never read: what it said before this agent knew it.
const FIRST: u32 = 100_000;
/// Containers followed at once.
const MOST: usize = 256;
/// Lines on their way to the rings. Where they are full, the engine waits, and no container does.
const WAITING: usize = 256;
/// The clock is looked at this often.
const CLOCK: Duration = Duration::from_secs(10);

/// What followers tell.
enum Heard {
    Said(Said),
    /// The follower of this container ended.
    Ended(String),
}

/// A line of a container.
struct Said {
    service: String,
    container: String,
    line: Line,
}

struct Followed {
    name: String,
    task: JoinHandle<()>,
    began: Instant,
    ended: bool,
    /// Something happened to it since the follower began.
    stale: bool,
}

struct Collector {
    deps: Deps,
    rings: Rings,
    accounts: BTreeMap<String, Account>,
    followed: BTreeMap<String, Followed>,
    /// Container and time of the last line that was not kept.
    dropped: BTreeMap<String, (String, String)>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
}

/// Collects until dropped.
pub async fn run(deps: Deps) {
    let rings = match Rings::open(deps.dir.clone(), deps.limits, deps.state.clone(), &deps.boot_id) {
        Ok(rings) => rings,
        Err(error) => {
            tracing::error!(%error, dir = %deps.dir.display(), "service logs are not kept");
            return std::future::pending().await;
        }
    };
    let heard = mpsc::channel(WAITING);
    let (accounts, followed, dropped) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut collector = Collector { deps, rings, accounts, followed, dropped, heard };
    let mut events = collector.deps.engine.events();
    let mut look = tokio::time::interval(LOOK);
    let mut write = tokio::time::interval(WRITE);
    let mut count = tokio::time::interval(COUNT);
    for ticks in [&mut look, &mut write, &mut count] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut unwritten = false;
    loop {
        tokio::select! {
            Some(heard) = collector.heard.1.recv() => {
                unwritten = true;
                if collector.hear(heard) {
                    collector.look().await;
                }
            }
            _ = write.tick(), if unwritten => {
                unwritten = false;
                collector.write();
            }
            _ = count.tick(), if !collector.dropped.is_empty() => {
                unwritten |= collector.tell_dropped(None);
            }
            _ = look.tick() => collector.look().await,
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if event.labels.get(labels::INSTANCE) == Some(&collector.deps.instance) {
                        collector.stale(&event.name);
                        collector.look().await;
                    }
                }
                // The engine is away; events that were missed are made good by looking.
                _ => {
                    tokio::time::sleep(AGAIN).await;
                    events = collector.deps.engine.events();
                    look.reset_immediately();
                }
            },
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.followed.values().for_each(|followed| followed.task.abort());
        self.tell_dropped(None);
        self.write();
    }
}

impl Collector {
    /// Whether there may be something to follow.
    fn hear(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Said(said) => {
                self.take(said);
                false
            }
            Heard::Ended(id) => self.followed.get_mut(&id).is_some_and(|followed| {
                followed.ended = true;
                followed.stale
            }),
        }
    }

    fn take(&mut self, said: Said) {
        let Said { service, container, line } = said;
        let now = Instant::now();
        let rate = self.deps.limits.rate;
        let account = self.accounts.entry(service.clone()).or_insert_with(|| Account::new(rate, now));
        if account.keeps(line.text.len(), now) {
            self.tell_dropped(Some(&service));
            self.rings.push(&service, &container, line);
        } else {
            self.dropped.insert(service, (container, line.at));
        }
    }

    /// Writes down how many lines were not kept; whether there were any.
    fn tell_dropped(&mut self, of: Option<&str>) -> bool {
        let mut any = false;
        for (service, account) in &mut self.accounts {
            if account.dropped == 0 || of.is_some_and(|of| of != service) {
                continue;
            }
            if let Some((container, at)) = self.dropped.remove(service) {
                self.rings.push_dropped(service, &container, at, std::mem::take(&mut account.dropped));
                any = true;
            }
        }
        any
    }

    fn write(&mut self) {
        let last = self.rings.write();
        self.deps.written.send_replace(last);
    }

    fn stale(&mut self, name: &str) {
        self.followed.values_mut().filter(|f| f.name == name).for_each(|f| f.stale = true);
    }

    /// Follows what is not followed.
    async fn look(&mut self) {
        // Where the engine is away, the next look finds it.
        let Ok(ours) = self.deps.engine.ours(&self.deps.instance).await else { return };
        self.followed.retain(|id, followed| !followed.is_over() || ours.iter().any(|one| one.id == *id));
        let due = |followed: &Followed| followed.stale || followed.began.elapsed() >= AGAIN;
        let due: Vec<Ours> = ours
            .into_iter()
            .filter(|one| match self.followed.get(&one.id) {
                Some(followed) => followed.is_over() && due(followed) && (one.running || followed.stale),
                None => true,
            })
            .collect();
        if due.is_empty() {
            return;
        }
        // What was said and is on its way counts as read: a follower begins after it.
        while let Ok(heard) = self.heard.1.try_recv() {
            self.hear(heard);
        }
        self.tell_dropped(None);
        for one in due {
            if self.followed.contains_key(&one.id) || self.followed.len() < MOST {
                self.follow(one);
            }
        }
        self.write();
    }

    fn follow(&mut self, one: Ours) {
        let container: String = one.id.chars().take(12).collect();
        let last = self.rings.last_of(&one.service, &container);
        let follower = Follower {
            engine: self.deps.engine.clone(),
            known: (self.deps.secrets)(),
            heard: self.heard.0.clone(),
            service: one.service,
            container,
            id: one.id.clone(),
        };
        let task = tokio::spawn(follower.run(last));
        let followed = Followed { name: one.name, task, began: Instant::now(), ended: false, stale: false };
        self.followed.insert(one.id, followed);
    }
}

impl Followed {
    fn is_over(&self) -> bool {
        self.ended || self.task.is_finished()
    }
}

struct Follower {
    engine: Engine,
    known: Vec<String>,
    heard: mpsc::Sender<Heard>,
    service: String,
    container: String,
    id: String,
}

impl Follower {
    /// Follows until the container stops, or something fails: then it is begun again where it was left off.
    async fn run(self, last: Option<String>) {
        self.all(last).await;
        // Nobody hears it where the agent ends.
        let _ = self.heard.send(Heard::Ended(self.id.clone())).await;
    }

    async fn all(&self, mut last: Option<String>) {
        let Ok(env) = self.engine.env(&self.id).await else { return };
        let secret = env.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| is_secret(name));
        let values = self.known.iter().cloned().chain(secret.map(|(_, value)| value.to_owned()));
        let redactor = Redactor::new(values.collect::<Vec<_>>());
        loop {
            match self.follow(&mut last, &redactor).await {
                Ok(true) => {
                    tracing::debug!(service = self.service, "the clock went back; the log is followed anew");
                }
                Ok(false) => return,
                Err(error) => {
                    tracing::debug!(service = self.service, %error, "a log cannot be followed");
                    return;
                }
            }
        }
    }

    /// Whether to begin anew: the clock was set back, and what is said now would count as old.
    async fn follow(&self, last: &mut Option<String>, redactor: &Redactor) -> anyhow::Result<bool> {
        let now = system_time();
        let had = last.as_deref().and_then(unix);
        let since = match had {
            Some((s, ns)) if s <= now => Since::Time(s, ns),
            Some(_) => Since::Time(now, 0),
            None => Since::Tail(FIRST),
        };
        // Times of the last line and of those before it are not past it; after a clock that went back nothing is.
        let had = had.filter(|(s, _)| *s <= now);
        let mut log = self.engine.follow(&self.id, &since).await?;
        let mut splitter = Splitter::default();
        loop {
            let Ok(part) = log.next_within(CLOCK).await? else {
                match &since {
                    Since::Time(s, _) if system_time() + 1 < *s => return Ok(true),
                    _ => continue,
                }
            };
            let ended = part.is_none();
            let lines = match part {
                Some(part) => splitter.take(&part, redactor),
                None => splitter.end(redactor),
            };
            for line in lines {
                if had.is_some() && unix(&line.at) <= had {
                    continue;
                }
                *last = Some(line.at.clone());
                let (service, container) = (self.service.clone(), self.container.clone());
                self.heard.send(Heard::Said(Said { service, container, line })).await?;
            }
            if ended {
                return Ok(false);
            }
        }
    }
}
