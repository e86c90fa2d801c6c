//! What the channel sends of events and telemetry. One batch of each class is under way at a time; it goes again on every new
//! channel until the cloud said that it is stored. Events go first; telemetry waits while the budget has no room for it.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use copal_protocol::{
    channel::{Batch, Class, Stored},
    telemetry::{MAX_TELEMETRY, Telemetry},
};
use serde_json::Value;
use tokio::sync::Notify;

use super::{Note, Notes, Spool};

/// Telemetry items kept for a cloud that is away: the summaries of a day.
const KEPT: usize = 24;
/// Items, and bytes, of one batch.
const BATCH: (usize, usize) = (8, 32 << 10);
/// Answers in a row that brought nothing, after which a class rests until the next channel.
const PATIENCE: u32 = 3;

/// The way out.
pub struct Outbox {
    inner: Mutex<Inner>,
    notes: Notes,
    boot: String,
    news: Notify,
}

struct Inner {
    spool: Spool,
    telemetry: VecDeque<Value>,
    /// The number of the first of these; those before were sent, or given up.
    first: u64,
    given_up: u64,
    events: Way,
    telemetries: Way,
    /// The cloud on the other side of the channel stores such things.
    takes: bool,
}

/// How a class fares on the channel there is.
#[derive(Debug, Default)]
struct Way {
    /// The last number of the batch that is under way.
    under_way: Option<u64>,
    /// Answers in a row that brought nothing.
    idle: u32,
}

impl Way {
    fn is_free(&self) -> bool {
        self.under_way.is_none() && self.idle < PATIENCE
    }
}

impl Outbox {
    /// Over what is on the disk.
    #[must_use]
    pub fn new(spool: Spool, notes: Notes, boot: &str) -> Self {
        let inner = Inner {
            spool,
            telemetry: VecDeque::new(),
            first: 1,
            given_up: 0,
            events: Way::default(),
            telemetries: Way::default(),
            takes: false,
        };
        Self { inner: Mutex::new(inner), notes, boot: boot.to_owned(), news: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what was noted.
    pub(super) fn keep(&self, notes: &Notes) -> io::Result<()> {
        let (events, lost) = notes.take();
        if events.is_empty() {
            return Ok(());
        }
        let written = self.inner().spool.append(&events, lost);
        match written {
            Ok(()) => self.news.notify_one(),
            Err(_) => notes.give_back(events, lost),
        }
        written
    }

    /// Writes down at once what waits: the agent is about to end.
    pub fn flush(&self) {
        if let Err(error) = self.keep(&self.notes) {
            tracing::warn!(%error, "the last events cannot be written down");
        }
    }

    /// Takes telemetry; where nobody comes for it the oldest goes. Of a summary that no batch holds the last services are
    /// left out, rather than all that the device measured.
    pub fn telemetry(&self, item: &Telemetry) {
        let mut item = item.clone();
        let value = loop {
            let Ok(value) = serde_json::to_value(&item) else { return };
            if value.to_string().len() <= MAX_TELEMETRY {
                break value;
            }
            let left_out = match &mut item {
                Telemetry::Metrics(summary) => summary.services.pop_last().is_some(),
                Telemetry::Facts(_) => false,
            };
            if !left_out {
                return tracing::debug!("telemetry that no batch holds is left out");
            }
        };
        let mut inner = self.inner();
        inner.telemetry.push_back(value);
        if inner.telemetry.len() > KEPT {
            inner.telemetry.pop_front();
            inner.first += 1;
            inner.given_up += 1;
        }
        drop(inner);
        self.news.notify_one();
    }

    /// Waits until there is something new since somebody last waited.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// A new channel: nothing is under way on it.
    pub fn restart(&self) {
        let mut inner = self.inner();
        (inner.events, inner.telemetries) = (Way::default(), Way::default());
        inner.takes = false;
    }

    /// The channel is up. `stored`: what the cloud has of the events; absent where it stores none.
    pub fn welcomed(&self, stored: Option<u64>) {
        let mut inner = self.inner();
        inner.takes = stored.is_some();
        if let Some(up_to) = stored {
            inner.spool.stored(up_to);
        }
    }

    /// Takes an event.
    pub fn note(&self, note: Note) {
        self.notes.note(note);
    }

    /// What to send now; of each class one at a time. `telemetry`: whether there is room for it in the budget.
    #[must_use]
    pub fn next(&self, telemetry: bool) -> Option<Batch> {
        let mut inner = self.inner();
        if !inner.takes {
            return None;
        }
        if inner.events.is_free()
            && let Some(mut batch) = inner.spool.batch()
        {
            inner.events.under_way = Some(last(&batch));
            drop(inner);
            self.date(&mut batch);
            return Some(batch);
        }
        if !telemetry || !inner.telemetries.is_free() || inner.telemetry.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let fits = |item: &&Value| {
            bytes += item.to_string().len();
            bytes <= BATCH.1
        };
        let items: Vec<Value> = inner.telemetry.iter().take(BATCH.0).take_while(fits).cloned().collect();
        let batch = Batch {
            class: Class::Telemetry,
            boot_id: self.boot.clone(),
            first_seq: inner.first,
            dropped: inner.given_up,
            items,
        };
        inner.telemetries.under_way = Some(last(&batch));
        Some(batch)
    }

    /// Events from before the clock was set get the time that is known by now, where they are of this boot.
    fn date(&self, batch: &mut Batch) {
        let clock = self.notes.clock();
        let now = (batch.boot_id == self.boot && !clock.is_unset()).then(|| clock.now());
        let uptime = self.notes.uptime();
        for item in batch.items.iter_mut().filter_map(Value::as_object_mut) {
            let up = item.remove("up").and_then(|up| up.as_u64());
            if let (Some(now), Some(up), false) = (now, up, item.contains_key("at")) {
                item.insert("at".to_owned(), now.saturating_sub(uptime.saturating_sub(up)).into());
            }
        }
    }

    /// What the cloud says it has.
    pub fn stored(&self, stored: Stored) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let way = match stored.class {
            Class::Event => {
                inner.spool.stored(stored.up_to);
                &mut inner.events
            }
            Class::Telemetry => {
                while inner.first <= stored.up_to && inner.telemetry.pop_front().is_some() {
                    inner.first += 1;
                    inner.given_up = 0;
                }
                &mut inner.telemetries
            }
        };
        if let Some(under_way) = way.under_way.take() {
            way.idle = if stored.up_to >= under_way { 0 } else { way.idle + 1 };
        }
        self.news.notify_one();
    }

    /// Events that the cloud may not have.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.inner().spool.waiting()
    }
}

/// The last number of a batch.
fn last(batch: &Batch) -> u64 {
    batch.first_seq + batch.items.len() as u64 - 1
}
