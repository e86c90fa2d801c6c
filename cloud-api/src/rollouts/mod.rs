//! Rollouts: who gets which release when.
//!
//! In: what people deploy and pin, releases that became final. Out: the fleet's target and the devices' pins, committed,
//! then assignments brought up to date. Never here: signing, and what a device is told (`assignments/`).
//!
//! A fleet follows its newest final release until a person deploys another; then it stays there until `latest` is deployed.
//! A pinned device stays at its pin, except where the whole fleet goes to the release it is pinned to: the pin was the
//! first step of that rollout, and is lifted.
//!
//! Operating systems and agents go the same ways, each line with a target and pins of its own; a fleet follows none of
//! their newest by itself, since each costs a reboot or a restart that a person should have asked for. One that is withdrawn
//! leaves every target and pin at once (`withdraw`): those go back to what they were before.

mod pick;
#[cfg(test)]
mod tests;
mod wanted;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::{Reason, Root},
    ids::{DeviceId, FleetId},
    verify::Verified,
    window::Window,
};
use serde_json::json;

use crate::{
    app::App,
    assignments,
    assignments::content::{self, Candidate, Place},
    audit,
    auth::Caller,
    bus::Event,
    error::{Problem, Result},
    releases::{self, Line, ReleaseStatus, line::by_line},
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
};
use pick::Target;
pub use wanted::{Deploy, Deployed, Filtered};
pub(crate) use withdraw::{restore, withdraw};

/// The most seqs an answer carries.
const MAX_SEQS: usize = 500;

