//! Whose channel is open, and how many there may be. Epochs number the channels of all devices, so that what an older one
//! says of itself is known to be old; they rise over restarts, too.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use copal_protocol::ids::{DeviceId, Sha256Hex};
use http::StatusCode;
use tokio_util::task::TaskTracker;

use super::streams::{Features, Streams};
use crate::{
    app::{self, App},
    auth::bounds::Shares,
    devices::memory::{Entry, ONLINE_S},
    error::{Problem, Result},
};

/// Sockets that have not said hello, at once. Each has 10 s and costs a buffer; devices refused come again at another moment.
const GREETINGS: usize = 1_000;
/// Of one device: its last, and the one that comes after its network changed.
const GREETINGS_EACH: u32 = 2;
/// Devices that can come back in a second: a handshake and a login cost about 2 ms of one core, and polls go on meanwhile.
const RETURNS_PER_S: usize = 100;
/// A device that goes is waited for as long as it says, but no longer than this, seconds.
const AWAY_MOST_S: u32 = 2 * 86_400;
/// How long channels may take to say goodbye when the cloud stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Until the first frame.
    pub(super) hello: Duration,
    /// Between pings, at most: a device goes up to that as far as its network lets it. Six minutes cost it about 52 KB a day.
    pub(super) ping: Duration,
    /// What a device is taken to ping at until it says; all begin with no more.
    pub(super) first: Duration,
    /// Until a message is taken by the device's side of the line.
    pub(super) write: Duration,
    /// The same of the last one; a revoked device is out within 5 s.
    pub(super) bye: Duration,
    /// Until a device that is asked whether it is there was heard: longer than TCP takes to try three times more over a bad line.
    pub(super) probe: Duration,
}

impl Timing {
    const STANDARD: Self = Self {
        hello: Duration::from_secs(10),
        ping: Duration::from_secs(crate::config::PING_MAX_S),
        first: Duration::from_secs(180),
        write: Duration::from_secs(20),
        bye: Duration::from_secs(2),
        probe: Duration::from_secs(7),
    };

    /// How long a device counts as connected after it was heard, before it said how often it pings.
    pub(super) fn lease(&self) -> Duration {
        self.first.min(self.ping) * 5 / 2
    }

    /// The same of one that pings every so many seconds, by its own word.
    fn lease_of(&self, every_s: u32) -> Duration {
        let every = Duration::from_secs(every_s.into()).min(self.ping);
        (every * 5 / 2).max(Duration::from_secs(ONLINE_S))
    }
}

/// Channels in memory.
#[derive(Debug)]
pub struct Memory {
    turns: Mutex<HashMap<DeviceId, Arc<Turn>>>,
    greetings: Mutex<HashMap<DeviceId, u32>>,
    next_epoch: AtomicU64,
    sockets: Arc<AtomicUsize>,
    most: AtomicUsize,
    /// Polls that are held.
    held: Arc<AtomicUsize>,
    most_held: AtomicUsize,
    /// Streams of all devices.
    pub(super) streams: Arc<AtomicUsize>,
    /// The same by person.
    pub(super) shares: Shares,
    timing: Mutex<Timing>,
    pub(super) tasks: TaskTracker,
}

/// By what a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Socket,
    Exchange,
}

/// A device's channel, from its hello on.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) epoch: u64,
    pub(super) kind: Kind,
    /// A newer one was opened.
    pub(super) replaced: AtomicBool,
    /// There may be a command to send.
    pub(super) work: AtomicBool,
    /// The device is to be asked whether it is there.
    pub(super) ping: AtomicBool,
    /// It was asked, and nothing was heard: the line is dead, whatever TCP says.
    pub(super) dead: AtomicBool,
    /// Rises whenever the device is heard.
    sounds: AtomicU32,
    /// Seconds between its pings, by its own word; 0 before it said so.
    every_s: AtomicU32,
    /// What the device was last told.
    pub(super) told: Mutex<Told>,
    /// Of an exchange: until when it counts as open, Unix seconds.
    until: AtomicU64,
    /// Of an exchange: its newest request; an older one that is held ends.
    pub(super) calls: AtomicU32,
    /// What the device has streams of.
    pub(super) features: Features,
    /// Those that are open.
    pub(super) streams: Streams,
}

/// What a device can be told to look for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The state route would serve this.
    pub(super) etag: Option<Sha256Hex>,
    /// Version of the newest Root.
    pub(super) root: Option<u64>,
}

