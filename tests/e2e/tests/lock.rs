//! A locked fleet: proven by what devices sign, and from then on nothing new runs that the owner did not sign.

use copal_e2e::{
    eventually,
    proxy::{Answer, Proxy},
    repo::{STAY, Services},
    text,
    world::World,
};
use copal_protocol::{
    documents::{LockState, Report},
    envelope::Envelope,
};
use serde_json::Value;

const SHORT: &str = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";

/// What a device signed last.
async fn report(world: &World, index: usize) -> Report {
    let device = world.device(index).await.unwrap();
    let id = device["device_id"].as_str().unwrap();
    let bytes = world.cloud.text(&format!("/api/v1/devices/{id}/report")).await;
    let envelope = Envelope::parse::<Report>(bytes.as_bytes()).unwrap();
    serde_json::from_slice(envelope.payload()).unwrap()
}

async fn joined(world: &World) {
    for index in 0..world.devices.len() {
        eventually("the device joined", 60, || async {
            world.device(index).await.map(drop).ok_or_else(|| world.devices[index].log())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_without_a_release_is_locked_once_its_device_signed_that_it_is() {
    let world = World::new(1).await;
    joined(&world).await;
    let told = world.owner.json(&["fleet", "lock", "porch", "--timeout", "60", "--yes"]).await;
    assert_eq!(told["locked"], true, "{told}");
    assert_eq!(told["devices"][0]["state"], "proven", "{told}");
    let report = report(&world, 0).await;
    assert_eq!(report.lock, LockState::Locked);
    assert_eq!(Some(report.root_version), told["root_version"].as_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_waits_for_every_device_and_then_only_the_owners_word_brings_anything_new() {
    let mut world = World::new(0).await;
    let proxy = Proxy::start(&world.cloud.url);
    world.join(Some(&proxy)).await;
    world.join(None).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let container = world.service(0, "app").await;

    // One is away: the lock is not proven, and says whose word is missing.
    world.devices[1].kill().await;
    let lock = ["fleet", "lock", "porch", "--mode", "both", "--timeout", "10", "--yes"];
    let output = world.owner.run(&lock, "").await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(7), "{said}");
    let line = |name: &str| said.lines().find(|l| l.contains(name)).unwrap_or_default().to_owned();
    assert!(line(&world.devices[1].prefix).contains("waiting"), "{said}");
    assert!(line(&world.devices[0].prefix).contains("proven"), "{said}");

    // It is back, and the same root is proven by both.
    world.devices[1].start();
    let told = world.owner.json(&["fleet", "lock", "porch", "--check", "--timeout", "60"]).await;
    assert_eq!(told["locked"], true, "{told}");
    for index in 0..2 {
        let report = report(&world, index).await;
        assert_eq!((report.lock, report.root_version), (LockState::Locked, 2));
    }
    assert_eq!(world.service(0, "app").await["Id"], container["Id"], "what ran goes on");

    // A variable that no service declares is refused, and reaches nobody.
    let output = world.owner.run(&["env", "set", "UNDECLARED=x", "--fleet", "porch"], "").await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("E_ENV_UNDECLARED"), "{}", text(&output));

    // What the builder alone signed waits.
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho second\n{STAY}\n"));
    world.repo.push_ok("second").await;
    let release = world.latest().await;
    assert_eq!(release["status"], "awaiting_signature", "{release}");
    let id = release["id"].as_str().unwrap();
    let builder = release["signed_by"][0]["keyid"].as_str().unwrap().to_owned();

    // Signed by the owner, and shown to one device by a cloud that leaves the owner's signature out.
    proxy.rewrite(move |path, body| {
        let mut envelope: Value = serde_json::from_slice(body).ok()?;
        if !path.starts_with("/device/v1/releases/") {
            return None;
        }
        envelope["signatures"].as_array_mut()?.retain(|s| s["keyid"] == builder.as_str());
        Some(Answer::Body(envelope.to_string().into_bytes()))
    });
    world.owner.ok(&["release", "sign", id, "--yes"]).await;
    eventually("the device refuses it", 60, || async {
        let device = world.device(0).await.unwrap();
        let code = device["reason"]["code"].as_str().unwrap_or_default().to_owned();
        if code.starts_with("E_SIG_") { Ok(()) } else { Err(device.to_string()) }
    })
    .await;
    assert_eq!(world.service(0, "app").await["Id"], container["Id"], "what ran goes on");

    // With both signatures it runs, on both.
    proxy.honest();
    world.on_target(id).await;
    assert_ne!(world.service(0, "app").await["Id"], container["Id"]);
}
