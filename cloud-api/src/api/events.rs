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
    auth::{Act, Caller, Needs, Sees, Watch, bounds::Share},
    bus::Numbered,
    error::{Problem, Result},
};

/// A comment this often keeps proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this long; the browser comes back with its last id, and its credentials are looked at again.
pub(super) const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Streams at once.
const MAX_STREAMS: usize = 1_000;
/// Of one person: a few windows on a few machines.
const MAX_STREAMS_EACH: usize = 100;

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

/// Streams what changes: `device`, `command`, `session`, `release`, `build` and `fleet` events with `{kind, fleet_id, id}` (a command's
/// and a session's have `device_id`, too). With
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
    let (sees, needs) = match &params.fleet {
        Some(slug) => {
            let fleet = allowed(&app, &caller, slug, Act::Read).await?;
            (Sees::Only(vec![fleet.fleet_id]), Needs::May(Act::Read, Box::new(fleet)))
        }
        None => (caller.sees(), Needs::See(caller.sees())),
    };
    let only = match sees {
        Sees::All => None,
        Sees::Only(these) => Some(these.iter().map(ToString::to_string).collect()),
    };
    let place = Place::take(&app, &caller)?;
    // Subscribed before looking back, so that nothing falls in between; what is in both is dropped by its number.
    let live = app.bus.subscribe();
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let (missed, reset) = match last {
        None => (VecDeque::new(), false),
        Some(last) => app.bus.since(last).map_or_else(|| (VecDeque::new(), true), |m| (m.into(), false)),
    };
    let listener = Listener {
        last: last.filter(|_| !reset).unwrap_or(0),
        access: Watch::new(&app, &caller, needs),
        app,
        only,
        missed,
        reset,
        live,
        until: Instant::now() + LIFETIME,
        _place: place,
    };
    Ok(streamed(frames(listener)))
}

/// Frames as a response that nothing on the way collects.
pub(super) fn streamed(frames: impl Stream<Item = Result<Frame, Infallible>> + Send + 'static) -> Response {
    let sse = Sse::new(frames).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here"));
    let mut response = sse.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that would collect a stream before they pass it on.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// One listener's place.
pub(super) struct Place {
    _own: Share,
}

impl Place {
    pub(super) fn take(app: &App, caller: &Caller) -> Result<Self> {
        let full = |why: &str| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", why).retry_after(30)
        };
        let own = app.auth.listeners.take(&caller.user_id, MAX_STREAMS_EACH);
        let own = own.ok_or_else(|| full("You listen as often as one person may at once; end one."))?;
        if STREAMS.fetch_add(1, Relaxed) >= MAX_STREAMS {
            STREAMS.fetch_sub(1, Relaxed);
            return Err(full("Too many listeners at once; try again later."));
        }
        Ok(Self { _own: own })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Relaxed);
    }
}

