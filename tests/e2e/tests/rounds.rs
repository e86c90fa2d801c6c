//! Many devices asked at once, health that devices tell by themselves, bundles from afar, and a way to the cloud that undoes itself.

use std::io::Read as _;

use copal_e2e::{
    device::Device,
    eventually,
    repo::{STAY, Services},
    text,
    world::World,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const OPTIONS: &str = "labels: {io.copal.update.healthy-after: 1s, io.copal.update.start-timeout: 8s}\n\
                       stop_grace_period: 1s\nvolumes: [\"data:/data\"]\n\
                       healthcheck: {test: [\"CMD\", \"/bin/busybox\", \"test\", \"!\", \"-e\", \"/data/sick\"], interval: 1s, retries: 1}";
const SECRET: &str = "hunter2-is-the-password";

/// Devices that look at themselves every few seconds, and run a service.
async fn world(devices: usize) -> World {
    let mut world = World::new(0).await;
    for _ in 0..devices {
        let mut device = Device::new();
        device.env = vec![("COPAL_CHECK_EVERY".to_owned(), "4".to_owned())];
        world.join_as(device, None).await;
    }
    Services { services: &[("app", STAY, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    world
}

async fn refused(world: &World, args: &[&str], input: &str) -> (Option<i32>, Value) {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = world.owner.run(&args, input).await;
    let error = output.stderr.split(|b| *b == b'\n').rfind(|line| line.starts_with(b"{"));
    let error: Value = serde_json::from_slice(error.unwrap_or_else(|| panic!("{}", text(&output)))).unwrap();
    (output.status.code(), error["error"].clone())
}

/// A forward proxy; which requests went by it.
async fn forward_proxy() -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (told, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    let mut some = [0; 1024];
                    match near.read(&mut some).await {
                        Ok(n @ 1..) => head.extend_from_slice(&some[..n]),
                        _ => return,
                    }
                }
                let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                let Some(host) = line.split("://").nth(1).and_then(|rest| rest.split('/').next()) else {
                    return;
                };
                let Ok(mut far) = TcpStream::connect(host).await else { return };
                let _ = told.send(line.clone());
                if far.write_all(&head).await.is_ok() {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_asks_many_and_what_came_of_each_shows_also_of_the_one_that_is_away() {
    let mut world = world(3).await;
    let names: Vec<String> = world.devices.iter().map(|d| d.prefix.clone()).collect();
    for (name, ring) in names.iter().zip(["canary", "canary", "late"]) {
        world.owner.ok(&["device", "tag", name, &format!("ring={ring}")]).await;
    }
    let found = world
        .owner
        .json(&["device", "diagnose", "porch", "engine", "services", "--filter", "tag.ring = canary"])
        .await;
    assert_eq!((&found["total"], &found["states"]), (&json!(2), &json!({"done": 2})), "{found}");
    for device in found["devices"].as_array().unwrap() {
        assert_eq!(device["checks"], json!({"engine": "ok", "services": "ok"}), "{device}");
    }
    let before = world.service(2, "app").await["State"]["StartedAt"].clone();
    let shown = world.owner.ok(&["device", "restart", "porch", "app", "--filter", "tag.ring = late"]).await;
    assert!(shown.contains(&names[2]) && !shown.contains(&names[0]), "{shown}");
    assert_ne!(world.service(2, "app").await["State"]["StartedAt"], before);

    world.devices[1].kill().await;
    let (code, error) = eventually("one is seen to be away", 30, || async {
        let (code, error) =
            refused(&world, &["device", "check", "porch", "--filter", "tag.ring = canary"], "").await;
        if error["code"] == "devices_away" { Ok((code, error)) } else { Err(error.to_string()) }
    })
    .await;
    assert_eq!(code, Some(7), "{error}");
    // Nobody restarts many by mistake.
    let args = ["device", "reboot", "porch", "--filter", "has tag.ring", "--expect", "2"];
    assert_eq!(refused(&world, &args, "").await.1["code"], "count_differs");
    let body = json!({"verb": "reboot", "filter": "has tag.ring"});
    let (status, problem) = world.cloud.try_call("POST", "/fleets/porch/commands", Some(body)).await;
    assert_eq!((status, &problem["code"]), (422, &json!("count_missing")), "{problem}");

    let viewer = world.owner.json(&["token", "create", "looks", "--scope", "read"]).await;
    let url = format!("{}/api/v1/fleets/porch/commands", world.cloud.url);
    let ask = |verb: &str| {
        let request = copal_e2e::http().post(&url).bearer_auth(viewer["token"].as_str().unwrap());
        request.json(&json!({"verb": verb, "filter": "tag.ring = late"})).send()
    };
    assert_eq!(ask("check_update").await.unwrap().status(), 403, "who may only look changes nothing");
    assert_eq!(ask("probes").await.unwrap().status(), 201);
    let audit = world.owner.ok(&["audit", "list", "--json"]).await;
    assert!(audit.contains("fleet_command.create") && audit.contains(r#"tag.ring = \"canary\""#), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_tells_by_itself_when_it_is_not_well_any_more() {
    let world = world(1).await;
    let name = world.devices[0].prefix.clone();
    let services = async |verdict: &str| {
        eventually(&format!("services are {verdict}"), 90, || async {
            let health = world.owner.json(&["device", "health", &name]).await;
            let checks = health["checks"].as_array().unwrap().clone();
            let check = checks.into_iter().find(|c| c["name"] == "services");
            check.filter(|c| c["verdict"] == verdict).ok_or_else(|| health.to_string())
        })
        .await
    };
    services("ok").await;
    let id = world.service(0, "app").await["Id"].as_str().unwrap().to_owned();
    copal_e2e::engine::docker(None, &["exec", &id, "/bin/busybox", "touch", "/data/sick"]);
    let sick = services("failed").await;
    assert!(sick["detail"].as_str().unwrap().contains("health check fails"), "{sick}");
    let shown = world.owner.ok(&["device", "show", &name]).await;
    assert!(shown.contains("failed ("), "{shown}");
    let list = world
        .owner
        .json(&["device", "list", "porch", "--filter", "health = failed and check.services = failed"])
        .await;
    assert_eq!(list["items"][0]["name"], name, "{list}");
    eventually("the change is an event", 30, || async {
        let events = world.owner.json(&["device", "events", &name]).await.to_string();
        let told = events.contains("services (app): runs, and its health check fails");
        if told { Ok(()) } else { Err(events) }
    })
    .await;
    copal_e2e::engine::docker(None, &["exec", &id, "/bin/busybox", "rm", "/data/sick"]);
    services("ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_comes_from_afar_whole_and_without_secrets() {
    let mut world = world(1).await;
    let name = world.devices[0].prefix.clone();
    world.owner.ok_with_input(&["env", "set", "API_KEY", "--secret", "--fleet", "porch"], SECRET).await;
    let file = world.devices[0].dir.path().join("bundle.tar.gz");
    let file = file.to_str().unwrap();
    world.owner.ok(&["device", "support-bundle", &name, "-o", file]).await;
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_end(&mut tar).unwrap();
    let told = String::from_utf8_lossy(&tar);
    for part in ["copal-support/diagnosis.json", "copal-support/status.json", "copal-support/copal.json"] {
        assert!(told.contains(part), "{part}");
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(world.devices[0].config_file()).unwrap()).unwrap();
    for secret in ["enrolment_token", "introduction"] {
        let whole = config[secret].as_str().unwrap();
        assert!(!told.contains(whole.rsplit('.').next().unwrap()), "{secret}");
    }
    assert!(!told.contains(SECRET));
    assert_eq!(
        refused(&world, &["device", "support-bundle", &name, "-o", file], "").await.0,
        Some(2),
        "never over a file"
    );
    let audit = world.owner.ok(&["audit", "list", "--json"]).await;
    assert!(audit.contains("device.support_bundle"), "{audit}");
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let route = format!("{}/api/v1/fleets/porch/devices/{device}/support-bundle", world.cloud.url);
    let viewer = world.owner.json(&["token", "create", "looks", "--scope", "read"]).await;
    let asked =
        copal_e2e::http().post(&route).bearer_auth(viewer["token"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(asked.status(), 403);
    world.devices[0].kill().await;
    let other = format!("{file}.2");
    eventually("it is away", 30, || async {
        let (_, error) = refused(&world, &["device", "support-bundle", &name, "-o", &other], "").await;
        if error["code"] == "device_away" { Ok(()) } else { Err(error.to_string()) }
    })
    .await;
    assert!(!std::path::Path::new(&other).exists(), "nothing half is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_works_stays_and_one_that_does_not_is_undone_by_the_device() {
    let mut world = world(1).await;
    let name = world.devices[0].prefix.clone();
    let (address, mut seen) = forward_proxy().await;
    let url = format!("http://me:{SECRET}@{address}");
    let set = ["device", "network", &name, "--proxy", "-", "--timeout", "60"];
    let done = world.owner.ok_with_input(&set, &url).await;
    assert!(done.contains("done"), "{done}");
    let by_proxy =
        tokio::time::timeout(std::time::Duration::from_secs(30), seen.recv()).await.unwrap().unwrap();
    assert!(by_proxy.contains("/device/v1/"), "{by_proxy}");
    let shown = world.owner.json(&["device", "network", &name]).await;
    assert_eq!(shown["proxy"], format!("http://(redacted)@{address}"), "{shown}");

    // Nobody listens there.
    let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let bad = format!("http://me:{SECRET}@{dead}");
    let (code, error) = refused(&world, &set, &bad).await;
    assert_eq!((code, &error["code"]), (Some(1), &json!("reverted")), "{error}");
    assert_eq!(world.owner.json(&["device", "network", &name]).await["proxy"], shown["proxy"], "as it was");

    // The agent dies while the change is on trial: the next one undoes it, and says so.
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let route = format!("/fleets/porch/devices/{device}/commands");
    let body = json!({"verb": "set_network", "args": {"proxy": bad}, "delivery": "store", "ttl_s": 600});
    let made = world.cloud.call("POST", &route, body).await;
    assert_eq!(made["args"]["proxy"], format!("http://(redacted)@{dead}"), "{made}");
    let state = world.devices[0].state_dir().join("network.a");
    eventually("it is on trial", 30, || async {
        let kept =
            ["network.a", "network.b"].map(|f| std::fs::read(state.with_file_name(f)).unwrap_or_default());
        let on_trial = kept.iter().any(|bytes| bytes.windows(7).any(|w| w == b"\"trial\""));
        if on_trial { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    world.devices[0].kill().await;
    world.devices[0].start();
    let route = format!("{route}/{}", made["id"].as_str().unwrap());
    let ended = eventually("it is told", 60, || async {
        let now = world.cloud.get(&route).await;
        if now["ended"] == true { Ok(now) } else { Err(now.to_string()) }
    })
    .await;
    assert_eq!((&ended["state"], &ended["code"]), (&json!("failed"), &json!("reverted")), "{ended}");
    assert_eq!(world.owner.json(&["device", "network", &name]).await["proxy"], shown["proxy"], "as it was");
    world.owner.ok(&["device", "network", &name, "--proxy", "none", "--timeout", "60"]).await;
    assert_eq!(world.owner.json(&["device", "network", &name]).await["proxy"], Value::Null);

    let file = world.devices[0].dir.path().join("bundle.tar.gz");
    world.owner.ok(&["device", "support-bundle", &name, "-o", file.to_str().unwrap()]).await;
    let mut bundle = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_end(&mut bundle).unwrap();
    let places = [
        String::from_utf8_lossy(&bundle).into_owned(),
        world.cloud.log(),
        world.devices[0].log(),
        world.owner.ok(&["audit", "list", "--json"]).await,
        world.owner.ok(&["device", "commands", &name, "--json"]).await,
        world.owner.ok(&["device", "events", &name, "--json"]).await,
    ];
    for (n, place) in places.iter().enumerate() {
        assert!(!place.contains(SECRET), "the password stands in place {n}");
    }

    // No time service that could be told runs here; and the device's own policy has the last word.
    let (_, error) = refused(&world, &["device", "network", &name, "--ntp", "10.0.0.1"], "").await;
    assert_eq!(error["code"], "not_supported", "{error}");
    std::fs::write(world.devices[0].policy_file(), "[actions]\ndeny = [\"set_network\"]\n").unwrap();
    let (_, error) = refused(&world, &["device", "network", &name, "--proxy", "none"], "").await;
    assert_eq!(error["code"], "policy_local", "{error}");
}
