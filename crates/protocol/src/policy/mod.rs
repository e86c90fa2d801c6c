//! What a service may ask of its host: nothing, unless Root's `allow` opens it by name. The same function refuses
//! at push (in the cloud) and on the device.
//!
//! In: Root's policy and a release, or variables the cloud sets. Out: `Ok`, or the first thing refused, naming service
//! and field. Never here: guesses. A value this file does not know is refused.

mod env;

pub use env::{check_env, denied_variable, is_variable_name};

use crate::{
    documents::{AllowPolicy, Policy, Release},
    ids::Name,
    spec::{Device, Mount, NetworkSpec, ServiceSpec, VolumeSpec},
    verify::{Code, Error},
};

/// Capabilities a container has without asking, in Docker's default set: adding one after `cap_drop: ALL` asks for nothing more.
const DEFAULT_CAPS: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// `security_opt` values that only take away.
const HARDENING: &[&str] = &["no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"];

/// Options of a bridge network that stay within it.
const BRIDGE_OPTIONS: &[&str] = &[
    "com.docker.network.driver.mtu",
    "com.docker.network.bridge.enable_icc",
    "com.docker.network.bridge.enable_ip_masquerade",
    "com.docker.network.bridge.host_binding_ipv4",
];

/// Log drivers that keep what a service says on the device. Others have the engine connect, with the host's network,
/// sockets and credentials, to wherever an option says.
const LOG_DRIVERS: &[&str] = &["", "none", "json-file", "local", "journald"];

/// Checks every service, volume and network of a release.
///
/// # Errors
/// The first `E_POLICY_*`, naming service and field.
pub fn check_release(policy: &Policy, release: &Release) -> Result<(), Error> {
    let allow = &policy.allow;
    for (name, service) in &release.services {
        let of = Of { service: name, allow };
        of.check(&service.spec)?;
    }
    for (name, volume) in &release.volumes {
        check_volume(allow, name, volume)?;
    }
    for (name, network) in &release.networks {
        check_network(allow, name, network)?;
    }
    Ok(())
}

struct Of<'a> {
    service: &'a Name,
    allow: &'a AllowPolicy,
}

impl Of<'_> {
    fn check(&self, spec: &ServiceSpec) -> Result<(), Error> {
        if spec.privileged && !self.allow.privileged {
            return self.refuse(Code::PolicyPrivileged, "privileged", "true", "privileged");
        }
        self.namespaces(spec)?;
        if let Some(logging) = &spec.logging
            && !LOG_DRIVERS.contains(&logging.driver.as_str())
            && !self.allow.host_network
        {
            return self.refuse(Code::PolicyNamespace, "logging driver", &logging.driver, "host_network");
        }
        for cap in &spec.cap_add {
            self.cap(cap)?;
        }
        for device in &spec.devices {
            self.device(device)?;
        }
        for mount in spec.mounts.values() {
            self.mount(mount)?;
        }
        for option in &spec.security_opt {
            if !HARDENING.contains(&option.as_str()) && !self.allow.security_opt.contains(option) {
                return self.refuse(Code::PolicySecurityOpt, "security_opt", option, "security_opt");
            }
        }
        if let Some(runtime) = &spec.runtime
            && !self.allow.runtimes.contains(runtime)
        {
            return self.refuse(Code::PolicyRuntime, "runtime", runtime, "runtimes");
        }
        for name in spec.sysctls.keys() {
            // With the host's network, `net.*` is the host's too.
            let own = name.starts_with("net.") && spec.network_mode.as_deref() != Some("host");
            if !own && !self.allow.sysctls.contains(name) {
                return self.refuse(Code::PolicySysctl, "sysctls", name, "sysctls");
            }
        }
        for rule in &spec.device_cgroup_rules {
            if !self.allow.cgroup_rules.contains(rule) {
                return self.refuse(Code::PolicyCgroup, "device_cgroup_rules", rule, "cgroup_rules");
            }
        }
        Ok(())
    }

    fn namespaces(&self, spec: &ServiceSpec) -> Result<(), Error> {
        let allow = self.allow;
        let network = spec.network_mode.as_deref();
        self.namespace("network_mode", network, &["none", "bridge"], allow.host_network, "host_network")?;
        self.namespace("pid", spec.pid.as_deref(), &[], allow.host_pid, "host_pid")?;
        let ipc_of_its_own = ["private", "shareable", "none"];
        self.namespace("ipc", spec.ipc.as_deref(), &ipc_of_its_own, allow.host_ipc, "host_ipc")
    }

    fn namespace(
        &self,
        field: &str,
        value: Option<&str>,
        harmless: &[&str],
        host_allowed: bool,
        opens: &str,
    ) -> Result<(), Error> {
        match value {
            None => Ok(()),
            Some(value) if harmless.contains(&value) || value.starts_with("service:") => Ok(()),
            Some("host") if host_allowed => Ok(()),
            Some("host") => self.refuse(Code::PolicyNamespace, field, "host", opens),
            // `container:<id>` would reach containers that are not the app's: nothing opens that.
            Some(value) => self.refuse_always(Code::PolicyNamespace, field, value),
        }
    }

    fn cap(&self, cap: &str) -> Result<(), Error> {
        let plain = plain_cap(cap);
        let listed = |wanted: &str| self.allow.caps.iter().any(|have| plain_cap(have) == wanted);
        if DEFAULT_CAPS.contains(&plain.as_str()) || listed("ALL") || listed(&plain) {
            return Ok(());
        }
        self.refuse(Code::PolicyCap, "cap_add", cap, "caps")
    }

    fn device(&self, device: &Device) -> Result<(), Error> {
        let path = device.host.as_str();
        if path.starts_with('/') && !is_clean(path) {
            return self.refuse_always(Code::PolicyDevice, "devices", path);
        }
        let opened = self.allow.devices.iter().any(|have| match have.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == have,
        });
        if opened { Ok(()) } else { self.refuse(Code::PolicyDevice, "devices", path, "devices") }
    }

    fn mount(&self, mount: &Mount) -> Result<(), Error> {
        let Mount::Bind { source, propagation, .. } = mount else { return Ok(()) };
        if !is_clean(source) {
            return self.refuse_always(Code::PolicyBind, "volumes", source);
        }
        if !self.allow.binds.iter().any(|have| is_at_or_below(source, have)) {
            return self.refuse(Code::PolicyBind, "volumes", source, "binds");
        }
        let known = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
        match propagation {
            Some(word) if !known.contains(&word.as_str()) => {
                self.refuse_always(Code::PolicyBind, "propagation", word)
            }
            _ => Ok(()),
        }
    }

    fn refuse(&self, code: Code, field: &str, value: &str, opens: &str) -> Result<(), Error> {
        refuse(code, &format!("service {}", self.service), field, value, Some(opens))
    }

    fn refuse_always(&self, code: Code, field: &str, value: &str) -> Result<(), Error> {
        refuse(code, &format!("service {}", self.service), field, value, None)
    }
}

