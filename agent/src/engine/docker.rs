//! [`EngineApi`] over the Docker API.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bollard::{
    models as api,
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
        ListContainersOptionsBuilder, ListNetworksOptions, ListVolumesOptions, RemoveContainerOptionsBuilder,
        RemoveVolumeOptions, RenameContainerOptionsBuilder, StartContainerOptions,
        StopContainerOptionsBuilder,
    },
};
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};

use super::{
    Container, ContainerRequest, Containers, DEFAULT_GRACE_S, Engine, EngineApi, EngineError, EngineEvent,
    EngineVersion, Health, ImageId, Join, Labels, Network, NetworkRequest, READ, RunState, Volume,
    VolumeRequest, WRITE, create,
};
use crate::plan::labels;

/// Containers described at once: the engine serialises much of it anyway.
const PARALLEL_INSPECTS: usize = 8;

/// Events that can change what we would do; everything else (the processes of health checks above all) stays with the
/// engine.
const EVENTS: &[&str] = &[
    "start",
    "die",
    "destroy",
    "rename",
    "pause",
    "unpause",
    "oom",
    "health_status",
    "connect",
    "disconnect",
    "remove",
];

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn collect(map: Option<std::collections::HashMap<String, String>>) -> Labels {
    map.unwrap_or_default().into_iter().collect()
}

pub(super) fn describe(answer: api::ContainerInspectResponse) -> Container {
    let state = answer.state.unwrap_or_default();
    let config = answer.config.unwrap_or_default();
    let host = answer.host_config.unwrap_or_default();
    let shares = [host.network_mode, host.pid_mode, host.ipc_mode]
        .into_iter()
        .flatten()
        .filter_map(|mode| mode.strip_prefix("container:").map(str::to_owned))
        .collect();
    use api::ContainerStateStatusEnum as S;
    use api::HealthStatusEnum as H;
    Container {
        id: answer.id.unwrap_or_default(),
        name: answer.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: ImageId(answer.image.unwrap_or_default()),
        labels: collect(config.labels),
        state: match state.status {
            Some(S::RUNNING | S::PAUSED) => RunState::Running,
            Some(S::RESTARTING) => RunState::Restarting,
            Some(S::EXITED) => RunState::Exited,
            Some(S::REMOVING | S::DEAD) => RunState::Dead,
            _ => RunState::Created,
        },
        health: match state.health.and_then(|h| h.status) {
            Some(H::STARTING) => Health::Starting,
            Some(H::HEALTHY) => Health::Healthy,
            Some(H::UNHEALTHY) => Health::Unhealthy,
            _ => Health::None,
        },
        exit_code: state.exit_code.unwrap_or(0),
        restarts: answer.restart_count.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        started_at: state.started_at.unwrap_or_default(),
        grace_s: config.stop_timeout.and_then(|s| u32::try_from(s).ok()).unwrap_or(DEFAULT_GRACE_S),
        networks: answer
            .network_settings
            .and_then(|n| n.networks)
            .unwrap_or_default()
            .into_iter()
            .map(|(name, end)| (name, end.network_id.unwrap_or_default()))
            .collect(),
        shares,
        privileged: host.privileged.unwrap_or(false),
        unreadable: None,
    }
}

impl Engine {
    async fn inspect(&self, id: &str) -> Result<Option<Container>, EngineError> {
        let what = format!("inspecting container {}", short(id));
        let id = id.to_owned();
        let answer = self.call(what, READ, |d| async move {
            d.inspect_container(&id, None::<InspectContainerOptions>).await
        });
        match answer.await {
            Ok(answer) => Ok(Some(describe(answer))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, instance: &str) -> Result<Containers, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let all = self
            .call("listing containers", READ, |d| async move { d.list_containers(Some(options)).await })
            .await?;
        let mut foreign = BTreeSet::new();
        let mut ours = Vec::new();
        for summary in all {
            let labels = collect(summary.labels);
            let names = summary.names.unwrap_or_default();
            // A linked container has further names, as `/other/alias`.
            let mut names =
                names.iter().map(|n| n.trim_start_matches('/').to_owned()).filter(|n| !n.contains('/'));
            if labels.get(labels::INSTANCE).is_some_and(|i| i == instance) {
                ours.push((summary.id.unwrap_or_default(), names.next().unwrap_or_default(), labels));
            } else {
                foreign.extend(names);
            }
        }
        let mut own: Vec<Container> = stream::iter(ours)
            .map(|(id, name, labels)| async move {
                match self.inspect(&id).await {
                    Ok(found) => Ok(found),
                    Err(error @ EngineError::Absent { .. }) => Err(error),
                    // One that cannot be described must not hide the others.
                    Err(error) => Ok(Some(Container {
                        id,
                        name,
                        labels,
                        image: ImageId(String::new()),
                        state: RunState::Dead,
                        health: Health::None,
                        exit_code: 0,
                        restarts: 0,
                        started_at: String::new(),
                        grace_s: DEFAULT_GRACE_S,
                        networks: BTreeMap::new(),
                        shares: BTreeSet::new(),
                        privileged: false,
                        unreadable: Some(error.to_string()),
                    })),
                }
            })
            .boxed()
            .buffer_unordered(PARALLEL_INSPECTS)
            .filter_map(|found: Result<Option<Container>, EngineError>| async move { found.transpose() })
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect::<Result<_, _>>()?;
        own.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(Containers { own, foreign })
    }
}

impl EngineApi for Engine {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion, EngineError>> {
        Engine::version(self).boxed()
    }

