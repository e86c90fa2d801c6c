//! Lines as devices have them: lossy, slow, dead without a word, behind boxes that forget, rewrite or show a page.

use std::time::Duration;

use copal_e2e::{
    cloud::Cloud,
    device::Device,
    eventually,
    gate::Gate,
    proxy::{Answer, Proxy},
    repo::{STAY, Services},
    wire::{Weather, Wire},
    world::World,
};
use serde_json::{Value, json};

/// A cloud, and a device at the far end of a wire whose channel is up.
async fn across(wire: &Wire, weather: Weather) -> (World, String) {
    let host = wire.here.to_string();
    let mut world = World::on(Cloud::start_reachable(&[&host]).await, &[]).await;
    wire.weather(weather);
    let url = format!("https://{host}:{}", world.cloud.port());
    let name = join(&mut world, Device::behind(wire), &url).await;
    (world, name)
}

/// Adds a device that goes to this URL, and waits until its channel is up.
async fn join(world: &mut World, device: Device, url: &str) -> String {
    let index = world.join_at(device, Some(url)).await;
    channel(world, index, 1).await;
    world.devices[index].prefix.clone()
}

/// Waits until a device opened so many channels.
async fn channel(world: &World, index: usize, times: usize) {
    eventually("the channel is up", 150, || async {
        let log = world.devices[index].log();
        let up = log.matches("the channel is up").count();
        if up >= times { Ok(()) } else { Err(format!("{up} channels so far")) }
    })
    .await;
}

/// Asks for something that needs no engine, for a minute at most, and waits for its end.
async fn check(world: &World, name: &str) -> Value {
    world.ended(&world.owner.json(&["device", "check", name, "--ttl", "1m", "--no-wait"]).await).await
}

