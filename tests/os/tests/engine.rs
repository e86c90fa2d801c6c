//! A device as it is in the field: systemd, a container engine, an app. The operating system, the app and the agent are
//! updated, together and each for itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::path::PathBuf;

use copal_os_tests::{
    built,
    engine::{self, CONTAINERS, STARTS, until, until_shell},
    machine::Machine,
    world::{FLEET, World, runs_committed, text},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long, and needs tests/setup.sh osengine: make test-os"]
async fn an_app_and_the_system_under_it_are_updated_together_and_start_without_the_cloud() {
    let world = World::new().await;
    let mut machine = engine::machine(&world).await;
    machine.booted("a");
    let repo = engine::app(&world);
    let first = engine::push(&world, &repo, "one").await;
    until(&world, "the app runs", |d| engine::runs_app(d, &first)).await;
    assert_eq!(until_shell(&machine, STARTS, |said| !said.is_empty()).await, "one");

    let image = tokio::task::spawn_blocking(|| engine::image("2.0.0")).await.unwrap();
    let bundle = world.unsigned("engine-2.0.0", "2.0.0", &image, world.board.device_type(), &[]).await;
    world.owner.ok(&["os", "bundle", "sign", text(&bundle), "--yes"]).await;
    world.release(&bundle).await;
    world.deploy("2.0.0").await;
    let second = engine::push(&world, &repo, "two").await;
    assert!(machine.booted("b").contains("trial=1"));
    let device = until(&world, "both are committed", |d| {
        runs_committed(d, "2.0.0") && d["os"]["progress"].is_null() && engine::runs_app(d, &second)
    })
    .await;
    assert!(device["os"]["reason"].is_null(), "{device}");
    let starts = until_shell(&machine, STARTS, |said| said.ends_with("two")).await;
    assert!(starts.starts_with("one\n"), "the volume is the one of before: {starts}");
    machine.shell("sync");

    // The cloud is gone, and so is the power: what was committed starts from what is stored.
    world.link.cut();
    machine.cut();
    let before = starts.lines().count();
    let mut machine = engine::on(&machine.disk.path.clone());
    assert!(machine.booted("b").contains("trial=0"));
    let starts = until_shell(&machine, STARTS, |said| said.lines().count() > before).await;
    assert!(starts.ends_with("two"), "{starts}");
    until_shell(&machine, "copal-agent status", |said| said.contains("app")).await;
}

/// The unit's process and how often systemd started it again.
fn unit(machine: &Machine) -> String {
    machine.shell("systemctl show -p MainPID -p NRestarts --value copal-agent | xargs")
}

async fn agent(world: &World, name: &str, binary: &[u8], version: &str) -> String {
    let (file, out): (PathBuf, PathBuf) = (world.path(name), world.path(&format!("{name}.copal")));
    std::fs::write(&file, binary).unwrap();
    let mut words = vec!["agent", "bundle", "--fleet", FLEET, "--binary", text(&file), "--arch", "arm64"];
    words.extend(["--version", version, "-o", text(&out)]);
    world.owner.ok(&words).await;
    world.owner.ok(&["os", "bundle", "sign", text(&out), "--yes"]).await;
    let id = world.release(&out).await;
    world.deploy(version).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long, and needs tests/setup.sh osengine: make test-os"]
async fn the_agent_updates_itself_under_systemd_and_a_broken_one_is_undone() {
    let world = World::new().await;
    let mut machine = engine::machine(&world).await;
    machine.booted("a");
    let repo = engine::app(&world);
    let app = engine::push(&world, &repo, "one").await;
    until(&world, "the app runs", |d| engine::runs_app(d, &app)).await;
    let containers = machine.shell(CONTAINERS);
    assert_eq!(containers.lines().count(), 1, "{containers}");
    let before = unit(&machine);

    // The same program, with bytes at its end that no loader reads.
    let mut bytes = std::fs::read(built("agent")).unwrap();
    bytes.extend([1; 16]);
    let good = agent(&world, "good", &bytes, "8.0.0").await;
    until(&world, "the new agent is committed", |d| {
        d["agent"]["release"] == good.as_str() && d["agent"]["reason"].is_null() && d["online"] == true
    })
    .await;
    assert_eq!(unit(&machine), before, "systemd saw no restart");
    assert_eq!(machine.shell(CONTAINERS), containers, "the container was not touched");
    let pid = machine.shell("systemctl show -p MainPID --value copal-agent");
    assert!(machine.shell(&format!("readlink /proc/{pid}/exe")).contains("/copal/agent/"));

    // One that starts and ends: counted, three times, by starts that systemd makes.
    let broken = agent(&world, "broken", &crash(), "9.0.0").await;
    until(&world, "the broken one is undone", |d| {
        d["agent"]["reason"]["code"] == "agent_no_verdict" && d["agent"]["release"] == good.as_str()
    })
    .await;
    let device = world.device().await.unwrap();
    assert_eq!(device["agent"]["failed"], broken.as_str(), "{device}");
    let restarts = machine.shell("systemctl show -p NRestarts --value copal-agent");
    assert_eq!(restarts.trim(), "3", "each start of the broken one was systemd's");
    assert_eq!(machine.shell(CONTAINERS), containers, "the container was not touched");
}

/// A static arm64 program that only says `exit(1)`: the launcher gives no script to a shell.
fn crash() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    // mov x0, #1; mov x8, #93 (exit); svc #0
    let code = [0xd280_0020_u32, 0xd280_0ba8, 0xd400_0001];
    let size = 64 + 56 + 4 * code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|w| elf.extend(w.to_le_bytes()));
    half(&mut elf, &[2, 183]);
    elf.extend(1_u32.to_le_bytes());
    for word in [BASE + 120, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    half(&mut elf, &[64, 56, 1, 0, 0, 0]);
    // One segment: all of it, read and executed.
    elf.extend([1_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
    for word in [0, BASE, BASE, size, size, 0x1_0000] {
        elf.extend(word.to_le_bytes());
    }
    code.iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf
}
