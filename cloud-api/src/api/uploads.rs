//! Uploads of large blobs in pieces: what host releases are made of.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use copal_protocol::ids::Sha256Hex;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, Query, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::Result,
    uploads,
};

/// Where an upload stands, beside a refused piece.
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");

/// Routes of uploads.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(begin)).routes(routes!(show, append))
}

/// A blob that is to be uploaded.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUpload {
    /// Its SHA-256, 64 hex digits.
    #[schema(value_type = String)]
    pub sha256: Sha256Hex,
    /// Its bytes.
    pub size: u64,
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Upload {
    /// Its id.
    pub id: String,
    /// SHA-256 of the blob.
    pub sha256: String,
    /// Bytes that are here: the next piece begins there.
    pub offset: u64,
    /// Bytes of the blob.
    pub size: u64,
    /// Whether all of it is here, and is what it should be.
    pub done: bool,
}

impl From<uploads::Upload> for Upload {
    fn from(upload: uploads::Upload) -> Self {
        Self {
            id: upload.id,
            sha256: upload.sha256.to_string(),
            offset: upload.offset,
            size: upload.size,
            done: upload.done,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Piece {
    /// Where it begins.
    offset: u64,
}

/// Begins an upload, or goes on with the one of the same blob: its `offset` says where. `done` where the fleet has it.
#[utoipa::path(post, path = "/fleets/{slug}/uploads", tag = "host releases", request_body = NewUpload,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 200, body = Upload), (status = 413, description = "`upload_too_large`"),
        (status = 422, description = "`upload_size`"), (status = 429, description = "`too_many_uploads`"),
        (status = 507, description = "`disk_full`")))]
pub(crate) async fn begin(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(new): Json<NewUpload>,
) -> Result<Json<Upload>> {
    let fleet = allowed(&app, &caller, &slug, Act::Push).await?;
    Ok(Json(uploads::begin(&app, &caller, &fleet, new.sha256, new.size).await?.into()))
}

/// Where an upload stands. One that nobody continues is forgotten after 7 days.
#[utoipa::path(get, path = "/fleets/{slug}/uploads/{id}", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The upload.")),
    responses((status = 200, body = Upload), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<Upload>> {
    let fleet = allowed(&app, &caller, &slug, Act::Push).await?;
    Ok(Json(uploads::show(&app, &fleet, &id).await?.into()))
}

/// Takes the next piece, at most 16 MiB. What arrives counts, even where the piece is cut off; a piece for another place
/// is refused with the right one in `Upload-Offset`.
#[utoipa::path(patch, path = "/fleets/{slug}/uploads/{id}", tag = "host releases",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The upload."), Piece),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Upload), (status = 400, description = "`body_cut`"),
        (status = 404, description = "`not_found`"), (status = 409, description = "`upload_offset`, `upload_busy`"),
        (status = 413, description = "`piece_too_large`"),
        (status = 422, description = "`upload_too_long`, `digest_mismatch`"),
        (status = 507, description = "`disk_full`")))]
pub(crate) async fn append(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(piece): Query<Piece>,
    body: Body,
) -> Result<Response> {
    let fleet = allowed(&app, &caller, &slug, Act::Push).await?;
    match uploads::append(&app, &caller, &fleet, &id, piece.offset, body).await {
        Ok(upload) => Ok(Json(Upload::from(upload)).into_response()),
        Err(problem) if problem.code() == "upload_offset" => {
            let stands = uploads::show(&app, &fleet, &id).await?.offset;
            let mut response = problem.into_response();
            response.headers_mut().insert(OFFSET, HeaderValue::from(stands));
            Ok(response)
        }
        Err(problem) => Err(problem),
    }
}
