//! Holding terminals back: no new ones on a fleet or the whole server, and all of those there are ended at once. A brake only: what
//! the owner's Root does not allow, no admin allows here.

use copal_protocol::ids::{DeviceId, FleetId};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use super::{
    rows::{self, SessionRow},
    session,
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    bus::Event,
    error::{Problem, Result},
    store::{Tx, fleets::FleetRow},
};

/// What a brake of the whole server is kept under.
const SERVER: &str = "";
/// How long ends are waited for.
const ENDS: Duration = Duration::from_secs(5);

/// A brake that is on.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Brake {
    fleet_id: String,
    pub(crate) who: String,
    pub(crate) why: String,
    pub(crate) created_at: i64,
}

impl Brake {
    /// It holds the whole server.
    pub(crate) fn is_servers(&self) -> bool {
        self.fleet_id == SERVER
    }
}

const FIND: &str = "SELECT * FROM terminal_brakes WHERE fleet_id IN ('', $1) ORDER BY fleet_id";

fn key(fleet: Option<FleetId>) -> String {
    fleet.map_or_else(|| SERVER.to_owned(), |id| id.to_string())
}

/// The brakes that hold a fleet, the server's first; without a fleet the server's.
pub(crate) async fn of(app: &App, fleet: Option<FleetId>) -> Result<Vec<Brake>> {
    Ok(sqlx::query_as(FIND).bind(key(fleet)).fetch_all(app.db.read()).await?)
}

/// Refuses a new terminal where a brake is on.
///
/// # Errors
/// 409 `terminal_stopped`.
pub(super) async fn check(tx: &mut Tx, fleet: &FleetRow) -> Result<()> {
    let found: Option<Brake> =
        sqlx::query_as(FIND).bind(fleet.fleet_id.to_string()).fetch_optional(&mut **tx).await?;
    let Some(brake) = found else { return Ok(()) };
    let (what, flag) =
        if brake.is_servers() { ("this server".to_owned(), " --server") } else { (fleet.slug.clone(), "") };
    let why = if brake.why.is_empty() { String::new() } else { format!(" ({})", brake.why) };
    let who = brake.who;
    Err(Problem::conflict(
        "terminal_stopped",
        format!(
            "{who} stopped new terminals on {what}{why}. An admin of it lets them again: `copal sessions on{flag}`."
        ),
    ))
}

/// Puts a brake on a fleet or the whole server, or takes it off. As it was, nothing changes and nothing is noted.
///
/// # Errors
/// When the database fails.
pub(crate) async fn set(app: &App, caller: &Caller, fleet: Option<&FleetRow>, on: bool) -> Result<()> {
    let id = key(fleet.map(|f| f.fleet_id));
    let mut tx = app.db.write().await?;
    let changed = if on {
        sqlx::query(
            "INSERT INTO terminal_brakes (fleet_id, who, why, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(&id)
        .bind(&caller.who)
        .bind(&caller.why)
        .bind(app::now_i64())
        .execute(&mut *tx)
        .await?
    } else {
        sqlx::query("DELETE FROM terminal_brakes WHERE fleet_id = $1").bind(&id).execute(&mut *tx).await?
    };
    if changed.rows_affected() == 0 {
        return Ok(());
    }
    let verb = if on { "terminal.stop" } else { "terminal.let" };
    let object = fleet.map_or_else(|| "server".to_owned(), |f| format!("fleet:{}", f.slug));
    audit::record(&mut tx, caller, verb, &object, json!({})).await?;
    tx.commit().await?;
    if let Some(fleet) = fleet {
        app.bus.publish(Event::Fleet { fleet_id: id, id: fleet.slug.clone() });
    }
    Ok(())
}

/// Ends every session of a device, a fleet, or the server, and waits a moment for them. Gives those that ended, and those that were
/// told to and have not yet.
///
/// # Errors
/// When the database fails.
pub(crate) async fn kill_all(
    app: &App,
    caller: &Caller,
    fleet: Option<FleetId>,
    device: Option<DeviceId>,
) -> Result<(Vec<String>, Vec<String>)> {
    let live: Vec<(String, SessionRow)> = rows::live(app, fleet, device).await?;
    for (fleet_id, row) in &live {
        session::kill(app, caller, fleet_id, row).await?;
    }
    let until = Instant::now() + ENDS;
    loop {
        let left: Vec<String> =
            rows::live(app, fleet, device).await?.into_iter().map(|(_, row)| row.id).collect();
        let (left, ended): (Vec<String>, Vec<String>) =
            live.iter().map(|(_, row)| row.id.clone()).partition(|id| left.contains(id));
        if left.is_empty() || Instant::now() >= until {
            return Ok((ended, left));
        }
        sleep(Duration::from_millis(50)).await;
    }
}
