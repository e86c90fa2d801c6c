//! Every write and flush of one whole update, recorded; and the disk as a power cut after each of them could have left
//! it, judged against the invariants. A sample of those disks is booted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::path::Path;

use copal_os_tests::{
    board::Board,
    built,
    check::{Known, every_cut},
    disk::Disk,
    journal,
    machine::{Machine, Parts},
    replay::{self, Entry, Replay},
    scenario::{self, Recording},
    world::World,
};

/// Disks that are booted by default, and by `make test-os`.
fn boots() -> usize {
    if std::env::var_os("COPAL_OS_FULL").is_some() { 16 } else { 2 }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prefix_of_an_update_boots_a_whole_verified_slot() {
    let Recording { world, base, entries } = scenario::every_prefix_of_an_update(Board::Uboot).await;
    let image = world.image("2.0.0", &[]).await;
    tokio::task::block_in_place(|| {
        if std::env::var_os("COPAL_OS_FULL").is_some() {
            check_journals(&entries, &base, &world, &image);
        }
        boot_sample(&entries, &base, &world);
    });
}

/// Reads the journal as it was at moments spread over the installation, and compares what it claims with the slot (I6).
fn check_journals(entries: &[Entry], base: &Disk, world: &World, image: &Path) {
    let (start, size) = base.place("root-b");
    let of_slot = |entry: &Entry| matches!(entry, Entry::Write { offset, .. } if (start..start + size).contains(offset));
    let first = entries.iter().position(of_slot).unwrap();
    let last = entries.iter().rposition(of_slot).unwrap();
    let (mut replay, mut claims) = (Replay::from(&base.path), Vec::new());
    let step = ((last - first) / 40).max(1);
    for (number, entry) in entries.iter().enumerate().take(last + 2) {
        replay.apply(entry);
        if number < first || (number - first) % step != 0 {
            continue;
        }
        // The claim survives as well as it can, what it is about as badly as it can: the data partition has all that was
        // written, the slot only what was flushed. And the other way round, as a disk that reorders nothing.
        for slot_too in [false, true] {
            let copy = base.copy_to(&world.path("journal.img"));
            replay
                .cut_where(|offset| slot_too || !(start..start + size).contains(&offset))
                .write_onto(&copy.path);
            match journal::check(&copy, "b", image) {
                Ok(count) => claims.push(count),
                Err(why) => panic!("after record {number}: {why} (I6)"),
            }
        }
    }
    println!("journals read: {}, chunks claimed: {claims:?}", claims.len());
    assert!(claims.iter().any(|count| *count > 0), "no journal ever claimed anything");
}

#[test]
fn every_prefix_of_a_first_boot_boots_and_makes_the_data_partition() {
    let dir =
        tempfile::Builder::new().prefix("first-").tempdir_in(built("disk.img").parent().unwrap()).unwrap();
    let base = Disk::at(&built("disk.img")).copy_to(&dir.path().join("base.img"));
    let disk = base.copy_to(&dir.path().join("disk.img"));
    let log = dir.path().join("writes.log");
    std::fs::File::create(&log).unwrap();
    let mut machine = Machine::with(&disk.path, &Parts { write_log: Some(log.clone()), ..Parts::default() });
    machine.line("copal-os: network");
    machine.shell("sync");
    machine.pull_plug_politely();

    let entries = replay::read(&log);
    let known = Known::images(&[("1.0.0", &built("images/factory.ext4"))]);
    let seen = every_cut(&entries, &base, &known, "a");
    assert_eq!(seen.len(), 1, "{seen:?}");
    // Cut while the data partition was being made: it is made again, and mounted.
    let (start, size) = base.place("data");
    let making = entries.iter().enumerate().filter(
        |(_, entry)| matches!(entry, Entry::Write { offset, .. } if (start..start + size).contains(offset)),
    );
    let making: Vec<usize> = making.map(|(number, _)| number).collect();
    for part in 1..=boots() {
        let until = making[making.len() * part / (boots() + 1)];
        let mut replay = Replay::from(&base.path);
        entries[..=until].iter().for_each(|entry| replay.apply(entry));
        let copy = base.copy_to(&dir.path().join("sample.img"));
        replay.cut(|_, _| 0).write_onto(&copy.path);
        let mut machine = Machine::on(&copy.path);
        machine.booted("a");
        machine.line("copal-os: network");
        assert!(machine.shell("grep ' /data ' /proc/mounts").contains("ext4"), "cut after record {until}");
    }
}

/// Boots disks from moments spread over the log, each with nothing that was not flushed.
fn boot_sample(entries: &[Entry], base: &Disk, world: &World) {
    for number in 0..boots() {
        let until = entries.len() * (number * 2 + 1) / (boots() * 2);
        let mut replay = Replay::from(&base.path);
        for entry in &entries[..until] {
            replay.apply(entry);
        }
        let copy = base.copy_to(&world.path("sample.img"));
        replay.cut(|_, _| 0).write_onto(&copy.path);
        let mut machine = Machine::on(&copy.path);
        let line = machine.line("copal-os: version=");
        println!("cut after record {until}: {line}");
        machine.cut();
    }
}
