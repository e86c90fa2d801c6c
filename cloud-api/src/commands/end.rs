//! What ends without the device's word: direct commands to a device that is away, stored ones whose time is over, and what
//! was sent and never answered.

use std::time::Duration;

use copal_protocol::ids::DeviceId;
use serde_json::json;

use super::{
    rows::{self, CommandRow, Step},
    state::{self, CommandState},
    tell,
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    error::{Problem, Result},
    store::{Tx, fleets::FleetRow},
};

/// Between two looks at what is due.
const EVERY: Duration = Duration::from_secs(2);

/// Ends what is due, until the cloud stops. The first look ends what came due while it did not run.
pub async fn run(app: App) {
    loop {
        if let Err(problem) = sweep(&app).await {
            tracing::warn!(%problem, "ending commands whose time is over; tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// One look.
pub(super) async fn sweep(app: &App) -> Result<()> {
    for id in rows::overdue(app, app::now()).await? {
        end_if_due(app, &id).await?;
    }
    Ok(())
}

/// Ends a direct command that no channel took in time, and one that was sent over a line at whose other end nobody is.
pub(super) fn later(app: &App, device: DeviceId, id: String) {
    let app = app.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(state::DIRECT_S)).await;
        let ended = async {
            end_if_due(&app, &id).await?;
            tokio::time::sleep(Duration::from_secs(state::ANSWER_S - state::DIRECT_S)).await;
            end_if_dead(&app, device, &id).await
        };
        if let Err(problem) = ended.await {
            tracing::warn!(%problem, command = id, "ending a direct command; the next look does");
        }
    });
}

/// Whether it arrived is not known, even of a dead line: what is under way may still come through, so an answer still counts.
async fn end_if_dead(app: &App, device: DeviceId, id: &str) -> Result<()> {
    let unanswered = |row: &CommandRow| Ok::<_, Problem>(row.state()? == CommandState::Delivered);
    let Some(row) = rows::one(app, &device.to_string(), id).await? else { return Ok(()) };
    if !unanswered(&row)? || app.channels.lives(app, device, row.epoch()).await {
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    let Some(row) = rows::of(&mut tx, id).await? else { return Ok(()) };
    if !unanswered(&row)? {
        return Ok(());
    }
    let message =
        "It was sent over a line that turned out to be dead. Whether the device got it is not known.";
    let step = Step { state: CommandState::Unknown, code: Some(state::NO_ANSWER), message, result: None };
    rows::step(&mut tx, &row, &step, app::now()).await?;
    finish(app, tx, id).await
}

async fn end_if_due(app: &App, id: &str) -> Result<()> {
    let mut tx = app.db.write().await?;
    let now = app::now();
    let Some(row) = rows::of(&mut tx, id).await? else { return Ok(()) };
    if row.ended_at.is_some() || row.due_at.unsigned_abs() > now {
        return Ok(());
    }
    if end(&mut tx, &row, now).await?.is_none() {
        return Ok(());
    }
    finish(app, tx, id).await
}

/// Takes a command back that was not sent yet, for somebody. One that has ended is left as it is.
///
/// # Errors
/// 409 `command_sent`: only the device knows what comes of it.
pub(crate) async fn cancel(app: &App, caller: &Caller, fleet: &FleetRow, id: &str) -> Result<()> {
    let mut tx = app.db.write().await?;
    let row = rows::of(&mut tx, id).await?.ok_or_else(|| Problem::not_found("such command"))?;
    let state = row.state()?;
    if state.is_final() {
        return Ok(());
    }
    if state != CommandState::Queued {
        return Err(Problem::conflict(
            "command_sent",
            format!(
                "The command is {} by now: it was sent, and only the device knows what comes of it.",
                state.as_str()
            ),
        ));
    }
    let message = format!("{} took it back before it was sent", caller.who);
    let step =
        Step { state: CommandState::Rejected, code: Some(state::CANCELLED), message: &message, result: None };
    rows::step(&mut tx, &row, &step, app::now()).await?;
    let detail = json!({"command": row.id, "verb": row.verb});
    audit::record(&mut tx, caller, "command.cancel", &format!("device:{}", row.device_id), detail).await?;
    let row = rows::of(&mut tx, id).await?;
    tx.commit().await?;
    if let Some(row) = row {
        tell(app, &fleet.fleet_id.to_string(), &row);
    }
    Ok(())
}

/// Commits, and tells of the command.
async fn finish(app: &App, mut tx: Tx, id: &str) -> Result<()> {
    let row = rows::of(&mut tx, id).await?;
    let fleet: Option<String> = sqlx::query_scalar(
        "SELECT fleet_id FROM devices WHERE device_id = (SELECT device_id FROM commands WHERE id = $1)",
    )
    .bind(id)
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    if let (Some(row), Some(fleet)) = (row, fleet) {
        tell(app, &fleet, &row);
    }
    Ok(())
}

/// Ends a command as it ends in its state without the device's word. `None`: it ended before.
pub(super) async fn end(tx: &mut Tx, row: &CommandRow, now: u64) -> Result<Option<CommandRow>> {
    let Some((state, code, message)) = state::ends(row.state()?, row.delivery()) else { return Ok(None) };
    rows::step(tx, row, &Step { state, code: Some(code), message, result: None }, now).await?;
    rows::of(tx, &row.id).await
}
