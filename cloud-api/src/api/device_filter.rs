//! The devices a filter means: the database narrows them down, memory decides where the database cannot.

use std::collections::{BTreeMap, HashMap};

use copal_filter::{Device, Field, Filter};
use copal_protocol::documents::HostReport;

use super::{Page, Paging, device_views::Viewer};
use crate::{
    app::App,
    devices::{
        rows::{self, DeviceRow},
        select,
    },
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// How many devices are judged between two queries.
const CHUNK: usize = 500;

/// Tags of devices, or what their checks found, by id.
pub(crate) type Tags = BTreeMap<String, BTreeMap<String, String>>;

/// Reads a filter of a request.
///
/// # Errors
/// 400 `filter_invalid`.
pub(crate) fn read(text: &str) -> Result<Filter> {
    text.parse()
        .map_err(|e: copal_filter::Error| Problem::bad_request("filter_invalid", format!("filter: {e}.")))
}

/// A page of the devices meant; without a filter, of all.
///
/// # Errors
/// 400 `limit_invalid`, `after_invalid`.
pub(crate) async fn page(
    app: &App,
    viewer: &Viewer<'_>,
    fleet: &FleetRow,
    filter: Option<&Filter>,
    paging: &Paging,
) -> Result<Page<DeviceRow>> {
    let limit = paging.sql_limit()?;
    let after = paging.after(String::new())?;
    let found = match filter.filter(|f| !select::is_exact(f)) {
        None => {
            let mut query = sqlx::QueryBuilder::new(rows::select_device!("WHERE d.fleet_id = "));
            narrow(&mut query, fleet, filter, &after);
            query.push(limit);
            query.build_query_as().fetch_all(app.db.read()).await?
        }
        Some(filter) => {
            let most = usize::try_from(limit).unwrap_or(CHUNK);
            let ids = scan(app, viewer, fleet, filter, after, most).await?;
            whole(app, &ids).await?
        }
    };
    Page::of(paging, found, |row| row.device_id.clone(), |row| row)
}

/// Ids of all devices meant.
///
/// # Errors
/// When the database fails.
pub(crate) async fn all(app: &App, fleet: &FleetRow, filter: &Filter) -> Result<Vec<String>> {
    let viewer = Viewer::new(app, fleet).await?;
    scan(app, &viewer, fleet, filter, String::new(), usize::MAX).await
}

/// The rest of a query for devices of a fleet, up to its limit.
fn narrow(
    query: &mut sqlx::QueryBuilder<sqlx::Sqlite>,
    fleet: &FleetRow,
    filter: Option<&Filter>,
    after: &str,
) {
    let id = fleet.fleet_id.to_string();
    query.push_bind(id.clone());
    query.push(" AND d.device_id > ").push_bind(after.to_owned());
    if let Some(filter) = filter {
        query.push(" AND ");
        select::condition(query, filter, &id);
    }
    query.push(" ORDER BY d.device_id LIMIT ");
}

/// Ids of the first devices meant, after one.
async fn scan(
    app: &App,
    viewer: &Viewer<'_>,
    fleet: &FleetRow,
    filter: &Filter,
    mut after: String,
    most: usize,
) -> Result<Vec<String>> {
    let exact = select::is_exact(filter);
    let wants_tags = !exact && filter.any_field(|field| matches!(field, Field::Tag(_)));
    let wants_checks = !exact && filter.any_field(|field| matches!(field, Field::Check(_)));
    let versions = match filter.any_field(|field| *field == Field::Release) {
        true => versions(app, fleet).await?,
        false => HashMap::new(),
    };
    let mut found = Vec::new();
    loop {
        let mut query = sqlx::QueryBuilder::new(rows::select_device!(light "WHERE d.fleet_id = "));
        narrow(&mut query, fleet, Some(filter), &after);
        query.push(CHUNK);
        let chunk: Vec<DeviceRow> = query.build_query_as().fetch_all(app.db.read()).await?;
        let tags = if wants_tags { tags_between(app, fleet, &chunk).await? } else { Tags::new() };
        let checks = if wants_checks { checks_between(app, fleet, &chunk).await? } else { Tags::new() };
        let last = chunk.len() < CHUNK;
        for row in chunk {
            let of = |map: &Tags| map.get(&row.device_id).cloned();
            let (tags, checks) = (of(&tags).unwrap_or_default(), of(&checks).unwrap_or_default());
            if exact || is_meant(viewer, filter, &row, (&tags, &checks), &versions)? {
                found.push(row.device_id.clone());
                if found.len() == most {
                    return Ok(found);
                }
            }
            after = row.device_id;
        }
        if last {
            return Ok(found);
        }
    }
}

/// Whether the filter means this device.
fn is_meant(
    viewer: &Viewer<'_>,
    filter: &Filter,
    row: &DeviceRow,
    (tags, checks): (&BTreeMap<String, String>, &BTreeMap<String, String>),
    versions: &HashMap<String, String>,
) -> Result<bool> {
    let standing = viewer.standing(row)?;
    let host: Option<HostReport> = rows::stored(row.host_report.as_deref());
    let system = host.as_ref().map(|h| h.version.as_str()).filter(|v| !v.is_empty());
    Ok(filter.matches(&Device {
        name: &row.name,
        id: &row.device_id,
        state: &row.state,
        online: viewer.online(row)?,
        seen_ago: viewer.last_seen(row)?.map(|seen| viewer.now().saturating_sub(seen)),
        agent: row.agent_version.as_deref(),
        // Where it manages its operating system it knows the version; else it says what the system calls itself.
        os: system.or(row.os_version.as_deref()),
        release: row.committed_release.as_ref().and_then(|id| versions.get(id)).map(String::as_str),
        reason: standing.reason.as_ref().map(|reason| reason.code.as_str()),
        arch: &row.arch,
        device_type: &row.device_type,
        on_target: standing.on_target,
        pinned: row.pinned_release.is_some(),
        health: row.health.as_deref(),
        checks,
        tags,
    }))
}

/// These devices, whole.
async fn whole(app: &App, ids: &[String]) -> Result<Vec<DeviceRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sqlx::QueryBuilder::new(rows::select_device!("WHERE d.device_id IN ("));
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id);
    }
    query.push(") ORDER BY d.device_id");
    Ok(query.build_query_as().fetch_all(app.db.read()).await?)
}

