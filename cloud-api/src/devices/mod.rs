//! Devices: what they ask and what they report.

use copal_protocol::ids::{DeviceId, FleetId};
use http::HeaderMap;

use crate::{
    app::App,
    error::{Problem, Result},
};

/// A device that logged in and may still speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSession {
    /// The device.
    pub device_id: DeviceId,
    /// Its fleet.
    pub fleet_id: FleetId,
}

/// Who speaks, by `Authorization: Bearer`. Needs no database. Used by the registry too.
///
/// # Errors
/// 401 `token_invalid`, 403 `device_revoked`.
pub async fn session(app: &App, headers: &HeaderMap) -> Result<DeviceSession> {
    let _ = (app, headers);
    Err(Problem::unauthorized("token_invalid", "The token is unknown or has expired; log in again."))
}

/// The device routes, `/device/v1/…`.
pub fn router() -> axum::Router<App> {
    axum::Router::new()
}
