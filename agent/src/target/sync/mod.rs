//! The loop that keeps the stored target equal to the cloud's newest.
//!
//! 1. Publish what is stored: containers run before the network does.
//! 2. Walk the roots (now and then, and where the channel speaks of a newer one); ask for the state (a long poll, `If-None-Match`).
//! 3. A new assignment: verify, keep its mark, fetch its releases, judge each app, keep what was accepted.
//! 4. Ask for freshness; only then may anything new be installed.
//! 5. Anything refused or unreachable: say so, wait, try again. What runs goes on.
//!
//! While a channel is up it tells of anything new, so the polls of what is settled rest for hours; a hint, a person's wish and the
//! loss of the channel end the rest at once ([`Nudges`]).

mod fetch;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::{
    documents::{Assignment, Document as _, LockState, Reason, Root},
    ids::Sha256Hex,
    verify::{self, AssignmentMark, Code, Error},
};
use tokio::sync::watch;

use super::{check::Checked, condition::Condition, model::Target, nudges::Nudges, store::Store};
use crate::{
    apply::{hush::Hush, status::reason},
    clock::Clock,
    cloud::{Address, Backoff, Call, CloudError, random},
    identity::{Identity, Session, SessionError},
    state::StateError,
};

/// After one poll the cloud did not hold.
const SHORTLY: Duration = Duration::from_secs(2);
/// Between two polls, however often somebody nudges.
const APART: Duration = Duration::from_millis(50);
const DAY: Duration = Duration::from_secs(86_400);
/// Where bytes are spared, tries follow each other until the wait between them is as long as this.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often what is asked. The defaults are for the field; tests hurry.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Seconds the cloud may hold a poll.
    pub wait_s: u64,
    /// Between polls where the cloud does not hold them.
    pub poll: Duration,
    /// At least this long between tries where only a person can change something.
    pub slow: Duration,
    /// A root walk at least this often; while polls rest, with the next poll.
    pub roots: Duration,
    /// Between polls of what is settled while a channel is up.
    pub rest: Duration,
    /// Between polls while the budget of bytes has no room for a channel: visits ask for those that are due. The cloud's word that
    /// what is there is the newest is asked for as often.
    pub seldom: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            wait_s: 50,
            poll: Duration::from_secs(60),
            slow: Duration::from_secs(30),
            roots: Duration::from_secs(3600),
            rest: Duration::from_secs(6 * 3600),
            seldom: DAY,
        }
    }
}

impl Pace {
    /// What takes hours is done so many times as often.
    #[must_use]
    pub fn hurried(self, times: u32) -> Self {
        Self { roots: self.roots / times, rest: self.rest / times, seldom: self.seldom / times, ..self }
    }
}

/// Why a cycle ended early.
#[derive(Debug)]
enum Stop {
    /// The cloud cannot be reached or said no.
    Session(SessionError),
    /// A document was refused.
    Refused(Error),
    /// The disk.
    State(StateError),
}

impl From<SessionError> for Stop {
    fn from(e: SessionError) -> Self {
        match e {
            SessionError::State(e) => Self::State(e),
            other => Self::Session(other),
        }
    }
}
impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Refused(e)
    }
}
impl From<StateError> for Stop {
    fn from(e: StateError) -> Self {
        Self::State(e)
    }
}

/// Keeps target and condition up to date; runs for ever.
pub struct Sync {
    session: Arc<Session>,
    store: Arc<Store>,
    clock: Clock,
    pace: Pace,
    targets: watch::Sender<Option<Arc<Target>>>,
    condition: watch::Sender<Condition>,
    /// Payload hash the next poll names: everything of that assignment was accepted.
    settled: Option<Sha256Hex>,
    /// Payload hash the cloud served last, while something about it was refused: a change is then looked out for.
    suspect: Option<Sha256Hex>,
    /// When the cloud last vouched for which assignment.
    fresh: Option<(Sha256Hex, Instant)>,
    roots_walked: Option<Instant>,
    /// The version the channel spoke of when the roots were walked last: each is looked for once, whoever said it.
    root_sought: Option<u64>,
    /// The stored assignment waits for its time, Unix seconds.
    not_before: Option<u64>,
    polled: bool,
    /// What was said of failures since the last good cycle.
    said: Hush,
    /// Between polls the cloud does not hold; an assignment may set it.
    interval: Duration,
    /// What is heard beside the polls.
    nudges: watch::Receiver<Nudges>,
    /// As last heard.
    paused: bool,
    /// Somebody waits for what this poll finds.
    checking: bool,
    /// The wish whose poll was lost on the way once.
    lost: Option<u64>,
    /// What polls found that somebody asked for.
    checked: watch::Sender<Checked>,
}

