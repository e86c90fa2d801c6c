use std::collections::BTreeMap;

use super::*;
use crate::{
    documents::{EnvMode, ServiceRelease},
    spec::{Logging, Mount},
    testing::OwnerKeys,
};

fn policy(edit: impl FnOnce(&mut AllowPolicy)) -> Policy {
    let mut policy = Policy::default();
    edit(&mut policy.allow);
    policy
}

/// What a release whose one service is edited by `edit` is answered.
fn judge(policy: &Policy, edit: impl FnOnce(&mut ServiceSpec)) -> Result<(), Error> {
    let mut release = OwnerKeys::fixed().release(1);
    edit(&mut release.services.get_mut("web").unwrap().spec);
    check_release(policy, &release)
}

/// `edit` is refused with `code` by a root that opens nothing, and allowed by one that opens it.
#[track_caller]
fn opens(code: Code, edit: impl Fn(&mut ServiceSpec), open: impl FnOnce(&mut AllowPolicy)) {
    let refused = judge(&Policy::default(), &edit).unwrap_err();
    assert_eq!(refused.code, code);
    assert!(refused.detail.starts_with("service web asks for "), "{refused}");
    judge(&policy(open), &edit).unwrap();
}

fn bind(source: &str) -> impl Fn(&mut ServiceSpec) {
    move |s| {
        let mount = Mount::Bind { source: source.to_owned(), read_only: false, propagation: None };
        s.mounts.insert("/inside".to_owned(), mount);
    }
}

fn device(path: &str) -> impl Fn(&mut ServiceSpec) {
    move |s| {
        s.devices.push(Device {
            host: path.to_owned(),
            container: "/dev/x".to_owned(),
            permissions: "rw".to_owned(),
        });
    }
}

#[test]
fn a_service_that_asks_for_nothing_gets_it() {
    judge(&Policy::default(), |s| {
        s.cap_drop.insert("ALL".to_owned());
        s.cap_add.insert("NET_BIND_SERVICE".to_owned());
        s.security_opt.insert("no-new-privileges:true".to_owned());
        s.sysctls.insert("net.core.somaxconn".to_owned(), "1024".to_owned());
        s.network_mode = Some("none".to_owned());
        s.pid = Some("service:web".to_owned());
        s.ipc = Some("private".to_owned());
        s.mounts.insert("/data".to_owned(), Mount::Tmpfs { size: None, mode: None });
    })
    .unwrap();
}

#[test]
fn privileged_needs_the_owners_word() {
    opens(Code::PolicyPrivileged, |s| s.privileged = true, |a| a.privileged = true);
}

#[test]
fn log_drivers_that_send_elsewhere_need_the_owners_word() {
    let logs = |driver: &str| {
        let driver = driver.to_owned();
        move |s: &mut ServiceSpec| {
            let address = "unixgram:///run/other.sock".to_owned();
            let options = BTreeMap::from([("syslog-address".to_owned(), address)]);
            s.logging = Some(Logging { driver: driver.clone(), options });
        }
    };
    for driver in
        ["syslog", "fluentd", "gelf", "splunk", "awslogs", "gcplogs", "vendor/plugin:1", "JSON-file"]
    {
        opens(Code::PolicyNamespace, logs(driver), |a| a.host_network = true);
    }
    for driver in ["json-file", "local", "journald", "none"] {
        judge(&Policy::default(), logs(driver)).unwrap();
    }
}

#[test]
fn host_namespaces_need_the_owners_word() {
    let host = || Some("host".to_owned());
    opens(Code::PolicyNamespace, |s| s.network_mode = host(), |a| a.host_network = true);
    opens(Code::PolicyNamespace, |s| s.pid = host(), |a| a.host_pid = true);
    opens(Code::PolicyNamespace, |s| s.ipc = host(), |a| a.host_ipc = true);
}

#[test]
fn namespaces_of_containers_that_are_not_the_apps_stay_closed() {
    let all = policy(|a| {
        a.host_network = true;
        a.host_pid = true;
        a.host_ipc = true;
        a.privileged = true;
    });
    for mode in ["container:other", "Host", "some-network", ""] {
        let mode = || Some(mode.to_owned());
        for edit in [
            Box::new(|s: &mut ServiceSpec| s.network_mode = mode()) as Box<dyn Fn(&mut ServiceSpec)>,
            Box::new(|s| s.pid = mode()),
            Box::new(|s| s.ipc = mode()),
        ] {
            assert_eq!(judge(&all, edit).unwrap_err().code, Code::PolicyNamespace, "{mode:?}", mode = mode());
        }
    }
}