/// Deploys a release to a fleet, or to some devices of it.
///
/// # Errors
/// `not_found`, `release_is_draft`, `awaiting_signature`, `release_invalidated`, `release_revoked`, `below_floor`,
/// `incompatible`, `count_mismatch`, `root_missing`.
pub async fn deploy(app: &App, caller: &Caller, fleet: &FleetRow, deploy: &Deploy) -> Result<Deployed> {
    let root = fleets::latest_root(app, fleet.fleet_id).await?.ok_or_else(|| {
        Problem::conflict("root_missing", "The fleet has no Root yet: its owner runs `copal fleet create`.")
    })?;
    let (line, named) = (deploy.line, deploy.named());
    let latest = deploy.release == "latest";
    let mut tx = app.db.write().await?;
    let candidate = pick::release(&mut tx, &root, fleet, line, &deploy.release).await?;
    let targets = pick::targets(&mut tx, fleet, deploy, &candidate.sha256.to_string()).await?;
    if candidate.status == ReleaseStatus::Draft && !named {
        return Err(Problem::conflict(
            "release_is_draft",
            format!(
                "Release {} is a draft: deploy it to named devices, or finalise it first with `copal release finalize`.",
                candidate.release.version
            ),
        ));
    }
    check(&mut tx, &root, fleet, &candidate, &targets, named).await?;
    let count = targets.len() as u64;
    if let Some(expected) = deploy.expect_count
        && expected != count
    {
        return Err(Problem::conflict(
            "count_mismatch",
            format!("{count} devices would be concerned, {expected} were expected. Nothing was changed."),
        ));
    }
    let release = candidate.sha256.to_string();
    let mut answer = Deployed {
        release: release.clone(),
        version: candidate.release.version.to_string(),
        devices: count,
        seqs: BTreeMap::new(),
    };
    if deploy.dry_run {
        return Ok(answer);
    }
    if named {
        let pin = by_line!(
            line,
            "UPDATE devices SET ",
            "pinned_release"
                | "before_os = CASE WHEN pinned_os IS NOT DISTINCT FROM $2 THEN before_os
                    ELSE SUBSTR(COALESCE(pinned_os, '-') || ',' || before_os, 1, 1300) END, pinned_os"
                | "before_agent = CASE WHEN pinned_agent IS NOT DISTINCT FROM $2 THEN before_agent
                    ELSE SUBSTR(COALESCE(pinned_agent, '-') || ',' || before_agent, 1, 1300) END, pinned_agent",
            " = $2 WHERE device_id = $1"
        );
        for target in &targets {
            sqlx::query(pin).bind(&target.device_id).bind(&release).execute(&mut *tx).await?;
        }
    } else {
        let aim = by_line!(
            line,
            "UPDATE fleets SET ",
            "target_release"
                | "before_os = CASE WHEN target_os IS NOT DISTINCT FROM $2 THEN before_os
                    ELSE SUBSTR(COALESCE(target_os || ',', '') || before_os, 1, 1300) END, target_os"
                | "before_agent = CASE WHEN target_agent IS NOT DISTINCT FROM $2 THEN before_agent
                    ELSE SUBSTR(COALESCE(target_agent || ',', '') || before_agent, 1, 1300) END, target_agent",
            " = $2 WHERE fleet_id = $1"
        );
        sqlx::query(aim).bind(fleet.fleet_id.to_string()).bind(&release).execute(&mut *tx).await?;
        if line == Line::App {
            sqlx::query("UPDATE fleets SET pinned = $2 WHERE fleet_id = $1")
                .bind(fleet.fleet_id.to_string())
                .bind(!latest)
                .execute(&mut *tx)
                .await?;
        }
        let lift = by_line!(
            line,
            "UPDATE devices SET ",
            "pinned_release = NULL WHERE pinned_release"
                | "pinned_os = NULL, before_os = '' WHERE pinned_os"
                | "pinned_agent = NULL, before_agent = '' WHERE pinned_agent",
            " = $2 AND fleet_id = $1"
        );
        sqlx::query(lift).bind(fleet.fleet_id.to_string()).bind(&release).execute(&mut *tx).await?;
    }
    let detail = json!({
        "release": release, "version": answer.version, "devices": count, "latest": latest,
        "line": line, "named": deploy.devices.iter().take(100).map(ToString::to_string).collect::<Vec<_>>(), "tag": deploy.tag,
        "filter": deploy.filtered.as_ref().map(|f| &f.filter),
    });
    audit::record(&mut tx, caller, "fleet.deploy", &format!("fleet:{}", fleet.slug), detail).await?;
    tx.commit().await?;
    app.bus.publish(Event::Fleet { fleet_id: fleet.fleet_id.to_string(), id: fleet.slug.clone() });
    if named && targets.len() <= MAX_SEQS {
        for target in &targets {
            assignments::refresh_device(app, target.device_id.parse().map_err(Problem::internal)?).await?;
        }
    } else {
        assignments::refresh_fleet(app, fleet.fleet_id).await?;
    }
    for target in targets.iter().take(MAX_SEQS) {
        let device: DeviceId = target.device_id.parse().map_err(Problem::internal)?;
        if let Some(seq) = app.devices.get(device).and_then(|entry| entry.seq()) {
            answer.seqs.insert(target.device_id.clone(), seq);
        }
    }
    Ok(answer)
}

/// Pins a device to a release, or lets it follow its fleet again.
///
/// # Errors
/// As [`deploy`].
pub async fn pin_device(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: DeviceId,
    release: Option<&str>,
) -> Result<()> {
    if let Some(release) = release {
        let one = Deploy { devices: vec![device], ..Deploy::of(Line::App, release) };
        deploy(app, caller, fleet, &one).await?;
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE devices SET pinned_release = NULL WHERE device_id = $1")
        .bind(device.to_string())
        .execute(&mut *tx)
        .await?;
    audit::record(&mut tx, caller, "device.unpin", &format!("device:{device}"), json!({})).await?;
    tx.commit().await?;
    assignments::refresh_device(app, device).await?;
    app.bus.publish(Event::Device { fleet_id: fleet.fleet_id.to_string(), id: device.to_string() });
    Ok(())
}

/// Lets a device follow its fleet's operating system and agent again.
///
/// # Errors
/// When the database fails.
pub async fn unpin_host(app: &App, caller: &Caller, fleet: &FleetRow, device: DeviceId) -> Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query(
        "UPDATE devices SET pinned_os = NULL, before_os = '', pinned_agent = NULL, before_agent = '' WHERE device_id = $1",
    )
        .bind(device.to_string())
        .execute(&mut *tx)
        .await?;
    audit::record(&mut tx, caller, "device.unpin_host", &format!("device:{device}"), json!({})).await?;
    tx.commit().await?;
    assignments::refresh_device(app, device).await?;
    app.bus.publish(Event::Device { fleet_id: fleet.fleet_id.to_string(), id: device.to_string() });
    Ok(())
}

