//! Numbers of the whole, one row each: what was measured, the value, and the goal and the peer beside it.
//!
//! In: the programs, built as they are shipped (`run.sh` does that), and a real engine. Out: one table. Nothing is asserted
//! about a number. A measurement that could not be made says so in its row, the others are made all the same, and the
//! program ends with 1.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, reason = "a measuring program")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod fleet;
mod hint;
mod idle;
mod mend;
mod plan;
mod poll;
mod terminal;
mod update;

use std::{future::Future, process::ExitCode};

use copal_e2e::{binary, engine};

const WORDS: [&str; 10] =
    ["size", "plan", "poll", "idle", "mend", "update", "hint", "terminal", "fleet", "fleet10k"];
/// What a row says whose measurement could not be made.
const MISSING: &str = "not measured";

/// A row of the table.
pub(crate) struct Row {
    what: String,
    value: String,
    goal: String,
    peer: String,
}

pub(crate) fn row(what: impl Into<String>, value: impl Into<String>) -> Row {
    Row { what: what.into(), value: value.into(), goal: String::new(), peer: String::new() }
}

/// A row whose measurement could not be made, and why.
pub(crate) fn missing(what: impl Into<String>, why: impl Into<String>) -> Row {
    row(what, MISSING).goal(why)
}

impl Row {
    pub(crate) fn goal(self, goal: impl Into<String>) -> Self {
        Self { goal: goal.into(), ..self }
    }

    pub(crate) fn peer(self, peer: impl Into<String>) -> Self {
        Self { peer: peer.into(), ..self }
    }

    fn print(&self) {
        let line = format!("{:<58} {:>14}   {:<30} {}", self.what, self.value, self.goal, self.peer);
        println!("{}", line.trim_end());
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    percentile(values, 50.0)
}

pub(crate) fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a short list")]
    let index = ((values.len() - 1) as f64 * p / 100.0).round() as usize;
    values[index]
}

/// User and system seconds a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
    ticks / hz
}

/// A field of `/proc/<pid>/status`, in KiB.
pub(crate) fn status_kib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the numbers depend on and a reader cannot know.
fn conditions() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let docker = engine::docker(None, &["version", "--format", "{{.Server.Version}}"]);
    format!(
        "{} {cpus} CPUs, load before {load}, Linux {}, Docker {}",
        std::env::consts::ARCH,
        kernel.trim(),
        docker.trim()
    )
}

async fn size() -> Vec<Row> {
    let size = std::fs::metadata(binary("copal-agent")).unwrap().len() as f64 / 1e6;
    vec![row("agent binary, static", format!("{size:.2} MB")).goal("<= 8 MB").peer("10.4 MB")]
}

/// Makes a measurement and prints its rows, if it is among the words given or none is. Whether it could be made.
async fn measure(what: &str, rows: impl Future<Output = Vec<Row>> + Send + 'static) -> bool {
    if std::env::args().len() > 1 && !std::env::args().skip(1).any(|word| word == what) {
        return true;
    }
    match tokio::spawn(rows).await {
        Ok(rows) => {
            rows.iter().for_each(Row::print);
            rows.iter().all(|row| row.value != MISSING)
        }
        // The panic said why, to stderr.
        Err(_) => {
            row(what, MISSING).print();
            false
        }
    }
}

/// Another size of the smaller fleet, to try the measurement itself.
fn devices() -> Option<usize> {
    std::env::var("COPAL_BENCH_DEVICES").ok()?.parse().ok()
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Some(word) = std::env::args().skip(1).find(|word| !WORDS.contains(&word.as_str())) {
        eprintln!("no such measurement: {word} ({})", WORDS.join(", "));
        return ExitCode::from(2);
    }
    println!("{}", conditions());
    row("what", "value").goal("goal").peer("peer").print();
    // One after the other: each would disturb the others' times.
    let mut all = measure("size", size()).await;
    all &= measure("plan", async { plan::rows() }).await;
    all &= measure("poll", poll::rows()).await;
    all &= measure("idle", idle::rows()).await;
    all &= measure("mend", mend::rows()).await;
    all &= measure("update", update::rows()).await;
    all &= measure("hint", hint::rows()).await;
    all &= measure("terminal", terminal::rows()).await;
    all &= measure("fleet", fleet::rows(devices().unwrap_or(2_000))).await;
    all &= measure("fleet10k", fleet::rows(10_000)).await;
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
