//! Variables and secrets of fleets and devices. A secret value goes in and never comes out.

use axum::{extract::State, http::StatusCode};
use copal_protocol::ids::{DeviceId, Name};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, Query, devices::device, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::{Problem, Result},
    store::fleets::FleetRow,
    variables::{self, Scope},
};

/// Routes of variables.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_of_fleet, set_on_fleet, unset_on_fleet)).routes(routes!(
        list_of_device,
        set_on_device,
        unset_on_device
    ))
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The only service that gets it; null: every service.
    pub service: Option<String>,
    /// Whether its value is secret.
    pub secret: bool,
    /// Its value; null for a secret one.
    pub value: Option<String>,
    /// Unix seconds.
    pub updated_at: u64,
}

/// What to set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetVariable {
    /// Letters, digits, `_`, `.` and `-`, beginning with a letter or `_`, at most 128.
    name: String,
    /// At most 32 KiB.
    value: String,
    /// Only for this service.
    #[serde(default)]
    service: Option<String>,
    /// Sealed to each device, and never shown again.
    #[serde(default)]
    secret: bool,
}

/// Which one.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// Its name.
    name: String,
    /// The service it is set for; left out: that for every service.
    service: Option<String>,
}

/// Variables of a fleet.
#[utoipa::path(get, path = "/fleets/{slug}/variables", tag = "variables",
    params(("slug" = String, Path, description = "The fleet.")), responses((status = 200, body = Vec<Variable>)))]
pub(crate) async fn list_of_fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Json<Vec<Variable>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    list(&app, &fleet, None).await
}

/// Sets a variable of a fleet, or of one of its services.
#[utoipa::path(put, path = "/fleets/{slug}/variables", tag = "variables", request_body = SetVariable,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 204), (status = 422, description = "`E_ENV_DENIED`, `E_ENV_UNDECLARED`, `variable_name_invalid`, `variable_value_invalid`, `too_many_variables`, `service_invalid`")))]
pub(crate) async fn set_on_fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(set): Json<SetVariable>,
) -> Result<StatusCode> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    put(&app, &caller, &fleet, None, &set).await
}

/// Removes a variable of a fleet, or of one of its services.
#[utoipa::path(delete, path = "/fleets/{slug}/variables", tag = "variables",
    params(("slug" = String, Path, description = "The fleet."), Which),
    responses((status = 204), (status = 404, description = "`not_found`")))]
pub(crate) async fn unset_on_fleet(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(which): Query<Which>,
) -> Result<StatusCode> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    remove(&app, &caller, &fleet, None, &which).await
}

/// Variables of a device itself; those of its fleet apply as well.
#[utoipa::path(get, path = "/devices/{id}/variables", tag = "variables",
    params(("id" = String, Path, description = "The device.")), responses((status = 200, body = Vec<Variable>)))]
pub(crate) async fn list_of_device(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Vec<Variable>>> {
    let (fleet, row) = device(&app, &caller, &id, Act::Read).await?;
    list(&app, &fleet, Some(row.id()?)).await
}

/// Sets a variable of a device, or of a service on it; it wins over its fleet's.
#[utoipa::path(put, path = "/devices/{id}/variables", tag = "variables", request_body = SetVariable,
    params(("id" = String, Path, description = "The device.")),
    responses((status = 204), (status = 422, description = "As for a fleet")))]
pub(crate) async fn set_on_device(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Json(set): Json<SetVariable>,
) -> Result<StatusCode> {
    let (fleet, row) = device(&app, &caller, &id, Act::Deploy).await?;
    put(&app, &caller, &fleet, Some(row.id()?), &set).await
}

/// Removes a variable of a device, or of a service on it.
#[utoipa::path(delete, path = "/devices/{id}/variables", tag = "variables",
    params(("id" = String, Path, description = "The device."), Which),
    responses((status = 204), (status = 404, description = "`not_found`")))]
pub(crate) async fn unset_on_device(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(which): Query<Which>,
) -> Result<StatusCode> {
    let (fleet, row) = device(&app, &caller, &id, Act::Deploy).await?;
    remove(&app, &caller, &fleet, Some(row.id()?), &which).await
}

async fn list(app: &App, fleet: &FleetRow, device: Option<DeviceId>) -> Result<Json<Vec<Variable>>> {
    let found = variables::list(app, fleet, device).await?;
    Ok(Json(
        found
            .into_iter()
            .map(|v| Variable {
                value: (!v.secret).then(|| String::from_utf8_lossy(&v.value).into_owned()),
                name: v.name,
                service: Some(v.service).filter(|s| !s.is_empty()),
                secret: v.secret,
                updated_at: v.updated_at.unsigned_abs(),
            })
            .collect(),
    ))
}

async fn put(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: Option<DeviceId>,
    set: &SetVariable,
) -> Result<StatusCode> {
    let scope = Scope { device, service: service(set.service.as_deref())? };
    variables::set(app, caller, fleet, &scope, &set.name, &set.value, set.secret).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: Option<DeviceId>,
    which: &Which,
) -> Result<StatusCode> {
    let scope = Scope { device, service: service(which.service.as_deref())? };
    if variables::unset(app, caller, fleet, &scope, &which.name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found(format!("variable {:?} here", which.name.chars().take(80).collect::<String>())))
}

fn service(name: Option<&str>) -> Result<Option<Name>> {
    name.filter(|n| !n.is_empty())
        .map(|n| n.parse().map_err(|e| Problem::invalid("service_invalid", format!("{e}"))))
        .transpose()
}