/// Asks a device to try a release again that it parked.
///
/// # Errors
/// `not_found`, or when the database fails.
pub async fn retry(app: &App, caller: &Caller, device: DeviceId) -> Result<Option<u64>> {
    let mut tx = app.db.write().await?;
    raise_retry(&mut tx, Line::App, &device.to_string()).await?;
    audit::record(&mut tx, caller, "device.retry", &format!("device:{device}"), json!({})).await?;
    tx.commit().await?;
    assignments::refresh_device(app, device).await
}

async fn raise_retry(tx: &mut Tx, line: Line, device: &str) -> Result<()> {
    let sql = by_line!(
        line,
        "UPDATE devices SET ",
        "retry = retry" | "retry_os = retry_os" | "retry_agent = retry_agent",
        " + 1 WHERE device_id = $1"
    );
    sqlx::query(sql).bind(device).execute(&mut **tx).await?;
    Ok(())
}

/// Asks the devices that were given a release to try it again: those named and tagged, else all of them. Answers which
/// were asked.
///
/// # Errors
/// `not_found`, or when the database fails.
pub async fn retry_release(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    deploy: &Deploy,
) -> Result<Vec<String>> {
    let mut tx = app.db.write().await?;
    let given: Vec<String> = sqlx::query_scalar(
        "SELECT a.device_id FROM assignments a JOIN devices d ON d.device_id = a.device_id
         WHERE d.fleet_id = $1 AND $2 IN (a.release_id, a.os_id, a.agent_id)",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(&deploy.release)
    .fetch_all(&mut *tx)
    .await?;
    let given: BTreeSet<String> = given.into_iter().collect();
    let mut asked: Vec<String> =
        pick::devices(&mut tx, fleet, deploy).await?.into_iter().map(|t| t.device_id).collect();
    asked.retain(|id| given.contains(id));
    for device in &asked {
        raise_retry(&mut tx, deploy.line, device).await?;
    }
    let detail = json!({"line": deploy.line, "devices": asked.len(), "tag": deploy.tag});
    audit::record(&mut tx, caller, "release.retry", &format!("release:{}", deploy.release), detail).await?;
    tx.commit().await?;
    for device in &asked {
        assignments::refresh_device(app, device.parse().map_err(Problem::internal)?).await?;
    }
    Ok(asked)
}

/// Sets when the devices of a fleet may reboot into another operating system; at any time without one.
///
/// # Errors
/// When the database fails.
pub async fn set_reboot_window(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    window: Option<Window>,
) -> Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE fleets SET reboot_window = $2 WHERE fleet_id = $1")
        .bind(fleet.fleet_id.to_string())
        .bind(window.map(|w| w.to_string()))
        .execute(&mut *tx)
        .await?;
    let detail = json!({"reboot_window": window, "before": fleet.reboot_window});
    audit::record(&mut tx, caller, "fleet.reboot_window", &format!("fleet:{}", fleet.slug), detail).await?;
    tx.commit().await?;
    app.bus.publish(Event::Fleet { fleet_id: fleet.fleet_id.to_string(), id: fleet.slug.clone() });
    assignments::refresh_fleet(app, fleet.fleet_id).await?;
    Ok(())
}

/// Sets how often the devices of a fleet check themselves; as each device says without one.
///
/// # Errors
/// When the database fails.
pub async fn set_check_every(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    check_every_s: Option<u32>,
) -> Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE fleets SET check_every_s = $2 WHERE fleet_id = $1")
        .bind(fleet.fleet_id.to_string())
        .bind(check_every_s.map(i64::from))
        .execute(&mut *tx)
        .await?;
    let detail = json!({"check_every_s": check_every_s, "before": fleet.check_every_s});
    audit::record(&mut tx, caller, "fleet.check_every", &format!("fleet:{}", fleet.slug), detail).await?;
    tx.commit().await?;
    app.bus.publish(Event::Fleet { fleet_id: fleet.fleet_id.to_string(), id: fleet.slug.clone() });
    assignments::refresh_fleet(app, fleet.fleet_id).await?;
    Ok(())
}

