//! What people tell one device to do: it is done once, told once, and by those alone who may.

use std::time::Duration;

use copal_e2e::{
    eventually,
    repo::{STAY, Services},
    text,
    world::World,
};
use serde_json::{Value, json};

const OPTIONS: &str = "labels: {io.copal.update.healthy-after: 1s, io.copal.update.start-timeout: 8s}\n\
                       stop_grace_period: 1s\nvolumes: [\"data:/data\"]";

/// A device that runs a service, and holds a channel.
async fn world() -> (World, String) {
    let world = World::new(1).await;
    let line = format!("[ -e /data/born ] || cat /proc/sys/kernel/random/uuid > /data/born; {STAY}");
    Services { services: &[("app", &line, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let name = world.devices[0].prefix.clone();
    (world, name)
}

async fn refused(world: &World, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = world.owner.run(&args, "").await;
    assert!(!output.status.success(), "copal {args:?}: {}", text(&output));
    let error: Value =
        serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    error["error"].clone()
}

fn started(container: &Value) -> String {
    container["State"]["StartedAt"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_restarted_stopped_and_started_and_stays_stopped_over_the_agents_death() {
    let (mut world, name) = world().await;
    let before = world.service(0, "app").await;
    let done = world.owner.json(&["device", "restart", &name, "app", "--why", "it looked odd"]).await;
    assert_eq!((&done["state"], &done["ended"]), (&json!("done"), &json!(true)), "{done}");
    let after = world.service(0, "app").await;
    assert_eq!(after["Id"], before["Id"], "the same container");
    assert_ne!(started(&after), started(&before), "started anew");

    world.owner.ok(&["device", "stop", &name, "app"]).await;
    let runs = |world: &World| {
        copal_e2e::engine::docker(
            None,
            &["ps", "-q", "--filter", &format!("name=^/?{}-", world.devices[0].prefix)],
        )
    };
    assert_eq!(runs(&world).trim(), "", "nothing runs");
    world.devices[0].kill().await;
    world.devices[0].start();
    // It is told as soon as its channel is back, and has looked around by then.
    world.owner.ok(&["device", "check", &name, "--ttl", "1m"]).await;
    world.reason(0, "stopped").await;
    assert_eq!(runs(&world).trim(), "", "a stop outlives the agent");
    world.owner.ok(&["device", "start", &name, "app"]).await;
    world.service(0, "app").await;

    // What is not there cannot be acted on, and it is said by whom it was asked and why.
    let error = refused(&world, &["device", "restart", &name, "nothing"]).await;
    assert!(error["why"].to_string().contains("nothing"), "{error}");
    let list = world.owner.json(&["device", "commands", &name]).await;
    let verbs: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|c| c["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs.len(), 5, "{list}");
    let audit = world.owner.ok(&["audit", "list", "--json"]).await;
    assert!(audit.contains("command.create") && audit.contains("it looked odd"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_purged_and_images_stay() {
    let (world, name) = world().await;
    let born = |container: &Value| {
        let id = container["Id"].as_str().unwrap().to_owned();
        copal_e2e::engine::docker(None, &["exec", &id, "/bin/busybox", "cat", "/data/born"])
    };
    let before = world.service(0, "app").await;
    let old = born(&before);
    world.owner.ok(&["device", "purge", &name, "--volume", "data", "--yes"]).await;
    let after = eventually("the service runs with new data", 60, || async {
        let container = world.service(0, "app").await;
        if started(&container) == started(&before) { Err("not yet".to_owned()) } else { Ok(container) }
    })
    .await;
    assert_ne!(born(&after), old);
    assert_eq!(after["Image"], before["Image"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_away_is_unreachable_or_does_it_when_it_comes_or_never() {
    let (mut world, name) = world().await;
    let before = world.service(0, "app").await;
    world.devices[0].kill().await;
    let error = eventually("the end of the channel was seen", 30, || async {
        let error = refused(&world, &["device", "restart", &name, "app", "--timeout", "3"]).await;
        if error["code"] == "device_away" { Ok(error) } else { Err(error.to_string()) }
    })
    .await;
    assert!(error["next"].to_string().contains("--ttl"), "{error}");
    let stored = world.owner.json(&["device", "restart", &name, "app", "--ttl", "1h", "--no-wait"]).await;
    let late = world.owner.json(&["device", "stop", &name, "app", "--ttl", "1s", "--no-wait"]).await;
    assert_eq!((&stored["state"], &late["state"]), (&json!("queued"), &json!("queued")));
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.devices[0].start();
    let route = |command: &Value| {
        let device = command["device_id"].as_str().unwrap_or_default().to_owned();
        format!("/fleets/porch/devices/{device}/commands/{}", command["id"].as_str().unwrap())
    };
    let end = |command: Value| {
        let (world, route) = (&world, route(&command));
        async move {
            eventually("the command ended", 60, || async {
                let now = world.cloud.get(&route).await;
                if now["ended"] == true { Ok(now) } else { Err(now.to_string()) }
            })
            .await
        }
    };
    assert_eq!(end(stored).await["state"], "done");
    assert_eq!(end(late).await["state"], "expired");
    let after = world.service(0, "app").await;
    assert_ne!(started(&after), started(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_of_a_device_are_seen_from_afar() {
    let (world, name) = world().await;
    let found = world.owner.json(&["device", "diagnose", &name]).await;
    let probes = found["probes"].as_array().unwrap();
    let verdict = |of: &str| {
        probes.iter().find(|p| p["name"] == of).unwrap_or_else(|| panic!("no {of}: {found}"))["verdict"]
            .clone()
    };
    for well in ["engine", "services", "cloud", "registry", "agent"] {
        assert_eq!(verdict(well), "ok", "{well}: {found}");
    }
    let shown = world.owner.ok(&["device", "diagnose", &name, "engine", "memory"]).await;
    assert!(shown.contains("engine") && shown.contains("memory") && !shown.contains("registry"), "{shown}");
    let error = refused(&world, &["device", "diagnose", &name, "horoscope"]).await;
    assert!(error["why"].to_string().contains("horoscope"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_updates_are_paused_nothing_new_is_installed() {
    let (world, name) = world().await;
    world.owner.ok(&["device", "pause", &name, "--for", "1h"]).await;
    let before = world.service(0, "app").await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho another\n{STAY}\n"));
    world.repo.push_ok("another").await;
    world.reason(0, "paused").await;
    assert_eq!(world.service(0, "app").await["Id"], before["Id"]);
    world.owner.ok(&["device", "resume", &name]).await;
    let id = world.latest().await["id"].as_str().unwrap().to_owned();
    world.on_target(&id).await;
    assert_ne!(world.service(0, "app").await["Id"], before["Id"]);
}
