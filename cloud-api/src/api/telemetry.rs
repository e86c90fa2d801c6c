//! What devices told of themselves: events, metrics.

use std::{collections::BTreeMap, convert::Infallible};

use axum::{
    extract::State,
    response::{Response, sse::Event as Frame},
};
use copal_protocol::telemetry as wire;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Json, Page, Paging, Path, Query,
    devices::{DeviceEvent, device},
    events::{LIFETIME, Place, streamed},
};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, Needs, Watch},
    devices::rows::DeviceRow,
    error::{Problem, Result},
    store::fleets,
    telemetry::{
        live::{self, Heard},
        metrics,
    },
};

/// The most steps of one answer, and as many as there are by default.
const MAX_STEPS: u64 = 1_000;
const STEPS: u64 = 200;
/// The shortest step, seconds.
const MIN_STEP: u64 = 60;
/// How long ago metrics begin by default, seconds.
const DAY: u64 = 86_400;

/// Routes of telemetry.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(events)).routes(routes!(metrics)).routes(routes!(live))
}

/// The device of a route, in the fleet of the route.
pub(super) async fn of(app: &App, caller: &Caller, slug: &str, id: &str) -> Result<DeviceRow> {
    let (fleet, row) = device(app, caller, id, Act::Read).await?;
    if fleet.slug != slug {
        return Err(Problem::not_found("such device in this fleet"));
    }
    Ok(row)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParams {
    /// Items of a page, 1 to 500; 100 by default.
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only what happened at this time or later, Unix seconds.
    since: Option<u64>,
    /// Only events of this kind.
    kind: Option<String>,
}

/// What happened to a device, the newest heard of first; the newest 5,000 are kept, for 90 days.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/events", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."), EventParams),
    responses((status = 200, body = Page<DeviceEvent>)))]
pub(crate) async fn events(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(params): Query<EventParams>,
) -> Result<Json<Page<DeviceEvent>>> {
    of(&app, &caller, &slug, &id).await?;
    let paging = Paging::new(params.limit, params.after);
    let kind = params.kind.unwrap_or_default();
    events_page(&app, &id, &paging, params.since.unwrap_or(0), &kind).await.map(Json)
}

#[derive(sqlx::FromRow)]
struct EventRow {
    id: i64,
    at: i64,
    kind: String,
    code: String,
    message: String,
    data: String,
    seq: Option<i64>,
    boot_id: Option<String>,
    received_at: Option<i64>,
}

/// A page of a device's events; of all kinds where `kind` is empty.
pub(super) async fn events_page(
    app: &App,
    device: &str,
    paging: &Paging,
    since: u64,
    kind: &str,
) -> Result<Page<DeviceEvent>> {
    let found: Vec<EventRow> = sqlx::query_as(
        "SELECT id, at, kind, code, message, data, seq, boot_id, received_at FROM device_events
         WHERE device_id = $1 AND id < $2 AND at >= $4 AND ($5 = '' OR kind = $5) ORDER BY id DESC LIMIT $3",
    )
    .bind(device)
    .bind(paging.after(i64::MAX)?)
    .bind(paging.sql_limit()?)
    .bind(i64::try_from(since).unwrap_or(i64::MAX))
    .bind(kind)
    .fetch_all(app.db.read())
    .await?;
    Page::of(
        paging,
        found,
        |row| row.id.to_string(),
        |row| DeviceEvent {
            id: row.id.unsigned_abs(),
            at: row.at.unsigned_abs(),
            kind: row.kind,
            code: row.code,
            message: row.message,
            data: serde_json::from_str(&row.data).unwrap_or_default(),
            seq: row.seq.map(i64::unsigned_abs),
            boot_id: row.boot_id,
            received_at: row.received_at.unwrap_or(row.at).unsigned_abs(),
        },
    )
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MetricsParams {
    /// Spans that end after this, Unix seconds; a day before `to` by default.
    from: Option<u64>,
    /// And not after this; now by default.
    to: Option<u64>,
    /// Seconds of a step, 60 or more; so that there are about 200 by default. At most 1,000 steps.
    step: Option<u64>,
}

/// How a device fared.
#[derive(Debug, Serialize, ToSchema)]
pub struct Metrics {
    /// Unix seconds.
    pub from: u64,
    /// Unix seconds.
    pub to: u64,
    /// Seconds.
    pub step: u64,
    /// Steps in which something was measured, in order. A device tells of spans of an hour: shorter steps hold one each.
    pub points: Vec<MetricsPoint>,
}

/// What was measured in a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MetricsPoint {
    /// The end of the step, Unix seconds.
    pub at: u64,
    /// Seconds that were measured in.
    pub for_s: u32,
    /// How often was looked.
    pub samples: u32,
    /// Of the device.
    pub device: Series,
    /// Of each service.
    pub services: BTreeMap<String, Series>,
}

/// Gauges and counters by name: docs/telemetry.md lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Series {
    /// What goes up and down.
    pub gauges: BTreeMap<String, Gauge>,
    /// What came to pass in the span.
    pub counters: BTreeMap<String, u64>,
}

