//! Reading: blobs, manifests, tags, referrers.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use copal_protocol::ids::Digest;

use super::{Access, Manifest, OciError, Reference, rows};
use crate::{
    app::App,
    blobs::{
        self,
        range::{self, Asked},
    },
};

/// The most tags a page has.
const MAX_TAGS: u32 = 1000;

/// Whether who asks may have this very thing, beyond the repository.
async fn reachable(app: &App, access: &Access, repo: &str, digest: &Digest) -> Result<bool, OciError> {
    match access {
        Access::Person(_) => Ok(true),
        Access::Device(session) => Ok(rows::for_fleet(app, session.fleet_id, repo, digest).await?),
    }
}

fn answer(builder: http::response::Builder, body: Body) -> Result<Response, OciError> {
    builder.body(body).map_err(OciError::internal)
}

pub(super) async fn blob(
    app: &App,
    access: &Access,
    repo: &str,
    digest: &Digest,
    headers: &HeaderMap,
    head: bool,
) -> Result<Response, OciError> {
    if !reachable(app, access, repo, digest).await? {
        return Err(OciError::blob_unknown());
    }
    let size = blobs::size_in(app, repo, digest).await?.ok_or_else(OciError::blob_unknown)?;
    if head && matches!(access, Access::Person(_)) {
        // Whoever asks is about to rely on it in a manifest: it must not be collected before that arrives.
        blobs::link(app, repo, digest).await?;
    }
    let range = match range::asked(headers, digest, size) {
        Asked::One(range) => Some(range),
        Asked::Unsatisfiable => {
            return Err(OciError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                format!("the blob has {size} bytes"),
            )
            .with("content-range", format!("bytes */{size}")));
        }
        // Several ranges may be answered with the whole.
        Asked::Whole | Asked::Several => None,
    };
    let mut response = range::respond(app, digest, size, range, head).await.map_err(OciError::internal)?;
    let name = HeaderValue::try_from(digest.to_string()).map_err(OciError::internal)?;
    response.headers_mut().insert("docker-content-digest", name);
    Ok(response)
}

pub(super) async fn manifest(
    app: &App,
    access: &Access,
    repo: &str,
    reference: &Reference,
    head: bool,
) -> Result<Response, OciError> {
    let row = match (reference, access) {
        (Reference::Digest(digest), _) => rows::manifest(app, repo, digest).await?,
        (Reference::Tag(tag), Access::Person(_)) => rows::manifest_by_tag(app, repo, tag).await?,
        // A tag moves; a device is told digests.
        (Reference::Tag(_), Access::Device(_)) => None,
    };
    let row = row.ok_or_else(OciError::manifest_unknown)?;
    let digest: Digest = row.digest.parse().map_err(OciError::internal)?;
    if !reachable(app, access, repo, &digest).await? {
        return Err(OciError::manifest_unknown());
    }
    let response = Response::builder()
        .header(header::CONTENT_TYPE, &row.media_type)
        .header(header::CONTENT_LENGTH, row.body.len())
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", row.digest);
    answer(response, if head { Body::empty() } else { Body::from(row.body) })
}

pub(super) async fn tags(
    app: &App,
    access: &Access,
    repo: &str,
    query: &BTreeMap<String, String>,
) -> Result<Response, OciError> {
    if matches!(access, Access::Device(_)) || !rows::repo_exists(app, repo).await? {
        return Err(OciError::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is no such repository"));
    }
    let limit = query.get("n").map_or(Ok(MAX_TAGS), |n| n.parse::<u32>()).unwrap_or(MAX_TAGS).min(MAX_TAGS);
    let last = query.get("last").map_or("", String::as_str);
    // One more than asked tells whether there is a next page.
    let mut tags = rows::tags(app, repo, last, i64::from(limit) + 1).await?;
    let more = tags.len() > limit as usize;
    tags.truncate(limit as usize);
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    if let (true, Some(last)) = (more, tags.last()) {
        response = response
            .header(header::LINK, format!("</v2/{repo}/tags/list?n={limit}&last={last}>; rel=\"next\""));
    }
    answer(response, Body::from(serde_json::json!({ "name": repo, "tags": tags }).to_string()))
}

pub(super) async fn referrers(
    app: &App,
    access: &Access,
    repo: &str,
    subject: &Digest,
    query: &BTreeMap<String, String>,
) -> Result<Response, OciError> {
    if matches!(access, Access::Device(_)) {
        return Err(OciError::manifest_unknown());
    }
    let wanted = query.get("artifactType");
    let mut manifests = Vec::new();
    for row in rows::referrers(app, repo, subject).await? {
        let Ok(manifest) = Manifest::parse(&row.media_type, &row.body) else { continue };
        if wanted.is_some() && wanted != manifest.artifact_type.as_ref() {
            continue;
        }
        manifests.push(serde_json::json!({
            "mediaType": row.media_type, "digest": row.digest, "size": row.body.len(),
            "artifactType": manifest.artifact_type, "annotations": manifest.annotations,
        }));
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    let mut response =
        Response::builder().header(header::CONTENT_TYPE, "application/vnd.oci.image.index.v1+json");
    if wanted.is_some() {
        response = response.header("oci-filters-applied", "artifactType");
    }
    answer(response, Body::from(index.to_string()))
}