/// `opens` names the part of Root's `policy.allow` that would allow it.
fn refuse(code: Code, what: &str, field: &str, value: &str, opens: Option<&str>) -> Result<(), Error> {
    let value: String = value.chars().take(120).collect();
    let hint = match opens {
        Some(opens) => format!("the root does not open it; its owner can, under allow.{opens}"),
        None => "nothing opens this".to_owned(),
    };
    Err(Error::new(code, format!("{what} asks for {field} {value:?}: {hint}")))
}

fn check_volume(allow: &AllowPolicy, name: &Name, volume: &VolumeSpec) -> Result<(), Error> {
    if allow.volume_driver_opts {
        return Ok(());
    }
    let what = format!("volume {name}");
    if let Some(option) = volume.driver_opts.keys().next() {
        return refuse(Code::PolicyVolume, &what, "driver_opts", option, Some("volume_driver_opts"));
    }
    match volume.driver.as_deref() {
        None | Some("local") => Ok(()),
        Some(driver) => refuse(Code::PolicyVolume, &what, "driver", driver, Some("volume_driver_opts")),
    }
}

/// Another driver than a bridge, or a bridge by the host's name, is a way into the host's network.
fn check_network(allow: &AllowPolicy, name: &Name, network: &NetworkSpec) -> Result<(), Error> {
    if allow.host_network {
        return Ok(());
    }
    let what = format!("network {name}");
    match network.driver.as_deref() {
        None | Some("bridge") => {}
        Some(driver) => {
            return refuse(Code::PolicyNamespace, &what, "driver", driver, Some("host_network"));
        }
    }
    match network.driver_opts.keys().find(|option| !BRIDGE_OPTIONS.contains(&option.as_str())) {
        Some(option) => refuse(Code::PolicyNamespace, &what, "driver_opts", option, Some("host_network")),
        None => Ok(()),
    }
}

/// Engines accept any case, with and without the prefix.
fn plain_cap(cap: &str) -> String {
    let upper = cap.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

/// An absolute path in its one spelling: no empty part, no `.` and no `..`.
fn is_clean(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    !path.contains('\0') && (rest.is_empty() || rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

/// `/data` opens `/data` and `/data/x`, not `/database`.
fn is_at_or_below(path: &str, opened: &str) -> bool {
    let opened = opened.trim_end_matches('/');
    path.strip_prefix(opened).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
