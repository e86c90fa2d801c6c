//! What is tried on more than one machine, from power on to the judgement of the disk.

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    board::Board,
    check::every_cut,
    disk::{self, Disk},
    images::image,
    machine::{Machine, Parts},
    replay::{self, Entry},
    state,
    world::{NAME, PATIENCE_S, World, runs_committed},
};

/// Seconds until the image's own guard ended the last boot of a trial that nobody judges: three times 120 and a boot.
const TRIALS_S: u64 = 540;

/// A machine at the factory's version, enrolled, and its world.
pub async fn factory(board: Board) -> (World, Machine) {
    let world = World::of(board).await;
    let machine = world.machine().await;
    world.committed("1.0.0").await;
    (world, machine)
}

/// A factory's disk that belongs to nobody, in a folder that goes with it.
pub fn factory_disk(board: Board) -> (TempDir, Disk) {
    let dir = tempfile::Builder::new().prefix("disk-").tempdir_in(board.folder()).unwrap();
    let disk = Disk::at(&board.built("disk.img")).copy_to(&dir.path().join("disk.img"));
    (dir, disk)
}

/// The same with a trial of an image in slot b, armed by hand.
pub fn on_trial(board: Board, version: &str, faults: &[&str]) -> (TempDir, Disk) {
    let (dir, disk) = factory_disk(board);
    disk.put_in_slot("b", &image(board, version, faults));
    let state = state::state(&disk.open()).unwrap();
    disk.set_state(&state.with("copal_trial", "1").with("copal_tries", "0"));
    (dir, disk)
}

/// A factory's disk and a copal.json: it joins its fleet, and makes its data partition once.
pub async fn it_joins_its_fleet(board: Board) {
    let world = World::of(board).await;
    let mut machine = world.machine().await;
    machine.booted("a");
    let device = world.online().await;
    assert_eq!(device["device_type"], board.device_type(), "{device}");
    // The state is on the data partition, which the first boot made, and the factory's mark is gone.
    assert!(machine.shell("grep ' /data ' /proc/mounts").contains("ext4"));
    assert!(machine.shell("ls -A /data/copal").lines().count() > 0);
    let made = machine.shell("stat -c %Y /data/lost+found");
    machine.cut();

    let mut machine = Machine::on(&machine.disk.path.clone());
    machine.booted("a");
    assert_eq!(machine.shell("stat -c %Y /data/lost+found"), made, "the data partition was made again");
}

/// A trial that panics: all its boots, then the committed slot, and the bootloader says why.
pub fn a_panic_uses_up_the_trial(board: Board) {
    let (_dir, disk) = on_trial(board, "2.0.0", &["panic"]);
    let mut machine = Machine::on(&disk.path);
    for _ in 0..3 {
        assert!(machine.booted("b").contains("trial=1"));
    }
    assert!(machine.booted("a").contains("trial=0"));
    let state = state::state(&disk.open()).unwrap();
    assert_eq!((state.committed(), state.on_trial(), state.get("copal_fell")), ("a", false, "tries"));
}

/// Trials that cannot start at all.
pub fn nothing_to_start_ends_in_the_committed_slot(board: Board) {
    for fault in ["nokernel", "gonekernel", "noinit"] {
        let (_dir, disk) = on_trial(board, "2.0.0", &[fault]);
        let mut machine = Machine::on(&disk.path);
        machine.booted("a");
        let state = state::state(&disk.open()).unwrap();
        assert_eq!((state.committed(), state.on_trial()), ("a", false), "{fault}: {state:?}");
    }
}

/// The committed slot panics in every boot, the other one is whole.
pub fn a_sick_committed_slot_gives_way(board: Board) {
    let (_dir, disk) = factory_disk(board);
    disk.put_in_slot("a", &image(board, "2.0.0", &["panic"]));
    disk.put_in_slot("b", &board.factory());
    let mut machine = Machine::on(&disk.path);
    machine.booted("a");
    assert!(machine.booted("b").contains("trial=1"));
    assert_eq!(state::state(&disk.open()).unwrap().get("copal_fell"), "sick");
}

