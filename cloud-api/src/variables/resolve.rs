//! Which variables a device's services get. Pure.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{EnvMode, Release, ServiceRelease},
    ids::Name,
    policy,
};

/// A variable of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Variable {
    pub(crate) id: String,
    /// Empty: every device.
    pub(crate) device_id: String,
    /// Empty: every service.
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) secret: bool,
    /// Encrypted, for a secret one.
    pub(crate) value: Vec<u8>,
    pub(crate) version: i64,
    pub(crate) updated_at: i64,
}

impl Variable {
    /// Fleet, service, device, device and service: later wins.
    fn rank(&self) -> u8 {
        u8::from(!self.device_id.is_empty()) * 2 + u8::from(!self.service.is_empty())
    }
}

/// Service → name → the variable that wins there. In the clear only what the device would accept: elsewhere than in
/// an open fleet, what the service declared.
pub(crate) fn resolve<'a>(
    variables: &'a [Variable],
    device: &str,
    release: &Release,
    mode: EnvMode,
) -> BTreeMap<Name, BTreeMap<&'a str, &'a Variable>> {
    let mut services = BTreeMap::new();
    for (service, of_release) in &release.services {
        let mut names: BTreeMap<&str, &Variable> = BTreeMap::new();
        for variable in variables {
            let here = (variable.device_id.is_empty() || variable.device_id == device)
                && (variable.service.is_empty() || variable.service == service.as_str());
            if here && names.get(variable.name.as_str()).is_none_or(|old| old.rank() <= variable.rank()) {
                names.insert(&variable.name, variable);
            }
        }
        names.retain(|name, variable| variable.secret || may_set(mode, of_release, name));
        if !names.is_empty() {
            services.insert(service.clone(), names);
        }
    }
    services
}

/// Whether a device would take this variable for this service.
pub(crate) fn may_set(mode: EnvMode, service: &ServiceRelease, name: &str) -> bool {
    policy::check_env(mode, service, &BTreeMap::from([(name.to_owned(), String::new())])).is_ok()
}

#[cfg(test)]
mod tests {
    use copal_protocol::testing::OwnerKeys;

    use super::*;

    fn variable(device: &str, service: &str, name: &str, secret: bool) -> Variable {
        Variable {
            id: format!("{device}/{service}/{name}"),
            device_id: device.to_owned(),
            service: service.to_owned(),
            name: name.to_owned(),
            secret,
            value: Vec::new(),
            version: 1,
            updated_at: 0,
        }
    }

    #[test]
    fn the_narrower_scope_wins_and_other_devices_and_services_are_left_alone() {
        let release = OwnerKeys::fixed().release(1);
        let of = |scopes: &[(&str, &str)]| {
            let variables: Vec<_> = scopes.iter().map(|(d, s)| variable(d, s, "A", false)).collect();
            let resolved = resolve(&variables, "d1", &release, EnvMode::Open);
            resolved.get("web").map(|names| names["A"].id.clone())
        };
        assert_eq!(of(&[("", "")]).as_deref(), Some("//A"));
        assert_eq!(of(&[("", "web"), ("", "")]).as_deref(), Some("/web/A"));
        assert_eq!(of(&[("d1", ""), ("", "web"), ("", "")]).as_deref(), Some("d1//A"));
        assert_eq!(of(&[("d1", "web"), ("d1", ""), ("", "web")]).as_deref(), Some("d1/web/A"));
        assert_eq!(of(&[("d2", "web"), ("", "worker")]), None);
    }

    #[test]
    fn where_variables_are_declared_only_those_go_out_in_the_clear() {
        let release = OwnerKeys::fixed().release(1);
        let variables = [
            variable("", "", "GREETING", false),
            variable("", "", "OTHER", false),
            variable("", "", "PASSWORD", true),
        ];
        let names = |mode| {
            resolve(&variables, "d1", &release, mode)["web"]
                .keys()
                .map(|n| (*n).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(EnvMode::Open), ["GREETING", "OTHER", "PASSWORD"]);
        assert_eq!(names(EnvMode::Declared), ["GREETING", "PASSWORD"]);
    }
}
