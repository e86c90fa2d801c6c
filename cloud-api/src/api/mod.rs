//! `/api/v1`: what people, the CLI and CI ask. One file an endpoint group: handlers, their wire types and OpenAPI
//! annotations together.
//!
//! In: requests, whose credentials are checked by taking a [`crate::auth::Caller`]. Out: JSON, or a
//! [`crate::error::Problem`]. Never here: SQL of another room's tables beyond counting, signing, building.

mod extract;
pub mod fleets;
pub mod health;
pub mod openapi;
mod paging;

pub use extract::{Json, Path, Query, Raw};
pub use paging::{Page, Paging};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// Every route below `/api/v1`. A room with such routes adds its line here.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().merge(fleets::router())
}