/// Both copies of the boot state are no state any more: a slot without its head is not booted, whichever it is.
pub fn without_a_state_a_slot_that_is_not_valid_is_not_booted(board: Board) {
    for (valid, broken) in [("a", "b"), ("b", "a")] {
        let (_dir, disk) = factory_disk(board);
        if valid == "b" {
            // The same system in B, and A as an install leaves it that was cut: all there but its head.
            disk.put_in_slot("b", &board.factory());
            disk.damage(disk.place("root-a").0, &[0; 4096]);
        }
        assert!(!disk::bootable(&disk.open(), broken));
        for copy in 0..2 {
            disk.damage_state(copy);
        }
        let mut machine = Machine::on(&disk.path);
        machine.booted(valid);
    }
}

/// A good update: tried in the other slot, committed, and there after a power cut; what it came from was not touched.
pub async fn a_good_update_stays(board: Board) {
    let (world, mut machine) = factory(board).await;
    machine.booted("a");
    machine.shell("echo kept >/data/note && sync");
    world.roll_out("2.0.0", &[]).await;
    let line = machine.booted("b");
    assert!(line.contains("version=2.0.0") && line.contains("trial=1"), "{line}");
    let device = world.committed("2.0.0").await;
    assert!(device["os"]["reason"].is_null(), "{device}");

    machine.cut();
    let known = world.known(&[("2.0.0", &[])]).await;
    // The slot it came from was not touched: it is still there to go back to.
    assert_eq!(known.in_slot(&machine.disk.open(), "a"), Some("1.0.0"));
    let next = known.check(&machine.disk.open()).unwrap();
    assert_eq!((next.image.as_str(), next.slot.as_str(), next.trial), ("2.0.0", "b", false));

    let mut machine = Machine::on(&machine.disk.path.clone());
    assert!(machine.booted("b").contains("trial=0"));
    assert_eq!(machine.shell("cat /data/note"), "kept");
    world.committed("2.0.0").await;
}

/// Rolls out an image with a fault and waits until the device is back at the factory's version with this reason.
/// Gives the device as the cloud sees it.
pub async fn undone(board: Board, faults: &[&str], code: &str) -> Value {
    let (world, mut machine) = factory(board).await;
    let known = world.known(&[("2.0.0", faults)]).await;
    let id = world.roll_out("2.0.0", faults).await;
    let device = world
        .until_within(PATIENCE_S + TRIALS_S, &format!("back at 1.0.0 with {code}"), |d| {
            runs_committed(d, "1.0.0") && d["os"]["reason"]["code"] == code
        })
        .await;
    assert_eq!(device["os"]["target"]["release"], id.as_str(), "{device}");
    // What the cloud was told is so: the slot of old is whole, and boots.
    machine.cut();
    let next = known.check(&machine.disk.open()).unwrap();
    assert_eq!((next.image.as_str(), next.trial), ("1.0.0", false));
    device
}

/// One whole update from 1.0.0 to 2.0.0, as the disk saw it.
pub struct Recording {
    pub world: World,
    /// The disk before it.
    pub base: Disk,
    /// Every write and flush since.
    pub entries: Vec<Entry>,
}

/// Records an update, and judges the disk as a power cut after each write could have left it.
pub async fn every_prefix_of_an_update(board: Board) -> Recording {
    let world = World::of(board).await;
    let disk = world.disk(NAME).await;
    let base = disk.copy_to(&world.path("base.img"));
    let log = world.path("writes.log");
    std::fs::File::create(&log).unwrap();
    world.release(&world.bundle("2.0.0", &[]).await).await;
    let mut machine = Machine::with(&disk.path, &Parts { write_log: Some(log.clone()), ..Parts::default() });
    world.online().await;
    world.deploy("2.0.0").await;
    world.committed("2.0.0").await;
    machine.pull_plug_politely();

    let known = world.known(&[("2.0.0", &[])]).await;
    assert!(disk::bootable(&disk.open(), "b"));
    let entries = replay::read(&log);
    let seen = tokio::task::block_in_place(|| every_cut(&entries, &base, &known, "a"));
    // The update went through every state there is, or this proved nothing.
    for (image, trial) in [("1.0.0", false), ("2.0.0", true), ("2.0.0", false)] {
        assert!(seen.iter().any(|n| n.image == image && n.trial == trial), "{image} trial={trial}: {seen:?}");
    }
    Recording { world, base, entries }
}
