//! Rounds: the same asked of every device that a filter means. In: a filter and what to ask. Out: one command for each device, made
//! at a bounded pace, and what came of each, counted.
//!
//! Which devices are meant is settled when the round begins, and written down with it; so a round goes on after a restart of the
//! cloud where it stood. A command of a round is a command like any other: signed for its device, done once. One row of the
//! audit log tells of the whole.
//!
//! | file | what it does |
//! |---|---|
//! | `pace` | asks the next devices of each round that is under way |
//! | `rows` | the database |

mod pace;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

use copal_filter::Filter;
use copal_protocol::{
    documents::Delivery,
    ids::{CommandId, Sha256Hex},
};
use serde_json::{Value, json};

pub(super) use pace::run;
pub(super) use rows::step;

use self::rows::{Cut, NewRound, Round, Spared};
use super::{
    make::{Asked, judge},
    rows::delivery_word,
    state::{CANCELLED, CommandState},
};
use crate::{
    api::device_filter,
    app::{self, App},
    audit,
    auth::Caller,
    bus::Event,
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// The most devices of one round.
pub(crate) const MAX_DEVICES: usize = 10_000;
/// The most rounds of a fleet with devices still to ask: of those that only ask, and of those that act.
const MAX_OPEN: i64 = 4;
/// The same of those whose every device was asked, and some of whose commands wait for devices that are away.
const MAX_WAITING: i64 = 64;

/// A round to be.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) asked: Asked,
    /// Which devices; every one of the fleet where absent.
    pub(crate) filter: Option<Filter>,
    /// How many there must be.
    pub(crate) expect_count: Option<u64>,
}

/// Which devices a round would be about, and nothing else.
///
/// # Errors
/// As [`begin`], but for what stands in the way of beginning now.
pub(crate) async fn preview(app: &App, caller: &Caller, fleet: &FleetRow, wish: Wish) -> Result<Vec<String>> {
    judge(caller, fleet, wish.asked)?;
    meant(app, fleet, wish.filter.as_ref()).await
}

