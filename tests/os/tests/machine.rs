//! The machine itself: it boots, joins a fleet, and its boot state survives what a power cut does to it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use copal_os_tests::{board::Board, machine::Machine, scenario, state};

#[tokio::test(flavor = "multi_thread")]
async fn a_factory_disk_with_a_copal_json_joins_its_fleet() {
    scenario::it_joins_its_fleet(Board::Uboot).await;
}

#[test]
fn a_boot_is_counted_before_the_kernel_starts() {
    let (_dir, disk) = scenario::factory_disk(Board::Uboot);
    let machine = Machine::on(&disk.path);
    machine.cut_at("Starting kernel");
    let mut machine = machine;
    machine.wait_cut();
    let state = state::state(&disk.open()).unwrap();
    assert_eq!((state.committed(), state.on_trial(), state.number("copal_tries")), ("a", false, 1));
    assert_eq!(state::states(&disk.open())[0], state::states(&disk.open())[1], "both copies hold the count");
}

#[test]
fn one_damaged_copy_of_the_boot_state_changes_nothing() {
    for copy in 0..2 {
        let (_dir, disk) = scenario::factory_disk(Board::Uboot);
        disk.damage_state(copy);
        let mut machine = Machine::on(&disk.path);
        machine.booted("a");
        machine.cut();
        assert!(state::states(&disk.open()).iter().all(Option::is_some), "both copies are whole again");
    }
}

#[test]
fn with_both_copies_damaged_a_slot_that_is_not_valid_is_not_booted() {
    scenario::without_a_state_a_slot_that_is_not_valid_is_not_booted(Board::Uboot);
}

#[test]
fn a_trial_that_panics_uses_up_its_boots_and_ends_in_the_committed_slot() {
    scenario::a_panic_uses_up_the_trial(Board::Uboot);
}

#[test]
#[ignore = "long: make test-os"]
fn a_trial_without_a_kernel_or_an_init_ends_in_the_committed_slot() {
    scenario::nothing_to_start_ends_in_the_committed_slot(Board::Uboot);
}

#[test]
#[ignore = "long: make test-os"]
fn a_committed_slot_that_is_never_well_gives_way_to_the_other_valid_one() {
    scenario::a_sick_committed_slot_gives_way(Board::Uboot);
}
