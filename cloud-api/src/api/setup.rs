//! The first admin, by the one-time link the server printed.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, me::Me};
use crate::{
    app::App,
    audit,
    auth::{Role, Scope, hash_secret, limited, random_secret, sessions, source, users},
    error::{Problem, Result},
};

/// Where the hash of the open link stands in `meta`.
const META: &str = "setup_token";

/// Routes of the first start.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(setup))
}

/// The first admin.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// From the link the server printed.
    pub token: String,
    /// The admin's address.
    pub email: String,
    /// 12 characters or more.
    pub password: String,
}

/// Makes a fresh one-time link while there is no user; `None` once there is. A link of an earlier start stops working.
///
/// # Errors
/// When the database or the system's randomness fails.
pub async fn link(app: &App) -> Result<Option<String>> {
    let mut tx = app.db.write().await?;
    if users::any(&mut tx).await? {
        return Ok(None);
    }
    let token = random_secret("")?;
    sqlx::query(
        "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )
    .bind(META)
    .bind(hash_secret(&token))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Some(format!("{}/setup?token={token}", app.config.url)))
}

/// Makes the first user, an owner, and signs them in. Works once.
#[utoipa::path(post, path = "/setup", tag = "people", security(()), request_body = Setup,
    responses((status = 201, body = Me), (status = 403, description = "`setup_token_invalid`"),
        (status = 409, description = "`setup_done`"),
        (status = 422, description = "`email_invalid`, `password_weak`"),
        (status = 429, description = "`too_many_attempts`")))]
pub(crate) async fn setup(
    State(app): State<App>,
    headers: HeaderMap,
    Json(asked): Json<Setup>,
) -> Result<impl IntoResponse> {
    let source = source(&headers);
    limited(&app, "setup", &source)?;
    let expected: Option<String> = sqlx::query_scalar("SELECT value FROM meta WHERE key = $1")
        .bind(META)
        .fetch_optional(app.db.read())
        .await?;
    // Hashes are compared: how far they agree tells nothing about the token.
    let right = expected.is_some_and(|hash| hash == hash_secret(&asked.token));
    if !right {
        app.auth.limits.failed("setup", &source, std::time::Instant::now());
        return Err(Problem::forbidden(
            "setup_token_invalid",
            "The setup link is not valid (any more). Restart the server for a new one, or run `copal-cloud admin create`.",
        ));
    }
    let (email, hash) = users::prepare(&app, &asked.email, asked.password).await?;
    let mut tx = app.db.write().await?;
    if users::any(&mut tx).await? {
        return Err(Problem::conflict(
            "setup_done",
            "This server has its first user already. Sign in instead.",
        ));
    }
    let user_id = users::upsert(&mut tx, &email, &hash, Role::Owner).await?;
    sqlx::query("DELETE FROM meta WHERE key = $1").bind(META).execute(&mut *tx).await?;
    audit::record_as(
        &mut tx,
        &email,
        &source,
        "user.setup",
        &format!("user:{email}"),
        serde_json::Value::Null,
    )
    .await?;
    let session = sessions::begin(&mut tx, &user_id).await?;
    tx.commit().await?;
    let fleets = std::collections::BTreeMap::new();
    let me = Me { email, role: Role::Owner, fleets, scope: Scope::Full, token: None, fleet: None };
    let cookie = sessions::set_cookie(&app, &session)?;
    Ok((StatusCode::CREATED, AppendHeaders([(header::SET_COOKIE, cookie)]), Json(me)))
}
