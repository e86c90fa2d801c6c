//! Releases: list, show, change, sign.

use std::collections::{BTreeMap, HashMap};

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use copal_protocol::{
    documents::Root,
    envelope::Envelope,
    verify::{self, Verified},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Json, Page, Paging, Path, Query, Raw,
    fleets::{allowed, allowed_id},
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
    store::fleets::{self, FleetRow},
};

/// Routes of releases.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(show, change))
        .routes(routes!(document))
        .routes(routes!(build_record))
        .routes(routes!(sign))
}

/// One version of what a fleet runs. Never changes; its status and signatures do.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Release {
    /// SHA-256 of the signed payload.
    pub id: String,
    /// The slug of its fleet.
    pub fleet: String,
    /// Rises with every release of the fleet.
    pub counter: u64,
    /// Semantic version.
    pub version: String,
    /// The git commit; empty for an upload.
    pub commit: String,
    /// The commit, or the SHA-256 of an uploaded context.
    pub source: String,
    /// The branch it was pushed to.
    pub branch: Option<String>,
    /// Where it stands.
    pub status: ReleaseStatus,
    /// What people wrote about it.
    pub note: String,
    /// Its services.
    pub services: BTreeMap<String, Service>,
    /// Bytes of all images, shared layers counted once.
    pub size: u64,
    /// Whose signatures it has.
    pub signed_by: Vec<Signature>,
    /// On how many devices it is committed.
    pub devices_on: u64,
    /// The build it came from.
    pub build_id: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
}

/// A service of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Service {
    /// Its image by platform, such as `linux/arm64`.
    pub images: BTreeMap<String, Image>,
    /// Bytes of its largest image.
    pub size: u64,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Image {
    /// Repository in this server's registry.
    pub repo: String,
    /// The manifest.
    pub manifest_digest: String,
    /// The config: with the layers' contents it is what the image is.
    pub config_digest: String,
    /// Bytes.
    pub size: u64,
}

/// A signature that is right by the fleet's newest Root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Signature {
    /// SHA-256 of the public key.
    pub keyid: String,
    /// `builder`, `release`, or `unknown` for a key Root does not list any more.
    pub role: String,
    /// What the owner calls the key.
    pub label: String,
}

/// A change; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseChange {
    /// What people write about it, at most 4,000 characters.
    note: Option<String>,
    /// True: a draft deploys like any other release from now on.
    r#final: Option<bool>,
    /// True takes it back, false takes that back.
    invalidated: Option<bool>,
}

/// Lists the releases of a fleet, newest first.
#[utoipa::path(get, path = "/fleets/{slug}/releases", tag = "releases",
    params(("slug" = String, Path, description = "The fleet."), Paging),
    responses((status = 200, body = Page<Release>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Release>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let found: Vec<ReleaseRow> = sqlx::query_as(rows::select_release!(
        "WHERE r.fleet_id = $1 AND r.line = 'app' AND r.counter < $2 AND r.status <> 'built' ORDER BY r.counter DESC LIMIT $3"
    ))
    .bind(fleet.fleet_id.to_string())
    .bind(paging.after(i64::MAX)?)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    let page = Page::of(&paging, found, |row| row.counter.to_string(), |row| row)?;
    let items = views(&app, &fleet, page.items).await?;
    Ok(Json(Page { items, next: page.next }))
}

/// The release of a route, if the caller may do this to it. Whose it is otherwise is not told.
async fn release(app: &App, caller: &Caller, id: &str, act: Act) -> Result<(FleetRow, ReleaseRow)> {
    let unknown = || Problem::not_found(format!("release {:?}", id.chars().take(80).collect::<String>()));
    let row = rows::by_id(app, id).await.map_err(|p| if p.code() == "not_found" { unknown() } else { p })?;
    match allowed_id(app, caller, &row.fleet_id, act).await {
        // Operating systems and agents have routes of their own.
        Ok(_) if row.line()? != Line::App => Err(unknown()),
        Ok(fleet) => Ok((fleet, row)),
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => Err(unknown()),
        Err(problem) => Err(problem),
    }
}

async fn one(app: &App, fleet: &FleetRow, id: &str) -> Result<Json<Release>> {
    let row = rows::by_id(app, id).await?;
    let mut views = views(app, fleet, vec![row]).await?;
    Ok(Json(views.pop().ok_or_else(|| Problem::internal("one release became none"))?))
}

/// Shows a release.
#[utoipa::path(get, path = "/releases/{id}", tag = "releases", params(("id" = String, Path, description = "The release.")),
    responses((status = 200, body = Release), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Release>> {
    let (fleet, row) = release(&app, &caller, &id, Act::Read).await?;
    one(&app, &fleet, &row.id).await
}

/// Changes a release's note or status.
#[utoipa::path(patch, path = "/releases/{id}", tag = "releases", request_body = ReleaseChange,
    params(("id" = String, Path, description = "The release.")),
    responses((status = 200, body = Release), (status = 409, description = "`release_not_draft`"),
        (status = 422, description = "`note_too_long`, `final_invalid`")))]
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Json(change): Json<ReleaseChange>,
) -> Result<Json<Release>> {
    let (fleet, _) = release(&app, &caller, &id, Act::Push).await?;
    if change.r#final.is_some() || change.invalidated.is_some() {
        caller.may(Act::Deploy, Some(&fleet))?;
    }
    if change.r#final == Some(false) {
        return Err(Problem::invalid(
            "final_invalid",
            "A release that is final cannot become a draft again; invalidate it instead.",
        ));
    }
    if let Some(note) = &change.note {
        releases::set_note(&app, &caller, &id, note).await?;
    }
    if change.r#final == Some(true) {
        releases::finalise(&app, &caller, &id).await?;
    }
    if let Some(invalidated) = change.invalidated {
        releases::set_invalidated(&app, &caller, &id, invalidated).await?;
    }
    one(&app, &fleet, &id).await
}

