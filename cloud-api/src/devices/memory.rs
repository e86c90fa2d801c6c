//! What is kept in memory of devices, so that a poll that finds nothing new touches no database: where each stands, the
//! hash of its assignment, and who is logged in. Everything here is read from the database at start and changed only
//! after a commit; sessions are the exception, they end with the process and devices log in again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use copal_protocol::{
    device_api::DeviceState,
    ids::{DeviceId, FleetId, Sha256Hex},
};
use http::{HeaderMap, header};
use tokio::sync::Notify;

use super::{challenge::Challenges, limit::Limits, rows};
use crate::{
    error::{Problem, Result},
    store::Db,
};

/// How long a session token is good for.
pub const SESSION: Duration = Duration::from_secs(1800);
/// A device that is let in is online while it holds a poll, or for so long after it was heard.
pub const ONLINE_S: u64 = 90;
/// How far a row's `last_seen` may be behind, seconds: a write a minute for each connected device is enough.
const BEHIND_S: u64 = 60;
/// Sessions of one device at a time: a new login lets requests under the last token end.
const SESSIONS_EACH: usize = 3;

/// Devices in memory.
#[derive(Debug)]
pub struct Memory {
    devices: RwLock<HashMap<DeviceId, Arc<Entry>>>,
    sessions: RwLock<HashMap<[u8; 32], Session>>,
    pub(super) challenges: Challenges,
    pub(super) limits: Limits,
}

#[derive(Debug)]
struct Session {
    entry: Arc<Entry>,
    opened: Instant,
}

/// The newest assignment of a device, by what names and orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) sha256: Sha256Hex,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

/// One device.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) device_id: DeviceId,
    pub(crate) fleet_id: FleetId,
    facts: Mutex<Facts>,
    /// Keys of its sessions, oldest first.
    sessions: Mutex<Vec<[u8; 32]>>,
    /// Wakes held polls and channels: the assignment or the state changed, or there is a command.
    pub(crate) changed: Notify,
    /// Unix seconds; 0 before the first contact.
    last_seen: AtomicU64,
    /// Unix seconds until which its channel counts as open; 0 where there is none.
    lease: AtomicU64,
    /// Until when it is away by its own word, sparing its bytes, Unix seconds; 0 where it is not.
    expected: AtomicU64,
    /// When its line was last found dead, Unix seconds: that it was heard before says nothing any more.
    gone: AtomicU64,
    /// How often all of its sessions were ended: what began under one of them ends, too.
    cuts: AtomicU32,
    flushed: AtomicU64,
    held: AtomicU32,
    online: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) state: DeviceState,
    pub(super) mark: Option<Mark>,
    pub(super) reports: super::limit::Bucket,
    /// Batches of events and telemetry.
    batches: super::limit::Bucket,
    /// Messages by exchange, and its hellos: there is no socket that would count them.
    messages: super::limit::Bucket,
    hellos: super::limit::Bucket,
}

