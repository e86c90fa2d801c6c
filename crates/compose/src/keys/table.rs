//! The table itself: what compose has, section by section, and what a device makes of it.

use Support::{No, NoEffect, Yes};

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Support {
    /// Honoured; the text says how, where that is not plain.
    Yes(&'static str),
    /// Accepted with a warning, because it has no meaning on a device.
    NoEffect(&'static str),
    /// Refused: why, and what to do.
    No(&'static str, &'static str),
}

/// A map of the compose file and its keys.
pub(crate) struct Section {
    /// As the documentation heads it.
    pub title: &'static str,
    pub keys: &'static [(&'static str, Support)],
}

pub(crate) const TOP: Section = Section {
    title: "Top level",
    keys: &[
        ("services", Yes("1 to 100 of them")),
        ("volumes", Yes("named volumes; kept over updates and rollbacks")),
        ("networks", Yes("`default` exists without being named")),
        ("version", NoEffect("compose files have had no versions since 2020")),
        ("name", NoEffect("a project is named by its fleet")),
        ("include", No("one file describes a release", "copy the included services into this file")),
        (
            "configs",
            No(
                "a device has no config store",
                "COPY the file into the image, or set a variable with `copal env set`",
            ),
        ),
        (
            "secrets",
            No(
                "secrets are not part of a release",
                "set them with `copal env set --secret NAME=…`; the service finds them in /run/secrets/NAME",
            ),
        ),
        ("models", No("models are not run by the engine of a device", "run the model as a service")),
    ],
};

