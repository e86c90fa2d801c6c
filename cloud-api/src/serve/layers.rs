//! What every request passes through, outermost first: request id and log, the peer's address, a net for panics,
//! problems with their request id, security headers, bounds.

use std::time::{Duration, Instant};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower_http::{catch_panic::CatchPanicLayer, timeout::RequestBodyTimeoutLayer};
use tracing::Instrument as _;

use crate::{
    api::metrics,
    app::App,
    auth,
    error::{Problem, Result},
};

/// The most bytes of a body, where a route sets no other bound.
pub const MAX_BODY: usize = 1 << 20;

/// How long a body may stand still.
const BODY_IDLE: Duration = Duration::from_secs(60);

/// How long a request of `/api/v1` may take until its answer begins. Uploads take as long as the line is slow; they are
/// bounded by their size, and by how long they may stand still.
const API_TIME: Duration = Duration::from_secs(60);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps the joined routers.
pub fn around(rooms: Router<App>, app: &App) -> Router<App> {
    rooms
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_IDLE))
        .layer(middleware::from_fn(finished))
        .layer(middleware::from_fn(no_token_in_url))
        .layer(middleware::from_fn(in_time))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            Problem::internal("a handler panicked").into_response()
        }))
        .layer(middleware::from_fn_with_state(app.clone(), outermost))
}

/// Request id, log line, problem bodies, security headers.
async fn outermost(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // Ours, never the client's: an id that someone else chose could be made to collide in the log.
    let id = auth::random_id().unwrap_or_default();
    let peer =
        request.extensions().get::<ConnectInfo<std::net::SocketAddr>>().map(|c| c.0.ip().to_canonical());
    match peer.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()) {
        Some(ip) => request.headers_mut().insert(auth::PEER_HEADER, ip),
        None => request.headers_mut().remove(auth::PEER_HEADER),
    };
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let method = request.method().clone();
    let page = !is_api(request.uri().path());
    // The path, never the query string: a secret may have been put there by mistake.
    let path: String = request.uri().path().chars().take(200).collect();
    let span = tracing::info_span!("request", %id, %method, path = %path.escape_debug());
    let began = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    finish(&mut response, &id, page);
    headers(&mut response, &id, app.config.url.starts_with("https://"));
    let took = began.elapsed();
    span.in_scope(|| {
        let status = response.status().as_u16();
        if response.status().is_server_error() {
            tracing::warn!(status, ms = took.as_millis(), "answered");
        } else {
            tracing::debug!(status, ms = took.as_millis(), "answered");
        }
    });
    metrics::answered(method.as_str(), route.as_deref(), response.status().as_u16(), took);
    response
}

/// Whether refusals under this path are problem details whoever made them (git, OCI and pages have forms of their own).
fn is_api(path: &str) -> bool {
    !(path.starts_with("/git/") || path.starts_with("/v2/") || path == "/v2")
}

/// Gives a problem its request id, and refusals that axum made the form of a problem.
fn finish(response: &mut Response, id: &str, foreign: bool) {
    let status = response.status();
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if (status.is_client_error() || status.is_server_error()) && !foreign && !has_form(response) => {
            plain(status)
        }
        None => return,
    };
    let Ok(body) = serde_json::to_vec(&problem.body(id)) else { return };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.remove(header::CONTENT_LENGTH);
    *response.body_mut() = body.into();
}

/// Whether a refusal carries a body someone wrote on purpose.
fn has_form(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|kind| !kind.starts_with("text/plain"))
}

fn plain(status: StatusCode) -> Problem {
    let (code, detail) = match status {
        StatusCode::METHOD_NOT_ALLOWED => (
            "method_not_allowed",
            "This route does not know the method; the Allow header names those it does.",
        ),
        StatusCode::NOT_FOUND => ("not_found", "There is no such route."),
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "The body is larger than this route accepts."),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("not_json", "The body's Content-Type is not one this route reads.")
        }
        StatusCode::REQUEST_TIMEOUT => ("timeout", "The request took too long."),
        s if s.is_server_error() => {
            ("internal", "Something failed in the cloud; its log has the cause under this request id.")
        }
        _ => ("request_invalid", "The request could not be read."),
    };
    Problem::new(status, code, detail)
}

fn headers(response: &mut Response, id: &str, tls: bool) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    // Pages set a policy of their own; whatever else is taken for a page may do nothing.
    set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    set(header::CACHE_CONTROL, "no-store");
    if tls {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
}

/// Refuses a credential in the query string: it would end in histories, logs and Referer headers.
async fn no_token_in_url(request: Request, next: Next) -> Result<Response> {
    let path = request.uri().path();
    let credential = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        holds_token(value)
            || (path.starts_with("/api/")
                && matches!(
                    name.to_ascii_lowercase().as_str(),
                    "token" | "access_token" | "api_key" | "apikey" | "authorization" | "password"
                ))
    };
    if request.uri().query().is_some_and(|q| q.split('&').any(credential)) {
        return Err(Problem::unauthorized(
            "token_in_url",
            "Credentials are not accepted in a URL. Send `Authorization: Bearer …`, and revoke the token that was shown here.",
        ));
    }
    Ok(next.run(request).await)
}

/// Whether a token of ours is in this, its `_` perhaps percent-encoded. A name that merely begins like one is none.
fn holds_token(value: &str) -> bool {
    let value = value.replace("%5F", "_").replace("%5f", "_").replace("%2D", "-").replace("%2d", "-");
    value.split(auth::tokens::PREFIX).skip(1).any(|rest| {
        rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')).count() >= 43
    })
}

/// Bounds the time until an answer of `/api/v1` begins.
async fn in_time(request: Request, next: Next) -> Result<Response> {
    let path = request.uri().path();
    let upload = path.ends_with("/builds") || path.contains("/uploads/");
    let bounded = path.starts_with("/api/") && !upload;
    if !bounded {
        return Ok(next.run(request).await);
    }
    tokio::time::timeout(API_TIME, next.run(request)).await.map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "The request took longer than 60 s. Try again.",
        )
        .retry_after(10)
    })
}

/// A write once begun is finished, whether or not the caller still listens: between a commit and telling memory of it
/// (who is revoked, what is assigned) nothing may be dropped.
async fn finished(request: Request, next: Next) -> Result<Response> {
    let path = request.uri().path();
    let write = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !write || !(path.starts_with("/api/") || path.starts_with("/device/")) {
        return Ok(next.run(request).await);
    }
    tokio::spawn(next.run(request).in_current_span())
        .await
        .map_err(|_| Problem::internal("a handler panicked"))
}
