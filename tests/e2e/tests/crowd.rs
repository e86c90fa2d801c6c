//! Many at once: a whole fleet that comes back, people who keep lines busy on purpose, a device that is shut out.

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
use copal_fleet_sim::{Fleet, Pace, raise_file_limit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PATIENCE: Duration = Duration::from_secs(240);

async fn all_connected(fleet: &Fleet, devices: u64) {
    let all = fleet.until(PATIENCE, |seen| seen.connected.load(Relaxed) == devices).await;
    assert!(all, "not all came: {:?}", fleet.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_devices_that_return_at_once_are_let_in_as_there_is_room_and_all_come_back() {
    let mut world = World::on(Cloud::start_private_ca(&[]).await, &[]).await;
    let mut fleet = world.simulate(500).await;
    // As agents, they wait longer each time they are not let in; up to five minutes, which is longer than this test.
    fleet.set_pace(Pace { longest: Duration::from_secs(20), ..Pace::default() });
    // While something is assigned to them, those with a channel need no other connection.
    Services { services: &[("app", STAY, "")] }.write_to(&world.repo);
    world.repo.push_ok("works").await;
    fleet.connect(Duration::from_secs(2));
    all_connected(&fleet, 500).await;
    assert!(fleet.until(PATIENCE, |seen| seen.settled.load(Relaxed) >= 500).await, "{:?}", fleet.seen());
    assert_eq!(fleet.seen().refused.load(Relaxed), 0, "{:?}", fleet.seen());

    // It comes back with fewer files: 544 connections, three quarters of them channels.
    world.cloud.restart_with_files(Some(800)).await;
    let told =
        fleet.until(PATIENCE, |seen| seen.refused.load(Relaxed) >= 80 && seen.connected.load(Relaxed) >= 350);
    assert!(
        told.await,
        "they are let in as there is room, the others are told when to come: {:?}",
        fleet.seen()
    );
    assert!(fleet.seen().connected.load(Relaxed) <= 408, "{:?}", fleet.seen());
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
    let told = fleet.until(PATIENCE, |seen| seen.settled.load(Relaxed) >= 20).await;
    assert!(told, "channels are served: {:?}", fleet.seen());
    assert_eq!(fleet.seen().connected.load(Relaxed), 20);
    assert_eq!(fleet.seen().opened.load(Relaxed), 20, "and none was let go of");
    drip.abort();
}

/// The first bytes of a TLS handshake; 480 more would have to come.
const HALF_HELLO: &[u8] =
    &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_stall_in_a_tls_handshake_are_let_go_of_and_people_and_channels_served() {
    raise_file_limit().unwrap();
    let mut world = World::on(Cloud::start_private_ca(&[]).await, &[]).await;
    // Room for 744 connections, fewer than there will be sockets.
    world.cloud.restart_with_files(Some(1_000)).await;
    let mut fleet = world.simulate(5).await;
    fleet.connect(Duration::ZERO);
    all_connected(&fleet, 5).await;
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.cloud.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    let mut stalled = tokio::task::JoinSet::new();
    for n in 0..1_200 {
        let mut socket = TcpStream::connect(world.cloud.address()).await.unwrap();
        stalled.spawn(async move {
            // Some say nothing at all, the others a byte now and then.
            if n % 3 > 0 && socket.write_all(HALF_HELLO).await.is_err() {
                return;
            }
            let mut byte = [0];
            loop {
                tokio::select! {
                    // An end, or an alert before it.
                    read = socket.read(&mut byte) => if !matches!(read, Ok(1..)) { return },
                    () = tokio::time::sleep(Duration::from_secs(1)), if n % 3 == 2 => {
                        if socket.write_all(&[7]).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
    let mut times = Vec::new();
    for _ in 0..100 {
        let asked = Instant::now();
        assert_eq!(world.cloud.text("/healthz").await.trim(), "ok");
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    times.sort();
    let most = resident();
    println!("health asked 100 times: p99 {:?}; memory: {before} KiB, then {most} KiB", times[98]);
    assert!(most < before + (64 << 10), "{before} KiB, then {most} KiB");
    let gone = async { while stalled.join_next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("every one of them is let go of");
    assert_eq!(fleet.seen().connected.load(Relaxed), 5);
    assert_eq!(fleet.seen().opened.load(Relaxed), 5, "no channel was let go of");
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
