//! Deploying: a release to a fleet, or to some of its devices first.

use std::collections::BTreeMap;

use axum::extract::State;
use copal_protocol::ids::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, device_filter, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::{Problem, Result},
    releases::Line,
    rollouts,
    store::fleets::FleetRow,
};

/// Routes of deploying.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(deploy))
}

/// What to deploy, and where.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deploy {
    /// A release's id, a version, or `latest`: the newest final one, which the fleet then follows.
    #[schema(example = "latest")]
    release: String,
    /// Only these devices, by id: they are pinned to it.
    devices: Vec<String>,
    /// Only devices with all of these tags: they are pinned to it.
    tag: BTreeMap<String, String>,
    /// Only devices that this filter means now (docs/filter.md): they are pinned to it. Not together with `devices` or `tag`;
    /// needs `dry_run` or `expect_count`.
    filter: Option<String>,
    /// Only says how many devices it would concern, and what would be refused.
    dry_run: bool,
    /// Changes nothing when another number of devices would be concerned.
    expect_count: Option<u64>,
}

/// What came of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deployed {
    /// The release's id.
    pub release: String,
    /// Its version.
    pub version: String,
    /// Devices concerned.
    pub devices: u64,
    /// The seq of the assignment each has now, by device id; at most 500, none for a dry run.
    pub seqs: BTreeMap<String, u64>,
    /// Whether nothing was changed.
    pub dry_run: bool,
}

/// Deploys a release.
#[utoipa::path(post, path = "/fleets/{slug}/deploy", tag = "releases", request_body = Deploy,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 200, body = Deployed), (status = 404, description = "`not_found`"),
        (status = 409, description = "`count_mismatch`, `release_is_draft`, `awaiting_signature`, `release_invalidated`, `release_revoked`, `below_floor`, `incompatible`, `release_refused`, `root_missing`"),
        (status = 422, description = "`release_missing`, `filter_alone`, `expect_count_missing`"),
        (status = 400, description = "`filter_invalid`")))]
pub(crate) async fn deploy(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(wanted): Json<Deploy>,
) -> Result<Json<Deployed>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    if wanted.release.is_empty() {
        return Err(Problem::invalid(
            "release_missing",
            "Say which release: its id, its version, or `latest`.",
        ));
    }
    let filtered = match &wanted.filter {
        Some(text) => Some(filtered(&app, &fleet, text, &wanted).await?),
        None => None,
    };
    let deploy = rollouts::Deploy {
        line: Line::App,
        filtered,
        release: wanted.release,
        devices: device_ids(&wanted.devices)?,
        tag: wanted.tag,
        dry_run: wanted.dry_run,
        expect_count: wanted.expect_count,
    };
    run(&app, &caller, &fleet, &deploy).await
}

/// The devices a filter means. It may mean more than who wrote it thinks, so the number must have been seen.
async fn filtered(app: &App, fleet: &FleetRow, text: &str, wanted: &Deploy) -> Result<rollouts::Filtered> {
    let filter = device_filter::read(text)?;
    if !wanted.devices.is_empty() || !wanted.tag.is_empty() {
        return Err(Problem::invalid(
            "filter_alone",
            "Give a filter, or devices and tags: a filter can ask for those as well (`id in (…) and tag.site = paris`).",
        ));
    }
    if !wanted.dry_run && wanted.expect_count.is_none() {
        return Err(Problem::invalid(
            "expect_count_missing",
            "A deployment to a filter says how many devices it expects: ask with `dry_run` first, then give `expect_count`.",
        ));
    }
    let ids = device_filter::all(app, fleet, &filter).await?.into_iter().collect();
    Ok(rollouts::Filtered { filter: filter.to_string(), ids })
}

/// Deploys, and says what came of it.
pub(super) async fn run(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    deploy: &rollouts::Deploy,
) -> Result<Json<Deployed>> {
    let done = rollouts::deploy(app, caller, fleet, deploy).await?;
    Ok(Json(Deployed {
        release: done.release,
        version: done.version,
        devices: done.devices,
        seqs: done.seqs,
        dry_run: deploy.dry_run,
    }))
}

/// Ids of devices as a request spells them.
pub(super) fn device_ids(words: &[String]) -> Result<Vec<DeviceId>> {
    words
        .iter()
        .map(|id| {
            id.parse::<DeviceId>().map_err(|_| {
                Problem::not_found(format!("device {:?}", id.chars().take(80).collect::<String>()))
            })
        })
        .collect()
}
