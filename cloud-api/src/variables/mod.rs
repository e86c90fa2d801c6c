//! Variables and secrets of fleets, services, devices and services on devices.
//!
//! In: what people set. Out: rows; secret values encrypted with the key outside the database, never to be read again by
//! anyone but the device they are sealed to. Never here: who gets which (`resolve`, pure), sealing (`assignments/`).

pub(crate) mod resolve;
#[cfg(test)]
mod tests;

use copal_protocol::{
    documents::EnvMode,
    ids::{DeviceId, Name},
    policy,
    verify::Code,
};
use serde_json::json;

use crate::{
    app::{self, App},
    assignments, audit,
    auth::{self, Caller},
    bus::Event,
    error::{Problem, Result},
    releases,
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
};
use resolve::Variable;

/// The most bytes of a value: all of a device's must fit into one assignment.
pub const MAX_VALUE: usize = 32 << 10;
/// The most variables of one fleet, or of one device.
pub const MAX_COUNT: i64 = 500;

/// Where a variable is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// One device; absent: every device of the fleet.
    pub device: Option<DeviceId>,
    /// One service; absent: every service.
    pub service: Option<Name>,
}

impl Scope {
    fn device_text(&self) -> String {
        self.device.map(|d| d.to_string()).unwrap_or_default()
    }

    fn service_text(&self) -> &str {
        self.service.as_ref().map_or("", Name::as_str)
    }

    fn object(&self, fleet: &FleetRow) -> String {
        self.device.map_or_else(|| format!("fleet:{}", fleet.slug), |device| format!("device:{device}"))
    }
}

/// Where a secret value is encrypted for.
#[must_use]
pub fn place(id: &str) -> String {
    format!("variables/{id}")
}

