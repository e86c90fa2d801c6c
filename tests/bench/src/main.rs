//! Numbers of the whole, one row each: what was measured, the value, and the peer's or the limit beside it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, reason = "a measuring program")]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod idle;
mod plan;
mod poll;
mod update;

use copal_e2e::binary;

/// A row of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) value: String,
    pub(crate) beside: String,
}

pub(crate) fn row(what: impl Into<String>, value: impl Into<String>, beside: impl Into<String>) -> Row {
    Row { what: what.into(), value: value.into(), beside: beside.into() }
}

fn print(rows: &[Row]) {
    for row in rows {
        println!("{:<58} {:>22}   {}", row.what, row.value, row.beside);
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

#[tokio::main]
async fn main() {
    println!("{:<58} {:>22}   beside", "what", "value");
    let size = std::fs::metadata(binary("copal-agent")).unwrap().len() as f64 / 1e6;
    print(&[row("agent binary, static", format!("{size:.2} MB"), "goal <= 8 MB; best peer 10.4 MB")]);
    print(&plan::rows());
    print(&poll::rows().await);
    print(&idle::rows().await);
    print(&update::rows().await);
}
