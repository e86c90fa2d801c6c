//! Logs of services: each line once, whatever restarts; what is too much is counted; what is secret stays on the device.

use std::{path::Path, time::Duration};

use copal_e2e::{
    binary, engine, eventually,
    repo::{STAY, Services},
    world::World,
};
use serde_json::Value;
use tokio::process::{Child, Command};

const OPTIONS: &str = "labels: {io.copal.update.healthy-after: 1s, io.copal.update.start-timeout: 8s}\n\
                       stop_grace_period: 1s";

/// Counts up, ten times a second.
const COUNTS: &str =
    "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo \"count $i\"; /bin/busybox usleep 100000; done";

/// `copal logs` in the background, writing to a file.
fn logs_to(world: &World, file: &Path, args: &[&str]) -> Child {
    Command::new(binary("copal"))
        .arg("logs")
        .args(args)
        .args(["--json", "-o", file.to_str().unwrap()])
        .env("COPAL_HOME", world.owner.home.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn lines_of(text: &str) -> Vec<Value> {
    // The last may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn counts(lines: &[Value]) -> Vec<u64> {
    let texts = lines.iter().filter_map(|line| line["line"].as_str());
    texts.filter_map(|text| text.strip_prefix("count ")?.parse().ok()).collect()
}

/// Waits until the file has this count; gives all of them.
async fn until(file: &Path, count: u64) -> Vec<u64> {
    eventually(&format!("count {count} is told"), 120, || async {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let counts = counts(&lines_of(&text));
        if counts.last().is_some_and(|last| *last >= count) {
            Ok(counts)
        } else {
            Err(format!("{:?}", counts.last()))
        }
    })
    .await
}

async fn history(world: &World, args: &[&str]) -> Vec<Value> {
    let name = world.devices[0].prefix.clone();
    let args: Vec<&str> = ["logs", &name, "--json"].into_iter().chain(args.iter().copied()).collect();
    lines_of(&world.owner.ok(&args).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_is_told_once_over_restarts_of_agent_and_cloud_and_a_new_release() {
    let mut world = World::new(1).await;
    Services { services: &[("app", COUNTS, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("counts").await;
    let name = world.devices[0].prefix.clone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("followed");
    let mut follower = logs_to(&world, &file, &[&name, "-f", "--service", "app", "--tail", "100000"]);
    let first = until(&file, 30).await;
    assert_eq!(first[0], 1, "from the first line on");

    // A power cut of the agent; the service goes on meanwhile.
    world.devices[0].kill().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.devices[0].start();
    until(&file, first.len() as u64 + 60).await;
    world.devices[0].stop().await;
    world.devices[0].start();
    let second = until(&file, first.len() as u64 + 120).await;

    world.cloud.restart().await;
    let third = until(&file, second.len() as u64 + 60).await;
    let wanted: Vec<u64> = (1..=third.len() as u64).collect();
    assert_eq!(third, wanted, "each once, in its order");
    follower.kill().await.unwrap();

    // By hand: after the last number that was seen.
    let seen = lines_of(&std::fs::read_to_string(&file).unwrap());
    let last = seen.iter().rev().find_map(|line| line["seq"].as_u64()).unwrap();
    let rest = eventually("more is said", 30, || async {
        let rest = history(&world, &["--since-seq", &last.to_string()]).await;
        counts(&rest).first().copied().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    assert_eq!(rest, counts(&seen).last().unwrap() + 1);
    assert!(seen.iter().all(|line| line["gap"].is_null()));

    // What a container said outlives it.
    Services { services: &[("app", &format!("echo anew; {STAY}"), OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("another").await;
    let all = history(&world, &["--tail", "100000"]).await;
    assert_eq!(counts(&all)[..wanted.len()], wanted[..]);
    eventually("the new container is heard", 30, || async {
        let all = history(&world, &["--tail", "5"]).await;
        if all.iter().any(|line| line["line"] == "anew") { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_counted_secrets_stay_and_lines_outlive_their_service() {
    let world = World::new(1).await;
    let chatty = format!("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"chat $i\"; done; {STAY}");
    let quiet = format!(
        "echo \"password=hunter2hunter2 in a line\"; echo \"the value is $API_TOKEN\" >&2; \
         /bin/busybox printf '%s\\n' \"$(/bin/busybox head -c 30000 /dev/zero | /bin/busybox tr '\\0' x)\"; {STAY}"
    );
    let with_token = format!("{OPTIONS}\nenvironment: {{API_TOKEN: tok-9f8e7d6c5b4a}}");
    let both = [("chatty", chatty.as_str(), OPTIONS), ("quiet", quiet.as_str(), with_token.as_str())];
    Services { services: &both }.write_to(&world.repo);
    world.push_and_settle("talks").await;
    let told = eventually("all that was said is told or counted", 60, || async {
        let lines = history(&world, &["--service", "chatty", "--tail", "100000"]).await;
        let dropped: u64 = lines.iter().filter_map(|line| line["dropped"].as_u64()).sum();
        let kept = lines.iter().filter(|line| line["line"].is_string()).count() as u64;
        if kept + dropped == 20_000 { Ok((kept, dropped)) } else { Err(format!("{kept} and {dropped}")) }
    })
    .await;
    assert!(told.0 >= 1_000 && told.1 >= 1_000, "{told:?}");
    let some = history(&world, &["--service", "chatty", "--search", "CHAT 77", "--tail", "100000"]).await;
    let texts: Vec<&str> = some.iter().filter_map(|line| line["line"].as_str()).collect();
    assert!(texts.contains(&"chat 77") && texts.iter().all(|text| text.contains("chat 77")), "{texts:?}");

    // The device looks, so that two lines of thousands are what comes, and its clock counts.
    let some =
        history(&world, &["--service", "chatty", "--search", "Chat 7", "--match-case", "--tail", "2"]).await;
    assert!(some.iter().all(|line| line["line"].is_null()), "{some:?}");
    let args = ["--service", "chatty", "--search", "CHAT 7", "--tail", "2", "--since", "1h", "--until", "0s"];
    let some = history(&world, &args).await;
    assert_eq!(some.iter().filter(|line| line["line"].is_string()).count(), 2, "{some:?}");
    let all = history(&world, &["--service", "chatty", "--since", "1h"]).await;
    assert_eq!(
        all.iter().filter(|line| line["line"].is_string()).count() as u64,
        told.0,
        "all, not the last 200"
    );
    assert!(history(&world, &["--until", "2020-01-01"]).await.is_empty());
    let refused = world.owner.run(&["logs", &world.devices[0].prefix, "--since", "yesterday"], "").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("10m"), "{refused:?}");

    let lines = history(&world, &["--service", "quiet"]).await;
    let line = |n: usize| lines[n]["line"].as_str().unwrap();
    let stderr = lines.iter().find(|line| line["stderr"] == true).unwrap();
    assert_eq!(stderr["line"], "the value is (redacted)");
    assert!(lines.iter().any(|line| line["line"] == "password=(redacted) in a line"), "{}", line(0));
    let long = lines.iter().find(|line| line["cut"] == true).unwrap();
    assert_eq!(long["line"].as_str().unwrap().len(), 8 << 10);
    // Nor is it on the device's disk.
    let kept = text_of(&world.devices[0].state_dir().join("logs/quiet"));
    assert!(!kept.contains("hunter2") && !kept.contains("tok-9f8e7d6c5b4a"));

    Services { services: &[("chatty", STAY, OPTIONS)] }.write_to(&world.repo);
    world.push_and_settle("quiet is gone").await;
    assert!(engine::service(&world.devices[0].prefix, "quiet", None).is_none());
    assert_eq!(history(&world, &["--service", "quiet"]).await, lines);
    let name = world.devices[0].prefix.clone();
    let refused = world.owner.run(&["logs", &name, "--service", "nobody"], "").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("service_unknown"), "{refused:?}");
    let audit = world.cloud.get("/audit?limit=50").await;
    let read = |row: &&Value| row["verb"] == "logs.read";
    assert!(audit["items"].as_array().unwrap().iter().filter(read).count() >= 4);
}

fn text_of(folder: &Path) -> String {
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_failed_trial_reach_the_cloud_without_secrets() {
    let world = World::new(1).await;
    let line = "echo 'starting up'; echo \"login with $DB_PASSWORD failed\"; exit 3";
    let options = format!("{OPTIONS}\nenvironment: {{DB_PASSWORD: hunter2hunter2}}");
    Services { services: &[("app", line, &options)] }.write_to(&world.repo);
    world.repo.push_ok("fails").await;
    let failed =
        |device: &Value| device["reason"]["log_tail"].as_array().is_some_and(|tail| !tail.is_empty());
    let device = eventually("the failure is told with its last lines", 120, || async {
        let device = world.device(0).await.ok_or("not enrolled")?;
        if failed(&device) { Ok(device) } else { Err(device["reason"].to_string()) }
    })
    .await;
    let tail = device["reason"]["log_tail"].to_string();
    assert!(tail.contains("login with (redacted) failed") && !tail.contains("hunter2"), "{tail}");
    let lines = history(&world, &["--tail", "100"]).await;
    assert!(lines.iter().any(|line| line["line"] == "starting up"), "and its log has them, too: {lines:?}");
}