impl Turn {
    /// How often it pings, by its own word.
    pub(super) fn pings_every(&self, seconds: u32) {
        self.every_s.store(seconds.max(1), Relaxed);
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Relaxed)
    }

    fn is_open(&self, now: u64) -> bool {
        self.kind == Kind::Socket || now < self.until.load(Relaxed)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            turns: Mutex::default(),
            greetings: Mutex::default(),
            // Fewer than a million channels are opened a second, so those of a later run are always greater; and all are
            // below 2^53, as integers on the wire must be.
            next_epoch: AtomicU64::new((app::now() << 20) + 1),
            sockets: Arc::default(),
            most: AtomicUsize::new(usize::MAX),
            held: Arc::default(),
            most_held: AtomicUsize::new(usize::MAX),
            streams: Arc::default(),
            shares: Shares::default(),
            timing: Mutex::new(Timing::STANDARD),
            tasks: TaskTracker::new(),
        }
    }
}

impl Memory {
    fn turns(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Turn>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn greetings(&self) -> MutexGuard<'_, HashMap<DeviceId, u32>> {
        self.greetings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn timing(&self) -> Timing {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Devices are to ping every so many seconds at least.
    pub fn ping_max(&self, seconds: u64) {
        self.timing.lock().unwrap_or_else(PoisonError::into_inner).ping = Duration::from_secs(seconds);
    }

    /// How long a device counts as connected after it was heard.
    pub(super) fn lease(&self, turn: &Turn) -> Duration {
        match (self.timing(), turn.every_s.load(Relaxed)) {
            (timing, 0) => timing.lease(),
            (timing, every_s) => timing.lease_of(every_s),
        }
    }

    /// A device goes by itself, and comes again within so many seconds.
    pub(super) fn leaves(&self, entry: &Entry, turn: &Turn, within_s: u32) {
        if turn.is_replaced() {
            return;
        }
        entry.set_expected(app::now() + u64::from(within_s.min(AWAY_MOST_S)));
        match turn.kind {
            Kind::Socket => self.end(entry, turn),
            // Closed to everybody but the device, which may have more to say at once: what it was told, it was.
            Kind::Exchange => {
                turn.until.store(0, Relaxed);
                entry.set_lease(0);
            }
        }
    }

    /// The last channel a device had, open or not.
    pub(super) fn latest(&self, device: DeviceId) -> Option<Arc<Turn>> {
        self.turns().get(&device).cloned()
    }

    #[cfg(test)]
    pub(super) fn set_timing(&self, timing: Timing) {
        *self.timing.lock().unwrap() = timing;
    }

    /// The most sockets at once, and the most polls that are held for devices without one. Together below what the process may open,
    /// so that polls, people and pushes always find a place.
    pub fn allow(&self, most: usize, most_held: usize) {
        self.most.store(most, Relaxed);
        self.most_held.store(most_held, Relaxed);
    }

    /// A place for a poll or an exchange that is held; without one it is answered at once.
    pub(crate) fn hold(&self) -> Option<Place> {
        Place::take(&self.held, self.most_held.load(Relaxed))
    }

    /// How many channels are open, by WebSocket and by exchange.
    pub(crate) fn count(&self) -> (usize, usize) {
        let now = app::now();
        let mut turns = self.turns();
        // An exchange has no end that could be seen; those of devices that stayed away are forgotten here.
        turns.retain(|_, turn| turn.is_open(now));
        let sockets = turns.values().filter(|turn| turn.kind == Kind::Socket).count();
        (sockets, turns.len() - sockets)
    }

    /// In how many seconds devices are to come back when their channels break, at a moment of each one's choosing.
    pub(super) fn window_s(&self) -> u32 {
        let open = self.sockets.load(Relaxed);
        u32::try_from(5 + open / RETURNS_PER_S).unwrap_or(u32::MAX).min(600)
    }

    /// A place for one more socket of a device.
    ///
    /// # Errors
    /// 503 `channels_full`.
    pub(super) fn greet(self: &Arc<Self>, device: DeviceId) -> Result<Greeting> {
        let full = || {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "channels_full",
                "There are as many channels as this cloud holds, or too many are being opened. Poll meanwhile, and come again at a random moment within the time said.",
            )
            .retry_after(self.window_s().max(10))
        };
        let place = Place::take(&self.sockets, self.most.load(Relaxed)).ok_or_else(full)?;
        let mut greetings = self.greetings();
        if greetings.values().map(|n| *n as usize).sum::<usize>() >= GREETINGS {
            return Err(full());
        }
        let own = greetings.entry(device).or_default();
        if *own >= GREETINGS_EACH {
            return Err(full());
        }
        *own += 1;
        Ok(Greeting { memory: Arc::clone(self), device, place: Some(place) })
    }

    /// A device's channel begins; one it had is replaced.
    pub(super) fn begin(&self, entry: &Entry, kind: Kind, features: Features) -> Arc<Turn> {
        let turn = Arc::new(Turn {
            epoch: self.next_epoch.fetch_add(1, Relaxed),
            kind,
            replaced: AtomicBool::new(false),
            work: AtomicBool::new(true),
            ping: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            sounds: AtomicU32::new(0),
            every_s: AtomicU32::new(0),
            told: Mutex::default(),
            until: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            features,
            streams: Streams::default(),
        });
        entry.set_expected(0);
        let older = self.turns().insert(entry.device_id, Arc::clone(&turn));
        self.heard(entry, &turn);
        if let Some(older) = older {
            older.replaced.store(true, Relaxed);
            entry.changed.notify_waiters();
        }
        turn
    }

    /// The channel a device has by exchange, or by WebSocket.
    pub(super) fn turn(&self, device: DeviceId) -> Option<Arc<Turn>> {
        self.turns().get(&device).filter(|turn| turn.is_open(app::now())).cloned()
    }

    /// A device was heard on its channel.
    pub(super) fn heard(&self, entry: &Entry, turn: &Turn) {
        turn.sounds.fetch_add(1, Relaxed);
        if turn.is_replaced() {
            return;
        }
        let lease = self.lease(turn).as_secs();
        // Exchanges follow each other at once, and none is held for longer than a minute.
        let lease = if turn.kind == Kind::Exchange { lease.min(ONLINE_S) } else { lease };
        let until = app::now() + lease;
        turn.until.store(until, Relaxed);
        entry.set_lease(until);
    }

    /// A channel ended. The end of one that was replaced changes nothing.
    pub(super) fn end(&self, entry: &Entry, turn: &Turn) {
        turn.streams.end();
        let mut turns = self.turns();
        if turns.get(&entry.device_id).is_some_and(|now| now.epoch == turn.epoch) {
            turns.remove(&entry.device_id);
            entry.set_lease(0);
        }
    }

    /// By what a device has a channel, where it has one: `socket` or `exchange`.
    pub(crate) fn kind(&self, device: DeviceId) -> Option<&'static str> {
        self.turn(device).map(|turn| match turn.kind {
            Kind::Socket => "socket",
            Kind::Exchange => "exchange",
        })
    }

