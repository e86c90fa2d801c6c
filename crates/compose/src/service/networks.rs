//! `networks:` and `network_mode:` of a service.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use copal_protocol::{ids::Name, spec::Attachment};

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

pub(crate) fn attachments(node: &Node, p: &mut Problems) -> BTreeMap<Name, Attachment> {
    let mut all = BTreeMap::new();
    if let Value::Map(entries) = &node.value {
        for entry in entries {
            let Some(name) = read::name(&entry.name, &entry.key, p) else { continue };
            all.insert(name, attachment(&entry.node, p));
        }
    } else {
        for item in read::list(node, p) {
            if let Some(name) = read::word(item, p).and_then(|text| read::name(text, item, p)) {
                all.insert(name, Attachment::default());
            }
        }
    }
    // Naming only the default network, with nothing to say about it, is what happens anyway.
    if all.len() == 1 && all.get("default").is_some_and(|a| *a == Attachment::default()) {
        all.clear();
    }
    all
}

fn attachment(node: &Node, p: &mut Problems) -> Attachment {
    let mut attachment = Attachment::default();
    for entry in read::map(node, p) {
        let known = ["aliases", "ipv4_address", "ipv6_address"];
        let refused =
            ["link_local_ips", "mac_address", "driver_opts", "priority", "gw_priority", "interface_name"];
        if refused.contains(&entry.name.as_str()) {
            p.at(
                &entry.key,
                code::UNSUPPORTED,
                "cannot be honoured: engines of devices differ in it",
                "remove it; known here: aliases, ipv4_address, ipv6_address",
            );
            continue;
        }
        if !keys::one_of(&known, entry, p) {
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "aliases" => {
                for item in read::list(value, p) {
                    let alias = read::parsed(item, p, "a host name", |t| host_name(t).then(|| t.to_owned()));
                    attachment.aliases.extend(alias);
                }
            }
            "ipv4_address" => {
                attachment.ipv4_address = read::parsed(value, p, "an IPv4 address", |t| {
                    t.parse::<Ipv4Addr>().ok().map(|ip| ip.to_string())
                });
            }
            _ => {
                attachment.ipv6_address = read::parsed(value, p, "an IPv6 address", |t| {
                    t.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string())
                });
            }
        }
    }
    attachment
}

/// Whether a text can be a host name (underscores as people use them inside networks).
pub(crate) fn host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
        })
}

pub(crate) fn mode(node: &Node, p: &mut Problems) -> Option<String> {
    let text = read::word(node, p)?.trim();
    if text == "default" {
        return None;
    }
    namespace(node, text, &["host", "none", "bridge"], p)
}

/// A namespace word: one of `known`, or `service:<name>`.
pub(crate) fn namespace(node: &Node, text: &str, known: &[&str], p: &mut Problems) -> Option<String> {
    if known.contains(&text) || text.strip_prefix("service:").is_some_and(|name| name.parse::<Name>().is_ok())
    {
        return Some(text.to_owned());
    }
    let fix = format!("write one of {}, service:<name>", known.join(", "));
    if text.starts_with("container:") {
        p.at(
            node,
            code::UNSUPPORTED,
            "cannot be honoured: a release knows its services only, not containers",
            fix,
        );
    } else {
        p.at(node, code::INVALID, format!("`{}` is not known here", read::shown(text)), fix);
    }
    None
}