    fn containers<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Containers, EngineError>> {
        self.list(instance).boxed()
    }

    fn container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Container>, EngineError>> {
        self.inspect(id).boxed()
    }

    fn networks(&self) -> BoxFuture<'_, Result<Vec<Network>, EngineError>> {
        async {
            let all = self
                .call("listing networks", READ, |d| async move {
                    d.list_networks(None::<ListNetworksOptions>).await
                })
                .await?;
            Ok(all
                .into_iter()
                .map(|n| Network {
                    id: n.id.unwrap_or_default(),
                    name: n.name.unwrap_or_default(),
                    labels: collect(n.labels),
                })
                .collect())
        }
        .boxed()
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<Volume>, EngineError>> {
        async {
            let all =
                self.call("listing volumes", READ, |d| async move {
                    d.list_volumes(None::<ListVolumesOptions>).await
                })
                .await?;
            Ok(all
                .volumes
                .unwrap_or_default()
                .into_iter()
                .map(|v| Volume { name: v.name, labels: v.labels.into_iter().collect() })
                .collect())
        }
        .boxed()
    }

    fn create<'a>(&'a self, request: &'a ContainerRequest) -> BoxFuture<'a, Result<String, EngineError>> {
        async move {
            let body = create::container(request, self.api().await?);
            let options = CreateContainerOptionsBuilder::default().name(&request.name).build();
            let what = format!("creating container {}", request.name);
            let made = self
                .call(what, WRITE, |d| async move { d.create_container(Some(options), body).await })
                .await?;
            for warning in &made.warnings {
                tracing::warn!(container = %request.name, "the engine warns: {warning}");
            }
            Ok(made.id)
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let id_owned = id.to_owned();
        self.call(format!("starting container {}", short(id)), WRITE, |d| async move {
            d.start_container(&id_owned, None::<StartContainerOptions>).await
        })
        .boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, grace_s: u32) -> BoxFuture<'a, Result<(), EngineError>> {
        let options =
            StopContainerOptionsBuilder::default().t(i32::try_from(grace_s).unwrap_or(i32::MAX)).build();
        let limit = WRITE + Duration::from_secs(u64::from(grace_s));
        let what = format!("stopping container {}", short(id));
        let id = id.to_owned();
        async move {
            EngineError::gone_is_fine(
                self.call(what, limit, |d| async move { d.stop_container(&id, Some(options)).await }).await,
            )
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        // Anonymous volumes go with their container: whatever a release or an image declares has a name of ours.
        let options = RemoveContainerOptionsBuilder::default().v(true).force(false).build();
        let what = format!("removing container {}", short(id));
        let id = id.to_owned();
        async move {
            EngineError::gone_is_fine(
                self.call(what, WRITE, |d| async move { d.remove_container(&id, Some(options)).await }).await,
            )
        }
        .boxed()
    }

    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let options = RenameContainerOptionsBuilder::default().name(name).build();
        let what = format!("renaming container {} to {name}", short(id));
        let id = id.to_owned();
        async move { self.call(what, WRITE, |d| async move { d.rename_container(&id, options).await }).await }
            .boxed()
    }

