//! The power goes: at named moments, and at random ones with a fixed seed. Every time the disk is judged from outside
//! before the machine is turned on again, and every time the update is finished in the end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::time::Duration;

use copal_os_tests::{
    check::{Known, Next},
    disk::{self, Bytes as _, Disk},
    machine::{Machine, PATIENCE},
    world::{World, image_of},
};

/// A device that goes back and forth between two versions, with the power going on the way.
struct Shuttle {
    world: World,
    known: Known,
    machine: Machine,
    version: &'static str,
}

impl Shuttle {
    async fn start() -> Self {
        let world = World::new().await;
        let machine = world.machine().await;
        let (two, three) = (image_of("2.0.0", &[]).await, image_of("3.0.0", &[]).await);
        let known = Known::images(&[
            ("1.0.0", &copal_os_tests::built("images/factory.ext4")),
            ("2.0.0", &two),
            ("3.0.0", &three),
        ]);
        world.committed("1.0.0").await;
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
    async fn once(&mut self, what: &str, cut: impl FnOnce(&mut Machine, &str) + Send + 'static) -> Next {
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
}

/// Whether the slot's bytes at a place (MiB into it) differ from what they were.
fn changed(slot: &str, mib: u64, disk: &Disk) -> impl Fn(&Disk) -> bool + 'static {
    let at = disk::partitions()[&format!("root-{slot}")].0 + (mib << 20);
    let read = move |disk: &Disk| {
        let mut bytes = vec![0; 64 << 10];
        disk.open().read(at, &mut bytes).unwrap();
        bytes
    };
    let before = read(disk);
    move |disk| read(disk) != before
}

fn during_the_write(machine: &mut Machine, to: &str) {
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
        let [one, two] = disk::states(&disk.open());
        one != two && [one, two].into_iter().flatten().any(|state| state.on_trial())
    }));
}

fn at_the_boot_counter(machine: &mut Machine, _: &str) {
    machine.cut_at("trial=1 tries=");
    machine.wait_cut();
}

fn in_the_trial(machine: &mut Machine, _: &str) {
    machine.cut_at("trial=1 up=");
    machine.wait_cut();
}

fn during_the_commit(machine: &mut Machine, to: &str) {
    let slot = to.to_owned();
    assert!(machine.cut_when(PATIENCE, move |disk| {
        disk::states(&disk.open()).into_iter().flatten().any(|state| state.committed() == slot)
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_goes_in_the_write_at_the_counter_and_in_the_commit() {
    let mut shuttle = Shuttle::start().await;
    let next = shuttle.once("during the write", during_the_write).await;
    assert!(!next.trial);
    assert!(shuttle.once("at the boot counter", at_the_boot_counter).await.trial);
    let next = shuttle.once("during the commit", during_the_commit).await;
    assert_eq!(next.image, shuttle.version);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn the_power_goes_at_every_named_moment() {
    let mut shuttle = Shuttle::start().await;
    assert!(!shuttle.once("during the write", during_the_write).await.trial);
    assert!(!shuttle.once("after the head is written", after_the_head_is_written).await.trial);
    shuttle.once("between the copies of the boot state", between_the_copies_of_the_boot_state).await;
    assert!(shuttle.once("at the boot counter", at_the_boot_counter).await.trial);
    assert!(shuttle.once("in the trial", in_the_trial).await.trial);
    assert_eq!(shuttle.once("during the commit", during_the_commit).await.image, shuttle.version);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn the_power_goes_at_random_moments() {
    let seed: u64 = std::env::var("COPAL_OS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let cuts: usize = std::env::var("COPAL_OS_CUTS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    println!("seed {seed}, {cuts} cuts");
    let mut random = seed;
    let mut shuttle = Shuttle::start().await;
    for number in 0..cuts {
        // A generator from a textbook: the same moments on every run, as far as the machine's speed allows.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_millis((random >> 33) % 25_000);
        shuttle
            .once(&format!("no. {number}, {wait:?} after the deployment"), move |machine, _| {
                std::thread::sleep(wait);
                machine.cut();
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn an_install_that_was_cut_goes_on_where_it_was() {
    let mut shuttle = Shuttle::start().await;
    shuttle.world.link.slow(true);
    let before = shuttle.world.link.down_bytes();
    shuttle
        .once("well into the write", |machine, to| {
            let probe = changed(to, 70, &machine.disk);
            assert!(machine.cut_when(PATIENCE, probe));
        })
        .await;
    let twice = shuttle.world.link.down_bytes() - before;
    println!("bytes towards the machine, with a cut well into the write: {twice}");
}
