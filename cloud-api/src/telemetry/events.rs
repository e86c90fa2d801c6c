//! Events of devices, once each. They have numbers that rise over the device's life; what the cloud has up to is kept with the
//! device, so that an event is known again also after it was let go of.
//!
//! A batch that begins above what the cloud has, and does not say that the numbers between are lost, is not taken: what is
//! between may still be on its way. One that does say so leaves an event that counts them (`gap`).

use copal_protocol::{
    channel::Batch,
    ids::DeviceId,
    telemetry::{Event, MAX_ITEMS},
};
use serde_json::json;

use super::clean;
use crate::{app::App, devices::rows, error::Result, store::Tx};

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// What the cloud has.
    pub(super) up_to: u64,
    /// How many were new.
    pub(super) new: usize,
}

/// What the cloud has of a device's events.
pub(crate) async fn up_to(app: &App, device: DeviceId) -> Result<u64> {
    let up_to: Option<i64> = sqlx::query_scalar("SELECT event_seq FROM devices WHERE device_id = $1")
        .bind(device.to_string())
        .fetch_optional(app.db.read())
        .await?;
    Ok(up_to.unwrap_or(0).unsigned_abs())
}

/// Takes a batch whole, or nothing of it.
pub(super) async fn take(app: &App, device: DeviceId, batch: &Batch, now: u64) -> Result<Taken> {
    let has = up_to(app, device).await?;
    let none = |up_to| Ok(Taken { up_to, new: 0 });
    let last = batch.first_seq.saturating_add(batch.items.len() as u64).saturating_sub(1);
    // Numbers end where integers of JSON do.
    if batch.items.is_empty()
        || batch.items.len() > MAX_ITEMS
        || last > i64::MAX.unsigned_abs() >> 10
        || last <= has
    {
        return none(has);
    }
    let mut tx = app.db.write().await?;
    // Looked at again: another channel of the device may have been faster.
    let has: i64 = sqlx::query_scalar("SELECT event_seq FROM devices WHERE device_id = $1")
        .bind(device.to_string())
        .fetch_one(&mut *tx)
        .await?;
    let has = has.unsigned_abs();
    if last <= has || batch.first_seq.saturating_sub(batch.dropped) > has + 1 {
        return none(has);
    }
    let gap = batch.first_seq.saturating_sub(has + 1);
    if gap > 0 {
        let event = rows::NewEvent {
            kind: "gap",
            code: "events_lost".to_owned(),
            message: format!("{gap} events of the device were lost before they could be told."),
            data: json!({"count": gap}),
        };
        rows::add_events(&mut tx, device, now, &[event]).await?;
    }
    let boot: String = batch.boot_id.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    let mut new = 0;
    for (seq, item) in (batch.first_seq..).zip(&batch.items).filter(|(seq, _)| *seq > has) {
        let (event, at) = clean::event(item, now);
        insert(&mut tx, device, &Told { event, at, boot: &boot, seq, now }).await?;
        new += 1;
    }
    sqlx::query("UPDATE devices SET event_seq = $2 WHERE device_id = $1")
        .bind(device.to_string())
        .bind(last.cast_signed())
        .execute(&mut *tx)
        .await?;
    rows::bound_events(&mut tx, device, now, true).await?;
    tx.commit().await?;
    Ok(Taken { up_to: last, new })
}

/// An event a device told.
struct Told<'a> {
    event: Event,
    at: u64,
    boot: &'a str,
    seq: u64,
    now: u64,
}

async fn insert(tx: &mut Tx, device: DeviceId, told: &Told<'_>) -> Result<()> {
    let id = device.to_string();
    let data = serde_json::Value::Object(told.event.data.clone()).to_string();
    // A report may have told of the same commit already: then it is that one.
    if told.event.kind == "committed"
        && let Some((row, false)) =
            rows::same_commit(tx, &id, told.event.data.get("release").and_then(|r| r.as_str())).await?
    {
        sqlx::query(
            "UPDATE device_events SET boot_id = $2, seq = $3, at = $4, received_at = $5 WHERE id = $1",
        )
        .bind(row)
        .bind(told.boot)
        .bind(told.seq.cast_signed())
        .bind(told.at.cast_signed())
        .bind(told.now.cast_signed())
        .execute(&mut **tx)
        .await?;
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO device_events (device_id, at, kind, code, message, data, boot_id, seq, received_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&id)
    .bind(told.at.cast_signed())
    .bind(&told.event.kind)
    .bind(&told.event.code)
    .bind(&told.event.message)
    .bind(&data)
    .bind(told.boot)
    .bind(told.seq.cast_signed())
    .bind(told.now.cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