/// What the others listen to.
pub struct Channels {
    /// What should run; `None` until something is known.
    pub targets: watch::Receiver<Option<Arc<Target>>>,
    /// How the synchronisation stands.
    pub condition: watch::Receiver<Condition>,
    /// What polls found that somebody asked for.
    pub checked: watch::Receiver<Checked>,
}

impl Sync {
    /// Prepares the loop and publishes what is stored.
    #[must_use]
    pub fn new(session: Arc<Session>, store: Arc<Store>, clock: Clock, pace: Pace) -> (Self, Channels) {
        let root = store.root();
        let condition = Condition {
            device_id: session.identity(Identity::device_id),
            root_version: root.version,
            root_sha256: root.sha256(),
            lock: lock_state(&root),
            mark: store.mark(),
            online: false,
            offline: None,
            refused: None,
            refused_apps: BTreeMap::new(),
            refused_hosts: BTreeMap::new(),
            fresh: false,
            offline_allowed: root.policy.allow.offline,
            lost: store.lost(),
        };
        let (targets, target_reader) = watch::channel(None);
        let (condition, condition_reader) = watch::channel(condition);
        let (checked, checked_reader) = watch::channel(Checked::default());
        let mut sync = Self {
            interval: pace.poll,
            session,
            store,
            clock,
            pace,
            targets,
            condition,
            settled: None,
            suspect: None,
            fresh: None,
            roots_walked: None,
            root_sought: None,
            not_before: None,
            polled: false,
            said: Hush::default(),
            nudges: watch::channel(Nudges::default()).1,
            paused: false,
            checking: false,
            lost: None,
            checked,
        };
        sync.use_root_address();
        sync.recall();
        (sync, Channels { targets: target_reader, condition: condition_reader, checked: checked_reader })
    }

    /// Listens to the channel and to people from now on.
    #[must_use]
    pub fn listening(mut self, nudges: watch::Receiver<Nudges>) -> Self {
        self.nudges = nudges;
        self.hear();
        self
    }

