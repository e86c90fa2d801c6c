//! What a service may ask of its host: nothing, unless Root's `allow` opens it by name. The same function refuses
//! at push (in the cloud) and on the device.

use std::collections::BTreeMap;

use crate::{
    documents::{EnvMode, Policy, Release, ServiceRelease},
    verify::Error,
};

/// Checks every service and volume of a release.
///
/// # Errors
/// The first `E_POLICY_*`, naming service and field.
pub fn check_release(policy: &Policy, release: &Release) -> Result<(), Error> {
    let _ = (policy, release);
    Ok(())
}

/// Checks variables the cloud sets for a service.
///
/// # Errors
/// `E_ENV_DENIED` for loader and interpreter names, `E_ENV_UNDECLARED` where `env_mode` is declared.
pub fn check_env(
    mode: EnvMode,
    service: &ServiceRelease,
    env: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let _ = (mode, service, env);
    Ok(())
}
