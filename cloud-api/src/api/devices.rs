//! Devices: list, show, change, let in, keep out.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use copal_filter::{Check, Expr, Field, Filter, Test};
use copal_protocol::{device_api::DeviceState, ids::DeviceId};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Json, Page, Paging, Path, Query, device_filter,
    device_views::{Device, Viewer},
    fleets::{allowed, allowed_id},
};
use crate::{
    app::{self, App},
    assignments, audit,
    auth::{Act, Caller},
    bus::Event,
    devices::{
        clean_name,
        rows::{self, DeviceRow},
    },
    error::{Problem, Result},
    rollouts,
    store::{Tx, fleets::FleetRow},
};

/// The most tags of one device.
const MAX_TAGS: usize = 50;

/// Routes of devices.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(show, change))
        .routes(routes!(events))
        .routes(routes!(report))
        .routes(routes!(revoke))
        .routes(routes!(accept))
        .routes(routes!(retry))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(
    dead_code,
    reason = "describes the parameters; they are read as pairs, since `tag` may come several times"
)]
pub(crate) struct ListParams {
    /// Items of a page, 1 to 500; 100 by default.
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Which devices: docs/filter.md. All where it is left out.
    filter: Option<String>,
    /// `key=value`, for `tag.key = "value"` of a filter; may come several times, and all must hold.
    tag: Option<String>,
}

/// A change; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceChange {
    /// What people call it, at most 63 characters.
    name: Option<String>,
    /// A release's id or version to pin it to; null to follow the fleet again.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pinned_release: Option<Option<String>>,
    /// True lets it follow the fleet's operating system and agent again.
    unpin_host: bool,
    /// Tags to set; null removes one.
    tags: BTreeMap<String, Option<String>>,
}

/// Tells null from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Something that happened to a device.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeviceEvent {
    /// Rises.
    pub id: u64,
    /// When it happened, Unix seconds; by the device's clock where it told of it.
    pub at: u64,
    /// `reason`, `committed`, `os`, `lock`, `root`, `agent`, `presence`, `held_back`, `clone`, `enrolled`, `state`, `command` or
    /// `gap` (events of the device were lost); told by the device also `service`, `release`, `update`, `boot`, `probe`, `clock`,
    /// `policy`, `terminal`, `budget`.
    pub kind: String,
    /// Stable within its kind.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What else belongs to it.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    /// Where the device told of it: its number, which rises over the device's life.
    pub seq: Option<u64>,
    /// The boot it happened in.
    pub boot_id: Option<String>,
    /// When the cloud heard of it, Unix seconds.
    pub received_at: u64,
}

/// Lists the devices of a fleet, or those that a filter means.
#[utoipa::path(get, path = "/fleets/{slug}/devices", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ListParams),
    responses((status = 200, body = Page<Device>), (status = 400, description = "`filter_invalid`, `tag_invalid`, `query_invalid`")))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<Page<Device>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let (paging, filter) = asked(pairs)?;
    let mut viewer = Viewer::new(&app, &fleet).await?;
    let page = device_filter::page(&app, &viewer, &fleet, filter.as_ref(), &paging).await?;
    let mut tags = device_filter::tags_between(&app, &fleet, &page.items).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for row in page.items {
        let tags = tags.remove(&row.device_id).unwrap_or_default();
        items.push(viewer.view(row, tags).await?);
    }
    Ok(Json(Page { items, next: page.next }))
}

