//! The newest that a device told it has.

use copal_protocol::{
    ids::DeviceId,
    telemetry::{Budget, Facts},
};

use crate::{
    app::App,
    devices::rows,
    error::{Problem, Result},
    store::Tx,
};

/// Keeps them in the place of older ones.
pub(super) async fn store(tx: &mut Tx, device: DeviceId, facts: &Facts, now: u64) -> Result<()> {
    sqlx::query(
        "INSERT INTO device_facts (device_id, at, body) VALUES ($1, $2, $3)
         ON CONFLICT (device_id) DO UPDATE SET at = excluded.at, body = excluded.body",
    )
    .bind(device.to_string())
    .bind(now.cast_signed())
    .bind(serde_json::to_string(facts).map_err(Problem::internal)?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Takes in what a report says of the budget: telemetry may be what it leaves out.
pub(crate) async fn store_budget(
    tx: &mut Tx,
    device: DeviceId,
    ext: Option<&serde_json::Value>,
    now: u64,
) -> Result<()> {
    let budget: Option<Budget> = ext.and_then(|ext| serde_json::from_value(ext.get("budget")?.clone()).ok());
    let body: Option<String> = sqlx::query_scalar("SELECT body FROM device_facts WHERE device_id = $1")
        .bind(device.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    let mut facts: Facts = rows::stored(body.as_deref()).unwrap_or_default();
    if facts.budget == budget {
        return Ok(());
    }
    facts.budget = budget;
    store(tx, device, &facts, now).await
}

/// What a device has, and when it said so, Unix seconds.
pub(crate) async fn of(app: &App, device: &str) -> Result<Option<(u64, Facts)>> {
    let row: Option<(i64, String)> = sqlx::query_as("SELECT at, body FROM device_facts WHERE device_id = $1")
        .bind(device)
        .fetch_optional(app.db.read())
        .await?;
    Ok(row.and_then(|(at, body)| Some((at.unsigned_abs(), rows::stored(Some(&body))?))))
}
