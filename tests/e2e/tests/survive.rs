//! Whatever is cut, killed or deleted: the old release or the new one runs, whole, and nobody else's things are touched.

use std::{collections::BTreeMap, time::Duration};

use copal_e2e::{
    device::Device,
    engine, eventually,
    proxy::Proxy,
    repo::{STAY, Services},
    world::World,
};

const SHORT: &str = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";

async fn running(services: &[(&str, &str, &str)]) -> (World, String) {
    let world = World::new(1).await;
    Services { services }.write_to(&world.repo);
    let release = world.push_and_settle("works").await;
    (world, release)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_30_moments_of_updates_converges() {
    let volume = format!("{SHORT}\nvolumes: [\"data:/data\"]");
    let line = format!("echo x >> /data/starts; {STAY}");
    let (mut world, _) =
        running(&[("one", &line, &volume), ("two", STAY, SHORT), ("three", STAY, SHORT)]).await;
    // Moments from a fixed seed, so that a failure comes again.
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..6 {
        for service in ["one", "two", "three"] {
            let line = if service == "one" { line.as_str() } else { STAY };
            world.repo.write(
                &format!("{service}/run.sh"),
                format!("#!/bin/busybox sh\necho round {round}\n{line}\n"),
            );
        }
        world.repo.push_ok(&format!("round {round}")).await;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(next() % 900)).await;
            world.devices[0].kill().await;
            world.devices[0].start();
        }
        let release = world.latest().await["id"].as_str().unwrap().to_owned();
        world.on_target(&release).await;
        let all = engine::containers(&world.devices[0].prefix, None);
        let mut by_service: BTreeMap<String, usize> = BTreeMap::new();
        for container in &all {
            let service = container["Config"]["Labels"]["io.copal.service"].as_str().unwrap();
            *by_service.entry(service.to_owned()).or_default() += 1;
        }
        assert_eq!(by_service.len(), 3, "{by_service:?}");
        assert!(by_service.values().all(|n| *n == 1), "one container a service: {by_service:?}");
    }
    let one = world.service(0, "one").await;
    let starts = engine::docker(
        None,
        &["exec", one["Id"].as_str().unwrap(), "/bin/busybox", "wc", "-l", "/data/starts"],
    );
    let starts: u32 = starts.split_whitespace().next().unwrap().parse().unwrap();
    assert!(starts >= 7, "data of the first release is there: {starts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_cloud_gone_devices_run_on_and_start_from_the_stored_target() {
    let (mut world, _) = running(&[("app", STAY, SHORT)]).await;
    let before = world.service(0, "app").await;
    world.cloud.kill().await;
    world.devices[0].kill().await;
    engine::docker(None, &["rm", "-f", before["Id"].as_str().unwrap()]);
    world.devices[0].start();
    let after = world.service(0, "app").await;
    assert_eq!(after["Image"], before["Image"]);

    world.cloud.restart().await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho later\n{STAY}\n"));
    world.push_and_settle("later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_by_hand_comes_back() {
    let (world, _) = running(&[("app", STAY, SHORT), ("side", STAY, SHORT)]).await;
    let before = world.service(0, "app").await;
    engine::docker(None, &["rm", "-f", before["Id"].as_str().unwrap()]);
    eventually("the container is back", 5, || async {
        engine::service(&world.devices[0].prefix, "app", None).map(drop).ok_or_else(|| "no".to_owned())
    })
    .await;
    // The network, with its containers taken off it first. The agent would put them back within a moment, so it is held
    // still until the network is gone.
    let network = before["NetworkSettings"]["Networks"].as_object().unwrap().keys().next().unwrap().clone();
    world.devices[0].hold(true);
    for service in ["app", "side"] {
        let id = world.service(0, service).await["Id"].as_str().unwrap().to_owned();
        engine::docker(None, &["network", "disconnect", "-f", &network, &id]);
    }
    engine::docker(None, &["network", "rm", &network]);
    world.devices[0].hold(false);
    eventually("both are on the network again", 10, || async {
        for service in ["app", "side"] {
            let container = engine::service(&world.devices[0].prefix, service, None).ok_or("not running")?;
            if container["NetworkSettings"]["Networks"][&network]["IPAddress"]
                .as_str()
                .unwrap_or("")
                .is_empty()
            {
                return Err(format!("{service} is not on {network}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moved_locally_starts_nothing_else() {
    let (world, _) = running(&[("app", STAY, SHORT)]).await;
    let good = world.service(0, "app").await;
    // Every tag the engine has for the image now names another one.
    let evil = format!("e2e-evil-{}", copal_e2e::unique());
    let container =
        engine::docker(None, &["create", "--name", &evil, good["Image"].as_str().unwrap(), "/bin/false"]);
    let image = engine::docker(None, &["commit", container.trim()]);
    let tags = engine::docker(
        None,
        &["image", "inspect", "-f", "{{range .RepoTags}}{{.}} {{end}}", good["Image"].as_str().unwrap()],
    );
    for tag in tags.split_whitespace() {
        engine::docker(None, &["tag", image.trim(), tag]);
    }
    engine::docker(None, &["rm", "-f", good["Id"].as_str().unwrap()]);
    let again = world.service(0, "app").await;
    assert_eq!(again["Image"], good["Image"]);
    engine::docker(None, &["rm", "-f", &evil]);
    for tag in tags.split_whitespace() {
        engine::docker(None, &["tag", good["Image"].as_str().unwrap(), tag]);
    }
    engine::docker(None, &["rmi", "-f", image.trim()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_container_with_the_wanted_name_is_left_alone_and_reported() {
    let (world, _) = running(&[("app", STAY, SHORT), ("side", STAY, SHORT)]).await;
    let ours = world.service(0, "app").await;
    let name = ours["Name"].as_str().unwrap().trim_start_matches('/').to_owned();
    let image = ours["Image"].as_str().unwrap().to_owned();
    world_without(&world, &name, &image).await;
}

async fn world_without(world: &World, name: &str, image: &str) {
    // The name is free for a moment only; whoever is quicker has it.
    let foreign = eventually("the foreign container has the name", 60, || async {
        let _ = std::process::Command::new("docker").args(["rm", "-f", name]).output();
        let made = std::process::Command::new("docker")
            .args(["create", "--name", name, image, "/bin/busybox", "true"])
            .output()
            .unwrap();
        if made.status.success() {
            Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
        } else {
            Err(copal_e2e::text(&made))
        }
    })
    .await;
    let device = world.reason(0, "conflict").await;
    assert_eq!(device["reason"]["service"], "app", "{device}");
    world.service(0, "side").await;
    let still = engine::docker(None, &["inspect", "-f", "{{.Id}}", name]);
    assert_eq!(still.trim(), foreign);
    engine::docker(None, &["rm", "-f", name]);
    world.service(0, "app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_target_applied_again_writes_nothing_to_the_engine() {
    let (mut world, _) = running(&[
        (
            "app",
            STAY,
            "ports: [\"127.0.0.1::9000/udp\", \"127.0.0.1::80\", \"127.0.0.1::443\"]\n\
             expose: [\"80\", \"9000/udp\"]\nlabels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s",
        ),
        ("once", "exit 0", "restart: \"no\""),
    ])
    .await;
    let snapshot = |world: &World| {
        let mut all: Vec<String> = engine::containers(&world.devices[0].prefix, None)
            .iter()
            .map(|c| format!("{} {} {}", c["Id"], c["State"]["StartedAt"], c["RestartCount"]))
            .collect();
        all.sort();
        all
    };
    let before = snapshot(&world);
    let since = engine::docker(None, &["info", "-f", "{{.SystemTime}}"]);
    world.devices[0].kill().await;
    world.devices[0].start();
    let release = world.latest().await["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.on_target(&release).await;
    assert_eq!(snapshot(&world), before);
    let until = engine::docker(None, &["info", "-f", "{{.SystemTime}}"]);
    let events = engine::docker(
        None,
        &[
            "events",
            "--since",
            since.trim(),
            "--until",
            until.trim(),
            "--format",
            "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}",
        ],
    );
    let ours: Vec<&str> = events.lines().filter(|l| l.contains(&world.devices[0].prefix)).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_appears_nowhere_but_in_its_file() {
    let world = World::new(1).await;
    let line = format!("[ -e /run/secrets/API_KEY ] && echo secret is there; {STAY}");
    Services { services: &[("app", &line, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let secret = format!("s3cr3t-{}", copal_e2e::unique());
    world.owner.ok_with_input(&["env", "set", "API_KEY", "--secret", "--fleet", "porch"], &secret).await;
    let app = eventually("the service has the secret", 60, || async {
        let app = engine::service(&world.devices[0].prefix, "app", None).ok_or("not running")?;
        let file = std::process::Command::new("docker")
            .args(["exec", app["Id"].as_str().unwrap(), "/bin/busybox", "cat", "/run/secrets/API_KEY"])
            .output()
            .unwrap();
        if String::from_utf8_lossy(&file.stdout) == secret { Ok(app) } else { Err(copal_e2e::text(&file)) }
    })
    .await;
    let release = world.latest().await["id"].as_str().unwrap().to_owned();
    world.on_target(&release).await;

    assert!(!app.to_string().contains(&secret), "docker inspect");
    assert!(!world.devices[0].log().contains(&secret), "the agent's log");
    assert!(!world.cloud.log().contains(&secret), "the cloud's log");
    for route in ["/fleets/porch/variables", "/fleets/porch/devices", "/audit", "/fleets/porch/releases"] {
        assert!(!world.cloud.get(route).await.to_string().contains(&secret), "{route}");
    }
    let device = world.device(0).await.unwrap();
    let id = device["device_id"].as_str().unwrap();
    for route in ["", "/events", "/variables"] {
        assert!(
            !world.cloud.get(&format!("/devices/{id}{route}")).await.to_string().contains(&secret),
            "{route}"
        );
    }
    for folder in [world.devices[0].state_dir(), world.cloud.dir.path().to_owned()] {
        for file in readable_by_others(&folder) {
            let content = std::fs::read(&file).unwrap_or_default();
            let found = content.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{}", file.display());
        }
    }
}

/// Files below a folder that others than the owner could read, folders on the way included.
fn readable_by_others(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            found.extend(readable_by_others(&entry.path()));
        } else if meta.permissions().mode() & 0o077 != 0 {
            found.push(entry.path());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_share_one_engine_and_a_deploy_reaches_one_first() {
    let world = World::new(2).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    let first = world.push_and_settle("first").await;
    let before = world.service(0, "app").await;
    assert_ne!(before["Id"], world.service(1, "app").await["Id"]);

    // Hold the fleet on the first release, give the second to one device, then to all.
    world.owner.ok(&["release", "deploy", &first, "--fleet", "porch"]).await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho second\n{STAY}\n"));
    world.repo.push_ok("second").await;
    let second = world.latest().await["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let id = world.device(1).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    world.owner.ok(&["release", "deploy", &second, "--fleet", "porch", "--device", &id]).await;
    eventually("the chosen device has it", 60, || async {
        let device = world.device(1).await.unwrap();
        let there = device["committed_release"] == second.as_str();
        there.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    assert_eq!(world.service(0, "app").await["Id"], before["Id"], "the other kept the first");
    world.owner.ok(&["release", "deploy", "latest", "--fleet", "porch"]).await;
    world.on_target(&second).await;

    // And back to an older one.
    world.owner.ok(&["device", "unpin", &id]).await;
    world.owner.ok(&["release", "deploy", &first, "--fleet", "porch"]).await;
    world.on_target(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_restarted_or_absent_in_the_middle_of_an_update_delays_it_only() {
    let mut engine = engine::OwnEngine::start();
    let host = engine.host();
    let mut world = World::new(0).await;
    let proxy = Proxy::on(engine.listen(), &world.cloud.url);
    world.join_as(Device::beside(&engine), Some(&proxy)).await;
    Services { services: &[("app", STAY, SHORT), ("side", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;

    for pause in [150, 600, 1500] {
        world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho after {pause}\n{STAY}\n"));
        world.repo.push_ok("next").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        engine.again();
        let release = world.latest().await["id"].as_str().unwrap().to_owned();
        world.on_target(&release).await;
        assert_eq!(engine::containers(&world.devices[0].prefix, Some(&host)).len(), 2);
    }

    engine.stop();
    world.reason(0, "engine_absent").await;
    assert!(world.devices[0].is_running());
    engine.again();
    let release = world.latest().await["id"].as_str().unwrap().to_owned();
    world.on_target(&release).await;
    world.devices.clear();
}