/// What the query string asks for. `tag=site=paris` is an older way to say `tag.site = "paris"`.
fn asked(pairs: Vec<(String, String)>) -> Result<(Paging, Option<Filter>)> {
    let mut paging = Paging::default();
    let mut parts = Vec::new();
    for (key, value) in pairs {
        match key.as_str() {
            "limit" => {
                paging.limit =
                    Some(value.parse().map_err(|_| {
                        Problem::bad_request("limit_invalid", "limit is a number, 1 to 500.")
                    })?);
            }
            "after" => paging.after = Some(value),
            "filter" if value.trim().is_empty() => {}
            "filter" => parts.push(device_filter::read(&value)?.expr().clone()),
            "tag" => {
                let (key, value) = value
                    .split_once('=')
                    .filter(|(key, _)| !key.is_empty())
                    .ok_or_else(|| Problem::bad_request("tag_invalid", "A tag filter is `tag=key=value`."))?;
                let check = Check::Equals(value.to_owned());
                parts.push(Expr::Test(Test { field: Field::Tag(key.to_owned()), check }));
            }
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(Problem::bad_request(
                    "query_invalid",
                    format!("There is no parameter {other:?}; there are limit, after, filter and tag."),
                ));
            }
        }
        if parts.len() > 8 {
            return Err(Problem::bad_request(
                "filter_invalid",
                "At most 8 filters and tags can be asked for at once.",
            ));
        }
    }
    let filter = (!parts.is_empty()).then(|| Filter::from(Expr::all(parts)));
    Ok((paging, filter))
}

/// The device of a route, if the caller may do this to it. Whose it is otherwise is not told.
pub(crate) async fn device(app: &App, caller: &Caller, id: &str, act: Act) -> Result<(FleetRow, DeviceRow)> {
    let unknown = || Problem::not_found(format!("device {:?}", id.chars().take(80).collect::<String>()));
    let parsed: DeviceId = id.parse().map_err(|_| unknown())?;
    let row = rows::by_id(app, parsed).await?.ok_or_else(unknown)?;
    match allowed_id(app, caller, &row.fleet_id, act).await {
        Ok(fleet) => Ok((fleet, row)),
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => Err(unknown()),
        Err(problem) => Err(problem),
    }
}

async fn one(app: &App, id: &str, fleet: &FleetRow) -> Result<Json<Device>> {
    let unknown = || Problem::not_found("such device");
    let row = rows::by_id(app, id.parse().map_err(|_| unknown())?).await?.ok_or_else(unknown)?;
    let tags = device_filter::tags_between(app, fleet, std::slice::from_ref(&row)).await?;
    let tags = tags.get(id).cloned().unwrap_or_default();
    let mut shown = Viewer::new(app, fleet).await?.view(row, tags).await?;
    if let Some((at, facts)) = crate::telemetry::facts::of(app, id).await? {
        let mut facts = serde_json::to_value(facts).map_err(Problem::internal)?;
        facts["told_at"] = at.into();
        shown.facts = Some(facts);
    }
    Ok(Json(shown))
}

/// Shows a device.
#[utoipa::path(get, path = "/devices/{id}", tag = "devices", params(("id" = String, Path, description = "The device.")),
    responses((status = 200, body = Device), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Device>> {
    let (fleet, _) = device(&app, &caller, &id, Act::Read).await?;
    one(&app, &id, &fleet).await
}

/// Names, tags or pins a device.
#[utoipa::path(patch, path = "/devices/{id}", tag = "devices", request_body = DeviceChange,
    params(("id" = String, Path, description = "The device.")),
    responses((status = 200, body = Device), (status = 409, description = "As for deploying, where it is pinned"),
        (status = 422, description = "`name_invalid`, `tag_invalid`")))]
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Json(change): Json<DeviceChange>,
) -> Result<Json<Device>> {
    let (fleet, row) = device(&app, &caller, &id, Act::Deploy).await?;
    let name = change.name.as_deref().map(|name| {
        let clean = clean_name(name);
        if clean.is_empty() || clean != name {
            return Err(Problem::invalid(
                "name_invalid",
                "A device's name has 1 to 63 characters, no control characters, and no space at its ends.",
            ));
        }
        Ok(clean)
    });
    let name = name.transpose()?;
    for (key, value) in &change.tags {
        check_tag(key, value.as_deref())?;
    }
    // First what can be refused.
    if let Some(pin) = &change.pinned_release {
        rollouts::pin_device(&app, &caller, &fleet, row.id()?, pin.as_deref()).await?;
    }
    if change.unpin_host {
        rollouts::unpin_host(&app, &caller, &fleet, row.id()?).await?;
    }
    if name.is_some() || !change.tags.is_empty() {
        let mut tx = app.db.write().await?;
        if let Some(name) = &name {
            sqlx::query("UPDATE devices SET name = $2 WHERE device_id = $1")
                .bind(&id)
                .bind(name)
                .execute(&mut *tx)
                .await?;
        }
        set_tags(&mut tx, &id, &change.tags).await?;
        let detail = json!({"name": name, "tags": change.tags});
        audit::record(&mut tx, &caller, "device.change", &format!("device:{id}"), detail).await?;
        tx.commit().await?;
        app.bus.publish(Event::Device { fleet_id: row.fleet_id, id: id.clone() });
    }
    one(&app, &id, &fleet).await
}

