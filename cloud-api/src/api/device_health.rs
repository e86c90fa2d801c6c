//! What a device's health checks last found.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, devices::device};
use crate::{
    app::App,
    auth::{Act, Caller},
    error::{Problem, Result},
    health::{self, CheckRow},
};

/// Routes of devices' health.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(show))
}

/// What a device's health checks last found, as it reported them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceHealth {
    /// The worst verdict: `ok`, `unknown`, `warning` or `failed`; absent where nothing was heard yet.
    pub verdict: Option<String>,
    /// When the newest round of checks was, Unix seconds.
    pub at: Option<u64>,
    /// The checks, by name.
    pub checks: Vec<DeviceCheck>,
}

/// What one check last found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceCheck {
    /// Its name: `disk`, `memory`, …
    pub name: String,
    /// `ok`, `unknown`, `warning` or `failed`: the worst of what it looked at.
    pub verdict: String,
    /// What it looked at, where all is not well and there are several.
    pub subject: Option<String>,
    /// What was found, where all is not well.
    pub detail: String,
    /// What to do about it.
    pub advice: String,
    /// When it was found, Unix seconds.
    pub at: u64,
    /// Since when the verdict is this one.
    pub since: u64,
}

impl From<CheckRow> for DeviceCheck {
    fn from(row: CheckRow) -> Self {
        Self {
            name: row.name,
            verdict: row.verdict,
            subject: row.subject,
            detail: row.detail,
            advice: row.advice,
            at: row.at.unsigned_abs(),
            since: row.since.unsigned_abs(),
        }
    }
}

/// Shows what the health checks of a device last found: those it makes by itself every few hours, after a boot and after an update, and
/// those somebody asked for.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/health", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device.")),
    responses((status = 200, body = DeviceHealth), (status = 404, description = "`not_found`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<DeviceHealth>> {
    let (fleet, row) = device(&app, &caller, &id, Act::Read).await?;
    if fleet.slug != slug {
        return Err(Problem::not_found("such device in this fleet"));
    }
    let checks = health::of(&app, &id).await?.into_iter().map(DeviceCheck::from).collect();
    Ok(Json(DeviceHealth { verdict: row.health, at: row.health_at.map(i64::unsigned_abs), checks }))
}
