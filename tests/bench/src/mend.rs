//! How long what someone removed by hand is away.
//!
//! Both ends are the engine's own events: from `destroy` of what was removed to the start of what replaces it. The agent's
//! word is not asked for, and how long the client takes is not counted.

use std::time::Duration;

use copal_e2e::{
    engine, eventually,
    repo::{STAY, Services},
    world::World,
};
use serde_json::Value;

use crate::{Row, median, percentile, row};

const ROUNDS: usize = 12;
const SERVICES: [&str; 2] = ["app", "side"];

pub(crate) async fn rows() -> Vec<Row> {
    let world = World::new(1).await;
    let short = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";
    Services { services: &SERVICES.map(|name| (name, STAY, short)) }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let (mut containers, mut networks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        containers.push(container(&world).await);
        networks.push(network(&world).await);
    }
    let rows = |what: &str, times: &mut [f64]| {
        [("median", median(times)), ("max", percentile(times, 100.0))].map(|(kind, seconds)| {
            row(format!("{what} removed by hand is back ({kind} of {ROUNDS})"), format!("{seconds:.2} s"))
                .goal("<= 2 s after the event")
        })
    };
    [rows("a container", &mut containers), rows("a network", &mut networks)].into_iter().flatten().collect()
}

/// Seconds from a container's end to the start of its successor.
async fn container(world: &World) -> f64 {
    let before = settled(world, "").await;
    let old = before[0]["Id"].as_str().unwrap().to_owned();
    let since = now();
    engine::docker(None, &["rm", "-f", &old]);
    let after = settled(world, &old).await;
    let new = after[0]["Id"].as_str().unwrap();
    let events = Events::between(since, now());
    events.last("start", |e| e["Actor"]["ID"] == new) - events.last("destroy", |e| e["Actor"]["ID"] == *old)
}

/// Seconds from a network's end until every service is on its successor.
async fn network(world: &World) -> f64 {
    let device = &world.devices[0];
    let before = settled(world, "").await;
    let (name, _) = before[0]["NetworkSettings"]["Networks"].as_object().unwrap().iter().next().unwrap();
    let since = now();
    // An engine removes no network in use, and the agent would mend what is taken off it first: so it is held still until
    // the network is gone.
    device.hold(true);
    for one in &before {
        engine::docker(None, &["network", "disconnect", "-f", name, one["Id"].as_str().unwrap()]);
    }
    engine::docker(None, &["network", "rm", name]);
    device.hold(false);
    settled(world, "").await;
    let events = Events::between(since, now());
    let of_network = |e: &Value| e["Type"] == "network" && e["Actor"]["Attributes"]["name"] == name.as_str();
    let ours = |e: &Value| {
        let container = e["Actor"]["Attributes"]["name"].as_str().unwrap_or_default();
        e["Type"] == "container" && container.starts_with(&device.prefix)
    };
    let back = events.last("connect", of_network).max(events.find("start", ours).unwrap_or_default());
    back - events.last("destroy", of_network)
}

/// Waits until both services run and have an address, the first as another container than `not`; gives them.
async fn settled(world: &World, not: &str) -> Vec<Value> {
    // Long enough apart that one removal is not mended in the wake of another.
    tokio::time::sleep(Duration::from_secs(2)).await;
    eventually("both services are on their network", 60, || async {
        SERVICES
            .iter()
            .map(|name| {
                let found = engine::service(&world.devices[0].prefix, name, None)
                    .filter(|c| c["Id"] != not && engine::address(c).is_some());
                found.ok_or_else(|| format!("{name} is not"))
            })
            .collect()
    })
    .await
}

/// What the engine told.
pub(crate) struct Events(Vec<Value>);

impl Events {
    pub(crate) fn between(since: Duration, until: Duration) -> Self {
        let stamp = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
        let (since, until) = (stamp(since), stamp(until));
        let told =
            engine::docker(None, &["events", "--since", &since, "--until", &until, "--format", "{{json .}}"]);
        Self(told.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// When the last such event was, in seconds.
    fn find(&self, action: &str, which: impl Fn(&Value) -> bool) -> Option<f64> {
        let event = self.0.iter().rev().find(|e| e["Action"] == action && which(e))?;
        Some(event["timeNano"].as_u64()? as f64 / 1e9)
    }

    pub(crate) fn last(&self, action: &str, which: impl Fn(&Value) -> bool) -> f64 {
        self.find(action, which).unwrap_or_else(|| panic!("the engine told of no {action}: {:?}", self.0))
    }
}

/// Since 1970.
pub(crate) fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
}
