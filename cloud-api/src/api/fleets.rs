//! Fleets: make, list, show, delete.

use axum::{extract::State, http::StatusCode};
use copal_protocol::{
    documents::CHECK_EVERY_S,
    ids::{AppId, FleetId},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, device_views};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller},
    bus::Event,
    error::{Problem, Result},
    rollouts,
    store::fleets::{self, FleetRow},
};

/// Routes of fleets.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(show, delete))
        .routes(routes!(check_every))
}

/// A fleet: devices of one type that run the same app.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Fleet {
    /// Its name in URLs.
    pub slug: String,
    /// Its id, for ever: 32 hex digits.
    pub fleet_id: String,
    /// The id of its app: 32 hex digits.
    pub app_id: String,
    /// What its devices are.
    pub device_type: String,
    /// OCI architecture.
    pub arch: String,
    /// Whose signature makes a release runnable: `builder`, `owner` or `both`; by the newest root.
    pub release_mode: String,
    /// Of the newest root; 0 before the first.
    pub root_version: u64,
    /// The release a person pinned the fleet to.
    pub pinned_release: Option<String>,
    /// What devices should run unless they are pinned.
    pub target_release: Option<String>,
    /// The operating system devices should run unless they are pinned.
    pub target_os: Option<String>,
    /// The agent devices should run unless they are pinned.
    pub target_agent: Option<String>,
    /// `HH:MM-HH:MM` in UTC: when devices may reboot into another operating system; at any time where absent.
    pub reboot_window: Option<String>,
    /// Seconds between the health checks its devices make by themselves; as each device says where absent.
    pub check_every_s: Option<u32>,
    /// How its devices fare.
    pub devices: Totals,
    /// Where to push.
    pub git_url: String,
    /// Unix seconds.
    pub created_at: u64,
    /// The server's builder key, base64; Root must list it.
    pub builder_key: String,
    /// The server's assign key, base64; Root must list it.
    pub assign_key: String,
}

/// How the devices of a fleet fare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    /// Accepted devices.
    pub total: u64,
    /// Of these, seen lately.
    pub online: u64,
    /// Of these, running what they should.
    pub on_target: u64,
    /// Of these, where it went wrong.
    pub failed: u64,
}

/// What a new fleet is to be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFleet {
    /// Its name in URLs: 2 to 40 of `a-z`, `0-9` and `-`, beginning with a letter, not ending in `-`.
    pub slug: String,
    /// What its devices are: 1 to 63 of `a-z`, `0-9` and `-`.
    pub device_type: String,
    /// OCI architecture: `amd64`, `arm64` or `arm`.
    pub arch: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteParams {
    /// Deletes a fleet that has devices; they keep running what they run, and can never log in again.
    #[serde(default)]
    force: bool,
}

/// The fleet of a route, if the caller may do this to it.
///
/// # Errors
/// 404 `not_found`, 403.
pub async fn allowed(app: &App, caller: &Caller, slug: &str, act: Act) -> Result<FleetRow> {
    let fleet = fleets::by_slug(app, slug).await?;
    caller.may(act, Some(&fleet))?;
    Ok(fleet)
}

/// As [`allowed`], for a route that names something of the fleet.
///
/// # Errors
/// 404 `not_found`, 403.
pub async fn allowed_id(app: &App, caller: &Caller, fleet_id: &str, act: Act) -> Result<FleetRow> {
    let fleet = fleets::by_id(app, fleet_id.parse().map_err(Problem::internal)?).await?;
    caller.may(act, Some(&fleet))?;
    Ok(fleet)
}

/// The wire form of a fleet.
pub(crate) fn view(app: &App, row: FleetRow, devices: Totals) -> Fleet {
    Fleet {
        fleet_id: row.fleet_id.to_string(),
        app_id: row.app_id.to_string(),
        device_type: row.device_type,
        arch: row.arch,
        release_mode: fleets::mode_word(row.release_mode).to_owned(),
        root_version: row.root_version,
        pinned_release: row.target_release.clone().filter(|_| row.pinned),
        target_release: row.target_release,
        target_os: row.target_os,
        target_agent: row.target_agent,
        reboot_window: row.reboot_window,
        check_every_s: row.check_every_s,
        devices,
        git_url: format!("{}/git/{}.git", app.config.url, row.slug),
        created_at: row.created_at,
        builder_key: app.keys.builder.public().to_string(),
        assign_key: app.keys.assign.public().to_string(),
        slug: row.slug,
    }
}