/// Variables of a fleet or a device, by service and name.
pub(crate) async fn list(app: &App, fleet: &FleetRow, device: Option<DeviceId>) -> Result<Vec<Variable>> {
    Ok(sqlx::query_as(
        "SELECT id, device_id, service, name, secret, value, version, updated_at FROM variables
         WHERE fleet_id = $1 AND device_id = $2 ORDER BY service, name",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(device.map(|d| d.to_string()).unwrap_or_default())
    .fetch_all(app.db.read())
    .await?)
}

/// Sets a variable, and gives the devices it concerns a new assignment.
///
/// # Errors
/// `E_ENV_DENIED`, `E_ENV_UNDECLARED`, `variable_name_invalid`, `variable_value_invalid`, `too_many_variables`.
pub async fn set(
    app: &App,
    caller: &Caller,
    fleet: &FleetRow,
    scope: &Scope,
    name: &str,
    value: &str,
    secret: bool,
) -> Result<()> {
    check_name(name)?;
    if value.len() > MAX_VALUE || value.contains('\0') {
        return Err(Problem::invalid(
            "variable_value_invalid",
            format!("The value of {name} has at most {MAX_VALUE} bytes and no NUL."),
        ));
    }
    let root = fleets::latest_root(app, fleet.fleet_id).await?;
    let mut tx = app.db.write().await?;
    if !secret
        && let Some(root) = &root
        && root.policy.env_mode == EnvMode::Declared
    {
        check_declared(&mut tx, fleet, scope, name).await?;
    }
    let found: Option<Variable> = sqlx::query_as(
        "SELECT id, device_id, service, name, secret, value, version, updated_at FROM variables
         WHERE fleet_id = $1 AND device_id = $2 AND service = $3 AND name = $4",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(scope.device_text())
    .bind(scope.service_text())
    .bind(name)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(old) = &found
        && old.secret == secret
        && is_value(app, old, value)
    {
        return Ok(());
    }
    let id = match &found {
        Some(old) => old.id.clone(),
        None => {
            check_count(&mut tx, fleet, scope).await?;
            auth::random_id()?
        }
    };
    let stored = if secret {
        app.keys.at_rest.seal(&place(&id), value.as_bytes())?
    } else {
        value.as_bytes().to_vec()
    };
    sqlx::query(
        "INSERT INTO variables (id, fleet_id, device_id, service, name, secret, value, version, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8)
         ON CONFLICT (fleet_id, device_id, service, name) DO UPDATE SET secret = excluded.secret, value = excluded.value,
            version = variables.version + 1, updated_at = excluded.updated_at",
    )
    .bind(&id)
    .bind(fleet.fleet_id.to_string())
    .bind(scope.device_text())
    .bind(scope.service_text())
    .bind(name)
    .bind(secret)
    .bind(&stored)
    .bind(app::now_i64())
    .execute(&mut *tx)
    .await?;
    let detail = json!({"name": name, "service": scope.service, "secret": secret});
    audit::record(&mut tx, caller, "variable.set", &scope.object(fleet), detail).await?;
    tx.commit().await?;
    refresh(app, fleet, scope).await
}

/// Removes a variable. Answers whether there was one.
///
/// # Errors
/// When the database fails.
pub async fn unset(app: &App, caller: &Caller, fleet: &FleetRow, scope: &Scope, name: &str) -> Result<bool> {
    let mut tx = app.db.write().await?;
    let gone = sqlx::query(
        "DELETE FROM variables WHERE fleet_id = $1 AND device_id = $2 AND service = $3 AND name = $4",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(scope.device_text())
    .bind(scope.service_text())
    .bind(name)
    .execute(&mut *tx)
    .await?;
    if gone.rows_affected() == 0 {
        return Ok(false);
    }
    let detail = json!({"name": name, "service": scope.service});
    audit::record(&mut tx, caller, "variable.unset", &scope.object(fleet), detail).await?;
    tx.commit().await?;
    refresh(app, fleet, scope).await?;
    Ok(true)
}

async fn refresh(app: &App, fleet: &FleetRow, scope: &Scope) -> Result<()> {
    let fleet_id = fleet.fleet_id.to_string();
    match scope.device {
        Some(device) => {
            assignments::refresh_device(app, device).await?;
            app.bus.publish(Event::Device { fleet_id, id: device.to_string() });
        }
        None => {
            assignments::refresh_fleet(app, fleet.fleet_id).await?;
            app.bus.publish(Event::Fleet { fleet_id, id: fleet.slug.clone() });
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if !policy::is_variable_name(name) {
        return Err(Problem::invalid(
            "variable_name_invalid",
            "The name of a variable is letters, digits, `_`, `.` and `-`, beginning with a letter or `_`, at most 128.",
        ));
    }
    if let Some(why) = policy::denied_variable(name) {
        return Err(Problem::invalid(
            Code::EnvDenied.as_str(),
            format!("{name} cannot be set from the cloud, because {why}. Set it in the compose file."),
        ));
    }
    Ok(())
}

/// In a fleet whose owner wants variables declared, a value nobody could get is refused rather than kept in vain.
async fn check_declared(tx: &mut Tx, fleet: &FleetRow, scope: &Scope, name: &str) -> Result<()> {
    let target: Option<String> = sqlx::query_scalar(
        "SELECT COALESCE((SELECT pinned_release FROM devices WHERE device_id = $2), target_release)
         FROM fleets WHERE fleet_id = $1",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(scope.device_text())
    .fetch_one(&mut **tx)
    .await?;
    let Some(target) = target else { return Ok(()) };
    let release = releases::rows::by_id_in(tx, &target).await?.document()?;
    let declared = release
        .services
        .iter()
        .filter(|(service, _)| scope.service.as_ref().is_none_or(|s| s == *service))
        .any(|(_, of_release)| resolve::may_set(EnvMode::Declared, of_release, name));
    if declared {
        return Ok(());
    }
    let wher = match &scope.service {
        Some(service) => format!("Nothing in the service {service}"),
        None => "No service".to_owned(),
    };
    Err(Problem::invalid(
        Code::EnvUndeclared.as_str(),
        format!(
            "{wher} of release {} lets the cloud set {name}, and the fleet's Root wants variables declared. Declare it in the compose file and push, or set it as a secret.",
            release.version
        ),
    ))
}

async fn check_count(tx: &mut Tx, fleet: &FleetRow, scope: &Scope) -> Result<()> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM variables WHERE fleet_id = $1 AND device_id = $2")
            .bind(fleet.fleet_id.to_string())
            .bind(scope.device_text())
            .fetch_one(&mut **tx)
            .await?;
    if count >= MAX_COUNT {
        return Err(Problem::invalid(
            "too_many_variables",
            format!("There are {count} variables here already; {MAX_COUNT} is the most. Remove some first."),
        ));
    }
    Ok(())
}

fn is_value(app: &App, old: &Variable, value: &str) -> bool {
    if old.secret {
        return app.keys.at_rest.open(&place(&old.id), &old.value).is_ok_and(|v| v == value.as_bytes());
    }
    old.value == value.as_bytes()
}
