//! Asks the next devices of each round: so many at a time, that neither the cloud nor what all devices share is overrun.

use std::time::Duration;

use copal_protocol::ids::{DeviceId, FleetId};

use super::{
    delivery_of,
    rows::{self, Round},
};
use crate::{
    app::{self, App},
    commands::{
        make::{Judged, ask, asked_one},
        order,
        state::CommandState,
    },
    error::{Problem, Result},
};

/// Devices of a round that are asked at once, and how long apart: 50 a second. Each answer costs a write of a few milliseconds,
/// and 10,000 health checks are under way within four minutes.
const AT_ONCE: i64 = 10;
const APART: Duration = Duration::from_millis(200);
/// Where nothing is under way somebody tells; this is for what nobody told.
const IDLE: Duration = Duration::from_secs(30);

/// Runs until the cloud stops. What a restart cut short goes on.
pub(in crate::commands) async fn run(app: App) {
    loop {
        let wait = match Box::pin(turn(&app)).await {
            Ok(true) => APART,
            Ok(false) => IDLE,
            Err(problem) => {
                tracing::warn!(%problem, "asking the devices of a round; tried again");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.rounds.notified(), if wait == IDLE => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// Asks the next of each round; whether there were any.
pub(super) async fn turn(app: &App) -> Result<bool> {
    let mut any = false;
    for round in rows::under_way(app).await? {
        any |= some(app, &round).await?;
    }
    Ok(any)
}

async fn some(app: &App, round: &Round) -> Result<bool> {
    let now = app::now();
    let fleet: FleetId = round.fleet_id.parse().map_err(Problem::internal)?;
    let mut asked = Vec::new();
    let mut tx = app.db.write().await?;
    let next = rows::to_ask(&mut tx, round.number, AT_ONCE).await?;
    if next.is_empty() {
        return Ok(false);
    }
    let args = serde_json::from_str(round.args_whole.as_deref().unwrap_or(&round.args))
        .map_err(Problem::internal)?;
    let judged = Judged {
        wanted: order::parse(&round.verb, &args)?,
        verb: round.verb.clone(),
        args: order::shown(&args),
        delivery: delivery_of(&round.delivery),
        ttl_s: u32::try_from(round.ttl_s).unwrap_or(1),
        asked_by: round.asked_by.clone(),
        why: round.why.clone(),
        fleet_command: Some(round.number),
    };
    for id in &next {
        let device: DeviceId = id.parse().map_err(Problem::internal)?;
        match ask(app, &mut tx, fleet, device, &judged, now).await {
            Ok(row) => {
                rows::was_asked(&mut tx, round.number, id, &row).await?;
                asked.push((device, row));
            }
            // This one cannot be asked; the others can.
            Err(problem) if problem.status().is_client_error() => {
                let (code, why) = (problem.code(), problem.detail());
                rows::refused(&mut tx, round.number, id, CommandState::Rejected, code, why, now).await?;
            }
            Err(problem) => return Err(problem),
        }
    }
    rows::close(&mut tx, round.number, now).await?;
    tx.commit().await?;
    for (device, row) in asked {
        asked_one(app, fleet, device, &row);
    }
    Ok(true)
}
