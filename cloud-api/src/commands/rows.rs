//! Commands in the database.

use copal_protocol::{documents::Delivery, ids::DeviceId};

use super::{
    many, order,
    state::{self, CommandState},
};
use crate::{
    app::App,
    auth::{Act, Author},
    error::{Problem, Result},
    store::Tx,
};

/// The most acts of a device that have not ended, and apart from them the most questions: who may only ask keeps nobody from
/// acting.
const MAX_OPEN: i64 = 64;
/// The most questions of one person to a device that have not ended.
const MAX_QUESTIONS_EACH: i64 = 16;
/// The most acts kept of a device, and the most questions; the oldest that ended go first.
const KEPT: i64 = 200;
/// Of the newest of each of these results are kept: one may have 256 KiB.
const KEPT_RESULTS: i64 = 20;

/// One command.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct CommandRow {
    pub(crate) number: i64,
    pub(crate) id: String,
    pub(crate) device_id: String,
    pub(crate) verb: String,
    pub(crate) args: String,
    delivery: String,
    ttl_s: i64,
    pub(crate) asked_by: String,
    pub(crate) why: String,
    pub(crate) envelope: Option<Vec<u8>>,
    state: String,
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) result: Option<String>,
    pub(crate) created_at: i64,
    pub(crate) delivered_at: Option<i64>,
    pub(crate) accepted_at: Option<i64>,
    pub(crate) running_at: Option<i64>,
    pub(crate) ended_at: Option<i64>,
    pub(crate) due_at: i64,
    /// Of the channel it was last sent on.
    epoch: Option<i64>,
    /// The round it belongs to.
    pub(super) fleet_command: Option<i64>,
    pub(crate) user_id: String,
    token_id: Option<String>,
}

impl CommandRow {
    /// Who asked.
    pub(super) fn author(&self) -> Author {
        Author { user_id: self.user_id.clone(), token_id: self.token_id.clone() }
    }

    /// What a person must be allowed to for it.
    pub(crate) fn needs(&self) -> Act {
        order::needs(&self.verb, self.envelope.is_some())
    }

    /// Of the channel it was last sent on; 0 before.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.unwrap_or(0).unsigned_abs()
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> Result<CommandState> {
        Ok(CommandState::from_word(&self.state)?)
    }

    /// Whether it waits for its device.
    pub(crate) fn delivery(&self) -> Delivery {
        if self.delivery == "store" { Delivery::Store } else { Delivery::Direct }
    }

    /// Seconds in which it may begin.
    pub(crate) fn ttl_s(&self) -> u32 {
        u32::try_from(self.ttl_s).unwrap_or(0)
    }
}

/// The word of a delivery in the database and on the wire.
pub(crate) const fn delivery_word(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Direct => "direct",
        Delivery::Store => "store",
    }
}

/// A command to be.
#[derive(Debug)]
pub(super) struct New {
    pub(super) id: String,
    pub(super) device: DeviceId,
    pub(super) verb: String,
    pub(super) args: String,
    pub(super) delivery: Delivery,
    pub(super) ttl_s: u32,
    pub(super) asked_by: String,
    pub(super) author: Author,
    pub(super) why: String,
    pub(super) envelope: Option<Vec<u8>>,
    pub(super) fleet_command: Option<i64>,
    pub(super) created_at: u64,
    pub(super) due_at: u64,
}

/// Writes a command down, queued, and makes room for it.
pub(super) async fn insert(tx: &mut Tx, new: &New) -> Result<CommandRow> {
    let device = new.device.to_string();
    let asks = new.envelope.is_none();
    let (open, own): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COUNT(CASE WHEN user_id = $3 THEN 1 END) FROM commands
         WHERE device_id = $1 AND ended_at IS NULL AND (envelope IS NULL) = $2",
    )
    .bind(&device)
    .bind(asks)
    .bind(&new.author.user_id)
    .fetch_one(&mut **tx)
    .await?;
    if open >= MAX_OPEN || (asks && own >= MAX_QUESTIONS_EACH) {
        let (open, what) = match (asks, open >= MAX_OPEN) {
            (false, _) => (open, "acts"),
            (true, true) => (open, "questions"),
            (true, false) => (own, "questions of yours"),
        };
        return Err(Problem::conflict(
            "too_many_commands",
            format!(
                "{open} {what} wait for this device already; that is the most. Let them end, or cancel those that were not sent."
            ),
        ));
    }
    sqlx::query(
        "INSERT INTO commands (id, device_id, verb, args, delivery, ttl_s, asked_by, why, envelope, state, created_at, due_at,
            fleet_command, user_id, token_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'queued', $10, $11, $12, $13, $14)",
    )
    .bind(&new.id)
    .bind(&device)
    .bind(&new.verb)
    .bind(&new.args)
    .bind(delivery_word(new.delivery))
    .bind(i64::from(new.ttl_s))
    .bind(&new.asked_by)
    .bind(&new.why)
    .bind(&new.envelope)
    .bind(new.created_at.cast_signed())
    .bind(new.due_at.cast_signed())
    .bind(new.fleet_command)
    .bind(&new.author.user_id)
    .bind(&new.author.token_id)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM commands WHERE device_id = $1 AND ended_at IS NOT NULL AND (envelope IS NULL) = $3 AND number <= (
            SELECT number FROM commands WHERE device_id = $1 AND (envelope IS NULL) = $3
            ORDER BY number DESC LIMIT 1 OFFSET $2)",
    )
    .bind(&device)
    .bind(KEPT)
    .bind(asks)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE commands SET result = NULL WHERE device_id = $1 AND result IS NOT NULL AND (envelope IS NULL) = $3
            AND number <= (SELECT number FROM commands WHERE device_id = $1 AND (envelope IS NULL) = $3
            ORDER BY number DESC LIMIT 1 OFFSET $2)",
    )
    .bind(&device)
    .bind(KEPT_RESULTS)
    .bind(asks)
    .execute(&mut **tx)
    .await?;
    of(tx, &new.id).await?.ok_or_else(|| Problem::not_found("such command"))
}

