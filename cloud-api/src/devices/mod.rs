//! Devices: what they ask and what they report.
//!
//! In: requests of devices (`/device/v1`), changes of their rows by people. Out: sessions, signed bytes from the database,
//! state derived from signed reports. Never here: what a device should run (`assignments/`), and no database on the path
//! of a poll that finds nothing new.
//!
//! | file | what it does |
//! |---|---|
//! | [`memory`] | where each device stands, its assignment's hash, who is logged in |
//! | `enrol`, `login`, `challenge` | how a device gets in |
//! | [`state`], `documents`, `report` | what it asks and says |
//! | `presence` | who is online |
//! | `advice` | what a person can do about a reason |
//! | `standing` | on target or not, and the one reason |
//! | `rows` | the database |
//! | `select` | a filter as the condition of a query |
//! | `limit` | how often |

pub(crate) mod advice;
mod challenge;
pub(crate) mod documents;
mod enrol;
pub(crate) mod limit;
mod login;
pub mod memory;
pub(crate) mod presence;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod select;
pub(crate) mod standing;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use axum::{
    extract::{DefaultBodyLimit, FromRequest, Request},
    routing::{get, post},
};
use copal_protocol::{
    documents::{Document as _, Report},
    ids::{DeviceId, FleetId},
    json,
};
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

pub(crate) use enrol::clean_name;
pub use enrol::token_place;
pub use memory::Memory;
pub(crate) use presence::heard;
pub use presence::run;

use crate::{
    app::App,
    auth,
    error::{Problem, Result},
    store::Tx,
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
    let entry = app.devices.session(headers)?;
    presence::heard(app, &entry);
    Ok(DeviceSession { device_id: entry.device_id, fleet_id: entry.fleet_id })
}

/// Forgets every refresh link, in a database that was restored from a back-up: devices hold newer links than it knows,
/// and would all be taken for clones.
///
/// # Errors
/// When the database fails.
pub async fn forget_links(tx: &mut Tx) -> sqlx::Result<()> {
    sqlx::query("UPDATE devices SET link_hash = NULL, link_previous_hash = NULL").execute(&mut **tx).await?;
    Ok(())
}

/// The device routes, `/device/v1/…`.
pub fn router() -> axum::Router<App> {
    let small = 16 << 10;
    axum::Router::new()
        .route("/device/v1/enrol", post(enrol::enrol).layer(DefaultBodyLimit::max(small)))
        .route("/device/v1/challenge", post(login::challenge).layer(DefaultBodyLimit::max(small)))
        .route("/device/v1/login", post(login::login).layer(DefaultBodyLimit::max(small)))
        .route("/device/v1/roots/{version}", get(documents::root))
        .route("/device/v1/state", get(state::state))
        .route("/device/v1/releases/{id}", get(documents::release))
        .route("/device/v1/blobs/{sha256}", get(documents::blob))
        .route("/device/v1/freshness", post(documents::freshness).layer(DefaultBodyLimit::max(small)))
        .route(
            "/device/v1/report",
            // One byte more than allowed gets as far as our own refusal, which has the code devices know.
            post(report::report).layer(DefaultBodyLimit::max(Report::MAX_BYTES + 1)),
        )
}

/// A JSON body parsed as strictly as signed documents are: no duplicate keys, no unknown fields, bounded depth.
#[derive(Debug)]
pub(crate) struct Strict<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Strict<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let bytes = axum::body::Bytes::from_request(request, app).await.map_err(|e| {
            let status = e.status();
            let code =
                if status == StatusCode::PAYLOAD_TOO_LARGE { "body_too_large" } else { "body_unreadable" };
            Problem::new(status, code, e.body_text())
        })?;
        json::from_slice(&bytes, json::ENVELOPE_DEPTH).map(Self).map_err(|e| {
            Problem::bad_request("body_malformed", format!("The body is not what this route takes: {e}."))
        })
    }
}

/// Where a request came from, as far as the outermost layer knows.
fn peer(headers: &HeaderMap) -> String {
    headers.get(auth::PEER_HEADER).and_then(|v| v.to_str().ok()).unwrap_or("unknown").to_owned()
}
