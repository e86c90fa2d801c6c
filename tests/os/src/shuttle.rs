//! Updates back and forth with the power going on the way. Every time the disk is judged from outside before the machine is
//! turned on again, and every time the update is finished in the end.

use crate::{
    board::Board,
    check::{Known, Next},
    disk::{self, Bytes as _, Disk},
    machine::{Machine, PATIENCE},
    scenario::factory,
    state,
    world::World,
};

/// A device that goes back and forth between two versions, with the power going on the way.
pub struct Shuttle {
    pub world: World,
    known: Known,
    machine: Machine,
    pub version: &'static str,
}

impl Shuttle {
    pub async fn start(board: Board) -> Self {
        let (world, machine) = factory(board).await;
        let known = world.known(&[("2.0.0", &[]), ("3.0.0", &[])]).await;
        for version in ["2.0.0", "3.0.0"] {
            world.release(&world.bundle(version, &[]).await).await;
        }
        Self { world, known, machine, version: "1.0.0" }
    }

    fn disk(&self) -> Disk {
        Disk::at(&self.machine.disk.path)
    }

    fn running_slot(&self) -> String {
        self.known.check(&self.disk().open()).unwrap().slot
    }

    /// Deploys the other version, cuts the power as `cut` says, judges the disk, and sees the update through.
    /// Gives what the disk would have booted.
    pub async fn once(&mut self, what: &str, cut: impl FnOnce(&mut Machine, &str) + Send + 'static) -> Next {
        let from = self.running_slot();
        let to = if from == "a" { "b" } else { "a" };
        self.version = if self.version == "2.0.0" { "3.0.0" } else { "2.0.0" };
        self.world.deploy(self.version).await;
        // Blocking, beside the runtime that carries the machine's network.
        tokio::task::block_in_place(|| cut(&mut self.machine, to));
        let next = self.known.check(&self.disk().open()).unwrap_or_else(|e| panic!("cut {what}: {e}"));
        self.machine = Machine::on(&self.machine.disk.path.clone());
        tokio::task::block_in_place(|| self.machine.line("copal-os: version="));
        self.world.committed(self.version).await;
        println!(
            "cut {what}: slot {} ({}) trial={} was to boot; finished in {}",
            next.slot, next.image, next.trial, self.version
        );
        next
    }

    /// The power goes at each moment that has a name, and the disk is what the moment says.
    pub async fn every_named_moment(mut self) {
        assert!(!self.once("during the write", during_the_write).await.trial);
        assert!(!self.once("after the head is written", after_the_head_is_written).await.trial);
        self.once("between the copies of the boot state", between_the_copies_of_the_boot_state).await;
        assert!(self.once("at the boot counter", at_the_boot_counter).await.trial);
        assert!(self.once("in the trial", in_the_trial).await.trial);
        assert_eq!(self.once("during the commit", during_the_commit).await.image, self.version);
    }
}

/// Whether the slot's bytes at a place (MiB into it) differ from what they were.
pub fn changed(slot: &str, mib: u64, disk: &Disk) -> impl Fn(&Disk) -> bool + 'static {
    let at = disk.place(&format!("root-{slot}")).0 + (mib << 20);
    let read = move |disk: &Disk| {
        let mut bytes = vec![0; 64 << 10];
        disk.open().read(at, &mut bytes).unwrap();
        bytes
    };
    let before = read(disk);
    move |disk| read(disk) != before
}

pub fn during_the_write(machine: &mut Machine, to: &str) {
    // The file system of a version of its own lies somewhere in here; the head goes first of all.
    let slot = to.to_owned();
    assert!(machine.cut_when(PATIENCE, move |disk| !disk::bootable(&disk.open(), &slot)));
}

fn after_the_head_is_written(machine: &mut Machine, to: &str) {
    let slot = to.to_owned();
    let mut gone = false;
    assert!(machine.cut_when(PATIENCE, move |disk| {
        let there = disk::bootable(&disk.open(), &slot);
        gone |= !there;
        gone && there
    }));
}

fn between_the_copies_of_the_boot_state(machine: &mut Machine, _: &str) {
    assert!(machine.cut_when(PATIENCE, |disk| {
        let [one, two] = state::states(&disk.open());
        one != two && [one, two].into_iter().flatten().any(|state| state.on_trial())
    }));
}

pub fn at_the_boot_counter(machine: &mut Machine, _: &str) {
    machine.cut_at("trial=1 tries=");
    machine.wait_cut();
}

fn in_the_trial(machine: &mut Machine, _: &str) {
    machine.cut_at("trial=1 up=");
    machine.wait_cut();
}

pub fn during_the_commit(machine: &mut Machine, to: &str) {
    let slot = to.to_owned();
    assert!(machine.cut_when(PATIENCE, move |disk| {
        state::states(&disk.open()).into_iter().flatten().any(|state| state.committed() == slot)
    }));
}
