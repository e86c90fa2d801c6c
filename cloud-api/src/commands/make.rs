//! Asking: a command is signed where it changes something, queued, and written into the audit log, all at once.

use copal_protocol::{
    documents::{Act, Action, Delivery, MAX_TTL_S, SPEC},
    envelope::Envelope,
    ids::{CommandId, DeviceId},
};
use serde_json::{Map, Value, json};

use super::{
    end,
    order::{self, Wanted},
    rows::{self, CommandRow, New},
    state::{self, CommandState},
    tell,
};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    devices::{memory, rows::by_id_in},
    error::{Problem, Result},
    store::{Tx, fleets::FleetRow},
};

/// Seconds in which a `direct` command may begin, where nobody said: longer than a slow link takes, and soon enough for
/// whoever waits.
const DIRECT_TTL_S: u32 = 30;

/// What a person asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) args: Map<String, Value>,
    pub(crate) delivery: Delivery,
    pub(crate) ttl_s: Option<u32>,
}

/// Asks something of a device of this fleet.
///
/// # Errors
/// `verb_unknown`, `args_invalid`, `ttl_missing`, `ttl_invalid`, `role_insufficient`,
/// `device_not_accepted`, `clone_suspected`, `too_many_commands`.
pub(crate) async fn make(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: DeviceId,
    asked: Asked,
) -> Result<CommandRow> {
    let wanted = order::parse(&asked.verb, &asked.args)?;
    caller.may(wanted.needs(), Some(fleet))?;
    let ttl_s = ttl(asked.delivery, asked.ttl_s)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(Problem::internal)?;
    let id = CommandId::from_bytes(id);

    let mut tx = app.db.write().await?;
    may_be_asked(&mut tx, device).await?;
    let now = app::now();
    let envelope = match wanted {
        Wanted::Act(act) => {
            Some(sign(app, &mut tx, fleet, device, id, act, asked.delivery, ttl_s, now).await?)
        }
        Wanted::Ask(_) => None,
    };
    let new = New {
        id: id.to_string(),
        device,
        args: Value::Object(asked.args.clone()).to_string(),
        delivery: asked.delivery,
        ttl_s,
        asked_by: caller.who.clone(),
        why: caller.why.clone(),
        envelope,
        created_at: now,
        due_at: state::due(CommandState::Queued, asked.delivery, ttl_s, now),
        verb: asked.verb,
    };
    let mut row = rows::insert(&mut tx, &new).await?;
    let detail = json!({
        "command": new.id, "verb": new.verb, "args": asked.args, "delivery": rows::delivery_word(asked.delivery),
        "ttl_s": ttl_s,
    });
    audit::record(&mut tx, caller, "command.create", &format!("device:{device}"), detail).await?;
    let away = asked.delivery == Delivery::Direct && !app.channels.is_open(device);
    if away {
        row = end::end(&mut tx, &row, now).await?.unwrap_or(row);
    }
    tx.commit().await?;
    tell(app, &fleet.fleet_id.to_string(), &row);
    if !away {
        app.channels.stir(app, device);
        if asked.delivery == Delivery::Direct {
            end::later(app, device, new.id);
        }
    }
    Ok(row)
}

fn ttl(delivery: Delivery, asked: Option<u32>) -> Result<u32> {
    match (delivery, asked) {
        (_, Some(ttl)) if ttl == 0 || ttl > MAX_TTL_S => Err(Problem::invalid(
            "ttl_invalid",
            format!("ttl_s is {ttl}; it is 1 to {MAX_TTL_S}, which is 30 days."),
        )),
        (_, Some(ttl)) => Ok(ttl),
        (Delivery::Direct, None) => Ok(DIRECT_TTL_S),
        (Delivery::Store, None) => Err(Problem::invalid(
            "ttl_missing",
            "A stored command needs ttl_s: for how many seconds it may wait for its device.",
        )),
    }
}

/// Read within the write, so that a device revoked meanwhile is not asked.
async fn may_be_asked(tx: &mut Tx, device: DeviceId) -> Result<()> {
    let row = by_id_in(tx, device).await?.ok_or_else(|| Problem::not_found("such device"))?;
    if let Err(refused) = memory::refuse_unless_accepted(row.device_state()?) {
        return Err(Problem::conflict(
            "device_not_accepted",
            format!("Nothing can be asked of this device: it is {} ({}).", row.state, refused.code()),
        ));
    }
    if row.clone_suspected {
        return Err(Problem::conflict(
            "clone_suspected",
            "Two hold this device's key. Decide first who the device is: `copal device accept`.",
        ));
    }
    Ok(())
}

/// An Action for a device. Its `seq` rises for ever: by the clock, so that a cloud that was restored from a back-up
/// reuses none, and past the last one, so that a clock that was set back does not either.
#[allow(clippy::too_many_arguments, reason = "the parts of one document")]
async fn sign(
    app: &App,
    tx: &mut Tx,
    fleet: &FleetRow,
    device: DeviceId,
    id: CommandId,
    act: Act,
    delivery: Delivery,
    ttl_s: u32,
    now: u64,
) -> Result<Vec<u8>> {
    let last: i64 = sqlx::query_scalar("SELECT action_seq FROM devices WHERE device_id = $1")
        .bind(device.to_string())
        .fetch_one(&mut **tx)
        .await?;
    let seq = now.max(last.unsigned_abs() + 1);
    sqlx::query("UPDATE devices SET action_seq = $2 WHERE device_id = $1")
        .bind(device.to_string())
        .bind(seq.cast_signed())
        .execute(&mut **tx)
        .await?;
    let action = Action {
        spec: SPEC,
        fleet_id: fleet.fleet_id,
        device_id: device,
        id,
        seq,
        act,
        delivery,
        ttl_s,
        issued_at: now,
        ext: None,
    };
    Ok(Envelope::sign(&action, &[&app.keys.assign]).map_err(Problem::internal)?.to_bytes())
}
