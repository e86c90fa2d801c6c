//! Commands: ask something of one device, and see what came of it.

use std::time::Duration;

use axum::{extract::State, http::StatusCode};
use copal_protocol::{documents::Delivery, ids::DeviceId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{sync::broadcast::error::RecvError, time::Instant};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, devices::device};
use crate::{
    app::App,
    auth::{Act, Caller},
    bus::Event,
    commands::{
        self, Asked, make,
        rows::{self, CommandRow, delivery_word},
        state::CommandState,
    },
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// The longest a request waits for a command's end, seconds: a request of this API may take 60 s.
const MAX_WAIT: u64 = 50;

/// Routes of commands.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list, create)).routes(routes!(show)).routes(routes!(cancel))
}

/// Whether a command waits for a device that is away.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandDelivery {
    /// Now, or not at all: `unreachable` within 2 s where the device has no channel.
    #[default]
    Direct,
    /// Within `ttl_s`, whenever the device comes.
    Store,
}

impl From<CommandDelivery> for Delivery {
    fn from(delivery: CommandDelivery) -> Self {
        match delivery {
            CommandDelivery::Direct => Self::Direct,
            CommandDelivery::Store => Self::Store,
        }
    }
}

/// What to ask.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCommand {
    /// `restart_service`, `stop_service`, `start_service` (`service`), `purge_data` (`volume`, all where absent),
    /// `pause_updates` (`for_s`, until resumed where absent), `resume_updates`, `reboot`, `check_update`,
    /// `blink` (`for_s`, 1 to 600), `set_network` (`proxy`: a URL or `none`; `ntp`: a list, empty for the system's own; what is absent
    /// stays), `probes` (`names`, all where absent), `network`.
    verb: String,
    /// Its arguments.
    #[serde(default)]
    #[schema(value_type = Object)]
    args: Map<String, Value>,
    /// Whether it waits for a device that is away.
    #[serde(default)]
    delivery: CommandDelivery,
    /// Seconds in which it may begin, at most 2,592,000, of `probes` and `network` 86,400; `store` needs it, `direct` has 30 by default.
    ttl_s: Option<u32>,
}

/// A command, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Command {
    /// 32 hex digits.
    pub id: String,
    /// The device.
    pub device_id: String,
    /// What was asked.
    pub verb: String,
    /// Its arguments.
    #[schema(value_type = Object)]
    pub args: Value,
    /// `direct` or `store`.
    pub delivery: String,
    /// Seconds in which it may begin.
    pub ttl_s: u32,
    /// Where it stands. Delivered is not done.
    pub state: CommandState,
    /// Whether nothing follows.
    pub ended: bool,
    /// Why it was refused or failed, stable.
    pub code: Option<String>,
    /// The same for people.
    pub message: String,
    /// What was asked for; of `probes` `{"probes": […], "taken_at": …}`. Left out of lists, and kept of a device's newest 20.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Who asked.
    pub asked_by: String,
    /// Why, as `X-Copal-Why` said.
    pub why: String,
    /// Unix seconds.
    pub created_at: u64,
    /// When it was first sent.
    pub delivered_at: Option<u64>,
    /// When the device had written it down.
    pub accepted_at: Option<u64>,
    /// When the device began.
    pub running_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
}

fn view(row: CommandRow) -> Result<Command> {
    let at = |at: Option<i64>| at.map(i64::unsigned_abs);
    let state = row.state()?;
    Ok(Command {
        delivery: delivery_word(row.delivery()).to_owned(),
        ttl_s: row.ttl_s(),
        id: row.id,
        device_id: row.device_id,
        verb: row.verb,
        args: serde_json::from_str(&row.args).unwrap_or_default(),
        state,
        ended: state.is_final(),
        code: row.code,
        message: row.message,
        result: row.result.and_then(|text| serde_json::from_str(&text).ok()),
        asked_by: row.asked_by,
        why: row.why,
        created_at: row.created_at.unsigned_abs(),
        delivered_at: at(row.delivered_at),
        accepted_at: at(row.accepted_at),
        running_at: at(row.running_at),
        ended_at: at(row.ended_at),
    })
}

/// The device of a route, in the fleet of the route.
async fn of(app: &App, caller: &Caller, slug: &str, id: &str) -> Result<(FleetRow, DeviceId)> {
    let (fleet, row) = device(app, caller, id, Act::Read).await?;
    if fleet.slug != slug {
        return Err(Problem::not_found("such device in this fleet"));
    }
    Ok((fleet, row.id()?))
}

