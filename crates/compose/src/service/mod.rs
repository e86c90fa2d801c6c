//! One service: its keys in, a [`Service`] out. Each key is read by itself; what concerns several is in `check`.

use std::collections::BTreeSet;

use copal_protocol::spec::ServiceSpec;

use crate::{
    Options, Service, build, keys,
    problem::{Problems, code},
    read,
    tree::{Entry, Node},
};

mod depends;
mod environment;
mod health;
mod host;
pub(crate) mod labels;
mod mounts;
mod networks;
mod ports;
mod process;
mod resources;

/// Reads a service. `None`: its profiles leave it out.
pub(crate) fn read(key: &Node, node: &Node, options: &Options<'_>, p: &mut Problems) -> Option<Service> {
    let mut service =
        Service { build: None, image: None, spec: ServiceSpec::default(), overridable_env: BTreeSet::new() };
    let mut chosen = true;
    for entry in read::map(node, p) {
        if !keys::admit(&keys::SERVICE, entry, p) {
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "build" => service.build = Some(build::read(value, options, p)),
            "image" => service.image = image(value, p),
            "platform" => build::platform(value, options, p),
            "profiles" => chosen = profiles(value, options, p),
            "x-copal" => service.overridable_env = extension(value, p),
            key => {
                if !read_key(&mut service.spec, key, value, p) {
                    p.at(&entry.key, code::UNSUPPORTED, "cannot be honoured here", "remove it");
                }
            }
        }
    }
    // What a file says is a default; what stands in the compose file wins.
    if let Some(env_file) = node.get("env_file") {
        for (name, value) in environment::files(env_file, options, p) {
            service.spec.environment.entry(name).or_insert(value);
        }
    }
    // The engine takes an empty list of arguments for none given.
    if let Some(command) = node.get("command")
        && service.spec.command.is_none()
        && service.spec.entrypoint.is_none()
        && process::is_empty(command)
    {
        p.at(
            command,
            code::UNSUPPORTED,
            "cannot be honoured: an engine clears the image's command only where `entrypoint` is given too",
            "remove it, or write `entrypoint:` as well",
        );
    }
    match (&service.build, &service.image) {
        (Some(_), Some(_)) => {
            if let Some(image) = node.get("image") {
                p.warn(
                    image,
                    code::NO_EFFECT,
                    "has no effect beside `build`: an image is named by its digest",
                    "remove it",
                );
            }
            service.image = None;
        }
        (None, None) if node.get("image").is_none() => p.at(
            key,
            code::MISSING,
            "has neither `build` nor `image`",
            "write `build: <folder with a Dockerfile>` or `image: <name>`",
        ),
        _ => {}
    }
    chosen.then_some(service)
}

/// Reads one key into the spec. False: it is not a key of the spec.
pub(crate) fn read_key(spec: &mut ServiceSpec, key: &str, node: &Node, p: &mut Problems) -> bool {
    match key {
        "env_file" => {}
        "environment" => spec.environment = environment::inline(node, p),
        "command" => spec.command = process::arguments(node, p).filter(|c| !c.is_empty()),
        "entrypoint" => spec.entrypoint = process::arguments(node, p),
        "ports" => spec.ports = ports::published(node, p),
        "expose" => spec.expose = ports::exposed(node, p),
        "volumes" => mounts::volumes(spec, node, p),
        "tmpfs" => mounts::tmpfs(spec, node, p),
        "networks" => spec.networks = networks::attachments(node, p),
        "network_mode" => spec.network_mode = networks::mode(node, p),
        "depends_on" => spec.depends_on = depends::read(node, p),
        "restart" => spec.restart = process::restart(node, p).unwrap_or_default(),
        "healthcheck" => spec.healthcheck = health::read(node, p),
        "labels" => spec.labels = labels::of_service(node, p),
        _ => {
            return process::read_key(spec, key, node, p)
                || host::read_key(spec, key, node, p)
                || resources::read_key(spec, key, node, p);
        }
    }
    true
}

fn image(node: &Node, p: &mut Problems) -> Option<String> {
    read::parsed(node, p, "an image such as `redis:7` or `registry.example.com/app@sha256:…`", |text| {
        let sane = text.len() <= 512
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@+".contains(&b))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !text.contains("//")
            && !text.ends_with(['/', ':', '@']);
        // Repositories are lowercase; tags need not be. The registry's host may have any case.
        let repository = text.split('@').next().unwrap_or_default();
        let repository = repository.rsplit_once('/').map_or(repository, |(_, last)| last);
        let repository = repository.split(':').next().unwrap_or_default();
        (sane && !repository.bytes().any(|b| b.is_ascii_uppercase())).then(|| text.to_owned())
    })
}

fn profiles(node: &Node, options: &Options<'_>, p: &mut Problems) -> bool {
    let mut chosen = false;
    let items = read::list(node, p);
    for item in items {
        if let Some(name) = read::word(item, p) {
            chosen |= options.profiles.contains(name) || options.profiles.contains("*");
        }
    }
    items.is_empty() || chosen
}

/// `x-copal:` of a service.
fn extension(node: &Node, p: &mut Problems) -> BTreeSet<String> {
    let mut overridable = BTreeSet::new();
    for Entry { name, key, node } in read::map(node, p) {
        if name != "overridable_env" {
            p.at(key, code::UNKNOWN_KEY, "is not a key of `x-copal`", "known here: overridable_env");
            continue;
        }
        for item in read::list(node, p) {
            if let Some(name) = read::parsed(item, p, "the name of a variable", environment::variable_name) {
                overridable.insert(name);
            }
        }
    }
    overridable
}
