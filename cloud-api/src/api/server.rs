//! What the CLI needs to know about this server.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Json;
use crate::{app::App, auth::Caller, error::Result};

/// Routes of the server itself.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(server))
}

/// This server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Server {
    /// Its version.
    pub version: String,
    /// The base URL of people and devices.
    pub url: String,
    /// What devices pin: base64 SHA-256 of the private CA's public key; empty under a public CA.
    pub tls_pins: Vec<String>,
    /// Public key of the builder role, base64.
    pub builder_key: String,
    /// Public key of the assign role, base64.
    pub assign_key: String,
    /// Fingerprint (keyid) of the builder key.
    pub builder_keyid: String,
    /// Fingerprint (keyid) of the assign key.
    pub assign_keyid: String,
    /// A fleet's repository is `<git_base>/<slug>.git`.
    pub git_base: String,
}

/// Shows the server's address, pins and public keys, whose fingerprints an owner confirms before signing a root.
#[utoipa::path(get, path = "/server", tag = "server", responses((status = 200, body = Server)))]
pub(crate) async fn server(State(app): State<App>, _: Caller) -> Result<Json<Server>> {
    Ok(Json(Server {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: app.config.url.clone(),
        tls_pins: app.config.tls_pins.clone(),
        builder_key: app.keys.builder.public().to_string(),
        assign_key: app.keys.assign.public().to_string(),
        builder_keyid: app.keys.builder.public().id().to_string(),
        assign_keyid: app.keys.assign.public().id().to_string(),
        git_base: format!("{}/git", app.config.url),
    }))
}
