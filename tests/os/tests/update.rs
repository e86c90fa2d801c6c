//! Updates that work and updates that do not: each ends in a running, verified slot, and the cloud says why.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use copal_os_tests::{
    board::Board,
    machine::Machine,
    scenario,
    world::{FLEET, runs_committed},
};

async fn undone(faults: &[&str], code: &str) -> serde_json::Value {
    scenario::undone(Board::Uboot, faults, code).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_update_is_tried_committed_and_stays() {
    scenario::a_good_update_stays(Board::Uboot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_panic_ends_in_the_old_slot() {
    let device = undone(&["panic"], "os_no_verdict").await;
    assert_eq!(device["os"]["failed"], device["os"]["target"]["release"], "{device}");
}

/// Nothing of such a system runs any more, neither its judge nor its guard: the kernel ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_whose_disk_goes_away_ends_in_the_old_slot() {
    undone(&["lostdisk"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_system_is_undone_and_the_check_is_named() {
    let device = undone(&["unhealthy"], "os_unhealthy").await;
    assert!(device["os"]["reason"]["message"].to_string().contains("heater"), "{device}");
    assert_eq!(device["os"]["failed"], device["os"]["target"]["release"], "{device}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_system_that_never_says_it_is_well_is_undone() {
    undone(&["silent"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_system_that_hangs_as_it_starts_is_undone() {
    undone(&["hang"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_kernel_that_is_none_ends_in_the_old_slot() {
    undone(&["nokernel"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_root_without_an_init_ends_in_the_old_slot() {
    undone(&["noinit"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_system_that_loses_the_cloud_goes_back_and_is_not_called_bad() {
    let device = undone(&["nonet"], "os_cloud_unreachable").await;
    assert!(device["os"]["failed"].is_null(), "{device}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_cloud_that_goes_away_in_the_trial_makes_it_inconclusive() {
    let (world, mut machine) = scenario::factory(Board::Uboot).await;
    world.roll_out("2.0.0", &[]).await;
    assert!(machine.booted("b").contains("trial=1"));
    world.link.cut();
    assert!(machine.booted("a").contains("trial=0"));
    world.link.mend();
    let device = world.reason("os_cloud_unreachable").await;
    assert!(runs_committed(&device, "1.0.0") && device["os"]["failed"].is_null(), "{device}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_release_that_was_undone_is_tried_again_only_when_asked() {
    let (world, mut machine) = scenario::factory(Board::Uboot).await;
    world.roll_out("2.0.0", &["unhealthy"]).await;
    machine.booted("b");
    machine.booted("a");
    world.reason("os_unhealthy").await;
    // A reboot is no reason to try again.
    machine.cut();
    let mut machine = Machine::on(&machine.disk.path.clone());
    machine.booted("a");
    world.online().await;
    world.reason("os_unhealthy").await;
    assert!(!machine.said("slot=b "), "it was tried again unasked");
    world.owner.ok(&["os", "retry", FLEET, "2.0.0", "--all"]).await;
    assert!(machine.booted("b").contains("trial=1"));
}
