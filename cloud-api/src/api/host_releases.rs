//! Operating systems and agents: take, list, show, deploy, try again; and when devices may reboot.

use std::collections::{BTreeMap, HashMap};

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use copal_protocol::{documents::Root, verify::Verified, window::Window};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Json, Page, Paging, Path, Query, Raw,
    deploy::{self, Deployed},
    fleets::allowed,
    releases::{Signature, signed_by},
};
use crate::{
    app::App,
    auth::{Act, Caller},
    devices::documents::envelope,
    error::{Problem, Result},
    releases::{
        self, Line, ReleaseStatus,
        rows::{self, ReleaseRow},
    },
    rollouts,
    store::fleets::{self, FleetRow},
};

/// Routes of host releases.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(document))
        .routes(routes!(deploy))
        .routes(routes!(retry))
        .routes(routes!(withdraw))
        .routes(routes!(window))
}

/// One version of an operating system, or of the agent. Never changes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct HostRelease {
    /// SHA-256 of the signed payload.
    pub id: String,
    /// The slug of its fleet.
    pub fleet: String,
    /// `os` or `agent`.
    pub line: Line,
    /// Rises with every release of the line.
    pub counter: u64,
    /// Semantic version.
    pub version: String,
    /// What it is for; empty for any.
    pub device_types: Vec<String>,
    /// Architectures it is for; empty for any.
    pub arch: Vec<String>,
    /// What it writes: `rootfs`, `boot` or `agent`.
    pub payloads: BTreeMap<String, Payload>,
    /// Bytes of its blobs here, each counted once.
    pub size: u64,
    /// The newest format of the data partition that it reads.
    pub data_schema: Option<u64>,
    /// The lowest version that may update to this one.
    pub min_from: Option<String>,
    /// Once it is committed, nothing with a lower counter is accepted.
    pub rollback_floor: u64,
    /// Whose signatures it has.
    pub signed_by: Vec<Signature>,
    /// Whether it is what the fleet should run.
    pub is_target: bool,
    /// Why it was taken back: no device is given it. Absent where it may be deployed.
    pub withdrawn: Option<String>,
    /// How many devices were given it.
    pub devices_given: u64,
    /// How many run it, no longer on trial.
    pub devices_on: u64,
    /// Unix seconds at which it was made.
    pub created_at: u64,
    /// Unix seconds at which it came here.
    pub uploaded_at: u64,
}

/// What a host release writes to one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Payload {
    /// Bytes of the image.
    pub size: u64,
    /// SHA-256 of the image.
    pub sha256: String,
    /// SHA-256 of its chunk index; absent where the image itself is the blob.
    pub index_sha256: Option<String>,
}

/// Where to deploy; one of `devices`, `tag` and `all` is needed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostDeploy {
    /// These devices, by id: they are pinned to it.
    devices: Vec<String>,
    /// Devices with all of these tags: they are pinned to it.
    tag: BTreeMap<String, String>,
    /// The whole fleet; pins of this release are lifted.
    all: bool,
    /// Only says how many devices it would concern, and what would be refused.
    dry_run: bool,
    /// Changes nothing when another number of devices would be concerned.
    expect_count: Option<u64>,
}

impl HostDeploy {
    fn of(self, row: &ReleaseRow) -> Result<rollouts::Deploy> {
        let named = !self.devices.is_empty() || !self.tag.is_empty();
        if named == self.all {
            return Err(Problem::invalid(
                "target_missing",
                "Say where: some `devices`, a `tag`, or `all` of the fleet; not both some and all.",
            ));
        }
        Ok(rollouts::Deploy {
            devices: deploy::device_ids(&self.devices)?,
            tag: self.tag,
            filtered: None,
            dry_run: self.dry_run,
            expect_count: self.expect_count,
            ..rollouts::Deploy::of(row.line()?, &row.id)
        })
    }
}

/// Which devices were asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Retried {
    /// The release.
    pub release: String,
    /// Devices asked, by id; at most 500 of them.
    pub devices: Vec<String>,
    /// How many were asked.
    pub count: u64,
}

/// Taking a host release back.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Withdraw {
    /// Why, for everybody who looks at it later; at most 4,000 bytes.
    reason: String,
    /// True: it may be deployed again after all. Nothing goes back to it by itself.
    undo: bool,
}

/// What came of taking a host release back.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Withdrawn {
    /// The release.
    pub release: HostRelease,
    /// What the fleet should run of this line from now on; absent where there is nothing to go back to, and what runs goes on.
    pub target: Option<String>,
    /// Devices that had been given it.
    pub devices: u64,
}

/// When devices may reboot.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebootWindow {
    /// `HH:MM-HH:MM` in UTC, which may cross midnight; null for at any time.
    #[schema(example = "22:30-04:00")]
    pub reboot_window: Option<String>,
}

