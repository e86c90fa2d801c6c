//! Taking an operating system or agent back: its status, the fleet's target and the pins change in one write.
//!
//! Who was to run it goes back to what it was to run before, or to nothing: then what runs goes on. A device that
//! runs it already installs the one before, unless the signed floor of the withdrawn one forbids that; it says so then.

use std::collections::BTreeSet;

use serde_json::json;

use crate::{
    app::App,
    assignments, audit,
    auth::Caller,
    bus::Event,
    error::{Problem, Result},
    releases::{self, Line, ReleaseStatus, rows::ReleaseRow},
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
};

/// The most bytes of a reason.
const MAX_REASON: usize = 4000;
/// In a device's list: it followed its fleet.
const FOLLOWED: &str = "-";

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    /// What the fleet should run of the line from now on.
    pub(crate) target: Option<String>,
    /// Devices that had been given it.
    pub(crate) devices: u64,
}

/// Takes a host release back. Taken back already: nothing changes but the reason.
///
/// # Errors
/// `reason_missing`, `reason_too_long`, `not_found`.
pub(crate) async fn withdraw(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    row: &ReleaseRow,
    reason: &str,
) -> Result<Withdrawn> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(Problem::invalid(
            "reason_missing",
            "Say why: `reason` is shown wherever the release is listed.",
        ));
    }
    if reason.len() > MAX_REASON {
        return Err(Problem::invalid(
            "reason_too_long",
            format!("A reason has at most {MAX_REASON} bytes of text."),
        ));
    }
    let line = row.line()?;
    if line == Line::App {
        return Err(Problem::not_found("host release of this name"));
    }
    let root = fleets::latest_root(app, fleet.fleet_id).await?;
    let mut tx = app.db.write().await?;
    releases::set_withdrawn(&mut tx, &row.id, Some(reason)).await?;
    let mut good = sound(&mut tx, fleet, line).await?;
    if let Some(root) = &root {
        good.retain(|id| !root.revoked_releases.iter().any(|revoked| revoked.to_string() == *id));
    }
    let devices: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM assignments a JOIN devices d ON d.device_id = a.device_id
         WHERE d.fleet_id = $1 AND d.state = 'accepted' AND $2 IN (a.os_id, a.agent_id)",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(&row.id)
    .fetch_one(&mut *tx)
    .await?;
    let target = fleet_back(&mut tx, fleet, line, &row.id, &good).await?;
    pins_back(&mut tx, fleet, line, &row.id, &good).await?;
    let detail = json!({
        "line": line, "version": row.version, "reason": reason, "target": target, "devices": devices,
    });
    audit::record(&mut tx, caller, "host_release.withdraw", &format!("release:{}", row.id), detail).await?;
    tx.commit().await?;
    told(app, fleet, &row.id).await?;
    Ok(Withdrawn { target, devices: devices.unsigned_abs() })
}

/// Takes that back: it may be deployed again. Nothing goes to it by itself.
///
/// # Errors
/// When the database fails.
pub(crate) async fn restore(app: &App, caller: &Caller, fleet: &FleetRow, row: &ReleaseRow) -> Result<()> {
    if row.status()? != ReleaseStatus::Invalidated {
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    releases::set_withdrawn(&mut tx, &row.id, None).await?;
    let detail = json!({"line": row.line()?, "version": row.version});
    audit::record(&mut tx, caller, "host_release.restore", &format!("release:{}", row.id), detail).await?;
    tx.commit().await?;
    told(app, fleet, &row.id).await
}

async fn told(app: &App, fleet: &FleetRow, id: &str) -> Result<()> {
    app.bus.publish(Event::Release { fleet_id: fleet.fleet_id.to_string(), id: id.to_owned() });
    app.bus.publish(Event::Fleet { fleet_id: fleet.fleet_id.to_string(), id: fleet.slug.clone() });
    assignments::refresh_fleet(app, fleet.fleet_id).await?;
    Ok(())
}

/// The releases of a line that may run.
async fn sound(tx: &mut Tx, fleet: &FleetRow, line: Line) -> Result<BTreeSet<String>> {
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id FROM releases WHERE fleet_id = $1 AND line = $2 AND status = 'final'")
            .bind(fleet.fleet_id.to_string())
            .bind(line.as_str())
            .fetch_all(&mut **tx)
            .await?;
    Ok(ids.into_iter().collect())
}

/// The newest entry of a list that may still be gone back to, and the list behind it.
fn earlier<'a>(list: &'a str, good: &BTreeSet<String>) -> (Option<&'a str>, &'a str) {
    let mut rest = list;
    while let Some((entry, behind)) = rest.split_once(',') {
        rest = behind;
        if entry == FOLLOWED || good.contains(entry) {
            return (Some(entry), rest);
        }
    }
    (None, "")
}

