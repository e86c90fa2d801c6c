//! An engine in memory, for tests: keeps the rules that matter (unique names, no removing of what runs, networks by id),
//! counts every change, and can die at any of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, ready},
    stream::BoxStream,
};
use tokio::sync::broadcast;

use super::{
    ApiVersion, Container, ContainerRequest, Containers, EngineApi, EngineError, EngineEvent, EngineVersion,
    Health, ImageId, Join, Labels, MountPoint, Network, NetworkRequest, RunState, Volume, VolumeRequest,
};
use crate::plan::labels;

/// What the engine holds. A container's first argument says how it behaves: `runs`, `heals`, `sick`, `ends:CODE`,
/// `crashes:CODE`, `refuses`.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) containers: BTreeMap<String, (Container, String)>,
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) volumes: BTreeMap<String, Labels>,
    /// Volumes of each container, by its id.
    pub(crate) uses: BTreeMap<String, Vec<String>>,
    pub(crate) images: BTreeSet<ImageId>,
    /// Every change, in order.
    pub(crate) writes: Vec<String>,
    pub(crate) absent: bool,
    /// Dies at this change: before it, or after it but before it answers.
    pub(crate) dies_at: Option<(usize, bool)>,
    ids: u64,
}

#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<EngineEvent>,
}

fn absent() -> EngineError {
    EngineError::Absent { host: "memory".into(), detail: "dead".into() }
}

fn missing(what: &str) -> EngineError {
    EngineError::NotFound { what: what.into(), message: "no such object".into() }
}

fn conflict(what: &str, message: &str) -> EngineError {
    EngineError::Conflict { what: what.into(), message: message.into() }
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self { world: Arc::default(), events: broadcast::channel(64).0 }
    }

    pub(crate) fn world<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.world.lock().unwrap())
    }

    /// Whether it died; it stays dead until `dies_at` and `absent` are cleared.
    pub(crate) fn died(&self) -> bool {
        self.world(|w| w.absent)
    }

    /// One change of the engine (or of anything else that is durable).
    pub(crate) fn change<T>(
        &self,
        what: String,
        f: impl FnOnce(&mut World) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.world(|w| {
            if w.absent {
                return Err(absent());
            }
            let number = w.writes.len();
            if w.dies_at == Some((number, false)) {
                w.absent = true;
                return Err(absent());
            }
            w.writes.push(what);
            let result = f(w);
            if w.dies_at == Some((number, true)) {
                w.absent = true;
                return Err(absent());
            }
            result
        })
    }

    fn read<T>(&self, f: impl FnOnce(&mut World) -> Result<T, EngineError>) -> Result<T, EngineError> {
        self.world(|w| if w.absent { Err(absent()) } else { f(w) })
    }

    /// Something happened that no call of the agent caused.
    pub(crate) fn tell(&self, kind: &str, action: &str, name: &str) {
        let event = EngineEvent {
            kind: kind.into(),
            action: action.into(),
            name: name.into(),
            labels: Labels::new(),
        };
        let _ = self.events.send(event);
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Container> {
        self.world(|w| w.containers.values().find(|(c, _)| c.name == name).map(|(c, _)| c.clone()))
    }

    pub(crate) fn writes(&self) -> usize {
        self.world(|w| w.writes.len())
    }
}

impl World {
    fn id(&mut self) -> String {
        self.ids += 1;
        format!("{:064x}", self.ids)
    }

    fn container(&mut self, id: &str) -> Result<&mut (Container, String), EngineError> {
        self.containers.get_mut(id).ok_or_else(|| missing(id))
    }

    pub(crate) fn foreign(&mut self, name: &str) {
        let id = self.id();
        let container = Container {
            id: id.clone(),
            name: name.into(),
            image: ImageId("sha256:foreign".into()),
            labels: Labels::new(),
            state: RunState::Running,
            health: Health::None,
            exit_code: 0,
            restarts: 0,
            started_at: "1".into(),
            grace_s: 10,
            networks: BTreeMap::new(),
            shares: BTreeSet::new(),
            privileged: false,
            unreadable: None,
        };
        self.containers.insert(id, (container, "runs".into()));
    }

