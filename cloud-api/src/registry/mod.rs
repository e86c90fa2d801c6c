//! An OCI registry (Distribution v1.1): push, pull, mount, ranges, referrers.
//!
//! In: requests under `/v2/` and `/registry/token`; images the builder made. Out: manifests and blobs.
//! Never here: how bytes are kept (`blobs/`), and answers to someone without a right to them: a repository belongs
//! to the fleet its first part names, a blob is only served through a repository that knows it, and a device gets
//! only what a release of its own fleet names.
//!
//! | file | what |
//! |---|---|
//! | `access` | who asks, what they may; the token endpoint |
//! | `names` | repository names, references |
//! | `manifest` | what a manifest names |
//! | `rows` | SQL |
//! | `pull`, `push`, `uploads` | the endpoints |
//! | `answer` | errors as the specification spells them |

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};

use crate::app::App;

mod access;
mod answer;
mod manifest;
mod names;
mod pull;
mod push;
mod rows;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod uploads;

pub use manifest::{MANIFEST_TYPE, Manifest};
pub use names::repo_of;
pub use push::put_manifest;

use access::{Access, Action};
use answer::OciError;
use names::{Reference, Target};

/// The most bytes a manifest may have.
pub const MAX_MANIFEST: usize = 4 << 20;

/// The most bytes a blob may have.
pub const MAX_BLOB: u64 = 16 << 30;

/// What the registry remembers between requests: short-lived tokens and uploads in progress. A restart forgets both;
/// clients ask for a new token and begin the upload again.
#[derive(Debug, Default)]
pub struct Memory {
    grants: access::Grants,
    uploads: uploads::Uploads,
}

/// `/v2/…` and `/registry/token`.
pub fn router() -> Router<App> {
    Router::new()
        .route("/v2", any(ping))
        .route("/v2/", any(ping))
        .route("/v2/{*rest}", any(dispatch))
        .route("/registry/token", get(access::token))
}

/// Names something nobody can guess: 128 random bits in hex.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn random_id() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(hex::encode(bytes))
}

async fn ping(State(app): State<App>, headers: HeaderMap) -> Response {
    let response = match access::identify(&app, &headers).await {
        Ok(_) => axum::Json(serde_json::json!({})).into_response(),
        Err(error) => error.challenge(&access::challenge(&app, &headers, None)).into_response(),
    };
    versioned(response)
}

/// Clients look for it to know whom they talk to.
fn versioned(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

async fn dispatch(State(app): State<App>, Path(rest): Path<String>, request: Request) -> Response {
    let headers = request.headers().clone();
    let answer = match names::parse(&rest) {
        None => Err(OciError::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is nothing at this path")),
        Some((repo, target)) => {
            let action = action(request.method(), &target);
            match access::allow(&app, &headers, &repo, action).await {
                Err(error) => Err(error.challenge(&access::challenge(&app, &headers, Some((&repo, action))))),
                Ok(access) => Box::pin(route(&app, &access, &repo, target, request)).await,
            }
        }
    };
    versioned(answer.unwrap_or_else(axum::response::IntoResponse::into_response))
}

fn action(method: &Method, target: &Target) -> Action {
    match (method, target) {
        (&Method::DELETE, Target::Upload(_)) => Action::Push,
        (&Method::DELETE, _) => Action::Delete,
        (&Method::GET | &Method::HEAD, Target::Uploads | Target::Upload(_)) => Action::Push,
        (&Method::GET | &Method::HEAD, _) => Action::Pull,
        _ => Action::Push,
    }
}

async fn route(
    app: &App,
    access: &Access,
    repo: &str,
    target: Target,
    request: Request,
) -> Result<Response, OciError> {
    let (parts, body) = request.into_parts();
    let query = names::query(parts.uri.query().unwrap_or(""));
    match (parts.method.as_str(), target) {
        (method @ ("GET" | "HEAD"), Target::Blob(digest)) => {
            pull::blob(app, access, repo, &digest, &parts.headers, method == "HEAD").await
        }
        (method @ ("GET" | "HEAD"), Target::Manifest(reference)) => {
            pull::manifest(app, access, repo, &reference, method == "HEAD").await
        }
        ("GET", Target::Tags) => pull::tags(app, access, repo, &query).await,
        ("GET", Target::Referrers(digest)) => pull::referrers(app, access, repo, &digest, &query).await,
        ("POST", Target::Uploads) => uploads::begin(app, access, repo, &query, body).await,
        ("GET", Target::Upload(id)) => uploads::status(app, repo, &id).await,
        ("PATCH", Target::Upload(id)) => uploads::append(app, repo, &id, &parts.headers, body).await,
        ("PUT", Target::Upload(id)) => uploads::finish(app, repo, &id, &parts.headers, &query, body).await,
        ("DELETE", Target::Upload(id)) => uploads::cancel(app, repo, &id),
        ("PUT", Target::Manifest(reference)) => {
            push::manifest(app, access, repo, &reference, &parts.headers, body).await
        }
        ("DELETE", Target::Manifest(reference)) => push::delete_manifest(app, access, repo, &reference).await,
        ("DELETE", Target::Blob(digest)) => push::delete_blob(app, access, repo, &digest).await,
        _ => Err(OciError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "this method is not supported at this path",
        )),
    }
}

/// Bytes of a bounded body.
async fn bounded(body: Body, max: usize) -> Result<bytes::Bytes, OciError> {
    axum::body::to_bytes(body, max).await.map_err(|_| {
        OciError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "SIZE_INVALID",
            format!("the body was cut off or has more than {max} bytes"),
        )
    })
}
