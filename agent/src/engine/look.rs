//! A closer look at containers and at the engine than reconciling needs: for health checks and support.

use std::collections::HashMap;

use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Container, Engine, EngineError, READ, docker::describe};
use crate::plan::labels;

/// The most containers that are looked at.
const MOST: usize = 256;
/// Looked at at once.
const AT_ONCE: usize = 4;

/// Whose containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Of the agent with this instance label.
    Instance(String),
    /// Of whichever agent names them so; where the own instance is not known.
    Prefix(String),
}

/// A container, and how it fares. Its variables are secrets: this type prints nothing.
pub struct Inspection {
    /// As reconciling sees it.
    pub container: Container,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Exit code and output of its last health check.
    pub last_check: Option<(i64, String)>,
    /// Its variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// All the engine says, as JSON; empty where it was not asked for.
    pub whole: Vec<u8>,
}

/// The engine at large.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct EngineInfo {
    /// How image layers are kept: `overlay2`, …
    pub driver: String,
    /// Where.
    pub root: String,
    /// Driver of containers' logs.
    pub logging: String,
    /// 1 or 2; empty where not told.
    pub cgroup_version: String,
    /// Containers that run, of all there are.
    pub running: i64,
    /// Containers, ours and others.
    pub containers: i64,
    /// Images.
    pub images: i64,
    /// The kernel.
    pub kernel: String,
    /// The operating system it runs on.
    pub system: String,
    /// What it warns of.
    pub warnings: Vec<String>,
}

impl Engine {
    /// The containers of an agent, looked at closely; at most 256. `whole`: with all the engine says of each.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn look(&self, whose: &Whose, whole: bool) -> Result<Vec<Inspection>, EngineError> {
        let label = match whose {
            Whose::Instance(instance) => format!("{}={instance}", labels::INSTANCE),
            Whose::Prefix(_) => labels::INSTANCE.to_owned(),
        };
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let all = self
            .call("listing containers", READ, |d| async move { d.list_containers(Some(options)).await })
            .await?;
        let mut ids = Vec::new();
        for summary in all {
            let names = summary.names.unwrap_or_default();
            let ours = match whose {
                Whose::Instance(_) => true,
                Whose::Prefix(prefix) => names.iter().any(|name| {
                    let rest = name.trim_start_matches('/').strip_prefix(prefix.as_str());
                    rest.is_some_and(|rest| rest.starts_with('-'))
                }),
            };
            if ours && ids.len() < MOST {
                ids.extend(summary.id);
            }
        }
        let mut found: Vec<Inspection> = stream::iter(ids)
            .map(|id| async move { self.closely(id, whole).await })
            .boxed()
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        found.sort_by(|a, b| a.container.name.cmp(&b.container.name));
        Ok(found)
    }

    async fn closely(&self, id: String, whole: bool) -> Result<Option<Inspection>, EngineError> {
        let answer = self
            .call("inspecting a container", READ, |d| async move {
                d.inspect_container(&id, None::<InspectContainerOptions>).await
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = answer.state.as_ref();
        let log = state.and_then(|s| s.health.as_ref()).and_then(|h| h.log.as_ref()).and_then(|l| l.last());
        Ok(Some(Inspection {
            oom_killed: state.and_then(|s| s.oom_killed).unwrap_or(false),
            last_check: log.map(|l| (l.exit_code.unwrap_or(0), l.output.clone().unwrap_or_default())),
            env: answer.config.as_ref().and_then(|c| c.env.clone()).unwrap_or_default(),
            whole: if whole { serde_json::to_vec(&answer).unwrap_or_default() } else { Vec::new() },
            container: describe(answer),
        }))
    }

    /// What the engine says of itself.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self.call("asking about the engine", READ, |d| async move { d.info().await }).await?;
        let text = |text: Option<String>| text.unwrap_or_default();
        Ok(EngineInfo {
            driver: text(info.driver),
            root: text(info.docker_root_dir),
            logging: text(info.logging_driver),
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            running: info.containers_running.unwrap_or(0),
            containers: info.containers.unwrap_or(0),
            images: info.images.unwrap_or(0),
            kernel: text(info.kernel_version),
            system: text(info.operating_system),
            warnings: info.warnings.unwrap_or_default().into_iter().take(16).collect(),
        })
    }
}
