//! Commands between a cloud and a device that someone on the way can see, hold back, repeat and invent; and a device that dies in
//! the middle of one.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use copal_e2e::{device::Device, eventually, proxy::Proxy, text, world::World};
use serde_json::{Value, json};

/// A command that restarts nothing, and writes down that it was run; then it runs `then`.
fn reboot_command(device: &Device, then: &str) -> (PathBuf, PathBuf) {
    let (script, runs) = (device.dir.path().join("reboot.sh"), device.dir.path().join("reboots"));
    std::fs::write(&script, format!("#!/bin/sh\necho run >> {}\n{then}\n", runs.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    (script, runs)
}

fn lines(file: &PathBuf) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// A device that keeps count of its restarts, none of which comes about.
async fn counting(world: &mut World, proxy: &Proxy, then: &str) -> (String, PathBuf) {
    let device = Device::new();
    let (script, runs) = reboot_command(&device, then);
    let index =
        world.join_as(device.with_env("COPAL_REBOOT_COMMAND", script.to_str().unwrap()), Some(proxy)).await;
    eventually("the channel is up", 60, || async {
        let up = world.devices[index].log().contains("the channel is up");
        up.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    (world.devices[index].prefix.clone(), runs)
}

fn is_command(frame: &str) -> bool {
    frame.contains(r#""t":"cmd""#)
}

/// What a device said of a command: state and code of each ack.
fn said(proxy: &Proxy, id: &Value) -> Vec<(String, String)> {
    let acks = proxy.told().into_iter().filter_map(|text| serde_json::from_str::<Value>(&text).ok());
    let of = |ack: &Value, field: &str| ack[field].as_str().unwrap_or_default().to_owned();
    acks.filter(|ack| ack["t"] == "ack" && ack["id"] == *id)
        .map(|ack| (of(&ack, "state"), of(&ack, "code")))
        .collect()
}

/// Waits until a device said this of a command.
async fn says(proxy: &Proxy, id: &Value, state: &str, code: &str) {
    eventually(&format!("the device says {state} {code}"), 60, || async {
        let said = said(proxy, id);
        let found = said.iter().any(|(s, c)| s == state && c == code);
        found.then_some(()).ok_or_else(|| format!("{said:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_come_twice_or_in_another_order_are_done_once_each_and_late_ones_never() {
    let mut world = World::new(0).await;
    let proxy = Proxy::start(&world.cloud.url);
    let held: Arc<Mutex<Vec<String>>> = Arc::default();
    let hold = held.clone();
    // Commands stay on the way until the test lets them go.
    proxy.frames(move |frame| {
        if is_command(&frame) {
            hold.lock().unwrap().push(frame);
            return Vec::new();
        }
        vec![frame]
    });
    let (name, runs) = counting(&mut world, &proxy, "exit 3").await;
    let mut asked = Vec::new();
    for verb in ["pause", "resume", "reboot"] {
        asked.push(world.owner.json(&["device", verb, &name, "--ttl", "10m", "--no-wait", "--yes"]).await);
    }
    eventually("all are on their way", 30, || async {
        let n = held.lock().unwrap().len();
        if n == 3 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    let frames = held.lock().unwrap().clone();
    // The last first, the first last, and each twice.
    for frame in frames.iter().rev().chain(&frames) {
        proxy.say(frame);
    }
    for command in &asked {
        let ended = world.ended(command).await;
        // A restart that does not come about fails, and is not tried again.
        let expected = if command["verb"] == "reboot" { "failed" } else { "done" };
        assert_eq!(ended["state"], expected, "{ended}");
    }
    frames.iter().for_each(|frame| proxy.say(frame));
    let check = world.owner.json(&["device", "check", &name, "--ttl", "1m", "--no-wait"]).await;
    eventually("that is on its way, too", 30, || async {
        let n = held.lock().unwrap().len();
        if n == 4 { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
    proxy.say(&held.lock().unwrap()[3].clone());
    assert_eq!(world.ended(&check).await["state"], "done");
    eventually("each was answered again", 30, || async {
        let counts: Vec<usize> = asked.iter().map(|c| said(&proxy, &c["id"]).len()).collect();
        if counts.iter().all(|n| *n >= 4) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    assert_eq!(lines(&runs), 1, "done once");

    // One that was under way for longer than it is good for, by its age alone.
    let late = world.owner.json(&["device", "reboot", &name, "--ttl", "5m", "--no-wait", "--yes"]).await;
    eventually("it is on its way", 30, || async {
        let held = held.lock().unwrap();
        let found = held.iter().any(|frame| frame.contains(late["id"].as_str().unwrap()));
        found.then_some(()).ok_or_else(|| held.len().to_string())
    })
    .await;
    let frame = held.lock().unwrap().last().unwrap().clone();
    let mut old: Value = serde_json::from_str(&frame).unwrap();
    old["age_s"] = json!(301);
    proxy.say(&old.to_string());
    let ended = world.ended(&late).await;
    assert_eq!((&ended["state"], &ended["code"]), (&json!("expired"), &json!("expired")), "{ended}");
    // As fresh as it was sent, it is what it was.
    proxy.say(&frame);
    says(&proxy, &late["id"], "expired", "expired").await;
    assert_eq!(lines(&runs), 1, "never done");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_foreign_and_renamed_actions_are_refused_and_nothing_is_done() {
    let mut world = World::new(0).await;
    let proxy = Proxy::start(&world.cloud.url);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let keep = seen.clone();
    proxy.frames(move |frame| {
        if is_command(&frame) {
            keep.lock().unwrap().push(frame.clone());
        }
        vec![frame]
    });
    let (name, runs) = counting(&mut world, &proxy, "exit 3").await;
    // Another device's, off its own line.
    let others = Proxy::start(&world.cloud.url);
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let take = taken.clone();
    others.frames(move |frame| {
        if is_command(&frame) {
            take.lock().unwrap().push(frame);
            return Vec::new();
        }
        vec![frame]
    });
    let (other, _) = counting(&mut world, &others, "exit 3").await;
    world.owner.json(&["device", "reboot", &other, "--ttl", "10m", "--no-wait", "--yes"]).await;
    let foreign: Value = eventually("the other device's command is on its way", 30, || async {
        taken.lock().unwrap().first().map(|text| serde_json::from_str(text).unwrap()).ok_or_else(String::new)
    })
    .await;
    proxy.say(&foreign.to_string());
    says(&proxy, &foreign["id"], "rejected", "E_DEVICE_MISMATCH").await;

    // One of its own, as it came.
    let done = world.owner.json(&["device", "pause", &name, "--ttl", "10m", "--no-wait"]).await;
    assert_eq!(world.ended(&done).await["state"], "done");
    let own: Value = serde_json::from_str(seen.lock().unwrap().last().unwrap()).unwrap();
    let id = |n: u8| json!(hex::encode([n; 16]));
    // Under another name.
    let mut renamed = own.clone();
    renamed["id"] = id(1);
    proxy.say(&renamed.to_string());
    says(&proxy, &id(1), "rejected", "E_PAYLOAD").await;
    // With another content under the same signature, and with the signature of a key of the forger's.
    let payload = own["order"]["action"]["payload"].as_str().unwrap();
    let content = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, payload).unwrap();
    let mut content: Value = serde_json::from_slice(&content).unwrap();
    content["id"] = id(2);
    content["act"] = json!({"verb": "reboot"});
    content["seq"] = json!(content["seq"].as_u64().unwrap() + 1);
    let text = content.to_string();
    let mut changed = own.clone();
    changed["id"] = id(2);
    changed["order"]["action"]["payload"] =
        json!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &text));
    proxy.say(&changed.to_string());
    eventually("it is refused", 60, || async {
        let said = said(&proxy, &id(2));
        let refused = said.iter().any(|(state, code)| state == "rejected" && code.starts_with("E_SIG"));
        refused.then_some(()).ok_or_else(|| format!("{said:?}"))
    })
    .await;
    // The same again is answered from memory.
    let before = said(&proxy, &own["id"]).len();
    proxy.say(&own.to_string());
    eventually("it is answered again", 60, || async {
        let said = said(&proxy, &own["id"]);
        let again = said.len() > before && said.last().unwrap().0 == "done";
        again.then_some(()).ok_or_else(|| format!("{said:?}"))
    })
    .await;
    assert_eq!(lines(&runs), 0, "nothing was done");
    let log = world.devices[0].log();
    assert_eq!(log.matches("told to").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_comes_about_is_done_in_the_next_boot_and_a_light_blinks_where_there_is_one() {
    let mut world = World::new(0).await;
    let device = Device::new();
    let (boot, leds) = (device.dir.path().join("boot_id"), device.dir.path().join("leds"));
    std::fs::write(&boot, "11111111-1111-4111-8111-111111111111\n").unwrap();
    let (script, runs) = reboot_command(&device, "kill -9 $PPID");
    let device = device
        .booting_as(boot.clone())
        .with_env("COPAL_LEDS", leds.to_str().unwrap())
        .with_env("COPAL_REBOOT_COMMAND", script.to_str().unwrap());
    world.join_as(device, None).await;
    let name = world.devices[0].prefix.clone();
    eventually("the channel is up", 60, || async {
        let up = world.devices[0].log().contains("the channel is up");
        up.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;

    let blink = ["device", "blink", &name, "--for", "1s", "--json"];
    let output = world.owner.run(&blink, "").await;
    assert!(!output.status.success() && text(&output).contains("no_led"), "{}", text(&output));
    let led = leds.join("green:status");
    std::fs::create_dir_all(&led).unwrap();
    for (file, content) in
        [("trigger", "none [timer] mmc0\n"), ("brightness", "1\n"), ("max_brightness", "1\n")]
    {
        std::fs::write(led.join(file), content).unwrap();
    }
    let blinked = world.owner.ok(&blink[..5]).await;
    assert!(blinked.contains("green:status blinked for 1 s"), "{blinked}");
    assert_eq!(std::fs::read_to_string(led.join("trigger")).unwrap(), "timer", "and is left as it was");

    // The machine goes down as the agent told it to, and comes up again as another boot.
    let asked = world.owner.json(&["device", "reboot", &name, "--ttl", "10m", "--no-wait", "--yes"]).await;
    while world.devices[0].is_running() || lines(&runs) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    std::fs::write(&boot, "22222222-2222-4222-8222-222222222222\n").unwrap();
    world.devices[0].start();
    let ended = world.ended(&asked).await;
    assert_eq!(
        (&ended["state"], &ended["message"]),
        (&json!("done"), &json!("the device restarted")),
        "{ended}"
    );
    // Nor a boot later is it done or told again.
    world.devices[0].kill().await;
    std::fs::write(&boot, "33333333-3333-4333-8333-333333333333\n").unwrap();
    world.devices[0].start();
    let check = world.owner.ok(&["device", "check", &name, "--ttl", "5m"]).await;
    assert!(check.contains("nothing assigned"), "{check}");
    assert_eq!(lines(&runs), 1, "done once");
    let list = world.cloud.get(&format!("/devices/{}/events", asked["device_id"].as_str().unwrap())).await;
    let events = list["items"].as_array().unwrap();
    let told = events.iter().filter(|e| e["kind"] == "command" && e["data"]["command"] == asked["id"]);
    assert_eq!(told.count(), 1, "told once: {list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dies_between_a_restart_and_its_answer_does_it_once_and_tells_it_once() {
    let mut world = World::new(0).await;
    let proxy = Proxy::start(&world.cloud.url);
    proxy.frames(|frame| vec![frame]);
    // The agent is killed as the restart begins, and nothing of it was told.
    let (name, runs) = counting(&mut world, &proxy, "kill -9 $PPID").await;
    let asked = world.owner.json(&["device", "reboot", &name, "--ttl", "10m", "--no-wait", "--yes"]).await;
    eventually("the restart was begun", 60, || async {
        if lines(&runs) == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    while world.devices[0].is_running() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let route = format!(
        "/fleets/porch/devices/{}/commands/{}",
        asked["device_id"].as_str().unwrap(),
        asked["id"].as_str().unwrap()
    );
    let between = world.cloud.get(&route).await;
    assert_eq!(between["ended"], false, "nobody knows yet: {between}");
    world.devices[0].start();
    let ended = world.ended(&asked).await;
    // It is the same boot, so the restart did not come about; whether it will is not for the agent to say.
    assert_eq!((&ended["state"], &ended["code"]), (&json!("unknown"), &json!("interrupted")), "{ended}");
    // Once more dead and alive, with another command in between: nothing is done or told again.
    world.devices[0].kill().await;
    world.devices[0].start();
    let check = world.owner.json(&["device", "check", &name, "--ttl", "5m", "--no-wait"]).await;
    assert_eq!(world.ended(&check).await["state"], "done");
    assert_eq!(lines(&runs), 1, "done once");
    let list = world.cloud.get(&format!("/devices/{}/events", asked["device_id"].as_str().unwrap())).await;
    let told = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["kind"] == "command" && e["data"]["command"] == asked["id"]);
    assert_eq!(told.count(), 1, "told once: {list}");
}