#[test]
fn capabilities_beyond_dockers_own_need_the_owners_word_in_any_spelling() {
    for cap in ["SYS_ADMIN", "CAP_SYS_ADMIN", "sys_admin", "cap_sys_admin"] {
        let add = |s: &mut ServiceSpec| {
            s.cap_add.insert(cap.to_owned());
        };
        opens(Code::PolicyCap, add, |a| {
            a.caps.insert("SYS_ADMIN".to_owned());
        });
        opens(Code::PolicyCap, add, |a| {
            a.caps.insert("ALL".to_owned());
        });
    }
    for all in ["ALL", "all"] {
        let add = |s: &mut ServiceSpec| {
            s.cap_add.insert(all.to_owned());
        };
        opens(Code::PolicyCap, add, |a| {
            a.caps.insert("ALL".to_owned());
        });
        let some = policy(|a| {
            a.caps.insert("SYS_ADMIN".to_owned());
        });
        assert_eq!(judge(&some, add).unwrap_err().code, Code::PolicyCap, "one is not all");
    }
}

#[test]
fn devices_need_the_owners_word() {
    opens(Code::PolicyDevice, device("/dev/ttyUSB0"), |a| {
        a.devices.insert("/dev/ttyUSB0".to_owned());
    });
    opens(Code::PolicyDevice, device("/dev/ttyUSB1"), |a| {
        a.devices.insert("/dev/ttyUSB*".to_owned());
    });
    let serial = policy(|a| {
        a.devices.insert("/dev/ttyUSB*".to_owned());
    });
    for path in ["/dev/ttyUSB/../mem", "/dev/mem", "/dev", "//dev/ttyUSB0", "/dev/ttyUSB0/", "/dev/./ttyUSB0"]
    {
        assert_eq!(judge(&serial, device(path)).unwrap_err().code, Code::PolicyDevice, "{path}");
    }
}

#[test]
fn host_paths_need_the_owners_word_and_do_not_climb_out_of_it() {
    opens(Code::PolicyBind, bind("/srv/app"), |a| {
        a.binds.insert("/srv".to_owned());
    });
    opens(Code::PolicyBind, bind("/"), |a| {
        a.binds.insert("/".to_owned());
    });
    let srv = policy(|a| {
        a.binds.insert("/srv/".to_owned());
    });
    judge(&srv, bind("/srv")).unwrap();
    for path in [
        "/",
        "/srvx",
        "/srv/../etc",
        "/srv/./x",
        "/srv//x",
        "//srv",
        "srv",
        "",
        "/srv/x/",
        "./srv",
        "/var/run/docker.sock",
        "/srv/x\0",
    ] {
        assert_eq!(judge(&srv, bind(path)).unwrap_err().code, Code::PolicyBind, "{path:?}");
    }
    let odd = judge(&srv, |s| {
        let propagation = Some("everywhere".to_owned());
        let mount = Mount::Bind { source: "/srv".to_owned(), read_only: true, propagation };
        s.mounts.insert("/x".to_owned(), mount);
    });
    assert_eq!(odd.unwrap_err().code, Code::PolicyBind);
}

#[test]
fn volumes_cannot_bind_host_paths_by_driver_options() {
    let keys = OwnerKeys::fixed();
    let mut by_options = keys.release(1);
    let options = [("type", "none"), ("o", "bind"), ("device", "/etc")];
    let options = options.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let volume = VolumeSpec { driver_opts: BTreeMap::from(options), ..VolumeSpec::default() };
    by_options.volumes.insert("data".parse().unwrap(), volume);
    let mut by_driver = keys.release(1);
    let volume = VolumeSpec { driver: Some("plugin".to_owned()), ..VolumeSpec::default() };
    by_driver.volumes.insert("data".parse().unwrap(), volume);
    for release in [by_options, by_driver] {
        assert_eq!(check_release(&Policy::default(), &release).unwrap_err().code, Code::PolicyVolume);
        check_release(&policy(|a| a.volume_driver_opts = true), &release).unwrap();
    }
}

#[test]
fn networks_cannot_reach_the_hosts_by_driver_or_options() {
    let keys = OwnerKeys::fixed();
    let with = |network: NetworkSpec| {
        let mut release = keys.release(1);
        release.networks.insert("back".parse().unwrap(), network);
        release
    };
    let option = |name: &str| NetworkSpec {
        driver_opts: BTreeMap::from([(name.to_owned(), "x".to_owned())]),
        ..NetworkSpec::default()
    };
    for network in [
        NetworkSpec { driver: Some("macvlan".to_owned()), ..NetworkSpec::default() },
        NetworkSpec { driver: Some("host".to_owned()), ..NetworkSpec::default() },
        option("com.docker.network.bridge.name"),
    ] {
        let release = with(network);
        assert_eq!(check_release(&Policy::default(), &release).unwrap_err().code, Code::PolicyNamespace);
        check_release(&policy(|a| a.host_network = true), &release).unwrap();
    }
    check_release(&Policy::default(), &with(option("com.docker.network.driver.mtu"))).unwrap();
    let bridge = NetworkSpec { driver: Some("bridge".to_owned()), ..NetworkSpec::default() };
    check_release(&Policy::default(), &with(bridge)).unwrap();
}

