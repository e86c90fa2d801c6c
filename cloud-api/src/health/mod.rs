//! What devices' health checks last found. In: reports, and results of rounds. Out: rows by which devices are shown and found.
//! Never here: a check, or a judgement; those are the device's.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use copal_protocol::{
    diagnosis::{Diagnosis, HealthReport, Verdict},
    ids::DeviceId,
};
use serde_json::json;

use crate::{app::App, error::Result, store::Tx};

/// How long ago a device may say that something was, seconds; past that its clock is not believed.
const BELIEVED_S: u64 = 90 * 86_400;

/// What one check of a device last found.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct CheckRow {
    pub(crate) name: String,
    pub(crate) verdict: String,
    pub(crate) subject: Option<String>,
    pub(crate) detail: String,
    pub(crate) advice: String,
    pub(crate) at: i64,
    pub(crate) since: i64,
}

/// A round of checks in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// JSON: the worst verdict of each check.
    pub(crate) checks: String,
    /// The worst of all.
    pub(crate) verdict: Verdict,
}

/// The answer to `probes` in short; `None` where a device may not have said that.
pub(crate) fn summary(result: &str) -> Option<Summary> {
    let found: Diagnosis = serde_json::from_str(result).ok().filter(Diagnosis::is_sound)?;
    let checks: BTreeMap<&str, &str> =
        found.worst_of_each().into_iter().map(|(name, worst)| (name, worst.verdict.as_str())).collect();
    Some(Summary { checks: json!(checks).to_string(), verdict: found.worst() })
}

/// Keeps what a report says of health, where it says something new. That a verdict changed devices tell as an event, too.
///
/// # Errors
/// When the database fails.
pub(crate) async fn take(
    tx: &mut Tx,
    device: DeviceId,
    told: Option<i64>,
    health: &HealthReport,
    now: u64,
) -> Result<()> {
    let mark = i64::try_from(health.taken_at).unwrap_or(i64::MAX);
    if told == Some(mark) || !health.is_sound() {
        return Ok(());
    }
    let id = device.to_string();
    let known: Vec<CheckRow> = sqlx::query_as("SELECT * FROM device_checks WHERE device_id = $1")
        .bind(&id)
        .fetch_all(&mut **tx)
        .await?;
    let known: BTreeMap<&str, &CheckRow> = known.iter().map(|row| (row.name.as_str(), row)).collect();
    for (name, check) in &health.checks {
        let before = known.get(name.as_str()).copied();
        let same = before.is_some_and(|row| row.verdict == check.verdict.as_str());
        let since = before.filter(|_| same).map_or(now.cast_signed(), |row| row.since);
        sqlx::query(
            "INSERT INTO device_checks (device_id, name, verdict, subject, detail, advice, at, since)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (device_id, name) DO UPDATE SET verdict = excluded.verdict,
                subject = excluded.subject, detail = excluded.detail, advice = excluded.advice, at = excluded.at,
                since = excluded.since",
        )
        .bind(&id)
        .bind(name)
        .bind(check.verdict.as_str())
        .bind(&check.subject)
        .bind(&check.detail)
        .bind(&check.advice)
        .bind(believed(check.at, now).cast_signed())
        .bind(since)
        .execute(&mut **tx)
        .await?;
    }
    for gone in known.keys().filter(|name| !health.checks.contains_key(**name)) {
        sqlx::query("DELETE FROM device_checks WHERE device_id = $1 AND name = $2")
            .bind(&id)
            .bind(*gone)
            .execute(&mut **tx)
            .await?;
    }
    sqlx::query("UPDATE devices SET health = $2, health_at = $3, health_told = $4 WHERE device_id = $1")
        .bind(&id)
        .bind(health.worst().as_str())
        .bind(believed(health.taken_at, now).cast_signed())
        .bind(mark)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// When a device says that something was, or now where its clock makes no sense.
const fn believed(at: u64, now: u64) -> u64 {
    if at <= now && now - at <= BELIEVED_S { at } else { now }
}

/// What the checks of a device last found, by name.
///
/// # Errors
/// When the database fails.
pub(crate) async fn of(app: &App, device: &str) -> Result<Vec<CheckRow>> {
    Ok(sqlx::query_as("SELECT * FROM device_checks WHERE device_id = $1 ORDER BY name")
        .bind(device)
        .fetch_all(app.db.read())
        .await?)
}
