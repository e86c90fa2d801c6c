//! The database: SQLite in WAL mode, one writer and several readers.
//!
//! In: queries of the repositories, which live in the room of their aggregate (`fleets.rs` here, `devices/rows.rs`, …).
//! Out: rows. Never here: HTTP, signing, decisions. The SQL keeps to what PostgreSQL reads too, so that it can take over.

pub mod fleets;

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use sqlx::{
    SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::audit;

/// Every migration, in order; never edited once released.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("../../migrations/0001_start.sql")),
    (2, "host", include_str!("../../migrations/0002_host.sql")),
    (3, "withdraw", include_str!("../../migrations/0003_withdraw.sql")),
    (4, "commands", include_str!("../../migrations/0004_commands.sql")),
    (5, "filter_audit", include_str!("../../migrations/0005_filter_audit.sql")),
    (6, "terminal", include_str!("../../migrations/0006_terminal.sql")),
    (7, "telemetry", include_str!("../../migrations/0007_telemetry.sql")),
    (9, "rounds", include_str!("../../migrations/0009_rounds.sql")),
    (10, "members", include_str!("../../migrations/0010_members.sql")),
    (11, "checks", include_str!("../../migrations/0011_checks.sql")),
    (12, "brakes", include_str!("../../migrations/0012_brakes.sql")),
    (13, "committed", include_str!("../../migrations/0013_committed.sql")),
    (14, "authors", include_str!("../../migrations/0014_authors.sql")),
    (15, "expected", include_str!("../../migrations/0015_expected.sql")),
];

/// The database.
#[derive(Clone, Debug)]
pub struct Db {
    readers: SqlitePool,
    writer: SqlitePool,
}

/// A write in progress; nothing of it stands until `commit`.
pub type Tx = Transaction<'static, Sqlite>;

impl Db {
    /// Opens (and makes, and migrates) the database file.
    ///
    /// # Errors
    /// When the file cannot be opened or was made by a newer version.
    pub async fn open(file: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let what = || format!("opening the database {}", file.display());
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .with_context(what)?;
        let mut migrator = Migrator::DEFAULT;
        migrator.migrations = MIGRATIONS
            .iter()
            .map(|&(version, name, sql)| {
                Migration::new(
                    version,
                    name.into(),
                    MigrationType::Simple,
                    sqlx::SqlStr::from_static(sql),
                    false,
                )
            })
            .collect();
        migrator.run(&writer).await.with_context(|| format!("migrating the database {}", file.display()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true))
            .await
            .with_context(what)?;
        let db = Self { readers, writer };
        audit::chain_old(&db)
            .await
            .with_context(|| format!("chaining the audit log in {}", file.display()))?;
        Ok(db)
    }

    /// For queries that change nothing.
    #[must_use]
    pub fn read(&self) -> &SqlitePool {
        &self.readers
    }

    /// Begins a write. There is one writer, so writes queue here and never deadlock; keep them short and never wait
    /// for anything else within.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn write(&self) -> sqlx::Result<Tx> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// Closes every connection; the WAL is folded in.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_opens_migrates_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copal.db");
        let db = Db::open(&file).await.unwrap();
        let mut tx = db.write().await.unwrap();
        sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2)")
            .bind("k")
            .bind("v")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        db.close().await;
        let db = Db::open(&file).await.unwrap();
        let value: String =
            sqlx::query_scalar("SELECT value FROM meta WHERE key = 'k'").fetch_one(db.read()).await.unwrap();
        assert_eq!(value, "v");
    }
}
