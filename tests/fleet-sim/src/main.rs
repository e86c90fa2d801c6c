//! `copal-fleet-sim`: a fleet to try a cloud with.
#![allow(clippy::print_stdout, reason = "its output is its interface")]

use std::{
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use copal_fleet_sim::{Fleet, raise_file_limit};

/// Pretends to be many devices of one fleet: real keys, real protocol, no engine.
#[derive(Parser)]
struct Words {
    /// A copal.json whose enrolment token may be used as often as there are devices
    /// (copal device config --uses N)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How many devices
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// Seconds within which they all come
    #[arg(long, default_value_t = 10)]
    within: u64,
    /// Seconds to stay; 0 for until interrupted
    #[arg(long = "for", default_value_t = 0)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words = Words::parse();
    raise_file_limit()?;
    let bytes =
        std::fs::read(&words.config).with_context(|| format!("reading {}", words.config.display()))?;
    let file = serde_json::from_slice(&bytes).context("the file is no copal.json")?;
    let start = Instant::now();
    let mut fleet = Fleet::enrol(file, words.devices).await?;
    println!("{} devices enrolled in {:.1} s", words.devices, start.elapsed().as_secs_f64());
    fleet.connect(Duration::from_secs(words.within));
    let end = (words.seconds > 0).then(|| Instant::now() + Duration::from_secs(words.seconds));
    loop {
        let seen = fleet.seen();
        println!(
            "{:6.0} s  {} channels open, {} opened, {} told to wait, {} failed, {} hints, {} applied, {} reports, {} kB sent, {} kB received",
            start.elapsed().as_secs_f64(),
            seen.connected.load(Relaxed),
            seen.opened.load(Relaxed),
            seen.refused.load(Relaxed),
            seen.failed.load(Relaxed),
            seen.hints.load(Relaxed),
            seen.applied.load(Relaxed),
            seen.reports.load(Relaxed),
            seen.sent.load(Relaxed) / 1000,
            seen.received.load(Relaxed) / 1000,
        );
        if let Some(why) = seen.why() {
            println!("         last failure: {why}");
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
