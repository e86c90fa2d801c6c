//! What serde cannot say of a release: that what its services refer to exists, and that they can start in some order.

use std::collections::BTreeMap;

use super::{Code, Error};
use crate::{
    documents::{ImageRef, Release, ReleaseKind},
    ids::Name,
    spec::{Mount, ServiceSpec},
};

/// The most services an app may have.
const MAX_SERVICES: usize = 256;
/// The most layers an image may have; engines stop at 127.
const MAX_LAYERS: usize = 127;
/// The network that is there without being declared.
const DEFAULT_NETWORK: &str = "default";

/// The agent knows its own containers by labels under the first; the others steer it.
const RESERVED_LABELS: &str = "io.copal.";
const STEERING_LABELS: [&str; 2] = ["io.copal.update.", "io.copal.secrets."];

/// Refuses a release whose parts do not fit together.
pub(super) fn check(release: &Release) -> Result<(), Error> {
    match release.kind {
        ReleaseKind::App if !release.payloads.is_empty() => {
            bad("an app release with host payloads".to_owned())
        }
        ReleaseKind::Host if !release.services.is_empty() => bad("a host release with services".to_owned()),
        ReleaseKind::Host => check_payloads(release),
        ReleaseKind::App => check_services(release),
    }
}

/// The operating system or the agent, never both: each has its own floor, trial and way back.
fn check_payloads(release: &Release) -> Result<(), Error> {
    let names: Vec<&str> = release.payloads.keys().map(Name::as_str).collect();
    match names.as_slice() {
        ["agent"] if release.compat.arch.len() != 1 => {
            return bad("an agent release names exactly one architecture in compat.arch".to_owned());
        }
        ["agent"] => {}
        ["rootfs"] | ["boot", "rootfs"] if release.compat.device_types.is_empty() => {
            return bad("a host release names the device types it was built for".to_owned());
        }
        ["rootfs"] | ["boot", "rootfs"] => {}
        other => {
            return bad(format!(
                "host payloads {other:.80?}; there is `agent`, or `rootfs` with or without `boot`"
            ));
        }
    }
    for (name, payload) in &release.payloads {
        if payload.size == 0 {
            return bad(format!("payload {name} is empty"));
        }
        let indexed = payload.index.as_ref().is_some_and(|index| index.size.is_some());
        if name.as_str() != "agent" && !indexed {
            return bad(format!("payload {name} names no index with its size"));
        }
    }
    Ok(())
}

fn check_services(release: &Release) -> Result<(), Error> {
    if release.services.len() > MAX_SERVICES {
        return bad(format!("{} services, at most {MAX_SERVICES}", release.services.len()));
    }
    for (name, volume) in &release.volumes {
        check_labels("volume", name, &volume.labels)?;
    }
    for (name, network) in &release.networks {
        check_labels("network", name, &network.labels)?;
    }
    for (name, service) in &release.services {
        check_labels("service", name, &service.spec.labels)?;
        check_references(release, name, &service.spec)?;
        for (platform, image) in &service.images {
            check_image(image).map_err(|why| {
                Error::new(Code::Payload, format!("service {name}, image for {platform}: {why}"))
            })?;
        }
    }
    check_cycles(release)
}

fn check_references(release: &Release, name: &Name, spec: &ServiceSpec) -> Result<(), Error> {
    for mount in spec.mounts.values() {
        if let Mount::Volume { source: Some(volume), .. } = mount
            && !release.volumes.contains_key(volume)
        {
            return bad(format!("service {name} mounts volume {volume}, which the release does not declare"));
        }
    }
    for network in spec.networks.keys() {
        if network.as_str() != DEFAULT_NETWORK && !release.networks.contains_key(network) {
            return bad(format!(
                "service {name} joins network {network}, which the release does not declare"
            ));
        }
    }
    for (dependency, how) in &spec.depends_on {
        if !how.optional && !release.services.contains_key(dependency) {
            return bad(format!("service {name} depends on {dependency}, which the release does not have"));
        }
    }
    for mode in [&spec.network_mode, &spec.pid, &spec.ipc].into_iter().flatten() {
        if let Some(other) = mode.strip_prefix("service:")
            && !release.services.contains_key(other)
        {
            return bad(format!("service {name} shares with {mode}, which the release does not have"));
        }
    }
    Ok(())
}

/// A label of the agent's in a release could make its container pass for another app's, or another agent's.
fn check_labels(what: &str, name: &Name, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    let forged = |label: &&String| {
        label.starts_with(RESERVED_LABELS) && !STEERING_LABELS.iter().any(|ours| label.starts_with(ours))
    };
    match labels.keys().find(forged) {
        Some(label) => bad(format!("{what} {name} has label {label:.80}, which is the agent's to set")),
        None => Ok(()),
    }
}

/// The repository becomes part of a URL that the device asks with its own token.
fn check_image(image: &ImageRef) -> Result<(), String> {
    let sound = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if image.repo.len() > 255 || !image.repo.split('/').all(sound) {
        return Err("its repository is not a name of letters, digits, `.`, `_`, `-` and `/`".to_owned());
    }
    if image.layers.len() > MAX_LAYERS {
        return Err(format!("{} layers, at most {MAX_LAYERS}", image.layers.len()));
    }
    Ok(())
}

/// Refuses services that wait for one another.
fn check_cycles(release: &Release) -> Result<(), Error> {
    let mut waits: BTreeMap<&Name, usize> = BTreeMap::new();
    let mut waited_for: BTreeMap<&Name, Vec<&Name>> = BTreeMap::new();
    for (name, service) in &release.services {
        let before: Vec<&Name> = before(release, &service.spec);
        waits.insert(name, before.len());
        for dependency in before {
            waited_for.entry(dependency).or_default().push(name);
        }
    }
    let mut ready: Vec<&Name> = waits.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    while let Some(name) = ready.pop() {
        waits.remove(name);
        for waiting in waited_for.remove(name).unwrap_or_default() {
            if let Some(left) = waits.get_mut(waiting) {
                *left -= 1;
                if *left == 0 {
                    ready.push(waiting);
                }
            }
        }
    }
    if waits.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = waits.keys().map(|name| name.as_str()).take(10).collect();
    bad(format!("services wait for one another: {}", names.join(", ")))
}

/// Services that must be there before one with this spec; each once.
fn before<'a>(release: &'a Release, spec: &'a ServiceSpec) -> Vec<&'a Name> {
    let shared = [&spec.network_mode, &spec.pid, &spec.ipc]
        .into_iter()
        .flatten()
        .filter_map(|mode| release.services.get_key_value(mode.strip_prefix("service:")?))
        .map(|(name, _)| name);
    let mut all: Vec<&Name> =
        spec.depends_on.keys().filter(|name| release.services.contains_key(*name)).chain(shared).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn bad(why: String) -> Result<(), Error> {
    Err(Error::new(Code::Payload, why))
}
