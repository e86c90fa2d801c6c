//! `volumes:` and `tmpfs:` of a service, by their target.

use std::collections::btree_map::Entry;

use copal_protocol::spec::{Mount, ServiceSpec};

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// Where the agent itself mounts.
const RESERVED: &[&str] = &["/run/copal", "/run/secrets"];
const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// `volumes:`.
pub(super) fn volumes(spec: &mut ServiceSpec, node: &Node, p: &mut Problems) {
    for item in read::list(node, p) {
        let mount = match &item.value {
            Value::Map(_) => long(item, p),
            _ => read::word(item, p).and_then(|text| short(text.trim(), item, p)),
        };
        if let Some((target, mount)) = mount {
            put(spec, target, mount, item, p);
        }
    }
}

/// `tmpfs:`, as `/run` or `/run:size=64m,mode=1777`.
pub(super) fn tmpfs(spec: &mut ServiceSpec, node: &Node, p: &mut Problems) {
    for item in read::one_or_many(node, p) {
        let Some(text) = read::word(item, p) else { continue };
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let Some(target) = target_path(target, item, p) else { continue };
        let (mut size, mut mode, mut sound) = (None, None, true);
        for option in options.split(',').filter(|o| !o.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let scalar = Node { value: Value::Scalar(value.to_owned()), ..item.clone() };
            match name {
                "size" => size = read::bytes(&scalar, p),
                "mode" => mode = octal(&scalar, p),
                // What the engine mounts with anyway.
                "rw" | "noexec" | "nosuid" | "nodev" => {}
                _ => sound = false,
            }
        }
        if !sound {
            p.at(
                item,
                code::UNSUPPORTED,
                format!("`{}` has an option that cannot be honoured", read::shown(text)),
                "keep `size=` and `mode=`",
            );
        }
        put(spec, target, Mount::Tmpfs { size, mode }, item, p);
    }
}

fn put(spec: &mut ServiceSpec, target: String, mount: Mount, at: &Node, p: &mut Problems) {
    if RESERVED
        .iter()
        .any(|r| target == *r || target.strip_prefix(r).is_some_and(|rest| rest.starts_with('/')))
    {
        p.at(
            at,
            code::CONFLICT,
            format!("{target} is where the agent puts locks and secrets"),
            "mount it elsewhere",
        );
        return;
    }
    match spec.mounts.entry(target) {
        Entry::Vacant(place) => drop(place.insert(mount)),
        Entry::Occupied(place) => {
            p.at(at, code::CONFLICT, format!("{} has two mounts", place.key()), "keep one of the two");
        }
    }
}

fn target_path(text: &str, at: &Node, p: &mut Problems) -> Option<String> {
    let path = read::absolute_path(text).filter(|path| path != "/");
    if path.is_none() {
        p.at(
            at,
            code::INVALID,
            format!("`{}` is no place inside a container", read::shown(text)),
            "write an absolute path without `..`, other than `/`",
        );
    }
    path
}

fn relative_bind(source: &str, at: &Node, p: &mut Problems) {
    p.at(
        at,
        code::UNSUPPORTED,
        format!("`{}` is a folder of the repository, which a device does not have", read::shown(source)),
        "COPY it into the image (Dockerfile), or use a named volume for data",
    );
}

fn short(text: &str, at: &Node, p: &mut Problems) -> Option<(String, Mount)> {
    let mut parts = text.split(':');
    let (first, second, third) = (parts.next()?, parts.next(), parts.next());
    if parts.next().is_some() {
        read::invalid(at, p, "`source:target[:options]`");
        return None;
    }
    let Some(target) = second else {
        return Some((
            target_path(first, at, p)?,
            Mount::Volume { source: None, read_only: false, nocopy: false },
        ));
    };
    let target = target_path(target, at, p)?;
    let (mut read_only, mut nocopy, mut propagation) = (false, false, None);
    for option in third.unwrap_or_default().split(',').filter(|o| !o.is_empty()) {
        match option {
            // The last three tell macOS how fresh to be, and mean nothing on Linux.
            "rw" | "cached" | "delegated" | "consistent" => {}
            "ro" => read_only = true,
            "nocopy" => nocopy = true,
            "z" | "Z" => p.at(
                at,
                code::UNSUPPORTED,
                "`z` and `Z` relabel the host's files for SELinux, which devices do not run",
                "remove the option",
            ),
            word if PROPAGATIONS.contains(&word) => propagation = Some(word.to_owned()),
            word => p.at(
                at,
                code::INVALID,
                format!("`{}` is not an option of a volume", read::shown(word)),
                "write `ro`, `rw` or `nocopy`",
            ),
        }
    }
    if first.starts_with('/') {
        return Some((target, bind(first, read_only, propagation, at, p)?));
    }
    if first.starts_with(['.', '~']) || first.contains('/') {
        relative_bind(first, at, p);
        return None;
    }
    if propagation.is_some() {
        p.at(at, code::INVALID, "propagation is for host paths", "remove the option");
    }
    let source = Some(read::name(first, at, p)?);
    Some((target, Mount::Volume { source, read_only, nocopy }))
}