    /// Runs until the task is dropped.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut unheld = 0_u32;
        loop {
            self.hear();
            let (wish, before) = (self.nudges.borrow().asked, self.store.mark());
            self.checking = wish > self.checked.borrow().asked;
            let apart = tokio::time::sleep(APART);
            let cycle = Box::pin(self.cycle()).await;
            apart.await;
            match cycle {
                // Something was heard while the cloud held the poll.
                Ok(None) => {}
                Ok(Some(held)) => {
                    backoff.succeeded(Instant::now());
                    self.said = Hush::default();
                    self.tell(|c| {
                        c.online = true;
                        c.offline = None;
                    });
                    self.answer(wish, || Ok(self.found(&before)));
                    // One poll let go early is a cloud that restarts; a cloud (or proxy) that never holds them is asked
                    // at intervals instead.
                    unheld = if held { 0 } else { unheld + 1 };
                    let pause = match unheld {
                        _ if self.may_rest() => self.rest(),
                        // A held poll is renewed each minute; asking seldom means not to hold one, either.
                        _ if self.nudges.borrow().seldom => self.pace.seldom,
                        0 => continue,
                        1 => SHORTLY.min(self.interval),
                        _ => self.interval,
                    };
                    self.sleep(jittered(pause)).await;
                }
                Err(stop) => {
                    let asked = match &stop {
                        Stop::Session(SessionError::Cloud(e)) => e.retry_after(),
                        _ => None,
                    };
                    let mut wait = backoff.failed(Instant::now(), asked, random());
                    if matches!(&stop, Stop::Session(e) if e.needs_a_person()) {
                        wait = wait.max(jittered(self.pace.slow));
                    }
                    let seldom = self.nudges.borrow().seldom;
                    let seldom = seldom && wait >= PATIENCE;
                    if seldom {
                        // A visit to the cloud ends the wait.
                        wait = wait.max(jittered(self.pace.seldom));
                    }
                    let why = self.stopped(&stop, wait);
                    // A line that broke since the last poll is found out by this one, and the next may do.
                    let on_the_way =
                        matches!(&stop, Stop::Session(SessionError::Cloud(CloudError::Transport { .. })));
                    if !on_the_way || self.lost.replace(wish) == Some(wish) {
                        self.answer(wish, || Err(why));
                    }
                    if seldom || !matches!(stop, Stop::Refused(_)) {
                        self.sleep(wait).await;
                        continue;
                    }
                    let mut nudges = self.nudges.clone();
                    tokio::select! {
                        changed = Box::pin(self.until_change(wait)) => {
                            if changed {
                                backoff = Backoff::default();
                            }
                        }
                        () = nudged(&mut nudges) => {}
                    }
                }
            }
        }
    }

    /// Takes in what was heard.
    fn hear(&mut self) {
        let paused = self.nudges.borrow_and_update().paused;
        if paused != self.paused {
            self.paused = paused;
            tracing::info!(paused, "a person's word on updates");
            self.publish();
        }
    }

    /// Whether the channel would tell of anything worth a poll.
    fn may_rest(&self) -> bool {
        self.nudges.borrow().up && self.settled.is_some() && self.not_before.is_none()
    }

    /// How long polls rest. Where the channel speaks of another assignment than the poll brought, not for long.
    fn rest(&self) -> Duration {
        let hinted = self.nudges.borrow().hinted;
        if hinted.is_none() || hinted == self.settled { self.pace.rest } else { self.interval }
    }

    /// Waits, or until something is heard.
    async fn sleep(&self, time: Duration) {
        let mut nudges = self.nudges.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = nudged(&mut nudges) => {}
        }
    }

    /// Tells whoever waits for it how the poll ended.
    fn answer(&self, asked: u64, end: impl FnOnce() -> Result<String, Reason>) {
        if self.checking {
            self.checked.send_replace(Checked { asked, end: end() });
        }
    }

    /// What a poll brought, for people.
    fn found(&self, before: &AssignmentMark) -> String {
        let now = self.store.mark();
        let number = format!("{}.{}", now.assign_epoch, now.seq);
        let waits = self.condition.borrow().refused.as_ref().map(|why| why.message.clone());
        let found = match waits {
            Some(waits) => waits,
            None if now == *before => format!("nothing new: assignment {number} is the newest"),
            None => format!("something new was found: assignment {number} is taken up"),
        };
        if self.paused { format!("{found}; updates are paused, so nothing is installed") } else { found }
    }

    fn stopped(&mut self, stop: &Stop, wait: Duration) -> Reason {
        let (code, message) = match stop {
            Stop::Session(e) => (e.code().to_owned(), e.to_string()),
            Stop::Refused(e) => (e.code.to_string(), e.detail.clone()),
            Stop::State(e) => (e.code().to_owned(), e.to_string()),
        };
        if let Some(times) = self.said.failed(&code, &message) {
            let retry_s = wait.as_secs_f32();
            tracing::warn!(code, message, retry_s, times, "not synchronised; what runs goes on");
        }
        let found = reason(&code, message);
        let told = found.clone();
        self.tell(|c| match stop {
            Stop::Session(_) => {
                c.online = false;
                c.offline = Some(told);
            }
            Stop::Refused(_) | Stop::State(_) => {
                c.online = true;
                c.offline = None;
                c.refused = Some(told);
            }
        });
        found
    }

    /// Waits, and meanwhile asks to be told of another assignment than the refused one: a mended release must not wait for
    /// the back-off of the broken one. Whether one came.
    async fn until_change(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let left = || until.saturating_duration_since(Instant::now());
        let pause = wait.min(Duration::from_secs(1));
        tokio::time::sleep(pause).await;
        let known = self.suspect.or(self.store.mark().sha256);
        while let Some(hash) = known
            && left() >= Duration::from_secs(1)
        {
            let hold = left().as_secs().min(self.pace.wait_s);
            let path = format!("/device/v1/state?wait={hold}");
            let etag = hash.to_string();
            let call = Call {
                etag: Some(&etag),
                wait: Duration::from_secs(hold),
                ..Call::get(&path, Assignment::MAX_BYTES)
            };
            let began = Instant::now();
            match self.session.call(call).await {
                Ok(answer) if answer.status == 200 && answer.etag.as_deref() != Some(&etag) => return true,
                Ok(_) if began.elapsed() + pause >= Duration::from_secs(hold) => {}
                // Not held, or not answered: no asking in a circle.
                _ => break,
            }
        }
        tokio::time::sleep(left()).await;
        false
    }

    /// One round. Answers whether something new came or the cloud held the poll, so that asking again at once is right; `None`
    /// where the poll was let go because something was heard.
    async fn cycle(&mut self) -> Result<Option<bool>, Stop> {
        self.session.token().await?;
        self.tell_identity();
        let cycle = Instant::now();
        let said = self.nudges.borrow().hinted_root;
        let newer = said != self.root_sought && said > Some(self.store.root().version);
        let seldom = self.nudges.borrow().seldom;
        let roots = if seldom { self.pace.seldom.max(self.pace.roots) } else { self.pace.roots };
        if newer || self.roots_walked.is_none_or(|t| t.elapsed() >= roots) {
            self.walk_roots().await?;
            self.root_sought = said;
        }
        let began = Instant::now();
        let wait = self.wait_s();
        let path = format!("/device/v1/state?wait={wait}");
        let etag = self.settled.map(|hash| hash.to_string());
        let call = self.session.call(Call {
            etag: etag.as_deref(),
            wait: Duration::from_secs(wait),
            ..Call::get(&path, Assignment::MAX_BYTES)
        });
        let mut nudges = self.nudges.clone();
        let answer = tokio::select! {
            answer = call => answer?,
            () = nudged(&mut nudges), if wait > 0 => return Ok(None),
        };
        self.polled = true;
        match answer.status {
            304 => {
                self.when_due().await?;
                if self.not_before.is_none() {
                    self.tell(|c| c.refused = None);
                }
                return Ok(Some(was_held(wait, began)));
            }
            204 => {
                self.tell(|c| {
                    if c.mark.sha256.is_none() {
                        c.refused = Some(reason(
                            "no_assignment",
                            "the cloud has nothing assigned to this device yet: deploy a release to its fleet",
                        ));
                    }
                });
                // No assignment, so none that names a newer root: it is looked for here, or a fleet without a release
                // could not be locked.
                if self.roots_walked.is_none_or(|t| t < cycle) {
                    self.walk_roots().await?;
                }
                return Ok(Some(was_held(wait, began)));
            }
            _ => {}
        }
        self.take(&answer.body).await?;
        Ok(Some(true))
    }

    /// How long the cloud may hold the poll: not past what is due here, and not at all at first.
    fn wait_s(&self) -> u64 {
        let due = match (self.not_before, self.polled) {
            (_, false) => 0,
            _ if self.checking || self.may_rest() || self.nudges.borrow().seldom => 0,
            (Some(time), _) => time.saturating_sub(self.clock.now()).max(1),
            _ => u64::MAX,
        };
        self.pace.wait_s.min(due)
    }

    async fn when_due(&mut self) -> Result<(), Stop> {
        let is_time = self.not_before.is_some_and(|time| self.clock.now() >= time);
        if is_time {
            let device = self.session.identity(Identity::device);
            if let Some(device) = device
                && let Some(assignment) = self.store.assignment(&device)?
            {
                self.resolve(&assignment).await?;
            }
        }
        let mark = self.store.mark();
        let old = self.pace.seldom;
        let stale = self.fresh.is_none_or(|(hash, at)| Some(hash) != mark.sha256 || at.elapsed() >= old);
        if mark.sha256.is_some() && stale {
            self.ask_freshness().await?;
        }
        Ok(())
    }

    fn after_root(&mut self) {
        let root = self.store.root();
        self.tell(|c| {
            c.root_version = root.version;
            c.root_sha256 = root.sha256();
            c.lock = lock_state(&root);
            c.offline_allowed = root.policy.allow.offline;
        });
        self.use_root_address();
        // Everything stored is judged again under the new root; the cloud sends a new assignment for it.
        self.settled = None;
        self.publish();
    }

    fn use_root_address(&self) {
        let root = self.store.root();
        if root.cloud.urls.is_empty() {
            return;
        }
        match Address::new(&root.cloud.urls, &root.cloud.tls_pins) {
            Ok(address) => self.session.cloud().set_address(address),
            Err(e) => tracing::error!(
                error = e,
                "Root names a cloud address that cannot be used; the old one stays"
            ),
        }
    }

    /// After a restart: what is stored, judged again, without the network.
    fn recall(&mut self) {
        match self.session.identity(Identity::device) {
            None => return,
            Some(device) => match self.store.assignment(&device) {
                Ok(Some(assignment)) => {
                    let waits = assignment.not_before.filter(|time| *time > self.clock.now());
                    self.not_before = waits;
                    let order = (assignment.assign_epoch, assignment.seq);
                    let resolved = self.store.resolved();
                    let refused = !resolved.refused.is_empty() || !resolved.refused_hosts.is_empty();
                    if (resolved.order == order && !refused) || waits.is_some() {
                        self.settled = Some(assignment.sha256());
                    }
                }
                Ok(None) => {}
                Err(e) => {
                    self.tell(|c| {
                        let why = format!("the stored assignment: {}", e.detail);
                        c.refused = Some(reason(e.code.as_str(), why));
                    });
                }
            },
        }
        self.publish();
    }

    fn publish(&mut self) {
        let resolved = self.store.resolved();
        if resolved.apps.is_empty() && self.store.mark().sha256.is_none() && resolved.refused.is_empty() {
            return;
        }
        let fresh = self.fresh.is_some_and(|(hash, _)| Some(hash) == self.store.mark().sha256);
        let again: Vec<(_, Reason)> =
            resolved.refused.iter().map(|(app, e)| (*app, reason(e.code.as_str(), &e.detail))).collect();
        let hosts: Vec<(_, Reason)> = resolved
            .refused_hosts
            .iter()
            .map(|(part, e)| {
                let message = format!("the release of {}: {}", part.as_str(), e.detail);
                (*part, reason(e.code.as_str(), message))
            })
            .collect();
        self.tell(|c| {
            c.fresh = fresh;
            c.refused_apps.extend(again);
            c.refused_hosts.extend(hosts);
        });
        let unreadable = resolved.refused.iter().any(|(app, e)| {
            !resolved.apps.contains_key(app)
                && !resolved.never_begun.contains(app)
                && !matches!(e.code, Code::ReleaseRevoked | Code::ReleaseRollback)
        });
        if unreadable {
            // An app without a target goes. Only the owner's word may bring that about, never a damaged file: what was
            // last published stays, and at a start nothing is touched, until the cloud is heard.
            return;
        }
        let may_install = (fresh || self.condition.borrow().offline_allowed) && !self.paused;
        let target = Target { paused: self.paused, ..resolved.into_target(may_install) };
        self.targets.send_if_modified(|now| {
            let same = now.as_ref().is_some_and(|now| {
                now.order == target.order
                    && now.may_install == target.may_install
                    && now.paused == target.paused
                    && now.os == target.os
                    && now.agent == target.agent
                    && now.reboot_window == target.reboot_window
                    && now.check_every_s == target.check_every_s
                    && now.apps.keys().eq(target.apps.keys())
                    && now.apps.values().zip(target.apps.values()).all(|(a, b)| a.key() == b.key())
            });
            if !same {
                *now = Some(Arc::new(target));
            }
            !same
        });
    }

    fn tell_identity(&self) {
        let device_id = self.session.identity(Identity::device_id);
        self.tell(|c| c.device_id = device_id);
    }

    fn tell(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_if_modified(|now| {
            let before = now.clone();
            change(now);
            *now != before
        });
    }
}

/// Waits until something is heard; for ever where nobody speaks any more.
async fn nudged(nudges: &mut watch::Receiver<Nudges>) {
    if nudges.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether the cloud held the poll as long as it was asked to.
fn was_held(wait: u64, began: Instant) -> bool {
    began.elapsed() + Duration::from_secs(2) >= Duration::from_secs(wait)
}

fn lock_state(root: &Root) -> LockState {
    if verify::is_locked(root) { LockState::Locked } else { LockState::Open }
}

/// Between three quarters and five quarters of it, so that a fleet does not ask in step.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.75 + (random() >> 11) as f64 / (1_u64 << 53) as f64 / 2.0)
}
