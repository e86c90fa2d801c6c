//! What was seen, added up over all devices.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::http::Refused;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The device's channel.
    Channel,
    /// Everything else: logging in, polls, documents, reports.
    Http,
}

/// What passed by connections of one kind.
#[derive(Debug, Default)]
pub struct Passed {
    /// Connections that were opened.
    pub connections: AtomicU64,
    /// Those of them whose TLS went on with an earlier session.
    pub resumed: AtomicU64,
    /// Bytes written to sockets, TLS included.
    pub sent: AtomicU64,
    /// Bytes read from sockets, TLS included.
    pub received: AtomicU64,
}

impl Passed {
    /// Bytes both ways.
    pub fn bytes(&self) -> u64 {
        self.sent.load(Relaxed) + self.received.load(Relaxed)
    }
}

/// What was seen, added up over all devices.
#[derive(Debug, Default)]
pub struct Seen {
    /// Channels open now.
    pub connected: AtomicU64,
    /// Channels that were opened since the start.
    pub opened: AtomicU64,
    /// Attempts that were told to come back later (503, 429).
    pub refused: AtomicU64,
    /// Attempts that failed otherwise.
    pub failed: AtomicU64,
    /// Logins.
    pub logins: AtomicU64,
    /// Polls of the state route that were answered.
    pub polls: AtomicU64,
    /// Those of them that found nothing new.
    pub unchanged: AtomicU64,
    /// Hints that named something new.
    pub hints: AtomicU64,
    /// Assignments verified, their releases and freshness with them: what an agent would install now.
    pub applied: AtomicU64,
    /// Reports the cloud took.
    pub reports: AtomicU64,
    /// Those of them that said that an assignment runs.
    pub settled: AtomicU64,
    /// Batches of events and telemetry sent.
    pub batches: AtomicU64,
    /// Events the cloud said that it stored.
    pub events: AtomicU64,
    /// Items of telemetry the cloud said that it stored.
    pub telemetry: AtomicU64,
    /// Commands that came; one that came again counts again.
    pub commands: AtomicU64,
    /// Commands of which it was told that they are done.
    pub done: AtomicU64,
    /// What passed by channels.
    pub channel: Passed,
    /// What passed by HTTP.
    pub http: Passed,
    why: Mutex<Option<String>>,
    moments: Mutex<Moments>,
    pub(crate) news: Notify,
}

#[derive(Default)]
struct Moments {
    hinted: Vec<Instant>,
    applied: Vec<Instant>,
    lags: Vec<Duration>,
}

impl std::fmt::Debug for Moments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hinted, {} applied", self.hinted.len(), self.applied.len())
    }
}

impl Seen {
    fn moments(&self) -> std::sync::MutexGuard<'_, Moments> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What passed by connections of this kind.
    pub fn passed(&self, way: Way) -> &Passed {
        match way {
            Way::Channel => &self.channel,
            Way::Http => &self.http,
        }
    }

    /// Something did not work; gives what the cloud asked for, where it was told to come later.
    pub(crate) fn failed(&self, error: &anyhow::Error) -> Option<Duration> {
        let later = Refused::of(error).and_then(|refused| refused.later);
        if later.is_some() {
            self.refused.fetch_add(1, Relaxed);
        } else {
            self.failed.fetch_add(1, Relaxed);
            *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
        }
        later
    }

    /// Why the last attempt failed.
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn hinted(&self, at: Instant) {
        self.hints.fetch_add(1, Relaxed);
        self.moments().hinted.push(at);
    }

    /// An assignment is verified; `hinted`: when the channel spoke of it, where it did.
    pub(crate) fn applied(&self, hinted: Option<Instant>) {
        let now = Instant::now();
        let mut moments = self.moments();
        moments.applied.push(now);
        moments.lags.extend(hinted.map(|at| now.saturating_duration_since(at)));
        drop(moments);
        self.applied.fetch_add(1, Relaxed);
        self.news.notify_waiters();
    }

    pub(crate) fn channel(&self, open: bool) {
        if open {
            self.opened.fetch_add(1, Relaxed);
            self.connected.fetch_add(1, Relaxed);
        } else {
            self.connected.fetch_sub(1, Relaxed);
        }
        self.news.notify_waiters();
    }

    /// Forgets the moments so far.
    pub fn forget_moments(&self) {
        *self.moments() = Moments::default();
    }

    /// How long after its hint each assignment was fetched and verified, ascending.
    pub fn lags(&self) -> Vec<Duration> {
        let mut lags = self.moments().lags.clone();
        lags.sort();
        lags
    }

    /// When each hint came and when each assignment was verified, since `start`, ascending.
    pub fn since(&self, start: Instant) -> (Vec<Duration>, Vec<Duration>) {
        let moments = self.moments();
        let sorted = |list: &[Instant]| {
            let mut all: Vec<Duration> = list.iter().map(|at| at.saturating_duration_since(start)).collect();
            all.sort();
            all
        };
        (sorted(&moments.hinted), sorted(&moments.applied))
    }
}
