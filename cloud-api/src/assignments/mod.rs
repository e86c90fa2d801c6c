//! Assignments: what each device should run, signed by the assign key.
//!
//! In: a device's or fleet's id, after anything an assignment is made from has been committed. Out: signed bytes in the
//! database and their hash in memory, only where the content changed. Never here: who gets which release when (`rollouts/`).

use copal_protocol::ids::{DeviceId, FleetId};

use crate::{app::App, error::Result};

/// Brings one device's assignment up to date. Answers its seq when it has one.
///
/// # Errors
/// When the database fails.
pub async fn refresh_device(app: &App, device: DeviceId) -> Result<Option<u64>> {
    let _ = (app, device);
    Ok(None)
}

/// Brings the assignments of a whole fleet up to date, in batches. Answers how many changed.
///
/// # Errors
/// When the database fails.
pub async fn refresh_fleet(app: &App, fleet: FleetId) -> Result<u64> {
    let _ = (app, fleet);
    Ok(0)
}
