//! Uploads of blobs: in one piece, in chunks, or mounted from another repository.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use copal_protocol::ids::Digest;
use futures_util::StreamExt as _;

use super::{Access, Action, MAX_BLOB, OciError, access, random_id};
use crate::{
    app::App,
    blobs::{self, Spool},
};

/// The most uploads at a time.
const MAX_UPLOADS: usize = 256;

/// The most of one fleet: whoever may push to one must not take the place of all others.
const MAX_UPLOADS_OF_FLEET: usize = 64;

/// An upload nobody continues is forgotten after this.
const IDLE: Duration = Duration::from_secs(3600);

/// How long a client may pause within a body.
const STALL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Upload {
    repo: String,
    spool: Arc<tokio::sync::Mutex<Spool>>,
    touched: Instant,
}

/// Uploads in progress.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<String, Upload>>);

fn unknown() -> OciError {
    OciError::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload; begin again")
}

impl Uploads {
    fn insert(&self, repo: &str, spool: Spool) -> Result<String, OciError> {
        let id = random_id().map_err(OciError::internal)?;
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, upload| upload.touched.elapsed() < IDLE || Arc::strong_count(&upload.spool) > 1);
        let fleet = |repo: &str| repo.split('/').next().map(str::to_owned);
        let of_fleet = map.values().filter(|u| fleet(&u.repo) == fleet(repo)).count();
        if map.len() >= MAX_UPLOADS || of_fleet >= MAX_UPLOADS_OF_FLEET {
            return Err(OciError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                "too many uploads are in progress; try again later",
            ));
        }
        let spool = Arc::new(tokio::sync::Mutex::new(spool));
        map.insert(id.clone(), Upload { repo: repo.to_owned(), spool, touched: Instant::now() });
        Ok(id)
    }

    fn get(&self, repo: &str, id: &str) -> Result<Arc<tokio::sync::Mutex<Spool>>, OciError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let upload = map.get_mut(id).filter(|u| u.repo == repo).ok_or_else(unknown)?;
        upload.touched = Instant::now();
        Ok(upload.spool.clone())
    }

    fn remove(&self, repo: &str, id: &str) -> Result<(), OciError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.get(id).is_none_or(|u| u.repo != repo) {
            return Err(unknown());
        }
        map.remove(id);
        Ok(())
    }
}

fn range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn empty(builder: http::response::Builder) -> Result<Response, OciError> {
    builder.header(header::CONTENT_LENGTH, 0).body(Body::empty()).map_err(OciError::internal)
}

fn created(repo: &str, digest: &Digest) -> Result<Response, OciError> {
    empty(
        Response::builder()
            .status(StatusCode::CREATED)
            .header(header::LOCATION, format!("/v2/{repo}/blobs/{digest}"))
            .header("docker-content-digest", digest.to_string()),
    )
}

fn in_progress(status: StatusCode, repo: &str, id: &str, size: u64) -> Result<Response, OciError> {
    empty(
        Response::builder()
            .status(status)
            .header(header::LOCATION, format!("/v2/{repo}/blobs/uploads/{id}"))
            .header(header::RANGE, range(size))
            .header("docker-upload-uuid", id),
    )
}

fn wanted_digest(query: &BTreeMap<String, String>) -> Result<Option<Digest>, OciError> {
    query
        .get("digest")
        .map(|d| d.parse().map_err(|_| OciError::digest("only sha256 digests are taken")))
        .transpose()
}

/// Takes a body into a spool; a client that stalls is cut off, so that it does not hold an upload for ever.
async fn fill(spool: &mut Spool, body: Body) -> Result<(), OciError> {
    let mut stream = body.into_data_stream();
    loop {
        let chunk = tokio::time::timeout(STALL, stream.next()).await.map_err(|_| {
            OciError::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", "no byte came for a minute")
        })?;
        match chunk {
            None => return Ok(()),
            Some(Ok(bytes)) => spool.write(&bytes).await?,
            Some(Err(_)) => {
                return Err(OciError::new(
                    StatusCode::BAD_REQUEST,
                    "BLOB_UPLOAD_INVALID",
                    "the body was cut off",
                ));
            }
        }
    }
}

