//! What a service asks of its host: devices, rights, namespaces, names. Whether it may is the owner's policy.

use std::{collections::BTreeMap, net::IpAddr};

use copal_protocol::spec::{Device, ServiceSpec};

use super::networks::{host_name, namespace};
use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// Reads the keys of this room; false for the others.
pub(super) fn read_key(spec: &mut ServiceSpec, key: &str, node: &Node, p: &mut Problems) -> bool {
    match key {
        "privileged" => spec.privileged = read::boolean(node, p).unwrap_or_default(),
        "cap_add" => spec.cap_add = set(node, p, "a capability such as `NET_ADMIN`", capability),
        "cap_drop" => spec.cap_drop = set(node, p, "a capability such as `NET_ADMIN`", capability),
        "security_opt" => spec.security_opt = security_options(node, p),
        "device_cgroup_rules" => {
            spec.device_cgroup_rules = set(node, p, "a rule such as `c 81:* rmw`", cgroup_rule);
        }
        "devices" => spec.devices = devices(node, p),
        "pid" => {
            spec.pid = read::word(node, p).and_then(|text| namespace(node, text.trim(), &["host"], p));
        }
        "ipc" => {
            let known = ["host", "private", "shareable"];
            spec.ipc = read::word(node, p).and_then(|text| namespace(node, text.trim(), &known, p));
        }
        "dns" => {
            spec.dns = ordered(node, p, "an address", |t| t.parse::<IpAddr>().ok().map(|ip| ip.to_string()));
        }
        "dns_search" => {
            spec.dns_search =
                ordered(node, p, "a domain", |t| (t == "." || host_name(t)).then(|| t.to_owned()));
        }
        "dns_opt" => spec.dns_opt = ordered(node, p, "a resolver option", |t| Some(t.to_owned())),
        "extra_hosts" => spec.extra_hosts = extra_hosts(node, p),
        _ => return false,
    }
    true
}

fn set(
    node: &Node,
    p: &mut Problems,
    want: &str,
    parse: impl Fn(&str) -> Option<String>,
) -> std::collections::BTreeSet<String> {
    read::list(node, p).iter().filter_map(|item| read::parsed(item, p, want, &parse)).collect()
}

fn ordered(node: &Node, p: &mut Problems, want: &str, parse: impl Fn(&str) -> Option<String>) -> Vec<String> {
    read::one_or_many(node, p).iter().filter_map(|item| read::parsed(item, p, want, &parse)).collect()
}

/// Capitals without `CAP_`.
fn capability(text: &str) -> Option<String> {
    let name = text.to_ascii_uppercase();
    let bare = name.strip_prefix("CAP_").unwrap_or(&name);
    (!bare.is_empty() && bare.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).then(|| bare.to_owned())
}

/// `name=value`; `no-new-privileges` stands alone, as the engine reports it.
fn security_options(node: &Node, p: &mut Problems) -> std::collections::BTreeSet<String> {
    let mut options = std::collections::BTreeSet::new();
    for item in read::list(node, p) {
        let Some(text) = read::word(item, p) else { continue };
        // Both separators are in use; the first one counts, since labels have further colons.
        let (name, value) = match text.trim().split_once(['=', ':']) {
            Some((name, value)) => (name, Some(value)),
            None => (text.trim(), None),
        };
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => {
                options.insert(name.to_owned());
            }
            ("no-new-privileges", Some("false")) => {}
            ("seccomp" | "apparmor", Some("unconfined")) => {
                options.insert(format!("{name}=unconfined"));
            }
            ("seccomp", Some(_)) => p.at(
                item,
                code::UNSUPPORTED,
                "cannot be honoured: the profile is a file that a device does not have",
                "remove it, or ask for `seccomp=unconfined` where the owner allows it",
            ),
            ("apparmor" | "label" | "systempaths", Some(value)) if !value.is_empty() => {
                options.insert(format!("{name}={value}"));
            }
            _ => read::invalid(
                item,
                p,
                "a security option: `no-new-privileges`, `apparmor=…`, `seccomp=unconfined`, `label=…`, `systempaths=unconfined`",
            ),
        }
    }
    options
}

