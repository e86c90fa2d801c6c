//! Users, for owners; and one's own password.

use std::time::Instant;

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, Role, Scope, limited, users},
    error::{Problem, Result},
};

/// Routes of users.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list, create)).routes(routes!(change)).routes(routes!(password))
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// Names it here.
    pub id: String,
    /// The address to sign in with.
    pub email: String,
    /// What the person is.
    pub role: Role,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; then neither password nor tokens work.
    pub disabled_at: Option<u64>,
}

/// A user to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The address to sign in with.
    pub email: String,
    /// 12 characters or more.
    pub password: String,
    /// What the person is to be.
    pub role: Role,
}

/// What to change of a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    /// Another role.
    #[serde(default)]
    pub role: Option<Role>,
    /// Whether the person is shut out: sessions end, tokens stop working.
    #[serde(default)]
    pub disabled: Option<bool>,
}

/// Another password for oneself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The one until now.
    pub current: String,
    /// The one from now on: 12 characters or more.
    pub new: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    email: String,
    role: String,
    created_at: i64,
    disabled_at: Option<i64>,
}

impl TryFrom<Row> for User {
    type Error = Problem;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            role: row.role.parse::<Role>()?,
            id: row.id,
            email: row.email,
            created_at: row.created_at.unsigned_abs(),
            disabled_at: row.disabled_at.map(i64::unsigned_abs),
        })
    }
}

/// Lists the users, by address; for owners.
#[utoipa::path(get, path = "/users", tag = "people", params(Paging), responses((status = 200, body = Page<User>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<User>>> {
    caller.may(Act::Own, None)?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, email, role, created_at, disabled_at FROM users WHERE email > $1 ORDER BY email LIMIT $2",
    )
    .bind(paging.after(String::new())?)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    let users = rows.into_iter().map(User::try_from).collect::<Result<Vec<_>>>()?;
    Ok(Json(Page::of(&paging, users, |u| u.email.clone(), |u| u)?))
}

/// Makes a user; for owners.
#[utoipa::path(post, path = "/users", tag = "people", request_body = NewUser,
    responses((status = 201, body = User), (status = 409, description = "`user_exists`"),
        (status = 422, description = "`email_invalid`, `password_weak`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(new): Json<NewUser>,
) -> Result<(StatusCode, Json<User>)> {
    caller.may(Act::Own, None)?;
    let (email, hash) = users::prepare(&app, &new.email, new.password).await?;
    let mut tx = app.db.write().await?;
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE email = $1)")
        .bind(&email)
        .fetch_one(&mut *tx)
        .await?;
    if exists {
        return Err(Problem::conflict("user_exists", format!("There is a user {email} already.")));
    }
    let id = users::upsert(&mut tx, &email, &hash, new.role).await?;
    let detail = serde_json::json!({"role": new.role});
    audit::record(&mut tx, &caller, "user.create", &format!("user:{email}"), detail).await?;
    tx.commit().await?;
    let made = User { id, email, role: new.role, created_at: app::now(), disabled_at: None };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Changes a user's role, or shuts the person out; for owners. One owner always stays.
#[utoipa::path(patch, path = "/users/{id}", tag = "people",
    params(("id" = String, Path, description = "The user's id.")), request_body = UserChange,
    responses((status = 200, body = User), (status = 409, description = "`last_owner`")))]
pub(crate) async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Json(change): Json<UserChange>,
) -> Result<Json<User>> {
    caller.may(Act::Own, None)?;
    let mut tx = app.db.write().await?;
    // Before it: what is changed may be the caller's own.
    caller.holds(&mut tx).await?;
    let row: Option<Row> = sqlx::query_as(
        "UPDATE users SET role = COALESCE($2, role), \
         disabled_at = CASE WHEN $3 IS NULL THEN disabled_at WHEN $3 THEN COALESCE(disabled_at, $4) END \
         WHERE id = $1 RETURNING id, email, role, created_at, disabled_at",
    )
    .bind(&id)
    .bind(change.role.map(Role::as_str))
    .bind(change.disabled)
    .bind(app::now_i64())
    .fetch_optional(&mut *tx)
    .await?;
    let user: User = row.ok_or_else(|| Problem::not_found("such user"))?.try_into()?;
    let owners: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE role = 'owner' AND disabled_at IS NULL")
            .fetch_one(&mut *tx)
            .await?;
    if owners == 0 {
        return Err(Problem::conflict(
            "last_owner",
            format!("{} is the last owner; make another owner first.", user.email),
        ));
    }
    if change.disabled == Some(true) {
        sqlx::query("DELETE FROM sessions WHERE user_id = $1").bind(&id).execute(&mut *tx).await?;
    }
    let detail = serde_json::json!({"role": change.role, "disabled": change.disabled});
    audit::note(&mut tx, &caller, "user.change", &format!("user:{}", user.email), detail).await?;
    tx.commit().await?;
    Ok(Json(user))
}

/// Changes one's own password. Every session of one's ends, this one too.
#[utoipa::path(post, path = "/me/password", tag = "people", request_body = PasswordChange,
    responses((status = 204), (status = 403, description = "`password_wrong`, `scope_insufficient`"),
        (status = 422, description = "`password_weak`"), (status = 429, description = "`too_many_attempts`")))]
pub(crate) async fn password(
    State(app): State<App>,
    caller: Caller,
    Json(asked): Json<PasswordChange>,
) -> Result<StatusCode> {
    if caller.scope < Scope::Full || caller.fleet.is_some() {
        return Err(Problem::forbidden(
            "scope_insufficient",
            "A password is changed by a session or a full token.",
        ));
    }
    limited(&app, &caller.email, &caller.source)?;
    let user = users::by_email(&app, &caller.email).await?;
    let stored = user.as_ref().map(|u| u.password_hash.clone());
    if !app.auth.hashing.verify(stored, asked.current).await? {
        app.auth.limits.failed(&caller.email, &caller.source, Instant::now());
        return Err(Problem::forbidden("password_wrong", "The current password is another one."));
    }
    let (email, hash) = users::prepare(&app, &caller.email, asked.new).await?;
    let mut tx = app.db.write().await?;
    caller.holds(&mut tx).await?;
    // Two at once, by who knows the old one: the first counts.
    let still = match &user {
        Some(user) => users::is_still(&mut tx, user).await?,
        None => false,
    };
    if !still || !users::set_password(&mut tx, &caller.user_id, &hash).await? {
        return Err(Problem::forbidden(
            "password_wrong",
            "The password was changed meanwhile, or the person shut out.",
        ));
    }
    audit::note(&mut tx, &caller, "user.password", &format!("user:{email}"), serde_json::Value::Null).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