/// The channel works both ways: a command is done, and a deploy is heard of and judged (nothing is pulled: the engine is elsewhere).
async fn works(world: &World, name: &str) {
    let pause = world.owner.json(&["device", "pause", name, "--ttl", "5m", "--no-wait"]).await;
    assert_eq!(world.ended(&pause).await["state"], "done");
    Services { services: &[("app", STAY, "")] }.write_to(&world.repo);
    world.repo.push_ok("works").await;
    world.reason(0, "paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_loses_every_third_packet_carries_channel_commands_and_deploys() {
    let wire = Wire::lay().await;
    let (world, name) = across(&wire, Weather { loss: 30, ..Weather::default() }).await;
    works(&world, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_two_seconds_carries_channel_commands_and_deploys() {
    let wire = Wire::lay().await;
    // There and back.
    let (world, name) = across(&wire, Weather { delay: Duration::from_secs(1), ..Weather::default() }).await;
    works(&world, &name).await;
    // A direct command is answered a while after it was sent, and not given up before.
    let direct = world.owner.json(&["device", "check", &name, "--no-wait"]).await;
    assert_eq!(world.ended(&direct).await["state"], "done");
    let log = world.devices[0].log();
    assert_eq!(log.matches("the channel is up").count(), 1, "it never broke");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_went_dead_without_a_word_is_found_out_by_the_first_command() {
    let wire = Wire::lay().await;
    let (world, name) = across(&wire, Weather::default()).await;
    assert_eq!(check(&world, &name).await["state"], "done");
    wire.weather(Weather { cut: true, ..Weather::default() });
    let lost = world.owner.json(&["device", "check", &name, "--no-wait"]).await;
    assert_eq!(lost["state"], "queued", "nobody knows yet");
    let lost = world.ended(&lost).await;
    assert_eq!((&lost["state"], &lost["code"]), (&json!("unknown"), &json!("no_answer")), "{lost}");
    assert!(!world.device(0).await.unwrap()["online"].as_bool().unwrap(), "and it counts as away");
    let next = world.owner.run(&["device", "check", &name, "--json"], "").await;
    let next: Value = serde_json::from_slice(&next.stderr).unwrap();
    assert_eq!(next["error"]["code"], "device_away", "the next one is unreachable at once: {next}");
    wire.weather(Weather::default());
    assert_eq!(check(&world, &name).await["state"], "done", "it comes back by itself");
    world.until_online(0, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_stopped_reading_does_not_keep_others_or_the_truth_back() {
    let mut world = World::new(2).await;
    for index in 0..2 {
        channel(&world, index, 1).await;
    }
    let (still, other) = (world.devices[0].prefix.clone(), world.devices[1].prefix.clone());
    world.devices[0].hold(true);
    let asked = world.owner.json(&["device", "check", &still, "--no-wait"]).await;
    assert_eq!(check(&world, &other).await["state"], "done");
    let given_up = world.ended(&asked).await;
    assert_eq!(
        (&given_up["state"], &given_up["code"]),
        (&json!("unknown"), &json!("no_answer")),
        "{given_up}"
    );
    world.devices[0].hold(false);
    // It was in the socket all the time: what the device says of it counts, whichever it is by then.
    let route = format!(
        "/fleets/porch/devices/{}/commands/{}",
        asked["device_id"].as_str().unwrap(),
        asked["id"].as_str().unwrap()
    );
    eventually("its own word is taken", 60, || async {
        let now = world.cloud.get(&route).await;
        let own = now["state"] == "done" || now["state"] == "expired";
        if own { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    assert_eq!(check(&world, &still).await["state"], "done");
    world.devices[0].kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_forgets_idle_connections_is_kept_awake_by_pings_that_adapt() {
    let mut world = World::new(0).await;
    // The cloud asks for a ping every three minutes.
    let gate = Gate::forgetful(world.cloud.address(), Duration::from_secs(21)).await;
    let url = format!("http://{}", gate.address);
    let name = join(&mut world, Device::new(), &url).await;
    channel(&world, 0, 2).await;
    // What was let go of once holds from now on, for twice as long as it idled before.
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(world.devices[0].log().matches("the channel is up").count(), 2);
    assert_eq!(check(&world, &name).await["state"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passes_a_proxy_that_one_asks_to_connect() {
    let name = "cloud.copal.test";
    let mut world = World::on(Cloud::start_private_ca(&[name]).await, &[]).await;
    let gate = Gate::proxy(world.cloud.address()).await;
    // The name has no address but for the proxy.
    let url = format!("https://{name}:8443");
    let device = Device::new().with_env("HTTPS_PROXY", format!("http://{}", gate.address));
    let name = join(&mut world, device, &url).await;
    assert_eq!(check(&world, &name).await["state"], "done");
    let asked = gate.asked();
    assert!(asked.iter().all(|line| line.starts_with("CONNECT cloud.copal.test:8443 ")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_alone_is_enough() {
    let wire = Wire::lay6().await;
    let host = wire.here6.to_string();
    let mut world = World::on(Cloud::start_reachable(&[&host]).await, &[]).await;
    let url = format!("https://[{host}]:{}", world.cloud.port());
    let name = join(&mut world, Device::behind(&wire), &url).await;
    works(&world, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_answers_instead_of_the_cloud_never_counts_as_online_and_is_named() {
    let mut world = World::new(0).await;
    let proxy = Proxy::start(&world.cloud.url);
    proxy.frames(|frame| vec![frame]);
    let name = join(&mut world, Device::new(), &proxy.url).await;
    world.until_online(0, true).await;
    let page = || Some(Answer::Page("<html><body>Welcome! Please sign in.</body></html>"));
    let redirect = || Some(Answer::Redirect("http://portal.copal.test/sign-in"));
    for (what, portal) in [("a page", 0), ("a redirect", 1)] {
        eventually("the device says that it is online", 90, || async {
            let status = world.devices[0].status().await;
            if status["online"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        proxy.rewrite(move |_, _| if portal == 0 { page() } else { redirect() });
        proxy.close();
        let status = eventually("the device says that it is offline", 90, || async {
            let status = world.devices[0].status().await;
            if status["online"] == false { Ok(status) } else { Err(status.to_string()) }
        })
        .await;
        let why = eventually("it names the sign-in page", 90, || async {
            let status = world.devices[0].status().await;
            assert_eq!(status["online"], false, "{what}: {status}");
            let why = status["offline"]["message"].as_str().unwrap_or_default().to_owned();
            if why.contains("sign-in page") { Ok(why) } else { Err(why) }
        })
        .await;
        assert!(why.starts_with("captive"), "{what}: {why}; {status}");
        let ups = world.devices[0].log().matches("the channel is up").count();
        assert_eq!(ups, portal + 1, "{what} is no channel");
        proxy.honest();
        // It comes back by itself, after as long as five minutes; an agent that starts does not wait.
        world.devices[0].kill().await;
        world.devices[0].start();
        channel(&world, 0, portal + 2).await;
        assert_eq!(check(&world, &name).await["state"], "done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_upgrades_are_stripped_commands_go_by_exchange() {
    let mut world = World::new(0).await;
    // It passes requests on, and nothing that becomes something else.
    let proxy = Proxy::start(&world.cloud.url);
    let index = world.join(Some(&proxy)).await;
    let name = world.devices[index].prefix.clone();
    eventually("frames are exchanged", 60, || async {
        let exchanged = proxy.seen().iter().any(|path| path.starts_with("/device/v1/exchange"));
        exchanged.then_some(()).ok_or_else(|| format!("{:?}", proxy.seen()))
    })
    .await;
    works(&world, &name).await;
    let direct = world.owner.json(&["device", "check", &name]).await;
    assert_eq!(direct["state"], "done");
    assert!(proxy.seen().iter().any(|path| path == "/device/v1/channel"), "a WebSocket was tried first");
}
