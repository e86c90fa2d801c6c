//! What concerns several services, or several keys of one: references, cycles, ports, exclusions.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    ids::Name,
    spec::{Condition, Mount, Restart, ServiceSpec},
};

use crate::{
    Project, Service,
    problem::{Problems, code},
    tree::Node,
};

pub(crate) fn check(root: &Node, project: &Project, p: &mut Problems) {
    let nodes = root.get("services");
    for (name, service) in &project.services {
        let Some(node) = nodes.and_then(|nodes| nodes.get(name.as_str())) else { continue };
        dependencies(project, name, service, node, p);
        volumes(project, service, node, p);
        networks(project, service, node, p);
        namespaces(project, name, service, node, p);
    }
    cycles(project, nodes, p);
    ports(project, nodes, p);
}

/// The node of a key, or of the service itself.
fn at<'n>(node: &'n Node, key: &str) -> &'n Node {
    node.get(key).unwrap_or(node)
}

/// The item of a list or entry of a map that holds `text`, or the node of the key.
fn item<'n>(node: &'n Node, key: &str, text: &str) -> &'n Node {
    use crate::tree::Value;
    let key = at(node, key);
    match &key.value {
        Value::List(items) => items
            .iter()
            .find(|i| match &i.value {
                Value::Scalar(t) => t == text || t.split(':').any(|part| part == text),
                _ => ["source", "target"]
                    .iter()
                    .any(|k| matches!(i.get(k), Some(Node { value: Value::Scalar(t), .. }) if t == text)),
            })
            .unwrap_or(key),
        _ => key.get(text).unwrap_or(key),
    }
}

fn dependencies(project: &Project, name: &Name, service: &Service, node: &Node, p: &mut Problems) {
    for (other, dependency) in &service.spec.depends_on {
        let place = item(node, "depends_on", other.as_str());
        let Some(target) = project.services.get(other) else {
            if !dependency.optional {
                p.at(
                    place,
                    code::UNKNOWN_REFERENCE,
                    format!("there is no service `{other}` (or its profile leaves it out)"),
                    format!("write one of {}, or remove it", names(project.services.keys())),
                );
            }
            continue;
        };
        if other == name {
            continue;
        }
        match dependency.condition {
            Condition::ServiceHealthy => {
                let check = target.spec.healthcheck.as_ref();
                if check.is_some_and(|check| check.test.as_ref().is_some_and(|test| test == &["NONE"])) {
                    p.at(
                        place,
                        code::CONFLICT,
                        format!("waits for `{other}` to be healthy, whose health check is switched off"),
                        "write `condition: service_started`, or give it a health check",
                    );
                } else if check.is_none_or(|check| check.test.is_none()) {
                    p.warn(
                        place,
                        code::DOUBTFUL,
                        format!("waits for `{other}` to be healthy, which has no `healthcheck` here: its image must have one"),
                        format!("give `{other}` a `healthcheck`"),
                    );
                }
            }
            Condition::ServiceCompletedSuccessfully
                if matches!(target.spec.restart, Restart::UnlessStopped | Restart::Always) =>
            {
                p.at(
                    place,
                    code::CONFLICT,
                    format!("waits for `{other}` to end, which is started again whenever it ends"),
                    format!("write `restart: \"no\"` at `{other}`"),
                );
            }
            _ => {}
        }
    }
}

fn volumes(project: &Project, service: &Service, node: &Node, p: &mut Problems) {
    for mount in service.spec.mounts.values() {
        if let Mount::Volume { source: Some(name), .. } = mount
            && !project.volumes.contains_key(name)
        {
            p.at(
                item(node, "volumes", name.as_str()),
                code::UNKNOWN_REFERENCE,
                format!("there is no volume `{name}`"),
                format!("write `volumes:` with `{name}:` below it at the top level of the file"),
            );
        }
    }
}

fn networks(project: &Project, service: &Service, node: &Node, p: &mut Problems) {
    let spec = &service.spec;
    for (name, attachment) in &spec.networks {
        let network = project.networks.get(name);
        let place = item(node, "networks", name.as_str());
        if network.is_none() && name.as_str() != "default" {
            p.at(
                place,
                code::UNKNOWN_REFERENCE,
                format!("there is no network `{name}`"),
                format!("write `networks:` with `{name}:` below it at the top level of the file"),
            );
        } else if (attachment.ipv4_address.is_some() || attachment.ipv6_address.is_some())
            && network.is_none_or(|network| network.ipam.is_empty())
        {
            p.at(
                place,
                code::CONFLICT,
                format!("a fixed address needs a network with a subnet of its own, which `{name}` has not"),
                format!("write `ipam: config: [{{subnet: 10.1.0.0/24}}]` at the network `{name}`, or remove the address"),
            );
        }
    }
    let Some(mode) = &spec.network_mode else { return };
    let mut exclude = |set: bool, key: &str, why: &str| {
        if set {
            p.at(
                at(node, key),
                code::CONFLICT,
                format!("{why} with `network_mode: {mode}`"),
                format!("remove `{key}` or `network_mode`"),
            );
        }
    };
    exclude(node.get("networks").is_some(), "networks", "cannot be joined");
    match mode.as_str() {
        "host" | "none" => exclude(!spec.ports.is_empty(), "ports", "cannot be published"),
        mode if mode.starts_with("service:") => {
            let why = "belongs to the service whose network this is, and cannot be set";
            for (key, set) in [
                ("ports", !spec.ports.is_empty()),
                ("expose", !spec.expose.is_empty()),
                ("hostname", spec.hostname.is_some()),
                ("domainname", spec.domainname.is_some()),
                ("dns", !spec.dns.is_empty()),
                ("dns_search", !spec.dns_search.is_empty()),
                ("dns_opt", !spec.dns_opt.is_empty()),
                ("extra_hosts", !spec.extra_hosts.is_empty()),
            ] {
                exclude(set, key, why);
            }
        }
        _ => {}
    }
}