fn check_tag(key: &str, value: Option<&str>) -> Result<()> {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if key.is_empty() || key.len() > 63 || !key.chars().all(sound) {
        return Err(Problem::invalid(
            "tag_invalid",
            "A tag's key is 1 to 63 letters, digits, `_`, `.`, `-` and `/`.",
        ));
    }
    if value.is_some_and(|v| v.chars().count() > 255 || v.chars().any(char::is_control)) {
        return Err(Problem::invalid(
            "tag_invalid",
            format!("The value of the tag {key} has at most 255 characters and no control characters."),
        ));
    }
    Ok(())
}

async fn set_tags(tx: &mut Tx, device: &str, tags: &BTreeMap<String, Option<String>>) -> Result<()> {
    for (key, value) in tags {
        match value {
            Some(value) => {
                sqlx::query(
                    "INSERT INTO device_tags (device_id, key, value) VALUES ($1, $2, $3)
                     ON CONFLICT (device_id, key) DO UPDATE SET value = excluded.value",
                )
                .bind(device)
                .bind(key)
                .bind(value)
                .execute(&mut **tx)
                .await?;
            }
            None => {
                sqlx::query("DELETE FROM device_tags WHERE device_id = $1 AND key = $2")
                    .bind(device)
                    .bind(key)
                    .execute(&mut **tx)
                    .await?;
            }
        }
    }
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM device_tags WHERE device_id = $1")
        .bind(device)
        .fetch_one(&mut **tx)
        .await?;
    if count.unsigned_abs() > MAX_TAGS as u64 {
        return Err(Problem::invalid("tag_invalid", format!("A device has at most {MAX_TAGS} tags.")));
    }
    Ok(())
}

/// What happened to a device, the newest heard of first; the newest 5,000 are kept, for 90 days.
#[utoipa::path(get, path = "/devices/{id}/events", tag = "devices",
    params(("id" = String, Path, description = "The device."), Paging),
    responses((status = 200, body = Page<DeviceEvent>)))]
pub(crate) async fn events(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<DeviceEvent>>> {
    device(&app, &caller, &id, Act::Read).await?;
    super::telemetry::events_page(&app, &id, &paging, 0, "").await.map(Json)
}

/// The newest report, as the device signed it.
#[utoipa::path(get, path = "/devices/{id}/report", tag = "devices",
    params(("id" = String, Path, description = "The device.")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json"),
        (status = 404, description = "`not_found`, also before the first report")))]
