//! Sessions in the database.

use copal_protocol::{
    channel::Closed,
    documents::TerminalTarget,
    ids::{DeviceId, FleetId},
};

use crate::{
    app::App,
    error::{Problem, Result},
    store::Tx,
};

/// One session.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct SessionRow {
    pub(crate) number: i64,
    pub(crate) id: String,
    pub(crate) device_id: String,
    kind: String,
    of: String,
    pub(crate) mode: String,
    pub(crate) who: String,
    pub(crate) user_id: String,
    pub(crate) reason: String,
    pub(crate) cols: i64,
    pub(crate) rows: i64,
    pub(crate) max_s: i64,
    pub(crate) idle_s: i64,
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i64>,
    pub(crate) bytes_in: i64,
    pub(crate) bytes_out: i64,
    pub(crate) recording_bytes: Option<i64>,
    pub(crate) recording_sha256: Option<String>,
    pub(crate) created_at: i64,
    pub(crate) opened_at: Option<i64>,
    pub(crate) ended_at: Option<i64>,
}

impl SessionRow {
    /// What it opens.
    pub(crate) fn target(&self) -> Result<TerminalTarget> {
        match self.kind.as_str() {
            "host" => Ok(TerminalTarget::Host),
            "service" => self.of.parse().map(TerminalTarget::Service).map_err(Problem::internal),
            "recording" => self.of.parse().map(TerminalTarget::Recording).map_err(Problem::internal),
            other => Err(Problem::internal(format!("a session of kind {other:?} in the database"))),
        }
    }
}

/// A session to be.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub(super) id: String,
    pub(super) device_id: String,
    pub(super) target: &'a TerminalTarget,
    pub(super) mode: &'static str,
    pub(super) who: &'a str,
    pub(super) user_id: &'a str,
    pub(super) reason: &'a str,
    pub(super) size: (u16, u16),
    pub(super) max_s: u32,
    pub(super) idle_s: u32,
    pub(super) now: i64,
}

pub(super) async fn insert(tx: &mut Tx, new: &New<'_>) -> Result<SessionRow> {
    let (kind, of) = match new.target {
        TerminalTarget::Service(name) => ("service", name.to_string()),
        TerminalTarget::Host => ("host", String::new()),
        TerminalTarget::Recording(id) => ("recording", id.to_string()),
    };
    sqlx::query(
        "INSERT INTO terminal_sessions (id, device_id, kind, of, mode, who, user_id, reason, cols, rows, max_s, idle_s, state, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'opening', $13)",
    )
    .bind(&new.id)
    .bind(&new.device_id)
    .bind(kind)
    .bind(of)
    .bind(new.mode)
    .bind(new.who)
    .bind(new.user_id)
    .bind(new.reason)
    .bind(i64::from(new.size.0))
    .bind(i64::from(new.size.1))
    .bind(i64::from(new.max_s))
    .bind(i64::from(new.idle_s))
    .bind(new.now)
    .execute(&mut **tx)
    .await?;
    within(tx, &new.id).await?.ok_or_else(|| Problem::not_found("such session"))
}

/// Sessions of a person on a device that nobody came for yet.
pub(super) async fn opening(tx: &mut Tx, device: &str, user: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT COUNT(*) FROM terminal_sessions
         WHERE ended_at IS NULL AND device_id = $1 AND user_id = $2 AND state = 'opening'",
    )
    .bind(device)
    .bind(user)
    .fetch_one(&mut **tx)
    .await?)
}

/// Bytes of a fleet's recordings that may not be let go of yet: of what ended since, and of what is open.
pub(super) async fn recorded(tx: &mut Tx, fleet: &str, since: i64) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT CAST(COALESCE(SUM(s.recording_bytes), 0) AS BIGINT)
         FROM terminal_sessions s JOIN devices d ON d.device_id = s.device_id
         WHERE d.fleet_id = $1 AND s.recording_bytes IS NOT NULL AND (s.ended_at IS NULL OR s.ended_at >= $2)",
    )
    .bind(fleet)
    .bind(since)
    .fetch_one(&mut **tx)
    .await?)
}

