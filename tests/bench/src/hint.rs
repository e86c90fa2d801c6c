//! How soon a change of a variable is on a device: a real agent, a real engine, TLS by a private authority. The image is on the device
//! already, so that nothing but the way there and the container is measured.
//!
//! When the hint goes out is seen by a pretended device of the same fleet, in this process; when the container runs, the engine tells.

use std::time::{Duration, Instant};

use copal_e2e::{
    cloud::Cloud,
    engine, eventually,
    repo::{STAY, Services},
    world::World,
};
use serde_json::json;

use crate::{
    Row, median,
    mend::{Events, now},
    percentile, row,
};

const ROUNDS: usize = 10;

pub(crate) async fn rows() -> Vec<Row> {
    let mut world = World::on(Cloud::start_private_ca(&[]).await, &[]).await;
    world.join(None).await;
    let short = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";
    Services { services: &[("app", STAY, short)] }.write_to(&world.repo);
    let release = world.push_and_settle("works").await;
    let mut witness = world.simulate(1).await;
    witness.connect(Duration::ZERO);
    let there = witness.until(Duration::from_secs(60), |seen| {
        use std::sync::atomic::Ordering::Relaxed;
        seen.connected.load(Relaxed) == 1 && seen.settled.load(Relaxed) == 1
    });
    assert!(there.await, "the witness: {:?}", witness.seen());
    let prefix = world.devices[0].prefix.clone();
    let (mut asked, mut applied, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        world.on_target(&release).await;
        // Nothing of the change before is under way any more.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let old = world.service(0, "app").await["Id"].as_str().unwrap().to_owned();
        witness.seen().forget_moments();
        let (since, began) = (now(), Instant::now());
        let value = format!("ROUND={round}");
        world.owner.ok(&["env", "set", &value, "--fleet", "porch"]).await;
        let new = eventually("the service runs with the new value", 60, || async {
            let found = engine::service(&prefix, "app", None).filter(|c| c["Id"] != old.as_str());
            let container = found.ok_or("no new container")?;
            let env = container["Config"]["Env"].as_array().cloned().unwrap_or_default();
            if env.contains(&json!(value)) { Ok(container) } else { Err(format!("{env:?}")) }
        })
        .await;
        let events = Events::between(since, now());
        let runs = events.last("start", |e| e["Actor"]["ID"] == new["Id"]) - since.as_secs_f64();
        let hint = witness.seen().since(began).0.first().expect("a hint").as_secs_f64();
        asked.push(hint);
        applied.push(runs - hint);
        whole.push(runs);
    }
    let rows = |what: &str, times: &mut [f64]| {
        let (middle, late) = (median(times), percentile(times, 95.0));
        row(format!("{what} (median, p95 of {ROUNDS})"), format!("{middle:.3}, {late:.3} s"))
    };
    vec![
        rows("from `copal env set` to the hint", &mut asked).goal("< 1 s: a deploy reaches a device"),
        rows("from the hint to the running container", &mut applied),
        rows("from `copal env set` to the running container", &mut whole),
    ]
}
