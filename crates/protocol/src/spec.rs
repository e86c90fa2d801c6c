//! The normalised service spec: what a release carries and a device runs. The compose file is parsed in the cloud
//! and the CLI; a device parses no YAML.
//!
//! Normalised means: one spelling for each meaning (sizes in bytes, times in milliseconds, ranges expanded, lists
//! sorted where order means nothing), and absent where compose has a default, so that equal meaning is equal bytes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::Name;

fn is_false(b: &bool) -> bool {
    !*b
}

/// How one service is run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSpec {
    /// Replaces the image's arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point; empty clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Variables of the release itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Published ports, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Ports other services may reach, as `80/tcp`; sorted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub expose: BTreeSet<String>,
    /// Volumes, binds and tmpfs, by target.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, Mount>,
    /// Networks joined; empty with no `network_mode` means `default`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Name, Attachment>,
    /// `host`, `none`, `bridge` or `service:<name>` instead of networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// Services that come first, and how far.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: BTreeMap<Name, DependsOn>,
    /// What the engine does when it ends.
    #[serde(skip_serializing_if = "Restart::is_default")]
    pub restart: Restart,
    /// How its health is known; replaces the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Host devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// As Docker's `--device-cgroup-rule`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub device_cgroup_rules: BTreeSet<String>,
    /// Capabilities added, without `CAP_`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cap_add: BTreeSet<String>,
    /// Capabilities dropped, without `CAP_`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cap_drop: BTreeSet<String>,
    /// All of the host.
    #[serde(skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// As Docker's.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub security_opt: BTreeSet<String>,
    /// An init process that reaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// `user[:group]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Further groups.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub group_add: BTreeSet<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Domain name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_opt: Vec<String>,
    /// Host name → address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, String>,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Limits by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Bytes of `/dev/shm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Bytes of memory at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_limit: Option<u64>,
    /// Bytes of memory kept for it under pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_reservation: Option<u64>,
    /// Bytes of memory and swap; -1 for unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memswap_limit: Option<i64>,
    /// Processor time, in billionths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Relative weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors, as `0-2,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Processes at most; -1 for unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// `host` or `service:<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<String>,
    /// `host`, `private`, `shareable` or `service:<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// Labels; `io.copal.update.*` steer the agent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Log driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// Signal that asks it to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Milliseconds between asking and killing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period_ms: Option<u64>,
    /// Root file system read-only.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// A terminal.
    #[serde(skip_serializing_if = "is_false")]
    pub tty: bool,
    /// Standard input kept open.
    #[serde(skip_serializing_if = "is_false")]
    pub stdin_open: bool,
    /// Container runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The kernel's choice under memory pressure, -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i64>,
}

/// A published port. Ranges are expanded to one entry a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Inside.
    pub target: u16,
    /// Outside; absent: the engine chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<u16>,
    /// Address it is bound to; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// What is mounted at a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mount {
    /// A named volume of the app; kept over updates and rollbacks.
    Volume {
        /// Its name in the release's `volumes`; absent: anonymous.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Name>,
        /// Not writable.
        #[serde(default, skip_serializing_if = "is_false")]
        read_only: bool,
        /// Do not copy what the image has at the target.
        #[serde(default, skip_serializing_if = "is_false")]
        nocopy: bool,
    },
    /// A path of the host; policy decides.
    Bind {
        /// The absolute host path.
        source: String,
        /// Not writable.
        #[serde(default, skip_serializing_if = "is_false")]
        read_only: bool,
        /// `rprivate`, `rshared`, …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        propagation: Option<String>,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Permission bits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
}

/// How a service joins a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attachment {
    /// Further names there; the service's own is always one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<String>,
    /// Fixed address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<String>,
    /// Fixed address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<String>,
}

/// What a dependency must have reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DependsOn {
    /// How far.
    pub condition: Condition,
    /// Start even where the dependency cannot.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
}

/// How far a dependency must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It runs.
    ServiceStarted,
    /// Its health check passes.
    ServiceHealthy,
    /// It ended with 0.
    ServiceCompletedSuccessfully,
}

/// What the engine does when a service ends. Absent in compose means [`Restart::UnlessStopped`]; only an explicit
/// `no` makes a one-shot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// A one-shot.
    No,
    /// Always.
    Always,
    /// When it ended with another code than 0.
    OnFailure {
        /// Times at most; 0 for no bound.
        max: u32,
    },
    /// Unless stopped by hand.
    #[default]
    UnlessStopped,
}

impl Restart {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a service's health is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`; absent: the image's, with the times below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    /// Milliseconds between checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Milliseconds a check may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds in which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// A host device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path on the host.
    pub host: String,
    /// Path inside.
    pub container: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Soft.
    pub soft: i64,
    /// Hard.
    pub hard: i64,
}

