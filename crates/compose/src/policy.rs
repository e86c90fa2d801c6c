//! What the owner allows, said at the line that asks for it.
//!
//! The rules are the protocol's ([`check_release`]), the very ones a device applies: here each wish of a service is
//! put to them alone, so that a refusal has a place. Nothing is decided twice.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::{Compat, Policy, Release, ReleaseKind, ServiceRelease},
    ids::{AppId, FleetId, Name},
    policy::check_release,
    spec::ServiceSpec,
};

use crate::{
    Project,
    problem::Problems,
    service,
    tree::{Node, Value},
};

/// The keys by which a service can ask something of its host.
const WISHES: &[&str] = &[
    "privileged",
    "network_mode",
    "pid",
    "ipc",
    "cap_add",
    "devices",
    "volumes",
    "security_opt",
    "runtime",
    "sysctls",
    "device_cgroup_rules",
    "logging",
];

pub(crate) fn check(root: &Node, project: &Project, policy: &Policy, p: &mut Problems) {
    for (name, service) in &project.services {
        let Some(node) = root.get("services").and_then(|services| services.get(name.as_str())) else {
            continue;
        };
        if refusal(policy, name, &service.spec).is_none() {
            continue;
        }
        let before = p.list.len();
        for key in WISHES {
            let Some(value) = node.get(key) else { continue };
            // A list is put to the rules item by item.
            let wishes: Vec<Node> = match &value.value {
                Value::List(items) => items
                    .iter()
                    .map(|item| Node { value: Value::List(vec![item.clone()]), ..item.clone() })
                    .collect(),
                _ => vec![value.clone()],
            };
            for wish in wishes {
                let mut spec = ServiceSpec::default();
                // Problems of the value itself were recorded when the service was read.
                service::read_key(&mut spec, key, &wish, &mut Problems::default());
                if let Some((code, detail)) = refusal(policy, name, &spec) {
                    p.at(&wish, code, detail, FIX);
                }
            }
        }
        if p.list.len() == before
            && let Some((code, detail)) = refusal(policy, name, &service.spec)
        {
            p.at(node, code, detail, FIX);
        }
    }
    for (name, volume) in &project.volumes {
        let mut release = nothing();
        release.volumes.insert(name.clone(), volume.clone());
        parts(root, "volumes", name, policy, &release, p);
    }
    for (name, network) in &project.networks {
        let mut release = nothing();
        release.networks.insert(name.clone(), network.clone());
        parts(root, "networks", name, policy, &release, p);
    }
}

/// Reports a volume or network that is refused, at its driver options or its driver.
fn parts(root: &Node, section: &str, name: &Name, policy: &Policy, release: &Release, p: &mut Problems) {
    let Some(error) = check_release(policy, release).err() else { return };
    let Some(node) = root.get(section).and_then(|all| all.get(name.as_str())) else { return };
    let place = if error.detail.contains("asks for driver_opts") { "driver_opts" } else { "driver" };
    p.at(node.get(place).unwrap_or(node), error.code.as_str(), error.detail, FIX);
}

const FIX: &str = "remove it, or have the fleet's owner open it in a new root (`copal root renew`)";

/// Why a service that asks for no more than `spec` is refused.
fn refusal(policy: &Policy, name: &Name, spec: &ServiceSpec) -> Option<(&'static str, String)> {
    let service =
        ServiceRelease { spec: spec.clone(), overridable_env: BTreeSet::new(), images: BTreeMap::new() };
    let mut release = nothing();
    release.services.insert(name.clone(), service);
    check_release(policy, &release).err().map(|e| (e.code.as_str(), e.detail))
}

/// A release that asks for nothing.
fn nothing() -> Release {
    Release {
        spec: 1,
        fleet_id: FleetId::from_bytes([0; 16]),
        kind: ReleaseKind::App,
        app_id: Some(AppId::from_bytes([0; 16])),
        counter: 1,
        version: semver::Version::new(0, 0, 0),
        commit: String::new(),
        created_at: 0,
        expires: None,
        rollback_floor: 0,
        compat: Compat::default(),
        build_record: None,
        services: BTreeMap::new(),
        volumes: BTreeMap::new(),
        networks: BTreeMap::new(),
        payloads: BTreeMap::new(),
        data_schema: None,
        min_from: None,
        ext: None,
    }
}