/// Lists a fleet's operating systems and agents, newest first.
#[utoipa::path(get, path = "/fleets/{slug}/host-releases", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet."), Paging),
    responses((status = 200, body = Page<HostRelease>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<HostRelease>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    // Two lines may count alike, so a page ends with counter and line.
    let after = paging.after(String::new())?;
    let (counter, line) = match after.split_once('-') {
        None if after.is_empty() => (i64::MAX, "z"),
        Some((counter, line)) => (counter.parse().map_err(|_| after_invalid())?, line),
        None => return Err(after_invalid()),
    };
    let found: Vec<ReleaseRow> = sqlx::query_as(rows::select_release!(
        "WHERE r.fleet_id = $1 AND r.line <> 'app' AND (r.counter < $2 OR (r.counter = $2 AND r.line < $3))
         ORDER BY r.counter DESC, r.line DESC LIMIT $4"
    ))
    .bind(fleet.fleet_id.to_string())
    .bind(counter)
    .bind(line)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    let page = Page::of(&paging, found, |row| format!("{}-{}", row.counter, row.line), |row| row)?;
    let items = views(&app, &fleet, page.items).await?;
    Ok(Json(Page { items, next: page.next }))
}

fn after_invalid() -> Problem {
    Problem::bad_request("after_invalid", "after is not what `next` of the page before said.")
}

/// Takes a host release: the envelope `copal os bundle sign` made, after its blobs were uploaded. Taken again it is the
/// same one.
#[utoipa::path(post, path = "/fleets/{slug}/host-releases", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet.")),
    request_body(content_type = "application/json", description = "A DSSE envelope"),
    responses((status = 201, body = HostRelease),
        (status = 409, description = "`blob_missing`, `counter_old`, `root_missing`, `root_expired`"),
        (status = 422, description = "`not_host`, `incompatible`, `index_invalid`, `index_mismatch`, and the `E_…` a device would answer with")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Raw(bytes): Raw,
) -> Result<(StatusCode, Json<HostRelease>)> {
    let fleet = allowed(&app, &caller, &slug, Act::Push).await?;
    let id = releases::create_host(&app, &caller, &fleet, &bytes).await?;
    Ok((StatusCode::CREATED, one(&app, &fleet, &id).await?))
}

/// The release of a route, where it is a host release of this fleet.
async fn release(app: &App, fleet: &FleetRow, id: &str) -> Result<ReleaseRow> {
    let unknown =
        || Problem::not_found(format!("host release {:?}", id.chars().take(80).collect::<String>()));
    let row = rows::by_id(app, id).await.map_err(|p| if p.code() == "not_found" { unknown() } else { p })?;
    if row.fleet()? != fleet.fleet_id || row.line()? == Line::App {
        return Err(unknown());
    }
    Ok(row)
}

async fn one(app: &App, fleet: &FleetRow, id: &str) -> Result<Json<HostRelease>> {
    let row = release(app, fleet, id).await?;
    let mut views = views(app, fleet, vec![row]).await?;
    Ok(Json(views.pop().ok_or_else(|| Problem::internal("one release became none"))?))
}

/// Shows a host release.
#[utoipa::path(get, path = "/fleets/{slug}/host-releases/{id}", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The release.")),
    responses((status = 200, body = HostRelease), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<HostRelease>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    one(&app, &fleet, &id).await
}

/// The release document with its signatures.
#[utoipa::path(get, path = "/fleets/{slug}/host-releases/{id}/envelope", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The release.")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json")))]
pub(crate) async fn document(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Response> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    Ok(envelope(release(&app, &fleet, &id).await?.envelope).into_response())
}

/// Deploys a host release, as releases of apps are.
#[utoipa::path(post, path = "/fleets/{slug}/host-releases/{id}/deploy", tag = "host releases", request_body = HostDeploy,
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The release.")),
    responses((status = 200, body = Deployed), (status = 404, description = "`not_found`"),
        (status = 409, description = "As for deploying a release of an app"),
        (status = 422, description = "`target_missing`")))]
pub(crate) async fn deploy(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Json(wanted): Json<HostDeploy>,
) -> Result<Json<Deployed>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let row = release(&app, &fleet, &id).await?;
    deploy::run(&app, &caller, &fleet, &wanted.of(&row)?).await
}

/// Asks devices that were given a host release, and undid it, to try it again.
#[utoipa::path(post, path = "/fleets/{slug}/host-releases/{id}/retry", tag = "host releases", request_body = HostDeploy,
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The release.")),
    responses((status = 200, body = Retried), (status = 422, description = "`target_missing`")))]
pub(crate) async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Json(wanted): Json<HostDeploy>,
) -> Result<Json<Retried>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let row = release(&app, &fleet, &id).await?;
    let mut devices = rollouts::retry_release(&app, &caller, &fleet, &wanted.of(&row)?).await?;
    let count = devices.len() as u64;
    devices.truncate(500);
    Ok(Json(Retried { release: row.id, devices, count }))
}

