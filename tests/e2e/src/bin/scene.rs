//! A scene for the browser tests: a cloud, two devices, a release that works and one that undoes itself; an agent that
//! could be deployed, and one that was withdrawn.
//!
//! Prints one line of JSON when all is in place, then does what each line of standard input says and answers with a
//! line: `good` and `broken` push a release, `system` deploys the agent, `hostile` gives a device a name that tries to break out of a page,
//! `offline` kills an agent. Ends with its input.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support")]
#![allow(clippy::print_stdout, reason = "its output is its interface")]

use copal_e2e::{
    another_agent,
    cloud::{ADMIN, PASSWORD},
    repo::{STAY, Services},
    world::World,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const OPTIONS: &str =
    "labels: {io.copal.update.healthy-after: 2s, io.copal.update.start-timeout: 8s}\nstop_grace_period: 1s";

#[tokio::main]
async fn main() {
    let mut world = World::new(2).await;
    Services { services: &[("web", STAY, OPTIONS), ("store", STAY, OPTIONS)] }.write_to(&world.repo);
    let release = world.push_and_settle("works").await;
    let first = world.device(0).await.unwrap();
    let mut systems = Vec::new();
    for (version, agent) in [("9.0.0", another_agent()), ("9.1.0", b"no agent".to_vec())] {
        let bundle = world.agent_bundle(version, &agent).await;
        let made = world.owner.json(&["os", "release", &world.fleet, &bundle]).await;
        systems.push(made["release"]["id"].clone());
    }
    let why =
        "<b>starts</b> nowhere, and has a reason that is long enough to need more than one line on a phone";
    world.owner.ok(&["os", "withdraw", &world.fleet, "9.1.0", "--reason", why]).await;
    println!(
        "{}",
        json!({
            "url": world.cloud.url, "email": ADMIN, "password": PASSWORD, "fleet": world.fleet,
            "release": release, "device": first["device_id"], "device_name": first["name"], "systems": systems,
        })
    );
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut round = 0;
    while let Ok(Some(line)) = lines.next_line().await {
        round += 1;
        let answer = match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["good"] => {
                world.repo.write("web/run.sh", format!("#!/bin/busybox sh\necho round {round}\n{STAY}\n"));
                json!({"release": world.push_and_settle("good").await})
            }
            ["broken"] => {
                let script =
                    "#!/bin/busybox sh\nprintf '\\033[31m<img src=x onerror=alert(1)> burning\\n'\nexit 7\n";
                world.repo.write("web/run.sh", script);
                world.repo.push_ok("broken").await;
                for index in 0..world.devices.len() {
                    world.reason(index, "rolled_back").await;
                }
                json!({"release": world.latest().await["id"]})
            }
            ["system"] => {
                let words = ["os", "deploy", &world.fleet, "9.0.0", "--all", "--wait", "--timeout", "120"];
                world.owner.json(&words).await
            }
            ["hostile"] => {
                let id = world.device(1).await.unwrap()["device_id"].as_str().unwrap().to_owned();
                let name = "<script>document.title='owned'</script>\u{202e}gpj";
                let (status, body) = world
                    .cloud
                    .try_call("PATCH", &format!("/devices/{id}"), Some(json!({"name": name})))
                    .await;
                json!({"device": id, "status": status, "body": body})
            }
            ["offline"] => {
                world.devices[1].kill().await;
                json!({})
            }
            other => json!({"error": format!("no such word: {other:?}")}),
        };
        println!("{answer}");
    }
    world.devices.clear();
}
