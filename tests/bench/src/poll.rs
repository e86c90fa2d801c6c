//! What a poll that finds nothing new costs the cloud.

use std::time::Instant;

use copal_e2e::{
    repo::{STAY, Services},
    world::World,
};

use crate::{Row, cpu_seconds, row};

const POLLS: u32 = 20_000;

pub(crate) async fn rows() -> Vec<Row> {
    let mut world = World::new(1).await;
    Services { services: &[("app", STAY, "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s")] }
        .write_to(&world.repo);
    world.push_and_settle("works").await;
    // Speak as the device: stop its agent, log in with its key from its own state folder.
    world.devices[0].stop().await;
    let session = copal_agent::bench::session(&world.devices[0].state_dir(), &world.cloud.url).await;

    let http = copal_e2e::http();
    let url = format!("{}/device/v1/state", world.cloud.url);
    let first = http.get(&url).bearer_auth(&session).send().await.unwrap();
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    let poll = || http.get(&url).bearer_auth(&session).header("if-none-match", &etag).send();
    for _ in 0..500 {
        assert_eq!(poll().await.unwrap().status(), 304);
    }
    let (cpu, began) = (cpu_seconds(world.cloud.pid()), Instant::now());
    for _ in 0..POLLS {
        assert_eq!(poll().await.unwrap().status(), 304);
    }
    let micros = (cpu_seconds(world.cloud.pid()) - cpu) * 1e6 / f64::from(POLLS);
    let rate = f64::from(POLLS) / began.elapsed().as_secs_f64();
    vec![row(
        "CPU of the cloud per 304 poll, no TLS",
        format!("{micros:.1} µs"),
        format!("goal <= 50 µs; peer 13,000-18,000 µs ({rate:.0}/s on one connection)"),
    )]
}
