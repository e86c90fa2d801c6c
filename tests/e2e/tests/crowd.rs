//! Many at once: a whole fleet that comes back, people who keep lines busy on purpose, a device that is shut out.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use copal_e2e::{
    cloud::Cloud,
    eventually,
    repo::{STAY, Services},
    world::World,
};
use copal_fleet_sim::{Fleet, raise_file_limit};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const PATIENCE: Duration = Duration::from_secs(120);

async fn all_connected(fleet: &Fleet, devices: u64) {
    let all = fleet.until(PATIENCE, |seen| seen.connected.load(Relaxed) == devices).await;
    assert!(all, "not all came: {:?}", fleet.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_devices_that_return_at_once_are_let_in_as_there_is_room_and_all_come_back() {
    let mut world = World::on(Cloud::start_private_ca(&[]).await, &[]).await;
    let mut fleet = world.simulate(500).await;
    fleet.connect(Duration::from_secs(2));
    all_connected(&fleet, 500).await;
    assert_eq!(fleet.seen().refused.load(Relaxed), 0, "{:?}", fleet.seen());

    // It comes back with fewer files: 244 connections, three quarters of them channels.
    world.cloud.restart_with_files(Some(500)).await;
    let told = fleet
        .until(PATIENCE, |seen| seen.refused.load(Relaxed) >= 250 && seen.connected.load(Relaxed) >= 150);
    assert!(
        told.await,
        "they are let in as there is room, the others are told when to come: {:?}",
        fleet.seen()
    );
    assert!(fleet.seen().connected.load(Relaxed) <= 183, "{:?}", fleet.seen());
    // People are served meanwhile.
    world.cloud.get("/fleets/porch/devices").await;
    world.cloud.restart_with_files(None).await;
    all_connected(&fleet, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_sockets_that_say_little_keep_neither_people_nor_channels_out() {
    assert!(
        raise_file_limit().unwrap() > 3_000,
        "this test opens 2,000 sockets: raise the limit of open files"
    );
    let world = World::new(0).await;
    let mut fleet = world.simulate(20).await;
    fleet.connect(Duration::from_secs(1));
    all_connected(&fleet, 20).await;
    let head = b"GET /device/v1/state HTTP/1.1\r\nHost: cloud\r\nX-Slow: ";
    let mut slow = Vec::new();
    for n in 0..2_000 {
        let mut socket = TcpStream::connect(world.cloud.address()).await.unwrap();
        // Some say nothing at all.
        if n % 2 == 0 {
            socket.write_all(head).await.unwrap();
        }
        slow.push(socket);
    }
    let drip = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for socket in slow.iter_mut().step_by(2) {
                // Those the cloud let go of are tried again all the same.
                let _ = socket.write_all(b"a").await;
            }
        }
    });
    for _ in 0..5 {
        assert_eq!(world.cloud.text("/healthz").await.trim(), "ok");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Services { services: &[("app", STAY, "")] }.write_to(&world.repo);
    world.repo.push_ok("works").await;
    let told = fleet.until(PATIENCE, |seen| seen.reports.load(Relaxed) >= 20).await;
    assert!(told, "channels are served: {:?}", fleet.seen());
    assert_eq!(fleet.seen().connected.load(Relaxed), 20);
    assert_eq!(fleet.seen().opened.load(Relaxed), 20, "and none was let go of");
    drip.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_cut_off_within_five_seconds_and_does_not_come_back() {
    let world = World::new(0).await;
    let mut fleet = world.simulate(2).await;
    fleet.connect(Duration::ZERO);
    all_connected(&fleet, 2).await;
    world.owner.ok(&["device", "revoke", "sim-00001", "--yes"]).await;
    let revoked = Instant::now();
    eventually("its channel is cut", 5, || async {
        let connected = fleet.seen().connected.load(Relaxed);
        if connected == 1 { Ok(()) } else { Err(format!("{connected} connected")) }
    })
    .await;
    assert!(revoked.elapsed() < Duration::from_secs(6), "which the issue promises");
    let tried = fleet.until(PATIENCE, |seen| seen.failed.load(Relaxed) >= 2).await;
    assert!(tried, "it tried to come back: {:?}", fleet.seen());
    assert_eq!(fleet.seen().connected.load(Relaxed), 1);
    let why = fleet.seen().why().unwrap();
    assert!(why.contains("device_revoked") || why.contains("403"), "{why}");
}
