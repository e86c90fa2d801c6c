//! One round of checks: calls readers and judges, and shares what several of them need of the engine and of the agent.

use std::{path::PathBuf, time::Duration};

use copal_protocol::{
    diagnosis::{ProbeResult, Verdict},
    ids::Sha256Hex,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::OnceCell;

use super::{
    Deps, Link, agent, clock, cloud, disk, disk_health, dns, engine, line, memory, network, oom, partition,
    proxy, registry, services, slots, temperature, undervoltage, update,
};
use crate::{
    clock::system_time,
    engine::{EngineError, EngineInfo, Inspection},
    os::OsConfig,
    report::{Status, read_status},
};

/// What the engine may take for an answer that a check needs besides its own.
const ENGINE: Duration = Duration::from_secs(8);

/// One round.
pub(super) struct Round<'a> {
    deps: &'a Deps,
    containers: OnceCell<Result<Vec<Inspection>, EngineError>>,
    info: OnceCell<Option<EngineInfo>>,
    status: OnceCell<Result<Status, String>>,
}

impl<'a> Round<'a> {
    pub fn new(deps: &'a Deps) -> Self {
        Self { deps, containers: OnceCell::new(), info: OnceCell::new(), status: OnceCell::new() }
    }

    /// Makes one check.
    pub fn probe<'b>(&'b self, name: &'static str) -> BoxFuture<'b, Vec<ProbeResult>> {
        let deps = self.deps;
        match name {
            clock::NAME => {
                let floor = deps.clock.floor();
                self.of_files(name, move |tree| clock::judge(&clock::read(tree, system_time(), floor)))
            }
            disk::NAME => self.disk().boxed(),
            disk_health::NAME => self.disk_health().boxed(),
            memory::NAME => self.of_files(name, |tree| memory::judge(&memory::read(tree))),
            oom::NAME => self.oom().boxed(),
            temperature::NAME => self.of_files(name, |tree| temperature::judge(&temperature::read(tree))),
            undervoltage::NAME => self.of_files(name, |tree| undervoltage::judge(&undervoltage::read(tree))),
            network::NAME => {
                self.of_files(name, |tree| network::judge(&network::read(tree, &network::addresses())))
            }
            dns::NAME => async { dns::judge(&dns::read(&deps.tree, &deps.bases()).await) }.boxed(),
            proxy::NAME => {
                let set = deps.proxy();
                async move { proxy::judge(&proxy::read(&deps.tree, set, deps.environment, &deps.bases()).await) }
                    .boxed()
            }
            line::NAME => {
                let set = deps.proxy();
                async move { line::judge(&line::read(&deps.tree, set, deps.environment, &deps.bases()).await) }
                    .boxed()
            }
            cloud::NAME => async { cloud::judge(&cloud::read(&deps.link).await) }.boxed(),
            registry::NAME => async { registry::judge(&registry::read(&deps.link).await) }.boxed(),
            engine::NAME => self.engine().boxed(),
            agent::NAME => self.agent().boxed(),
            slots::NAME => self.slots().boxed(),
            update::NAME => async { update::judge(self.status().await) }.boxed(),
            services::NAME => self.services().boxed(),
            _ => async move { vec![unknown(name, "this version does not have it")] }.boxed(),
        }
    }

