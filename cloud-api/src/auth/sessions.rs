//! Sessions of signed-in people: a random id in a cookie, kept as SHA-256. Signing in always makes a new one, so an
//! id planted beforehand is worth nothing.

use axum::http::{HeaderMap, HeaderValue, header};

use super::{Caller, Credential, Role, Scope, hash_secret, members, random_secret};
use crate::{
    app::{self, App},
    error::{Problem, Result},
    store::Tx,
};

/// How long a session lasts, seconds.
pub const LIFETIME_S: i64 = 7 * 24 * 3600;

/// Under TLS the prefix makes the browser insist on `Secure`, `Path=/` and no `Domain`, so that no neighbour under the
/// same domain can plant one. Plain HTTP on loopback cannot have it.
const SECURE_NAME: &str = "__Host-copal_session";
const PLAIN_NAME: &str = "copal_session";

/// The session id a request carries, under the one name this server gives it: under TLS a cookie without the prefix may
/// be a neighbour's.
#[must_use]
pub fn cookie<'a>(app: &App, headers: &'a HeaderMap) -> Option<&'a str> {
    let wanted = name(app);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| value)
}

fn secure(app: &App) -> bool {
    app.config.url.starts_with("https://")
}

fn name(app: &App) -> &'static str {
    if secure(app) { SECURE_NAME } else { PLAIN_NAME }
}

/// The `Set-Cookie` that gives a session id, or with an empty id takes it away.
///
/// # Errors
/// Never for ids made here.
pub fn set_cookie(app: &App, id: &str) -> Result<HeaderValue> {
    let name = name(app);
    let age = if id.is_empty() { 0 } else { LIFETIME_S };
    let secure = if secure(app) { "; Secure" } else { "" };
    HeaderValue::try_from(format!("{name}={id}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"))
        .map_err(Problem::internal)
}

/// Whose session this is.
///
/// # Errors
/// 401 `session_invalid`.
pub async fn caller(app: &App, id: &str, source: String) -> Result<Caller> {
    let row: Option<(String, String, String)> = sqlx::query_as(
        "SELECT u.id, u.email, u.role FROM sessions s JOIN users u ON u.id = s.user_id \
         WHERE s.id_hash = $1 AND s.expires_at > $2 AND u.disabled_at IS NULL",
    )
    .bind(hash_secret(id))
    .bind(app::now_i64())
    .fetch_optional(app.db.read())
    .await?;
    let (user_id, email, role) =
        row.ok_or_else(|| Problem::unauthorized("session_invalid", "The session has ended. Sign in again."))?;
    let role = role.parse::<Role>()?;
    let on_fleets = members::of_user(app.db.read(), &user_id, role).await?;
    Ok(Caller {
        who: email.clone(),
        email,
        user_id,
        role,
        on_fleets,
        scope: Scope::Full,
        fleet: None,
        token: None,
        credential: Credential::Session(hash_secret(id)),
        source,
        why: String::new(),
    })
}

/// Begins a session, ends what has expired, and gives the new id.
///
/// # Errors
/// When the database or the system's randomness fails.
pub async fn begin(tx: &mut Tx, user_id: &str) -> Result<String> {
    let id = random_secret("")?;
    let now = app::now_i64();
    sqlx::query("DELETE FROM sessions WHERE expires_at <= $1").bind(now).execute(&mut **tx).await?;
    sqlx::query("INSERT INTO sessions (id_hash, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(hash_secret(&id))
        .bind(user_id)
        .bind(now)
        .bind(now + LIFETIME_S)
        .execute(&mut **tx)
        .await?;
    Ok(id)
}

/// Ends a session.
///
/// # Errors
/// When the database fails.
pub async fn end(tx: &mut Tx, id: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM sessions WHERE id_hash = $1").bind(hash_secret(id)).execute(&mut **tx).await?;
    Ok(())
}
