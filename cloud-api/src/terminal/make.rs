//! Asking for a terminal: who may, of which device, for what, and why.

use std::time::Instant;

use copal_protocol::{
    documents::{MAX_GRANT_S, MAX_IDLE_S, MAX_REASON, MAX_TERMINAL_S, TerminalMode, TerminalTarget},
    ids::DeviceId,
};
use serde_json::json;

use super::{
    MOST, brake, keep,
    rows::{self, New, SessionRow},
    session, tell,
};
use crate::{
    app::{self, App},
    audit,
    auth::{self, Act, Caller},
    channel::StreamError,
    devices::{memory, rows::by_id_in},
    error::{Problem, Result},
    store::fleets::{self, FleetRow},
};

/// The widest and the highest window.
const MAX_SIZE: u16 = 1_000;
/// Sessions of one person on one device that nobody came for yet.
const OPENING_EACH: i64 = 3;
/// The shortest bound that may be asked for, seconds.
const LEAST_S: u32 = 1;

/// What a person asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) target: TerminalTarget,
    pub(crate) reason: String,
    pub(crate) size: (u16, u16),
    pub(crate) max_s: Option<u32>,
    pub(crate) idle_s: Option<u32>,
}

/// Whether a window may be so wide and high.
pub(super) fn is_size(cols: u16, rows: u16) -> bool {
    [cols, rows].iter().all(|n| (1..=MAX_SIZE).contains(n))
}

/// What it takes: the device itself is more than a service of it.
pub(crate) fn needs(target: &TerminalTarget) -> Act {
    match target {
        TerminalTarget::Service(_) | TerminalTarget::Recording(_) => Act::Deploy,
        TerminalTarget::Host => Act::Manage,
    }
}

/// Writes a session down that may begin.
///
/// # Errors
/// `role_insufficient`, `reason_missing`, `reason_invalid`, `size_invalid`, `bound_invalid`, `terminal_off`, `terminal_stopped`, `device_not_accepted`, `clone_suspected`,
/// `device_away`, `no_websocket`, `too_many_sessions`.
pub(crate) async fn make(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: DeviceId,
    asked: Asked,
) -> Result<SessionRow> {
    caller.may(needs(&asked.target), Some(fleet))?;
    let reason = asked.reason.trim();
    if reason.is_empty() {
        let why = "Say why in `reason`: it stands in the audit log, in the recording, and on the device.";
        return Err(Problem::invalid("reason_missing", why));
    }
    if reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
        let why = format!("reason is at most {MAX_REASON} characters, without control characters.");
        return Err(Problem::invalid("reason_invalid", why));
    }
    let (cols, rows) = asked.size;
    if !is_size(cols, rows) {
        return Err(Problem::invalid("size_invalid", format!("cols and rows are 1 to {MAX_SIZE}.")));
    }
    let mode = match fleets::latest_root(app, fleet.fleet_id).await?.map(|root| root.policy.terminal) {
        Some(TerminalMode::Cloud) => TerminalMode::Cloud,
        Some(TerminalMode::Grant) => TerminalMode::Grant,
        Some(TerminalMode::Off) | None => {
            let why = "The fleet's Root has terminals off. Its owner can change that with `copal root policy --terminal cloud|grant`.";
            return Err(Problem::conflict("terminal_off", why));
        }
    };
    let most = if mode == TerminalMode::Grant { MAX_GRANT_S } else { MAX_TERMINAL_S };
    let bound = |name: &str, asked: Option<u32>, most: u32| match asked {
        None => Ok(most),
        Some(s) if (LEAST_S..=most).contains(&s) => Ok(s),
        Some(s) => Err(Problem::invalid(
            "bound_invalid",
            format!("{name} is {s}; it is {LEAST_S} to {most} seconds."),
        )),
    };
    let (max_s, idle_s) = (bound("max_s", asked.max_s, most)?, bound("idle_s", asked.idle_s, MAX_IDLE_S)?);
    if app.terminals.count() >= MOST {
        let why = format!("{MOST} terminals are open on this cloud. Try again when one has ended.");
        return Err(
            Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", why).retry_after(60)
        );
    }
    app.auth.reads.take(&caller.user_id, Instant::now())?;
    let mut tx = app.db.write().await?;
    brake::check(&mut tx, fleet).await?;
    // Read within the write, so that a device revoked meanwhile is not asked.
    let row = by_id_in(&mut tx, device).await?.ok_or_else(|| Problem::not_found("such device"))?;
    if let Err(refused) = memory::refuse_unless_accepted(row.device_state()?) {
        let why = format!("No terminal opens on this device: it is {} ({}).", row.state, refused.code());
        return Err(Problem::conflict("device_not_accepted", why));
    }
    if row.clone_suspected {
        let why = "Two hold this device's key. Decide first who the device is: `copal device accept`.";
        return Err(Problem::conflict("clone_suspected", why));
    }
    match app.channels.kind(device) {
        None => return Err(StreamError::DeviceAway.into()),
        Some("exchange") => return Err(StreamError::NoWebSocket.into()),
        Some(_) => {}
    }
    if rows::opening(&mut tx, &row.device_id, &caller.user_id).await? >= OPENING_EACH {
        let why = "You asked for several terminals of this device and came for none yet. Come for one, or wait half a minute.";
        return Err(
            Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", why).retry_after(30)
        );
    }
    // Under a grant the device records, and judges for itself.
    let since = app::now_i64() - app.config.recordings_stay_s.cast_signed();
    if mode == TerminalMode::Cloud
        && rows::recorded(&mut tx, &fleet.fleet_id.to_string(), since).await? >= keep::RECORDINGS_BYTES
    {
        let why = "The recordings of the fleet's latest terminals take all their place, and none of them goes for a new one. Wait until they are old, or let the server keep them for fewer days (recordings_stay_days).";
        return Err(Problem::conflict("recordings_full", why));
    }
    let new = New {
        id: auth::random_id()?,
        device_id: device.to_string(),
        target: &asked.target,
        mode: if mode == TerminalMode::Grant { "grant" } else { "cloud" },
        who: &caller.who,
        user_id: &caller.user_id,
        reason,
        size: asked.size,
        max_s,
        idle_s,
        now: app::now_i64(),
    };
    let row = rows::insert(&mut tx, &new).await?;
    let detail = json!({"session": row.id, "target": asked.target, "reason": reason, "mode": row.mode, "max_s": max_s});
    audit::record(&mut tx, caller, "terminal.open", &format!("device:{device}"), detail).await?;
    tx.commit().await?;
    tell(app, &fleet.fleet_id.to_string(), &row);
    session::expire_later(app, &row);
    Ok(row)
}
