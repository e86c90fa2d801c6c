//! What ends without the device's word: direct commands to a device that is away, stored ones whose time is over, and what
//! was sent and never answered.

use std::time::Duration;

use super::{
    rows::{self, CommandRow, Step},
    state, tell,
};
use crate::{
    app::{self, App},
    error::Result,
    store::Tx,
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

/// Ends a direct command that no channel took in time.
pub(super) fn later(app: &App, id: String) {
    let app = app.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(state::DIRECT_S)).await;
        if let Err(problem) = end_if_due(&app, &id).await {
            tracing::warn!(%problem, command = id, "ending a direct command; the next look does");
        }
    });
}

async fn end_if_due(app: &App, id: &str) -> Result<()> {
    let mut tx = app.db.write().await?;
    let now = app::now();
    let Some(row) = rows::of(&mut tx, id).await? else { return Ok(()) };
    if row.ended_at.is_some() || row.due_at.unsigned_abs() > now {
        return Ok(());
    }
    let Some(ended) = end(&mut tx, &row, now).await? else { return Ok(()) };
    let fleet: String = sqlx::query_scalar("SELECT fleet_id FROM devices WHERE device_id = $1")
        .bind(&row.device_id)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    tell(app, &fleet, &ended);
    Ok(())
}

/// Ends a command as it ends in its state without the device's word. `None`: it ended before.
pub(super) async fn end(tx: &mut Tx, row: &CommandRow, now: u64) -> Result<Option<CommandRow>> {
    let Some((state, code, message)) = state::ends(row.state()?, row.delivery()) else { return Ok(None) };
    rows::step(tx, row, &Step { state, code: Some(code), message, result: None }, now).await?;
    rows::of(tx, &row.id).await
}