/// `c 81:* rmw`, with the letters in one order.
fn cgroup_rule(text: &str) -> Option<String> {
    let mut parts = text.split_whitespace();
    let (kind, numbers, letters) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |t: &str| t == "*" || t.parse::<u32>().is_ok();
    let (major, minor) = numbers.split_once(':')?;
    (parts.next().is_none() && matches!(kind, "a" | "b" | "c") && number(major) && number(minor))
        .then(|| permissions(letters).map(|letters| format!("{kind} {major}:{minor} {letters}")))
        .flatten()
}

/// Of `r`, `w`, `m`, each once, in that order.
fn permissions(text: &str) -> Option<String> {
    let known = !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    known.then(|| "rwm".chars().filter(|c| text.contains(*c)).collect())
}

fn devices(node: &Node, p: &mut Problems) -> Vec<Device> {
    let mut all = std::collections::BTreeMap::new();
    for item in read::list(node, p) {
        let device = if let Value::Map(entries) = &item.value {
            let (mut host, mut container, mut letters) = (None, None, Some("rwm".to_owned()));
            for entry in entries {
                if !keys::one_of(&["source", "target", "permissions"], entry, p) {
                    continue;
                }
                match entry.name.as_str() {
                    "source" => host = read::parsed(&entry.node, p, "an absolute path", read::absolute_path),
                    "target" => {
                        container = read::parsed(&entry.node, p, "an absolute path", read::absolute_path);
                    }
                    _ => letters = read::parsed(&entry.node, p, "letters of `rwm`", permissions),
                }
            }
            if host.is_none() && item.get("source").is_none() {
                p.at(item, code::MISSING, "has no `source`", "write `source: /dev/…`");
            }
            host.zip(letters).map(|(host, permissions)| Device {
                container: container.unwrap_or_else(|| host.clone()),
                host,
                permissions,
            })
        } else {
            read::parsed(item, p, "a device such as `/dev/ttyUSB0` or `/dev/a:/dev/b:rw`", short_device)
        };
        if let Some(device) = device
            && let Some(other) = all.insert(device.container.clone(), device.clone())
            && other != device
        {
            p.at(
                item,
                code::CONFLICT,
                format!("{} is given twice inside", device.container),
                "keep one of the two",
            );
        }
    }
    all.into_values().collect()
}

fn short_device(text: &str) -> Option<Device> {
    let mut parts = text.split(':');
    let host = read::absolute_path(parts.next()?)?;
    let (second, third) = (parts.next(), parts.next());
    if parts.next().is_some() {
        return None;
    }
    // The second part may be the letters already.
    let (container, letters) = match (second, third) {
        (None, _) => (host.clone(), "rwm".to_owned()),
        (Some(part), None) if !part.starts_with('/') => (host.clone(), permissions(part)?),
        (Some(part), letters) => (read::absolute_path(part)?, permissions(letters.unwrap_or("rwm"))?),
    };
    Some(Device { host, container, permissions: letters })
}

fn extra_hosts(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    let mut add = |name: &str, address: &str, at: &Node, p: &mut Problems| {
        let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        let address = if bare == "host-gateway" {
            Some(bare.to_owned())
        } else {
            bare.parse::<IpAddr>().ok().map(|a| a.to_string())
        };
        match address {
            Some(address) if host_name(name) => {
                if hosts.insert(name.to_owned(), address.clone()).is_some_and(|other| other != address) {
                    p.at(
                        at,
                        code::UNSUPPORTED,
                        format!("{} has two addresses", read::shown(name)),
                        "keep one of the two",
                    );
                }
            }
            _ => {
                read::invalid(
                    at,
                    p,
                    "a host and its address, such as `name=10.0.0.5` or `name=host-gateway`",
                );
            }
        }
    };
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                if let Some(address) = read::word(&entry.node, p) {
                    add(&entry.name, address.trim(), &entry.node, p);
                }
            }
        }
        _ => {
            for item in read::list(node, p) {
                let Some(text) = read::word(item, p) else { continue };
                match text.trim().split_once(['=', ':']) {
                    Some((name, address)) => add(name.trim(), address.trim(), item, p),
                    None => add("", "", item, p),
                }
            }
        }
    }
    hosts
}
