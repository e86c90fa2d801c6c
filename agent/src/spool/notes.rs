//! Where rooms put what happened. In: events, from any task, at once. Out: those to write down. Bounded in memory: where the
//! disk takes none for long the oldest go, and are counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use copal_protocol::{telemetry::Event, text::one_line};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::{changes::changes, disk::fits, rate::Rates};
use crate::{
    clock::{self, Clock},
    report::Heard,
};

/// Events in memory.
const MOST: usize = 256;
/// Characters of a sentence.
const MESSAGE: usize = 300;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    kind: &'static str,
    code: String,
    message: String,
    data: Map<String, Value>,
}

impl Note {
    /// Of this kind, with one sentence about it.
    #[must_use]
    pub fn new(kind: &'static str, code: &str, message: &str) -> Self {
        Self { kind, code: code.to_owned(), message: one_line(message, MESSAGE), data: Map::new() }
    }

    /// What else belongs to it; integers and texts only.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(one_line(&text, MESSAGE)),
            other => other,
        };
        if !value.is_null() {
            self.data.insert(name.to_owned(), value);
        }
        self
    }

    /// What it is of, where that is limited in how often it is told.
    fn subject(&self) -> String {
        let of = |name| self.data.get(name).and_then(Value::as_str).unwrap_or_default();
        format!("{} {} {}", self.kind, of("service"), of("check"))
    }

    /// Its kind and code.
    #[must_use]
    pub fn name(&self) -> (&'static str, &str) {
        (self.kind, &self.code)
    }
}

/// The way to the spool; cheap to clone.
#[derive(Clone)]
pub struct Notes(Arc<Inner>);

struct Inner {
    clock: Clock,
    uptime: fn() -> u64,
    began: Instant,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Value>,
    lost: u64,
    rates: Rates,
}

impl Waiting {
    fn bound(&mut self) {
        while self.events.len() > MOST {
            self.events.pop_front();
            self.lost += 1;
        }
    }
}

impl Notes {
    /// Empty. `uptime` gives seconds since the boot.
    #[must_use]
    pub fn new(clock: Clock, uptime: fn() -> u64) -> Self {
        let inner =
            Inner { clock, uptime, began: Instant::now(), waiting: Mutex::default(), came: Notify::new() };
        Self(Arc::new(inner))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one.
    pub fn note(&self, note: Note) {
        self.note_at(note, self.0.began.elapsed());
    }

    /// Tells what is worth it of a change.
    pub fn changed(&self, before: &Heard, now: &Heard) {
        changes(before, now).into_iter().for_each(|note| self.note(note));
    }

    pub(super) fn note_at(&self, note: Note, now: Duration) {
        let Some(left_out) = self.waiting().rates.admit(&note.subject(), now) else { return };
        let note = if left_out > 0 { note.with("left_out", left_out) } else { note };
        tracing::debug!(kind = note.kind, code = note.code, message = note.message, "an event");
        let at = (!self.0.clock.is_unset()).then(|| self.0.clock.now());
        let event =
            Event { kind: note.kind.to_owned(), code: note.code, message: note.message, at, data: note.data };
        let Ok(mut value) = serde_json::to_value(event) else { return };
        // For whoever gets to know the time later.
        value["up"] = (self.0.uptime)().into();
        if !fits(&value) {
            value["data"] = Value::Object(Map::new());
        }
        let mut waiting = self.waiting();
        waiting.events.push_back(value);
        waiting.bound();
        drop(waiting);
        self.0.came.notify_one();
    }

    /// Waits until something was noted since somebody last waited.
    pub(super) async fn came(&self) {
        self.0.came.notified().await;
    }

    /// Takes what waits, and how many were lost before it.
    pub(super) fn take(&self) -> (Vec<Value>, u64) {
        let mut waiting = self.waiting();
        (waiting.events.drain(..).collect(), std::mem::take(&mut waiting.lost))
    }

    /// Takes back what could not be written down.
    pub(super) fn give_back(&self, events: Vec<Value>, lost: u64) {
        let mut waiting = self.waiting();
        waiting.lost += lost;
        for event in events.into_iter().rev() {
            waiting.events.push_front(event);
        }
        waiting.bound();
    }

    /// The clock events are dated by.
    pub(super) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Seconds since the boot.
    pub(super) fn uptime(&self) -> u64 {
        (self.0.uptime)()
    }
}

impl Default for Notes {
    fn default() -> Self {
        Self::new(Clock::default(), clock::uptime_s)
    }
}