    fn join<'a>(&'a self, id: &'a str, join: &'a Join) -> BoxFuture<'a, Result<(), EngineError>> {
        let body = api::NetworkConnectRequest {
            container: id.to_owned(),
            endpoint_config: Some(create::endpoint(join)),
        };
        let what = format!("joining container {} to network {}", short(id), join.network);
        let network = join.network.clone();
        async move {
            let result =
                self.call(what, WRITE, |d| async move { d.connect_network(&network, body).await }).await;
            match result {
                Err(EngineError::Refused { status: 403, message, .. }) if message.contains("already") => {
                    Ok(())
                }
                other => other,
            }
        }
        .boxed()
    }

    fn leave<'a>(&'a self, id: &'a str, network: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let body = api::NetworkDisconnectRequest { container: id.to_owned(), force: Some(true) };
        let what = format!("taking container {} out of network {network}", short(id));
        let network = network.to_owned();
        async move {
            let result =
                self.call(what, WRITE, |d| async move { d.disconnect_network(&network, body).await }).await;
            match EngineError::gone_is_fine(result) {
                Err(EngineError::Refused { message, .. }) if message.contains("is not connected") => Ok(()),
                other => other,
            }
        }
        .boxed()
    }

    fn create_network<'a>(&'a self, request: &'a NetworkRequest) -> BoxFuture<'a, Result<(), EngineError>> {
        let body = create::network(request);
        self.call(format!("creating network {}", request.name), WRITE, |d| async move {
            d.create_network(body).await.map(drop)
        })
        .boxed()
    }

    fn remove_network<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let what = format!("removing network {}", short(id));
        let id = id.to_owned();
        async move {
            EngineError::gone_is_fine(
                self.call(what, WRITE, |d| async move { d.remove_network(&id).await }).await,
            )
        }
        .boxed()
    }

    fn create_volume<'a>(&'a self, request: &'a VolumeRequest) -> BoxFuture<'a, Result<(), EngineError>> {
        let body = api::VolumeCreateRequest {
            name: Some(request.name.clone()),
            driver: Some(request.spec.driver.clone().unwrap_or_else(|| "local".into())),
            driver_opts: Some(request.spec.driver_opts.clone().into_iter().collect()),
            labels: Some(request.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        self.call(format!("creating volume {}", request.name), WRITE, |d| async move {
            d.create_volume(body).await.map(drop)
        })
        .boxed()
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), EngineError>> {
        let what = format!("removing volume {name}");
        let name = name.to_owned();
        async move {
            EngineError::gone_is_fine(
                self.call(what, WRITE, |d| async move {
                    d.remove_volume(&name, None::<RemoveVolumeOptions>).await
                })
                .await,
            )
        }
        .boxed()
    }

    fn image_volumes<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Vec<String>, EngineError>> {
        async move { Ok(self.image(&image.0).await?.map(|i| i.volumes).unwrap_or_default()) }.boxed()
    }

    fn log_tail<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Vec<String>> {
        self.tail(id).boxed()
    }

    fn events(&self) -> BoxStream<'static, Result<EngineEvent, EngineError>> {
        let host = self.host().to_owned();
        let docker = match self.docker() {
            Ok(docker) => docker,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let filters = std::collections::HashMap::from([
            ("type", vec!["container", "network", "volume"]),
            ("event", EVENTS.to_vec()),
        ]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        docker
            .events(Some(options))
            .map(move |event| {
                let event = event.map_err(|e| EngineError::from_client("following events", &host, e))?;
                let actor = event.actor.unwrap_or_default();
                let mut attributes = collect(actor.attributes);
                let kind = event.typ.map(|t| t.to_string()).unwrap_or_default();
                // A volume's id is its name.
                let name = attributes.remove("name").or(actor.id).unwrap_or_default();
                Ok(EngineEvent { kind, action: event.action.unwrap_or_default(), name, labels: attributes })
            })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_nothing_in_it_is_still_a_container() {
        let container = describe(api::ContainerInspectResponse::default());
        assert_eq!((container.state, container.health), (RunState::Created, Health::None));
        assert_eq!(container.grace_s, DEFAULT_GRACE_S);
    }

    #[test]
    fn shared_namespaces_are_seen() {
        let answer: api::ContainerInspectResponse = serde_json::from_str(
            r#"{"Id":"x","Name":"/n","HostConfig":{"NetworkMode":"container:abc","PidMode":"","IpcMode":"private"},
                "State":{"Status":"paused"}}"#,
        )
        .unwrap();
        let container = describe(answer);
        assert_eq!(container.shares, BTreeSet::from(["abc".to_owned()]));
        assert_eq!((container.name.as_str(), container.state), ("n", RunState::Running));
    }
}
