//! Rounds: ask the same of every device a filter means, and see how far it is.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, commands::CommandDelivery, device_filter, fleets::allowed};
use crate::{
    app::App,
    auth::{Act, Caller},
    commands::{
        Asked,
        many::{
            self, Wish,
            rows::{self, Counts, Round, RoundDevice},
        },
        state::CommandState,
    },
    error::{Problem, Result},
};

/// The longest a request waits for a round's end, seconds: a request of this API may take 60 s.
const MAX_WAIT: u64 = 50;
/// Between looks at a round that is waited for.
const LOOK: Duration = Duration::from_millis(500);
/// Names shown of a round that is only looked at.
const SAMPLE: usize = 20;

/// Routes of rounds.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(devices))
        .routes(routes!(cancel))
}

/// What to ask, and of whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFleetCommand {
    /// As of one device's commands.
    verb: String,
    /// Its arguments.
    #[serde(default)]
    #[schema(value_type = Object)]
    args: Map<String, Value>,
    /// Which devices: docs/filter.md. All of the fleet where it is left out; what acts needs `expect_count` then.
    #[serde(default)]
    filter: Option<String>,
    /// How many devices there must be, else nothing is asked. `purge_data`, `reboot`, `stop_service` and `set_network` need it.
    #[serde(default)]
    expect_count: Option<u64>,
    /// Tells how many devices are meant, and asks nothing.
    #[serde(default)]
    dry_run: bool,
    /// Whether it waits for devices that are away.
    #[serde(default)]
    delivery: CommandDelivery,
    /// Seconds in which it may begin on a device, from when that one is asked.
    ttl_s: Option<u32>,
}

/// Which devices a round would be about.
#[derive(Debug, Serialize, ToSchema)]
pub struct FleetCommandPreview {
    /// How many.
    pub total: u64,
    /// Names of the first 20.
    pub sample: Vec<String>,
}

/// A round, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FleetCommand {
    /// 32 hex digits.
    pub id: String,
    /// What is asked of each device.
    pub verb: String,
    /// Its arguments.
    #[schema(value_type = Object)]
    pub args: Value,
    /// Which devices were meant when it began; empty: every one.
    pub filter: String,
    /// `direct` or `store`.
    pub delivery: String,
    /// Seconds in which it may begin on a device.
    pub ttl_s: u32,
    /// How many devices.
    pub total: u64,
    /// How many of these are in which state; `queued` are those that were not asked yet, too.
    pub states: BTreeMap<String, u64>,
    /// Of `probes`: how many devices have which worst verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Whether every device ended.
    pub ended: bool,
    /// Who asked.
    pub asked_by: String,
    /// Why, as `X-Copal-Why` said.
    pub why: String,
    /// Unix seconds.
    pub created_at: u64,
    /// When the last device ended.
    pub ended_at: Option<u64>,
}

/// A device of a round, and what came of it there.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FleetCommandDevice {
    /// The device.
    pub device_id: String,
    /// What people call it.
    pub name: String,
    /// Its command, with what it answered; absent where it was not asked (yet).
    pub command_id: Option<String>,
    /// Where it stands.
    pub state: String,
    /// Whether nothing follows.
    pub ended: bool,
    /// Why it was refused or failed, stable.
    pub code: Option<String>,
    /// The same for people.
    pub message: String,
    /// Of `probes`: the worst verdict of each check.
    #[schema(value_type = Option<Object>)]
    pub checks: Option<Value>,
    /// The worst of these.
    pub verdict: Option<String>,
    /// Unix seconds.
    pub ended_at: Option<u64>,
}

fn view(round: Round, counts: Option<&Counts>) -> FleetCommand {
    let counts = counts.cloned().unwrap_or_default();
    FleetCommand {
        id: round.id,
        verb: round.verb,
        args: serde_json::from_str(&round.args).unwrap_or_default(),
        filter: round.filter,
        delivery: round.delivery,
        ttl_s: u32::try_from(round.ttl_s).unwrap_or(0),
        total: round.total.unsigned_abs(),
        states: counts.states,
        verdicts: counts.verdicts,
        ended: round.ended_at.is_some(),
        asked_by: round.asked_by,
        why: round.why,
        created_at: round.created_at.unsigned_abs(),
        ended_at: round.ended_at.map(i64::unsigned_abs),
    }
}

async fn counted(app: &App, round: Round) -> Result<FleetCommand> {
    let counts = rows::counts(app, std::slice::from_ref(&round)).await?;
    let number = round.number;
    Ok(view(round, counts.get(&number)))
}

fn unknown() -> Problem {
    Problem::not_found("such round in this fleet")
}

