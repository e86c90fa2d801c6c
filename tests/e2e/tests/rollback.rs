//! A release that does not work undoes itself, and says why.

use copal_e2e::{
    engine, eventually,
    repo::{STAY, Services},
    world::World,
};
use serde_json::Value;

const GOOD: &str = "labels: {io.copal.update.healthy-after: 3s, io.copal.update.start-timeout: 8s}\n\
                    stop_grace_period: 1s\nvolumes: [\"data:/data\"]";

/// A world whose one device runs a committed release that wrote to its volume.
async fn committed() -> (World, String, Value) {
    let world = World::new(1).await;
    let line = format!("[ -e /data/born ] || echo precious > /data/born; {STAY}");
    Services { services: &[("app", &line, GOOD), ("side", STAY, "stop_grace_period: 1s")] }
        .write_to(&world.repo);
    let release = world.push_and_settle("works").await;
    let container = world.service(0, "app").await;
    (world, release, container)
}

async fn back_on(world: &World, release: &str, good: &Value, code: &str) -> Value {
    let device = world.reason(0, "rolled_back").await;
    assert_eq!(device["committed_release"], release, "{device}");
    assert_eq!(device["on_target"], false);
    let reason = device["reason"].to_string();
    assert!(reason.contains(code), "{code} in {reason}");
    assert_eq!(device["reason"]["service"], "app", "{reason}");
    let app = world.service(0, "app").await;
    assert_eq!(app["Image"], good["Image"], "the committed image runs again");
    let id = app["Id"].as_str().unwrap();
    let kept = engine::docker(None, &["exec", id, "/bin/busybox", "cat", "/data/born"]);
    assert_eq!(kept.trim(), "precious", "the volume is intact");
    assert_eq!(engine::containers(&world.devices[0].prefix, None).len(), 2, "no orphan");

    // Not tried again: the same container still runs after several resyncs' worth of events.
    engine::docker(
        None,
        &["kill", "--signal", "TERM", world.service(0, "side").await["Id"].as_str().unwrap()],
    );
    world.service(0, "side").await;
    assert_eq!(world.service(0, "app").await["Id"], app["Id"]);
    device
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_exits_is_undone_with_exit_code_and_last_lines() {
    let (world, release, good) = committed().await;
    world.repo.write("app/run.sh", "#!/bin/busybox sh\necho the database is on fire\nexit 7\n");
    world.repo.push_ok("exits").await;
    let device = back_on(&world, &release, &good, "exit").await;
    assert_eq!(device["reason"]["exit_code"], 7, "{device}");
    let tail = device["reason"]["log_tail"].to_string();
    assert!(tail.contains("the database is on fire"), "{tail}");
    let found = world.owner.json(&["device", "diagnose", &world.devices[0].prefix, "update"]).await;
    let update = &found["probes"][0];
    assert_eq!((&update["name"], &update["verdict"]), (&"update".into(), &"failed".into()), "{found}");
    assert!(update["detail"].as_str().unwrap().starts_with("rolled_back: "), "{found}");
    assert!(update["advice"].as_str().unwrap().contains("pin a release that works"), "{found}");
    let events = world.cloud.get(&format!("/devices/{}/events", device["device_id"].as_str().unwrap())).await;
    assert!(events.to_string().contains("rolled_back"), "{events}");

    // A later good release is taken.
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho mended\n{STAY}\n"));
    world.push_and_settle("mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_unhealthy_is_undone() {
    let (world, release, good) = committed().await;
    let compose = std::fs::read_to_string(world.repo.path().join("docker-compose.yml")).unwrap();
    let check = "    build: ./app\n    healthcheck: {test: [CMD, /bin/busybox, \"false\"], interval: 500ms, retries: 2, timeout: 1s}\n";
    world.repo.write("docker-compose.yml", compose.replace("    build: ./app\n", check));
    world.repo.push_ok("unhealthy").await;
    back_on(&world, &release, &good, "unhealthy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_never_starts_is_undone() {
    let (world, release, good) = committed().await;
    world
        .repo
        .write("app/Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nCMD [\"/no/such/program\"]\n");
    world.repo.push_ok("never starts").await;
    back_on(&world, &release, &good, "start").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_variable_is_undone_like_bad_code_and_does_not_condemn_the_release() {
    let world = World::new(1).await;
    let line = format!("[ \"$MODE\" = bad ] && exit 3; {STAY}");
    Services { services: &[("app", &line, GOOD)] }.write_to(&world.repo);
    let release = world.push_and_settle("works").await;

    world.owner.ok(&["env", "set", "MODE=bad", "--fleet", "porch"]).await;
    let device = world.reason(0, "rolled_back").await;
    assert_eq!(device["committed_release"], release.as_str());
    world.service(0, "app").await;

    world.owner.ok(&["env", "set", "MODE=good", "--fleet", "porch"]).await;
    world.on_target(&release).await;
    let app = world.service(0, "app").await;
    assert!(app["Config"]["Env"].to_string().contains("MODE=good"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_survives_an_agent_killed_in_the_middle_of_the_trial() {
    let (mut world, release, good) = committed().await;
    world.repo.write("app/run.sh", "#!/bin/busybox sh\n/bin/busybox sleep 2\nexit 9\n");
    world.repo.push_ok("exits later").await;
    eventually("the new container came", 60, || async {
        let all = engine::containers(&world.devices[0].prefix, None);
        let new = all
            .iter()
            .any(|c| c["Config"]["Labels"]["io.copal.service"] == "app" && c["Image"] != good["Image"]);
        new.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    world.devices[0].kill().await;
    world.devices[0].start();
    let device = world.reason(0, "rolled_back").await;
    assert_eq!(device["committed_release"], release.as_str());
    assert_eq!(world.service(0, "app").await["Image"], good["Image"]);
}
