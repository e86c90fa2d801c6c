//! `copal-fleet-sim`: a fleet to try a cloud with.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its interface")]

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use copal_fleet_sim::{Fleet, Pace, Passed, Seen};

/// Pretends to be many devices of one fleet: real keys, real protocol, connections of their own, no engine.
///
/// Each device enrols, logs in, polls, holds a channel, verifies what it is assigned, reports, and tells events and hourly
/// summaries, as often as an agent does. Commands that act are told through their states and not done; questions are refused. All stops
/// with this program; the devices stay listed in the fleet.
#[derive(Parser)]
#[command(version)]
struct Words {
    /// A copal.json whose enrolment token may be used as often as there are devices
    /// (copal device config FLEET --uses N --out FILE)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Seconds within which they all come
    #[arg(long, value_name = "S", default_value_t = 10)]
    within: u64,
    /// Seconds to stay; 0 for until interrupted
    #[arg(long = "for", value_name = "S", default_value_t = 0)]
    seconds: u64,
    /// How many times as often as an agent they do what nobody asks for: polls (every 6 h beside a channel), looks for newer roots,
    /// reports of health (6 h), summaries (1 h). Pings stay as the cloud asks for them
    #[arg(long, value_name = "TIMES", default_value_t = 1.0)]
    hurry: f64,
    /// Seconds between events of each device that happen by themselves; 0 for none. Not hurried
    #[arg(long, value_name = "S", default_value_t = 0)]
    events_every: u64,
    /// Seconds between lines of output
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(Words::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: Words) -> anyhow::Result<()> {
    anyhow::ensure!(words.hurry > 0.0 && words.hurry <= 1e6, "--hurry is more than 0 and at most 1000000");
    let bytes =
        std::fs::read(&words.config).with_context(|| format!("reading {}", words.config.display()))?;
    let file = serde_json::from_slice(&bytes).context("the file is no copal.json")?;
    let start = Instant::now();
    let mut fleet = Fleet::enrol(file, words.devices as usize).await?;
    println!("{} devices enrolled in {:.1} s", words.devices, start.elapsed().as_secs_f64());
    let event = (words.events_every > 0).then(|| Duration::from_secs(words.events_every));
    fleet.set_pace(Pace { event, ..Pace::default().hurried(words.hurry) });
    fleet.connect(Duration::from_secs(words.within));
    let end = (words.seconds > 0).then(|| Instant::now() + Duration::from_secs(words.seconds));
    loop {
        print(start, fleet.seen());
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(words.every)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn print(start: Instant, seen: &Seen) {
    let n = |count: &AtomicU64| count.load(Relaxed);
    println!(
        "{:6.0} s  {} channels open, {} opened, {} told to wait, {} failed",
        start.elapsed().as_secs_f64(),
        n(&seen.connected),
        n(&seen.opened),
        n(&seen.refused),
        n(&seen.failed)
    );
    println!(
        "          {} polls ({} found nothing new), {} logins, {} hints, {} verified, {} reports ({} of what runs)",
        n(&seen.polls),
        n(&seen.unchanged),
        n(&seen.logins),
        n(&seen.hints),
        n(&seen.applied),
        n(&seen.reports),
        n(&seen.settled)
    );
    println!(
        "          stored {} events and {} items of telemetry of {} batches, {} commands ({} done)",
        n(&seen.events),
        n(&seen.telemetry),
        n(&seen.batches),
        n(&seen.commands),
        n(&seen.done)
    );
    let passed = |of: &Passed| {
        format!(
            "{} connections, {} kB sent, {} kB received",
            n(&of.connections),
            n(&of.sent) / 1000,
            n(&of.received) / 1000
        )
    };
    println!("          channels: {}; HTTP: {}", passed(&seen.channel), passed(&seen.http));
    if let Some(why) = seen.why() {
        println!("          last failure: {why}");
    }
}