/// Asks the same of every device that a filter means now. Roles are as for one device. Devices are asked at a bounded pace, 50 a
/// second; one row of the audit log tells of the whole.
#[utoipa::path(post, path = "/fleets/{slug}/commands", tag = "commands", request_body = NewFleetCommand,
    params(("slug" = String, Path, description = "The fleet.")),
    responses((status = 201, body = FleetCommand), (status = 200, body = FleetCommandPreview, description = "With `dry_run`"),
        (status = 400, description = "`filter_invalid`"),
        (status = 409, description = "`count_differs`, `too_many_rounds` (4 of those that ask and 4 of those that act, with devices still to ask)"),
        (status = 429, description = "`too_many_reads`"),
        (status = 422, description = "`verb_unknown`, `args_invalid`, `ttl_missing`, `ttl_invalid`, `count_missing`, `no_devices`, `too_many_devices` (10,000)")))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Json(new): Json<NewFleetCommand>,
) -> Result<Response> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let filter = new.filter.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let wish = Wish {
        filter: filter.map(device_filter::read).transpose()?,
        expect_count: new.expect_count,
        asked: Asked { verb: new.verb, args: new.args, delivery: new.delivery.into(), ttl_s: new.ttl_s },
    };
    if new.dry_run {
        let found = many::preview(&app, &caller, &fleet, wish).await?;
        let sample = device_filter::names(&app, &found[..found.len().min(SAMPLE)]).await?;
        return Ok(Json(FleetCommandPreview { total: found.len() as u64, sample }).into_response());
    }
    let round = many::begin(&app, &caller, &fleet, wish).await?;
    Ok((StatusCode::CREATED, Json(counted(&app, round).await?)).into_response())
}

/// Lists the rounds of a fleet, newest first; the newest 20 are kept.
#[utoipa::path(get, path = "/fleets/{slug}/commands", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), Paging),
    responses((status = 200, body = Page<FleetCommand>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<FleetCommand>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let id = fleet.fleet_id.to_string();
    let found = rows::list(&app, &id, paging.after(i64::MAX)?, paging.sql_limit()?).await?;
    let page = Page::of(&paging, found, |round| round.number.to_string(), |round| round)?;
    let counts = rows::counts(&app, &page.items).await?;
    let view = |round: Round| {
        let number = round.number;
        view(round, counts.get(&number))
    };
    Ok(Json(Page { items: page.items.into_iter().map(view).collect(), next: page.next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ShowParams {
    /// Seconds to wait for the round's end, at most 50; answered as soon as it ended.
    #[serde(default)]
    wait: u64,
}

/// Shows a round: how many devices stand where.
#[utoipa::path(get, path = "/fleets/{slug}/commands/{command}", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("command" = String, Path, description = "The round."), ShowParams),
    responses((status = 200, body = FleetCommand), (status = 400, description = "`wait_invalid`"),
        (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(params): Query<ShowParams>,
) -> Result<Json<FleetCommand>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    if params.wait > MAX_WAIT {
        return Err(Problem::bad_request("wait_invalid", format!("wait is 0 to {MAX_WAIT} seconds.")));
    }
    let until = Instant::now() + Duration::from_secs(params.wait);
    let fleet = fleet.fleet_id.to_string();
    loop {
        let round = rows::one(&app, &fleet, &id).await?.ok_or_else(unknown)?;
        if round.ended_at.is_some() || Instant::now() >= until || app.stopping.is_cancelled() {
            return Ok(Json(counted(&app, round).await?));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DevicesParams {
    /// Items of a page, 1 to 500; 100 by default.
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only devices in this state.
    state: Option<CommandState>,
}

/// Lists the devices of a round and what came of it there, in the order of their ids. What a device answered in whole stands with
/// its command.
#[utoipa::path(get, path = "/fleets/{slug}/commands/{command}/devices", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("command" = String, Path, description = "The round."), DevicesParams),
    responses((status = 200, body = Page<FleetCommandDevice>), (status = 404, description = "`not_found`")))]
pub(crate) async fn devices(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(params): Query<DevicesParams>,
) -> Result<Json<Page<FleetCommandDevice>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let round = rows::one(&app, &fleet.fleet_id.to_string(), &id).await?.ok_or_else(unknown)?;
    let paging = Paging::new(params.limit, params.after);
    let (after, limit) = (paging.after(String::new())?, paging.sql_limit()?);
    let state = params.state.map(CommandState::as_str);
    let found = rows::devices(&app, round.number, state, &after, limit).await?;
    Ok(Json(Page::of(&paging, found, |row| row.device_id.clone(), device_view)?))
}

fn device_view(row: RoundDevice) -> FleetCommandDevice {
    FleetCommandDevice {
        device_id: row.device_id,
        name: row.name,
        command_id: row.command_id,
        state: row.state,
        ended: row.ended_at.is_some(),
        code: row.code,
        message: row.message,
        checks: row.checks.and_then(|text| serde_json::from_str(&text).ok()),
        verdict: row.verdict,
        ended_at: row.ended_at.map(i64::unsigned_abs),
    }
}

/// Asks no further device of a round, and takes back what waits for a device that is away; what was sent goes on. Needs the role operator, or to have asked it oneself.
#[utoipa::path(post, path = "/fleets/{slug}/commands/{command}/cancel", tag = "commands",
    params(("slug" = String, Path, description = "The fleet."), ("command" = String, Path, description = "The round.")),
    responses((status = 200, body = FleetCommand), (status = 404, description = "`not_found`")))]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<FleetCommand>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let round = rows::one(&app, &fleet.fleet_id.to_string(), &id).await?.ok_or_else(unknown)?;
    if round.asked_by != caller.who || round.user_id != caller.user_id {
        caller.may(Act::Deploy, Some(&fleet))?;
    }
    let round = many::cancel(&app, &caller, &fleet, &id).await?.ok_or_else(unknown)?;
    Ok(Json(counted(&app, round).await?))
}
