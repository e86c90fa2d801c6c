//! Devices in the database.

use copal_protocol::{
    device_api::DeviceState,
    documents::Reason,
    ids::{DeviceId, FleetId},
    keys::PublicKey,
};
use serde::{Serialize, de::DeserializeOwned};

use super::memory::Mark;
use crate::{
    app::App,
    error::{Problem, Result},
    store::{Db, Tx},
};

/// The most events kept of one device: of those it told, and of those the cloud noted, which the device must not be able to push
/// out by telling more; and seconds. Older ones go.
const EVENTS: i64 = 5_000;
const EVENTS_S: u64 = 90 * 86_400;

/// What memory keeps of a device.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) device_id: DeviceId,
    pub(crate) fleet_id: FleetId,
    pub(crate) state: DeviceState,
    pub(crate) last_seen: Option<u64>,
    /// Until when it is away by its own word, Unix seconds.
    pub(crate) expected: Option<u64>,
    pub(crate) mark: Option<Mark>,
}

#[derive(sqlx::FromRow)]
struct RawKnown {
    device_id: String,
    fleet_id: String,
    state: String,
    last_seen: Option<i64>,
    expected: Option<i64>,
    sha256: Option<String>,
    assign_epoch: Option<i64>,
    seq: Option<i64>,
}

/// Every device, as memory keeps it.
pub(super) async fn known(db: &Db) -> anyhow::Result<Vec<Known>> {
    let rows: Vec<RawKnown> = sqlx::query_as(
        "SELECT d.device_id, d.fleet_id, d.state, d.last_seen, d.expected, a.sha256, a.assign_epoch, a.seq
         FROM devices d LEFT JOIN assignments a ON a.device_id = d.device_id",
    )
    .fetch_all(db.read())
    .await?;
    rows.into_iter()
        .map(|row| {
            let mark = match (row.sha256, row.assign_epoch, row.seq) {
                (Some(sha256), Some(epoch), Some(seq)) => Some(Mark {
                    sha256: sha256.parse()?,
                    epoch: epoch.unsigned_abs(),
                    seq: seq.unsigned_abs(),
                }),
                _ => None,
            };
            Ok(Known {
                device_id: row.device_id.parse()?,
                fleet_id: row.fleet_id.parse()?,
                state: state_from(&row.state)?,
                last_seen: row.last_seen.map(i64::unsigned_abs),
                expected: row.expected.map(i64::unsigned_abs),
                mark,
            })
        })
        .collect()
}

/// The word of a state in the database and on the wire.
pub(crate) const fn state_word(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Preauthorised => "preauthorised",
        DeviceState::Accepted => "accepted",
        DeviceState::Rejected => "rejected",
        DeviceState::Revoked => "revoked",
    }
}

/// The state a word of the database means.
pub(crate) fn state_from(word: &str) -> anyhow::Result<DeviceState> {
    Ok(match word {
        "pending" => DeviceState::Pending,
        "preauthorised" => DeviceState::Preauthorised,
        "accepted" => DeviceState::Accepted,
        "rejected" => DeviceState::Rejected,
        "revoked" => DeviceState::Revoked,
        other => anyhow::bail!("device state {other:?} in the database"),
    })
}

/// A device with its assignment.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct DeviceRow {
    pub(crate) device_id: String,
    pub(crate) fleet_id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) public_key: String,
    pub(crate) introduction_id: Option<String>,
    pub(crate) introduction_mac: Option<String>,
    pub(crate) arch: String,
    pub(crate) device_type: String,
    pub(crate) created_at: i64,
    pub(crate) last_seen: Option<i64>,
    pub(crate) pinned_release: Option<String>,
    pub(crate) link_hash: Option<String>,
    pub(crate) link_previous_hash: Option<String>,
    pub(crate) clone_suspected: bool,
    pub(crate) report_counter: i64,
    pub(crate) report_epoch: i64,
    pub(crate) report_at: Option<i64>,
    pub(crate) agent_version: Option<String>,
    pub(crate) os_version: Option<String>,
    pub(crate) root_version: Option<i64>,
    pub(crate) lock_state: Option<String>,
    pub(crate) seq_applied: i64,
    pub(crate) committed_release: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) progress: Option<String>,
    pub(crate) running: Option<String>,
    pub(crate) held_back: Option<String>,
    pub(crate) held_back_os: Option<String>,
    pub(crate) held_back_agent: Option<String>,
    pub(crate) pinned_os: Option<String>,
    pub(crate) pinned_agent: Option<String>,
    pub(crate) host_report: Option<String>,
    pub(crate) agent_report: Option<String>,
    pub(crate) running_os: Option<String>,
    pub(crate) running_agent: Option<String>,
    pub(crate) health: Option<String>,
    pub(crate) health_at: Option<i64>,
    pub(crate) health_told: Option<i64>,
    // Of the assignment.
    pub(crate) assigned_release: Option<String>,
    pub(crate) os_id: Option<String>,
    pub(crate) agent_id: Option<String>,
    pub(crate) assign_epoch: Option<i64>,
    pub(crate) seq: Option<i64>,
}

