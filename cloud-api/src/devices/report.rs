//! `POST /device/v1/report`: what a device says of itself, signed by it. The newest envelope is kept whole, so that an
//! owner can check what the cloud shows; what lists and pages need is put beside it.

mod host;

use std::time::Instant;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use copal_protocol::{
    documents::{Document as _, LockState, MAX_TAIL_LINE, Progress, Reason, Report, bound_tail},
    envelope::Envelope,
    verify,
};
use serde_json::json;

use super::{limit, presence, rows};
use crate::{
    app::{self, App},
    bus::Event,
    error::{Problem, Result},
    health, telemetry,
};

/// The most of a device's texts that is kept.
const TEXT: usize = 2_000;

/// Takes a report.
pub(super) async fn report(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<StatusCode> {
    let entry = app.devices.session(&headers)?;
    presence::heard(&app, &entry);
    accept(&app, &entry, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a report of a device that may speak, whichever way it came.
pub(crate) async fn accept(app: &App, entry: &super::memory::Entry, body: &[u8]) -> Result<()> {
    if !entry.facts().reports.take(limit::REPORTS, Instant::now()) {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            "This device reports too often; the newest report holds everything, so send that one later.",
        )
        .retry_after(2));
    }
    if body.len() > Report::MAX_BYTES {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "E_TOO_LARGE",
            format!("A report has at most {} bytes.", Report::MAX_BYTES),
        ));
    }
    let refused = |e: verify::Error| Problem::invalid(e.code.as_str(), e.detail);
    let envelope = Envelope::parse::<Report>(body).map_err(refused)?;
    let row = rows::by_id(app, entry.device_id).await?.ok_or_else(|| Problem::not_found("device"))?;
    let report = verify::signed_by::<Report>(&row.key()?, entry.fleet_id, &envelope).map_err(refused)?;
    if report.device_id != entry.device_id {
        return Err(Problem::invalid("E_DEVICE_MISMATCH", "The report is another device's."));
    }
    take(app, entry, &report, body).await?;
    app.bus.publish(Event::Device { fleet_id: row.fleet_id, id: row.device_id });
    Ok(())
}

async fn take(app: &App, entry: &super::memory::Entry, report: &Report, body: &[u8]) -> Result<()> {
    let now = app::now();
    let app_id: Option<String> = sqlx::query_scalar("SELECT app_id FROM fleets WHERE fleet_id = $1")
        .bind(entry.fleet_id.to_string())
        .fetch_optional(app.db.read())
        .await?;
    let committed = app_id
        .and_then(|id| id.parse().ok())
        .and_then(|id| report.committed.get(&id))
        .map(ToString::to_string);
    let reason = report.reason.as_ref().map(clean);
    let (host, agent) = (report.host.as_ref().map(host::clean), report.agent.as_ref().map(host::clean_agent));
    let mut tx = app.db.write().await?;
    let old = rows::by_id_in(&mut tx, entry.device_id).await?.ok_or_else(|| Problem::not_found("device"))?;
    if report.report_counter <= old.report_counter.unsigned_abs() {
        return Err(Problem::conflict(
            "report_old",
            format!("Report {} was taken before; the counter must be greater.", old.report_counter),
        ));
    }
    sqlx::query(
        "UPDATE devices SET report = $2, report_boot_id = $3, report_counter = $4, report_epoch = $5, report_at = $6,
            agent_version = $7, os_version = $8, root_version = $9, lock_state = $10, seq_applied = $11,
            committed_release = $12, reason = $13, progress = $14, running = $15, last_seen = $6,
            host_report = $16, running_os = $17, agent_report = $18, running_agent = $19
         WHERE device_id = $1",
    )
    .bind(entry.device_id.to_string())
    .bind(body)
    .bind(short(&report.boot_id, 64))
    .bind(report.report_counter.cast_signed())
    .bind(report.assign_epoch.cast_signed())
    .bind(now.cast_signed())
    .bind(short(&report.agent_version, 100))
    .bind(short(&report.os_version, 200))
    .bind(report.root_version.cast_signed())
    .bind(lock_word(report.lock))
    .bind(report.seq_applied.cast_signed())
    .bind(&committed)
    .bind(rows::json(reason.as_ref())?)
    .bind(rows::json::<Progress>(report.progress.as_ref().map(clean_progress).as_ref())?)
    .bind(rows::json(Some(&report.running))?)
    .bind(rows::json(host.as_ref())?)
    .bind(host.as_ref().and_then(host::runs_os))
    .bind(rows::json(agent.as_ref())?)
    .bind(agent.as_ref().and_then(host::runs_agent))
    .execute(&mut *tx)
    .await?;
    let mut events = events(&old, report, reason.as_ref(), committed.as_deref());
    events.extend(host::events(&old, host.as_ref(), agent.as_ref()));
    // The device may have told of this commit itself.
    if events.iter().any(|event| event.kind == "committed")
        && rows::same_commit(&mut tx, &old.device_id, committed.as_deref()).await?.is_some()
    {
        events.retain(|event| event.kind != "committed");
    }
    if let Some(found) = &report.health {
        health::take(&mut tx, entry.device_id, old.health_told, found, now).await?;
    }
    rows::add_events(&mut tx, entry.device_id, now, &events).await?;
    telemetry::facts::store_budget(&mut tx, entry.device_id, report.ext.as_ref(), now).await?;
    tx.commit().await?;
    Ok(())
}

