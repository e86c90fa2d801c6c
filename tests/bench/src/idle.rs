//! What an agent with nothing to do costs.

use std::time::Duration;

use copal_e2e::{
    device::Device,
    repo::{STAY, Services},
    world::World,
};

use crate::{Row, cpu_seconds, row, status_kib};

const SECONDS: u64 = 90;
/// A minute after an update health checks are made, and may take 10 s. What they find for the first time is news and is written down;
/// and after them the process has touched whatever it touches while idle.
const CHECKED: Duration = Duration::from_secs(80);
/// Seconds between rounds of health checks, and between summaries of metrics, on a device that makes those of days in a minute.
const HURRY: u64 = 5;
const ROUNDS: u64 = 12;

pub(crate) async fn rows() -> Vec<Row> {
    let mut world = World::new(0).await;
    world.join_as(quiet(), None).await;
    let short = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";
    Services { services: &[("one", STAY, short), ("two", STAY, short), ("three", STAY, short)] }
        .write_to(&world.repo);
    let release = world.push_and_settle("works").await;
    tokio::time::sleep(CHECKED).await;
    let device = &world.devices[0];
    let (written, cpu) = (device.written_bytes(), cpu_seconds(device.pid()));
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let days = SECONDS as f64 / 86_400.0;
    let written = (device.written_bytes() - written) as f64 / days;
    let cpu = (cpu_seconds(device.pid()) - cpu) / SECONDS as f64 * 100.0;
    let megabytes = |field| format!("{:.1} MB", status_kib(device.pid(), field) * 1024.0 / 1e6);
    let mut rows = vec![
        row("agent idle RSS, three services", megabytes("VmRSS:")).goal("<= 8 MB").peer("10.6 MB"),
        row("  of it its own memory (anonymous)", megabytes("RssAnon:")),
        row("agent idle CPU", format!("{cpu:.3} %")).peer("0.1 %"),
        row(format!("agent writes to disk per idle day (from {SECONDS} s)"), format!("{written:.0} B"))
            .goal("none when nothing changed"),
    ];
    let hurry = HURRY.to_string();
    let often = quiet().with_env("COPAL_CHECK_EVERY", &hurry).with_env("COPAL_METRICS_EVERY_S", &hurry);
    world.join_as(often, None).await;
    world.on_target(&release).await;
    let rounds = Duration::from_secs(HURRY * ROUNDS);
    tokio::time::sleep(rounds / 2).await;
    let device = &world.devices[1];
    let (written, cpu) = (device.written_bytes(), cpu_seconds(device.pid()));
    tokio::time::sleep(rounds).await;
    let written = device.written_bytes() - written;
    let cpu = (cpu_seconds(device.pid()) - cpu) / ROUNDS as f64 * 1e3;
    rows.extend([
        row(format!("  written by {ROUNDS} rounds of checks and summaries"), format!("{written} B"))
            .goal("none when nothing changed"),
        row("  CPU of one round of checks and a summary", format!("{cpu:.0} ms")),
        row("  RSS after them", format!("{:.1} MB", status_kib(device.pid(), "VmRSS:") * 1024.0 / 1e6)),
    ]);
    rows
}

/// A device whose agent logs what it logs in the field; where its log goes to the journal, here it is a file of its own.
fn quiet() -> Device {
    Device::new().with_env("RUST_LOG", "info")
}
