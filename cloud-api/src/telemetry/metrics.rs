//! Spans of metrics: a device tells one an hour. They are kept for 30 days: as they came for 7 days, or the newest 200; older
//! ones joined to spans of six hours. One has at most 8 KiB (joined: 16 KiB), and about 1 KiB of a device with three services:
//! 200 and 121 spans of a device are 3.5 MiB at most and about 320 KiB as a rule.

use std::collections::BTreeMap;

use copal_protocol::{ids::DeviceId, telemetry::Summary};

use crate::{
    app::App,
    devices::rows,
    error::{Problem, Result},
    store::Tx,
};

/// How long spans are kept as they came, and at all, seconds.
const WHOLE_S: u64 = 7 * 86_400;
const KEPT_S: u64 = 30 * 86_400;
/// The most spans of a device kept as they came.
const WHOLE: i64 = 200;
/// The most bytes of a span; of one that has more, what services did is left out.
const MOST: usize = 16 << 10;
/// What older ones are joined to, seconds.
const JOINED_S: u64 = 6 * 3600;

/// Drops what is past its time of devices that send nothing any more.
pub(super) async fn prune(app: &App, now: u64) -> Result<()> {
    let devices: Vec<String> =
        sqlx::query_scalar("SELECT device_id FROM devices").fetch_all(app.db.read()).await?;
    for chunk in devices.chunks(500) {
        let mut tx = app.db.write().await?;
        for device in chunk {
            drop_old(&mut tx, device, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn drop_old(tx: &mut Tx, device: &str, now: u64) -> Result<()> {
    // Both kinds are named, so that the key finds them.
    sqlx::query("DELETE FROM device_metrics WHERE device_id = $1 AND joined IN (FALSE, TRUE) AND at < $2")
        .bind(device)
        .bind(now.saturating_sub(KEPT_S).cast_signed())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Keeps spans of a device. One that is told twice is kept once.
pub(super) async fn store(tx: &mut Tx, device: DeviceId, spans: &[Summary], now: u64) -> Result<()> {
    if spans.is_empty() {
        return Ok(());
    }
    for span in spans {
        let at = span.at.unwrap_or(now);
        // Not into a time that was joined already: it would be counted twice.
        if at + WHOLE_S > now {
            put(tx, device, at, span, false).await?;
        }
    }
    join_old(tx, device, now).await?;
    drop_old(tx, &device.to_string(), now).await
}

async fn put(tx: &mut Tx, device: DeviceId, at: u64, span: &Summary, joined: bool) -> Result<()> {
    let mut body = serde_json::to_string(span).map_err(Problem::internal)?;
    if body.len() > MOST {
        let alone = Summary { services: BTreeMap::new(), ..span.clone() };
        body = serde_json::to_string(&alone).map_err(Problem::internal)?;
    }
    sqlx::query(
        "INSERT INTO device_metrics (device_id, at, for_s, joined, body) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (device_id, joined, at) DO UPDATE SET for_s = excluded.for_s, body = excluded.body",
    )
    .bind(device.to_string())
    .bind(at.cast_signed())
    .bind(i64::from(span.for_s))
    .bind(joined)
    .bind(body)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Joins what is old, or more than is kept as it came.
async fn join_old(tx: &mut Tx, device: DeviceId, now: u64) -> Result<()> {
    let id = device.to_string();
    let beyond: Option<i64> = sqlx::query_scalar(
        "SELECT at FROM device_metrics WHERE device_id = $1 AND NOT joined ORDER BY at DESC LIMIT 1 OFFSET $2",
    )
    .bind(&id)
    .bind(WHOLE)
    .fetch_optional(&mut **tx)
    .await?;
    let old = now.saturating_sub(WHOLE_S) / JOINED_S * JOINED_S;
    let until = beyond.map_or(0, |at| at.unsigned_abs() + 1).max(old).cast_signed();
    let spans: Vec<(i64, String)> = sqlx::query_as(
        "SELECT at, body FROM device_metrics WHERE device_id = $1 AND NOT joined AND at < $2 ORDER BY at",
    )
    .bind(&id)
    .bind(until)
    .fetch_all(&mut **tx)
    .await?;
    if spans.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM device_metrics WHERE device_id = $1 AND NOT joined AND at < $2")
        .bind(&id)
        .bind(until)
        .execute(&mut **tx)
        .await?;
    let mut joined: BTreeMap<u64, Summary> = BTreeMap::new();
    for (at, body) in spans {
        let Some(span) = rows::stored::<Summary>(Some(&body)) else { continue };
        // The end of the six hours it is in.
        let end = at.unsigned_abs().div_ceil(JOINED_S) * JOINED_S;
        join_into(&mut joined, end, span);
    }
    for (end, mut span) in joined {
        let before: Option<String> =
            sqlx::query_scalar("SELECT body FROM device_metrics WHERE device_id = $1 AND at = $2 AND joined")
                .bind(&id)
                .bind(end.cast_signed())
                .fetch_optional(&mut **tx)
                .await?;
        if let Some(mut before) = rows::stored::<Summary>(before.as_deref()) {
            before.join(&span);
            span = before;
        }
        put(tx, device, end, &span, true).await?;
    }
    Ok(())
}

fn join_into(steps: &mut BTreeMap<u64, Summary>, end: u64, span: Summary) {
    match steps.get_mut(&end) {
        Some(before) => before.join(&span),
        None => drop(steps.insert(end, span)),
    }
}

/// The spans that end after `from` and not after `to`, joined to steps of `step` seconds; by the end of the step.
pub(crate) async fn between(
    app: &App,
    device: &str,
    (from, to): (u64, u64),
    step: u64,
) -> Result<BTreeMap<u64, Summary>> {
    let found: Vec<(i64, String)> = sqlx::query_as(
        "SELECT at, body FROM device_metrics WHERE device_id = $1 AND at > $2 AND at <= $3 ORDER BY at",
    )
    .bind(device)
    .bind(from.cast_signed())
    .bind(to.cast_signed())
    .fetch_all(app.db.read())
    .await?;
    let mut steps = BTreeMap::new();
    for (at, body) in found {
        if let Some(span) = rows::stored::<Summary>(Some(&body)) {
            let end = from + (at.unsigned_abs() - from).div_ceil(step) * step;
            join_into(&mut steps, end.min(to), span);
        }
    }
    Ok(steps)
}