struct Listener {
    app: App,
    /// Of these fleets, by id; `None`: of all.
    only: Option<Vec<String>>,
    missed: VecDeque<Numbered>,
    reset: bool,
    live: Receiver<Numbered>,
    /// The greatest number sent.
    last: u64,
    until: Instant,
    access: Watch,
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
            // What came and was not read yet is not for who may not see it any more.
            if self.access.is_lost() {
                return None;
            }
            if std::mem::take(&mut self.reset) {
                return Some(Frame::default().event("reset").data("{}"));
            }
            let numbered = match self.missed.pop_front() {
                Some(numbered) => numbered,
                None => {
                    let received = tokio::select! {
                        received = self.live.recv() => received,
                        () = tokio::time::sleep_until(self.until) => return None,
                        _ = self.access.lost() => return None,
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
            if self.only.as_ref().is_some_and(|only| !only.iter().any(|own| own == numbered.event.fleet_id()))
            {
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

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use futures_util::StreamExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        auth::{Role, Scope},
        bus::Event,
        store::fleets,
        testing::Cloud,
    };

    async fn open(cloud: &Cloud, token: &str, query: &str, last: Option<u64>) -> Response {
        let mut request = Request::get(format!("/api/v1/events{query}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        cloud.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// Frames until `n` events came.
    async fn read(response: Response, n: usize) -> String {
        let mut text = String::new();
        let mut stream = response.into_body().into_data_stream();
        while text.matches("event:").count() < n {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
        text
    }

    fn device(fleet: &str, id: &str) -> Event {
        Event::Device { fleet_id: fleet.to_owned(), id: id.to_owned() }
    }

    #[tokio::test]
    async fn what_was_missed_comes_first_then_what_happens() {
        let cloud = Cloud::new().await;
        let anna = cloud.user("anna@example.org", Role::Viewer).await;
        let mut live = cloud.app.bus.subscribe();
        for id in ["a", "b"] {
            cloud.app.bus.publish(device("f", id));
        }
        let seen = live.recv().await.unwrap().id;
        let stream = open(&cloud, &anna, "", Some(seen)).await;
        assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
        cloud.app.bus.publish(device("f", "c"));
        let text = read(stream, 2).await;
        assert!(!text.contains("\"id\":\"a\""), "{text}");
        assert!(text.contains(&format!("id: {}", seen + 1)), "{text}");
        assert!(text.contains("event: device\n"), "{text}");
        let (b, c) = (text.find("\"id\":\"b\"").unwrap(), text.find("\"id\":\"c\"").unwrap());
        assert!(b < c);
        let lost = open(&cloud, &anna, "", Some(1)).await;
        assert!(read(lost, 1).await.contains("event: reset"));
    }

    #[tokio::test]
    async fn a_listener_hears_of_its_fleets_alone_and_ends_with_the_cloud() {
        let cloud = Cloud::new().await;
        let anna = cloud.user("anna@example.org", Role::Owner).await;
        for slug in ["mine", "other"] {
            let body = serde_json::json!({"slug": slug, "device_type": "generic", "arch": "amd64"});
            cloud.call("POST", "/api/v1/fleets", &anna, Some(body)).await;
        }
        let mine = fleets::by_slug(&cloud.app, "mine").await.unwrap().fleet_id;
        let other = fleets::by_slug(&cloud.app, "other").await.unwrap().fleet_id;
        let narrow = cloud.token("bob@example.org", Role::Viewer, Scope::Read, Some(mine)).await;
        let max = cloud.user("max@example.org", Role::Member).await;
        let member = "/api/v1/fleets/mine/members/max@example.org";
        cloud.call("PUT", member, &anna, Some(serde_json::json!({"role": "viewer"}))).await;
        for (token, query) in [(&anna, "?fleet=mine"), (&narrow, ""), (&max, "")] {
            let stream = open(&cloud, token, query, None).await;
            cloud.app.bus.publish(device(&other.to_string(), "theirs"));
            cloud.app.bus.publish(device(&mine.to_string(), "ours"));
            let text = read(stream, 1).await;
            assert!(text.contains("ours") && !text.contains("theirs"), "{text}");
        }
        assert_eq!(open(&cloud, &narrow, "?fleet=other", None).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(open(&cloud, "", "", None).await.status(), StatusCode::UNAUTHORIZED);
        for (token, query, lost) in [
            (&max, "", "DELETE FROM members"),
            (&narrow, "?fleet=mine", "UPDATE users SET disabled_at = 1 WHERE email = 'bob@example.org'"),
        ] {
            let stream = open(&cloud, token, query, None).await;
            let mut tx = cloud.app.db.write().await.unwrap();
            sqlx::query(lost).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            let next = stream.into_body().into_data_stream().next().await;
            assert!(next.is_none(), "its end comes before the first sign of life: {lost}");
        }
        let stream = open(&cloud, &anna, "", None).await;
        cloud.app.stopping.cancel();
        assert!(stream.into_body().into_data_stream().next().await.is_none());
    }
}
