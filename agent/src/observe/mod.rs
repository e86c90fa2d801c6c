//! What runs, read from the engine by our labels. In: an engine. Out: a [`State`]. Nothing is remembered between two
//! looks, and nothing foreign is more than a name that is taken.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::ids::{AppId, Digest, Name};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Container, EngineApi, EngineError, ImageId, Labels},
    plan::labels,
};

/// One look at the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Our objects, by app.
    pub apps: BTreeMap<AppId, AppState>,
    /// Names that others hold.
    pub foreign: Foreign,
    /// Images that are here and right, by config digest, as far as anybody asked.
    pub images: BTreeMap<Digest, ImageId>,
}

/// Our objects of one app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppState {
    /// Containers, by service.
    pub services: BTreeMap<Name, Vec<Seen>>,
    /// Networks, by the release's name.
    pub networks: BTreeMap<Name, Vec<SeenNetwork>>,
    /// Volumes, by the release's name.
    pub volumes: BTreeMap<Name, SeenVolume>,
}

/// A container of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Hash of what was requested.
    pub hash: String,
    /// What the engine says.
    #[serde(flatten)]
    pub container: Container,
}

/// A network of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenNetwork {
    /// Hash of what was requested.
    pub hash: String,
    /// The engine's id.
    pub id: String,
    /// Its name in the engine.
    pub name: String,
}

/// A volume of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVolume {
    /// Hash of what was requested.
    pub hash: String,
    /// Its name in the engine.
    pub name: String,
}

/// Names that are taken by what is not ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foreign {
    /// Of containers.
    pub containers: BTreeSet<String>,
    /// Of networks.
    pub networks: BTreeSet<String>,
    /// Of volumes.
    pub volumes: BTreeSet<String>,
}

/// Which app an object of ours belongs to, and what it is called there.
fn owner(labels: &Labels, instance: &str, key: &str) -> Option<(AppId, Name, String)> {
    if labels.get(labels::INSTANCE).map(String::as_str) != Some(instance) {
        return None;
    }
    let app = labels.get(labels::APP)?.parse().ok()?;
    let name = labels.get(key)?.parse().ok()?;
    Some((app, name, labels.get(labels::CONFIG_HASH).cloned().unwrap_or_default()))
}

/// Looks.
///
/// # Errors
/// As the engine says.
pub async fn observe(engine: &dyn EngineApi, instance: &str) -> Result<State, EngineError> {
    let containers = engine.containers(instance).await?;
    let networks = engine.networks().await?;
    let volumes = engine.volumes().await?;
    let mut state = State::default();
    state.foreign.containers = containers.foreign;
    for container in containers.own {
        match owner(&container.labels, instance, labels::SERVICE) {
            Some((app, service, hash)) => {
                let app = state.apps.entry(app).or_default();
                app.services.entry(service).or_default().push(Seen { hash, container });
            }
            // Our instance, but no telling whose it is: hands off.
            None => drop(state.foreign.containers.insert(container.name)),
        }
    }
    for network in networks {
        match owner(&network.labels, instance, labels::NETWORK) {
            Some((app, name, hash)) => {
                let app = state.apps.entry(app).or_default();
                let seen = SeenNetwork { hash, id: network.id, name: network.name };
                app.networks.entry(name).or_default().push(seen);
            }
            None => drop(state.foreign.networks.insert(network.name)),
        }
    }
    for volume in volumes {
        match owner(&volume.labels, instance, labels::VOLUME) {
            Some((app, name, hash)) => {
                let app = state.apps.entry(app).or_default();
                app.volumes.insert(name, SeenVolume { hash, name: volume.name });
            }
            None => drop(state.foreign.volumes.insert(volume.name)),
        }
    }
    for app in state.apps.values_mut() {
        for list in app.networks.values_mut() {
            list.sort_by(|a, b| a.id.cmp(&b.id));
        }
    }
    Ok(state)
}
