//! Who did what.

use axum::extract::State;
use copal_protocol::audit::Row;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Query};
use crate::{
    app::App,
    audit,
    auth::{Act, Caller},
    error::Result,
};

/// Routes of the audit log.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list))
}

/// One act.
#[derive(Debug, Serialize, ToSchema)]
pub struct Entry {
    /// Rises by one with each act.
    pub id: i64,
    /// Unix seconds.
    pub at: i64,
    /// `anna@example.org`, `token:ci (anna@example.org)` or `system`.
    pub who: String,
    /// The address it came from.
    pub from: String,
    /// What was done, as `fleet.create`.
    pub verb: String,
    /// To what, as `fleet:greenhouse`.
    pub object: String,
    /// Why, as the caller said in `X-Copal-Why`; empty where nothing was said.
    pub why: String,
    /// What else matters.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
    /// SHA-256 over the row and the hash of the row before it, 64 hex digits. How it is made: docs/operations.md.
    pub hash: String,
}

impl From<Row> for Entry {
    fn from(row: Row) -> Self {
        let entry = row.entry;
        Self {
            id: entry.id,
            at: entry.at,
            who: entry.who,
            from: entry.from,
            verb: entry.verb,
            object: entry.object,
            why: entry.why,
            detail: entry.detail,
            hash: row.hash,
        }
    }
}

/// Lists acts of people and tokens, newest first; for admins.
#[utoipa::path(get, path = "/audit", tag = "server", params(Paging), responses((status = 200, body = Page<Entry>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Entry>>> {
    caller.may(Act::Manage, None)?;
    let rows = audit::pages(&app.db, paging.after(i64::MAX)?, paging.sql_limit()?).await?;
    Ok(Json(Page::of(&paging, rows, |row| row.entry.id.to_string(), Entry::from)?))
}