pub(crate) async fn report(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response> {
    device(&app, &caller, &id, Act::Read).await?;
    let bytes: Option<Vec<u8>> = sqlx::query_scalar("SELECT report FROM devices WHERE device_id = $1")
        .bind(&id)
        .fetch_one(app.db.read())
        .await?;
    bytes
        .map(|bytes| crate::devices::documents::envelope(bytes).into_response())
        .ok_or_else(|| Problem::not_found("report of this device yet"))
}

/// Keeps a device out, at once and for good. What it runs goes on running.
#[utoipa::path(post, path = "/devices/{id}/revoke", tag = "devices",
    params(("id" = String, Path, description = "The device.")), responses((status = 200, body = Device)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Device>> {
    let (fleet, row) = device(&app, &caller, &id, Act::Manage).await?;
    let state = if row.device_state()? == DeviceState::Pending {
        DeviceState::Rejected
    } else {
        DeviceState::Revoked
    };
    let mut tx = app.db.write().await?;
    sqlx::query(
        "UPDATE devices SET state = $2, link_hash = NULL, link_previous_hash = NULL WHERE device_id = $1",
    )
    .bind(&id)
    .bind(rows::state_word(state))
    .execute(&mut *tx)
    .await?;
    // Copies for it alone; whoever accepts nothing more needs none.
    sqlx::query("DELETE FROM sealed_secrets WHERE device_id = $1").bind(&id).execute(&mut *tx).await?;
    settled(&mut tx, &caller, &row, "device.revoke", rows::state_word(state)).await?;
    tx.commit().await?;
    app.devices.set_state(row.id()?, state);
    app.bus.publish(Event::Device { fleet_id: row.fleet_id, id: id.clone() });
    one(&app, &id, &fleet).await
}

/// Lets a device in that waits, and settles a suspected clone: whoever logs in first with the device's key from now on
/// is the device.
#[utoipa::path(post, path = "/devices/{id}/accept", tag = "devices",
    params(("id" = String, Path, description = "The device.")),
    responses((status = 200, body = Device), (status = 409, description = "`device_revoked`")))]
pub(crate) async fn accept(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Device>> {
    let (fleet, row) = device(&app, &caller, &id, Act::Manage).await?;
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, row.id()?).await?.ok_or_else(|| Problem::not_found("such device"))?;
    if row.device_state()? == DeviceState::Revoked {
        return Err(Problem::conflict(
            "device_revoked",
            "The device was revoked, and its key may be in other hands. Give it a new identity and enrol it anew.",
        ));
    }
    sqlx::query(
        "UPDATE devices SET state = 'accepted', clone_suspected = FALSE,
            link_hash = CASE WHEN clone_suspected THEN NULL ELSE link_hash END,
            link_previous_hash = CASE WHEN clone_suspected THEN NULL ELSE link_previous_hash END
         WHERE device_id = $1",
    )
    .bind(&id)
    .execute(&mut *tx)
    .await?;
    settled(&mut tx, &caller, &row, "device.accept", "accepted").await?;
    tx.commit().await?;
    app.devices.set_state(row.id()?, DeviceState::Accepted);
    assignments::refresh_device(&app, row.id()?).await?;
    app.bus.publish(Event::Device { fleet_id: row.fleet_id, id: id.clone() });
    one(&app, &id, &fleet).await
}

async fn settled(tx: &mut Tx, caller: &Caller, row: &DeviceRow, verb: &str, code: &str) -> Result<()> {
    let event = rows::NewEvent::new("state", code, format!("{code} by {}", caller.who));
    rows::add_events(tx, row.id()?, app::now(), &[event]).await?;
    let detail = json!({"name": row.name, "before": row.state, "clone_suspected": row.clone_suspected});
    audit::record(tx, caller, verb, &format!("device:{}", row.device_id), detail).await?;
    Ok(())
}

/// What was asked of a device.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Asked {
    /// The seq of the assignment that says so.
    pub seq: Option<u64>,
}

/// Asks a device to try again a release that it parked.
#[utoipa::path(post, path = "/devices/{id}/retry", tag = "devices",
    params(("id" = String, Path, description = "The device.")), responses((status = 200, body = Asked)))]
pub(crate) async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Asked>> {
    let (_, row) = device(&app, &caller, &id, Act::Deploy).await?;
    Ok(Json(Asked { seq: rollouts::retry(&app, &caller, row.id()?).await? }))
}
