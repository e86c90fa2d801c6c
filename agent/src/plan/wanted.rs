//! What should run, down to each object: a release, its variables and this device, made one.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::{ImageRef, Release},
    ids::{AppId, Name, Sha256Hex},
    spec::{
        Attachment, Condition, LABEL_SECRETS_ENV, Mount, NetworkSpec, Restart, ServiceSpec, UpdateStrategy,
        VolumeSpec,
    },
    verify::Code,
};

use super::{hash, labels};
use crate::{
    apply::ports::ApplyError,
    engine::{Join, service_ref},
    target::model::Secret,
};

/// Folder inside every container that it shares with the agent.
pub const SHARED_DIR: &str = "/run/copal";
/// Folder inside a container with its secrets.
pub const SECRETS_DIR: &str = "/run/secrets";
/// File in [`SHARED_DIR`] by which a service says that it has taken over.
pub const HANDOVER_FILE: &str = "handover-complete";
/// The network that is implied where a service names none.
const DEFAULT_NETWORK: &str = "default";

/// What is the same for every app of a device.
#[derive(Debug, Clone)]
pub struct Context {
    /// Value of the instance label.
    pub instance: String,
    /// Begins every name.
    pub prefix: String,
    /// Device-local secret of the config hash.
    pub hash_key: [u8; 32],
    /// `linux/amd64`, …
    pub platform: String,
    /// The device, for its containers.
    pub device_id: String,
    /// Its type, for its containers.
    pub device_type: String,
}

/// All that should be here.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Apps that run. What belongs to any other app goes, its volumes excepted.
    pub apps: BTreeMap<AppId, std::sync::Arc<WantedApp>>,
    /// Apps that are left as they are.
    pub frozen: BTreeSet<AppId>,
}

