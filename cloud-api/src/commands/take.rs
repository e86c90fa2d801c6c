//! Sending: the next command of a device for one of its channels. It is marked before it is given out: what ends as
//! unreachable or expired was surely never sent.

use copal_protocol::{
    channel::{Command, Order, Question, Read},
    envelope::Envelope,
    ids::DeviceId,
};
use serde_json::{Map, Value};

use super::{
    end,
    order::{self, Wanted},
    rows::{self, CommandRow, Step},
    state::{self, ACCESS_LOST, CommandState, UNREADABLE},
    tell,
};
use crate::{
    app::{self, App},
    devices::memory::Entry,
    error::{Problem, Result},
    store::Tx,
};

/// The next command to send on the channel of this epoch. Each is sent once a channel, until it ended.
///
/// # Errors
/// When the database fails.
pub(crate) async fn next(app: &App, entry: &Entry, epoch: u64) -> Result<Option<Command>> {
    // Most often there is none, and then no write is begun.
    while let Some(id) = rows::unsent(app, entry.device_id, epoch).await? {
        if let Some(command) = take(app, entry, epoch, &id).await? {
            return Ok(Some(command));
        }
    }
    Ok(None)
}

async fn take(app: &App, entry: &Entry, epoch: u64, id: &str) -> Result<Option<Command>> {
    let mut tx = app.db.write().await?;
    let Some(row) = rows::of(&mut tx, id).await?.filter(|row| row.ended_at.is_none()) else {
        return Ok(None);
    };
    let now = app::now();
    let fleet = entry.fleet_id.to_string();
    // Not sent yet, and its time is over: the device is not bothered. What was sent once is sent again even then, since
    // only the device knows what came of it.
    if row.state()? == CommandState::Queued && row.due_at.unsigned_abs() <= now {
        let ended = end::end(&mut tx, &row, now).await?;
        tx.commit().await?;
        if let Some(row) = ended {
            tell(app, &fleet, &row);
        }
        return Ok(None);
    }
    if let Some((code, why)) = stays_here(&mut tx, entry, &row).await? {
        let state = if code == UNREADABLE { CommandState::Failed } else { CommandState::Rejected };
        rows::step(&mut tx, &row, &Step { state, code: Some(code), message: &why, result: None }, now)
            .await?;
        let row = rows::of(&mut tx, id).await?;
        tx.commit().await?;
        if let Some(row) = row {
            tell(app, &fleet, &row);
        }
        return Ok(None);
    }
    let command = command(entry.device_id, &row, now)?;
    // Sent again, it is no less far on than it was.
    let stands = match row.state()? {
        CommandState::Queued => CommandState::Delivered,
        further => further,
    };
    let due = state::due(stands, row.delivery(), row.ttl_s(), row.created_at.unsigned_abs());
    rows::sent(&mut tx, &row, epoch, now, due).await?;
    tx.commit().await?;
    tell(app, &fleet, &row);
    Ok(Some(command))
}

/// Why a command is not sent, where it is not: a code, and words for people. It ends then, and those after it are sent.
async fn stays_here(tx: &mut Tx, entry: &Entry, row: &CommandRow) -> Result<Option<(&'static str, String)>> {
    // What was sent once is sent again: the device may have done it, and only the device knows what came of it.
    if row.state()? == CommandState::Queued && !row.author().may(tx, row.needs(), entry.fleet_id).await? {
        let why = format!("{} may not do this any more; nothing was sent.", row.asked_by);
        return Ok(Some((ACCESS_LOST, why)));
    }
    Ok(command(entry.device_id, row, 0).err().map(|problem| {
        tracing::error!(device = %entry.device_id, command = row.id, %problem, "a command that cannot be read any more");
        let why = "This version of the cloud cannot read it any more; nothing was sent by it. Ask again.";
        (UNREADABLE, why.to_owned())
    }))
}

fn command(device: DeviceId, row: &CommandRow, now: u64) -> Result<Command> {
    let order = match &row.envelope {
        Some(bytes) => Order::Action(Envelope::parse_any(bytes).map_err(|e| {
            Problem::internal(format!("command {} of device {device}: {}", row.id, e.detail))
        })?),
        None => Order::Read(Read { what: question(row)?, ttl_s: row.ttl_s(), delivery: row.delivery() }),
    };
    let age = now.saturating_sub(row.created_at.unsigned_abs());
    Ok(Command {
        id: row.id.parse().map_err(Problem::internal)?,
        age_s: u32::try_from(age).unwrap_or(u32::MAX),
        order,
    })
}

fn question(row: &CommandRow) -> Result<Question> {
    let args: Map<String, Value> = serde_json::from_str(&row.args).map_err(Problem::internal)?;
    match order::parse(&row.verb, &args)? {
        Wanted::Ask(question) => Ok(question),
        Wanted::Act(_) => Err(Problem::internal(format!("command {} acts and is not signed", row.id))),
    }
}
