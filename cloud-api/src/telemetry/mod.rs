//! What devices tell of themselves besides reports: events, metrics, facts.
//!
//! In: batches of the channel. Out: rows, and what the cloud has by then, which is said only after it is in the database.
//! Never here: what a device should do, or whether it is well; an item kept longer or larger than the bounds below.
//!
//! | file | what it does |
//! |---|---|
//! | `events` | takes events once each, by their number |
//! | `metrics` | takes spans, joins old ones, gives them in steps |
//! | `facts` | the newest that a device told it has |
//! | `live` | samples of a device while somebody watches |
//! | `clean` | brings what a device sent within bounds |
//!
//! Events: the newest 5,000 that a device told, at most 90 days. Metrics: 30 days, see `metrics`.

mod clean;
pub(crate) mod events;
pub(crate) mod facts;
pub(crate) mod live;
pub(crate) mod metrics;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use live::Memory;

use copal_protocol::{
    channel::{Batch, Class, Stored},
    telemetry::{MAX_ITEMS, MAX_TELEMETRY, Telemetry},
};

use crate::{
    app::{self, App},
    bus::Event,
    devices::{limit::Rate, memory::Entry},
    error::Result,
};

/// Batches of one device. One that sends more is heard later.
const BATCHES: Rate = Rate { burst: 100.0, per_second: 5.0 };

/// Takes a batch; what the cloud has by then.
///
/// # Errors
/// When the database fails: then nothing of it is taken.
pub(crate) async fn take(app: &App, entry: &Entry, batch: Batch) -> Result<Stored> {
    while !entry.may_tell(BATCHES, Instant::now()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let class = batch.class;
    let up_to = match class {
        Class::Event => {
            let stored = events::take(app, entry.device_id, &batch, app::now()).await?;
            if stored.new > 0 {
                app.bus.publish(Event::Device {
                    fleet_id: entry.fleet_id.to_string(),
                    id: entry.device_id.to_string(),
                });
            }
            stored.up_to
        }
        Class::Telemetry => telemetry(app, entry, &batch).await?,
    };
    Ok(Stored { class, up_to })
}

/// Drops metrics past their time, of devices that send nothing any more, too.
///
/// # Errors
/// The database's.
pub(crate) async fn prune(app: &App) -> Result<()> {
    metrics::prune(app, app::now()).await
}

/// Takes telemetry: what cannot be read is left out, as it would be again.
async fn telemetry(app: &App, entry: &Entry, batch: &Batch) -> Result<u64> {
    let now = app::now();
    let mut spans = Vec::new();
    let mut newest = None;
    for item in batch.items.iter().take(MAX_ITEMS).filter(|item| item.to_string().len() <= MAX_TELEMETRY) {
        match serde_json::from_value(item.clone()) {
            Ok(Telemetry::Metrics(summary)) => spans.push(summary),
            Ok(Telemetry::Facts(facts)) => newest = Some(clean::facts(*facts)),
            Err(error) => tracing::debug!(device = %entry.device_id, %error, "an item of telemetry"),
        }
    }
    let spans = clean::spans(spans, now);
    if !spans.is_empty() || newest.is_some() {
        let mut tx = app.db.write().await?;
        metrics::store(&mut tx, entry.device_id, &spans, now).await?;
        if let Some(facts) = &newest {
            facts::store(&mut tx, entry.device_id, facts, now).await?;
        }
        tx.commit().await?;
    }
    Ok(batch.first_seq.saturating_add(batch.items.len() as u64).saturating_sub(1))
}
