//! Rollouts: who gets which release when.
//!
//! In: what people deploy and pin, releases that became final. Out: the fleet's target and the devices' pins, committed,
//! then assignments brought up to date. Never here: signing, and what a device is told (`assignments/`).
//!
//! A fleet follows its newest final release until a person deploys another; then it stays there until `latest` is deployed.
//! A pinned device stays at its pin, except where the whole fleet goes to the release it is pinned to: the pin was the
//! first step of that rollout, and is lifted.

mod pick;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{Reason, Root},
    ids::{DeviceId, FleetId},
    verify::Verified,
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
    releases::{self, ReleaseStatus},
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
};
use pick::Target;

/// What to deploy, and where.
#[derive(Debug, Clone, Default)]
pub struct Deploy {
    /// A release's id, a version, or `latest`.
    pub release: String,
    /// These devices, by id; they are pinned.
    pub devices: Vec<DeviceId>,
    /// Devices with all of these tags; they are pinned. With neither, the whole fleet.
    pub tag: BTreeMap<String, String>,
    /// Only says what would happen.
    pub dry_run: bool,
    /// Refuses when another number of devices would be concerned.
    pub expect_count: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    /// The release.
    pub release: String,
    /// Its version.
    pub version: String,
    /// Devices concerned.
    pub devices: u64,
    /// The assignments they have now, by device; at most 500.
    pub seqs: BTreeMap<String, u64>,
}

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
    let named = !deploy.devices.is_empty() || !deploy.tag.is_empty();
    let latest = deploy.release == "latest";
    let mut tx = app.db.write().await?;
    let candidate = pick::release(&mut tx, &root, fleet, &deploy.release).await?;
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
        for target in &targets {
            sqlx::query("UPDATE devices SET pinned_release = $2 WHERE device_id = $1")
                .bind(&target.device_id)
                .bind(&release)
                .execute(&mut *tx)
                .await?;
        }
    } else {
        sqlx::query("UPDATE fleets SET target_release = $2, pinned = $3 WHERE fleet_id = $1")
            .bind(fleet.fleet_id.to_string())
            .bind(&release)
            .bind(!latest)
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE devices SET pinned_release = NULL WHERE fleet_id = $1 AND pinned_release = $2")
            .bind(fleet.fleet_id.to_string())
            .bind(&release)
            .execute(&mut *tx)
            .await?;
    }
    let detail = json!({
        "release": release, "version": answer.version, "devices": count, "latest": latest,
        "named": deploy.devices.iter().take(100).map(ToString::to_string).collect::<Vec<_>>(), "tag": deploy.tag,
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
        let one = Deploy { release: release.to_owned(), devices: vec![device], ..Deploy::default() };
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

/// Asks a device to try a release again that it parked.
///
/// # Errors
/// `not_found`, or when the database fails.
pub async fn retry(app: &App, caller: &Caller, device: DeviceId) -> Result<Option<u64>> {
    let mut tx = app.db.write().await?;
    sqlx::query("UPDATE devices SET retry = retry + 1 WHERE device_id = $1")
        .bind(device.to_string())
        .execute(&mut *tx)
        .await?;
    audit::record(&mut tx, caller, "device.retry", &format!("device:{device}"), json!({})).await?;
    tx.commit().await?;
    assignments::refresh_device(app, device).await
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
    if !pinned && let Some(candidate) = pick::latest(&mut tx, &root, &row).await? {
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
    let fits = |place: &Place<'_>| content::fits(candidate, fleet.app_id, root, place);
    // Of the release itself, whatever the devices are.
    fits(&Place { arch: &fleet.arch, device_type: &fleet.device_type, floor: 0 }).map_err(refusal)?;
    let mut floors: BTreeMap<String, u64> = BTreeMap::new();
    for target in targets {
        let floor = match &target.committed_release {
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
