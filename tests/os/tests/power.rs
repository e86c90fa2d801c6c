//! The power goes: at named moments, and at random ones with a fixed seed. Every time the disk is judged from outside
//! before the machine is turned on again, and every time the update is finished in the end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::time::Duration;

use copal_os_tests::{
    board::Board,
    machine::PATIENCE,
    shuttle::{Shuttle, at_the_boot_counter, changed, during_the_commit, during_the_write},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_power_goes_in_the_write_at_the_counter_and_in_the_commit() {
    let mut shuttle = Shuttle::start(Board::Uboot).await;
    let next = shuttle.once("during the write", during_the_write).await;
    assert!(!next.trial);
    assert!(shuttle.once("at the boot counter", at_the_boot_counter).await.trial);
    let next = shuttle.once("during the commit", during_the_commit).await;
    assert_eq!(next.image, shuttle.version);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn the_power_goes_at_every_named_moment() {
    Shuttle::start(Board::Uboot).await.every_named_moment().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn the_power_goes_at_random_moments() {
    let seed: u64 = std::env::var("COPAL_OS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let cuts: usize = std::env::var("COPAL_OS_CUTS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    println!("seed {seed}, {cuts} cuts");
    let mut random = seed;
    let mut shuttle = Shuttle::start(Board::Uboot).await;
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
    let mut shuttle = Shuttle::start(Board::Uboot).await;
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
