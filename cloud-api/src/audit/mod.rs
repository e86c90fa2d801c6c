//! Who did what, on what, when, from where. Rows are written in the transaction of the act itself, so that neither
//! stands without the other; they are never changed, and each carries the hash of the one before (see
//! [`copal_protocol::audit`]), so that a log somebody changed is seen.
//!
//! Two acts cannot follow the same row: a write transaction is the only one there is (`store`), in this process and beside it,
//! from its begin, before it reads which row is the newest.

mod check;
#[cfg(test)]
mod tests;

pub use check::{check, pages};
use copal_protocol::audit::{Entry, START};

use crate::{
    app,
    auth::Caller,
    error::Result,
    store::{Db, Tx},
};

/// Notes an act within its write, and refuses it where its caller is less by now than when it was judged: a body comes slowly, and
/// meanwhile a right may have been taken away. `verb` is `noun.verb` in the field's words (`fleet.create`), `object` what it was
/// done to (`fleet:greenhouse`), `detail` what else matters; never a secret. Why is what the caller said.
///
/// # Errors
/// When the database fails; those of [`Caller::holds`].
pub async fn record(
    tx: &mut Tx,
    caller: &Caller,
    verb: &str,
    object: &str,
    detail: serde_json::Value,
) -> Result<()> {
    caller.holds(tx).await?;
    Ok(note(tx, caller, verb, object, detail).await?)
}

/// As [`record`], whatever the caller is by now: for what has happened (the end of a session, a ref that moved), and for acts that
/// take something from their own caller, who was looked at before.
///
/// # Errors
/// When the database fails.
pub async fn note(
    tx: &mut Tx,
    caller: &Caller,
    verb: &str,
    object: &str,
    detail: serde_json::Value,
) -> sqlx::Result<()> {
    write(tx, &caller.who, &caller.source, verb, object, &caller.why, detail).await
}

/// As [`record`], for someone who is not (yet) a [`Caller`]: a failed sign-in, the first admin.
///
/// # Errors
/// When the database fails.
pub async fn record_as(
    tx: &mut Tx,
    who: &str,
    source: &str,
    verb: &str,
    object: &str,
    detail: serde_json::Value,
) -> sqlx::Result<()> {
    write(tx, who, source, verb, object, "", detail).await
}

async fn write(
    tx: &mut Tx,
    who: &str,
    source: &str,
    verb: &str,
    object: &str,
    why: &str,
    detail: serde_json::Value,
) -> sqlx::Result<()> {
    let detail = if detail.is_null() { serde_json::json!({}) } else { detail };
    let at = app::now_i64();
    // The database gives the id, so that one that was removed from the end leaves a gap when the next act is written.
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO audit (at, who, source, verb, object, why, detail) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
    )
    .bind(at)
    .bind(who)
    .bind(source)
    .bind(verb)
    .bind(object)
    .bind(why)
    .bind(detail.to_string())
    .fetch_one(&mut **tx)
    .await?;
    let before: Option<String> =
        sqlx::query_scalar("SELECT hash FROM audit WHERE id < $1 ORDER BY id DESC LIMIT 1")
            .bind(id)
            .fetch_optional(&mut **tx)
            .await?;
    let entry = Entry {
        id,
        at,
        who: who.to_owned(),
        from: source.to_owned(),
        verb: verb.to_owned(),
        object: object.to_owned(),
        why: why.to_owned(),
        detail,
    };
    let hash = entry.hash(before.as_deref().unwrap_or(START));
    sqlx::query("UPDATE audit SET hash = $2 WHERE id = $1").bind(id).bind(hash).execute(&mut **tx).await?;
    Ok(())
}

/// Chains the rows of a log that was begun before there were hashes; once in the life of a database, so that rows without a
/// hash are never taken for old ones later.
///
/// # Errors
/// When the database fails.
pub async fn chain_old(db: &Db) -> sqlx::Result<()> {
    const DONE: &str = "SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'audit_chained')";
    if sqlx::query_scalar(DONE).fetch_one(db.read()).await? {
        return Ok(());
    }
    let mut tx = db.write().await?;
    // Another process may have been quicker.
    if sqlx::query_scalar(DONE).fetch_one(&mut *tx).await? {
        return Ok(());
    }
    let mut before = START.to_owned();
    let mut last = 0_i64;
    loop {
        let rows: Vec<check::Stored> =
            sqlx::query_as(check::OLDEST_FIRST).bind(last).fetch_all(&mut *tx).await?;
        let Some(newest) = rows.last() else { break };
        last = newest.id;
        for row in rows {
            let row = row.row();
            before = row.entry.hash(&before);
            sqlx::query("UPDATE audit SET hash = $2 WHERE id = $1 AND hash = ''")
                .bind(row.entry.id)
                .bind(&before)
                .execute(&mut *tx)
                .await?;
        }
    }
    sqlx::query("INSERT INTO meta (key, value) VALUES ('audit_chained', $1)")
        .bind(app::now_i64().to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