/// A gauge over a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Gauge {
    /// The least.
    pub min: i64,
    /// The mean.
    pub avg: i64,
    /// The greatest.
    pub max: i64,
    /// The last.
    pub last: i64,
}

impl From<wire::Measured> for Series {
    fn from(of: wire::Measured) -> Self {
        let gauge = |g: wire::Gauge| Gauge { min: g.min, avg: g.avg, max: g.max, last: g.last };
        Self {
            gauges: of.gauges.into_iter().map(|(name, g)| (name, gauge(g))).collect(),
            counters: of.counters,
        }
    }
}

impl MetricsPoint {
    /// A span that ended at `at`.
    pub(super) fn new(at: u64, span: wire::Summary) -> Self {
        Self {
            at,
            for_s: span.for_s,
            samples: span.samples,
            device: span.device.into(),
            services: span.services.into_iter().map(|(name, of)| (name, of.into())).collect(),
        }
    }
}

/// CPU, memory, disk, network and temperature of a device and its services, of the last 30 days.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/metrics", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."), MetricsParams),
    responses((status = 200, body = Metrics), (status = 400, description = "`span_invalid`, `step_invalid`")))]
pub(crate) async fn metrics(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(params): Query<MetricsParams>,
) -> Result<Json<Metrics>> {
    of(&app, &caller, &slug, &id).await?;
    let to = params.to.unwrap_or_else(app::now);
    let from = params.from.unwrap_or_else(|| to.saturating_sub(DAY));
    if from >= to || to > i64::MAX.unsigned_abs() {
        return Err(Problem::bad_request(
            "span_invalid",
            "from and to are Unix seconds, and from is before to.",
        ));
    }
    let step = params.step.unwrap_or_else(|| ((to - from) / STEPS).max(MIN_STEP));
    if step < MIN_STEP || (to - from).div_ceil(step) > MAX_STEPS {
        return Err(Problem::bad_request(
            "step_invalid",
            format!(
                "step is {MIN_STEP} seconds or more, and at most {MAX_STEPS} steps lie between from and to."
            ),
        ));
    }
    let steps = metrics::between(&app, &id, (from, to), step).await?;
    let points = steps.into_iter().map(|(at, span)| MetricsPoint::new(at, span)).collect();
    Ok(Json(Metrics { from, to, step, points }))
}

/// How a device fares, every 5 seconds while somebody listens: `sample` events, each a point as of `…/metrics`; an `end` event with
/// a `code` where the device tells no more. Ends after 15 minutes; come again then.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/metrics/live", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device.")),
    responses((status = 200, description = "A stream of events", content_type = "text/event-stream"),
        (status = 409, description = "`device_away`, `no_websocket`, `not_supported`, `over_budget`"),
        (status = 503, description = "`too_many_streams`")))]
pub(crate) async fn live(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Response> {
    let row = of(&app, &caller, &slug, &id).await?;
    let place = Place::take(&app, &caller)?;
    let fleet = fleets::by_id(&app, row.fleet_id.parse().map_err(Problem::internal)?).await?;
    let access = Watch::new(&app, &caller, Needs::May(Act::Read, Box::new(fleet)));
    app.auth.reads.take(&caller.user_id, std::time::Instant::now())?;
    // It makes the device work, and tells its owner's doings as they happen: whoever watches is on record.
    let mut tx = app.db.write().await?;
    audit::record(&mut tx, &caller, "metrics.watch", &format!("device:{id}"), serde_json::Value::Null)
        .await?;
    tx.commit().await?;
    let heard = live::watch(&app, row.id()?).await?;
    let watcher =
        Watcher { app, heard, until: Instant::now() + LIFETIME, over: false, access, _place: place };
    Ok(streamed(stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((Ok::<_, Infallible>(frame), watcher))
    })))
}

struct Watcher {
    app: App,
    heard: Receiver<Heard>,
    until: Instant,
    over: bool,
    access: Watch,
    _place: Place,
}

impl Watcher {
    fn end(&mut self, code: &str) -> Option<Frame> {
        self.over = true;
        let data = serde_json::json!({ "code": code }).to_string();
        Some(Frame::default().event("end").data(data))
    }

    /// The next frame; `None` ends the stream.
    async fn next(&mut self) -> Option<Frame> {
        while !self.over {
            if self.access.is_lost() {
                return self.end("access_lost");
            }
            let heard = tokio::select! {
                heard = self.heard.recv() => heard,
                () = tokio::time::sleep_until(self.until) => return None,
                _ = self.access.lost() => return self.end("access_lost"),
                () = self.app.stopping.cancelled() => return None,
            };
            match heard {
                Ok(Heard::Sample(span)) => {
                    let point = MetricsPoint::new(span.at.unwrap_or_else(app::now), (*span).clone());
                    let data = serde_json::to_string(&point).ok()?;
                    return Some(Frame::default().event("sample").data(data));
                }
                Ok(Heard::End(code)) => return self.end(&code),
                // Slower than the samples come: the newest counts.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
        None
    }
}