/// What of a report is worth remembering: what changed. Progress is not.
fn events(
    old: &rows::DeviceRow,
    report: &Report,
    reason: Option<&Reason>,
    committed: Option<&str>,
) -> Vec<rows::NewEvent> {
    let mut events = Vec::new();
    let before: Option<Reason> = rows::stored(old.reason.as_deref());
    events.extend(changed(before.as_ref(), reason, "Nothing is in the way any more."));
    if committed.is_some() && old.committed_release.as_deref() != committed {
        events.push(rows::NewEvent {
            kind: "committed",
            code: "committed".to_owned(),
            message: "The release passed its health gate and is what the device falls back to.".to_owned(),
            data: json!({"release": committed, "before": old.committed_release}),
        });
    }
    if old.lock_state.as_deref() != Some(lock_word(report.lock))
        && (old.lock_state.is_some() || report.lock == LockState::Locked)
    {
        events.push(rows::NewEvent::new(
            "lock",
            lock_word(report.lock),
            match report.lock {
                LockState::Locked => "The fleet's lock holds on this device.",
                LockState::Open => "The fleet's lock does not hold on this device any more.",
            },
        ));
    }
    if let Some(root) = old.root_version
        && root.unsigned_abs() != report.root_version
    {
        events.push(rows::NewEvent {
            kind: "root",
            code: "root".to_owned(),
            message: format!("The device went from Root {root} to Root {}.", report.root_version),
            data: json!({"version": report.root_version}),
        });
    }
    if let Some(agent) = &old.agent_version
        && *agent != report.agent_version
    {
        events.push(rows::NewEvent::new(
            "agent",
            "agent",
            format!("The agent went from {agent} to {}.", short(&report.agent_version, 100)),
        ));
    }
    events
}

/// The event of a reason that is another than before.
fn changed(before: Option<&Reason>, now: Option<&Reason>, gone: &str) -> Option<rows::NewEvent> {
    let telling = |r: &Reason| (r.code.clone(), r.service.clone(), r.release, r.exit_code);
    if before.map(telling) == now.map(telling) {
        return None;
    }
    Some(match now {
        Some(r) => rows::NewEvent {
            kind: "reason",
            code: r.code.clone(),
            message: r.message.clone(),
            data: json!({"service": r.service, "exit_code": r.exit_code, "release": r.release, "log_tail": r.log_tail}),
        },
        None => rows::NewEvent::new("reason", "on_target", gone),
    })
}

const fn lock_word(lock: LockState) -> &'static str {
    match lock {
        LockState::Open => "open",
        LockState::Locked => "locked",
    }
}

/// A reason within bounds, whatever the device sent.
fn clean(reason: &Reason) -> Reason {
    let mut log_tail: Vec<String> = reason.log_tail.iter().map(|line| short(line, MAX_TAIL_LINE)).collect();
    bound_tail(&mut log_tail);
    Reason {
        code: short(&reason.code, 64),
        message: short(&reason.message, TEXT),
        log_tail,
        ..reason.clone()
    }
}

/// Progress within bounds.
fn clean_progress(progress: &Progress) -> Progress {
    Progress { stage: short(&progress.stage, 32), ..progress.clone() }
}

/// A device's text within bounds, and unable to steer a terminal or pass for two lines.
fn short(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