/// Moves a fleet that follows the newest to its newest final release that devices would take, and brings its assignments
/// up to date. Also after a new Root: it may revoke, raise floors, or ask for other signatures.
///
/// # Errors
/// When the database fails.
pub async fn follow_latest(app: &App, fleet: FleetId) -> Result<()> {
    let Some(root) = fleets::latest_root(app, fleet).await? else { return Ok(()) };
    let row = fleets::by_id(app, fleet).await?;
    let mut tx = app.db.write().await?;
    // Read again within the write.
    let pinned: bool = sqlx::query_scalar("SELECT pinned FROM fleets WHERE fleet_id = $1")
        .bind(fleet.to_string())
        .fetch_one(&mut *tx)
        .await?;
    if !pinned && let Some(candidate) = pick::latest(&mut tx, &root, &row, Line::App).await? {
        sqlx::query("UPDATE fleets SET target_release = $2 WHERE fleet_id = $1 AND target_release IS DISTINCT FROM $2")
            .bind(fleet.to_string())
            .bind(candidate.sha256.to_string())
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    app.bus.publish(Event::Fleet { fleet_id: fleet.to_string(), id: row.slug });
    assignments::refresh_fleet(app, fleet).await?;
    Ok(())
}

/// At start-up: finishes for every fleet what was committed when the cloud stopped before it came to the rest.
///
/// # Errors
/// When the database fails.
pub async fn catch_up(app: &App) -> Result<()> {
    let fleets: Vec<String> =
        sqlx::query_scalar("SELECT fleet_id FROM fleets ORDER BY fleet_id").fetch_all(app.db.read()).await?;
    for fleet in fleets {
        follow_latest(app, fleet.parse().map_err(Problem::internal)?).await?;
    }
    Ok(())
}

/// Whether the release may go to every device it is meant for.
async fn check(
    tx: &mut Tx,
    root: &Verified<Root>,
    fleet: &FleetRow,
    candidate: &Candidate,
    targets: &[Target],
    named: bool,
) -> Result<()> {
    let fits = |place: &Place<'_>| content::fits(candidate, root, place);
    // Of the release itself, whatever the devices are.
    fits(&Place { arch: &fleet.arch, device_type: &fleet.device_type, floor: 0 }).map_err(refusal)?;
    let mut floors: BTreeMap<String, u64> = BTreeMap::new();
    for target in targets {
        let floor = match &target.committed {
            None => 0,
            Some(id) => match floors.get(id) {
                Some(floor) => *floor,
                None => {
                    let committed = releases::candidate(tx, root, fleet.app_id, id, None).await?;
                    let floor = committed.map_or(0, |c| c.release.rollback_floor);
                    floors.insert(id.clone(), floor);
                    floor
                }
            },
        };
        let place = Place { arch: &target.arch, device_type: &target.device_type, floor };
        if let Err(mut reason) = fits(&place) {
            // A device of another kind in the fleet does not stop the others; it is shown with its reason.
            if !named && reason.code == "incompatible" {
                continue;
            }
            reason.message = format!("Device {} ({}): {}", target.name, target.device_id, reason.message);
            return Err(refusal(reason));
        }
    }
    Ok(())
}

#[allow(clippy::boxed_local, reason = "it comes boxed, since it is large")]
fn refusal(reason: Box<Reason>) -> Problem {
    let reason = *reason;
    const CODES: &[&str] = &[
        "release_invalidated",
        "release_not_published",
        "awaiting_signature",
        "release_revoked",
        "below_floor",
        "incompatible",
    ];
    let code = CODES.iter().find(|c| **c == reason.code).copied().unwrap_or("release_refused");
    let detail = if code == "release_refused" {
        format!("{} ({})", reason.message, reason.code)
    } else {
        reason.message
    };
    Problem::conflict(code, detail)
}