fn bind(
    source: &str,
    read_only: bool,
    propagation: Option<String>,
    at: &Node,
    p: &mut Problems,
) -> Option<Mount> {
    let path = read::absolute_path(source);
    if path.is_none() {
        p.at(
            at,
            code::INVALID,
            format!("`{}` is no host path", read::shown(source)),
            "write an absolute path without `..`",
        );
    }
    // `rprivate` is what the engine uses where nothing is said.
    let propagation = propagation.filter(|word| word != "rprivate");
    path.map(|source| Mount::Bind { source, read_only, propagation })
}

fn long(node: &Node, p: &mut Problems) -> Option<(String, Mount)> {
    let (mut kind, mut source, mut target, mut read_only) = (None, None, None, false);
    let (mut nocopy, mut propagation, mut size, mut mode) = (false, None, None, None);
    for entry in read::map(node, p) {
        if !keys::one_of(
            &["type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"],
            entry,
            p,
        ) {
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "type" => {
                kind = read::parsed(value, p, "`volume`, `bind` or `tmpfs`", |t| {
                    matches!(t, "volume" | "bind" | "tmpfs").then(|| t.to_owned())
                });
                kind.as_ref()?;
            }
            "source" => source = Some((read::word(value, p)?.trim().to_owned(), value)),
            "target" => target = Some(target_path(read::word(value, p)?.trim(), value, p)?),
            "read_only" => read_only = read::boolean(value, p).unwrap_or_default(),
            // For macOS; means nothing on Linux.
            "consistency" => {}
            _ => {
                for option in read::map(value, p) {
                    let known: &[&str] = match entry.name.as_str() {
                        "bind" => &["propagation", "create_host_path"],
                        "volume" => &["nocopy"],
                        _ => &["size", "mode"],
                    };
                    if !keys::one_of(known, option, p) {
                        continue;
                    }
                    let value = &option.node;
                    match option.name.as_str() {
                        "propagation" => {
                            propagation = read::parsed(value, p, "a propagation such as `rslave`", |t| {
                                PROPAGATIONS.contains(&t).then(|| t.to_owned())
                            });
                        }
                        "create_host_path" => {
                            if read::boolean(value, p) == Some(false) {
                                p.at(
                                    value,
                                    code::UNSUPPORTED,
                                    "cannot be honoured: the engine makes a missing host path",
                                    "remove it",
                                );
                            }
                        }
                        "nocopy" => nocopy = read::boolean(value, p).unwrap_or_default(),
                        "size" => size = read::bytes(value, p),
                        _ => mode = octal(value, p),
                    }
                }
            }
        }
    }
    let Some(target) = target else {
        p.at(node, code::MISSING, "has no `target`", "write `target: /path/inside`");
        return None;
    };
    let mount = match kind.as_deref() {
        Some("bind") => match source {
            Some((source, at)) if !source.starts_with('/') => {
                relative_bind(&source, at, p);
                return None;
            }
            Some((source, at)) => bind(&source, read_only, propagation, at, p)?,
            None => {
                p.at(node, code::MISSING, "has no `source`", "write `source: /host/path`");
                return None;
            }
        },
        Some("tmpfs") => {
            if let Some((_, at)) = source {
                p.at(at, code::INVALID, "a tmpfs has no source", "remove it");
            }
            Mount::Tmpfs { size, mode }
        }
        Some(_) => {
            let source = match source {
                Some((name, at)) => Some(read::name(&name, at, p)?),
                None => None,
            };
            Mount::Volume { source, read_only, nocopy }
        }
        None => {
            p.at(node, code::MISSING, "has no `type`", "write `type: volume`, `bind` or `tmpfs`");
            return None;
        }
    };
    Some((target, mount))
}

/// Permission bits. YAML 1.2 writes octal as `0o755`; people write `0755` and `755`, and mean the same.
fn octal(node: &Node, p: &mut Problems) -> Option<u32> {
    read::parsed(node, p, "permission bits such as `0755`", |t| {
        u32::from_str_radix(t.strip_prefix("0o").unwrap_or(t), 8).ok().filter(|bits| *bits <= 0o7777)
    })
}
