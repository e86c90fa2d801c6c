//! Who did what.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Query};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::Result,
};

/// Routes of the audit log.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list))
}

/// One act.
#[derive(Debug, Serialize, ToSchema, sqlx::FromRow)]
pub struct Entry {
    /// Rises with each act.
    pub id: i64,
    /// Unix seconds.
    pub at: i64,
    /// `anna@example.org`, `token:ci (anna@example.org)` or `system`.
    pub who: String,
    /// The address it came from.
    #[sqlx(rename = "source")]
    pub from: String,
    /// What was done, as `fleet.create`.
    pub verb: String,
    /// To what, as `fleet:greenhouse`.
    pub object: String,
    /// What else matters.
    #[schema(value_type = Object)]
    #[sqlx(json)]
    pub detail: serde_json::Value,
}

/// Lists acts of people and tokens, newest first; for admins.
#[utoipa::path(get, path = "/audit", tag = "server", params(Paging), responses((status = 200, body = Page<Entry>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Entry>>> {
    caller.may(Act::Manage, None)?;
    let rows: Vec<Entry> = sqlx::query_as(
        "SELECT id, at, who, source, verb, object, detail FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(paging.after(i64::MAX)?)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    Ok(Json(Page::of(&paging, rows, |e| e.id.to_string(), |e| e)?))
}
