//! Who did what, on what, when, from where. Rows are written in the transaction of the act itself, so that neither
//! stands without the other; they are never changed.

use crate::{app, auth::Caller, store::Tx};

/// Notes an act. `verb` is `noun.verb` in the field's words (`fleet.create`), `object` what it was done to
/// (`fleet:greenhouse`), `detail` what else matters; never a secret.
///
/// # Errors
/// When the database fails.
pub async fn record(
    tx: &mut Tx,
    caller: &Caller,
    verb: &str,
    object: &str,
    detail: serde_json::Value,
) -> sqlx::Result<()> {
    record_as(tx, &caller.who, &caller.source, verb, object, detail).await
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
    let detail = if detail.is_null() { "{}".to_owned() } else { detail.to_string() };
    sqlx::query("INSERT INTO audit (at, who, source, verb, object, detail) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(app::now_i64())
        .bind(who)
        .bind(source)
        .bind(verb)
        .bind(object)
        .bind(detail)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