/// An app.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedApp {
    /// Payload hash of its release.
    pub release: Sha256Hex,
    /// The release is accepted or rejected whole: nothing that runs is touched before all images are here.
    pub whole: bool,
    /// A one-shot that failed is run again: there is nothing to fall back to.
    pub retry_one_shots: bool,
    /// Services.
    pub services: BTreeMap<Name, WantedService>,
    /// Networks that services join.
    pub networks: BTreeMap<Name, WantedNetwork>,
    /// Named volumes.
    pub volumes: BTreeMap<Name, WantedVolume>,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedService {
    /// How it is run.
    pub spec: ServiceSpec,
    /// Its image for this platform.
    pub image: ImageRef,
    /// All its variables.
    pub env: BTreeMap<String, String>,
    /// Secrets it gets as files.
    pub secrets: BTreeMap<String, Secret>,
    /// Hash of all this.
    pub hash: String,
    /// How it is replaced.
    pub strategy: UpdateStrategy,
    /// Networks it joins, by the release's name.
    pub joins: BTreeMap<Name, Join>,
    /// Services whose namespaces it shares.
    pub peers: BTreeSet<Name>,
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedNetwork {
    /// How.
    pub spec: NetworkSpec,
    /// Hash of that.
    pub hash: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedVolume {
    /// How.
    pub spec: VolumeSpec,
    /// Hash of that.
    pub hash: String,
}

/// Variables by service.
pub type Env = BTreeMap<Name, BTreeMap<String, String>>;
/// Secrets by service.
pub type Secrets = BTreeMap<Name, BTreeMap<String, Secret>>;

/// Makes one of a release and what belongs to it.
///
/// # Errors
/// `E_PLATFORM` where a service has no image for this device.
pub fn app(
    cx: &Context,
    app_id: AppId,
    release: &Release,
    sha256: Sha256Hex,
    env: &Env,
    secrets: &Secrets,
) -> Result<WantedApp, ApplyError> {
    let mut services = BTreeMap::new();
    let mut networks = BTreeMap::new();
    let mut volumes: BTreeMap<Name, WantedVolume> = BTreeMap::new();
    for (name, spec) in &release.volumes {
        volumes.insert(name.clone(), volume(cx, spec.clone()));
    }
    let awaited = awaited(release);
    for (name, service) in &release.services {
        let mut spec = service.spec.clone();
        if awaited.contains(name) && spec.restart == Restart::UnlessStopped {
            // Whoever waits for its good end means a one-shot, even where nothing is said of restarting.
            spec.restart = Restart::No;
        }
        let spec = &spec;
        let image = service.images.get(&cx.platform).ok_or_else(|| {
            let has: Vec<_> = service.images.keys().map(String::as_str).collect();
            ApplyError::new(
                Code::Platform.as_str(),
                format!(
                    "service {name} has no image for {}, only for {}: push a release built for this device",
                    cx.platform,
                    has.join(", ")
                ),
            )
        })?;
        let joins = joins(cx, app_id, name, spec);
        for network in joins.keys() {
            networks.entry(network.clone()).or_insert_with(|| {
                let spec = release.networks.get(network).cloned().unwrap_or_default();
                WantedNetwork { hash: hash::network(&cx.hash_key, &spec), spec }
            });
        }
        for mount in spec.mounts.values() {
            if let Mount::Volume { source: Some(source), .. } = mount {
                volumes.entry(source.clone()).or_insert_with(|| volume(cx, VolumeSpec::default()));
            }
        }
        let (env, files) = variables(cx, app_id, name, spec, env.get(name), secrets.get(name));
        services.insert(
            name.clone(),
            WantedService {
                hash: hash::service(&cx.hash_key, &image.config_digest, spec, &env, &files),
                strategy: spec.strategy(),
                image: image.clone(),
                peers: [&spec.network_mode, &spec.pid, &spec.ipc]
                    .into_iter()
                    .filter_map(|mode| service_ref(mode.as_deref()))
                    .collect(),
                spec: spec.clone(),
                env,
                secrets: files,
                joins,
            },
        );
    }
    Ok(WantedApp { release: sha256, whole: false, retry_one_shots: false, services, networks, volumes })
}

/// Services whose good end others wait for.
fn awaited(release: &Release) -> BTreeSet<&Name> {
    let depends = release.services.values().flat_map(|service| &service.spec.depends_on);
    depends
        .filter(|(_, how)| how.condition == Condition::ServiceCompletedSuccessfully)
        .map(|(on, _)| on)
        .collect()
}

fn volume(cx: &Context, spec: VolumeSpec) -> WantedVolume {
    WantedVolume { hash: hash::volume(&cx.hash_key, &spec), spec }
}

fn joins(cx: &Context, app: AppId, service: &Name, spec: &ServiceSpec) -> BTreeMap<Name, Join> {
    if spec.network_mode.is_some() {
        return BTreeMap::new();
    }
    let join = |network: &Name, how: &Attachment| Join {
        network: labels::object_name(&cx.prefix, app, network.as_str()),
        aliases: how.aliases.iter().cloned().chain([service.to_string()]).collect(),
        ipv4: how.ipv4_address.clone(),
        ipv6: how.ipv6_address.clone(),
    };
    if spec.networks.is_empty() {
        let name: Name = DEFAULT_NETWORK.parse().expect("a valid name");
        let how = join(&name, &Attachment::default());
        return BTreeMap::from([(name, how)]);
    }
    spec.networks.iter().map(|(name, how)| (name.clone(), join(name, how))).collect()
}

/// All variables, later ones winning: the release's, the cloud's, secrets asked for as variables, the agent's own. And
/// the secrets that stay files.
fn variables(
    cx: &Context,
    app: AppId,
    service: &Name,
    spec: &ServiceSpec,
    set: Option<&BTreeMap<String, String>>,
    secrets: Option<&BTreeMap<String, Secret>>,
) -> (BTreeMap<String, String>, BTreeMap<String, Secret>) {
    let mut env = spec.environment.clone();
    env.extend(set.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    let as_env: BTreeSet<&str> = spec
        .labels
        .get(LABEL_SECRETS_ENV)
        .map(|list| list.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let mut files = BTreeMap::new();
    for (name, secret) in secrets.into_iter().flatten() {
        match String::from_utf8(secret.0.clone()) {
            Ok(text) if as_env.contains(name.as_str()) => drop(env.insert(name.clone(), text)),
            _ => drop(files.insert(name.clone(), secret.clone())),
        }
    }
    let own = [
        ("COPAL", "1".to_owned()),
        ("COPAL_APP_ID", app.to_string()),
        ("COPAL_DEVICE_ID", cx.device_id.clone()),
        ("COPAL_DEVICE_TYPE", cx.device_type.clone()),
        ("COPAL_SERVICE_NAME", service.to_string()),
        ("COPAL_LOCK_DIR", SHARED_DIR.to_owned()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    if spec.strategy() == UpdateStrategy::HandOver {
        env.insert("COPAL_HANDOVER_COMPLETE_PATH".into(), format!("{SHARED_DIR}/{HANDOVER_FILE}"));
    }
    (env, files)
}
