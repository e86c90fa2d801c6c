//! What a device tells of itself: each event once, whoever dies meanwhile; how it fares, and more of it while somebody watches.

use std::{collections::BTreeSet, time::Duration};

use copal_e2e::{
    device::Device,
    engine, eventually, http,
    proxy::{Answer, Proxy},
    repo::{STAY, Services},
    world::World,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

const OPTIONS: &str = "labels: {io.copal.update.healthy-after: 1s, io.copal.update.start-timeout: 8s}\n\
                       stop_grace_period: 1s\nrestart: always";

/// The route of something of a device's.
async fn route(world: &World, index: usize, of: &str) -> String {
    let device = world.device(index).await.unwrap();
    format!("/fleets/porch/devices/{}/{of}", device["device_id"].as_str().unwrap())
}

/// All events of a device that it told itself.
async fn events(world: &World, route: &str) -> Vec<Value> {
    let list = world.cloud.get(&format!("{route}?limit=500")).await;
    list["items"].as_array().unwrap().iter().filter(|e| e["seq"].is_u64()).cloned().collect()
}

fn count(events: &[Value], kind: &str, code: &str) -> usize {
    events.iter().filter(|e| e["kind"] == kind && e["code"] == code).count()
}

/// None is missing, none came twice.
fn each_once(events: &[Value]) {
    let numbers: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    let different: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(different.len(), numbers.len(), "{numbers:?}");
    assert_eq!(different.len() as u64, *different.last().unwrap(), "{numbers:?}");
}

/// Takes the service's container away; gives it back when the agent has made another.
async fn take_away(world: &World, index: usize) {
    let before = world.service(index, "app").await["Id"].as_str().unwrap().to_owned();
    engine::docker(None, &["rm", "-f", &before]);
    eventually("the service runs again", 60, || async {
        let now = world.service(index, "app").await["Id"].as_str().unwrap().to_owned();
        if now == before { Err(now) } else { Ok(()) }
    })
    .await;
    // It is written down within two seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_comes_once_whoever_dies_and_whatever_link_is_lost() {
    let mut world = World::new(1).await;
    let proxy = Proxy::start(&world.cloud.url);
    // No WebSocket passes it.
    world.join(Some(&proxy)).await;
    Services { services: &[("app", STAY, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let routes = [route(&world, 0, "events").await, route(&world, 1, "events").await];

    // The cloud is away; one agent dies meanwhile; the other's link is lost when the cloud is back.
    world.cloud.kill().await;
    proxy.rewrite(|_, _| Some(Answer::Status(502)));
    take_away(&world, 0).await;
    take_away(&world, 1).await;
    world.devices[0].kill().await;
    world.devices[0].start();
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.cloud.restart().await;
    take_away(&world, 1).await;
    // And dies again, in the middle of being told.
    world.cloud.restart().await;
    proxy.honest();
    for (index, (route, started)) in routes.iter().zip([2, 1]).enumerate() {
        let all = eventually("every event is told", 330, || async {
            let all = events(&world, route).await;
            let services = count(&all, "service", "started");
            let enough = count(&all, "agent", "started") == started && services > 1 + index;
            if enough { Ok(all) } else { Err(format!("{all:?}")) }
        })
        .await;
        each_once(&all);
        assert_eq!(count(&all, "boot", "unknown"), 1, "this machine did not restart: {all:?}");
        assert!(count(&all, "committed", "committed") <= 1, "{all:?}");
        let whole = world.cloud.get(&format!("{route}?limit=500")).await;
        let whole = whole["items"].as_array().unwrap();
        assert_eq!(count(whole, "committed", "committed"), 1, "by report and by event, and shown once");
        assert_eq!(count(whole, "gap", "events_lost"), 0);
    }

    // An orderly end is told, too, and nothing is told again.
    world.devices[0].stop().await;
    world.devices[0].start();
    let all = eventually("the next start is told", 330, || async {
        let all = events(&world, &routes[0]).await;
        if count(&all, "agent", "started") == 3 { Ok(all) } else { Err(format!("{all:?}")) }
    })
    .await;
    each_once(&all);
    assert_eq!(count(&all, "agent", "stopped"), 1);
    let name = world.devices[0].prefix.clone();
    let listed = world.owner.ok(&["device", "events", &name, "--kind", "agent", "--since", "1d"]).await;
    assert!(listed.contains("stopped") && !listed.contains("committed"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_device_fares_is_seen_and_more_often_while_somebody_watches() {
    let mut world = World::new(0).await;
    let mut device = Device::new();
    device.env.push(("COPAL_METRICS_EVERY_S".to_owned(), "4".to_owned()));
    world.join_as(device, None).await;
    let busy = "while :; do i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; /bin/busybox sleep 0.3; done";
    Services { services: &[("app", busy, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let (name, metrics) = (world.devices[0].prefix.clone(), route(&world, 0, "metrics").await);

    let newest = eventually("the busy service is seen", 120, || async {
        let all = world.cloud.get(&metrics).await;
        let newest = all["points"].as_array().unwrap().last().cloned().unwrap_or_default();
        let cpu = newest["services"]["app"]["gauges"]["cpu"]["max"].as_i64();
        if cpu > Some(20) { Ok(newest) } else { Err(all.to_string()) }
    })
    .await;
    for gauge in ["cpu", "memory", "load", "disk"] {
        assert!(newest["device"]["gauges"][gauge]["last"].is_i64(), "{gauge}: {newest}");
    }
    for counter in ["net_in", "net_out", "agent_written"] {
        assert!(newest["device"]["counters"][counter].is_u64(), "{counter}: {newest}");
    }
    assert!(newest["services"]["app"]["gauges"]["memory"]["avg"].as_i64() > Some(0), "{newest}");
    let shown = world.owner.ok(&["device", "metrics", &name]).await;
    assert!(shown.contains("CPU") && shown.contains("app"), "{shown}");
    let shown = eventually("what it has is told", 60, || async {
        let shown = world.owner.ok(&["device", "show", &name]).await;
        if shown.contains("kernel") && shown.contains("INTERFACE") { Ok(shown) } else { Err(shown) }
    })
    .await;
    assert!(shown.contains("cores"), "{shown}");

    let live = format!("{}/api/v1{metrics}/live", world.cloud.url);
    let watch = |token: String| http().get(&live).bearer_auth(token).send();
    let one = watch(world.cloud.token.clone()).await.unwrap();
    let two = watch(world.cloud.token.clone()).await.unwrap();
    assert_eq!((one.status(), two.status()), (http::StatusCode::OK, http::StatusCode::OK));
    for watcher in [one, two] {
        let (mut text, mut stream) = (String::new(), watcher.bytes_stream());
        while text.matches("event: sample").count() < 2 {
            let chunk = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("in time");
            text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
        }
        assert!(text.contains("\"cpu\"") && text.contains("\"app\""), "{text}");
    }
    eventually("the device stops when nobody watches", 60, || async {
        let log = world.devices[0].log();
        let streams = log.matches("somebody watches").count();
        let over = log.matches("nobody watches any more").count();
        if streams >= 1 && streams == over { Ok(()) } else { Err(format!("{streams} {over}")) }
    })
    .await;

    // A token of another fleet.
    world.owner.fleet("other", &[]).await;
    let body = json!({"name": "neighbour", "scope": "full", "fleet": "other"});
    let foreign = world.cloud.call("POST", "/tokens", body).await["token"].as_str().unwrap().to_owned();
    for of in ["events", "metrics", "metrics/live"] {
        let url = format!("{}/api/v1{}", world.cloud.url, route(&world, 0, of).await);
        let answer = http().get(url).bearer_auth(&foreign).send().await.unwrap();
        assert_eq!(answer.status(), http::StatusCode::NOT_FOUND, "{of}");
    }
    // Who is away cannot be watched.
    world.devices[0].kill().await;
    eventually("the device is away", 60, || async {
        let answer = watch(world.cloud.token.clone()).await.unwrap();
        if answer.status() == http::StatusCode::CONFLICT { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
}
