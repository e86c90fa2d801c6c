//! What the owner allows, said at the line that asks for it.
//!
//! The rules are the protocol's ([`check_release`]), the very ones a device applies: here each wish of a service is
//! put to them alone, so that a refusal has a place. Nothing is decided twice.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{Compat, Policy, Release, ReleaseKind, ServiceRelease},
    ids::{AppId, FleetId, Name},
    policy::check_release,
    spec::{ServiceSpec, VolumeSpec},
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
];

pub(crate) fn check(root: &Node, project: &Project, policy: &Policy, p: &mut Problems) {
    for (name, service) in &project.services {
        let Some(node) = root.get("services").and_then(|services| services.get(name.as_str())) else {
            continue;
        };
        if refusal(policy, name, &service.spec, BTreeMap::new()).is_none() {
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
                if let Some((code, detail)) = refusal(policy, name, &spec, BTreeMap::new()) {
                    p.at(&wish, code, detail, fix());
                }
            }
        }
        if p.list.len() == before
            && let Some((code, detail)) = refusal(policy, name, &service.spec, BTreeMap::new())
        {
            p.at(node, code, detail, fix());
        }
    }
    let Some(anyone) = project.services.keys().next() else { return };
    for (name, volume) in &project.volumes {
        let volumes = BTreeMap::from([(name.clone(), volume.clone())]);
        if let Some((code, detail)) = refusal(policy, anyone, &ServiceSpec::default(), volumes)
            && let Some(node) = root.get("volumes").and_then(|volumes| volumes.get(name.as_str()))
        {
            p.at(node.get("driver_opts").unwrap_or(node), code, detail, fix());
        }
    }
}

fn fix() -> &'static str {
    "remove it, or have the fleet's owner open it in a new root (`copal root renew`)"
}

fn refusal(
    policy: &Policy,
    name: &Name,
    spec: &ServiceSpec,
    volumes: BTreeMap<Name, VolumeSpec>,
) -> Option<(&'static str, String)> {
    let service =
        ServiceRelease { spec: spec.clone(), overridable_env: Default::default(), images: BTreeMap::new() };
    let release = Release {
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
        services: BTreeMap::from([(name.clone(), service)]),
        volumes,
        networks: BTreeMap::new(),
        payloads: BTreeMap::new(),
        data_schema: None,
        min_from: None,
        ext: None,
    };
    check_release(policy, &release).err().map(|e| (e.code.as_str(), e.detail))
}