/// What [`DeviceRow`] is read by. With `light` what only a page about one device shows is left out.
macro_rules! select_device {
    (light $rest:literal) => {
        $crate::devices::rows::select_device!("NULL AS progress, NULL AS running", $rest)
    };
    ($rest:literal) => {
        $crate::devices::rows::select_device!("d.progress, d.running", $rest)
    };
    ($heavy:literal, $rest:literal) => {
        concat!(
            "SELECT d.device_id, d.fleet_id, d.name, d.state, d.public_key, d.introduction_id, d.introduction_mac, d.arch,
             d.device_type, d.created_at, d.last_seen, d.pinned_release, d.link_hash, d.link_previous_hash,
             d.clone_suspected, d.report_counter, d.report_epoch, d.report_at, d.agent_version, d.os_version,
             d.root_version, d.lock_state, d.seq_applied, d.committed_release, d.reason, d.held_back,
             d.held_back_os, d.held_back_agent, d.pinned_os, d.pinned_agent, d.host_report, d.agent_report, d.running_os,
             d.running_agent, d.health, d.health_at, d.health_told, a.release_id AS assigned_release, a.os_id, a.agent_id, a.assign_epoch, a.seq, ",
            $heavy,
            " FROM devices d LEFT JOIN assignments a ON a.device_id = d.device_id ",
            $rest
        )
    };
}
pub(crate) use select_device;

impl DeviceRow {
    /// Its id.
    pub(crate) fn id(&self) -> Result<DeviceId> {
        self.device_id.parse().map_err(Problem::internal)
    }

    /// Its key.
    pub(crate) fn key(&self) -> Result<PublicKey> {
        self.public_key.parse().map_err(Problem::internal)
    }

    /// Where it stands.
    pub(crate) fn device_state(&self) -> Result<DeviceState> {
        Ok(state_from(&self.state)?)
    }
}

/// One device.
pub(crate) async fn by_id(app: &App, device: DeviceId) -> Result<Option<DeviceRow>> {
    Ok(sqlx::query_as(select_device!("WHERE d.device_id = $1"))
        .bind(device.to_string())
        .fetch_optional(app.db.read())
        .await?)
}

/// One device, within a write.
pub(crate) async fn by_id_in(tx: &mut Tx, device: DeviceId) -> Result<Option<DeviceRow>> {
    Ok(sqlx::query_as(select_device!("WHERE d.device_id = $1"))
        .bind(device.to_string())
        .fetch_optional(&mut **tx)
        .await?)
}

/// Something to remember of a device.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) kind: &'static str,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) data: serde_json::Value,
}

impl NewEvent {
    pub(crate) fn new(kind: &'static str, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into(), data: serde_json::json!({}) }
    }
}

/// Writes events of a device, and drops those past the bound.
pub(crate) async fn add_events(tx: &mut Tx, device: DeviceId, at: u64, events: &[NewEvent]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let id = device.to_string();
    for event in events {
        sqlx::query(
            "INSERT INTO device_events (device_id, at, kind, code, message, data) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&id)
        .bind(at.cast_signed())
        .bind(event.kind)
        .bind(&event.code)
        .bind(&event.message)
        .bind(event.data.to_string())
        .execute(&mut **tx)
        .await?;
    }
    bound_events(tx, device, at, false).await
}

/// Drops events past the bounds, of those the device told or of those the cloud noted. How old one is, is counted from when the
/// cloud heard of it.
pub(crate) async fn bound_events(tx: &mut Tx, device: DeviceId, now: u64, told: bool) -> Result<()> {
    let id = device.to_string();
    sqlx::query(
        "DELETE FROM device_events WHERE device_id = $1 AND (seq IS NOT NULL) = $3 AND id <= (
            SELECT id FROM device_events WHERE device_id = $1 AND (seq IS NOT NULL) = $3
            ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(&id)
    .bind(EVENTS)
    .bind(told)
    .execute(&mut **tx)
    .await?;
    // In the order they came, so only the oldest can be too old; as a rule not even that one is.
    let oldest: Option<i64> = sqlx::query_scalar(
        "SELECT COALESCE(received_at, at) FROM device_events WHERE device_id = $1 ORDER BY id LIMIT 1",
    )
    .bind(&id)
    .fetch_optional(&mut **tx)
    .await?;
    let before = now.saturating_sub(EVENTS_S).cast_signed();
    if oldest.is_some_and(|oldest| oldest < before) {
        sqlx::query(
            "DELETE FROM device_events WHERE id IN (SELECT id FROM device_events WHERE device_id = $1 ORDER BY id LIMIT 100)
                AND COALESCE(received_at, at) < $2",
        )
        .bind(&id)
        .bind(before)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// The newest commit of a device that is known, where it is that of this release: reports and the device's own events tell
/// of the same ones. Its row, and whether the device told of it.
pub(crate) async fn same_commit(
    tx: &mut Tx,
    device: &str,
    release: Option<&str>,
) -> Result<Option<(i64, bool)>> {
    let newest: Option<(i64, String, bool)> = sqlx::query_as(
        "SELECT id, data, seq IS NOT NULL FROM device_events WHERE device_id = $1 AND kind = 'committed' ORDER BY id DESC LIMIT 1",
    )
    .bind(device)
    .fetch_optional(&mut **tx)
    .await?;
    let data = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let same = |text: &str| release.is_some() && data(text)["release"].as_str() == release;
    Ok(newest.filter(|(_, text, _)| same(text)).map(|(id, _, told)| (id, told)))
}

/// JSON of the database, where it can still be read.
pub(crate) fn stored<T: DeserializeOwned>(text: Option<&str>) -> Option<T> {
    text.and_then(|text| serde_json::from_str(text).ok())
}

/// JSON for the database.
pub(crate) fn json<T: Serialize>(value: Option<&T>) -> Result<Option<String>> {
    value.map(serde_json::to_string).transpose().map_err(Problem::internal)
}

/// A reason of the cloud.
pub(crate) fn reason(code: &str, message: impl Into<String>) -> Reason {
    Reason {
        code: code.to_owned(),
        message: message.into(),
        release: None,
        service: None,
        exit_code: None,
        log_tail: Vec::new(),
    }
}