/// Begins a round.
///
/// # Errors
/// Those of one command; `too_many_devices`, `no_devices`, `count_missing`, `count_differs`, `too_many_rounds`.
pub(crate) async fn begin(app: &App, caller: &Caller, fleet: &FleetRow, wish: Wish) -> Result<Round> {
    let whole = wish.asked.args.clone();
    let judged = judge(caller, fleet, wish.asked)?;
    judged.count(app)?;
    let filter = wish.filter.as_ref().map(ToString::to_string).unwrap_or_default();
    let devices = meant(app, fleet, wish.filter.as_ref()).await?;
    let count = devices.len() as u64;
    let acts = !matches!(judged.wanted, super::order::Wanted::Ask(_));
    let must = judged.wanted.is_grave() || (acts && filter.is_empty());
    match wish.expect_count {
        Some(expected) if expected != count => {
            return Err(Problem::conflict(
                "count_differs",
                format!(
                    "The filter means {count} devices now, not {expected}; nothing was asked. Look again which, and ask with their number."
                ),
            ));
        }
        None if must => {
            return Err(Problem::invalid(
                "count_missing",
                format!(
                    "{} of {count} devices needs expect_count: how many you mean. `dry_run` tells how many there are.",
                    judged.verb
                ),
            ));
        }
        _ => {}
    }
    if devices.is_empty() {
        return Err(Problem::invalid("no_devices", "The filter means no device of this fleet."));
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(Problem::internal)?;
    let args = Value::Object(judged.args.clone()).to_string();
    let whole = (whole != judged.args).then(|| Value::Object(whole).to_string());
    let new = NewRound {
        id: CommandId::from_bytes(id).to_string(),
        fleet_id: fleet.fleet_id.to_string(),
        verb: judged.verb.clone(),
        args,
        args_whole: whole,
        filter,
        acts,
        delivery: judged.delivery,
        ttl_s: judged.ttl_s,
        asked_by: judged.asked_by.clone(),
        author: judged.author.clone(),
        why: judged.why.clone(),
        created_at: app::now(),
    };
    let mut tx = app.db.write().await?;
    let (open, waiting) = rows::open_of(&mut tx, &new.fleet_id, acts).await?;
    if open >= MAX_OPEN || waiting >= MAX_WAITING {
        return Err(Problem::conflict(
            "too_many_rounds",
            format!(
                "{open} rounds of this fleet have devices to ask, of {waiting} that have not ended; {MAX_OPEN} and {MAX_WAITING} is the most. Let one end, or cancel it."
            ),
        ));
    }
    let round = rows::insert(&mut tx, &new, &devices).await?;
    let detail = json!({
        "round": new.id, "verb": judged.verb, "args": judged.args, "filter": new.filter, "devices": count,
        "devices_sha256": named(devices), "delivery": delivery_word(judged.delivery), "ttl_s": judged.ttl_s,
    });
    let object = format!("fleet:{}", fleet.slug);
    audit::record(&mut tx, caller, "fleet_command.create", &object, detail).await?;
    tx.commit().await?;
    app.rounds.notify_one();
    Ok(round)
}

/// Which devices a round is about, for the audit log: the SHA-256 of their ids, sorted, each with a newline after it. Rows of a round
/// go one day, and are not chained.
fn named(mut devices: Vec<String>) -> String {
    devices.sort_unstable();
    let lines: String = devices.into_iter().flat_map(|id| [id, "\n".to_owned()]).collect();
    Sha256Hex::of(lines.as_bytes()).to_string()
}

/// Asks no further device, and takes back what waits for one; what was sent goes on. `None`: there is no such round.
///
/// # Errors
/// When the database fails.
pub(crate) async fn cancel(app: &App, caller: &Caller, fleet: &FleetRow, id: &str) -> Result<Option<Round>> {
    let mut tx = app.db.write().await?;
    let fleet_id = fleet.fleet_id.to_string();
    let Some(round) = rows::of(&mut tx, &fleet_id, id).await? else { return Ok(None) };
    let mut spared = Spared::default();
    if round.ended_at.is_none() {
        let message = format!("{} ended the round before this device was sent anything", caller.who);
        let cut = Cut { state: CommandState::Rejected, code: CANCELLED, message: &message };
        spared = rows::cut(&mut tx, round.number, cut, app::now()).await?;
        let detail = json!({"round": round.id, "verb": round.verb, "not_asked": spared.devices});
        let object = format!("fleet:{}", fleet.slug);
        audit::record(&mut tx, caller, "fleet_command.cancel", &object, detail).await?;
    }
    let round = rows::of(&mut tx, &fleet_id, id).await?;
    tx.commit().await?;
    tell(app, &fleet_id, spared);
    Ok(round)
}

/// Tells listeners that what waited for its device was taken back.
fn tell(app: &App, fleet_id: &str, spared: Spared) {
    for (id, device_id) in spared.commands {
        app.bus.publish(Event::Command { fleet_id: fleet_id.to_owned(), device_id, id });
    }
}

/// Ids of the devices that are meant.
async fn meant(app: &App, fleet: &FleetRow, filter: Option<&Filter>) -> Result<Vec<String>> {
    let found = match filter {
        Some(filter) => device_filter::all(app, fleet, filter).await?,
        None => {
            let every = "name ~ \"*\"".parse::<Filter>().map_err(Problem::internal)?;
            device_filter::all(app, fleet, &every).await?
        }
    };
    if found.len() > MAX_DEVICES {
        return Err(Problem::invalid(
            "too_many_devices",
            format!(
                "The filter means {} devices; a round has at most {MAX_DEVICES}. Narrow it.",
                found.len()
            ),
        ));
    }
    Ok(found)
}

/// How a round is asked of each device.
fn delivery_of(word: &str) -> Delivery {
    if word == "store" { Delivery::Store } else { Delivery::Direct }
}
