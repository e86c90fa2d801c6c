//! `/metrics`, in the text format of Prometheus. Labels are bounded: routes by their pattern, never a path, fleet,
//! device or person.

use std::{sync::LazyLock, time::Duration};

use axum::{
    extract::{ConnectInfo, FromRequestParts as _, Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::{
    app::{self, App},
    auth::{Act, Caller},
    error::Result,
};

/// Between two rounds of adding up.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: LazyLock<Option<PrometheusHandle>> = LazyLock::new(|| {
    let builder = PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0])
        .inspect_err(|error| tracing::warn!(%error, "histogram buckets"))
        .ok()?;
    builder.install_recorder().inspect_err(|error| tracing::warn!(%error, "metrics are off")).ok()
});

/// Makes sure that what is counted from here on is kept.
pub fn install() {
    LazyLock::force(&RECORDER);
}

/// Adds up what was counted since, until the cloud stops: else each answer's time is kept until somebody asks, and nobody may.
pub async fn run(app: App) {
    while app.stopping.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        RECORDER.as_ref().inspect(|recorder| recorder.run_upkeep());
    }
}

/// Counts an answer.
pub fn answered(method: &str, route: Option<&str>, status: u16, took: Duration) {
    let method = match method {
        m @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => m,
        _ => "other",
    };
    let route = route.unwrap_or("unmatched").to_owned();
    counter!("copal_http_requests_total", "method" => method.to_owned(), "route" => route.clone(), "status" => status.to_string())
        .increment(1);
    histogram!("copal_http_request_seconds", "route" => route).record(took.as_secs_f64());
}

/// `GET /metrics`: for a scraper on this machine without credentials, from elsewhere with a token that may read.
///
/// # Errors
/// 401 or 403 without such a token.
pub async fn serve(State(app): State<App>, request: Request) -> Result<Response> {
    // A proxy on this machine forwards for others, and says so.
    let forwarded =
        ["x-forwarded-for", "forwarded", "via"].iter().any(|h| request.headers().contains_key(*h));
    let local = request
        .extensions()
        .get::<ConnectInfo<std::net::SocketAddr>>()
        .is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    if !local || forwarded {
        let (mut parts, _) = request.into_parts();
        Caller::from_request_parts(&mut parts, &app).await?.may(Act::Read, None)?;
    }
    gauges(&app).await?;
    let text = RECORDER.as_ref().map(PrometheusHandle::render).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// What is counted when asked, rather than as it happens.
async fn gauges(app: &App) -> Result<()> {
    gauge!("copal_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let states = ["pending", "preauthorised", "accepted", "rejected", "revoked"];
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, COUNT(*) FROM devices GROUP BY state").fetch_all(app.db.read()).await?;
    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floats; counts are far below 2^52")]
    let float = |n: i64| n as f64;
    for state in states {
        let count = rows.iter().find(|r| r.0 == state).map_or(0, |r| r.1);
        gauge!("copal_devices", "state" => state).set(float(count));
    }
    let online = app.devices.online(app::now());
    gauge!("copal_devices_online").set(float(i64::try_from(online).unwrap_or(i64::MAX)));
    let (sockets, exchanges) = app.channels.count();
    for (by, count) in [("websocket", sockets), ("exchange", exchanges)] {
        gauge!("copal_channels", "by" => by).set(float(i64::try_from(count).unwrap_or(i64::MAX)));
    }
    let updating: Vec<(String, i64)> = sqlx::query_as(
        "SELECT 'os', COUNT(*) FROM devices d JOIN assignments a ON a.device_id = d.device_id
            WHERE d.state = 'accepted' AND a.os_id IS NOT NULL AND a.os_id IS DISTINCT FROM d.running_os
         UNION ALL
         SELECT 'agent', COUNT(*) FROM devices d JOIN assignments a ON a.device_id = d.device_id
            WHERE d.state = 'accepted' AND a.agent_id IS NOT NULL AND a.agent_id IS DISTINCT FROM d.running_agent",
    )
    .fetch_all(app.db.read())
    .await?;
    for (line, count) in updating {
        gauge!("copal_devices_off_host_target", "line" => line).set(float(count));
    }
    let tables = [
        ("copal_host_releases", "SELECT COUNT(*) FROM releases WHERE line <> 'app'"),
        ("copal_uploads", "SELECT COUNT(*) FROM uploads"),
        ("copal_commands_open", "SELECT COUNT(*) FROM commands WHERE ended_at IS NULL"),
        ("copal_fleets", "SELECT COUNT(*) FROM fleets"),
        ("copal_releases", "SELECT COUNT(*) FROM releases WHERE line = 'app'"),
        ("copal_builds_queued", "SELECT COUNT(*) FROM builds WHERE status = 'queued'"),
        ("copal_builds_running", "SELECT COUNT(*) FROM builds WHERE status = 'running'"),
        ("copal_blobs", "SELECT COUNT(*) FROM blobs"),
        ("copal_blob_bytes", "SELECT COALESCE(SUM(size), 0) FROM blobs"),
    ];
    for (name, sql) in tables {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(app.db.read()).await?;
        gauge!(name).set(float(count));
    }
    Ok(())
}
