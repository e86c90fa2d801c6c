//! Signed documents a device asks for: roots, releases, freshness.

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use copal_protocol::{
    device_api::FreshnessRequest,
    documents::{Freshness, SPEC},
    envelope::Envelope,
    ids::{Digest, Sha256Hex},
};

use super::{Strict, presence};
use crate::{
    app::{self, App},
    blobs::range::{self, Asked},
    error::{Problem, Result},
    releases,
};

/// An envelope's bytes as an answer.
pub(crate) fn envelope(bytes: Vec<u8>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Bytes::from(bytes))
}

/// One version of the fleet's Root.
pub(super) async fn root(
    State(app): State<App>,
    Path(version): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse> {
    let entry = app.devices.session(&headers)?;
    presence::heard(&app, &entry);
    let unknown = || {
        Problem::new(http::StatusCode::NOT_FOUND, "root_unknown", "The fleet has no Root of this version.")
    };
    let version: i64 = version.parse().map_err(|_| unknown())?;
    let bytes: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT envelope FROM roots WHERE fleet_id = $1 AND version = $2")
            .bind(entry.fleet_id.to_string())
            .bind(version)
            .fetch_optional(app.db.read())
            .await?;
    bytes.map(envelope).ok_or_else(unknown)
}

/// A release this device may have: assigned to it, committed on it, or an app release final in its fleet.
pub(super) async fn release(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse> {
    let entry = app.devices.session(&headers)?;
    presence::heard(&app, &entry);
    let unknown = || {
        Problem::new(
            http::StatusCode::NOT_FOUND,
            "release_unknown",
            "There is no such release, or it is not for this device.",
        )
    };
    let id: Sha256Hex = id.parse().map_err(|_| unknown())?;
    let bytes: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT r.envelope FROM releases r WHERE r.id = $1 AND r.fleet_id = $2 AND (
            (r.line = 'app' AND r.status = 'final')
            OR EXISTS (SELECT 1 FROM assignments a
                WHERE a.device_id = $3 AND r.id IN (a.release_id, a.os_id, a.agent_id))
            OR EXISTS (SELECT 1 FROM devices d
                WHERE d.device_id = $3 AND r.id IN (d.committed_release, d.running_os, d.running_agent)))",
    )
    .bind(id.to_string())
    .bind(entry.fleet_id.to_string())
    .bind(entry.device_id.to_string())
    .fetch_optional(app.db.read())
    .await?;
    bytes.map(envelope).ok_or_else(unknown)
}

/// A blob of an operating system or agent assigned to this device, whole or one range of it.
pub(super) async fn blob(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let entry = app.devices.session(&headers)?;
    presence::heard(&app, &entry);
    let unknown = || {
        Problem::new(
            http::StatusCode::NOT_FOUND,
            "blob_unknown",
            "There is no such blob, or nothing assigned to this device names it.",
        )
    };
    let id: Sha256Hex = id.parse().map_err(|_| unknown())?;
    let digest = Digest::from_bytes(*id.as_bytes());
    let device = entry.device_id.to_string();
    let size = releases::host::blob_for(&app, &device, &digest).await?.ok_or_else(unknown)?;
    let refused = |detail: String| {
        let problem = Problem::new(http::StatusCode::RANGE_NOT_SATISFIABLE, "range_invalid", detail);
        let mut response = problem.into_response();
        let length = HeaderValue::try_from(format!("bytes */{size}")).map_err(Problem::internal)?;
        response.headers_mut().insert(header::CONTENT_RANGE, length);
        Ok(response)
    };
    let range = match range::asked(&headers, &digest, size) {
        Asked::Whole => None,
        Asked::One(range) => Some(range),
        Asked::Several => return refused("One range at a time: `bytes=first-last`.".to_owned()),
        Asked::Unsatisfiable => return refused(format!("The blob has {size} bytes.")),
    };
    metrics::counter!("copal_device_blob_requests_total").increment(1);
    Ok(range::respond(&app, &digest, size, range, false).await?)
}

/// The cloud's word, against the device's nonce, which assignment is the newest.
pub(super) async fn freshness(
    State(app): State<App>,
    headers: HeaderMap,
    Strict(request): Strict<FreshnessRequest>,
) -> Result<impl IntoResponse> {
    let entry = app.devices.session(&headers)?;
    presence::heard(&app, &entry);
    let mark = entry.facts().mark;
    let mark = mark.ok_or_else(|| {
        Problem::conflict(
            "no_assignment",
            "There is no assignment for this device yet, so nothing to vouch for.",
        )
    })?;
    let document = Freshness {
        spec: SPEC,
        fleet_id: entry.fleet_id,
        device_id: entry.device_id,
        nonce: request.nonce,
        assignment_sha256: mark.sha256,
        assign_epoch: mark.epoch,
        seq: mark.seq,
        time: app::now(),
        ext: None,
    };
    let signed = Envelope::sign(&document, &[&app.keys.assign]).map_err(Problem::internal)?;
    Ok(envelope(signed.to_bytes()))
}