    fn start(&mut self, id: &str) -> Result<(), EngineError> {
        self.ids += 1;
        let at = self.ids.to_string();
        let ids: BTreeMap<String, String> =
            self.networks.values().map(|n| (n.name.clone(), n.id.clone())).collect();
        let (c, behaviour) = self.container(id)?;
        if c.state == RunState::Running {
            return Ok(());
        }
        for (name, known) in &mut c.networks {
            let there = ids.get(name).ok_or_else(|| missing(name))?;
            if !known.is_empty() && known != there {
                return Err(missing(name));
            }
            known.clone_from(there);
        }
        c.started_at = at;
        c.health = Health::None;
        let (word, code) = behaviour.split_once(':').unwrap_or((behaviour.as_str(), "0"));
        c.exit_code = code.parse().unwrap();
        c.state = match word {
            "ends" => RunState::Exited,
            "crashes" => RunState::Restarting,
            "refuses" => {
                let message = "exec format error".to_owned();
                return Err(EngineError::Refused { what: "starting".into(), status: 400, message });
            }
            _ => RunState::Running,
        };
        match word {
            "heals" => c.health = Health::Healthy,
            "sick" => c.health = Health::Unhealthy,
            _ => {}
        }
        Ok(())
    }
}

impl EngineApi for Fake {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion, EngineError>> {
        let version = EngineVersion {
            version: "0".into(),
            api: ApiVersion::OLDEST,
            os: "linux".into(),
            arch: "amd64".into(),
        };
        ready(self.read(|_| Ok(version))).boxed()
    }

    fn containers<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Containers, EngineError>> {
        ready(self.read(|w| {
            let mut all = Containers::default();
            for (c, behaviour) in w.containers.values_mut() {
                if behaviour.starts_with("crashes") && c.state == RunState::Restarting {
                    c.restarts += 1;
                }
                if c.labels.get(labels::INSTANCE).is_some_and(|i| i == instance) {
                    all.own.push(c.clone());
                } else {
                    all.foreign.insert(c.name.clone());
                }
            }
            Ok(all)
        }))
        .boxed()
    }

    fn container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Container>, EngineError>> {
        ready(self.read(|w| Ok(w.containers.get(id).map(|(c, _)| c.clone())))).boxed()
    }

    fn networks(&self) -> BoxFuture<'_, Result<Vec<Network>, EngineError>> {
        ready(self.read(|w| Ok(w.networks.values().cloned().collect()))).boxed()
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<Volume>, EngineError>> {
        ready(self.read(|w| {
            Ok(w.volumes
                .iter()
                .map(|(name, labels)| Volume { name: name.clone(), labels: labels.clone() })
                .collect())
        }))
        .boxed()
    }