impl Entry {
    fn new(row: &rows::Known) -> Self {
        let seen = row.last_seen.unwrap_or(0);
        Self {
            device_id: row.device_id,
            fleet_id: row.fleet_id,
            facts: Mutex::new(Facts {
                state: row.state,
                mark: row.mark,
                reports: super::limit::Bucket::default(),
                batches: super::limit::Bucket::default(),
                messages: super::limit::Bucket::default(),
                hellos: super::limit::Bucket::default(),
            }),
            sessions: Mutex::default(),
            changed: Notify::new(),
            last_seen: AtomicU64::new(seen),
            lease: AtomicU64::new(0),
            expected: AtomicU64::new(row.expected.unwrap_or(0)),
            gone: AtomicU64::new(0),
            cuts: AtomicU32::new(0),
            flushed: AtomicU64::new(seen),
            held: AtomicU32::new(0),
            online: AtomicBool::new(false),
        }
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken after the lock on all sessions, never before it.
    fn sessions(&self) -> MutexGuard<'_, Vec<[u8; 32]>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another batch of it may be taken now.
    pub(crate) fn may_tell(&self, rate: super::limit::Rate, now: Instant) -> bool {
        self.facts().batches.take(rate, now)
    }

    /// Whether so many messages of it, and this many hellos among them, may be taken now.
    pub(crate) fn may_say(
        &self,
        (messages, rate): (u16, super::limit::Rate),
        (hellos, hello_rate): (u16, super::limit::Rate),
        now: Instant,
    ) -> bool {
        let mut facts = self.facts();
        facts.hellos.take_some(hellos, hello_rate, now) && facts.messages.take_some(messages, rate, now)
    }

    /// The seq of its assignment.
    pub(crate) fn seq(&self) -> Option<u64> {
        self.facts().mark.map(|mark| mark.seq)
    }

    /// Unix seconds of the last contact; 0 before the first.
    pub(crate) fn last_seen(&self) -> u64 {
        self.last_seen.load(Relaxed)
    }

    /// What the state route would serve.
    pub(crate) fn etag(&self) -> Option<Sha256Hex> {
        self.facts().mark.map(|mark| mark.sha256)
    }

    /// Until when its channel counts as open, Unix seconds; 0: it is closed.
    pub(crate) fn set_lease(&self, until: u64) {
        self.lease.store(until, Relaxed);
    }

    /// It goes, and is heard again until then, Unix seconds; 0: it is back.
    pub(crate) fn set_expected(&self, until: u64) {
        if self.expected.swap(until, Relaxed) != until {
            // So that the next sweep writes it down.
            self.flushed.store(0, Relaxed);
        }
    }

    /// What it said of that, as it is written down.
    pub(super) fn away_until(&self) -> Option<u64> {
        Some(self.expected.load(Relaxed)).filter(|until| *until > 0)
    }

    /// Until when it is away by its own word, where it is.
    pub(crate) fn expected(&self, now: u64) -> Option<u64> {
        Some(self.expected.load(Relaxed)).filter(|until| now < *until && !self.is_online(now))
    }

    /// Its line is dead: it is away until it is heard again.
    pub(crate) fn set_gone(&self, now: u64) {
        self.gone.store(now, Relaxed);
    }

    /// Whether what began after so many cuts (see [`Memory::speaker`]) may go on.
    pub(crate) fn may_speak(&self, cuts: u32) -> Result<()> {
        refuse_unless_accepted(self.facts().state)?;
        if self.cuts.load(Relaxed) == cuts {
            return Ok(());
        }
        Err(Problem::unauthorized("token_invalid", "The device's sessions were ended: log in again."))
    }

    /// Whether it holds a poll or a channel, or was heard of late. One that is not let in is not online, however lately it called.
    pub(crate) fn is_online(&self, now: u64) -> bool {
        let heard = self.held.load(Relaxed) > 0
            || now < self.lease.load(Relaxed)
            || (self.last_seen() > self.gone.load(Relaxed)
                && now.saturating_sub(self.last_seen()) < ONLINE_S);
        heard && refuse_unless_accepted(self.facts().state).is_ok()
    }

    /// It was heard. Answers whether it was offline until now.
    pub(super) fn touch(&self, now: u64) -> bool {
        self.last_seen.store(now, Relaxed);
        !self.online.load(Relaxed) && !self.online.swap(true, Relaxed)
    }

    /// The database has this contact.
    pub(super) fn written(&self, seen: u64) {
        self.flushed.store(seen, Relaxed);
    }

    /// The database has that it went offline.
    pub(super) fn told_offline(&self) {
        self.online.store(false, Relaxed);
    }

    /// A poll begins to be held; ends when the guard is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        self.held.fetch_add(1, Relaxed);
        Held(Arc::clone(self))
    }
}

/// A poll being held.
#[derive(Debug)]
pub(super) struct Held(Arc<Entry>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
        self.0.last_seen.store(crate::app::now(), Relaxed);
    }
}

/// What `Memory::sweep` found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Contacts the database does not have yet.
    pub(super) seen: Vec<(Arc<Entry>, u64)>,
    /// Devices that went offline.
    pub(super) offline: Vec<Arc<Entry>>,
}

impl Memory {
    /// Reads every device from the database.
    ///
    /// # Errors
    /// When the database does not answer, or there is no randomness.
    pub async fn load(db: &Db) -> anyhow::Result<Self> {
        let devices =
            rows::known(db).await?.iter().map(|row| (row.device_id, Arc::new(Entry::new(row)))).collect();
        Ok(Self {
            devices: RwLock::new(devices),
            sessions: RwLock::default(),
            challenges: Challenges::new()?,
            limits: Limits::default(),
        })
    }