/// SQL of an operating system or of an agent: apps are never withdrawn.
macro_rules! of_host {
    ($line:expr, $os:literal, $agent:literal) => {
        if $line == Line::Agent { $agent } else { $os }
    };
}

/// Answers the fleet's target from now on.
async fn fleet_back(
    tx: &mut Tx,
    fleet: &FleetRow,
    line: Line,
    id: &str,
    good: &BTreeSet<String>,
) -> Result<Option<String>> {
    let sql = of_host!(
        line,
        "SELECT target_os, before_os FROM fleets WHERE fleet_id = $1",
        "SELECT target_agent, before_agent FROM fleets WHERE fleet_id = $1"
    );
    let (target, before): (Option<String>, String) =
        sqlx::query_as(sql).bind(fleet.fleet_id.to_string()).fetch_one(&mut **tx).await?;
    if target.as_deref() != Some(id) {
        return Ok(target);
    }
    let (target, rest) = earlier(&before, good);
    let sql = of_host!(
        line,
        "UPDATE fleets SET target_os = $2, before_os = $3 WHERE fleet_id = $1",
        "UPDATE fleets SET target_agent = $2, before_agent = $3 WHERE fleet_id = $1"
    );
    sqlx::query(sql).bind(fleet.fleet_id.to_string()).bind(target).bind(rest).execute(&mut **tx).await?;
    Ok(target.map(str::to_owned))
}

async fn pins_back(
    tx: &mut Tx,
    fleet: &FleetRow,
    line: Line,
    id: &str,
    good: &BTreeSet<String>,
) -> Result<()> {
    let sql = of_host!(
        line,
        "SELECT DISTINCT before_os FROM devices WHERE fleet_id = $1 AND pinned_os = $2",
        "SELECT DISTINCT before_agent FROM devices WHERE fleet_id = $1 AND pinned_agent = $2"
    );
    // Devices that came the same way go back the same way.
    let lists: Vec<String> =
        sqlx::query_scalar(sql).bind(fleet.fleet_id.to_string()).bind(id).fetch_all(&mut **tx).await?;
    for before in lists {
        let (entry, rest) = earlier(&before, good);
        let sql = of_host!(
            line,
            "UPDATE devices SET pinned_os = $4, before_os = $5
             WHERE fleet_id = $1 AND pinned_os = $2 AND before_os = $3",
            "UPDATE devices SET pinned_agent = $4, before_agent = $5
             WHERE fleet_id = $1 AND pinned_agent = $2 AND before_agent = $3"
        );
        sqlx::query(sql)
            .bind(fleet.fleet_id.to_string())
            .bind(id)
            .bind(&before)
            .bind(entry.filter(|entry| *entry != FOLLOWED))
            .bind(rest)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_may_still_run_is_gone_back_to() {
        let good: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
        assert_eq!(earlier("x,b,a,", &good), (Some("b"), "a,"));
        assert_eq!(earlier("x,-,a,", &good), (Some("-"), "a,"));
        assert_eq!(earlier("x,y,", &good), (None, ""));
        assert_eq!(earlier("", &good), (None, ""));
        // The end of a list that was cut to its length names nothing.
        assert_eq!(earlier("x,a", &good), (None, ""));
    }
}
