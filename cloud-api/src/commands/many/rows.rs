//! Rounds in the database.

use std::collections::BTreeMap;

use copal_protocol::documents::Delivery;

use crate::{
    app::App,
    auth::Author,
    commands::{
        rows::{CommandRow, Step, delivery_word},
        state::CommandState,
    },
    error::{Problem, Result},
    health,
    store::Tx,
};

/// Rounds kept of a fleet; the oldest that ended go first.
const KEPT: i64 = 20;
/// Devices written down with one statement.
const ROWS: usize = 1_000;

/// One round.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Round {
    pub(crate) number: i64,
    pub(crate) id: String,
    pub(super) fleet_id: String,
    pub(crate) verb: String,
    pub(crate) args: String,
    pub(super) args_whole: Option<String>,
    pub(crate) filter: String,
    pub(crate) delivery: String,
    pub(crate) ttl_s: i64,
    pub(crate) asked_by: String,
    pub(crate) why: String,
    pub(crate) total: i64,
    pub(crate) created_at: i64,
    pub(crate) ended_at: Option<i64>,
    pub(crate) user_id: String,
    token_id: Option<String>,
}

impl Round {
    /// Who asked.
    pub(super) fn author(&self) -> Author {
        Author { user_id: self.user_id.clone(), token_id: self.token_id.clone() }
    }
}

/// A round to be.
#[derive(Debug)]
pub(super) struct NewRound {
    pub(super) id: String,
    pub(super) fleet_id: String,
    pub(super) verb: String,
    pub(super) args: String,
    pub(super) args_whole: Option<String>,
    pub(super) filter: String,
    pub(super) acts: bool,
    pub(super) delivery: Delivery,
    pub(super) ttl_s: u32,
    pub(super) asked_by: String,
    pub(super) author: Author,
    pub(super) why: String,
    pub(super) created_at: u64,
}

/// A device of a round.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct RoundDevice {
    pub(crate) device_id: String,
    pub(crate) name: String,
    pub(crate) command_id: Option<String>,
    pub(crate) state: String,
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) checks: Option<String>,
    pub(crate) verdict: Option<String>,
    pub(crate) ended_at: Option<i64>,
}

/// How many devices stand where, and how many have which worst verdict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) states: BTreeMap<String, u64>,
    pub(crate) verdicts: BTreeMap<String, u64>,
}

/// How many rounds of a fleet have devices still to ask, and how many have not ended, of those that act or of those that ask.
pub(super) async fn open_of(tx: &mut Tx, fleet: &str, acts: bool) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(
        "SELECT COUNT(CASE WHEN EXISTS (
                SELECT 1 FROM fleet_command_devices d
                WHERE d.fleet_command = f.number AND d.command_id IS NULL AND d.ended_at IS NULL) THEN 1 END),
            COUNT(*) FROM fleet_commands f WHERE fleet_id = $1 AND acts = $2 AND ended_at IS NULL",
    )
    .bind(fleet)
    .bind(acts)
    .fetch_one(&mut **tx)
    .await?)
}

/// Writes a round down with its devices, and makes room for it.
pub(super) async fn insert(tx: &mut Tx, new: &NewRound, devices: &[String]) -> Result<Round> {
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO fleet_commands (id, fleet_id, verb, args, args_whole, filter, acts, delivery, ttl_s, asked_by, why, total,
            created_at, user_id, token_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING number",
    )
    .bind(&new.id)
    .bind(&new.fleet_id)
    .bind(&new.verb)
    .bind(&new.args)
    .bind(&new.args_whole)
    .bind(&new.filter)
    .bind(new.acts)
    .bind(delivery_word(new.delivery))
    .bind(i64::from(new.ttl_s))
    .bind(&new.asked_by)
    .bind(&new.why)
    .bind(i64::try_from(devices.len()).unwrap_or(i64::MAX))
    .bind(new.created_at.cast_signed())
    .bind(&new.author.user_id)
    .bind(&new.author.token_id)
    .fetch_one(&mut **tx)
    .await?;
    for some in devices.chunks(ROWS) {
        let mut query =
            sqlx::QueryBuilder::new("INSERT INTO fleet_command_devices (fleet_command, device_id) ");
        query.push_values(some, |mut row, device| {
            row.push_bind(number).push_bind(device);
        });
        query.build().execute(&mut **tx).await?;
    }
    sqlx::query(
        "DELETE FROM fleet_commands WHERE fleet_id = $1 AND ended_at IS NOT NULL AND number <= (
            SELECT number FROM fleet_commands WHERE fleet_id = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)",
    )
    .bind(&new.fleet_id)
    .bind(KEPT)
    .execute(&mut **tx)
    .await?;
    of(tx, &new.fleet_id, &new.id).await?.ok_or_else(|| Problem::not_found("such round"))
}

