//! Who the credentials belong to.

use axum::extract::State;
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
    /// What the person is.
    pub role: Role,
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
    Ok(Json(Me { email: caller.email, role: caller.role, scope: caller.scope, token: caller.token, fleet }))
}
