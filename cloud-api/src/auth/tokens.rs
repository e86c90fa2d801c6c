//! API tokens: `copal_` and 256 random bits, kept as SHA-256.

use copal_protocol::ids::FleetId;

use super::{Caller, Credential, Role, Scope, hash_secret, members, random_id, random_secret};
use crate::{
    app::{self, App},
    error::{Problem, Result},
    store::Tx,
};

/// What every token begins with, so that secret scanners know it.
pub const PREFIX: &str = "copal_";

/// How stale `last_used_at` may be, seconds: a busy token must not write at every request.
const USED_AT_GRAIN_S: i64 = 60;

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    scope: String,
    fleet_id: Option<String>,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    user_id: String,
    email: String,
    role: String,
}

/// Finds whose token this is.
///
/// # Errors
/// 401 `token_invalid` when unknown, revoked or of a disabled user, 401 `token_expired`.
pub async fn caller(app: &App, token: &str, source: String) -> Result<Caller> {
    if !token.starts_with(PREFIX) || token.len() > 128 {
        return Err(invalid());
    }
    by_hash(app, &hash_secret(token), source).await
}

fn invalid() -> Problem {
    Problem::unauthorized(
        "token_invalid",
        "The token is not known here, or was revoked. Make another with `copal token create`.",
    )
}

/// The same by the token's hash, for who may not keep the token itself.
///
/// # Errors
/// As [`caller`].
pub async fn by_hash(app: &App, hash: &str, source: String) -> Result<Caller> {
    let row: Row = sqlx::query_as(
        "SELECT t.id, t.name, t.scope, t.fleet_id, t.expires_at, t.last_used_at, u.id AS user_id, u.email, u.role \
         FROM tokens t JOIN users u ON u.id = t.user_id \
         WHERE t.hash = $1 AND t.revoked_at IS NULL AND u.disabled_at IS NULL",
    )
    .bind(hash)
    .fetch_optional(app.db.read())
    .await?
    .ok_or_else(invalid)?;
    let now = app::now_i64();
    if row.expires_at.is_some_and(|at| at <= now) {
        return Err(Problem::unauthorized(
            "token_expired",
            format!("The token {:?} has expired. Make another with `copal token create`.", row.name),
        ));
    }
    if row.last_used_at.is_none_or(|at| at + USED_AT_GRAIN_S <= now) {
        touch(app, row.id.clone(), now);
    }
    let role = row.role.parse::<Role>()?;
    let on_fleets = members::of_user(app.db.read(), &row.user_id, role).await?;
    let fleet = row.fleet_id.as_deref().map(str::parse::<FleetId>).transpose().map_err(Problem::internal)?;
    Ok(Caller {
        who: format!("token:{} ({})", row.name, row.email),
        email: row.email,
        user_id: row.user_id,
        role,
        on_fleets,
        scope: row.scope.parse::<Scope>()?,
        fleet,
        token: Some(row.name),
        credential: Credential::Token(row.id),
        source,
        why: String::new(),
    })
}

/// Notes the use beside the request: nobody waits for it, and losing it loses nothing.
fn touch(app: &App, id: String, now: i64) {
    let app = app.clone();
    tokio::spawn(async move {
        let noted = async {
            let mut tx = app.db.write().await?;
            sqlx::query("UPDATE tokens SET last_used_at = $1 WHERE id = $2")
                .bind(now)
                .bind(id)
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        };
        if let Err(error) = noted.await {
            tracing::warn!(%error, "noting when a token was last used");
        }
    });
}

/// A token to be made.
#[derive(Debug)]
pub struct NewToken<'a> {
    /// Whose.
    pub user_id: &'a str,
    /// What for.
    pub name: &'a str,
    /// What it may do.
    pub scope: Scope,
    /// The only fleet it opens.
    pub fleet: Option<FleetId>,
    /// Unix seconds.
    pub expires_at: Option<i64>,
}

/// Makes a token; gives its id and, this once, the token.
///
/// # Errors
/// When the database or the system's randomness fails.
pub async fn create(tx: &mut Tx, new: &NewToken<'_>) -> Result<(String, String)> {
    let (id, token) = (random_id()?, random_secret(PREFIX)?);
    sqlx::query(
        "INSERT INTO tokens (id, user_id, name, hash, scope, fleet_id, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&id)
    .bind(new.user_id)
    .bind(new.name)
    .bind(hash_secret(&token))
    .bind(new.scope.as_str())
    .bind(new.fleet.map(|f| f.to_string()))
    .bind(app::now_i64())
    .bind(new.expires_at)
    .execute(&mut **tx)
    .await?;
    Ok((id, token))
}