pub(crate) const SERVICE: Section = Section {
    title: "services.<name>",
    keys: &[
        ("image", Yes("pinned to its digest when the release is built; devices pull from your cloud only")),
        ("build", Yes("see below")),
        ("command", Yes("list, or one string split as a shell splits it")),
        ("entrypoint", Yes("list or string; `[]` clears the image's")),
        ("environment", Yes("map or list; every variable needs a value")),
        ("env_file", Yes("files of the project, read when the release is built")),
        ("ports", Yes("short and long; ranges; `ip:`; tcp, udp, sctp")),
        ("expose", Yes("")),
        ("volumes", Yes("named, anonymous, tmpfs; host paths as far as the owner's policy allows")),
        ("tmpfs", Yes("with `size=` and `mode=`")),
        ("networks", Yes("list or map; aliases and fixed addresses")),
        ("network_mode", Yes("`host` (policy), `none`, `bridge`, `service:<name>`")),
        ("depends_on", Yes("list or map with conditions")),
        ("restart", Yes("`no`, `always`, `on-failure[:n]`, `unless-stopped`; absent means `unless-stopped`")),
        ("healthcheck", Yes("see below")),
        ("devices", Yes("policy decides")),
        ("device_cgroup_rules", Yes("policy decides")),
        ("cap_add", Yes("policy decides")),
        ("cap_drop", Yes("")),
        ("privileged", Yes("policy decides")),
        ("security_opt", Yes("policy decides")),
        ("init", Yes("")),
        ("user", Yes("")),
        ("group_add", Yes("")),
        ("working_dir", Yes("")),
        ("hostname", Yes("")),
        ("domainname", Yes("")),
        ("dns", Yes("")),
        ("dns_search", Yes("")),
        ("dns_opt", Yes("")),
        ("extra_hosts", Yes("map or list; one address a name; `host-gateway`")),
        ("sysctls", Yes("policy decides, but for `net.*`")),
        ("ulimits", Yes("")),
        ("shm_size", Yes("")),
        ("mem_limit", Yes("")),
        ("mem_reservation", Yes("")),
        ("memswap_limit", Yes("")),
        ("cpus", Yes("")),
        ("cpu_shares", Yes("")),
        ("cpuset", Yes("")),
        ("pids_limit", Yes("")),
        ("oom_score_adj", Yes("")),
        ("deploy", Yes("`resources` only, see below")),
        ("pid", Yes("`host` (policy), `service:<name>`")),
        ("ipc", Yes("`host` (policy), `private`, `shareable`, `service:<name>`")),
        ("labels", Yes("`io.copal.update.*` steer updates, see below")),
        (
            "logging",
            Yes(
                "driver and options; a driver other than `json-file`, `local`, `journald`, `none`: policy decides",
            ),
        ),
        ("stop_signal", Yes("")),
        ("stop_grace_period", Yes("")),
        ("read_only", Yes("")),
        ("tty", Yes("")),
        ("stdin_open", Yes("")),
        ("runtime", Yes("policy decides")),
        ("platform", Yes("must be the fleet's architecture")),
        ("profiles", Yes("a service with profiles is left out unless one of them is chosen for the fleet")),
        ("scale", Yes("1")),
        ("pull_policy", NoEffect("a device pulls exactly the image that was signed, once")),
        ("attach", NoEffect("nothing is attached on a device; logs are kept of every service")),
        ("develop", NoEffect("only `docker compose watch` reads it")),
        (
            "container_name",
            No(
                "Copal names containers, so that two releases, apps or agents never fight over one name",
                "remove it; other services reach this one by its service name, or by `networks: default: aliases: [name]`",
            ),
        ),
        (
            "links",
            No(
                "links are gone from the engine's networks",
                "remove it; services on a network reach each other by name; for another name use `networks: … aliases:`",
            ),
        ),
        (
            "external_links",
            No(
                "a device has only the containers of its release",
                "make the other container a service of this file",
            ),
        ),
        (
            "extends",
            No(
                "one file describes a release in full",
                "copy the keys, or share them by a YAML anchor (`&name`, `<<: *name`)",
            ),
        ),
        (
            "configs",
            No(
                "a device has no config store",
                "COPY the file into the image, or set a variable with `copal env set`",
            ),
        ),
        (
            "secrets",
            No(
                "secrets are not part of a release",
                "set them with `copal env set --secret NAME=…`; the service finds them in /run/secrets/NAME",
            ),
        ),
        ("volumes_from", No("volumes are shared by name", "name the volume in both services' `volumes:`")),
        ("annotations", No("the engine of a device may not know OCI annotations", "use `labels:`")),
        (
            "blkio_config",
            No("block devices differ from device to device", "limit memory and processors instead"),
        ),
        ("cgroup", No("the engine decides about cgroup namespaces", "remove it")),
        (
            "cgroup_parent",
            No(
                "a device's cgroups are laid out by its operating system",
                "use `mem_limit`, `cpus` and `pids_limit`",
            ),
        ),
        ("cpu_count", No("is for Windows", "use `cpus:`")),
        ("cpu_percent", No("is for Windows", "use `cpus:`")),
        ("cpu_period", No("is the older way to say `cpus`", "use `cpus: quota/period`, such as `cpus: 0.5`")),
        ("cpu_quota", No("is the older way to say `cpus`", "use `cpus: quota/period`, such as `cpus: 0.5`")),
        ("cpu_rt_period", No("needs a kernel that few devices have", "use `cpus:` and `cpu_shares:`")),
        ("cpu_rt_runtime", No("needs a kernel that few devices have", "use `cpus:` and `cpu_shares:`")),
        ("credential_spec", No("is for Windows", "remove it")),
        ("isolation", No("is for Windows", "remove it")),
        ("device_read_bps", No("block devices differ from device to device", "remove it")),
        (
            "gpus",
            No(
                "GPUs reach a container in another way on each board",
                "use `devices:` (such as /dev/dri) or `runtime: nvidia`",
            ),
        ),
        ("label_file", No("labels are read from this file only", "write them under `labels:`")),
        ("mac_address", No("one release runs on many devices, which would share the address", "remove it")),
        ("mem_swappiness", No("is not known to cgroup v2, which devices use", "use `memswap_limit:`")),
        ("oom_kill_disable", No("is not known to cgroup v2, which devices use", "use `oom_score_adj:`")),
        ("models", No("models are not run by the engine of a device", "run the model as a service")),
        ("net", No("was renamed", "use `network_mode:` or `networks:`")),
        ("dockerfile", No("belongs to the build", "write it under `build:`")),
        ("log_driver", No("was renamed", "use `logging: driver:`")),
        ("log_opt", No("was renamed", "use `logging: options:`")),
        ("volume_driver", No("was renamed", "give the volume a `driver:` under the top-level `volumes:`")),
        (
            "post_start",
            No(
                "a hook outside the container's own process cannot be health-checked or rolled back",
                "do it in the entrypoint",
            ),
        ),
        (
            "pre_stop",
            No(
                "a hook outside the container's own process cannot be health-checked or rolled back",
                "handle `stop_signal` in the process",
            ),
        ),
        ("provider", No("a device runs containers only", "make it a service with an image")),
        (
            "storage_opt",
            No(
                "depends on the engine's storage driver, which differs from device to device",
                "use a volume or tmpfs with a size",
            ),
        ),
        (
            "use_api_socket",
            No(
                "gives the container the whole engine",
                "remove it; what a service may ask of its device comes by the agent",
            ),
        ),
        ("userns_mode", No("user namespaces are set for the whole engine", "use `user:`")),
        ("uts", No("a service has its own host name", "use `hostname:`")),
    ],
};

