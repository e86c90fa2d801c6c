//! What a terminal costs the agent in memory.

use std::{process::Command, time::Duration};

use copal_e2e::{
    binary,
    cloud::Cloud,
    pty::Pty,
    repo::{STAY, Services},
    world::World,
};

use crate::{Row, row, status_kib};

/// Until what was begun is over.
const SETTLE: Duration = Duration::from_secs(10);
/// Bytes of output.
const OUTPUT: u64 = 20_000_000;

pub(crate) async fn rows() -> Vec<Row> {
    let mut world = World::on(Cloud::start_private_ca(&[]).await, &[]).await;
    world.join(None).await;
    let short = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";
    Services { services: &[("app", STAY, short)] }.write_to(&world.repo);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"/bin\"]\nCOPY run.sh /run.sh\n\
                      CMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";
    world.repo.write("app/Dockerfile", dockerfile);
    world.push_and_settle("works").await;
    tokio::time::sleep(SETTLE).await;
    let pid = world.devices[0].pid();
    let rss = |field: &str| status_kib(pid, field) * 1.024 / 1e3;
    let mut measured = vec![("before", rss("VmRSS:"), rss("RssAnon:"))];
    // What was the most until here is not the terminal's.
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");

    let mut command = Command::new(binary("copal"));
    command
        .args(["shell", &world.devices[0].prefix, "app", "--reason", "to see what it costs"])
        .env("COPAL_HOME", world.owner.home.path())
        .env_remove("COPAL_TOKEN")
        .env_remove("COPAL_URL");
    let mut pty = Pty::start(&command);
    pty.shows("# ").await;
    tokio::time::sleep(SETTLE).await;
    measured.push(("open and idle", rss("VmRSS:"), rss("RssAnon:")));
    pty.types(&format!("yes 0123456789abcdef | head -c {OUTPUT}; echo all-$((40+2))\r"));
    pty.shows("all-42").await;
    measured.push(("open, after 20 MB of output", rss("VmRSS:"), rss("RssAnon:")));
    pty.types("exit\r");
    pty.ends().await;
    tokio::time::sleep(SETTLE).await;
    measured.push(("closed", rss("VmRSS:"), rss("RssAnon:")));
    let rows = measured.into_iter().map(|(when, all, own)| {
        row(format!("agent RSS, terminal: {when} (of it its own memory)"), format!("{all:.1} MB ({own:.1})"))
    });
    rows.chain([row("  the most it was from then on", format!("{:.1} MB", rss("VmHWM:")))]).collect()
}
