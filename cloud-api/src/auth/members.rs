//! What people are on single fleets.

use std::{collections::BTreeMap, sync::Arc};

use copal_protocol::ids::FleetId;

use super::Role;
use crate::error::{Problem, Result};

/// What this person is on which fleets, beside a role on the whole server that says less.
///
/// # Errors
/// When the database fails, or has what no version of this program wrote.
pub async fn of_user(
    db: impl sqlx::SqliteExecutor<'_>,
    user_id: &str,
    role: Role,
) -> Result<Arc<BTreeMap<FleetId, Role>>> {
    // No fleet gives more.
    if role >= Role::Admin {
        return Ok(Arc::default());
    }
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT fleet_id, role FROM members WHERE user_id = $1 LIMIT 10000")
            .bind(user_id)
            .fetch_all(db)
            .await?;
    let parsed = rows.into_iter().map(|(fleet, role)| {
        Ok((fleet.parse::<FleetId>().map_err(Problem::internal)?, role.parse::<Role>()?))
    });
    Ok(Arc::new(parsed.collect::<Result<_>>()?))
}
