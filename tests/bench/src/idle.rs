//! What an agent with nothing to do costs.

use std::time::Duration;

use copal_e2e::{
    repo::{STAY, Services},
    world::World,
};

use crate::{Row, cpu_seconds, row, status_kib};

const SECONDS: u64 = 90;

pub(crate) async fn rows() -> Vec<Row> {
    let world = World::new(1).await;
    let short = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";
    Services { services: &[("one", STAY, short), ("two", STAY, short), ("three", STAY, short)] }
        .write_to(&world.repo);
    world.push_and_settle("works").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let device = &world.devices[0];
    let (written, cpu) = (device.written_bytes(), cpu_seconds(device.pid()));
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let days = SECONDS as f64 / 86_400.0;
    let written = (device.written_bytes() - written) as f64 / days;
    let cpu = (cpu_seconds(device.pid()) - cpu) / SECONDS as f64 * 100.0;
    vec![
        row(
            "agent idle RSS, three services",
            format!("{:.1} MB", status_kib(device.pid(), "VmRSS:") * 1024.0 / 1e6),
            "goal <= 8 MB; best peer 10.6 MB",
        ),
        row(
            "  of it its own memory (anonymous)",
            format!("{:.1} MB", status_kib(device.pid(), "RssAnon:") * 1024.0 / 1e6),
            "",
        ),
        row("agent idle CPU", format!("{cpu:.3} %"), "best peer 0.1 %"),
        row(
            "agent writes to disk per idle day",
            format!("{written:.0} B"),
            format!("limit: none when nothing changed (extrapolated from {SECONDS} s)"),
        ),
    ]
}