/// `network_mode`, `pid` and `ipc` with `service:<name>`.
fn shared(spec: &ServiceSpec) -> impl Iterator<Item = (&'static str, &str)> {
    [("network_mode", &spec.network_mode), ("pid", &spec.pid), ("ipc", &spec.ipc)]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.as_deref()?.strip_prefix("service:")?)))
}

fn namespaces(project: &Project, name: &Name, service: &Service, node: &Node, p: &mut Problems) {
    for (key, other) in shared(&service.spec) {
        if other == name.as_str() {
            p.at(
                at(node, key),
                code::CYCLE,
                "names the service itself",
                "name another service, or remove it",
            );
        } else if !project.services.contains_key(other) {
            p.at(
                at(node, key),
                code::UNKNOWN_REFERENCE,
                format!("there is no service `{other}` (or its profile leaves it out)"),
                format!("write one of {}", names(project.services.keys())),
            );
        }
    }
}

/// Services that wait for one another never start. Kahn's algorithm leaves exactly those on or behind a cycle; of
/// them the walk below keeps the ring itself.
fn cycles(project: &Project, nodes: Option<&Node>, p: &mut Problems) {
    let mut waits: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, service) in &project.services {
        let others = service
            .spec
            .depends_on
            .keys()
            .map(Name::as_str)
            .chain(shared(&service.spec).map(|(_, other)| other));
        waits.insert(name.as_str(), others.filter(|other| project.services.contains_key(*other)).collect());
    }
    loop {
        let free: Vec<&str> =
            waits.iter().filter(|(_, others)| others.is_empty()).map(|(name, _)| *name).collect();
        if free.is_empty() {
            break;
        }
        for name in free {
            waits.remove(name);
            for others in waits.values_mut() {
                others.remove(name);
            }
        }
    }
    let Some(mut current) = waits.keys().next().copied() else { return };
    let mut walk: Vec<&str> = Vec::new();
    while !walk.contains(&current) {
        walk.push(current);
        let Some(next) = waits.get(current).and_then(|others| others.first()) else { return };
        current = next;
    }
    let start = walk.iter().position(|name| *name == current).unwrap_or_default();
    let mut ring = walk.split_off(start);
    let first = ring.first().copied().unwrap_or(current);
    ring.push(first);
    let Some(node) = nodes.and_then(|nodes| nodes.get(first)) else { return };
    p.at(
        item(node, "depends_on", ring.get(1).copied().unwrap_or(first)),
        code::CYCLE,
        format!("services wait for one another: {}", ring.join(" → ")),
        "remove one of these dependencies",
    );
}

/// Two services cannot have the same port of the host, nor one service twice.
fn ports(project: &Project, nodes: Option<&Node>, p: &mut Problems) {
    /// Who publishes a port already, and at which address.
    type Holders<'p> = Vec<(&'p Name, Option<&'p str>)>;
    let mut taken: BTreeMap<(u16, &str), Holders<'_>> = BTreeMap::new();
    for (name, service) in &project.services {
        let mut said = BTreeSet::new();
        for port in &service.spec.ports {
            let Some(published) = port.published else { continue };
            let holders = taken.entry((published, port.protocol.as_str())).or_default();
            let ip = port.host_ip.as_deref();
            if let Some((holder, _)) = holders.iter().find(|(_, other)| addresses_meet(*other, ip))
                && let Some(node) = nodes.and_then(|nodes| nodes.get(name.as_str()))
                && said.insert((*holder).clone())
            {
                let whose = if *holder == name {
                    "by this service already".to_owned()
                } else {
                    format!("by `{holder}` too")
                };
                p.at(
                    at(node, "ports"),
                    code::CONFLICT,
                    format!("port {published}/{} of the device is published {whose}", port.protocol),
                    "publish it elsewhere, or once",
                );
            }
            holders.push((name, ip));
        }
    }
}

fn addresses_meet(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => {
            a == b
                || [(a, b), (b, a)].iter().any(|(any, other)| match *any {
                    "0.0.0.0" => !other.contains(':'),
                    // A dual-stack socket holds both families.
                    "::" => true,
                    _ => false,
                })
        }
    }
}

fn names<'n>(names: impl Iterator<Item = &'n Name>) -> String {
    let all: Vec<&str> = names.take(12).map(Name::as_str).collect();
    all.join(", ")
}
