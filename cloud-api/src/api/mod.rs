//! `/api/v1`: what people, the CLI and CI ask. One file an endpoint group: handlers, their wire types and OpenAPI
//! annotations together.
//!
//! In: requests, whose credentials are checked by taking a [`crate::auth::Caller`]. Out: JSON, or a
//! [`crate::error::Problem`]. Never here: SQL of another room's tables beyond counting, signing, building.

pub mod audit;
pub mod builds;
pub mod commands;
pub mod deploy;
pub(crate) mod device_filter;
pub mod device_health;
pub mod device_views;
pub mod devices;
pub mod enrolment_tokens;
pub mod events;
mod extract;
pub mod fleet_commands;
pub mod fleets;
pub mod health;
pub mod host_releases;
pub mod logs;
pub mod me;
pub mod members;
pub mod metrics;
pub mod openapi;
mod paging;
pub mod releases;
pub mod roots;
pub mod server;
pub mod session;
pub mod setup;
pub mod support_bundle;
pub mod telemetry;
pub mod terminal;
pub mod terminal_brake;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod uploads;
pub mod users;
pub mod variables;

pub use extract::{Json, Path, Query, Raw};
pub use paging::{Page, Paging};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// Every route below `/api/v1`. A room with such routes adds its line here.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .merge(setup::router())
        .merge(session::router())
        .merge(me::router())
        .merge(tokens::router())
        .merge(users::router())
        .merge(members::router())
        .merge(server::router())
        .merge(audit::router())
        .merge(fleets::router())
        .merge(roots::router())
        .merge(enrolment_tokens::router())
        .merge(devices::router())
        .merge(commands::router())
        .merge(telemetry::router())
        .merge(logs::router())
        .merge(terminal::router())
        .merge(terminal_brake::router())
        .merge(fleet_commands::router())
        .merge(device_health::router())
        .merge(support_bundle::router())
        .merge(releases::router())
        .merge(deploy::router())
        .merge(variables::router())
        .merge(events::router())
        .merge(builds::router())
        .merge(uploads::router())
        .merge(host_releases::router())
}
