//! Terminals on devices, and their sessions.

use axum::{
    body::Body,
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use copal_protocol::{documents::TerminalTarget, ids::DeviceId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, devices::device, fleets::allowed};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, own_page},
    error::{Problem, Result},
    store::fleets::FleetRow,
    terminal::{
        self, Asked, COMES_S,
        rows::{self, SessionRow},
    },
};

/// The subprotocol of a terminal's WebSocket.
const SUBPROTOCOL: &str = "copal.terminal.v1";
/// The largest message of a person's side.
const MAX_MESSAGE: usize = 64 << 10;
/// How long a kill waits for the end.
const KILL: Duration = Duration::from_secs(5);

/// Routes of terminals.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(open))
        .routes(routes!(attach))
        .routes(routes!(list))
        .routes(routes!(show, kill))
        .routes(routes!(recording))
}

/// What to open. One of `service`, `host` and `recording`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// A shell in this service's container.
    service: Option<String>,
    /// A shell on the device itself; needs the role admin, and leave by the device's own policy file.
    #[serde(default)]
    host: bool,
    /// The recording of this earlier session under a grant, which only the device has.
    recording: Option<String>,
    /// Why; 1 to 500 characters. It stands in the audit log, in the recording, and on the device.
    #[serde(default)]
    reason: String,
    /// Columns; 80 by default, at most 1000.
    #[serde(default = "cols")]
    cols: u16,
    /// Rows; 24 by default, at most 1000.
    #[serde(default = "rows_")]
    rows: u16,
    /// Seconds it may last; at most, and by default, 1800, under a grant 900.
    max_s: Option<u32>,
    /// Seconds without a byte typed after which it ends; at most, and by default, 300.
    idle_s: Option<u32>,
}

fn cols() -> u16 {
    80
}

fn rows_() -> u16 {
    24
}

/// A session, live or past.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    /// 32 hex digits.
    pub id: String,
    /// The device.
    pub device_id: String,
    /// `{"service": name}`, `"host"` or `{"recording": id}`.
    #[schema(value_type = Object)]
    pub target: serde_json::Value,
    /// `cloud`: recorded here. `grant`: end to end, recorded on the device.
    pub mode: String,
    /// Who opened it.
    pub who: String,
    /// Why.
    pub reason: String,
    /// Seconds it may last.
    pub max_s: i64,
    /// Seconds without a byte typed after which it ends.
    pub idle_s: i64,
    /// `opening`, `open` or `ended`.
    pub state: String,
    /// Why it ended, stable: `ended` is the shell's own end.
    pub code: Option<String>,
    /// The same for people.
    pub message: String,
    /// What the shell ended with.
    pub exit_code: Option<i64>,
    /// Bytes that were typed.
    pub bytes_in: i64,
    /// Bytes the terminal said.
    pub bytes_out: i64,
    /// Bytes of the recording here; absent where there is none (any more).
    pub recording_bytes: Option<i64>,
    /// Its SHA-256, which stands in the audit log, too.
    pub recording_sha256: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// When the device opened it.
    pub opened_at: Option<i64>,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// The path of the WebSocket, for whoever asked, within 30 s.
    pub path: String,
}

