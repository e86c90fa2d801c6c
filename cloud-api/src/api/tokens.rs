//! API tokens of the caller: make, list, revoke.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, fleets::allowed};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, Role, Scope, tokens},
    error::{Problem, Result},
};

/// The longest a token may last, seconds: ten years.
const LONGEST_S: u64 = 10 * 366 * 24 * 3600;

/// Routes of tokens.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list, create)).routes(routes!(revoke))
}

/// A token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    /// Names it here.
    pub id: String,
    /// What for.
    pub name: String,
    /// What it allows of what its person may.
    pub scope: Scope,
    /// The only fleet it opens.
    pub fleet: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: Option<u64>,
    /// Unix seconds, a minute coarse.
    pub last_used_at: Option<u64>,
    /// The token; shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What for: 1 to 100 characters.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The only fleet it opens; all by default.
    #[serde(default)]
    pub fleet: Option<String>,
    /// Seconds until it stops working; never by default.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    scope: String,
    slug: Option<String>,
    created_at: i64,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
}

/// A name for people: some characters, none that could disguise it.
pub(crate) fn check_name(what: &str, name: &str, most: usize) -> Result<()> {
    let count = name.chars().count();
    if count == 0 || count > most || name.chars().any(char::is_control) {
        return Err(Problem::invalid(
            "name_invalid",
            format!("{what} has 1 to {most} characters, no control characters."),
        ));
    }
    Ok(())
}

/// Tokens are made and taken by people themselves or with a token that may everything they may.
fn full(caller: &Caller) -> Result<()> {
    if caller.scope < Scope::Full {
        return Err(Problem::forbidden(
            "scope_insufficient",
            format!(
                "A token of scope {} cannot make or revoke tokens; use one of scope full, or sign in.",
                caller.scope
            ),
        ));
    }
    Ok(())
}

/// Lists the caller's tokens, oldest first.
#[utoipa::path(get, path = "/tokens", tag = "people", params(Paging), responses((status = 200, body = Page<Token>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Token>>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT t.id, t.name, t.scope, f.slug, t.created_at, t.expires_at, t.last_used_at \
         FROM tokens t LEFT JOIN fleets f ON f.fleet_id = t.fleet_id \
         WHERE t.user_id = $1 AND t.revoked_at IS NULL AND t.id > $2 AND ($3 IS NULL OR t.fleet_id = $3) \
         ORDER BY t.id LIMIT $4",
    )
    .bind(&caller.user_id)
    .bind(paging.after(String::new())?)
    .bind(caller.fleet.map(|f| f.to_string()))
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        items.push(Token {
            id: row.id,
            name: row.name,
            scope: row.scope.parse::<Scope>()?,
            fleet: row.slug,
            created_at: row.created_at.unsigned_abs(),
            expires_at: row.expires_at.map(i64::unsigned_abs),
            last_used_at: row.last_used_at.map(i64::unsigned_abs),
            token: None,
        });
    }
    Ok(Json(Page::of(&paging, items, |t| t.id.clone(), |t| t)?))
}

/// Makes a token; the answer shows it this once.
#[utoipa::path(post, path = "/tokens", tag = "people", request_body = NewToken,
    responses((status = 201, body = Token), (status = 422, description = "`name_invalid`, `expiry_invalid`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(new): Json<NewToken>,
) -> Result<(StatusCode, Json<Token>)> {
    full(&caller)?;
    check_name("A token's name", &new.name, 100)?;
    let now = app::now();
    let expires_at = match new.expires_in_s {
        Some(s) if !(1..=LONGEST_S).contains(&s) => {
            return Err(Problem::invalid("expiry_invalid", format!("expires_in_s is 1 to {LONGEST_S}.")));
        }
        s => s.map(|s| now + s),
    };
    // With a token of one fleet only tokens of that fleet can be made.
    let fleet = match (&new.fleet, caller.fleet) {
        (Some(slug), _) => Some(allowed(&app, &caller, slug, Act::Read).await?),
        (None, Some(_)) => {
            return Err(Problem::forbidden(
                "scope_insufficient",
                "This token opens one fleet; name it in `fleet`.",
            ));
        }
        (None, None) => None,
    };
    let mut tx = app.db.write().await?;
    let (id, token) = tokens::create(
        &mut tx,
        &tokens::NewToken {
            user_id: &caller.user_id,
            name: &new.name,
            scope: new.scope,
            fleet: fleet.as_ref().map(|f| f.fleet_id),
            expires_at: expires_at.and_then(|at| i64::try_from(at).ok()),
        },
    )
    .await?;
    let detail = serde_json::json!({"name": new.name, "scope": new.scope, "fleet": new.fleet, "expires_at": expires_at});
    audit::record(&mut tx, &caller, "token.create", &format!("token:{id}"), detail).await?;
    tx.commit().await?;
    let made = Token {
        id,
        name: new.name,
        scope: new.scope,
        fleet: new.fleet,
        created_at: now,
        expires_at,
        last_used_at: None,
        token: Some(token),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Revokes a token: one's own, or as an owner anyone's. It stops working at once.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "people",
    params(("id" = String, Path, description = "The token's id.")),
    responses((status = 204), (status = 404, description = "`not_found`")))]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    full(&caller)?;
    let anyone = caller.role == Role::Owner && caller.fleet.is_none();
    let mut tx = app.db.write().await?;
    // Before it: what is revoked may be what the caller shows.
    caller.holds(&mut tx).await?;
    let done = sqlx::query(
        "UPDATE tokens SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL AND ($3 OR user_id = $4) \
         AND ($5 IS NULL OR fleet_id = $5)",
    )
    .bind(app::now_i64())
    .bind(&id)
    .bind(anyone)
    .bind(&caller.user_id)
    .bind(caller.fleet.map(|f| f.to_string()))
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(Problem::not_found("such token"));
    }
    audit::note(&mut tx, &caller, "token.revoke", &format!("token:{id}"), serde_json::Value::Null).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
