//! Asks the next devices of each round: so many at a time, that neither the cloud nor what all devices share is overrun.

use std::time::Duration;

use copal_protocol::ids::{DeviceId, FleetId};
use serde_json::{Map, Value, json};

use super::{
    delivery_of,
    rows::{self, Cut, Round},
    tell,
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    commands::{
        make::{Judged, ask, asked_one},
        order::{self, Wanted},
        state::{ACCESS_LOST, CommandState, UNREADABLE},
    },
    error::{Problem, Result},
    store::{Tx, fleets},
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

/// Asks the next of each round; whether there were any. What goes wrong with one holds up no other.
pub(super) async fn turn(app: &App) -> Result<bool> {
    let mut any = false;
    let mut wrong = None;
    for round in rows::under_way(app).await? {
        match some(app, &round).await {
            Ok(some) => any |= some,
            Err(problem) => {
                tracing::warn!(%problem, round = round.id, "asking the devices of a round");
                wrong = Some(problem);
            }
        }
    }
    wrong.map_or(Ok(any), Err)
}

/// What a round asks.
fn wanted(round: &Round) -> Result<(Map<String, Value>, Wanted)> {
    let args = round.args_whole.as_deref().unwrap_or(&round.args);
    let args = serde_json::from_str(args).map_err(Problem::internal)?;
    let wanted = order::parse(&round.verb, &args)?;
    Ok((args, wanted))
}

/// Ends a round that goes no further, whoever would have it go on.
async fn end(app: &App, mut tx: Tx, round: &Round, cut: Cut<'_>, now: u64) -> Result<bool> {
    let spared = rows::cut(&mut tx, round.number, cut, now).await?;
    let detail =
        json!({"round": round.id, "verb": round.verb, "code": cut.code, "not_asked": spared.devices});
    let slug = fleets::by_id(app, round.fleet_id.parse().map_err(Problem::internal)?).await?.slug;
    audit::note(&mut tx, &Caller::system(), "fleet_command.end", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    tell(app, &round.fleet_id, spared);
    Ok(true)
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
    let read = wanted(round);
    let (args, wanted) = match read {
        Ok(read) => read,
        // What was asked by another version of the cloud, and can be asked no more.
        Err(problem) => {
            tracing::error!(round = round.id, %problem, "a round that cannot be read any more");
            let message = "This version of the cloud cannot read the round any more. Ask again.";
            let cut = Cut { state: CommandState::Failed, code: UNREADABLE, message };
            return end(app, tx, round, cut, now).await;
        }
    };
    if !round.author().may(&mut tx, wanted.needs(), fleet).await? {
        let message = &format!("{} may not do this any more; nothing was sent.", round.asked_by);
        let cut = Cut { state: CommandState::Rejected, code: ACCESS_LOST, message };
        return end(app, tx, round, cut, now).await;
    }
    let judged = Judged {
        wanted,
        verb: round.verb.clone(),
        args: order::shown(&args),
        delivery: delivery_of(&round.delivery),
        ttl_s: u32::try_from(round.ttl_s).unwrap_or(1),
        asked_by: round.asked_by.clone(),
        author: round.author(),
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