/// Names of these devices, at most a page of them.
///
/// # Errors
/// When the database fails.
pub(crate) async fn names(app: &App, ids: &[String]) -> Result<Vec<String>> {
    Ok(whole(app, ids).await?.into_iter().map(|row| row.name).collect())
}

/// The version of each release of the app.
async fn versions(app: &App, fleet: &FleetRow) -> Result<HashMap<String, String>> {
    let found: Vec<(String, String)> =
        sqlx::query_as("SELECT id, version FROM releases WHERE fleet_id = $1 AND line = 'app'")
            .bind(fleet.fleet_id.to_string())
            .fetch_all(app.db.read())
            .await?;
    Ok(found.into_iter().collect())
}

/// The tags of devices that follow one another.
pub(crate) async fn tags_between(app: &App, fleet: &FleetRow, devices: &[DeviceRow]) -> Result<Tags> {
    const TAGS: &str =
        "SELECT t.device_id, t.key, t.value FROM device_tags t JOIN devices d ON d.device_id = t.device_id
         WHERE d.fleet_id = $1 AND d.device_id >= $2 AND d.device_id <= $3";
    between(TAGS, app, fleet, devices).await
}

/// What the health checks of devices that follow one another last found.
async fn checks_between(app: &App, fleet: &FleetRow, devices: &[DeviceRow]) -> Result<Tags> {
    const CHECKS: &str = "SELECT c.device_id, c.name, c.verdict FROM device_checks c JOIN devices d ON d.device_id = c.device_id
         WHERE d.fleet_id = $1 AND d.device_id >= $2 AND d.device_id <= $3";
    between(CHECKS, app, fleet, devices).await
}

async fn between(query: &'static str, app: &App, fleet: &FleetRow, devices: &[DeviceRow]) -> Result<Tags> {
    let (Some(first), Some(last)) = (devices.first(), devices.last()) else { return Ok(Tags::new()) };
    let found: Vec<(String, String, String)> = sqlx::query_as(query)
        .bind(fleet.fleet_id.to_string())
        .bind(&first.device_id)
        .bind(&last.device_id)
        .fetch_all(app.db.read())
        .await?;
    let mut out = Tags::new();
    for (device, key, value) in found {
        out.entry(device).or_default().insert(key, value);
    }
    Ok(out)
}
