//! A [`ContainerRequest`] as the engine wants it. Pure, so that what a release means to the engine is seen in tests.

use std::collections::HashMap;

use bollard::models as api;
use copal_protocol::spec::{Healthcheck, Restart, ServiceSpec};

use super::{ApiVersion, ContainerRequest, Join, MountPoint, NetworkRequest};

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn list<T: Clone>(items: impl IntoIterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.into_iter().collect();
    (!items.is_empty()).then_some(items)
}

fn map<'a>(items: impl IntoIterator<Item = (&'a String, &'a String)>) -> Option<HashMap<String, String>> {
    let items: HashMap<String, String> = items.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    (!items.is_empty()).then_some(items)
}

/// Milliseconds as the engine's nanoseconds. Below a millisecond the engine refuses, and 0 means "the image's".
fn nanos(ms: u64) -> i64 {
    signed(ms.saturating_mul(1_000_000))
}

/// The body of the create call for an engine that speaks `version`.
pub(super) fn container(request: &ContainerRequest, version: ApiVersion) -> api::ContainerCreateBody {
    let spec = &request.spec;
    let mut exposed: Vec<String> = spec.expose.iter().cloned().collect();
    exposed.extend(spec.ports.iter().map(|p| format!("{}/{}", p.target, p.protocol)));
    exposed.sort();
    exposed.dedup();
    api::ContainerCreateBody {
        image: Some(request.image.0.clone()),
        cmd: spec.command.clone(),
        // An empty list clears the image's entry point; the engine tells it from an absent one.
        entrypoint: spec.entrypoint.clone(),
        env: list(request.env.iter().map(|(name, value)| format!("{name}={value}"))),
        labels: map(&request.labels),
        exposed_ports: list(exposed),
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        tty: spec.tty.then_some(true),
        open_stdin: spec.stdin_open.then_some(true),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec.stop_grace_period_ms.map(|ms| signed(ms.div_ceil(1000))),
        healthcheck: spec.healthcheck.as_ref().map(health),
        host_config: Some(host(request, version)),
        networking_config: request.network.as_ref().map(|join| api::NetworkingConfig {
            endpoints_config: Some(HashMap::from([(join.network.clone(), endpoint(join))])),
        }),
        ..Default::default()
    }
}

fn health(check: &Healthcheck) -> api::HealthConfig {
    api::HealthConfig {
        test: check.test.clone(),
        interval: check.interval_ms.map(nanos),
        timeout: check.timeout_ms.map(nanos),
        start_period: check.start_period_ms.map(nanos),
        retries: check.retries.map(i64::from),
        ..Default::default()
    }
}

fn host(request: &ContainerRequest, version: ApiVersion) -> api::HostConfig {
    let spec = &request.spec;
    let (binds, mounts) = mounts(request, version);
    let mode = request.network_mode.clone().or_else(|| request.network.as_ref().map(|j| j.network.clone()));
    api::HostConfig {
        binds: list(binds),
        mounts: list(mounts),
        network_mode: mode,
        pid_mode: request.pid_mode.clone(),
        ipc_mode: request.ipc_mode.clone(),
        port_bindings: ports(spec),
        restart_policy: Some(restart(spec.restart)),
        devices: list(spec.devices.iter().map(|d| api::DeviceMapping {
            path_on_host: Some(d.host.clone()),
            path_in_container: Some(d.container.clone()),
            cgroup_permissions: Some(d.permissions.clone()),
        })),
        device_cgroup_rules: list(spec.device_cgroup_rules.iter().cloned()),
        cap_add: list(spec.cap_add.iter().cloned()),
        cap_drop: list(spec.cap_drop.iter().cloned()),
        privileged: spec.privileged.then_some(true),
        security_opt: list(spec.security_opt.iter().cloned()),
        init: spec.init,
        group_add: list(spec.group_add.iter().cloned()),
        dns: list(spec.dns.iter().cloned()),
        dns_search: list(spec.dns_search.iter().cloned()),
        dns_options: list(spec.dns_opt.iter().cloned()),
        extra_hosts: list(spec.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}"))),
        sysctls: map(&spec.sysctls),
        ulimits: list(spec.ulimits.iter().map(|(name, limit)| api::ResourcesUlimits {
            name: Some(name.clone()),
            soft: Some(limit.soft),
            hard: Some(limit.hard),
        })),
        shm_size: spec.shm_size.map(signed),
        memory: spec.mem_limit.map(signed),
        memory_reservation: spec.mem_reservation.map(signed),
        memory_swap: spec.memswap_limit,
        nano_cpus: spec.nano_cpus.map(signed),
        cpu_shares: spec.cpu_shares.map(signed),
        cpuset_cpus: spec.cpuset.clone(),
        pids_limit: spec.pids_limit,
        oom_score_adj: spec.oom_score_adj,
        readonly_rootfs: spec.read_only.then_some(true),
        runtime: spec.runtime.clone(),
        log_config: spec
            .logging
            .as_ref()
            .map(|l| api::HostConfigLogConfig { typ: Some(l.driver.clone()), config: map(&l.options) }),
        ..Default::default()
    }
}