pub(crate) const BUILD: Section = Section {
    title: "services.<name>.build",
    keys: &[
        ("context", Yes("a folder of the project")),
        ("dockerfile", Yes("a file below the context")),
        ("dockerfile_inline", Yes("")),
        ("args", Yes("map or list; every argument needs a value")),
        ("target", Yes("")),
        ("labels", Yes("")),
        ("platforms", Yes("the fleet's only")),
        ("additional_contexts", No("a build sees its own context only", "move the files below `context:`")),
        ("cache_from", No("the builder keeps its own cache", "remove it")),
        ("cache_to", No("the builder keeps its own cache", "remove it")),
        ("entitlements", No("a build gets no rights on the builder", "remove it")),
        ("extra_hosts", No("a build reaches the network as the builder does", "remove it")),
        ("isolation", No("is for Windows", "remove it")),
        ("network", No("a build reaches the network as the builder does", "remove it")),
        ("no_cache", No("is chosen at each push", "push with `-o nocache`")),
        ("privileged", No("a build gets no rights on the builder", "remove it")),
        ("provenance", No("Copal writes and signs its own build record", "remove it")),
        ("pull", No("is chosen at each push", "push with `-o nocache`")),
        ("sbom", No("Copal writes and signs its own build record", "remove it")),
        (
            "secrets",
            No(
                "a secret in a build ends up in a layer or a cache",
                "fetch it when the service starts: `copal env set --secret`",
            ),
        ),
        ("shm_size", No("a build uses the builder's", "remove it")),
        ("ssh", No("a build has no keys of yours", "vendor what it needs into the repository")),
        ("tags", No("an image is named by its digest", "remove it")),
        ("ulimits", No("a build uses the builder's", "remove it")),
    ],
};

pub(crate) const DEPLOY: Section = Section {
    title: "services.<name>.deploy",
    keys: &[
        ("resources", Yes("`limits` (cpus, memory, pids) and `reservations` (memory)")),
        ("replicas", Yes("1")),
        ("mode", Yes("`replicated`")),
        ("endpoint_mode", No("is for Swarm", "remove it")),
        ("job", No("is for Swarm", "use `restart: \"no\"` for a service that ends by itself")),
        ("labels", No("are for Swarm", "use the service's `labels:`")),
        (
            "placement",
            No(
                "a release runs on every device of its fleet",
                "make another fleet, or choose devices with `copal release deploy --tag`",
            ),
        ),
        ("restart_policy", No("is for Swarm", "use `restart:`")),
        (
            "rollback_config",
            No(
                "a release that fails its health gate is rolled back by the device",
                "use the label `io.copal.update.healthy-after`",
            ),
        ),
        ("update_config", No("is for Swarm", "use the label `io.copal.update.strategy`")),
    ],
};

pub(crate) const LIMITS: Section = Section {
    title: "services.<name>.deploy.resources.limits",
    keys: &[("cpus", Yes("")), ("memory", Yes("")), ("pids", Yes(""))],
};

pub(crate) const RESERVATIONS: Section = Section {
    title: "services.<name>.deploy.resources.reservations",
    keys: &[
        ("memory", Yes("")),
        ("cpus", No("the engine cannot reserve processors", "use `cpu_shares:`")),
        (
            "devices",
            No("GPUs reach a container in another way on each board", "use `devices:` or `runtime:`"),
        ),
        ("generic_resources", No("is for Swarm", "remove it")),
    ],
};

pub(crate) const HEALTHCHECK: Section = Section {
    title: "services.<name>.healthcheck",
    keys: &[
        ("test", Yes("string (run by a shell), `[CMD, …]`, `[CMD-SHELL, line]`, `[NONE]`")),
        ("interval", Yes("")),
        ("timeout", Yes("")),
        ("retries", Yes("")),
        ("start_period", Yes("")),
        ("disable", Yes("")),
        ("start_interval", No("needs Docker 25, which many devices do not have", "make `interval:` shorter")),
    ],
};

pub(crate) const NETWORK: Section = Section {
    title: "networks.<name>",
    keys: &[
        ("driver", Yes("")),
        ("driver_opts", Yes("")),
        ("internal", Yes("")),
        ("enable_ipv6", Yes("")),
        ("ipam", Yes("`config:` with `subnet`, `gateway`, `ip_range`; driver `default`")),
        ("labels", Yes("")),
        (
            "external",
            No("a device has only the networks of its release", "remove it; Copal makes the network"),
        ),
        ("name", No("Copal names networks, so that apps never share one by accident", "remove it")),
        ("attachable", No("is for Swarm", "remove it")),
        ("enable_ipv4", No("needs Docker 28, which many devices do not have", "remove it")),
    ],
};

pub(crate) const VOLUME: Section = Section {
    title: "volumes.<name>",
    keys: &[
        ("driver", Yes("")),
        ("driver_opts", Yes("policy decides")),
        ("labels", Yes("")),
        (
            "external",
            No("a device has only the volumes of its app", "remove it; Copal makes the volume and keeps it"),
        ),
        ("name", No("Copal names volumes, so that apps never share one by accident", "remove it")),
    ],
};

/// Every section, in the order of the documentation.
pub(crate) const ALL: &[&Section] =
    &[&TOP, &SERVICE, &BUILD, &DEPLOY, &LIMITS, &RESERVATIONS, &HEALTHCHECK, &NETWORK, &VOLUME];