/// The release document with its signatures.
#[utoipa::path(get, path = "/releases/{id}/envelope", tag = "releases",
    params(("id" = String, Path, description = "The release.")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json")))]
pub(crate) async fn document(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response> {
    let (_, row) = release(&app, &caller, &id, Act::Read).await?;
    Ok(envelope(row.envelope).into_response())
}

/// What the builder says it did, signed by it.
#[utoipa::path(get, path = "/releases/{id}/build-record", tag = "releases",
    params(("id" = String, Path, description = "The release.")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json")))]
pub(crate) async fn build_record(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response> {
    release(&app, &caller, &id, Act::Read).await?;
    let bytes: Option<Vec<u8>> = sqlx::query_scalar("SELECT build_record FROM releases WHERE id = $1")
        .bind(&id)
        .fetch_one(app.db.read())
        .await?;
    bytes
        .map(|b| envelope(b).into_response())
        .ok_or_else(|| Problem::not_found("build record of this release"))
}

/// Adds an owner's signatures: the envelope of the same payload with them.
#[utoipa::path(post, path = "/releases/{id}/signatures", tag = "releases",
    params(("id" = String, Path, description = "The release.")),
    request_body(content_type = "application/json", description = "A DSSE envelope of the same payload"),
    responses((status = 200, body = Release),
        (status = 422, description = "`payload_differs`, `E_SIG_MISSING`, `E_SIG_INVALID`, `E_SIG_WRONG_ROLE`, `E_SIG_UNKNOWN_KEY`, `E_ENVELOPE`")))]
pub(crate) async fn sign(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Raw(bytes): Raw,
) -> Result<Json<Release>> {
    let (fleet, _) = release(&app, &caller, &id, Act::Push).await?;
    releases::add_signatures(&app, &caller, &id, &bytes).await?;
    one(&app, &fleet, &id).await
}

async fn views(app: &App, fleet: &FleetRow, found: Vec<ReleaseRow>) -> Result<Vec<Release>> {
    let counts: Vec<(String, i64)> = sqlx::query_as(
        "SELECT committed_release, COUNT(*) FROM devices
         WHERE fleet_id = $1 AND committed_release IS NOT NULL AND state = 'accepted' GROUP BY committed_release",
    )
    .bind(fleet.fleet_id.to_string())
    .fetch_all(app.db.read())
    .await?;
    let counts: HashMap<String, i64> = counts.into_iter().collect();
    let root = fleets::latest_root(app, fleet.fleet_id).await?;
    found
        .into_iter()
        .map(|row| {
            let devices_on = counts.get(&row.id).copied().unwrap_or(0).unsigned_abs();
            view(fleet, root.as_deref(), row, devices_on)
        })
        .collect()
}

fn view(
    fleet: &FleetRow,
    root: Option<&Verified<Root>>,
    row: ReleaseRow,
    devices_on: u64,
) -> Result<Release> {
    let status = row.status()?;
    let document = row.document()?;
    let services = document.services.iter().map(|(name, service)| {
        let images: BTreeMap<_, _> = service
            .images
            .iter()
            .map(|(platform, image)| {
                let image = Image {
                    repo: image.repo.clone(),
                    manifest_digest: image.manifest_digest.to_string(),
                    config_digest: image.config_digest.to_string(),
                    size: image.size,
                };
                (platform.clone(), image)
            })
            .collect();
        let size = images.values().map(|i| i.size).max().unwrap_or(0);
        (name.to_string(), Service { images, size })
    });
    Ok(Release {
        services: services.collect(),
        signed_by: signed_by(root, &row.envelope()?),
        commit: document.commit,
        id: row.id,
        fleet: fleet.slug.clone(),
        counter: row.counter.unsigned_abs(),
        version: row.version,
        source: row.source,
        branch: Some(row.branch).filter(|b| !b.is_empty()),
        status,
        note: row.note,
        size: row.size.unsigned_abs(),
        devices_on,
        build_id: row.build_id,
        created_at: row.created_at.unsigned_abs(),
    })
}

pub(super) fn signed_by(root: Option<&Verified<Root>>, envelope: &Envelope) -> Vec<Signature> {
    let signers = root.map(|r| verify::signers(r, envelope)).unwrap_or_default();
    let view = |keyid: &copal_protocol::ids::KeyId| {
        let role = signers.get(keyid);
        let key = role.and(root).and_then(|r| r.keys.get(keyid));
        Signature {
            keyid: keyid.to_string(),
            role: role.map_or("unknown", |r| r.as_str()).to_owned(),
            label: key.map(|k| k.label.clone()).unwrap_or_default(),
        }
    };
    envelope.signatures().iter().map(|signature| view(&signature.keyid)).collect()
}
