//! A device on which almost everything is wrong at once, seen from afar: each health check with its bad case, as the cloud's API tells
//! it. The agent is real, in namespaces of its own: a network whose way out has no link, whose name servers know nothing and whose
//! proxy went away, a data folder that is full and takes no writes, a clock that is behind what the owner signed. What no test can
//! bring about without breaking the machine under it (heat, low voltage, wear, want of memory) is told by files of a kernel that are
//! planted where the agent reads the kernel's.

use std::{fs, net::Ipv4Addr, path::Path, process::Command};

use copal_e2e::{cloud::Cloud, device::Device, eventually, gate::Gate, text, wire::Wire, world::World};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

const NAME: &str = "cloud.copal.test";
const DAY: i64 = 86_400;

/// What a kernel says of a device that is hot, badly fed, worn out and slow.
const SYS: &[(&str, &str)] = &[
    ("class/thermal/thermal_zone0/type", "cpu-thermal\n"),
    ("class/thermal/thermal_zone0/temp", "91250\n"),
    ("class/hwmon/hwmon0/name", "rpi_volt\n"),
    ("class/hwmon/hwmon0/in0_lcrit_alarm", "1\n"),
    ("block/mmcblk9/device/life_time", "0x0b 0x02\n"),
    ("block/mmcblk9/device/pre_eol_info", "0x03\n"),
    ("fs/ext4/mmcblk9p4/errors_count", "7\n"),
    ("fs/ext4/mmcblk9p4/last_error_func", "ext4_find_entry\n"),
];

/// A name server that knows no name at all.
async fn ignorant(at: Ipv4Addr) -> tokio::task::JoinHandle<()> {
    let socket = UdpSocket::bind((at, 53)).await.expect("port 53 of an address of the test's own is free");
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let answer = &mut packet[..length];
            if length > 12 {
                // An answer, recursion is had, there is no such name.
                (answer[2], answer[3]) = (0x81, 0x83);
                let _ = socket.send_to(answer, from).await;
            }
        }
    })
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", text(&output));
}

/// What the agent finds where it starts: planted files over the kernel's, and a data folder of 8 MB.
fn sicken(device: &mut Device, wire: &Wire) {
    let dir = device.dir.path().to_owned();
    let put = |path: &str, content: &str| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for (path, content) in SYS {
        put(&format!("sys/{path}"), content);
    }
    put("meminfo", "MemTotal:        1000000 kB\nMemFree:           10000 kB\nMemAvailable:      50000 kB\n");
    // Nobody listens at the second one.
    put("resolv.conf", &format!("nameserver {}\nnameserver 127.0.0.1\n", wire.here));
    let slot = |name: &str| json!({"rootfs": dir.join(name)});
    let env = ["env0", "env1"].map(|name| dir.join(name));
    put(
        "os.json",
        &json!({"backend": "grub", "device_type": "generic", "version": "1.0.0", "env_files": env, "engine": false,
            "slots": {"a": slot("a"), "b": slot("b")}})
        .to_string(),
    );
    fs::create_dir_all(device.state_dir()).unwrap();
    fs::create_dir_all(dir.join("kernel")).unwrap();
    device.env.push(("COPAL_OS_CONFIG".to_owned(), dir.join("os.json").to_str().unwrap().to_owned()));
    device.env.push(("DOCKER_HOST".to_owned(), format!("unix://{}/no-engine.sock", dir.display())));
    device.mounts = Some(format!(
        "cd {dir}; mount -t tmpfs -o size=8m,mode=700 copal-ills {state}; mount --bind meminfo /proc/meminfo
         mount --bind resolv.conf \"$(readlink -f /etc/resolv.conf)\"; mount -t sysfs sysfs kernel; mount -t tmpfs copal-ills /sys
         mkdir -p /sys/devices /sys/class/net; cp -r sys/. /sys; mount --bind kernel/devices /sys/devices
         mount --bind kernel/class/net /sys/class/net; number=$(mountpoint -d {state}); mkdir -p /sys/dev/block/$number
         echo 0 0 0 0 1000 0 8000 2500000 0 0 0 >/sys/dev/block/$number/stat",
        dir = dir.display(),
        state = device.state_dir().display(),
    ));
}

/// Asks for checks by the API, and gives what came.
async fn probes(world: &World, names: &[&str]) -> Vec<Value> {
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let route = format!("/fleets/porch/devices/{device}/commands");
    let made = world.cloud.call("POST", &route, json!({"verb": "probes", "args": {"names": names}})).await;
    let ended = world.ended(&made).await;
    assert_eq!(ended["state"], "done", "{ended}");
    ended["result"]["probes"].as_array().unwrap().clone()
}