#[test]
fn security_options_runtimes_sysctls_and_cgroup_rules_need_the_owners_word() {
    let security = |s: &mut ServiceSpec| {
        s.security_opt.insert("seccomp=unconfined".to_owned());
    };
    opens(Code::PolicySecurityOpt, security, |a| {
        a.security_opt.insert("seccomp=unconfined".to_owned());
    });
    let weaker = judge(&Policy::default(), |s| {
        s.security_opt.insert("no-new-privileges:false".to_owned());
    });
    assert_eq!(weaker.unwrap_err().code, Code::PolicySecurityOpt);
    opens(
        Code::PolicyRuntime,
        |s| s.runtime = Some("nvidia".to_owned()),
        |a| {
            a.runtimes.insert("nvidia".to_owned());
        },
    );
    let sysctl = |name: &str| {
        let name = name.to_owned();
        move |s: &mut ServiceSpec| {
            s.sysctls.insert(name.clone(), "1".to_owned());
        }
    };
    opens(Code::PolicySysctl, sysctl("kernel.msgmax"), |a| {
        a.sysctls.insert("kernel.msgmax".to_owned());
    });
    let host_network = policy(|a| a.host_network = true);
    let refused = judge(&host_network, |s| {
        s.network_mode = Some("host".to_owned());
        sysctl("net.ipv4.ip_forward")(s);
    });
    assert_eq!(refused.unwrap_err().code, Code::PolicySysctl, "with the host's network, net.* is the host's");
    let rule = |s: &mut ServiceSpec| {
        s.device_cgroup_rules.insert("c 1:* rwm".to_owned());
    };
    opens(Code::PolicyCgroup, rule, |a| {
        a.cgroup_rules.insert("c 1:* rwm".to_owned());
    });
}

#[test]
fn a_refusal_says_who_asks_for_what_and_what_would_open_it() {
    let refused = judge(&Policy::default(), bind("/var/run/docker.sock")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "E_POLICY_BIND: service web asks for volumes \"/var/run/docker.sock\": the root does not open it; its owner \
         can, under allow.binds"
    );
}

fn service() -> ServiceRelease {
    OwnerKeys::fixed().release(1).services.into_values().next().unwrap()
}

fn set(mode: EnvMode, name: &str) -> Result<(), Error> {
    check_env(mode, &service(), &BTreeMap::from([(name.to_owned(), "value".to_owned())]))
}

#[test]
fn where_variables_are_declared_the_cloud_sets_no_other() {
    set(EnvMode::Declared, "GREETING").unwrap();
    assert_eq!(set(EnvMode::Declared, "OTHER").unwrap_err().code, Code::EnvUndeclared);
    set(EnvMode::Open, "OTHER").unwrap();
}

#[test]
fn loaders_and_interpreters_take_no_orders_from_the_cloud() {
    for name in [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "GLIBC_TUNABLES",
        "GCONV_PATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "NODE_OPTIONS",
        "BASH_ENV",
        "BASH_FUNC_ls%%",
        "ENV",
        "PERL5LIB",
        "PERL5OPT",
        "RUBYOPT",
        "RUBYLIB",
        "JAVA_TOOL_OPTIONS",
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "GIT_SSH_COMMAND",
        "PATH",
        "COPAL_LOCK_DIR",
        "COPAL",
    ] {
        for mode in [EnvMode::Open, EnvMode::Declared] {
            assert_eq!(set(mode, name).unwrap_err().code, Code::EnvDenied, "{name}");
        }
    }
    for harmless in
        ["PATHS", "ENVIRONMENT", "LDAP_URL", "PYTHONUNBUFFERED", "NODE_ENV", "HTTP_PROXY", "COPALITE"]
    {
        set(EnvMode::Open, harmless).unwrap();
    }
}

#[test]
fn declaring_a_loaders_variable_does_not_open_it() {
    let mut service = service();
    service.overridable_env.insert("LD_PRELOAD".to_owned());
    let env = BTreeMap::from([("LD_PRELOAD".to_owned(), "/data/evil.so".to_owned())]);
    assert_eq!(check_env(EnvMode::Declared, &service, &env).unwrap_err().code, Code::EnvDenied);
}

#[test]
fn a_refused_variable_is_named_and_its_value_is_not() {
    let env = BTreeMap::from([("LD_PRELOAD".to_owned(), "hunter2".to_owned())]);
    let refused = check_env(EnvMode::Open, &service(), &env).unwrap_err();
    assert!(refused.detail.contains("LD_PRELOAD") && !refused.detail.contains("hunter2"));
}