    fn create<'a>(&'a self, request: &'a ContainerRequest) -> BoxFuture<'a, Result<String, EngineError>> {
        ready(self.change(format!("create {}", request.name), |w| {
            if w.containers.values().any(|(c, _)| c.name == request.name) {
                return Err(conflict("create", "the name is taken"));
            }
            if !w.images.contains(&request.image) {
                return Err(missing("image"));
            }
            let id = w.id();
            let shares = [&request.network_mode, &request.pid_mode, &request.ipc_mode]
                .into_iter()
                .flatten()
                .filter_map(|mode| mode.strip_prefix("container:").map(str::to_owned))
                .collect();
            let container = Container {
                id: id.clone(),
                name: request.name.clone(),
                image: request.image.clone(),
                labels: request.labels.clone(),
                state: RunState::Created,
                health: Health::None,
                exit_code: 0,
                restarts: 0,
                started_at: String::new(),
                grace_s: 10,
                networks: request.network.iter().map(|j| (j.network.clone(), String::new())).collect(),
                shares,
                privileged: request.spec.privileged,
                unreadable: None,
            };
            let behaviour = request.spec.command.as_ref().map_or("runs", |c| c[0].as_str()).to_owned();
            let volumes = request.mounts.values().filter_map(|point| match point {
                MountPoint::Volume { name, .. } => Some(name.clone()),
                _ => None,
            });
            w.uses.insert(id.clone(), volumes.collect());
            w.containers.insert(id.clone(), (container, behaviour));
            Ok(id)
        }))
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        ready(self.change(format!("start {}", &id[60..]), |w| w.start(id))).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, _: u32) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("stop {}", &id[60..]), |w| {
            if let Some((c, _)) = w.containers.get_mut(id) {
                c.state = RunState::Exited;
                // As a program does that takes the signal well.
                c.exit_code = 0;
            }
            Ok(())
        });
        ready(result).boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("remove {}", &id[60..]), |w| match w.containers.get(id) {
            Some((c, _)) if matches!(c.state, RunState::Running | RunState::Restarting) => {
                Err(conflict("remove", "it runs"))
            }
            _ => {
                w.containers.remove(id);
                w.uses.remove(id);
                Ok(())
            }
        });
        ready(result).boxed()
    }

    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("rename {name}"), |w| {
            if w.containers.values().any(|(c, _)| c.name == name) {
                return Err(conflict("rename", "the name is taken"));
            }
            w.container(id)?.0.name = name.to_owned();
            Ok(())
        });
        ready(result).boxed()
    }

    fn join<'a>(&'a self, id: &'a str, join: &'a Join) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("join {}", join.network), |w| {
            let network = w.networks.values().find(|n| n.name == join.network).map(|n| n.id.clone());
            let network = network.ok_or_else(|| missing(&join.network))?;
            w.container(id)?.0.networks.insert(join.network.clone(), network);
            Ok(())
        });
        ready(result).boxed()
    }

    fn leave<'a>(&'a self, id: &'a str, network: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("leave {network}"), |w| {
            if let Some((c, _)) = w.containers.get_mut(id) {
                c.networks.remove(network);
            }
            Ok(())
        });
        ready(result).boxed()
    }

    fn create_network<'a>(&'a self, request: &'a NetworkRequest) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("create network {}", request.name), |w| {
            if request.spec.driver.as_deref() == Some("broken") {
                let message = "no such driver".to_owned();
                return Err(EngineError::Refused { what: "creating".into(), status: 400, message });
            }
            let id = w.id();
            let network =
                Network { id: id.clone(), name: request.name.clone(), labels: request.labels.clone() };
            w.networks.insert(id, network);
            Ok(())
        });
        ready(result).boxed()
    }

    fn remove_network<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change("remove network".into(), |w| {
            let used = w
                .containers
                .values()
                .any(|(c, _)| c.state == RunState::Running && c.networks.values().any(|n| n == id));
            if used {
                return Err(conflict("remove network", "it is in use"));
            }
            w.networks.remove(id);
            Ok(())
        });
        ready(result).boxed()
    }

    fn create_volume<'a>(&'a self, request: &'a VolumeRequest) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("create volume {}", request.name), |w| {
            w.volumes.entry(request.name.clone()).or_insert_with(|| request.labels.clone());
            Ok(())
        });
        ready(result).boxed()
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let result = self.change(format!("remove volume {name}"), |w| {
            if w.uses.values().flatten().any(|used| used == name) {
                return Err(conflict("remove volume", "it is in use"));
            }
            w.volumes.remove(name);
            Ok(())
        });
        ready(result).boxed()
    }

    fn image_volumes<'a>(&'a self, _: &'a ImageId) -> BoxFuture<'a, Result<Vec<String>, EngineError>> {
        ready(self.read(|_| Ok(Vec::new()))).boxed()
    }

    fn log_tail<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Vec<String>> {
        let there = self.world(|w| w.containers.contains_key(id));
        ready(if there { vec!["last words".to_owned()] } else { Vec::new() }).boxed()
    }

    fn events(&self) -> BoxStream<'static, Result<EngineEvent, EngineError>> {
        let events = self.events.subscribe();
        futures_util::stream::unfold(events, |mut events| async move {
            let event = events.recv().await.ok()?;
            Some((Ok(event), events))
        })
        .boxed()
    }
}
