//! `ports:` and `expose:`, ranges expanded to one entry a port.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use copal_protocol::spec::Port;

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// Ports of a service at most: each is a rule of the engine's firewall.
const MAX_PORTS: usize = 1000;

/// `ports:`.
pub(crate) fn published(node: &Node, p: &mut Problems) -> Vec<Port> {
    let mut all: BTreeSet<Port> = BTreeSet::new();
    for item in read::list(node, p) {
        let ports = match &item.value {
            Value::Map(_) => long(item, p),
            _ => read::word(item, p).and_then(|text| match short(text.trim()) {
                Ok(ports) => Some(ports),
                Err(why) => {
                    p.at(
                        item,
                        code::INVALID,
                        format!("`{}` is not a port: {why}", read::shown(text)),
                        "write [address:][outside:]inside[/tcp|udp], such as \"8080:80\"",
                    );
                    None
                }
            }),
        };
        all.extend(ports.into_iter().flatten());
        if all.len() > MAX_PORTS {
            p.at(
                item,
                code::LIMIT,
                format!("there are more than {MAX_PORTS} ports"),
                "publish fewer, or use `network_mode: host` where the owner allows it",
            );
            break;
        }
    }
    all.into_iter().collect()
}

/// `expose:`.
pub(crate) fn exposed(node: &Node, p: &mut Problems) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for item in read::list(node, p) {
        let ports = read::parsed(item, p, "a port such as `80`, `53/udp` or `3000-3005`", |text| {
            let (ports, protocol) = split_protocol(text).ok()?;
            Some((range(ports)?, protocol))
        });
        if let Some((ports, protocol)) = ports {
            if all.len() + ports.clone().count() > MAX_PORTS {
                p.at(item, code::LIMIT, format!("there are more than {MAX_PORTS} ports"), "expose fewer");
                continue;
            }
            all.extend(ports.map(|port| format!("{port}/{protocol}")));
        }
    }
    all
}

fn short(text: &str) -> Result<Vec<Port>, String> {
    let (rest, protocol) = split_protocol(text)?;
    let (rest, inside) = match rest.rsplit_once(':') {
        Some((rest, inside)) => (Some(rest), inside),
        None => (None, rest),
    };
    let (address, outside) = match rest {
        None => (None, None),
        // `[::1]:8080` and `127.0.0.1:8080`; a bare IPv6 address cannot be told from ports.
        Some(rest) => match rest.rsplit_once(':') {
            Some((address, outside)) => (Some(address), Some(outside)),
            None if rest.contains('.') => {
                return Err("an address is followed by `:outside:inside`".to_owned());
            }
            None => (None, Some(rest)),
        },
    };
    let address = address
        .map(|a| {
            let bare = a.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(a);
            bare.parse::<IpAddr>().map_err(|_| format!("`{}` is no address", read::shown(a)))
        })
        .transpose()?;
    let inside = range(inside).ok_or("the port inside must be 1 to 65535")?;
    let outside = match outside.filter(|o| !o.is_empty()) {
        Some(outside) => Some(range(outside).ok_or("the port outside must be 1 to 65535")?),
        None => None,
    };
    expand(inside, outside, address, &protocol)
}

