//! Server-sent events: what changed, as it changes. An event names what to look at again, never what it is now.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event as Frame, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Query, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    bus::Numbered,
    error::{Problem, Result},
};

/// A comment this often keeps proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this long; the browser comes back with its last id, and its credentials are looked at again.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Streams at once.
const MAX_STREAMS: usize = 1_000;

static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// Routes of events.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(events))
}

/// What to hear of.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Params {
    /// Only of this fleet.
    fleet: Option<String>,
}

/// Streams what changes: `device`, `release`, `build` and `fleet` events with `{kind, fleet_id, id}`. With
/// `Last-Event-ID` what was missed comes first; a `reset` event says that too much was, and everything is to be read
/// again.
#[utoipa::path(get, path = "/events", tag = "events", params(Params),
    responses((status = 200, description = "A stream of events", content_type = "text/event-stream"),
        (status = 503, description = "`too_many_streams`")))]
pub(crate) async fn events(
    State(app): State<App>,
    caller: Caller,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response> {
    let fleet = match &params.fleet {
        Some(slug) => Some(allowed(&app, &caller, slug, Act::Read).await?.fleet_id),
        None => {
            caller.may(Act::Read, None)?;
            caller.fleet
        }
    };
    let place = Place::take()?;
    // Subscribed before looking back, so that nothing falls in between; what is in both is dropped by its number.
    let live = app.bus.subscribe();
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let (missed, reset) = match last {
        None => (VecDeque::new(), false),
        Some(last) => app.bus.since(last).map_or_else(|| (VecDeque::new(), true), |m| (m.into(), false)),
    };
    let listener = Listener {
        last: last.filter(|_| !reset).unwrap_or(0),
        app,
        fleet: fleet.map(|f| f.to_string()),
        missed,
        reset,
        live,
        until: Instant::now() + LIFETIME,
        _place: place,
    };
    let sse = Sse::new(frames(listener)).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here"));
    let mut response = sse.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that would collect a stream before they pass it on.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

struct Place;

impl Place {
    fn take() -> Result<Self> {
        if STREAMS.fetch_add(1, Relaxed) >= MAX_STREAMS {
            STREAMS.fetch_sub(1, Relaxed);
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_streams",
                "Too many listeners at once; try again later.",
            )
            .retry_after(30));
        }
        Ok(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Relaxed);
    }
}

struct Listener {
    app: App,
    fleet: Option<String>,
    missed: VecDeque<Numbered>,
    reset: bool,
    live: Receiver<Numbered>,
    /// The greatest number sent.
    last: u64,
    until: Instant,
    _place: Place,
}

fn frames(listener: Listener) -> impl Stream<Item = Result<Frame, Infallible>> {
    stream::unfold(listener, |mut listener| async move {
        let frame = listener.next().await?;
        Some((Ok(frame), listener))
    })
}

impl Listener {
    /// The next frame; `None` ends the stream.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if std::mem::take(&mut self.reset) {
                return Some(Frame::default().event("reset").data("{}"));
            }
            let numbered = match self.missed.pop_front() {
                Some(numbered) => numbered,
                None => {
                    let received = tokio::select! {
                        received = self.live.recv() => received,
                        () = tokio::time::sleep_until(self.until) => return None,
                        () = self.app.stopping.cancelled() => return None,
                    };
                    match received {
                        Ok(numbered) => numbered,
                        Err(RecvError::Lagged(_)) => {
                            self.reset = true;
                            continue;
                        }
                        Err(RecvError::Closed) => return None,
                    }
                }
            };
            if numbered.id <= self.last {
                continue;
            }
            self.last = numbered.id;
            if self.fleet.as_deref().is_some_and(|own| own != numbered.event.fleet_id()) {
                continue;
            }
            return frame(&numbered);
        }
    }
}

fn frame(numbered: &Numbered) -> Option<Frame> {
    let data = serde_json::to_string(&numbered.event).ok()?;
    let kind = serde_json::to_value(&numbered.event).ok()?["kind"].as_str()?.to_owned();
    Some(Frame::default().id(numbered.id.to_string()).event(kind).data(data))
}
