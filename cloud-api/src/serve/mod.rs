//! Listening, and what every request passes through.
//!
//! In: connections. Out: responses of the rooms' routers, each with a request id, security headers and bounds.
//! Never here: what a route means.

mod control;
mod layers;
mod listener;
mod run;
#[cfg(test)]
mod tests;

pub use control::ask;
pub(crate) use listener::Admission;
#[cfg(test)]
pub(crate) use listener::run as listen;
pub use run::{lock, run};

use axum::{Router, routing::get};

use crate::{
    api::{self, health, metrics, openapi},
    app::App,
    channel, dashboard, devices,
    error::Problem,
    git, registry,
};

/// Joins the routers of all rooms, within the layers every request passes. A room with routes outside `/api/v1` adds
/// its line here.
pub fn router(app: App) -> Router {
    metrics::install();
    let rooms = Router::new()
        .merge(devices::router())
        .merge(channel::router())
        .nest("/api/v1", Router::from(api::router()))
        .route("/api/v1/openapi.json", get(openapi::serve))
        .merge(registry::router())
        .merge(git::router())
        .merge(dashboard::router())
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::serve))
        .fallback(|| async { Problem::not_found("such route") });
    layers::around(rooms, &app).with_state(app)
}
