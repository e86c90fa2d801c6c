//! Holding terminals back, and ending many at once.

use axum::extract::State;
use copal_protocol::ids::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, Query, devices::device, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::{Problem, Result},
    store::fleets::FleetRow,
    terminal::brake,
};

/// Routes of many terminals.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(fleet, set_fleet))
        .routes(routes!(server, set_server))
        .routes(routes!(kill_fleet))
        .routes(routes!(kill_server))
}

/// Whether new terminals are held back. Where they are not, the fleet's Root and the device's own policy file decide.
#[derive(Debug, Serialize, ToSchema)]
pub struct Terminals {
    /// No new ones are opened.
    pub stopped: bool,
    /// By whom, the server's admins first.
    pub by: Vec<Stopped>,
}

/// Who holds them back.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stopped {
    /// `server` or `fleet`.
    pub on: String,
    /// Who did it.
    pub who: String,
    /// Why, in their words.
    pub why: String,
    /// Since when, Unix seconds.
    pub since: u64,
}

/// What is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTerminals {
    /// No new ones from now on. Those that are open go on; end them with `DELETE …/sessions`.
    pub stopped: bool,
}

/// What became of sessions that were to end.
#[derive(Debug, Serialize, ToSchema)]
pub struct Killed {
    /// Those that ended.
    pub ended: Vec<String>,
    /// Those that were told to, and had not ended 5 s later.
    pub left: Vec<String>,
}

async fn shown(app: &App, of: Option<&FleetRow>) -> Result<Json<Terminals>> {
    let brakes = brake::of(app, of.map(|f| f.fleet_id)).await?;
    let by: Vec<Stopped> = brakes
        .into_iter()
        .map(|brake| Stopped {
            on: if brake.is_servers() { "server" } else { "fleet" }.to_owned(),
            who: brake.who,
            why: brake.why,
            since: brake.created_at.unsigned_abs(),
        })
        .collect();
    Ok(Json(Terminals { stopped: !by.is_empty(), by }))
}

/// Shows whether new terminals are held back on a fleet.
#[utoipa::path(get, path = "/fleets/{slug}/terminals", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet.")), responses((status = 200, body = Terminals)))]
pub(crate) async fn fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Json<Terminals>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    shown(&app, Some(&fleet)).await
}

/// Holds new terminals on a fleet back, or no longer; for the fleet's admins. It never allows what the fleet's Root does not.
#[utoipa::path(put, path = "/fleets/{slug}/terminals", tag = "terminal", request_body = SetTerminals,
    params(("slug" = String, Path, description = "The fleet.")), responses((status = 200, body = Terminals)))]
pub(crate) async fn set_fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(asked): Json<SetTerminals>,
) -> Result<Json<Terminals>> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    brake::set(&app, &caller, Some(&fleet), asked.stopped).await?;
    shown(&app, Some(&fleet)).await
}

/// Shows whether new terminals are held back on the whole server.
#[utoipa::path(get, path = "/terminals", tag = "terminal", responses((status = 200, body = Terminals)))]
pub(crate) async fn server(State(app): State<App>, caller: Caller) -> Result<Json<Terminals>> {
    caller.may(Act::Read, None)?;
    shown(&app, None).await
}

/// Holds new terminals on the whole server back, or no longer; for its admins.
#[utoipa::path(put, path = "/terminals", tag = "terminal", request_body = SetTerminals,
    responses((status = 200, body = Terminals)))]
pub(crate) async fn set_server(
    State(app): State<App>,
    caller: Caller,
    Json(asked): Json<SetTerminals>,
) -> Result<Json<Terminals>> {
    caller.may(Act::Manage, None)?;
    brake::set(&app, &caller, None, asked.stopped).await?;
    shown(&app, None).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct KillParams {
    /// Only those of this device.
    device: Option<String>,
}

/// Ends every session of a fleet at once, or of one of its devices; needs the role operator. Each stands in the audit log.
#[utoipa::path(delete, path = "/fleets/{slug}/sessions", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), KillParams),
    responses((status = 200, body = Killed), (status = 404, description = "`not_found`")))]
pub(crate) async fn kill_fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(params): Query<KillParams>,
) -> Result<Json<Killed>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let of: Option<DeviceId> = match params.device {
        Some(id) => {
            let (found, row) = device(&app, &caller, &id, Act::Read).await?;
            if found.slug != slug {
                return Err(Problem::not_found("such device in this fleet"));
            }
            Some(row.id()?)
        }
        None => None,
    };
    let (ended, left) = brake::kill_all(&app, &caller, Some(fleet.fleet_id), of).await?;
    Ok(Json(Killed { ended, left }))
}

/// Ends every session of the whole server at once; for its admins. Each stands in the audit log.
#[utoipa::path(delete, path = "/sessions", tag = "terminal", responses((status = 200, body = Killed)))]
pub(crate) async fn kill_server(State(app): State<App>, caller: Caller) -> Result<Json<Killed>> {
    caller.may(Act::Manage, None)?;
    let (ended, left) = brake::kill_all(&app, &caller, None, None).await?;
    Ok(Json(Killed { ended, left }))
}
