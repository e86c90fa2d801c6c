//! Users: an address, a role, a password.

use super::{Role, passwords, random_id};
use crate::{
    app::{self, App},
    error::{Problem, Result},
    store::Tx,
};

/// A user, as the database has it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct UserRow {
    /// Its id.
    pub id: String,
    /// Lower case.
    pub email: String,
    /// PHC string.
    pub password_hash: String,
    /// See [`Role`].
    pub role: String,
}

/// An address in the form it is stored in.
///
/// # Errors
/// 422 `email_invalid`.
pub fn normal_email(email: &str) -> Result<String> {
    let email = email.trim().to_lowercase();
    let sound = email.len() <= 254
        && email
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
        && email.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if sound {
        Ok(email)
    } else {
        Err(Problem::invalid(
            "email_invalid",
            format!("{:?} is not an e-mail address.", email.chars().take(80).collect::<String>()),
        ))
    }
}

/// The user of an address, unless disabled.
///
/// # Errors
/// When the database fails.
pub async fn by_email(app: &App, email: &str) -> Result<Option<UserRow>> {
    Ok(sqlx::query_as(
        "SELECT id, email, password_hash, role FROM users WHERE email = $1 AND disabled_at IS NULL",
    )
    .bind(email)
    .fetch_optional(app.db.read())
    .await?)
}

/// Whether a user is as it was read: neither shut out since nor with another password.
///
/// # Errors
/// When the database fails.
pub async fn is_still(tx: &mut Tx, user: &UserRow) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM users WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL)",
    )
    .bind(&user.id)
    .bind(&user.password_hash)
    .fetch_one(&mut **tx)
    .await
}

/// Gives a user another password, and ends what the old one began; `false` where the person is shut out. `hash` is from
/// [`passwords::Hashing::hash`].
///
/// # Errors
/// When the database fails.
pub async fn set_password(tx: &mut Tx, user_id: &str, hash: &str) -> sqlx::Result<bool> {
    let done = sqlx::query("UPDATE users SET password_hash = $2 WHERE id = $1 AND disabled_at IS NULL")
        .bind(user_id)
        .bind(hash)
        .execute(&mut **tx)
        .await?;
    sqlx::query("DELETE FROM sessions WHERE user_id = $1").bind(user_id).execute(&mut **tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Whether there is anyone yet.
///
/// # Errors
/// When the database fails.
pub async fn any(tx: &mut Tx) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users)").fetch_one(&mut **tx).await
}

/// Makes a user, or gives an existing one this password and role, and lets them in again. `hash` is from [`passwords::Hashing::hash`].
///
/// # Errors
/// When the database fails.
pub async fn upsert(tx: &mut Tx, email: &str, hash: &str, role: Role) -> Result<String> {
    let id: String = sqlx::query_scalar(
        "INSERT INTO users (id, email, password_hash, role, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (email) DO UPDATE SET password_hash = excluded.password_hash, role = excluded.role, \
         disabled_at = NULL RETURNING id",
    )
    .bind(random_id()?)
    .bind(email)
    .bind(hash)
    .bind(role.as_str())
    .bind(app::now_i64())
    .fetch_one(&mut **tx)
    .await?;
    // A new password ends what the old one began.
    sqlx::query("DELETE FROM sessions WHERE user_id = $1").bind(&id).execute(&mut **tx).await?;
    Ok(id)
}

/// Checks and hashes what a new user is to be given.
///
/// # Errors
/// 422 `email_invalid` or `password_weak`.
pub async fn prepare(app: &App, email: &str, password: String) -> Result<(String, String)> {
    let email = normal_email(email)?;
    passwords::check_new(&password)?;
    let hash = app.auth.hashing.hash(password).await?;
    Ok((email, hash))
}