fn view(slug: &str, row: SessionRow) -> Result<Session> {
    Ok(Session {
        target: serde_json::to_value(row.target()?).map_err(Problem::internal)?,
        path: format!("/api/v1/fleets/{slug}/devices/{}/terminal/{}", row.device_id, row.id),
        id: row.id,
        device_id: row.device_id,
        mode: row.mode,
        who: row.who,
        reason: row.reason,
        max_s: row.max_s,
        idle_s: row.idle_s,
        state: row.state,
        code: row.code,
        message: row.message,
        exit_code: row.exit_code,
        bytes_in: row.bytes_in,
        bytes_out: row.bytes_out,
        recording_bytes: row.recording_bytes,
        recording_sha256: row.recording_sha256,
        created_at: row.created_at,
        opened_at: row.opened_at,
        ended_at: row.ended_at,
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

async fn session(app: &App, fleet: &FleetRow, id: &str) -> Result<SessionRow> {
    rows::one(app, &fleet.fleet_id.to_string(), id).await?.ok_or_else(|| Problem::not_found("such session"))
}

/// Asks for a terminal on a device, and says why. It opens when the same person comes to the answer's `path` with a WebSocket, within 30 s.
/// A service needs the role operator, the device itself admin. Whether the device opens it is the device's own judgement.
#[utoipa::path(post, path = "/fleets/{slug}/devices/{id}/terminal", tag = "terminal", request_body = NewSession,
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device.")),
    responses((status = 201, body = Session),
        (status = 403, description = "`role_insufficient`"),
        (status = 409, description = "`terminal_off`, `terminal_stopped`, `device_away`, `no_websocket`, `device_not_accepted`, `clone_suspected`, `recordings_full`"),
        (status = 422, description = "`reason_missing`, `reason_invalid`, `target_invalid`, `size_invalid`, `bound_invalid`"),
        (status = 503, description = "`too_many_sessions`")))]
pub(crate) async fn open(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Json(new): Json<NewSession>,
) -> Result<(StatusCode, Json<Session>)> {
    let (fleet, device) = of(&app, &caller, &slug, &id).await?;
    let invalid = |why: String| Problem::invalid("target_invalid", why);
    let target = match (new.service, new.host, new.recording) {
        (Some(name), false, None) => {
            TerminalTarget::Service(name.parse().map_err(|e| invalid(format!("service: {e}")))?)
        }
        (None, true, None) => TerminalTarget::Host,
        (None, false, Some(of)) => {
            TerminalTarget::Recording(of.parse().map_err(|e| invalid(format!("recording: {e}")))?)
        }
        _ => return Err(invalid("Name one of `service`, `host` and `recording`.".to_owned())),
    };
    let size = (new.cols, new.rows);
    let asked = Asked { target, reason: new.reason, size, max_s: new.max_s, idle_s: new.idle_s };
    let row = terminal::make(&app, &caller, &fleet, device, asked).await?;
    Ok((StatusCode::CREATED, Json(view(&slug, row)?)))
}

/// The WebSocket of a session, subprotocol `copal.terminal.v1`. Binary messages are bytes typed and bytes shown. Text messages are JSON: a person's side
/// says `{"t": "resize", "cols", "rows"}`, the cloud `{"t": "opened"}` and at last `{"t": "closed", "code", "message", "exit_code"}`.
/// With the session cookie, only a page of this server opens it.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/terminal/{session}", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."),
        ("session" = String, Path, description = "The session.")),
    responses((status = 101, description = "The terminal."),
        (status = 400, description = "`upgrade_missing`, `subprotocol_unknown`"),
        (status = 403, description = "`csrf`"),
        (status = 404, description = "`not_found`: also where another person asked for it"),
        (status = 409, description = "`session_over`: it has ended, or was not come for in time")))]
pub(crate) async fn attach(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id, session_id)): Path<(String, String, String)>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let (fleet, device) = of(&app, &caller, &slug, &id).await?;
    let row = session(&app, &fleet, &session_id).await?;
    // By a token of another of their own accounts' names it would be another's act in the audit log.
    if row.device_id != device.to_string() || row.user_id != caller.user_id || row.who != caller.who {
        return Err(Problem::not_found("such session"));
    }
    if !headers.contains_key(header::AUTHORIZATION) {
        // A browser sends the cookie along with whatever page asks, and no page can forge its Origin.
        if !headers.contains_key(header::ORIGIN) {
            return Err(Problem::forbidden("csrf", "A terminal with the session cookie needs an Origin."));
        }
        own_page(&headers, &app.config.url)?;
    }
    let upgrade = upgrade.map_err(|e| {
        Problem::bad_request("upgrade_missing", format!("This is no WebSocket's request ({e})."))
    })?;
    if !upgrade.requested_protocols().any(|p| p == SUBPROTOCOL) {
        let why = format!("A terminal speaks {SUBPROTOCOL}; ask for it in Sec-WebSocket-Protocol.");
        return Err(Problem::bad_request("subprotocol_unknown", why));
    }
    let late = app::now().cast_signed() > row.created_at + COMES_S.cast_signed();
    if row.state != "opening" || late {
        let why = "The session has begun or ended, or nobody came for it within 30 s. Ask for another.";
        return Err(Problem::conflict("session_over", why));
    }
    let fleet_id = fleet.fleet_id.to_string();
    Ok(upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| Box::pin(terminal::run(app, fleet_id, row, caller, socket))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Items of a page, 1 to 500; 100 by default.
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only of this device.
    device: Option<String>,
    /// Only those that have not ended.
    #[serde(default)]
    live: bool,
}

