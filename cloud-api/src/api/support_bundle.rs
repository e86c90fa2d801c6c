//! A device's support bundle, as it comes over the channel.

use std::{io, time::Instant};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use copal_protocol::channel::StreamOf;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Path, devices::device};
use crate::{
    app::App,
    audit,
    auth::{Act, Caller},
    channel::{Came, CloudStream},
    error::{Problem, Result},
};

/// The most bytes of a bundle; devices keep to less.
const MOST: usize = 16 << 20;

/// Routes of support bundles.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(create))
}

/// Lets a device make a support bundle and passes it on: a `tar.gz` with health checks, status, logs and settings, from which the device
/// took what is secret. Now or not at all; one at a time of a device. A body that ends early is no bundle.
#[utoipa::path(post, path = "/fleets/{slug}/devices/{id}/support-bundle", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device.")),
    responses((status = 200, description = "The bundle", content_type = "application/gzip", body = Vec<u8>),
        (status = 409, description = "`device_away`, `no_websocket`, `not_supported`, `busy`"),
        (status = 404, description = "`not_found`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Response> {
    let (fleet, row) = device(&app, &caller, &id, Act::Deploy).await?;
    if fleet.slug != slug {
        return Err(Problem::not_found("such device in this fleet"));
    }
    let device = row.id()?;
    app.auth.reads.take(&caller.user_id, Instant::now())?;
    let mut tx = app.db.write().await?;
    audit::record(&mut tx, &caller, "device.support_bundle", &format!("device:{id}"), json!({})).await?;
    tx.commit().await?;
    let stream = app.channels.open_stream(device, StreamOf::Bundle {}, &caller.user_id).await?;
    // Nothing was answered yet: what goes wrong while it is made can be told.
    let first = match stream.recv().await {
        Came::Data(bytes) => bytes,
        Came::Closed(closed) if closed.code == "device_away" => {
            return Err(Problem::conflict(
                "device_away",
                "The device went away while it made the bundle. Try again.",
            ));
        }
        Came::Closed(closed) => {
            let said: String = copal_protocol::text::inert(&closed.message).chars().take(500).collect();
            return Err(Problem::conflict("bundle_failed", format!("The device made no bundle: {said}")));
        }
    };
    let body = Body::from_stream(futures_util::stream::try_unfold(
        Passing { stream, first: Some(first), passed: 0 },
        Passing::next,
    ));
    let name = format!("copal-support-{}.tar.gz", &id[..id.len().min(12)]);
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let disposition = format!("attachment; filename=\"{name}\"");
    headers.insert(header::CONTENT_DISPOSITION, disposition.parse().map_err(Problem::internal)?);
    Ok(response)
}

/// A bundle on its way.
struct Passing {
    stream: CloudStream,
    first: Option<Bytes>,
    passed: usize,
}

impl Passing {
    /// The next piece; none where it is whole. Anything else breaks the answer off, so that nobody takes a part for the whole.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let came = match self.first.take() {
            Some(bytes) => Came::Data(bytes),
            None => self.stream.recv().await,
        };
        match came {
            Came::Data(bytes) => {
                self.passed += bytes.len();
                if self.passed > MOST {
                    return Err(io::Error::other("the bundle is larger than it may be"));
                }
                Ok(Some((bytes, self)))
            }
            Came::Closed(closed) if closed.code == "ended" => Ok(None),
            Came::Closed(closed) => Err(io::Error::other(format!("the bundle broke off: {}", closed.code))),
        }
    }
}
