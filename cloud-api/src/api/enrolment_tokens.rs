//! Enrolment tokens: what lets a new device into a fleet. Single use unless said otherwise.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, fleets::allowed};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, random_id, random_secret},
    error::{Problem, Result},
};

/// A week: a card that is written today may lie in a drawer over the weekend.
const DEFAULT_EXPIRY_S: u64 = 7 * 24 * 3600;
const LONGEST_S: u64 = 366 * 24 * 3600;
const MOST_USES: u32 = 100_000;
const NOTE_CHARS: usize = 200;

/// Routes of enrolment tokens.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list, create)).routes(routes!(revoke))
}

/// An enrolment token.
#[derive(Debug, Serialize, ToSchema)]
pub struct EnrolmentToken {
    /// Its public part.
    pub id: String,
    /// For people.
    pub note: String,
    /// How many devices it still lets in.
    pub uses: u64,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// `id.secret`; shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// An enrolment token to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewEnrolmentToken {
    /// How many devices it lets in; 1 by default.
    pub uses: Option<u32>,
    /// Seconds until it stops working; a week by default, a year at most.
    pub expires_in_s: Option<u64>,
    /// For people; `name` is another word for it.
    pub note: Option<String>,
    /// The name of the device it is meant for; kept as the note.
    pub name: Option<String>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    note: String,
    uses_left: i64,
    created_at: i64,
    expires_at: i64,
}

/// Lists a fleet's enrolment tokens that still work.
#[utoipa::path(get, path = "/fleets/{slug}/enrolment-tokens", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet."), Paging),
    responses((status = 200, body = Page<EnrolmentToken>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<EnrolmentToken>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, note, uses_left, created_at, expires_at FROM enrolment_tokens WHERE fleet_id = $1 \
         AND revoked_at IS NULL AND uses_left > 0 AND expires_at > $2 AND id > $3 ORDER BY id LIMIT $4",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(app::now_i64())
    .bind(paging.after(String::new())?)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    Ok(Json(Page::of(
        &paging,
        rows,
        |r| r.id.clone(),
        |row| EnrolmentToken {
            id: row.id,
            note: row.note,
            uses: row.uses_left.unsigned_abs(),
            created_at: row.created_at.unsigned_abs(),
            expires_at: row.expires_at.unsigned_abs(),
            token: None,
        },
    )?))
}

/// Makes an enrolment token; the answer shows it this once.
#[utoipa::path(post, path = "/fleets/{slug}/enrolment-tokens", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet.")), request_body = NewEnrolmentToken,
    responses((status = 201, body = EnrolmentToken),
        (status = 422, description = "`uses_invalid`, `expiry_invalid`, `name_invalid`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(new): Json<NewEnrolmentToken>,
) -> Result<(StatusCode, Json<EnrolmentToken>)> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    let uses = new.uses.unwrap_or(1);
    if !(1..=MOST_USES).contains(&uses) {
        return Err(Problem::invalid("uses_invalid", format!("uses is 1 to {MOST_USES}.")));
    }
    let expires_in = new.expires_in_s.unwrap_or(DEFAULT_EXPIRY_S);
    if !(1..=LONGEST_S).contains(&expires_in) {
        return Err(Problem::invalid("expiry_invalid", format!("expires_in_s is 1 to {LONGEST_S}.")));
    }
    let note = new.note.or(new.name).unwrap_or_default();
    if !note.is_empty() {
        super::tokens::check_name("A note", &note, NOTE_CHARS)?;
    }
    let (id, secret) = (random_id()?, random_secret("")?);
    let now = app::now();
    let expires_at = now + expires_in;
    // Encrypted rather than hashed: a device proves that it knows the secret without sending it.
    let sealed = app.keys.at_rest.seal(&format!("enrolment_tokens/{id}"), secret.as_bytes())?;
    let mut tx = app.db.write().await?;
    sqlx::query(
        "INSERT INTO enrolment_tokens (id, fleet_id, secret, note, uses_left, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&id)
    .bind(fleet.fleet_id.to_string())
    .bind(sealed)
    .bind(&note)
    .bind(i64::from(uses))
    .bind(i64::try_from(now).map_err(Problem::internal)?)
    .bind(i64::try_from(expires_at).map_err(Problem::internal)?)
    .execute(&mut *tx)
    .await?;
    let detail = serde_json::json!({"id": id, "uses": uses, "expires_at": expires_at, "note": note});
    audit::record(&mut tx, &caller, "enrolment_token.create", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    let token = Some(format!("{id}.{secret}"));
    let made = EnrolmentToken { id, note, uses: uses.into(), created_at: now, expires_at, token };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Revokes an enrolment token. Devices it let in stay.
#[utoipa::path(delete, path = "/fleets/{slug}/enrolment-tokens/{id}", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The token's id.")),
    responses((status = 204), (status = 404, description = "`not_found`")))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<StatusCode> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    let mut tx = app.db.write().await?;
    let done = sqlx::query(
        "UPDATE enrolment_tokens SET revoked_at = $1 WHERE id = $2 AND fleet_id = $3 AND revoked_at IS NULL",
    )
    .bind(app::now_i64())
    .bind(&id)
    .bind(fleet.fleet_id.to_string())
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(Problem::not_found("such enrolment token"));
    }
    let detail = serde_json::json!({"id": id});
    audit::record(&mut tx, &caller, "enrolment_token.revoke", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
