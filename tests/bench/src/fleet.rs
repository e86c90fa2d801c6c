//! What many connected devices cost: memory for each channel, news to all of them, all of them coming back at once.
//! The devices are `tests/fleet-sim`'s, in this process; TLS by a private authority, as a small installation has it.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use copal_e2e::{
    cloud::Cloud,
    owner::Owner,
    repo::{Repo, STAY, Services},
};
use copal_fleet_sim::{Fleet, raise_file_limit};

use crate::{Row, cpu_seconds, row, status_kib};

/// How long all may take to come, or to be told.
const PATIENCE: Duration = Duration::from_secs(600);
/// A quiet time in which each device pings at least once.
const QUIET: Duration = Duration::from_secs(260);

/// All rows for each size of a fleet.
pub(crate) async fn rows() -> Vec<Row> {
    let most = raise_file_limit().unwrap();
    let mut rows = Vec::new();
    for devices in [2_000, 10_000] {
        if most < 2 * devices as u64 {
            rows.push(
                row(format!("{devices} devices"), "not measured").goal("needs more open files (ulimit -Hn)"),
            );
            continue;
        }
        rows.extend(of(devices, devices == 2_000).await);
    }
    rows
}

async fn of(devices: usize, with_bytes: bool) -> Vec<Row> {
    let mut cloud = Cloud::start_private_ca(&[]).await;
    let owner = Owner::sign_in(&cloud).await;
    owner.fleet("porch", &[]).await;
    let repo = Repo::new(&cloud, "porch");
    let mut releases = Vec::new();
    for round in 1..=2 {
        Services { services: &[("app", &format!("echo {round}; {STAY}"), "")] }.write_to(&repo);
        repo.push_ok("works").await;
        let list = cloud.get("/fleets/porch/releases").await;
        releases.push(list["items"][0]["id"].as_str().unwrap().to_owned());
    }
    let file = owner.home.path().join("copal.json");
    let uses = devices.to_string();
    let words = ["device", "config", "porch", "--uses", &uses, "--out", file.to_str().unwrap()];
    owner.ok(&words).await;
    let file = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let began = Instant::now();
    let mut fleet = Fleet::enrol(file, devices).await.unwrap();
    let enrolled = began.elapsed().as_secs_f64();
    // What enrolling and logging in left in memory is not the channels'.
    tokio::time::sleep(Duration::from_secs(15)).await;

    let all = devices as u64;
    let (before, cpu) = (status_kib(cloud.pid(), "VmRSS:"), cpu_seconds(cloud.pid()));
    fleet.connect(Duration::from_secs(20));
    assert!(
        fleet.until(PATIENCE, |seen| seen.connected.load(Relaxed) == all).await,
        "not all came: {:?}",
        fleet.seen()
    );
    assert!(
        fleet.until(PATIENCE, |seen| seen.applied.load(Relaxed) >= all).await,
        "not all are told: {:?}",
        fleet.seen()
    );
    let connecting = cpu_seconds(cloud.pid()) - cpu;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let each = (status_kib(cloud.pid(), "VmRSS:") - before) * 1.024 / devices as f64;
    let mut rows = vec![
        row(format!("{devices} devices enrol and log in, TLS"), format!("{enrolled:.1} s")),
        row(format!("memory of the cloud per idle channel, TLS, {devices}"), format!("{each:.1} KB"))
            .goal("<= 15 KB"),
        row(format!("CPU of the cloud to take and tell {devices}"), format!("{connecting:.1} s")),
    ];
    if with_bytes {
        let passed = |fleet: &Fleet| fleet.seen().sent.load(Relaxed) + fleet.seen().received.load(Relaxed);
        let before = passed(&fleet);
        tokio::time::sleep(QUIET).await;
        let day = (passed(&fleet) - before) as f64 / devices as f64 * 86_400.0 / QUIET.as_secs_f64();
        rows.push(
            row("bytes of an idle channel a day, above TCP", format!("{:.1} KB", day / 1000.0))
                .goal("<= 140 KB with TCP and IP"),
        );
    }

    // News for all: the release of before, which each device has to be assigned, told, and to fetch.
    let told = fleet.seen().applied.load(Relaxed);
    fleet.seen().forget_moments();
    let (began, cpu) = (Instant::now(), cpu_seconds(cloud.pid()));
    owner.ok(&["release", "deploy", "porch", &releases[0], "--all"]).await;
    assert!(
        fleet.until(PATIENCE, |seen| seen.applied.load(Relaxed) >= told + all).await,
        "not all are told: {:?}",
        fleet.seen()
    );
    let cpu = cpu_seconds(cloud.pid()) - cpu;
    let (hinted, applied) = fleet.seen().since(began);
    let at = |list: &[Duration], share: f64| list[((list.len() - 1) as f64 * share) as usize].as_secs_f64();
    rows.extend([
        row(
            format!("deploy to {devices}: hint at half, at the last"),
            format!("{:.2}, {:.2} s", at(&hinted, 0.5), at(&hinted, 1.0)),
        )
        .peer("one device every 0.05 s"),
        row(format!("deploy to {devices}: verified by the last"), format!("{:.2} s", at(&applied, 1.0))),
        row("CPU of the cloud for that, each device", format!("{:.2} ms", cpu * 1e3 / devices as f64)),
    ]);

    // The cloud dies and comes back at once.
    let refused = fleet.seen().refused.load(Relaxed);
    let began = Instant::now();
    cloud.restart().await;
    assert!(fleet.until(Duration::from_secs(5), |seen| seen.connected.load(Relaxed) < all).await);
    let back = fleet.until(PATIENCE, |seen| seen.connected.load(Relaxed) == all).await;
    let took = began.elapsed().as_secs_f64();
    rows.extend([
        row(
            format!("{devices} come back after a crash of the cloud"),
            if back { format!("{took:.1} s") } else { "not all".to_owned() },
        )
        .goal("within the window it had told them"),
        row("CPU of the cloud until then", format!("{:.1} s", cpu_seconds(cloud.pid()))),
        row("told to wait meanwhile", (fleet.seen().refused.load(Relaxed) - refused).to_string()),
    ]);
    rows
}
