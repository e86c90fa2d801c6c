//! The machine with UEFI and GRUB: what the one with U-Boot is put through, and what is GRUB's own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]
// Its agent is this machine's own build.
#![cfg(target_arch = "x86_64")]

use copal_os_tests::{
    board::Board,
    disk::Disk,
    machine::Machine,
    scenario,
    shuttle::Shuttle,
    state::{self, BootState},
    world::PATIENCE_S,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_good_update_is_tried_committed_and_stays() {
    scenario::a_good_update_stays(Board::Grub).await;
}

#[test]
fn a_boot_is_counted_before_the_kernel_starts() {
    let (_dir, disk) = scenario::factory_disk(Board::Grub);
    let mut machine = Machine::on(&disk.path);
    machine.cut_at("COPAL: copy=");
    machine.wait_cut();
    let state = state::state(&disk.open()).unwrap();
    assert_eq!((state.committed(), state.on_trial(), state.number("copal_tries")), ("a", false, 1));
    let [one, two] = state::states(&disk.open());
    assert_eq!(one, two, "both copies hold the count");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_factory_disk_with_a_copal_json_joins_its_fleet() {
    scenario::it_joins_its_fleet(Board::Grub).await;
}

/// GRUB cannot write a block without its first line: such a boot is uncounted, a trial, and ends when the agent commits it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn with_both_copies_damaged_the_slot_that_runs_is_committed_again_and_updates_go_on() {
    let (world, mut machine) = scenario::factory(Board::Grub).await;
    machine.cut();
    for copy in 0..2 {
        machine.disk.damage_state(copy);
    }
    let mut machine = Machine::on(&machine.disk.path.clone());
    assert!(machine.booted("a").contains("trial=1"));
    assert!(machine.shell("cat /proc/cmdline").contains("copal.fell=lost"));
    let state = mended(&machine.disk).await;
    assert_eq!((state.committed(), state.on_trial()), ("a", false));
    machine.cut();
    // A boot in which GRUB can say that it saved: without one the agent starts no update.
    let mut machine = Machine::on(&machine.disk.path.clone());
    assert!(machine.booted("a").contains("trial=0"));
    world.roll_out("2.0.0", &[]).await;
    assert!(machine.booted("b").contains("trial=1"));
    world.committed("2.0.0").await;
}

/// Waits until both copies are whole and say the same; gives it.
async fn mended(disk: &Disk) -> BootState {
    copal_e2e::eventually("both copies are whole again", PATIENCE_S, || async {
        match state::states(&disk.open()) {
            [Some(one), Some(two)] if one == two => Ok(one),
            states => Err(format!("{states:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn one_damaged_copy_changes_nothing_and_is_mended() {
    let (world, mut machine) = scenario::factory(Board::Grub).await;
    for copy in 0..2 {
        machine.cut();
        machine.disk.damage_state(copy);
        machine = Machine::on(&machine.disk.path.clone());
        assert!(machine.booted("a").contains("trial=0"));
        mended(&machine.disk).await;
        world.committed("1.0.0").await;
    }
}

#[test]
fn with_both_copies_damaged_a_slot_that_is_not_valid_is_not_booted() {
    scenario::without_a_state_a_slot_that_is_not_valid_is_not_booted(Board::Grub);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_kernel_panic_ends_in_the_old_slot() {
    let device = scenario::undone(Board::Grub, &["panic"], "os_no_verdict").await;
    assert_eq!(device["os"]["failed"], device["os"]["target"]["release"], "{device}");
}

/// Nothing of such a system runs any more, neither its judge nor its guard: the kernel ends it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_trial_whose_disk_goes_away_ends_in_the_old_slot() {
    scenario::undone(Board::Grub, &["lostdisk"], "os_no_verdict").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_kernel_that_is_not_there_ends_in_the_old_slot() {
    let device = scenario::undone(Board::Grub, &["gonekernel"], "os_no_verdict").await;
    assert_eq!(device["os"]["failed"], device["os"]["target"]["release"], "{device}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn an_unhealthy_system_is_undone_and_the_check_is_named() {
    let device = scenario::undone(Board::Grub, &["unhealthy"], "os_unhealthy").await;
    assert!(device["os"]["reason"]["message"].to_string().contains("heater"), "{device}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_system_that_never_says_it_is_well_is_undone() {
    scenario::undone(Board::Grub, &["silent"], "os_no_verdict").await;
}

#[test]
#[ignore = "long: make test-os"]
fn a_trial_without_a_kernel_or_an_init_ends_in_the_committed_slot() {
    scenario::nothing_to_start_ends_in_the_committed_slot(Board::Grub);
}

#[test]
#[ignore = "long: make test-os"]
fn a_trial_that_panics_uses_up_its_boots_and_ends_in_the_committed_slot() {
    scenario::a_panic_uses_up_the_trial(Board::Grub);
}

#[test]
#[ignore = "long: make test-os"]
fn a_committed_slot_that_is_never_well_gives_way_to_the_other_valid_one() {
    scenario::a_sick_committed_slot_gives_way(Board::Grub);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn the_power_goes_at_every_named_moment() {
    Shuttle::start(Board::Grub).await.every_named_moment().await;
}

/// Every write and flush of one whole update, UEFI's, GRUB's and Linux' own of the FAT file system among them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn every_prefix_of_an_update_boots_a_whole_verified_slot() {
    scenario::every_prefix_of_an_update(Board::Grub).await;
}
