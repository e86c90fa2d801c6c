//! Asking: a command is signed where it changes something, queued, and written into the audit log, all at once.

use std::time::Instant;

use copal_protocol::{
    documents::{Act, Action, Delivery, FIRST_EPOCH, MAX_TTL_S, SPEC},
    envelope::Envelope,
    ids::{CommandId, DeviceId, FleetId},
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
    auth::{Author, Caller},
    devices::{memory, rows::by_id_in},
    error::{Problem, Result},
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
};

/// Seconds in which a `direct` command may begin, where nobody said: longer than a slow link takes, and soon enough for
/// whoever waits.
const DIRECT_TTL_S: u32 = 30;

/// The longest a question waits for its device, seconds: what it would tell is of that day.
const MAX_QUESTION_S: u32 = 86_400;

/// What a person asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) args: Map<String, Value>,
    pub(crate) delivery: Delivery,
    pub(crate) ttl_s: Option<u32>,
}

/// What is asked, judged: of one device, or of each of many.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) wanted: Wanted,
    pub(super) verb: String,
    /// As they may be shown.
    pub(super) args: Map<String, Value>,
    pub(super) delivery: Delivery,
    pub(super) ttl_s: u32,
    pub(super) asked_by: String,
    pub(super) author: Author,
    pub(super) why: String,
    /// The round it belongs to.
    pub(super) fleet_command: Option<i64>,
}

impl Judged {
    /// Counts what only asks among what a person looks at.
    ///
    /// # Errors
    /// `too_many_reads`.
    pub(super) fn count(&self, app: &App) -> Result<()> {
        match self.wanted {
            Wanted::Ask(_) => app.auth.reads.take(&self.author.user_id, Instant::now()),
            Wanted::Act(_) => Ok(()),
        }
    }
}

/// Judges what is asked.
///
/// # Errors
/// `verb_unknown`, `args_invalid`, `ttl_missing`, `ttl_invalid`, `role_insufficient`.
pub(super) fn judge(caller: &Caller, fleet: &FleetRow, asked: Asked) -> Result<Judged> {
    let wanted = order::parse(&asked.verb, &asked.args)?;
    caller.may(wanted.needs(), Some(fleet))?;
    let ttl_s = ttl(asked.delivery, asked.ttl_s)?;
    if matches!(wanted, Wanted::Ask(_)) && ttl_s > MAX_QUESTION_S {
        return Err(Problem::invalid(
            "ttl_invalid",
            format!("ttl_s is {ttl_s}; a question waits at most {MAX_QUESTION_S}, which is a day."),
        ));
    }
    Ok(Judged {
        wanted,
        ttl_s,
        verb: asked.verb,
        args: order::shown(&asked.args),
        delivery: asked.delivery,
        asked_by: caller.who.clone(),
        author: caller.author(),
        why: caller.why.clone(),
        fleet_command: None,
    })
}

/// Asks something of a device of this fleet.
///
/// # Errors
/// Those of [`judge`], `device_not_accepted`, `clone_suspected`, `too_many_commands`.
pub(crate) async fn make(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    device: DeviceId,
    asked: Asked,
) -> Result<CommandRow> {
    let judged = judge(caller, fleet, asked)?;
    judged.count(app)?;
    let mut tx = app.db.write().await?;
    let row = ask(app, &mut tx, fleet.fleet_id, device, &judged, app::now()).await?;
    let detail = json!({
        "command": row.id, "verb": judged.verb, "args": judged.args, "ttl_s": judged.ttl_s,
        "delivery": rows::delivery_word(judged.delivery),
    });
    audit::record(&mut tx, caller, "command.create", &format!("device:{device}"), detail).await?;
    tx.commit().await?;
    asked_one(app, fleet.fleet_id, device, &row);
    Ok(row)
}

/// Asks one device, within a write. What is for now or not at all ends at once where the device is away.
pub(super) async fn ask(
    app: &App,
    tx: &mut Tx,
    fleet: FleetId,
    device: DeviceId,
    judged: &Judged,
    now: u64,
) -> Result<CommandRow> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(Problem::internal)?;
    let id = CommandId::from_bytes(id);
    may_be_asked(tx, device).await?;
    let (delivery, ttl_s) = (judged.delivery, judged.ttl_s);
    let envelope = match &judged.wanted {
        Wanted::Act(act) => Some(sign(app, tx, fleet, device, id, act.clone(), delivery, ttl_s, now).await?),
        Wanted::Ask(_) => None,
    };
    let new = New {
        id: id.to_string(),
        device,
        verb: judged.verb.clone(),
        args: Value::Object(judged.args.clone()).to_string(),
        delivery,
        ttl_s,
        asked_by: judged.asked_by.clone(),
        author: judged.author.clone(),
        why: judged.why.clone(),
        envelope,
        fleet_command: judged.fleet_command,
        created_at: now,
        due_at: state::due(CommandState::Queued, delivery, ttl_s, now),
    };
    let row = rows::insert(tx, &new).await?;
    if delivery == Delivery::Direct && !app.channels.is_open(device) {
        return Ok(end::end(tx, &row, now).await?.unwrap_or(row));
    }
    Ok(row)
}

/// What follows when that is committed.
pub(super) fn asked_one(app: &App, fleet: FleetId, device: DeviceId, row: &CommandRow) {
    tell(app, &fleet.to_string(), row);
    if row.ended_at.is_none() {
        app.channels.stir(app, device);
        if row.delivery() == Delivery::Direct {
            end::later(app, device, row.id.clone());
        }
    }
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

/// An Action for a device, in the epoch of the newest Root. Its `seq` rises for ever: by the clock, so that a cloud that was restored from a back-up
/// reuses none, and past the last one, so that a clock that was set back does not either.
#[allow(clippy::too_many_arguments, reason = "the parts of one document")]
async fn sign(
    app: &App,
    tx: &mut Tx,
    fleet: FleetId,
    device: DeviceId,
    id: CommandId,
    act: Act,
    delivery: Delivery,
    ttl_s: u32,
    now: u64,
) -> Result<Vec<u8>> {
    let epoch = fleets::latest_root(app, fleet).await?.map_or(FIRST_EPOCH, |root| root.assign_epoch);
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
        fleet_id: fleet,
        device_id: device,
        id,
        assign_epoch: epoch,
        seq,
        act,
        delivery,
        ttl_s,
        issued_at: now,
        ext: None,
    };
    Ok(Envelope::sign(&action, &[&app.keys.assign]).map_err(Problem::internal)?.to_bytes())
}
