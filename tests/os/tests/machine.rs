//! The machine itself: it boots, joins a fleet, and its boot state survives what a power cut does to it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use copal_os_tests::{
    built,
    disk::{self, Disk, STATE_BYTES, STATE_OFFSETS},
    images::image,
    machine::Machine,
    world::World,
};

fn factory_disk() -> (tempfile::TempDir, Disk) {
    let dir =
        tempfile::Builder::new().prefix("disk-").tempdir_in(built("disk.img").parent().unwrap()).unwrap();
    let disk = Disk::at(&built("disk.img")).copy_to(&dir.path().join("disk.img"));
    (dir, disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_factory_disk_with_a_copal_json_joins_its_fleet() {
    let world = World::new().await;
    let mut machine = world.machine().await;
    machine.booted("a");
    let device = world.online().await;
    assert_eq!(device["device_type"], "qemu-arm64", "{device}");
    // The state is on the data partition, which the first boot made, and the factory's mark is gone.
    assert!(machine.shell("grep ' /data ' /proc/mounts").contains("ext4"));
    assert!(machine.shell("ls -A /data/copal").lines().count() > 0);
    let made = machine.shell("stat -c %Y /data/lost+found");
    machine.cut();

    let mut machine = Machine::on(&machine.disk.path.clone());
    machine.booted("a");
    assert_eq!(machine.shell("stat -c %Y /data/lost+found"), made, "the data partition was made again");
}

#[test]
fn a_boot_is_counted_before_the_kernel_starts() {
    let (_dir, disk) = factory_disk();
    let machine = Machine::on(&disk.path);
    machine.cut_at("Starting kernel");
    let mut machine = machine;
    machine.wait_cut();
    let state = disk::state(&disk.open()).unwrap();
    assert_eq!((state.committed(), state.on_trial(), state.number("copal_tries")), ("a", false, 1));
    assert_eq!(disk::states(&disk.open())[0], disk::states(&disk.open())[1], "both copies hold the count");
}

#[test]
fn one_damaged_copy_of_the_boot_state_changes_nothing() {
    for copy in STATE_OFFSETS {
        let (_dir, disk) = factory_disk();
        disk.damage(copy, &[0xa5; STATE_BYTES]);
        let mut machine = Machine::on(&disk.path);
        machine.booted("a");
        machine.cut();
        assert!(disk::states(&disk.open()).iter().all(Option::is_some), "both copies are whole again");
    }
}

#[test]
fn with_both_copies_damaged_a_slot_that_is_not_valid_is_not_booted() {
    for (valid, broken) in [("a", "b"), ("b", "a")] {
        let (_dir, disk) = factory_disk();
        let places = disk::partitions();
        if valid == "b" {
            // The same system in B, and A as an install leaves it that was cut: all there but its head.
            disk.put_in_slot("b", &built("images/factory.ext4"));
            disk.damage(places["root-a"].0, &[0; 4096]);
        }
        assert!(!disk::bootable(&disk.open(), broken));
        for copy in STATE_OFFSETS {
            disk.damage(copy, &[0xa5; STATE_BYTES]);
        }
        let mut machine = Machine::on(&disk.path);
        machine.booted(valid);
    }
}

/// A disk with a trial of an image armed by hand.
fn on_trial(version: &str, faults: &[&str]) -> (tempfile::TempDir, Disk) {
    let (dir, disk) = factory_disk();
    disk.put_in_slot("b", &image(version, faults));
    let state = disk::state(&disk.open()).unwrap();
    disk.set_state(&state.with("copal_trial", "1").with("copal_tries", "0"));
    (dir, disk)
}

#[test]
fn a_trial_that_panics_uses_up_its_boots_and_ends_in_the_committed_slot() {
    let (_dir, disk) = on_trial("2.0.0", &["panic"]);
    let mut machine = Machine::on(&disk.path);
    for _ in 0..3 {
        assert!(machine.booted("b").contains("trial=1"));
    }
    assert!(machine.booted("a").contains("trial=0"));
    let state = disk::state(&disk.open()).unwrap();
    assert_eq!((state.committed(), state.on_trial(), state.get("copal_fell")), ("a", false, "tries"));
}

#[test]
#[ignore = "long: make test-os"]
fn a_trial_without_a_kernel_or_an_init_ends_in_the_committed_slot() {
    for fault in ["nokernel", "noinit"] {
        let (_dir, disk) = on_trial("2.0.0", &[fault]);
        let mut machine = Machine::on(&disk.path);
        machine.booted("a");
        let state = disk::state(&disk.open()).unwrap();
        assert_eq!((state.committed(), state.on_trial()), ("a", false), "{fault}: {state:?}");
    }
}

#[test]
#[ignore = "long: make test-os"]
fn a_committed_slot_that_is_never_well_gives_way_to_the_other_valid_one() {
    let (_dir, disk) = factory_disk();
    disk.put_in_slot("a", &image("2.0.0", &["panic"]));
    disk.put_in_slot("b", &built("images/factory.ext4"));
    let mut machine = Machine::on(&disk.path);
    machine.booted("a");
    assert!(machine.booted("b").contains("trial=1"));
    assert_eq!(disk::state(&disk.open()).unwrap().get("copal_fell"), "sick");
}