/// A round of a fleet, within a write.
pub(super) async fn of(tx: &mut Tx, fleet: &str, id: &str) -> Result<Option<Round>> {
    Ok(sqlx::query_as("SELECT * FROM fleet_commands WHERE fleet_id = $1 AND id = $2")
        .bind(fleet)
        .bind(id)
        .fetch_optional(&mut **tx)
        .await?)
}

/// A round of a fleet.
pub(crate) async fn one(app: &App, fleet: &str, id: &str) -> Result<Option<Round>> {
    Ok(sqlx::query_as("SELECT * FROM fleet_commands WHERE fleet_id = $1 AND id = $2")
        .bind(fleet)
        .bind(id)
        .fetch_optional(app.db.read())
        .await?)
}

/// Rounds of a fleet before a number, newest first.
pub(crate) async fn list(app: &App, fleet: &str, before: i64, limit: i64) -> Result<Vec<Round>> {
    Ok(sqlx::query_as(
        "SELECT * FROM fleet_commands WHERE fleet_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3",
    )
    .bind(fleet)
    .bind(before)
    .bind(limit)
    .fetch_all(app.db.read())
    .await?)
}

/// Rounds some device of which is still to be asked.
pub(super) async fn under_way(app: &App) -> Result<Vec<Round>> {
    Ok(sqlx::query_as(
        "SELECT * FROM fleet_commands f WHERE ended_at IS NULL AND EXISTS (
            SELECT 1 FROM fleet_command_devices d
            WHERE d.fleet_command = f.number AND d.command_id IS NULL AND d.ended_at IS NULL)
         ORDER BY number",
    )
    .fetch_all(app.db.read())
    .await?)
}

/// The next devices to ask.
pub(super) async fn to_ask(tx: &mut Tx, round: i64, limit: i64) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT device_id FROM fleet_command_devices
         WHERE fleet_command = $1 AND command_id IS NULL AND ended_at IS NULL ORDER BY device_id LIMIT $2",
    )
    .bind(round)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await?)
}