/// Asks something of a device. `probes` needs the role viewer, everything else operator. What changes something is
/// signed for this device; it does what a command's id says at most once.
#[utoipa::path(post, path = "/fleets/{slug}/devices/{id}/commands", tag = "commands", request_body = NewCommand,
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device.")),
    responses((status = 201, body = Command),
        (status = 409, description = "`device_not_accepted`, `clone_suspected`, `too_many_commands` (64 acts or 64 questions, 16 of them one's own, that have not ended)"),
        (status = 429, description = "`too_many_reads`"),
        (status = 422, description = "`verb_unknown`, `args_invalid`, `ttl_missing`, `ttl_invalid`")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Json(new): Json<NewCommand>,
) -> Result<(StatusCode, Json<Command>)> {
    let (fleet, device) = of(&app, &caller, &slug, &id).await?;
    let asked = Asked { verb: new.verb, args: new.args, delivery: new.delivery.into(), ttl_s: new.ttl_s };
    let row = make(&app, &caller, &fleet, device, asked).await?;
    Ok((StatusCode::CREATED, Json(view(row)?)))
}

/// Lists the commands of a device, newest first, without their results; the newest 200 acts and 200 questions are kept.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/commands", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."), Paging),
    responses((status = 200, body = Page<Command>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Command>>> {
    of(&app, &caller, &slug, &id).await?;
    let found = rows::list(&app, &id, paging.after(i64::MAX)?, paging.sql_limit()?).await?;
    let page = Page::of(&paging, found, |row| row.number.to_string(), |row| row)?;
    Ok(Json(Page { items: page.items.into_iter().map(view).collect::<Result<_>>()?, next: page.next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ShowParams {
    /// Seconds to wait for the command's end, at most 50; answered as soon as it ended.
    #[serde(default)]
    wait: u64,
}

/// Shows a command.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/commands/{command}", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."),
        ("command" = String, Path, description = "The command."), ShowParams),
    responses((status = 200, body = Command), (status = 400, description = "`wait_invalid`"),
        (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id, command)): Path<(String, String, String)>,
    Query(params): Query<ShowParams>,
) -> Result<Json<Command>> {
    of(&app, &caller, &slug, &id).await?;
    if params.wait > MAX_WAIT {
        return Err(Problem::bad_request("wait_invalid", format!("wait is 0 to {MAX_WAIT} seconds.")));
    }
    let until = Instant::now() + Duration::from_secs(params.wait);
    // Subscribed before looking, so that no end falls in between.
    let mut changes = app.bus.subscribe();
    loop {
        let row = rows::one(&app, &id, &command).await?.ok_or_else(|| Problem::not_found("such command"))?;
        if row.ended_at.is_some() {
            return Ok(Json(view(row)?));
        }
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = tokio::time::sleep_until(until) => return Ok(Json(view(row)?)),
                () = app.stopping.cancelled() => return Ok(Json(view(row)?)),
            };
            match change {
                Ok(change) if matches!(&change.event, Event::Command { id, .. } if *id == command) => break,
                Ok(_) => {}
                // Too much happened to tell; look again.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Ok(Json(view(row)?)),
            }
        }
    }
}

/// Takes a command back that was not sent yet: it ends as `rejected` with the code `cancelled`. Fine where it has ended. Needs the role
/// operator, or to have asked it oneself.
#[utoipa::path(post, path = "/fleets/{slug}/devices/{id}/commands/{command}/cancel", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."),
        ("command" = String, Path, description = "The command.")),
    responses((status = 200, body = Command), (status = 404, description = "`not_found`"),
        (status = 409, description = "`command_sent`")))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id, command)): Path<(String, String, String)>,
) -> Result<Json<Command>> {
    let (fleet, _) = of(&app, &caller, &slug, &id).await?;
    let unknown = || Problem::not_found("such command");
    let row = rows::one(&app, &id, &command).await?.ok_or_else(unknown)?;
    let own = row.asked_by == caller.who && row.user_id == caller.user_id;
    caller.may(if own && row.envelope.is_none() { Act::Read } else { Act::Deploy }, Some(&fleet))?;
    commands::cancel(&app, &caller, &fleet, &command).await?;
    Ok(Json(view(rows::one(&app, &id, &command).await?.ok_or_else(unknown)?)?))
}
