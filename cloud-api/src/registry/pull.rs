//! Reading: blobs, manifests, tags, referrers.

use std::{collections::BTreeMap, ops::Range};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use copal_protocol::ids::Digest;

use super::{Access, Manifest, OciError, Reference, rows};
use crate::{app::App, blobs};

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
    let etag = format!("\"{digest}\"");
    let mut response = Response::builder()
        .header("docker-content-digest", digest.to_string())
        .header(header::ETAG, &etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, "private, max-age=31536000, immutable")
        .header(header::CONTENT_TYPE, "application/octet-stream");
    let asked = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    // If-Range with another entity: the whole is sent, as if no range had been asked.
    let same = headers.get(header::IF_RANGE).is_none_or(|v| v.as_bytes() == etag.as_bytes());
    let range = match asked.filter(|_| same).map(|text| parse_range(text, size)) {
        Some(Asked::One(range)) => Some(range),
        Some(Asked::Unsatisfiable) => {
            return Err(OciError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                format!("the blob has {size} bytes"),
            )
            .with("content-range", format!("bytes */{size}")));
        }
        Some(Asked::Whole) | None => None,
    };
    let length = range.as_ref().map_or(size, |r| r.end - r.start);
    response = response.header(header::CONTENT_LENGTH, length);
    if let Some(range) = &range {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    if head || length == 0 {
        return answer(response, Body::empty());
    }
    let stream = blobs::read(app, digest, range).await.map_err(OciError::internal)?;
    answer(response, Body::from_stream(stream))
}

enum Asked {
    Whole,
    One(Range<u64>),
    Unsatisfiable,
}

/// One range of bytes. Several ranges, other units and nonsense are answered with the whole, as HTTP allows.
fn parse_range(text: &str, size: u64) -> Asked {
    let Some(spec) = text.strip_prefix("bytes=") else { return Asked::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Asked::Whole };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.trim().is_empty() => size.saturating_sub(suffix)..size,
        _ => return Asked::Whole,
    };
    if range.start < range.end { Asked::One(range) } else { Asked::Unsatisfiable }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let one = |text| match parse_range(text, 10) {
            Asked::One(r) => Some(r),
            _ => None,
        };
        assert_eq!(one("bytes=0-3"), Some(0..4));
        assert_eq!(one("bytes=7-"), Some(7..10));
        assert_eq!(one("bytes=-3"), Some(7..10));
        assert_eq!(one("bytes=5-99"), Some(5..10));
        assert!(matches!(parse_range("bytes=10-", 10), Asked::Unsatisfiable));
        assert!(matches!(parse_range("bytes=-0", 10), Asked::Unsatisfiable));
        for whole in ["bytes=3-1", "bytes=0-1,4-5", "lines=1-2", "bytes=x", "bytes=-"] {
            assert!(matches!(parse_range(whole, 10), Asked::Whole), "{whole}");
        }
    }
}
