//! The agent's own update, by the owner's commands: bundled, signed with the host key, released, on trial on the device,
//! committed or undone; containers are not touched.

use std::path::{Path, PathBuf};

use copal_e2e::{
    another_agent, eventually,
    owner::arch,
    repo::{STAY, Services},
    text,
    world::World,
};
use serde_json::Value;

const SHORT: &str = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";

/// Bundles this binary as an agent; not signed yet.
async fn bundle(world: &World, name: &str, binary: &[u8], version: &str) -> PathBuf {
    let folder = world.owner.home.path();
    let (file, out) = (folder.join(name), folder.join(format!("{name}.copal")));
    std::fs::write(&file, binary).unwrap();
    let id =
        world.cloud.get(&format!("/fleets/{}", world.fleet)).await["fleet_id"].as_str().unwrap().to_owned();
    let words = ["agent", "bundle", "--binary", path(&file), "--arch", arch(), "--version", version];
    let more = ["--fleet-id", id.as_str(), "-o", path(&out)];
    world.owner.ok(&words.into_iter().chain(more).collect::<Vec<_>>()).await;
    out
}

/// Signs and releases it to every device; its id.
async fn release(world: &World, bundle: &Path) -> String {
    world.owner.ok(&["os", "bundle", "sign", path(bundle), "--yes"]).await;
    let told = world.owner.json(&["os", "release", &world.fleet, path(bundle), "--deploy", "all"]).await;
    told["id"]
        .as_str()
        .or_else(|| told["release"]["id"].as_str())
        .unwrap_or_else(|| panic!("{told}"))
        .to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The device's own word of its agent.
async fn agent(world: &World) -> Value {
    let device = &world.devices[0];
    let status = std::fs::read(device.run_dir().join("status.json")).unwrap_or_default();
    serde_json::from_slice::<Value>(&status).unwrap_or_default()["agent"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_bundled_signed_released_and_takes_the_place_of_the_one_before() {
    let world = World::new(1).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let container = world.service(0, "app").await;
    let pid = world.devices[0].pid();

    // Without a signature, or with another role's, it is nobody's agent.
    let new = bundle(&world, "new", &another_agent(), "9.0.0").await;
    let refused = world.owner.run(&["os", "release", &world.fleet, path(&new)], "").await;
    assert!(!refused.status.success(), "{}", text(&refused));

    let id = release(&world, &new).await;
    eventually("the new agent is committed", 120, || async {
        let agent = agent(&world).await;
        let good = agent["release"] == id.as_str() && agent["reason"].is_null();
        good.then_some(()).ok_or_else(|| agent.to_string())
    })
    .await;
    eventually("the cloud sees the device on target", 60, || async {
        let device = world.device(0).await.ok_or("not enrolled")?;
        let good = device["on_target"] == true;
        good.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    assert_eq!(world.devices[0].pid(), pid, "the same process");
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(exe.starts_with(world.devices[0].state_dir()), "{}", exe.display());
    assert_eq!(world.service(0, "app").await["Id"], container["Id"], "the container was not touched");
    assert_eq!(world.service(0, "app").await["State"]["StartedAt"], container["State"]["StartedAt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_for_nothing_gives_way_to_the_one_before_and_the_owner_reads_why() {
    let world = World::new(1).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let container = world.service(0, "app").await;
    let bad = bundle(&world, "bad", b"\x7fELF of no machine", "9.0.0").await;
    let id = release(&world, &bad).await;
    let device = world.reason(0, "agent_exec").await;
    assert_eq!(device["reason"]["release"], id.as_str(), "{device}");
    let name = &world.devices[0].prefix;
    let shown = world.owner.ok(&["device", "show", name]).await;
    assert!(shown.contains("agent_exec"), "{shown}");
    assert_eq!(world.service(0, "app").await["Id"], container["Id"], "the container was not touched");
}