/// A command, within a write.
pub(super) async fn of(tx: &mut Tx, id: &str) -> Result<Option<CommandRow>> {
    Ok(sqlx::query_as("SELECT * FROM commands WHERE id = $1").bind(id).fetch_optional(&mut **tx).await?)
}

/// A command of a device.
pub(crate) async fn one(app: &App, device: &str, id: &str) -> Result<Option<CommandRow>> {
    Ok(sqlx::query_as("SELECT * FROM commands WHERE id = $1 AND device_id = $2")
        .bind(id)
        .bind(device)
        .fetch_optional(app.db.read())
        .await?)
}

/// Commands of a device before a number, newest first, without what makes them large.
pub(crate) async fn list(app: &App, device: &str, before: i64, limit: i64) -> Result<Vec<CommandRow>> {
    Ok(sqlx::query_as(
        "SELECT number, id, device_id, verb, args, delivery, ttl_s, asked_by, why, NULL AS envelope, state, code, message,
            NULL AS result, created_at, delivered_at, accepted_at, running_at, ended_at, due_at, epoch,
            fleet_command, user_id, token_id
         FROM commands WHERE device_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3",
    )
    .bind(device)
    .bind(before)
    .bind(limit)
    .fetch_all(app.db.read())
    .await?)
}

/// The oldest command of a device that has not ended and was not sent on this channel.
pub(super) async fn unsent(app: &App, device: DeviceId, epoch: u64) -> Result<Option<String>> {
    Ok(sqlx::query_scalar(
        "SELECT id FROM commands WHERE device_id = $1 AND ended_at IS NULL AND (epoch IS NULL OR epoch <> $2)
         ORDER BY number LIMIT 1",
    )
    .bind(device.to_string())
    .bind(epoch.cast_signed())
    .fetch_optional(app.db.read())
    .await?)
}

/// Commands whose time has come.
pub(super) async fn overdue(app: &App, now: u64) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT id FROM commands WHERE ended_at IS NULL AND due_at <= $1 ORDER BY due_at LIMIT 500",
    )
    .bind(now.cast_signed())
    .fetch_all(app.db.read())
    .await?)
}

/// Notes that a command is being sent on a channel.
pub(super) async fn sent(tx: &mut Tx, row: &CommandRow, epoch: u64, now: u64, due: u64) -> Result<()> {
    sqlx::query(
        "UPDATE commands SET state = CASE state WHEN 'queued' THEN 'delivered' ELSE state END, epoch = $2,
            delivered_at = COALESCE(delivered_at, $3), due_at = $4 WHERE number = $1",
    )
    .bind(row.number)
    .bind(epoch.cast_signed())
    .bind(now.cast_signed())
    .bind(due.cast_signed())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A state that is further on.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) state: CommandState,
    pub(super) code: Option<&'a str>,
    pub(super) message: &'a str,
    pub(super) result: Option<&'a str>,
}

/// Writes a further state down. What was signed is not sent again after the end, and may hold a secret: it goes.
pub(super) async fn step(tx: &mut Tx, row: &CommandRow, step: &Step<'_>, now: u64) -> Result<()> {
    let at = |is: bool| is.then_some(now.cast_signed());
    let due = state::due(step.state, row.delivery(), row.ttl_s(), row.created_at.unsigned_abs());
    sqlx::query(
        "UPDATE commands SET state = $2, code = $3, message = $4, result = $5,
            accepted_at = COALESCE(accepted_at, $6), running_at = COALESCE(running_at, $7), ended_at = $8, due_at = $9,
            envelope = CASE WHEN $8 IS NOT NULL AND envelope IS NOT NULL THEN x'' ELSE envelope END
         WHERE number = $1",
    )
    .bind(row.number)
    .bind(step.state.as_str())
    .bind(step.code)
    .bind(step.message)
    .bind(step.result)
    .bind(at(step.state == CommandState::Accepted))
    .bind(at(step.state == CommandState::Running))
    .bind(at(step.state.is_final()))
    .bind(due.cast_signed())
    .execute(&mut **tx)
    .await?;
    if let Some(round) = row.fleet_command {
        many::step(tx, round, row, step, now).await?;
    }
    Ok(())
}