/// Lists terminals of a fleet, newest first; a year of them is kept, recordings for 90 days.
#[utoipa::path(get, path = "/fleets/{slug}/sessions", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), ListParams),
    responses((status = 200, body = Page<Session>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<Session>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let paging = Paging::new(params.limit, params.after);
    let (before, limit) = (paging.after(i64::MAX)?, paging.sql_limit()?);
    let fleet_id = fleet.fleet_id.to_string();
    let found = rows::list(&app, &fleet_id, params.device.as_deref(), params.live, before, limit).await?;
    let page = Page::of(&paging, found, |row| row.number.to_string(), |row| row)?;
    let items = page.items.into_iter().map(|row| view(&slug, row)).collect::<Result<_>>()?;
    Ok(Json(Page { items, next: page.next }))
}

/// Shows a session.
#[utoipa::path(get, path = "/fleets/{slug}/sessions/{session}", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), ("session" = String, Path, description = "The session.")),
    responses((status = 200, body = Session), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<Session>> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let row = session(&app, &fleet, &id).await?;
    Ok(Json(view(&slug, row)?))
}

/// Ends a session at once, whoever opened it; needs the role operator. Fine where it has ended.
#[utoipa::path(delete, path = "/fleets/{slug}/sessions/{session}", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), ("session" = String, Path, description = "The session.")),
    responses((status = 200, body = Session), (status = 404, description = "`not_found`")))]
pub(crate) async fn kill(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<Session>> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let row = session(&app, &fleet, &id).await?;
    if row.ended_at.is_some() {
        return Ok(Json(view(&slug, row)?));
    }
    terminal::kill(&app, &caller, &fleet.fleet_id.to_string(), &row).await?;
    let until = Instant::now() + KILL;
    loop {
        let row = session(&app, &fleet, &id).await?;
        if row.ended_at.is_some() || Instant::now() >= until {
            return Ok(Json(view(&slug, row)?));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The recording of a session: asciicast version 2, byte for byte; needs the role operator, of a terminal of the device itself admin. A live one as far as it came.
#[utoipa::path(get, path = "/fleets/{slug}/sessions/{session}/recording", tag = "terminal",
    params(("slug" = String, Path, description = "The fleet."), ("session" = String, Path, description = "The session.")),
    responses((status = 200, description = "The recording", content_type = "application/x-asciicast"),
        (status = 404, description = "`recording_missing`: it was under a grant, or too old")))]
pub(crate) async fn recording(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Response> {
    let fleet = allowed(&app, &caller, &slug, Act::Deploy).await?;
    let row = session(&app, &fleet, &id).await?;
    // What was seen in it may be looked at by who could have opened it.
    caller.may(terminal::needs(&row.target()?), Some(&fleet))?;
    let missing = |why: &str| Problem::new(StatusCode::NOT_FOUND, "recording_missing", why);
    if row.mode == "grant" {
        return Err(missing(
            "A session under a grant is recorded on its device. `copal sessions download` fetches it with a grant of its own.",
        ));
    }
    if row.recording_bytes.is_none() {
        return Err(missing("The session was never opened, or its recording is no longer kept."));
    }
    let file = tokio::fs::File::open(terminal::recording_path(&app.config, &row.id))
        .await
        .map_err(|_| missing("The recording is not there any more."))?;
    app.auth.reads.take(&caller.user_id, std::time::Instant::now())?;
    let mut tx = app.db.write().await?;
    let object = format!("device:{}", row.device_id);
    audit::record(&mut tx, &caller, "terminal.recording", &object, json!({"session": row.id})).await?;
    tx.commit().await?;
    let name = format!("attachment; filename=\"{}.cast\"", row.id);
    let headers =
        [(header::CONTENT_TYPE, "application/x-asciicast".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