    /// Who speaks, by their Bearer token. Memory only, and counts as a contact.
    pub(super) fn session(&self, headers: &HeaderMap) -> Result<Arc<Entry>> {
        let unknown =
            || Problem::unauthorized("token_invalid", "The token is unknown or has expired: log in again.");
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| URL_SAFE_NO_PAD.decode(token.trim()).ok())
            .ok_or_else(unknown)?;
        let sessions = read(&self.sessions);
        let session = sessions.get(Sha256Hex::of(&token).as_bytes()).ok_or_else(unknown)?;
        if session.opened.elapsed() >= SESSION {
            return Err(unknown());
        }
        let entry = Arc::clone(&session.entry);
        drop(sessions);
        let state = entry.facts().state;
        refuse_unless_accepted(state)?;
        Ok(entry)
    }

    /// As [`Self::session`], for what goes on after the request: with how often the device was cut until now, see
    /// [`Entry::may_speak`].
    pub(crate) fn speaker(&self, headers: &HeaderMap) -> Result<(Arc<Entry>, u32)> {
        let cuts = self.session(headers)?.cuts.load(Relaxed);
        // Looked at again: the sessions may have ended before that was counted.
        Ok((self.session(headers)?, cuts))
    }

    /// Opens a session and answers its token.
    pub(super) fn open(&self, entry: &Arc<Entry>) -> Result<String> {
        let mut token = [0; 32];
        getrandom::fill(&mut token).map_err(Problem::internal)?;
        let key = *Sha256Hex::of(&token).as_bytes();
        let mut sessions = write(&self.sessions);
        let mut own = entry.sessions();
        own.push(key);
        if own.len() > SESSIONS_EACH {
            sessions.remove(&own.remove(0));
        }
        drop(own);
        sessions.insert(key, Session { entry: Arc::clone(entry), opened: Instant::now() });
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// Ends every session of a device; held polls and its channel end too.
    pub(crate) fn cut(&self, device: DeviceId) {
        let Some(entry) = self.get(device) else { return };
        let mut sessions = write(&self.sessions);
        for key in entry.sessions().drain(..) {
            sessions.remove(&key);
        }
        drop(sessions);
        entry.cuts.fetch_add(1, Relaxed);
        entry.changed.notify_waiters();
    }

    /// A device, where it is known.
    pub(crate) fn get(&self, device: DeviceId) -> Option<Arc<Entry>> {
        read(&self.devices).get(&device).cloned()
    }

    /// How many devices are online.
    pub(crate) fn online(&self, now: u64) -> usize {
        read(&self.devices).values().filter(|entry| entry.is_online(now)).count()
    }

    /// A device was enrolled.
    pub(super) fn add(&self, row: &rows::Known) -> Arc<Entry> {
        Arc::clone(write(&self.devices).entry(row.device_id).or_insert_with(|| Arc::new(Entry::new(row))))
    }

    /// A fleet was deleted, and its devices with it.
    pub fn forget_fleet(&self, fleet: FleetId) {
        // A channel outlives the session it was opened under, so it is the devices that are told, not the sessions.
        write(&self.devices).retain(|_, entry| {
            let stays = entry.fleet_id != fleet;
            if !stays {
                entry.facts().state = DeviceState::Revoked;
                entry.changed.notify_waiters();
            }
            stays
        });
        write(&self.sessions).retain(|_, session| session.entry.fleet_id != fleet);
    }

    /// A device's state was changed in the database.
    pub(crate) fn set_state(&self, device: DeviceId, state: DeviceState) {
        if let Some(entry) = self.get(device) {
            entry.facts().state = state;
            entry.changed.notify_waiters();
        }
    }

    /// A fleet has a new Root. Most devices get an assignment that names it; held polls of those that have none end, so that
    /// they look for it, and channels tell of it.
    pub(crate) fn stir(&self, fleet: FleetId) {
        for entry in read(&self.devices).values().filter(|entry| entry.fleet_id == fleet) {
            entry.changed.notify_waiters();
        }
    }

    /// A device's new assignment is in the database. Commits may be told in another order than they were made;
    /// an older one changes nothing.
    pub(crate) fn set_mark(&self, device: DeviceId, mark: Mark) {
        if let Some(entry) = self.get(device) {
            let mut facts = entry.facts();
            if facts.mark.is_none_or(|old| (old.epoch, old.seq) < (mark.epoch, mark.seq)) {
                facts.mark = Some(mark);
                drop(facts);
                entry.changed.notify_waiters();
            }
        }
    }

    /// Contacts worth writing down; drops what has run out. While the cloud runs it knows better than the database when
    /// a device was heard, so a row may be a minute behind; `all` brings every row up to date. What is given is given again
    /// until it is said to be written ([`Entry::written`], [`Entry::told_offline`]).
    pub(super) fn sweep(&self, now: u64, all: bool) -> Swept {
        write(&self.sessions).retain(|_, session| session.opened.elapsed() < SESSION);
        self.limits.sweep();
        self.challenges.sweep();
        let mut swept = Swept::default();
        for entry in read(&self.devices).values() {
            if entry.held.load(Relaxed) > 0 {
                entry.last_seen.store(now, Relaxed);
            }
            // One that said so is not missed before its time.
            let gone = entry.online.load(Relaxed) && !entry.is_online(now) && entry.expected(now).is_none();
            if gone {
                swept.offline.push(Arc::clone(entry));
            }
            let (seen, flushed) = (entry.last_seen(), entry.flushed.load(Relaxed));
            if seen != flushed && (all || gone || seen.abs_diff(flushed) >= BEHIND_S) {
                swept.seen.push((Arc::clone(entry), seen));
            }
        }
        swept
    }
}

/// Refuses a device that is not (or no longer) in.
pub(crate) fn refuse_unless_accepted(state: DeviceState) -> Result<()> {
    match state {
        DeviceState::Accepted | DeviceState::Preauthorised => Ok(()),
        DeviceState::Pending => Err(Problem::forbidden(
            "device_pending",
            "A person must accept this device first: `copal device accept`.",
        )),
        DeviceState::Rejected => {
            Err(Problem::forbidden("device_rejected", "A person decided that this device may not join."))
        }
        DeviceState::Revoked => Err(Problem::forbidden(
            "device_revoked",
            "This device was revoked. It keeps running what it runs; to bring it back, give it a new identity and enrol it.",
        )),
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