/// The fleets as people see them, with their devices counted.
async fn totals(app: &App, rows: Vec<FleetRow>) -> Result<Vec<Fleet>> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        let totals = device_views::totals(app, &row).await?;
        out.push(view(app, row, totals));
    }
    Ok(out)
}

async fn one(app: &App, row: FleetRow) -> Result<Fleet> {
    totals(app, vec![row]).await?.pop().ok_or_else(|| Problem::internal("one fleet became none"))
}

/// Lists the fleets one may see.
#[utoipa::path(get, path = "/fleets", tag = "fleets", params(Paging),
    responses((status = 200, body = Page<Fleet>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Fleet>>> {
    let rows = fleets::list(&app, &caller.sees(), &paging.after(String::new())?, paging.sql_limit()?).await?;
    let fleets = totals(&app, rows).await?;
    Ok(Json(Page::of(&paging, fleets, |f| f.slug.clone(), |f| f)?))
}

/// Makes a fleet. Its owner then signs and uploads Root 1, which must list the two keys of the answer.
#[utoipa::path(post, path = "/fleets", tag = "fleets", request_body = NewFleet,
    responses((status = 201, body = Fleet), (status = 409, description = "`fleet_exists`"),
        (status = 422, description = "`slug_invalid`, `device_type_invalid`, `arch_unknown`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(new): Json<NewFleet>,
) -> Result<(StatusCode, Json<Fleet>)> {
    caller.may(Act::Manage, None)?;
    check(&new)?;
    let (mut fleet, mut application) = ([0; 16], [0; 16]);
    for id in [&mut fleet, &mut application] {
        getrandom::fill(id).map_err(|e| Problem::internal(format!("no randomness: {e}")))?;
    }
    let fleet = FleetId::from_bytes(fleet);
    let mut tx = app.db.write().await?;
    let made = sqlx::query(
        "INSERT INTO fleets (fleet_id, slug, app_id, device_type, arch, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (slug) DO NOTHING",
    )
    .bind(fleet.to_string())
    .bind(&new.slug)
    .bind(AppId::from_bytes(application).to_string())
    .bind(&new.device_type)
    .bind(&new.arch)
    .bind(app::now_i64())
    .execute(&mut *tx)
    .await?;
    if made.rows_affected() == 0 {
        return Err(Problem::conflict(
            "fleet_exists",
            format!("There is a fleet {:?} already. Choose another slug.", new.slug),
        ));
    }
    let detail = serde_json::json!({"device_type": new.device_type, "arch": new.arch});
    audit::record(&mut tx, &caller, "fleet.create", &format!("fleet:{}", new.slug), detail).await?;
    tx.commit().await?;
    app.bus.publish(Event::Fleet { fleet_id: fleet.to_string(), id: new.slug });
    let row = fleets::by_id(&app, fleet).await?;
    Ok((StatusCode::CREATED, Json(one(&app, row).await?)))
}

/// Shows a fleet.
#[utoipa::path(get, path = "/fleets/{slug}", tag = "fleets", params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 200, body = Fleet), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Json<Fleet>> {
    let row = allowed(&app, &caller, &slug, Act::Read).await?;
    Ok(Json(one(&app, row).await?))
}

/// How often devices check themselves.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckEvery {
    /// Seconds, 600 to 604,800; null for as each device says.
    #[schema(example = 3600)]
    pub check_every_s: Option<u32>,
}

/// Sets how often the devices of a fleet make their health checks by themselves. A device whose own settings say something goes by those.
#[utoipa::path(put, path = "/fleets/{slug}/check-every", tag = "fleets", request_body = CheckEvery,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 200, body = CheckEvery), (status = 422, description = "`check_every_invalid`")))]
pub(crate) async fn check_every(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(wanted): Json<CheckEvery>,
) -> Result<Json<CheckEvery>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    if wanted.check_every_s.is_some_and(|s| !CHECK_EVERY_S.contains(&s)) {
        let (least, most) = (CHECK_EVERY_S.start(), CHECK_EVERY_S.end());
        let why = format!("check_every_s is {least} to {most} seconds, or null for as each device says.");
        return Err(Problem::invalid("check_every_invalid", why));
    }
    rollouts::set_check_every(&app, &caller, &fleet, wanted.check_every_s).await?;
    Ok(Json(wanted))
}

