//! Who is online, and the writes of it: in batches, and only what changed.

use std::{sync::Arc, time::Duration};

use super::{memory::Entry, rows};
use crate::{
    app::{self, App},
    bus::Event,
    error::Result,
    rollouts,
};

/// Between two batches.
const EVERY: Duration = Duration::from_secs(10);
/// Devices of one transaction: each is brought to the disk once, and others write in between.
const BATCH: usize = 500;

/// A device was heard.
pub(crate) fn heard(app: &App, entry: &Arc<Entry>) {
    if entry.touch(app::now()) {
        app.bus
            .publish(Event::Device { fleet_id: entry.fleet_id.to_string(), id: entry.device_id.to_string() });
    }
}

/// First finishes what an earlier run left undone; then writes contacts down and tells who went offline, until the cloud stops; then once more.
pub async fn run(app: App) {
    if let Err(problem) = rollouts::catch_up(&app).await {
        tracing::error!(%problem, "bringing assignments up to date at start");
    }
    loop {
        let stop = tokio::select! {
            () = tokio::time::sleep(EVERY) => false,
            () = app.stopping.cancelled() => true,
        };
        if let Err(problem) = sweep(&app, stop).await {
            tracing::warn!(%problem, "writing down which devices were seen; tried again later");
        }
        if stop {
            return;
        }
    }
}

/// One batch.
pub(crate) async fn sweep(app: &App, all: bool) -> Result<()> {
    let now = app::now();
    let swept = app.devices.sweep(now, all);
    for chunk in swept.seen.chunks(BATCH) {
        let mut tx = app.db.write().await?;
        for (entry, seen) in chunk {
            sqlx::query("UPDATE devices SET last_seen = $2, expected = $3 WHERE device_id = $1")
                .bind(entry.device_id.to_string())
                .bind(seen.cast_signed())
                .bind(entry.away_until().map(u64::cast_signed))
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        chunk.iter().for_each(|(entry, seen)| entry.written(*seen));
    }
    // Where the cloud's own line fails, all devices are in here.
    for chunk in swept.offline.chunks(BATCH) {
        let mut tx = app.db.write().await?;
        for entry in chunk {
            let event = rows::NewEvent::new("presence", "offline", "The device went offline.");
            rows::add_events(&mut tx, entry.device_id, now, &[event]).await?;
        }
        tx.commit().await?;
        for entry in chunk {
            entry.told_offline();
            let (fleet_id, id) = (entry.fleet_id.to_string(), entry.device_id.to_string());
            app.bus.publish(Event::Device { fleet_id, id });
        }
    }
    Ok(())
}