    fn of_files(
        &self,
        name: &'static str,
        judged: impl FnOnce(&super::Tree) -> Vec<ProbeResult> + Send + 'static,
    ) -> BoxFuture<'_, Vec<ProbeResult>> {
        async move { self.deps.look(judged).await.unwrap_or_else(|why| vec![unknown(name, &why)]) }.boxed()
    }

    async fn containers(&self) -> &Result<Vec<Inspection>, EngineError> {
        let looking = async {
            match tokio::time::timeout(ENGINE, self.deps.engine.look(&self.deps.whose(), false)).await {
                Ok(found) => found,
                Err(_) => {
                    Err(EngineError::Timeout { what: "looking at containers".to_owned(), after: ENGINE })
                }
            }
        };
        self.containers.get_or_init(|| looking).await
    }

    /// The engine's folder; `None` where it does not answer.
    async fn engine_root(&self) -> Option<PathBuf> {
        let asking = async { tokio::time::timeout(ENGINE, self.deps.engine.info()).await.ok()?.ok() };
        let info = self.info.get_or_init(|| asking).await.as_ref()?;
        (!info.root.is_empty()).then(|| PathBuf::from(&info.root))
    }

    /// What the agent last wrote; or why there is nothing.
    async fn status(&self) -> Result<&Status, &str> {
        let path = self.deps.places.run_dir.join("status.json");
        let reading = async {
            let shown = path.display().to_string();
            match self.deps.look(move |_| read_status(&path)).await {
                Ok(Ok(Some(status))) => Ok(status),
                Ok(Ok(None)) => Err(format!(
                    "there is no {shown}: no agent ran since the boot, or it has another --run-dir"
                )),
                Ok(Err(e)) => Err(format!("{shown} cannot be read: {e}")),
                Err(why) => Err(why),
            }
        };
        self.status.get_or_init(|| reading).await.as_ref().map_err(String::as_str)
    }

    async fn disk(&self) -> Vec<ProbeResult> {
        let state = self.deps.places.state_dir.clone();
        let engine = self.engine_root().await;
        let config = self.deps.places.os_config.clone();
        let looked = self.deps.look(move |tree| {
            let mut seen = vec![disk::read(&state, "the agent's data")];
            seen.extend(engine.map(|root| disk::read(&root, "the engine's data")));
            let mut results = disk::judge(&seen);
            // Elsewhere whoever made the disk knows what its partitions are for.
            if config.exists() {
                results.extend(partition::judge(&partition::read(tree, &state)));
            }
            results
        });
        looked.await.unwrap_or_else(|why| vec![unknown(disk::NAME, &why)])
    }

    async fn disk_health(&self) -> Vec<ProbeResult> {
        let state = self.deps.places.state_dir.clone();
        let engine = self.engine_root().await;
        let counted = self.deps.counted.clone();
        let looked = self.deps.look(move |tree| {
            let folders = disk_health::folders(&state, engine.as_deref());
            disk_health::judge(&disk_health::read(tree, &folders, &counted))
        });
        looked.await.unwrap_or_else(|why| vec![unknown(disk_health::NAME, &why)])
    }

    async fn oom(&self) -> Vec<ProbeResult> {
        let found = self.containers().await.as_ref().map(Vec::as_slice).unwrap_or_default();
        let services = found
            .iter()
            .map(|one| oom::Service {
                name: one
                    .container
                    .labels
                    .get(crate::plan::labels::SERVICE)
                    .unwrap_or(&one.container.name)
                    .clone(),
                container: one.container.id.clone(),
                killed: one.oom_killed,
            })
            .collect();
        let looked = self.deps.look(move |tree| oom::judge(&oom::read(tree, services)));
        looked.await.unwrap_or_else(|why| vec![unknown(oom::NAME, &why)])
    }

    async fn engine(&self) -> Vec<ProbeResult> {
        let real = self.deps.tree.is_real();
        let restarts = self.deps.look(move |_| if real { engine::restarts() } else { None });
        let restarts = restarts.await.unwrap_or(None);
        engine::judge(&engine::read(&self.deps.engine, restarts).await)
    }

    async fn agent(&self) -> Vec<ProbeResult> {
        let (inside, now) = (self.deps.inside, system_time());
        let state = self.deps.places.state_dir.clone();
        let status = self.status().await.ok().cloned();
        let deaf = matches!(self.deps.link, Link::None { deaf: true, .. });
        let looked = self.deps.look(move |tree| {
            let seen = agent::read(tree, &state, status.as_ref(), inside, now);
            agent::judge(&agent::Seen { deaf, ..seen })
        });
        looked.await.unwrap_or_else(|why| vec![unknown(agent::NAME, &why)])
    }

    async fn slots(&self) -> Vec<ProbeResult> {
        let path = self.deps.places.os_config.clone();
        let config = self.deps.look(move |_| OsConfig::load(&path)).await.and_then(|loaded| loaded);
        slots::judge(&match config {
            Ok(None) => slots::Seen::NotOurs,
            Err(why) => slots::Seen::Unknown(why),
            Ok(Some(_)) => match self.status().await {
                Ok(Status { host: Some(host), .. }) => {
                    slots::Seen::Told { host: Box::new(host.clone()), revoked: self.revoked(host.release) }
                }
                Ok(_) => slots::Seen::Unknown("the agent says nothing of them".to_owned()),
                Err(why) => slots::Seen::Unknown(why.to_owned()),
            },
        })
    }

    /// Whether the owner revoked this release of the operating system, as far as Root can be had.
    fn revoked(&self, release: Option<Sha256Hex>) -> bool {
        match &self.deps.link {
            Link::Own { store, .. } => release.is_some_and(|release| store.is_revoked(release)),
            _ => false,
        }
    }

    async fn services(&self) -> Vec<ProbeResult> {
        match self.containers().await {
            Ok(found) => services::judge(&services::read(found, self.status().await.ok())),
            Err(e) => vec![unknown(services::NAME, &format!("not known without the engine: {e}"))],
        }
    }
}

fn unknown(name: &str, why: &str) -> ProbeResult {
    ProbeResult::new(name, Verdict::Unknown, why)
}
