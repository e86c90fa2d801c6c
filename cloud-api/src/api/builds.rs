//! Builds: list, show, follow, try again, and upload a folder instead of pushing it.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query};
use crate::{
    app::App,
    audit,
    auth::{Act, Caller},
    blobs::TempFile,
    build::{self, BuildRow, Status, rows},
    error::{Problem, Result},
    store::fleets::{self, FleetRow},
};

/// Routes of builds.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list, upload))
        .routes(routes!(show))
        .routes(routes!(log))
        .routes(routes!(retry))
}

/// A build: source to a release.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Build {
    /// Its id.
    pub id: String,
    /// The fleet's slug.
    pub fleet: String,
    /// The git commit; null for an upload.
    pub commit: Option<String>,
    /// The commit, or the SHA-256 of an upload.
    pub source: String,
    /// The branch or tag; empty for an upload.
    pub branch: String,
    /// `linux/arm64`.
    pub platform: String,
    /// Where it stands.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// The release that came of it.
    pub release: Option<String>,
    /// For people.
    pub note: String,
    /// Whether the release stays a draft.
    pub draft: bool,
    /// Who asked.
    pub pushed_by: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub started_at: Option<u64>,
    /// Unix seconds.
    pub finished_at: Option<u64>,
}

impl Build {
    fn of(row: BuildRow, slug: &str) -> Self {
        let time = |t: i64| u64::try_from(t).unwrap_or(0);
        Self {
            commit: row.commit().map(str::to_owned),
            fleet: slug.to_owned(),
            status: Status::parse(&row.status),
            id: row.id,
            source: row.source,
            branch: row.branch,
            platform: row.platform,
            error: row.error,
            release: row.release_id,
            note: row.note,
            draft: row.draft,
            pushed_by: row.pushed_by,
            created_at: time(row.created_at),
            started_at: row.started_at.map(time),
            finished_at: row.finished_at.map(time),
        }
    }
}

/// A build the caller may do this to, and its fleet.
async fn find(app: &App, caller: &Caller, id: &str, act: Act) -> Result<(BuildRow, FleetRow)> {
    let missing = || Problem::not_found(format!("build {id:?}"));
    let row = rows::get(app, id).await?.ok_or_else(missing)?;
    let fleet = fleets::by_id(app, row.fleet_id.parse().map_err(Problem::internal)?).await?;
    caller
        .may(act, Some(&fleet))
        .map_err(|p| if p.status() == StatusCode::NOT_FOUND { missing() } else { p })?;
    Ok((row, fleet))
}

/// The builds of a fleet, newest first.
#[utoipa::path(get, path = "/fleets/{slug}/builds", tag = "builds", params(("slug" = String, Path), Paging),
    responses((status = 200, body = Page<Build>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Build>>> {
    let fleet = fleets::by_slug(&app, &slug).await?;
    caller.may(Act::Read, Some(&fleet))?;
    let after: String = paging.after(String::new())?;
    let before = match after.split_once('-') {
        Some((at, id)) => Some((
            at.parse().map_err(|_| {
                Problem::bad_request("after_invalid", "after is not what `next` of the page before said.")
            })?,
            id.to_owned(),
        )),
        None => None,
    };
    let rows = rows::list(&app, &fleet.fleet_id.to_string(), before, paging.sql_limit()?).await?;
    let page =
        Page::of(&paging, rows, |row| format!("{}-{}", row.created_at, row.id), |row| Build::of(row, &slug))?;
    Ok(Json(page))
}

/// One build.
#[utoipa::path(get, path = "/builds/{id}", tag = "builds", params(("id" = String, Path)),
    responses((status = 200, body = Build)))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Build>> {
    let (row, fleet) = find(&app, &caller, &id, Act::Read).await?;
    Ok(Json(Build::of(row, &fleet.slug)))
}

/// How a log is wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Stay until the build ends.
    #[serde(default)]
    pub follow: bool,
}

/// A build's log from its beginning, as it grows with `follow`.
#[utoipa::path(get, path = "/builds/{id}/log", tag = "builds", params(("id" = String, Path), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn log(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response> {
    let (row, _) = find(&app, &caller, &id, Act::Read).await?;
    let follower = match app.builds.job(&row.id) {
        Some(job) if query.follow => job.follow(),
        Some(job) => job.follow().so_far(),
        None => build::follow(build::log_file(&app, &row.id)),
    };
    let stopping = app.stopping.clone();
    let pieces = futures_util::stream::unfold(follower, |mut follower| async move {
        follower.next().await.transpose().map(|piece| (piece, follower))
    });
    let mut response = Body::from_stream(pieces.take_until(stopping.cancelled_owned())).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// Builds again what a build was given; its release is published as that of the first would have been.