/// The one of this check and subject, or the check's worst.
fn of<'a>(all: &'a [Value], name: &str, subject: Option<&str>) -> &'a Value {
    let order = |p: &&Value| ["ok", "unknown", "warning", "failed"].iter().position(|v| p["verdict"] == *v);
    let mut found = all.iter().filter(|p| p["name"] == name);
    let one = match subject {
        Some(subject) => found.find(|p| p["subject"] == subject),
        None => found.rev().max_by_key(order),
    };
    one.unwrap_or_else(|| panic!("no {name} {subject:?} in {all:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_check_tells_its_bad_case_from_afar_with_value_threshold_and_advice() {
    let wire = Wire::lay().await;
    let ns = wire.netns.clone();
    let _names = ignorant(wire.here).await;
    let mut world = World::on(Cloud::start_private_ca(&[NAME]).await, &[]).await;
    let gate = Gate::proxy_at(&wire.here.to_string(), world.cloud.address()).await;
    let proxy = format!("http://{}", gate.address);
    let mut device = Device::behind(&wire).with_env("HTTPS_PROXY", &proxy);
    sicken(&mut device, &wire);
    let state = device.state_dir();
    world.join_at(device, Some(&format!("https://{NAME}:8443"))).await;
    eventually("the channel is up", 150, || async {
        let log = world.devices[0].log();
        if log.contains("the channel is up") { Ok(()) } else { Err(log) }
    })
    .await;

    // The owner signs a root tomorrow, by this device's clock.
    let ahead = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let cloud = &world.cloud;
    world.owner.next_root(cloud, "porch", |root| root.issued_at = ahead + DAY.unsigned_abs()).await;
    eventually("the root is there", 60, || async {
        let found = probes(&world, &["clock"]).await;
        if found[0]["verdict"] == "failed" { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // The way out has no link from now on, the proxy takes no more connections, and the disk is full and then read-only.
    run(&["ip", "-n", &ns, "tuntap", "add", "dev", "uplink", "mode", "tun"]);
    run(&["ip", "-n", &ns, "link", "set", "uplink", "up"]);
    run(&["ip", "-n", &ns, "route", "add", "default", "dev", "uplink"]);
    drop(gate);
    let pid = world.devices[0].pid();
    let inside = Path::new("/proc").join(pid.to_string()).join("root").join(state.strip_prefix("/").unwrap());
    let full = fs::write(inside.join("what-a-service-left"), vec![1; 16 << 20]);
    assert!(full.is_err(), "it has 8 MB");
    // Another mount over it: the agent holds its lock open for writing.
    let (mounts, folder) = (format!("--mount=/proc/{pid}/ns/mnt"), state.to_str().unwrap());
    run(&["nsenter", &mounts, "mount", "--bind", folder, folder]);
    run(&["nsenter", &mounts, "mount", "-o", "remount,bind,ro", folder]);

    let found = probes(&world, &[]).await;
    let resolver = wire.here.to_string();
    // Check, subject; verdict, value, unit, threshold; words of what was found and of what to do.
    for (name, subject, verdict, value, unit, threshold, detail, advice) in [
        (
            "disk",
            Some(folder),
            "failed",
            Some(100),
            "percent",
            Some(90),
            "the agent's data",
            "free space there",
        ),
        ("disk", Some("data partition"), "failed", None, "", None, "no partition of its own", "written anew"),
        (
            "disk_health",
            Some("mmcblk9"),
            "failed",
            Some(100),
            "percent",
            Some(80),
            "past its rated life",
            "replace the device",
        ),
        ("disk_health", Some("mmcblk9p4"), "failed", Some(7), "count", Some(0), "ext4_find_entry", "e2fsck"),
        (
            "disk_health",
            Some("copal-ills"),
            "warning",
            Some(2500),
            "ms",
            Some(1000),
            "a write took",
            "what writes so much",
        ),
        ("memory", None, "failed", Some(5), "percent", Some(10), "51 of 1024 MB are available", "mem_limit"),
        ("temperature", None, "failed", Some(91_250), "milli_celsius", Some(80_000), "cpu-thermal", ""),
        ("undervoltage", None, "failed", None, "", None, "too low now", "power supply"),
        ("network", Some("uplink"), "failed", None, "", None, "no link", "cable"),
        ("dns", None, "failed", None, "", None, "neither it nor example.com", "where they ask"),
        ("dns", Some(&resolver), "ok", None, "ms", Some(2000), "answers", ""),
        ("dns", Some("127.0.0.1"), "warning", None, "", None, "does not answer", "take it out"),
        ("proxy", None, "failed", None, "", None, &proxy, ""),
        ("line", Some("IPv4"), "failed", None, "", None, "no connection to the proxy", "firewall"),
        ("engine", None, "failed", None, "", None, "no-engine.sock", "systemctl start docker"),
        ("agent", None, "failed", None, "bytes", Some(96 << 20), "takes no writes", "disk_health"),
        ("slots", None, "failed", None, "", None, "os_", ""),
    ] {
        let one = of(&found, name, subject);
        let said = |field: &str| one[field].as_str().unwrap_or_default();
        assert_eq!(said("verdict"), verdict, "{name}: {one}");
        assert!(value.is_none() || one["value"] == json!(value), "{name}: {one}");
        assert_eq!((said("unit"), one["threshold"].as_i64()), (unit, threshold), "{name}: {one}");
        assert!(said("detail").contains(detail), "{name}: {one}");
        assert!(said("advice").contains(advice), "{name}: {one}");
        assert_eq!(said("advice").is_empty(), verdict == "ok", "{name}: {one}");
    }
    let clock = of(&found, "clock", None);
    assert_eq!(
        (&clock["verdict"], &clock["unit"], &clock["threshold"]),
        (&json!("failed"), &json!("s"), &json!(0))
    );
    assert!((DAY - 3600..=DAY).contains(&clock["value"].as_i64().unwrap()), "{clock}");
    assert!(clock["advice"].as_str().unwrap().contains("time service it can reach"), "{clock}");
    // Nothing of it makes the agent less than itself.
    assert!(world.devices[0].is_running());
}
