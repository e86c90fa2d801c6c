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
    let megabytes = |field| format!("{:.1} MB", status_kib(device.pid(), field) * 1024.0 / 1e6);
    vec![
        row("agent idle RSS, three services", megabytes("VmRSS:")).goal("<= 8 MB").peer("10.6 MB"),
        row("  of it its own memory (anonymous)", megabytes("RssAnon:")),
        row("agent idle CPU", format!("{cpu:.3} %")).peer("0.1 %"),
        row(format!("agent writes to disk per idle day (from {SECONDS} s)"), format!("{written:.0} B"))
            .goal("none when nothing changed"),
    ]
}