#[utoipa::path(post, path = "/builds/{id}/retry", tag = "builds", params(("id" = String, Path)),
    responses((status = 202, body = Build)))]
async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Build>)> {
    let (row, fleet) = find(&app, &caller, &id, Act::Push).await?;
    if matches!(Status::parse(&row.status), Status::Queued | Status::Running) {
        return Err(Problem::conflict(
            "build_running",
            format!("Build {id} has not ended; follow it with `copal build watch {id}`."),
        ));
    }
    let gone = || {
        Problem::conflict(
            "source_gone",
            format!(
                "The source of build {id} is no longer kept (only that of a fleet's newest builds is); push again."
            ),
        )
    };
    let copy = TempFile::make(&app.config.data.join("scratch")).map_err(Problem::internal)?;
    tokio::fs::copy(build::source_file(&app, &row.id), copy.path()).await.map_err(|_| gone())?;
    let request = build::Request {
        commit: row.commit().map(str::to_owned),
        source: row.source.clone(),
        branch: row.branch.clone(),
        options: serde_json::from_str(&row.options).map_err(Problem::internal)?,
        note: row.note.clone(),
        pushed_by: caller.who.clone(),
        fleet,
    };
    begin(&app, &caller, request, &copy, "build.retry").await
}

/// How an upload is to be built.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UploadQuery {
    /// For people.
    #[serde(default)]
    pub note: String,
    /// The release stays a draft.
    #[serde(default)]
    pub draft: bool,
    /// The engine's cache is not used.
    #[serde(default)]
    pub nocache: bool,
}

/// Builds a folder: the body is its tar, gzipped or not.
#[utoipa::path(post, path = "/fleets/{slug}/builds", tag = "builds", params(("slug" = String, Path), UploadQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"), responses((status = 202, body = Build)))]
async fn upload(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(query): Query<UploadQuery>,
    body: Body,
) -> Result<(StatusCode, Json<Build>)> {
    let fleet = fleets::by_slug(&app, &slug).await?;
    caller.may(Act::Push, Some(&fleet))?;
    if query.note.chars().count() > 500 || query.note.chars().any(char::is_control) {
        return Err(Problem::invalid("note_invalid", "A note has at most 500 characters of plain text."));
    }
    let temp = TempFile::make(&app.config.data.join("scratch")).map_err(Problem::internal)?;
    let mut file = tokio::fs::File::create(temp.path()).await.map_err(Problem::internal)?;
    let mut hasher = Sha256::new();
    let mut size = 0_u64;
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece =
            piece.map_err(|_| Problem::bad_request("body_cut", "The upload was cut off; send it again."))?;
        size += piece.len() as u64;
        if size > app.config.build.context {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "context_too_large",
                format!(
                    "The folder is larger than {} bytes; leave out what the build does not need.",
                    app.config.build.context
                ),
            ));
        }
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(Problem::internal)?;
    }
    file.flush().await.map_err(Problem::internal)?;
    let request = build::Request {
        fleet,
        commit: None,
        source: hex::encode(hasher.finalize()),
        branch: String::new(),
        options: build::Options { draft: query.draft, nocache: query.nocache, version: None },
        note: query.note,
        pushed_by: caller.who.clone(),
    };
    begin(&app, &caller, request, &temp, "build.upload").await
}

async fn begin(
    app: &App,
    caller: &Caller,
    request: build::Request,
    source: &TempFile,
    verb: &str,
) -> Result<(StatusCode, Json<Build>)> {
    let slug = request.fleet.slug.clone();
    let (job, joined) = build::submit(app, request, source.path()).await?;
    if !joined {
        build::publish_when_done(app, &job, caller.author());
    }
    let mut tx = app.db.write().await?;
    let detail = serde_json::json!({ "build": job.id, "source": job.request.source });
    audit::record(&mut tx, caller, verb, &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    let row = rows::get(app, &job.id).await?.ok_or_else(|| Problem::internal("the new build has no row"))?;
    Ok((StatusCode::ACCEPTED, Json(Build::of(row, &slug))))
}