/// A device was asked by this command, which may have ended at once.
pub(super) async fn was_asked(tx: &mut Tx, round: i64, device: &str, row: &CommandRow) -> Result<()> {
    sqlx::query(
        "UPDATE fleet_command_devices SET command_id = $3, state = $4, code = $5, message = $6, ended_at = $7
         WHERE fleet_command = $1 AND device_id = $2",
    )
    .bind(round)
    .bind(device)
    .bind(&row.id)
    .bind(row.state()?.as_str())
    .bind(&row.code)
    .bind(&row.message)
    .bind(row.ended_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A device could not be asked.
pub(super) async fn refused(
    tx: &mut Tx,
    round: i64,
    device: &str,
    state: CommandState,
    code: &str,
    message: &str,
    now: u64,
) -> Result<()> {
    sqlx::query(
        "UPDATE fleet_command_devices SET state = $3, code = $4, message = $5, ended_at = $6
         WHERE fleet_command = $1 AND device_id = $2",
    )
    .bind(round)
    .bind(device)
    .bind(state.as_str())
    .bind(code)
    .bind(message)
    .bind(now.cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// How a round ends for the devices that were sent nothing yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut<'a> {
    pub(super) state: CommandState,
    pub(super) code: &'a str,
    pub(super) message: &'a str,
}

/// What a round was cut off from.
#[derive(Debug, Default)]
pub(super) struct Spared {
    /// Devices that were sent nothing.
    pub(super) devices: u64,
    /// The commands among them that waited already: their ids and their devices.
    pub(super) commands: Vec<(String, String)>,
}

/// Ends a round for every device that was sent nothing yet: those still to be asked, and those whose command waits for them.
pub(super) async fn cut(tx: &mut Tx, round: i64, cut: Cut<'_>, now: u64) -> Result<Spared> {
    let devices = sqlx::query(
        "UPDATE fleet_command_devices SET state = $2, code = $3, message = $4, ended_at = $5
         WHERE fleet_command = $1 AND ended_at IS NULL AND (command_id IS NULL OR EXISTS (
            SELECT 1 FROM commands c WHERE c.id = command_id AND c.state = 'queued'))",
    )
    .bind(round)
    .bind(cut.state.as_str())
    .bind(cut.code)
    .bind(cut.message)
    .bind(now.cast_signed())
    .execute(&mut **tx)
    .await?
    .rows_affected();
    // What was signed is never sent, and may hold a secret: it goes, as at every end.
    let commands = sqlx::query_as(
        "UPDATE commands SET state = $2, code = $3, message = $4, ended_at = $5,
            envelope = CASE WHEN envelope IS NOT NULL THEN x'' END
         WHERE state = 'queued' AND id IN (
            SELECT command_id FROM fleet_command_devices
            WHERE fleet_command = $1 AND ended_at = $5 AND command_id IS NOT NULL)
         RETURNING id, device_id",
    )
    .bind(round)
    .bind(cut.state.as_str())
    .bind(cut.code)
    .bind(cut.message)
    .bind(now.cast_signed())
    .fetch_all(&mut **tx)
    .await?;
    close(tx, round, now).await?;
    Ok(Spared { devices, commands })
}

/// A command of a round moved on.
pub(in crate::commands) async fn step(
    tx: &mut Tx,
    round: i64,
    row: &CommandRow,
    step: &Step<'_>,
    now: u64,
) -> Result<()> {
    let found = step.result.filter(|_| row.verb == "probes").and_then(health::summary);
    sqlx::query(
        "UPDATE fleet_command_devices SET state = $3, code = $4, message = $5, ended_at = $6, checks = $7, verdict = $8
         WHERE fleet_command = $1 AND device_id = $2",
    )
    .bind(round)
    .bind(&row.device_id)
    .bind(step.state.as_str())
    .bind(step.code)
    .bind(step.message)
    .bind(step.state.is_final().then_some(now.cast_signed()))
    .bind(found.as_ref().map(|found| found.checks.clone()))
    .bind(found.as_ref().map(|found| found.verdict.as_str()))
    .execute(&mut **tx)
    .await?;
    if step.state.is_final() { close(tx, round, now).await } else { Ok(()) }
}

/// Ends a round whose every device has ended; and forgets its secrets as soon as every one was asked.
pub(super) async fn close(tx: &mut Tx, round: i64, now: u64) -> Result<()> {
    sqlx::query(
        "UPDATE fleet_commands SET args_whole = NULL WHERE number = $1 AND args_whole IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM fleet_command_devices WHERE fleet_command = $1 AND command_id IS NULL AND ended_at IS NULL)",
    )
    .bind(round)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE fleet_commands SET ended_at = $2 WHERE number = $1 AND ended_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM fleet_command_devices WHERE fleet_command = $1 AND ended_at IS NULL)",
    )
    .bind(round)
    .bind(now.cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Devices of a round after one, in the order of their ids; those in one state alone where one is named.
pub(crate) async fn devices(
    app: &App,
    round: i64,
    state: Option<&str>,
    after: &str,
    limit: i64,
) -> Result<Vec<RoundDevice>> {
    Ok(sqlx::query_as(
        "SELECT r.device_id, d.name, r.command_id, r.state, r.code, r.message, r.checks, r.verdict, r.ended_at
         FROM fleet_command_devices r JOIN devices d ON d.device_id = r.device_id
         WHERE r.fleet_command = $1 AND r.device_id > $2 AND ($3 IS NULL OR r.state = $3)
         ORDER BY r.device_id LIMIT $4",
    )
    .bind(round)
    .bind(after)
    .bind(state)
    .bind(limit)
    .fetch_all(app.db.read())
    .await?)
}

/// How the devices of these rounds stand, by the number of the round.
pub(crate) async fn counts(app: &App, rounds: &[Round]) -> Result<BTreeMap<i64, Counts>> {
    let mut out: BTreeMap<i64, Counts> = BTreeMap::new();
    for round in rounds {
        let found: Vec<(String, Option<String>, i64)> = sqlx::query_as(
            "SELECT state, verdict, COUNT(*) FROM fleet_command_devices WHERE fleet_command = $1 GROUP BY state, verdict",
        )
        .bind(round.number)
        .fetch_all(app.db.read())
        .await?;
        let counts = out.entry(round.number).or_default();
        for (state, verdict, count) in found {
            *counts.states.entry(state).or_default() += count.unsigned_abs();
            if let Some(verdict) = verdict {
                *counts.verdicts.entry(verdict).or_default() += count.unsigned_abs();
            }
        }
    }
    Ok(out)
}
