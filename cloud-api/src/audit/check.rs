//! Reads the log and checks its chain, from the machine of the server.

use copal_protocol::audit::{Chain, Entry, Row, Verdict};

use crate::store::Db;

/// A row as the database has it.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Stored {
    pub(super) id: i64,
    at: i64,
    who: String,
    source: String,
    verb: String,
    object: String,
    why: String,
    detail: String,
    hash: String,
}

impl Stored {
    pub(super) fn row(self) -> Row {
        Row {
            hash: self.hash,
            entry: Entry {
                id: self.id,
                at: self.at,
                who: self.who,
                from: self.source,
                verb: self.verb,
                object: self.object,
                why: self.why,
                // What somebody made no JSON of is shown as the text it is, and has another hash.
                detail: serde_json::from_str(&self.detail).unwrap_or(serde_json::Value::String(self.detail)),
            },
        }
    }
}

/// Rows after an id, oldest first.
pub(super) const OLDEST_FIRST: &str =
    "SELECT id, at, who, source, verb, object, why, detail, hash FROM audit WHERE id > $1
     ORDER BY id LIMIT 1000";

/// Rows before an id, newest first, at most so many.
///
/// # Errors
/// When the database fails.
pub async fn pages(db: &Db, before: i64, limit: i64) -> sqlx::Result<Vec<Row>> {
    let rows: Vec<Stored> = sqlx::query_as(
        "SELECT id, at, who, source, verb, object, why, detail, hash FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(db.read())
    .await?;
    Ok(rows.into_iter().map(Stored::row).collect())
}

/// Checks the whole log, and looks for a hash that was noted earlier.
///
/// # Errors
/// When the database fails.
pub async fn check(db: &Db, since: Option<&str>) -> sqlx::Result<Verdict> {
    let mut chain = Chain::since(since);
    let mut before = i64::MAX;
    loop {
        let rows = pages(db, before, 1_000).await?;
        let Some(oldest) = rows.last() else { return Ok(chain.end()) };
        before = oldest.entry.id;
        for row in rows {
            chain.older(row);
        }
    }
}