/// A session, within a write.
pub(super) async fn within(tx: &mut Tx, id: &str) -> Result<Option<SessionRow>> {
    let found = sqlx::query_as("SELECT * FROM terminal_sessions WHERE id = $1").bind(id);
    Ok(found.fetch_optional(&mut **tx).await?)
}

/// A session of a fleet.
pub(crate) async fn one(app: &App, fleet: &str, id: &str) -> Result<Option<SessionRow>> {
    let found = sqlx::query_as(
        "SELECT s.* FROM terminal_sessions s JOIN devices d ON d.device_id = s.device_id WHERE s.id = $1 AND d.fleet_id = $2",
    );
    Ok(found.bind(id).bind(fleet).fetch_optional(app.db.read()).await?)
}

/// Sessions of a fleet before a number, newest first: all or live ones, of all devices or one.
pub(crate) async fn list(
    app: &App,
    fleet: &str,
    device: Option<&str>,
    live: bool,
    before: i64,
    limit: i64,
) -> Result<Vec<SessionRow>> {
    let found = sqlx::query_as(
        "SELECT s.* FROM terminal_sessions s JOIN devices d ON d.device_id = s.device_id
         WHERE d.fleet_id = $1 AND ($2 IS NULL OR s.device_id = $2) AND ($3 = 0 OR s.ended_at IS NULL) AND s.number < $4
         ORDER BY s.number DESC LIMIT $5",
    );
    Ok(found
        .bind(fleet)
        .bind(device)
        .bind(i64::from(live))
        .bind(before)
        .bind(limit)
        .fetch_all(app.db.read())
        .await?)
}

/// Sessions that have not ended, each with its fleet: of a device, of a fleet, or all.
pub(super) async fn live(
    app: &App,
    fleet: Option<FleetId>,
    device: Option<DeviceId>,
) -> Result<Vec<(String, SessionRow)>> {
    #[derive(sqlx::FromRow)]
    struct Live {
        fleet: String,
        #[sqlx(flatten)]
        row: SessionRow,
    }
    let found: Vec<Live> = sqlx::query_as(
        "SELECT d.fleet_id AS fleet, s.* FROM terminal_sessions s JOIN devices d ON d.device_id = s.device_id
         WHERE s.ended_at IS NULL AND ($1 IS NULL OR d.fleet_id = $1) AND ($2 IS NULL OR s.device_id = $2)
         ORDER BY s.number LIMIT 10000",
    )
    .bind(fleet.map(|id| id.to_string()))
    .bind(device.map(|id| id.to_string()))
    .fetch_all(app.db.read())
    .await?;
    Ok(found.into_iter().map(|live| (live.fleet, live.row)).collect())
}

/// The device opened it; `false` where it has ended meanwhile.
pub(super) async fn opened(tx: &mut Tx, id: &str, recorded: bool, now: i64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE terminal_sessions SET state = 'open', opened_at = $2, recording_bytes = CASE WHEN $3 THEN 0 END
         WHERE id = $1 AND ended_at IS NULL",
    );
    Ok(done.bind(id).bind(now).bind(recorded).execute(&mut **tx).await?.rows_affected() == 1)
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) closed: Closed,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) recording: Option<(u64, String)>,
}

/// Writes the end down; `false` where it was written before.
pub(super) async fn ended(tx: &mut Tx, id: &str, end: &Ended, now: i64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE terminal_sessions SET state = 'ended', code = $2, message = $3, exit_code = $4, bytes_in = $5, bytes_out = $6,
            recording_bytes = $7, recording_sha256 = $8, ended_at = $9 WHERE id = $1 AND ended_at IS NULL",
    );
    let done = done
        .bind(id)
        .bind(&end.closed.code)
        .bind(&end.closed.message)
        .bind(end.closed.exit_code)
        .bind(end.bytes_in.cast_signed())
        .bind(end.bytes_out.cast_signed())
        .bind(end.recording.as_ref().map(|(bytes, _)| bytes.cast_signed()))
        .bind(end.recording.as_ref().map(|(_, sha256)| sha256))
        .bind(now)
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected() == 1)
}