    /// Whether a device has a channel.
    pub(crate) fn is_open(&self, device: DeviceId) -> bool {
        self.turn(device).is_some()
    }

    /// There is a command for a device; without a channel it waits.
    pub(crate) fn stir(&self, app: &App, device: DeviceId) {
        let Some(turn) = self.turn(device) else { return };
        turn.work.store(true, Relaxed);
        if let Some(entry) = app.devices.get(device) {
            entry.changed.notify_waiters();
        }
    }

    /// Whether a device is there: its channel of this epoch is asked, and cut off when nothing is heard. Where that one is gone
    /// already, a newer one counts.
    pub(crate) async fn lives(&self, app: &App, device: DeviceId, epoch: u64) -> bool {
        const LOOK: Duration = Duration::from_millis(200);
        let patience = self.timing().probe;
        let asked = self.turn(device).filter(|turn| turn.epoch == epoch);
        let before = asked.as_ref().map(|turn| turn.sounds.load(Relaxed));
        let say = |what: &AtomicBool| {
            what.store(true, Relaxed);
            if let Some(entry) = app.devices.get(device) {
                entry.changed.notify_waiters();
            }
        };
        if let Some(turn) = &asked {
            say(&turn.ping);
        }
        let until = Instant::now() + patience;
        while Instant::now() < until {
            tokio::time::sleep(LOOK.min(patience)).await;
            let heard = asked.as_ref().map(|turn| turn.sounds.load(Relaxed)) != before;
            if heard || self.turn(device).is_some_and(|turn| turn.epoch > epoch) {
                return true;
            }
        }
        if let Some(turn) = &asked {
            if let Some(entry) = app.devices.get(device) {
                entry.set_gone(app::now());
            }
            say(&turn.dead);
        }
        false
    }

    /// Waits until every channel said goodbye, not for long.
    pub async fn farewell(&self) {
        self.tasks.close();
        if tokio::time::timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!("{} channels did not end in {} s", self.tasks.len(), FAREWELL.as_secs());
        }
    }
}

/// A socket, a poll that is held or a stream, counted; given back when it goes.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    pub(super) fn take(places: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let taken = places.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1));
        taken.ok().map(|_| Self(Arc::clone(places)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A socket before its hello.
#[derive(Debug)]
pub(super) struct Greeting {
    memory: Arc<Memory>,
    device: DeviceId,
    place: Option<Place>,
}

impl Greeting {
    /// The hello came; the socket's place goes on.
    pub(super) fn over(mut self) -> Option<Place> {
        self.place.take()
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        let mut greetings = self.memory.greetings();
        if let Some(own) = greetings.get_mut(&self.device) {
            *own -= 1;
            if *own == 0 {
                greetings.remove(&self.device);
            }
        }
    }
}
