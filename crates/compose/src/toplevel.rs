//! `volumes:` and `networks:` at the top level.

use std::{collections::BTreeMap, net::IpAddr};

use copal_protocol::{
    ids::Name,
    spec::{IpamPool, NetworkSpec, VolumeSpec},
};

use crate::{
    keys,
    problem::{Problems, code},
    read,
    service::labels,
    tree::Node,
};

pub(crate) fn volumes(node: &Node, p: &mut Problems) -> BTreeMap<Name, VolumeSpec> {
    let mut volumes = BTreeMap::new();
    for entry in read::map(node, p) {
        let Some(name) = read::name(&entry.name, &entry.key, p) else { continue };
        let mut spec = VolumeSpec::default();
        for entry in read::map(&entry.node, p) {
            if !keys::admit(&keys::VOLUME, entry, p) {
                continue;
            }
            match entry.name.as_str() {
                // `local` is what the engine uses where nothing is said.
                "driver" => spec.driver = driver(&entry.node, "local", p),
                "driver_opts" => spec.driver_opts = read::pair_map(&entry.node, p),
                _ => spec.labels = labels::plain(&entry.node, p),
            }
        }
        volumes.insert(name, spec);
    }
    volumes
}

pub(crate) fn networks(node: &Node, p: &mut Problems) -> BTreeMap<Name, NetworkSpec> {
    let mut networks = BTreeMap::new();
    for entry in read::map(node, p) {
        let Some(name) = read::name(&entry.name, &entry.key, p) else { continue };
        if matches!(entry.name.as_str(), "host" | "none") {
            p.at(
                &entry.key,
                code::CONFLICT,
                "is a word of the engine's",
                format!("write `network_mode: {}` at the service, or choose another name", entry.name),
            );
        }
        let mut spec = NetworkSpec::default();
        for entry in read::map(&entry.node, p) {
            if !keys::admit(&keys::NETWORK, entry, p) {
                continue;
            }
            match entry.name.as_str() {
                "driver" => spec.driver = driver(&entry.node, "bridge", p),
                "driver_opts" => spec.driver_opts = read::pair_map(&entry.node, p),
                "internal" => spec.internal = read::boolean(&entry.node, p).unwrap_or_default(),
                "enable_ipv6" => spec.enable_ipv6 = read::boolean(&entry.node, p).unwrap_or_default(),
                "ipam" => spec.ipam = ipam(&entry.node, p),
                _ => spec.labels = labels::plain(&entry.node, p),
            }
        }
        networks.insert(name, spec);
    }
    networks
}

fn driver(node: &Node, default: &str, p: &mut Problems) -> Option<String> {
    if node.is_null() {
        return None;
    }
    let text = read::word(node, p)?.trim();
    if matches!(text, "host" | "none" | "overlay") {
        p.at(
            node,
            code::UNSUPPORTED,
            format!("a network with the driver `{text}` cannot be made on a device"),
            "use `bridge` (the default), `macvlan` or `ipvlan`, or `network_mode:` at the service",
        );
    }
    (text != default).then(|| text.to_owned())
}

fn ipam(node: &Node, p: &mut Problems) -> Vec<IpamPool> {
    let mut pools = Vec::new();
    for entry in read::map(node, p) {
        if !keys::one_of(&["config", "driver"], entry, p) {
            continue;
        }
        if entry.name == "driver" {
            read::parsed(&entry.node, p, "`default`", |t| (t == "default").then_some(()));
            continue;
        }
        for item in read::list(&entry.node, p) {
            let mut pool = IpamPool::default();
            for entry in read::map(item, p) {
                if !keys::one_of(&["subnet", "gateway", "ip_range"], entry, p) {
                    continue;
                }
                let value = &entry.node;
                match entry.name.as_str() {
                    "subnet" => {
                        pool.subnet = read::parsed(value, p, "a subnet such as `10.1.0.0/24`", subnet);
                    }
                    "ip_range" => {
                        pool.ip_range = read::parsed(value, p, "a range such as `10.1.0.128/25`", subnet);
                    }
                    _ => {
                        pool.gateway = read::parsed(value, p, "an address", |t| {
                            t.parse::<IpAddr>().ok().map(|ip| ip.to_string())
                        });
                    }
                }
            }
            if pool.subnet.is_none() {
                p.at(
                    item,
                    code::MISSING,
                    "has no `subnet`",
                    "write `subnet: 10.1.0.0/24`, or leave `ipam` out",
                );
            }
            pools.push(pool);
        }
    }
    // Pools are a set: the engine asks no order of them.
    pools.sort_by(|a, b| a.subnet.cmp(&b.subnet));
    pools
}

fn subnet(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then(|| format!("{address}/{bits}"))
}