/// Log driver and its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// `json-file`, `local`, `journald`, …
    pub driver: String,
    /// Its options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// A network of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// `bridge` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The driver's options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_opts: BTreeMap<String, String>,
    /// No way out.
    #[serde(skip_serializing_if = "is_false")]
    pub internal: bool,
    /// IPv6 too.
    #[serde(skip_serializing_if = "is_false")]
    pub enable_ipv6: bool,
    /// Address pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipam: Vec<IpamPool>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// An address pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IpamPool {
    /// `10.1.0.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The host's address in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The part given out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<String>,
}

/// A named volume of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSpec {
    /// `local` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The driver's options; policy decides.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How a service is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpdateStrategy {
    /// Pull, then stop the old, then start the new.
    #[default]
    DownloadThenKill,
    /// Stop the old, then pull, then start the new.
    KillThenDownload,
    /// Stop the old and delete its image, then pull, then start the new.
    DeleteThenDownload,
    /// Start the new, wait for its signal or a timeout, then stop the old.
    HandOver,
}

/// Label that chooses an [`UpdateStrategy`]; `io.balena.update.strategy` is understood too.
pub const LABEL_STRATEGY: &str = "io.copal.update.strategy";
/// Label with the time a trial lasts, as compose writes durations (`45s`, `2m`).
pub const LABEL_HEALTHY_AFTER: &str = "io.copal.update.healthy-after";
/// Label with the time a service may take until it runs (or is healthy).
pub const LABEL_START_TIMEOUT: &str = "io.copal.update.start-timeout";
/// Label with the time a hand-over waits for its signal; `io.balena.update.handover-timeout` is understood too.
pub const LABEL_HANDOVER_TIMEOUT: &str = "io.copal.update.handover-timeout";
/// Label naming the secrets (comma separated) that a service wants as variables; the others reach it as files
/// `/run/secrets/<NAME>`.
pub const LABEL_SECRETS_ENV: &str = "io.copal.secrets.env";

impl ServiceSpec {
    /// How it is replaced; an unknown word means the default (compose refuses it at push).
    #[must_use]
    pub fn strategy(&self) -> UpdateStrategy {
        match self.update_label(LABEL_STRATEGY, "io.balena.update.strategy") {
            Some("kill-then-download") => UpdateStrategy::KillThenDownload,
            Some("delete-then-download") => UpdateStrategy::DeleteThenDownload,
            Some("hand-over") => UpdateStrategy::HandOver,
            _ => UpdateStrategy::DownloadThenKill,
        }
    }

    /// Milliseconds a trial lasts, where the service says.
    #[must_use]
    pub fn healthy_after_ms(&self) -> Option<u64> {
        self.labels.get(LABEL_HEALTHY_AFTER).and_then(|text| parse_duration_ms(text))
    }

    /// Milliseconds until it must run (or be healthy), where the service says.
    #[must_use]
    pub fn start_timeout_ms(&self) -> Option<u64> {
        self.labels.get(LABEL_START_TIMEOUT).and_then(|text| parse_duration_ms(text))
    }

    /// Milliseconds a hand-over waits, where the service says.
    #[must_use]
    pub fn handover_timeout_ms(&self) -> Option<u64> {
        let text = self.update_label(LABEL_HANDOVER_TIMEOUT, "io.balena.update.handover-timeout")?;
        // Balena writes milliseconds without a unit.
        text.parse().ok().or_else(|| parse_duration_ms(text))
    }

    /// Whether it is meant to end by itself.
    #[must_use]
    pub fn is_one_shot(&self) -> bool {
        self.restart == Restart::No
    }

    fn update_label(&self, ours: &str, balena: &str) -> Option<&str> {
        self.labels.get(ours).or_else(|| self.labels.get(balena)).map(String::as_str)
    }
}

/// Milliseconds of a duration as compose writes it: `1h30m`, `45s`, `500ms`, `1.5s`. `None` where it is not one
/// or longer than a year.
#[must_use]
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    const YEAR_MS: f64 = 365.0 * 24.0 * 3_600_000.0;
    let mut rest = text.trim();
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..number_len].parse().ok()?;
        rest = &rest[number_len..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit_len] {
                "ns" => 1e-6,
                "us" | "µs" => 1e-3,
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3600e3,
                "d" => 86_400e3,
                _ => return None,
            };
        rest = &rest[unit_len..];
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded by a year and not negative"
    )]
    (total <= YEAR_MS).then_some(total.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_compose_writes_them() {
        for (text, ms) in [("45s", 45_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1500), ("0s", 0)] {
            assert_eq!(parse_duration_ms(text), Some(ms), "{text}");
        }
        for bad in ["", "10", "s", "10 s", "-1s", "1y", "9999999h"] {
            assert_eq!(parse_duration_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_empty_spec_is_empty_json() {
        assert_eq!(serde_json::to_string(&ServiceSpec::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<ServiceSpec>("{}").unwrap(), ServiceSpec::default());
        assert!(serde_json::from_str::<ServiceSpec>(r#"{"unknown":1}"#).is_err());
    }
}
