//! Many devices at once, pretended but for their engine.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use copal_e2e::{
    cloud::Cloud,
    owner::Owner,
    repo::{Repo, STAY, Services},
};
use copal_fleet_sim::Fleet;

const DEVICES: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn every_device_hears_of_a_release_and_comes_back_after_the_cloud_died() {
    let mut cloud = Cloud::start_private_ca(&[]).await;
    let owner = Owner::sign_in(&cloud).await;
    owner.fleet("porch", &[]).await;
    let repo = Repo::new(&cloud, "porch");
    let file = owner.home.path().join("copal.json");
    let uses = DEVICES.to_string();
    owner.ok(&["device", "config", "porch", "--uses", &uses, "--out", file.to_str().unwrap()]).await;
    let file = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut fleet = Fleet::enrol(file, DEVICES as usize).await.unwrap();
    fleet.connect(Duration::from_secs(1));
    let all = fleet.until(PATIENCE, |seen| seen.connected.load(Relaxed) == DEVICES).await;
    assert!(all, "not all came: {:?}", fleet.seen());
    let list = cloud.get("/fleets/porch/devices?limit=100").await;
    assert!(list["items"].as_array().unwrap().iter().all(|device| device["online"] == true), "{list}");

    Services { services: &[("app", STAY, "")] }.write_to(&repo);
    repo.push_ok("works").await;
    let all = fleet.until(PATIENCE, |seen| seen.settled.load(Relaxed) >= DEVICES).await;
    assert!(all, "not all were told: {:?}", fleet.seen());
    assert_eq!(fleet.seen().failed.load(Relaxed), 0, "{:?}", fleet.seen());

    let before = fleet.seen().opened.load(Relaxed);
    cloud.restart().await;
    let back = |seen: &copal_fleet_sim::Seen| {
        seen.opened.load(Relaxed) >= before + DEVICES && seen.connected.load(Relaxed) == DEVICES
    };
    assert!(fleet.until(PATIENCE, back).await, "not all are back: {:?}", fleet.seen());
}
