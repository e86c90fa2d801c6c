//! Who the credentials belong to.

use std::collections::BTreeMap;

use axum::extract::State;
use copal_protocol::ids::FleetId;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Json;
use crate::{
    app::App,
    auth::{Caller, Role, Scope},
    error::Result,
    store::fleets,
};

/// Routes of oneself.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(me))
}

/// Whose credentials were shown, and what they allow.
#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    /// The address.
    pub email: String,
    /// What the person is on the whole server.
    pub role: Role,
    /// What the person is on single fleets, by their names, beside that; the greater of the two counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fleets: BTreeMap<String, Role>,
    /// What the credentials allow of that.
    pub scope: Scope,
    /// The name of the token, where one was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The only fleet the token opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
}

/// Shows whose credentials these are.
#[utoipa::path(get, path = "/me", tag = "people", responses((status = 200, body = Me)))]
pub(crate) async fn me(State(app): State<App>, caller: Caller) -> Result<Json<Me>> {
    let fleet = match caller.fleet {
        Some(id) => Some(fleets::by_id(&app, id).await?.slug),
        None => None,
    };
    let mut on_fleets = (*caller.on_fleets).clone();
    on_fleets.retain(|id, _| caller.fleet.is_none_or(|own| own == *id));
    Ok(Json(Me {
        email: caller.email,
        role: caller.role,
        fleets: named(&app, &on_fleets).await?,
        scope: caller.scope,
        token: caller.token,
        fleet,
    }))
}

/// Roles on fleets, by the fleets' names.
///
/// # Errors
/// When the database fails.
pub(super) async fn named(app: &App, on_fleets: &BTreeMap<FleetId, Role>) -> Result<BTreeMap<String, Role>> {
    let mut roles = BTreeMap::new();
    for (id, role) in on_fleets {
        roles.insert(fleets::by_id(app, *id).await?.slug, *role);
    }
    Ok(roles)
}