/// Deletes a fleet with all it has: releases, builds, variables, tokens, devices.
#[utoipa::path(delete, path = "/fleets/{slug}", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet."), DeleteParams),
    responses((status = 204), (status = 409, description = "`fleet_has_devices`")))]
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(params): Query<DeleteParams>,
) -> Result<StatusCode> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    let id = fleet.fleet_id.to_string();
    let mut tx = app.db.write().await?;
    // Before it: the caller's own token or membership may go with the fleet.
    caller.holds(&mut tx).await?;
    let devices: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM devices WHERE fleet_id = $1")
        .bind(&id)
        .fetch_one(&mut *tx)
        .await?;
    if devices > 0 && !params.force {
        return Err(Problem::conflict(
            "fleet_has_devices",
            format!(
                "The fleet {slug:?} has {devices} devices, which could never log in again. Add `?force=true` if that is meant."
            ),
        ));
    }
    // Tokens name their fleet without a foreign key: one that opens only this fleet must not come to open all.
    sqlx::query("DELETE FROM tokens WHERE fleet_id = $1").bind(&id).execute(&mut *tx).await?;
    sqlx::query("DELETE FROM terminal_brakes WHERE fleet_id = $1").bind(&id).execute(&mut *tx).await?;
    sqlx::query("DELETE FROM fleets WHERE fleet_id = $1").bind(&id).execute(&mut *tx).await?;
    let detail = serde_json::json!({"fleet_id": id, "devices": devices});
    audit::note(&mut tx, &caller, "fleet.delete", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    app.roots.forget(fleet.fleet_id);
    app.devices.forget_fleet(fleet.fleet_id);
    app.bus.publish(Event::Fleet { fleet_id: id, id: slug });
    Ok(StatusCode::NO_CONTENT)
}

fn check(new: &NewFleet) -> Result<()> {
    let word = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let slug = &new.slug;
    if !(2..=40).contains(&slug.len())
        || !word(slug)
        || !slug.starts_with(|c: char| c.is_ascii_lowercase())
        || slug.ends_with('-')
    {
        return Err(Problem::invalid(
            "slug_invalid",
            "A slug is 2 to 40 of a-z, 0-9 and -, begins with a letter and does not end in -.",
        ));
    }
    let kind = &new.device_type;
    if !(1..=63).contains(&kind.len()) || !word(kind) || kind.starts_with('-') {
        return Err(Problem::invalid(
            "device_type_invalid",
            "A device type is 1 to 63 of a-z, 0-9 and -, as in `raspberrypi4-64` or `generic-amd64`.",
        ));
    }
    if !matches!(new.arch.as_str(), "amd64" | "arm64" | "arm") {
        return Err(Problem::invalid("arch_unknown", "arch is amd64, arm64 or arm, as OCI spells them."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sound_slugs_types_and_architectures() {
        let ok = |slug: &str, kind: &str, arch: &str| {
            check(&NewFleet { slug: slug.to_owned(), device_type: kind.to_owned(), arch: arch.to_owned() })
                .is_ok()
        };
        assert!(ok("greenhouse-2", "raspberrypi4-64", "arm64"));
        for slug in ["", "a", "Green", "-a", "a-", "2a", "a.b", "../x", "a/b", "é!", &"a".repeat(41)] {
            assert!(!ok(slug, "x", "arm64"), "{slug}");
        }
        assert!(!ok("aa", "", "arm64"));
        assert!(!ok("aa", "../x", "arm64"));
        assert!(!ok("aa", "x", "x86_64"));
    }
}