/// `POST …/blobs/uploads/`: begins an upload; with `digest` takes it in one piece; with `mount` and `from` links a
/// blob of another repository the caller may read, and otherwise begins an upload as if neither were there.
pub(super) async fn begin(
    app: &App,
    access: &Access,
    repo: &str,
    query: &BTreeMap<String, String>,
    body: Body,
) -> Result<Response, OciError> {
    if let (Some(mount), Some(from), Access::Person(caller)) = (query.get("mount"), query.get("from"), access)
        && let Ok(digest) = mount.parse::<Digest>()
        && super::names::is_repo(from)
        && access::may(app, caller, from, Action::Pull).await?
        && blobs::size_in(app, from, &digest).await?.is_some()
        && blobs::link(app, repo, &digest).await?
    {
        return created(repo, &digest);
    }
    let mut spool = Spool::begin(&blobs::uploads_dir(app), MAX_BLOB).await.map_err(OciError::internal)?;
    if let Some(digest) = wanted_digest(query)? {
        fill(&mut spool, body).await?;
        blobs::store(app, repo, spool.finish().await.map_err(OciError::internal)?, &digest).await?;
        return created(repo, &digest);
    }
    let id = app.registry.uploads.insert(repo, spool)?;
    in_progress(StatusCode::ACCEPTED, repo, &id, 0)
}

pub(super) async fn status(app: &App, repo: &str, id: &str) -> Result<Response, OciError> {
    let size = app.registry.uploads.get(repo, id)?.lock().await.size();
    in_progress(StatusCode::NO_CONTENT, repo, id, size)
}

/// Checks that a chunk continues where the upload stands. `Content-Range: <first>-<last>` or `bytes first-last/*`.
fn continues(headers: &HeaderMap, size: u64) -> Result<(), OciError> {
    let Some(text) = headers.get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()) else { return Ok(()) };
    let first =
        text.trim_start_matches("bytes ").split('-').next().and_then(|f| f.trim().parse::<u64>().ok());
    if first == Some(size) {
        return Ok(());
    }
    Err(OciError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UPLOAD_INVALID",
        format!("the upload has {size} bytes; continue there"),
    )
    .with("range", range(size)))
}

pub(super) async fn append(
    app: &App,
    repo: &str,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, OciError> {
    let spool = app.registry.uploads.get(repo, id)?;
    let mut spool = spool.try_lock_owned().map_err(|_| busy())?;
    continues(headers, spool.size())?;
    fill(&mut spool, body).await?;
    in_progress(StatusCode::ACCEPTED, repo, id, spool.size())
}

fn busy() -> OciError {
    OciError::new(
        StatusCode::CONFLICT,
        "BLOB_UPLOAD_INVALID",
        "another request is writing to this upload; wait for it",
    )
}

pub(super) async fn finish(
    app: &App,
    repo: &str,
    id: &str,
    headers: &HeaderMap,
    query: &BTreeMap<String, String>,
    body: Body,
) -> Result<Response, OciError> {
    let digest = wanted_digest(query)?.ok_or_else(|| OciError::digest("the query has no digest"))?;
    let shared = app.registry.uploads.get(repo, id)?;
    {
        let mut spool = shared.clone().try_lock_owned().map_err(|_| busy())?;
        continues(headers, spool.size())?;
        fill(&mut spool, body).await?;
    }
    app.registry.uploads.remove(repo, id)?;
    let spool = Arc::try_unwrap(shared).map_err(|_| busy())?.into_inner();
    blobs::store(app, repo, spool.finish().await.map_err(OciError::internal)?, &digest).await?;
    created(repo, &digest)
}

pub(super) fn cancel(app: &App, repo: &str, id: &str) -> Result<Response, OciError> {
    app.registry.uploads.remove(repo, id)?;
    empty(Response::builder().status(StatusCode::NO_CONTENT))
}
