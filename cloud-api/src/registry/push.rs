//! Writing manifests and tags, and deleting.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use copal_protocol::ids::Digest;

use super::{Access, MAX_MANIFEST, Manifest, OciError, Reference, bounded, rows};
use crate::{app::App, audit, blobs};

/// Stores a manifest whose blobs the repository already has, and points a tag at it if one is given.
///
/// # Errors
/// When it cannot be read, or names something the repository does not have.
pub async fn put_manifest(
    app: &App,
    repo: &str,
    tag: Option<&str>,
    media_type: &str,
    body: &[u8],
) -> Result<(Digest, Manifest), OciError> {
    store(app, None, repo, tag, media_type, body).await
}

async fn store(
    app: &App,
    access: Option<&Access>,
    repo: &str,
    tag: Option<&str>,
    media_type: &str,
    body: &[u8],
) -> Result<(Digest, Manifest), OciError> {
    let invalid = |why: String| OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
    let manifest = Manifest::parse(media_type, body).map_err(invalid)?;
    for (blob, size) in &manifest.blobs {
        match blobs::size_in(app, repo, blob).await? {
            Some(have) if have == *size => {}
            Some(have) => return Err(invalid(format!("{blob} has {have} bytes, not {size}"))),
            None => {
                return Err(OciError::new(
                    StatusCode::NOT_FOUND,
                    "MANIFEST_BLOB_UNKNOWN",
                    format!("the repository has no {blob}; push it first"),
                ));
            }
        }
    }
    for child in &manifest.manifests {
        if rows::manifest(app, repo, child).await?.is_none() {
            return Err(OciError::new(
                StatusCode::NOT_FOUND,
                "MANIFEST_BLOB_UNKNOWN",
                format!("the repository has no manifest {child}; push it first"),
            ));
        }
    }
    let digest = Digest::of(body);
    let mut tx = app.db.write().await?;
    rows::put_manifest(&mut tx, repo, &digest, media_type, &manifest, body).await?;
    if let Some(tag) = tag {
        rows::put_tag(&mut tx, repo, tag, &digest).await?;
    }
    if let Some(Access::Person(caller)) = access {
        let detail = serde_json::json!({ "digest": digest, "tag": tag });
        audit::record(&mut tx, caller, "image.push", repo, detail).await?;
    }
    tx.commit().await?;
    Ok((digest, manifest))
}

pub(super) async fn manifest(
    app: &App,
    access: &Access,
    repo: &str,
    reference: &Reference,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, OciError> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let body = bounded(body, MAX_MANIFEST).await?;
    let tag = match reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(expected) => {
            if Digest::of(&body) != *expected {
                return Err(OciError::digest(format!(
                    "the manifest has the digest {}, not {expected}",
                    Digest::of(&body)
                )));
            }
            None
        }
    };
    let (digest, manifest) = store(app, Some(access), repo, tag, &media_type, &body).await?;
    let mut response = Response::builder()
        .status(StatusCode::CREATED)
        .header(header::LOCATION, format!("/v2/{repo}/manifests/{digest}"))
        .header("docker-content-digest", digest.to_string());
    if let Some(subject) = manifest.subject {
        response = response.header("oci-subject", subject.to_string());
    }
    response.body(Body::empty()).map_err(OciError::internal)
}

fn accepted() -> Result<Response, OciError> {
    Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).map_err(OciError::internal)
}

fn kept() -> OciError {
    OciError::new(
        StatusCode::CONFLICT,
        "DENIED",
        "a release needs it; it goes with the last release that does",
    )
}

pub(super) async fn delete_manifest(
    app: &App,
    access: &Access,
    repo: &str,
    reference: &Reference,
) -> Result<Response, OciError> {
    let mut tx = app.db.write().await?;
    let (gone, what) = match reference {
        Reference::Tag(tag) => {
            let query =
                sqlx::query("DELETE FROM image_tags WHERE repo = $1 AND tag = $2").bind(repo).bind(tag);
            (query.execute(&mut *tx).await?.rows_affected(), tag.clone())
        }
        Reference::Digest(digest) => {
            if rows::in_a_release(&mut tx, repo, digest).await? {
                return Err(kept());
            }
            sqlx::query("DELETE FROM image_tags WHERE repo = $1 AND digest = $2")
                .bind(repo)
                .bind(digest.to_string())
                .execute(&mut *tx)
                .await?;
            let query = sqlx::query("DELETE FROM manifests WHERE repo = $1 AND digest = $2")
                .bind(repo)
                .bind(digest.to_string());
            (query.execute(&mut *tx).await?.rows_affected(), digest.to_string())
        }
    };
    if gone == 0 {
        return Err(OciError::manifest_unknown());
    }
    if let Access::Person(caller) = access {
        audit::record(&mut tx, caller, "image.delete", repo, serde_json::json!({ "reference": what }))
            .await?;
    }
    tx.commit().await?;
    accepted()
}

pub(super) async fn delete_blob(
    app: &App,
    access: &Access,
    repo: &str,
    digest: &Digest,
) -> Result<Response, OciError> {
    let mut tx = app.db.write().await?;
    if rows::in_a_release(&mut tx, repo, digest).await? {
        return Err(kept());
    }
    let gone = sqlx::query("DELETE FROM repo_blobs WHERE repo = $1 AND digest = $2")
        .bind(repo)
        .bind(digest.to_string())
        .execute(&mut *tx)
        .await?
        .rows_affected();
    if gone == 0 {
        return Err(OciError::blob_unknown());
    }
    if let Access::Person(caller) = access {
        audit::record(&mut tx, caller, "image.delete", repo, serde_json::json!({ "blob": digest })).await?;
    }
    tx.commit().await?;
    accepted()
}