fn ports(spec: &ServiceSpec) -> Option<api::PortMap> {
    let mut bindings = api::PortMap::new();
    for port in &spec.ports {
        let inside = format!("{}/{}", port.target, port.protocol);
        let outside = api::PortBinding {
            host_ip: port.host_ip.clone(),
            host_port: Some(port.published.map(|p| p.to_string()).unwrap_or_default()),
        };
        bindings.entry(inside).or_default().get_or_insert_default().push(outside);
    }
    (!bindings.is_empty()).then_some(bindings)
}

fn restart(policy: Restart) -> api::RestartPolicy {
    use api::RestartPolicyNameEnum as N;
    let (name, max) = match policy {
        Restart::No => (N::NO, None),
        Restart::Always => (N::ALWAYS, None),
        Restart::UnlessStopped => (N::UNLESS_STOPPED, None),
        Restart::OnFailure { max } => (N::ON_FAILURE, Some(i64::from(max))),
    };
    api::RestartPolicy { name: Some(name), maximum_retry_count: max }
}

/// Host paths go as `Binds` where they can: that form makes a missing folder on every engine, while the newer form
/// needs a field that engines before API 1.42 drop without a word.
fn mounts(request: &ContainerRequest, version: ApiVersion) -> (Vec<String>, Vec<api::Mount>) {
    let mut binds = Vec::new();
    let mut mounts = Vec::new();
    for (target, point) in &request.mounts {
        match point {
            MountPoint::Bind { source, read_only, propagation, create } => {
                let plain = !source.contains(':') && !target.contains(':');
                if *create && plain {
                    let mut options = vec![if *read_only { "ro" } else { "rw" }];
                    options.extend(propagation.as_deref());
                    binds.push(format!("{source}:{target}:{}", options.join(",")));
                    continue;
                }
                let create_mountpoint = (*create && version >= ApiVersion(1, 42)).then_some(true);
                let propagation = propagation.as_deref().and_then(|p| p.parse().ok());
                mounts.push(api::Mount {
                    typ: Some(api::MountType::BIND),
                    target: Some(target.clone()),
                    source: Some(source.clone()),
                    read_only: Some(*read_only),
                    bind_options: (create_mountpoint.is_some() || propagation.is_some()).then(|| {
                        api::MountBindOptions { propagation, create_mountpoint, ..Default::default() }
                    }),
                    ..Default::default()
                });
            }
            MountPoint::Volume { name, read_only, nocopy } => mounts.push(api::Mount {
                typ: Some(api::MountType::VOLUME),
                target: Some(target.clone()),
                source: Some(name.clone()),
                read_only: Some(*read_only),
                volume_options: nocopy
                    .then(|| api::MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
                ..Default::default()
            }),
            MountPoint::Tmpfs { size, mode } => mounts.push(api::Mount {
                typ: Some(api::MountType::TMPFS),
                target: Some(target.clone()),
                tmpfs_options: (size.is_some() || mode.is_some()).then(|| api::MountTmpfsOptions {
                    size_bytes: size.map(signed),
                    mode: mode.map(i64::from),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }
    }
    (binds, mounts)
}

/// How a container joins, as the engine wants it.
pub(super) fn endpoint(join: &Join) -> api::EndpointSettings {
    let fixed = join.ipv4.is_some() || join.ipv6.is_some();
    api::EndpointSettings {
        aliases: list(join.aliases.iter().cloned()),
        ipam_config: fixed.then(|| api::EndpointIpamConfig {
            ipv4_address: join.ipv4.clone(),
            ipv6_address: join.ipv6.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The body of the network create call.
pub(super) fn network(request: &NetworkRequest) -> api::NetworkCreateRequest {
    let spec = &request.spec;
    let pools = list(spec.ipam.iter().map(|pool| api::IpamConfig {
        subnet: pool.subnet.clone(),
        gateway: pool.gateway.clone(),
        ip_range: pool.ip_range.clone(),
        ..Default::default()
    }));
    api::NetworkCreateRequest {
        name: request.name.clone(),
        driver: Some(spec.driver.clone().unwrap_or_else(|| "bridge".into())),
        internal: spec.internal.then_some(true),
        enable_ipv6: spec.enable_ipv6.then_some(true),
        options: map(&spec.driver_opts),
        labels: map(&request.labels),
        ipam: pools.map(|config| api::Ipam { config: Some(config), ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::ImageId;

    fn request(spec: ServiceSpec) -> ContainerRequest {
        ContainerRequest {
            name: "copal-00112233-web".into(),
            image: ImageId("sha256:aa".into()),
            env: spec.environment.clone(),
            labels: spec.labels.clone(),
            spec,
            network: Some(Join {
                network: "copal-00112233-default".into(),
                aliases: ["web".to_owned()].into(),
                ..Join::default()
            }),
            network_mode: None,
            pid_mode: None,
            ipc_mode: None,
            mounts: BTreeMap::new(),
        }
    }

    fn json(request: &ContainerRequest, version: ApiVersion) -> String {
        // Through a value: its keys are sorted.
        let value = serde_json::to_value(container(request, version)).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn an_empty_spec_asks_for_little() {
        insta::assert_snapshot!(json(&request(ServiceSpec::default()), ApiVersion(1, 41)));
    }

    #[test]
    fn every_field_reaches_the_engine() {
        let spec: ServiceSpec = serde_json::from_str(include_str!("testdata/full-spec.json")).unwrap();
        let mut request = request(spec);
        request.mounts = BTreeMap::from([
            (
                "/data".into(),
                MountPoint::Volume { name: "copal-00112233-data".into(), read_only: true, nocopy: true },
            ),
            (
                "/etc/thing".into(),
                MountPoint::Bind {
                    source: "/opt/thing".into(),
                    read_only: true,
                    propagation: Some("rslave".into()),
                    create: true,
                },
            ),
            (
                "/run/secrets".into(),
                MountPoint::Bind {
                    source: "/run/copal/secrets/a".into(),
                    read_only: true,
                    propagation: None,
                    create: false,
                },
            ),
            ("/tmp".into(), MountPoint::Tmpfs { size: Some(1 << 20), mode: Some(0o1777) }),
        ]);
        request.pid_mode = Some("host".into());
        request.ipc_mode = Some("container:abc".into());
        insta::assert_snapshot!(json(&request, ApiVersion(1, 41)));
    }

    #[test]
    fn a_path_with_a_colon_asks_for_its_folder_only_where_the_engine_understands() {
        let mut request = request(ServiceSpec::default());
        request.mounts = BTreeMap::from([(
            "/in".into(),
            MountPoint::Bind {
                source: "/dev/by-path/pci-0:1".into(),
                read_only: false,
                propagation: None,
                create: true,
            },
        )]);
        assert!(!json(&request, ApiVersion(1, 41)).contains("CreateMountpoint"));
        assert!(json(&request, ApiVersion(1, 42)).contains("CreateMountpoint"));
    }
}