/// Takes a host release back: no device is given it any more, and whoever was goes back to what it was to run before.
#[utoipa::path(post, path = "/fleets/{slug}/host-releases/{id}/withdraw", tag = "host releases", request_body = Withdraw,
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The release.")),
    responses((status = 200, body = Withdrawn), (status = 404, description = "`not_found`"),
        (status = 422, description = "`reason_missing`, `reason_too_long`")))]
pub(crate) async fn withdraw(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Json(wanted): Json<Withdraw>,
) -> Result<Json<Withdrawn>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let row = release(&app, &fleet, &id).await?;
    let (target, devices) = if wanted.undo {
        rollouts::restore(&app, &caller, &fleet, &row).await?;
        let target = if row.line()? == Line::Os { &fleet.target_os } else { &fleet.target_agent };
        (target.clone(), 0)
    } else {
        let done = rollouts::withdraw(&app, &caller, &fleet, &row, &wanted.reason).await?;
        (done.target, done.devices)
    };
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let Json(release) = one(&app, &fleet, &id).await?;
    Ok(Json(Withdrawn { release, target, devices }))
}

/// Sets when the devices of a fleet may reboot into another operating system.
#[utoipa::path(put, path = "/fleets/{slug}/reboot-window", tag = "host releases", request_body = RebootWindow,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 200, body = RebootWindow), (status = 422, description = "`window_invalid`")))]
pub(crate) async fn window(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(wanted): Json<RebootWindow>,
) -> Result<Json<RebootWindow>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let window = wanted
        .reboot_window
        .map(|text| text.parse::<Window>())
        .transpose()
        .map_err(|e| Problem::invalid("window_invalid", format!("{e}.")))?;
    rollouts::set_reboot_window(&app, &caller, &fleet, window).await?;
    Ok(Json(RebootWindow { reboot_window: window.map(|w| w.to_string()) }))
}

async fn views(app: &App, fleet: &FleetRow, found: Vec<ReleaseRow>) -> Result<Vec<HostRelease>> {
    let counts = |rows: Vec<(String, i64)>| rows.into_iter().collect::<HashMap<_, _>>();
    let on = counts(
        sqlx::query_as(
            "SELECT id, COUNT(*) FROM (
                SELECT running_os AS id FROM devices WHERE fleet_id = $1 AND state = 'accepted'
                UNION ALL SELECT running_agent FROM devices WHERE fleet_id = $1 AND state = 'accepted') AS ran
             WHERE id IS NOT NULL GROUP BY id",
        )
        .bind(fleet.fleet_id.to_string())
        .fetch_all(app.db.read())
        .await?,
    );
    let given = counts(
        sqlx::query_as(
            "SELECT id, COUNT(*) FROM (
                SELECT a.os_id AS id FROM assignments a JOIN devices d ON d.device_id = a.device_id
                    WHERE d.fleet_id = $1 AND d.state = 'accepted'
                UNION ALL SELECT a.agent_id FROM assignments a JOIN devices d ON d.device_id = a.device_id
                    WHERE d.fleet_id = $1 AND d.state = 'accepted') AS given
             WHERE id IS NOT NULL GROUP BY id",
        )
        .bind(fleet.fleet_id.to_string())
        .fetch_all(app.db.read())
        .await?,
    );
    let root = fleets::latest_root(app, fleet.fleet_id).await?;
    let count = |map: &HashMap<String, i64>, id: &str| map.get(id).copied().unwrap_or(0).unsigned_abs();
    found
        .into_iter()
        .map(|row| {
            let (given, on) = (count(&given, &row.id), count(&on, &row.id));
            view(fleet, root.as_deref(), row, given, on)
        })
        .collect()
}

fn view(
    fleet: &FleetRow,
    root: Option<&Verified<Root>>,
    row: ReleaseRow,
    devices_given: u64,
    devices_on: u64,
) -> Result<HostRelease> {
    let (line, document) = (row.line()?, row.document()?);
    let payloads = document.payloads.iter().map(|(name, payload)| {
        let payload = Payload {
            size: payload.size,
            sha256: payload.sha256.to_string(),
            index_sha256: payload.index.as_ref().map(|i| i.sha256.to_string()),
        };
        (name.to_string(), payload)
    });
    let target = if line == Line::Os { &fleet.target_os } else { &fleet.target_agent };
    Ok(HostRelease {
        payloads: payloads.collect(),
        signed_by: signed_by(root, &row.envelope()?),
        is_target: target.as_deref() == Some(&row.id),
        withdrawn: (row.status()? == ReleaseStatus::Invalidated).then(|| row.note.clone()),
        id: row.id,
        fleet: fleet.slug.clone(),
        line,
        counter: row.counter.unsigned_abs(),
        version: row.version,
        device_types: document.compat.device_types.into_iter().collect(),
        arch: document.compat.arch.into_iter().collect(),
        size: row.size.unsigned_abs(),
        data_schema: document.data_schema,
        min_from: document.min_from.map(|v| v.to_string()),
        rollback_floor: document.rollback_floor,
        devices_given,
        devices_on,
        created_at: document.created_at,
        uploaded_at: row.created_at.unsigned_abs(),
    })
}