fn long(node: &Node, p: &mut Problems) -> Option<Vec<Port>> {
    let (mut target, mut published, mut host_ip, mut protocol) = (None, None, None, "tcp".to_owned());
    let mut sound = true;
    for entry in read::map(node, p) {
        if !keys::one_of(
            &["target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"],
            entry,
            p,
        ) {
            sound = false;
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "target" => {
                target = read::integer(value, p, 1, 65535).and_then(|n| u16::try_from(n).ok());
                sound &= target.is_some();
            }
            "published" => {
                // An empty or zero port leaves the choice to the engine.
                if !matches!(&value.value, Value::Scalar(t) if matches!(t.trim(), "" | "0"))
                    && !value.is_null()
                {
                    published = read::parsed(value, p, "a port", range);
                    sound &= published.is_some();
                }
            }
            "host_ip" => {
                host_ip = read::parsed(value, p, "an address", |t| t.parse::<IpAddr>().ok());
                sound &= host_ip.is_some();
            }
            "protocol" => match read::parsed(value, p, "`tcp`, `udp` or `sctp`", known_protocol) {
                Some(word) => protocol = word,
                None => sound = false,
            },
            // On one engine both publish at the host.
            "mode" => drop(read::parsed(value, p, "`host` or `ingress`", |t| {
                matches!(t, "host" | "ingress").then_some(())
            })),
            _ => p.warn(
                &entry.key,
                code::NO_EFFECT,
                "has no effect: it is for people to read",
                "make it a comment",
            ),
        }
    }
    let Some(target) = target else {
        if sound {
            p.at(node, code::MISSING, "has no `target`", "write `target: <port inside>`");
        }
        return None;
    };
    if !sound {
        return None;
    }
    match expand(target..=target, published, host_ip, &protocol) {
        Ok(ports) => Some(ports),
        Err(why) => {
            p.at(node, code::INVALID, why, "publish one port for each target");
            None
        }
    }
}

fn expand(
    inside: RangeInclusive<u16>,
    outside: Option<RangeInclusive<u16>>,
    address: Option<IpAddr>,
    protocol: &str,
) -> Result<Vec<Port>, String> {
    let count = inside.clone().count();
    if count > MAX_PORTS {
        return Err(format!("the range has {count} ports; at most {MAX_PORTS} are possible"));
    }
    if let Some(outside) = &outside {
        let outside = outside.clone().count();
        if outside != count {
            return Err(format!("{outside} ports outside cannot meet {count} inside"));
        }
    }
    let host_ip = address.map(|a| a.to_string());
    let port = |target, published| Port {
        target,
        published,
        host_ip: host_ip.clone(),
        protocol: protocol.to_owned(),
    };
    Ok(match outside {
        Some(outside) => {
            inside.zip(outside).map(|(target, published)| port(target, Some(published))).collect()
        }
        None => inside.map(|target| port(target, None)).collect(),
    })
}

fn split_protocol(text: &str) -> Result<(&str, String), String> {
    match text.split_once('/') {
        None => Ok((text, "tcp".to_owned())),
        Some((ports, word)) => known_protocol(word)
            .map(|word| (ports, word))
            .ok_or_else(|| format!("`{}` is not tcp, udp or sctp", read::shown(word))),
    }
}

fn known_protocol(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    matches!(word.as_str(), "tcp" | "udp" | "sctp").then_some(word)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |t: &str| t.trim().parse::<u16>().ok().filter(|n| *n > 0);
    match text.split_once('-') {
        None => port(text).map(|n| n..=n),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some(first..=last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        short(text).map(|ports| {
            let one = |p: &Port| {
                let ip = p.host_ip.as_ref().map_or(String::new(), |ip| format!("{ip} "));
                let published = p.published.map_or("*".to_owned(), |n| n.to_string());
                format!("{ip}{published}>{}/{}", p.target, p.protocol)
            };
            ports.iter().map(one).collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn the_short_syntax() {
        for (text, want) in [
            ("80", "*>80/tcp"),
            ("8080:80", "8080>80/tcp"),
            ("22:22/TCP", "22>22/tcp"),
            ("53:53/udp", "53>53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1 8080>80/tcp"),
            ("127.0.0.1::80", "127.0.0.1 *>80/tcp"),
            ("0.0.0.0:80:80", "0.0.0.0 80>80/tcp"),
            ("[::1]:8080:80", "::1 8080>80/tcp"),
            ("3000-3001", "*>3000/tcp *>3001/tcp"),
            ("9090-9091:8080-8081", "9090>8080/tcp 9091>8081/tcp"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
        for bad in [
            "",
            ":",
            "0",
            "70000",
            "80:0",
            "a:80",
            "80/icmp",
            "8000-9000:80",
            "5-3",
            "1.2.3:80:80",
            "127.0.0.1:80",
            "1-65535",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
