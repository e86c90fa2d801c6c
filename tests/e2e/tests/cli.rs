//! The command line as its users have it: the real `copal` against a running cloud and devices, in words, JSON and exit
//! codes (docs/cli.md).

use std::{path::Path, time::Duration};

use copal_e2e::{
    another_agent,
    device::Device,
    engine, eventually,
    owner::Owner,
    repo::{Repo, STAY},
    text, unique,
    world::World,
};
use serde_json::Value;

const OPTIONS: &str = "    labels: {io.copal.update.healthy-after: 1s, io.copal.update.start-timeout: 8s}\n    stop_grace_period: 1s\n";

/// Runs a command that has to fail with this exit code; gives its error. The same without `--json` has to say the same
/// to a person.
async fn fails(owner: &Owner, args: &[&str], exit: i32, code: &str) -> Value {
    let output = owner.run(args, "").await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(exit), "copal {args:?}: {said}");
    assert!(said.contains("error: cannot ") && said.contains(&format!("({code})")), "copal {args:?}: {said}");
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = owner.run(&args, "").await;
    assert_eq!(output.status.code(), Some(exit), "copal {args:?}: {}", text(&output));
    let error: Value = serde_json::from_slice(&output.stderr)
        .unwrap_or_else(|e| panic!("copal {args:?}: no JSON on standard error ({e}): {}", text(&output)));
    assert_eq!(error["error"]["code"], code, "copal {args:?}: {error}");
    assert_eq!(error["error"]["exit_code"], exit, "{error}");
    error["error"].clone()
}

/// The same, where there is something to be done: it has to say it.
async fn fails_and_says(owner: &Owner, args: &[&str], exit: i32, code: &str, next: &str) {
    let error = fails(owner, args, exit, code).await;
    let said = format!("{} {}", error["why"], error["next"]);
    assert!(said.contains(next), "copal {args:?}: {next:?} is not in {error}");
}

fn items(list: &Value) -> &Vec<Value> {
    list["items"].as_array().unwrap_or_else(|| panic!("no items: {list}"))
}

fn field(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

/// A folder without git: one service `app` of busybox, whose Dockerfile and script these are.
fn folder(repo: &Repo, dockerfile: &str, script: &str) -> String {
    repo.add_busybox("app");
    repo.write("app/Dockerfile", dockerfile);
    repo.write("app/run.sh", format!("#!/bin/busybox sh\n{script}\n"));
    repo.write(
        "docker-compose.yml",
        format!("services:\n  app:\n    build: ./app\n    volumes: [\"data:/data\"]\n{OPTIONS}volumes:\n  data: {{}}\n"),
    );
    let _ = std::fs::remove_dir_all(repo.path().join(".git"));
    repo.path().to_str().unwrap().to_owned()
}

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";

struct Untag(String);

impl Drop for Untag {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rmi", &self.0]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_built_followed_retried_and_its_release_handled_by_the_command_line() {
    let world = World::new(0).await;
    let owner = &world.owner;
    fails(owner, &["build", "watch"], 4, "not_found").await;
    fails(owner, &["push", "/nowhere"], 2, "usage").await;
    assert_eq!(owner.ok(&["build", "list"]).await.trim(), "none");

    // A base image that nobody has: the build fails, and says at which line.
    let base = format!("e2e-{}.invalid/base:1", unique());
    let dockerfile = DOCKERFILE.replace("scratch", &base);
    let path = folder(&world.repo, &dockerfile, STAY);
    let error = fails(owner, &["push", &path, "--note", "from my desk"], 1, "build_failed").await;
    assert!(field(&error, "why").contains("app/Dockerfile:1"), "{error}");
    assert!(field(&error, "next").contains("copal build retry"), "{error}");
    let failed = owner.json(&["build", "list", "porch", "--limit", "1"]).await;
    let failed = items(&failed)[0].clone();
    let id = field(&failed, "id");
    assert_eq!((failed["status"].as_str(), failed["note"].as_str()), (Some("failed"), Some("from my desk")));
    assert!(owner.ok(&["build", "list"]).await.contains("app/Dockerfile:1"), "the list says why");
    assert!(owner.ok(&["build", "show", &id]).await.contains(&base));
    assert_eq!(owner.json(&["build", "show", &id]).await["id"], id.as_str());
    assert!(owner.ok(&["build", "log", &id]).await.contains("[app] building app/Dockerfile"));
    let log = owner.json(&["build", "log", &id]).await;
    assert!(field(&log, "log").contains("[app] building app/Dockerfile"), "{log}");
    fails(owner, &["build", "watch", &id], 1, "build_failed").await;
    fails(owner, &["build", "retry", &id], 1, "build_failed").await;

    // The base is there now: the same build, tried again, succeeds, and its release is published.
    world.repo.write("base/Dockerfile", "FROM scratch\nCOPY note /base\n").write("base/note", unique());
    let context = world.repo.path().join("base");
    engine::docker(None, &["build", "-q", "-t", &base, context.to_str().unwrap()]);
    let _gone = Untag(base.clone());
    let again = owner.json(&["build", "retry", &id, "--no-watch"]).await;
    let done = owner.json(&["build", "watch", &field(&again, "id")]).await;
    assert_eq!(done["status"], "succeeded", "{done}");
    let first = field(&done, "release");
    let shown = owner.json(&["release", "show", "latest"]).await;
    assert_eq!((shown["id"].as_str(), shown["status"].as_str()), (Some(first.as_str()), Some("final")));

    // A draft, watched while it is built; without an id the newest build is meant.
    let slow = DOCKERFILE.replace(
        "CMD",
        "RUN [\"/bin/busybox\", \"sleep\", \"5\"]\nRUN [\"/bin/busybox\", \"echo\", \"well slept\"]\nCMD",
    );
    let path = folder(&world.repo, &slow, STAY);
    let begun = owner.json(&["push", &path, "--no-watch", "--draft", "--note", "try it"]).await;
    let slow = field(&begun, "id");
    assert!(matches!(begun["status"].as_str(), Some("queued" | "running")), "{begun}");
    fails_and_says(owner, &["build", "retry", &slow], 3, "build_running", "copal build watch").await;
    let seen = owner.ok(&["build", "watch"]).await;
    assert!(seen.contains("well slept") && seen.contains("succeeded"), "{seen}");
    let draft = field(&owner.json(&["build", "show", &slow]).await, "release");

    // Without the cache every step is done anew; with it none is.
    let cached = owner.ok(&["push", &path]).await;
    assert!(cached.contains("5 from the cache"), "{cached}");
    let anew = owner.ok(&["push", &path, "--no-cache"]).await;
    assert!(anew.contains("0 from the cache") && anew.contains("well slept"), "{anew}");
    assert_eq!(
        owner.ok(&["push", &path, "--quiet"]).await.lines().next().map(|l| l.starts_with("build ")),
        Some(true)
    );

    // What becomes of a release.
    assert_eq!(items(&owner.json(&["release", "list", "porch", "--limit", "2"]).await).len(), 2);
    let listed = owner.ok(&["release", "list"]).await;
    assert!(listed.contains("draft") && listed.contains("try it"), "{listed}");
    fails_and_says(owner, &["release", "deploy", &draft], 3, "release_is_draft", "copal release finalize")
        .await;
    let noted = owner.json(&["release", "note", &draft[..12], "the one with the nap"]).await;
    assert_eq!(noted["note"], "the one with the nap");
    assert!(owner.ok(&["release", "show", &draft]).await.contains("the one with the nap"));
    assert_eq!(owner.json(&["release", "invalidate", &first]).await["status"], "invalidated");
    fails_and_says(owner, &["release", "deploy", &first], 3, "release_invalidated", "--undo").await;
    assert_eq!(owner.json(&["release", "invalidate", &first, "--undo"]).await["status"], "final");
    assert_eq!(owner.json(&["release", "finalize", &draft]).await["status"], "final");
    let told = owner.json(&["release", "deploy", &draft, "--wait"]).await;
    assert_eq!((told["release"].as_str(), told["devices"].as_u64()), (Some(draft.as_str()), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_tagged_pinned_deployed_to_and_let_in_by_the_command_line() {
    let mut world = World::new(2).await;
    let path = folder(&world.repo, DOCKERFILE, STAY);
    let owner = &world.owner;
    let names = [world.devices[0].prefix.clone(), world.devices[1].prefix.clone()];
    let [one, two] = [names[0].as_str(), names[1].as_str()];
    let settled = |what: &'static str| async move {
        let watch = owner.run(&["status", "porch", "--watch", "--until-on-target"], "");
        let output = tokio::time::timeout(Duration::from_secs(120), watch).await;
        let output = output.unwrap_or_else(|_| panic!("not within 120 s: {what}"));
        assert!(output.status.success(), "{what}: {}", text(&output));
        text(&output)
    };
    eventually("both joined", 60, || async {
        let list = owner.json(&["device", "list"]).await;
        if items(&list).len() == 2 { Ok(()) } else { Err(list.to_string()) }
    })
    .await;
    let push = async |script: &str| {
        folder(&world.repo, DOCKERFILE, script);
        field(&owner.json(&["push", &path]).await, "release")
    };
    let first = push(STAY).await;
    let seen = settled("the first release").await;
    assert!(seen.contains("2 of 2 on target") && !seen.contains(" 0 s to go"), "{seen}");
    let status = owner.json(&["status"]).await;
    assert_eq!(
        (status["fleet"]["devices"]["on_target"].as_u64(), status["devices"].as_array().map(Vec::len)),
        (Some(2), Some(2))
    );

    // Named by name, id, and the beginning of it.
    let id = field(&owner.json(&["device", "show", one]).await, "device_id");
    assert_eq!(owner.json(&["device", "show", &id]).await["name"], one);
    assert_eq!(owner.json(&["device", "show", &id[..8]]).await["name"], one);
    let tagged = owner.json(&["device", "tag", one, "ring=canary", "site=paris"]).await;
    assert_eq!(tagged["tags"]["ring"], "canary");
    assert!(owner.json(&["device", "tag", one, "site="]).await["tags"]["site"].is_null());
    let canaries = owner.json(&["device", "list", "porch", "--tag", "ring=canary"]).await;
    assert_eq!(items(&canaries).len(), 1);
    assert_eq!(items(&canaries)[0]["name"], one);
    assert_eq!(owner.json(&["device", "rename", two, "north"]).await["name"], "north");
    assert_eq!(owner.json(&["device", "rename", "north", two]).await["name"], two);

    // The fleet stays where it was put; a tag goes ahead; a dry run changes nothing.
    let on = async |device: &str| field(&owner.json(&["device", "show", device]).await, "committed_release");
    owner.ok(&["release", "deploy", &first, "--wait"]).await;
    let second = push(&format!("echo second\n{STAY}")).await;
    let canary = ["release", "deploy", &second, "--tag", "ring=canary"];
    let dry = owner.json(&[&canary[..], &["--dry-run"]].concat()).await;
    assert_eq!((dry["dry_run"].as_bool(), dry["devices"].as_u64()), (Some(true), Some(1)));
    assert!(owner.json(&["device", "show", one]).await["pinned_release"].is_null(), "a dry run pins nothing");
    fails_and_says(
        owner,
        &["release", "deploy", &second, "--tag", "ring=canray"],
        4,
        "not_found",
        "device tag",
    )
    .await;
    owner.ok(&[&canary[..], &["--wait", "--timeout", "90"]].concat()).await;
    assert_eq!((on(one).await, on(two).await), (second.clone(), first.clone()));
    assert_eq!(owner.json(&["device", "unpin", one]).await["pinned_release"], Value::Null);
    settled("it follows its fleet again").await;
    assert_eq!(on(one).await, first);
    let version = field(&owner.json(&["release", "show", &second]).await, "version");
    assert_eq!(
        owner.json(&["device", "pin", two, &format!("v{version}")]).await["pinned_release"],
        second.as_str()
    );
    settled("the pinned one runs what it is pinned to").await;
    assert_eq!((on(one).await, on(two).await), (first.clone(), second.clone()));
    owner.ok(&["device", "unpin", two]).await;
    let both = format!("{one},{two}");
    owner.ok(&["release", "deploy", &second, "--device", &both, "--wait"]).await;
    assert_eq!((on(one).await, on(two).await), (second.clone(), second.clone()));
    owner.ok(&["release", "deploy", "latest", "--wait"]).await;

    // A release that needs what is not there is given up; what is said of it is not said of the next.
    let picky = push(&format!("[ -e /data/ok ] || {{ echo no /data/ok; exit 7; }}\n{STAY}")).await;
    let error = fails(owner, &["release", "deploy", "latest", "--wait"], 1, "device_failed").await;
    assert!(field(&error, "why").contains("gave up"), "{error}");
    for index in 0..2 {
        world.reason(index, "rolled_back").await;
    }
    let shown = owner.ok(&["device", "show", one]).await;
    assert!(shown.contains("rolled_back") && shown.contains("no /data/ok"), "{shown}");
    let events = owner.json(&["device", "events", one, "--limit", "5"]).await;
    assert!(events.to_string().contains("rolled_back"), "{events}");
    let container = field(&world.service(0, "app").await, "Id");
    engine::docker(None, &["exec", &container, "/bin/busybox", "touch", "/data/ok"]);
    owner.ok(&["device", "retry", one]).await;
    eventually("the device tried again", 90, || async {
        let device = owner.json(&["device", "show", one]).await;
        let there = device["on_target"] == true && device["committed_release"] == picky.as_str();
        there.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    owner.ok(&["release", "deploy", &second, "--wait"]).await;
    assert_eq!((on(one).await, on(two).await), (second.clone(), second.clone()));

    // A copy of a device shows itself; the owner says which is right.
    world.devices[0].kill().await;
    let mut copy = Device::new();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([world.devices[0].config_file(), world.devices[0].state_dir(), copy.dir.path().to_owned()])
        .status();
    assert!(copied.unwrap().success());
    for _ in 0..2 {
        // Each login moves the chain on; the link before the newest still counts.
        let before = link(&world.devices[0]);
        world.devices[0].start();
        eventually("it logged in", 60, || async {
            if link(&world.devices[0]) != before { Ok(()) } else { Err(world.devices[0].log()) }
        })
        .await;
        world.devices[0].kill().await;
    }
    copy.start();
    world.reason(0, "clone_suspected").await;
    copy.kill().await;
    assert!(world.owner.ok(&["device", "list"]).await.contains("clone suspected"));
    assert_eq!(world.owner.json(&["device", "accept", &names[0]]).await["clone_suspected"], false);
    world.devices[0].start();
    world.on_target(&second).await;

    // Shut out for good: asked first, and without a terminal nobody answers.
    let owner = &world.owner;
    fails_and_says(owner, &["device", "revoke", &names[1]], 2, "usage", "--yes").await;
    assert_eq!(owner.json(&["device", "revoke", &names[1], "--yes"]).await["state"], "revoked");
    fails(owner, &["device", "accept", &names[1]], 3, "device_revoked").await;
    fails(owner, &["device", "pin", &names[1], &first], 4, "not_found").await;
}

/// What an agent keeps of its newest login; each login makes another.
fn link(device: &Device) -> Vec<u8> {
    let files = ["a", "b"].map(|copy| std::fs::read(device.state_dir().join(format!("session.{copy}"))));
    files.into_iter().flat_map(Result::unwrap_or_default).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_has_its_exit_code_and_says_what_to_do() {
    let mut world = World::new(0).await;
    let owner = &world.owner;
    let hash = "0".repeat(64);

    // Every command that only looks, on a fleet with nothing in it: words for people, one JSON document for programs.
    for words in [
        "build list",
        "device list",
        "device tokens list",
        "device cards list",
        "release list",
        "env list",
        "token list",
        "user list",
        "member list",
        "audit list --limit 3",
        "audit verify",
        "device list --filter online",
        "fleet list",
        "fleet show",
        "status",
        "whoami",
        "server show",
        "version",
        "keys show",
        "root show",
        "root show --offline",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        assert!(!owner.ok(&words).await.trim().is_empty(), "{words:?}");
        owner.json(&words).await;
    }

    // Completions.
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = owner.ok(&["completions", shell]).await;
        assert!(script.contains("completions") && script.contains("until-on-target"), "{shell}");
    }
    assert_eq!(completed(owner, "copal rel").await, "release");
    assert!(completed(owner, "copal release deploy --").await.contains("--dry-run"));

    // What there is none of.
    fails_and_says(owner, &["status", "attic"], 4, "not_found", "copal fleet list").await;
    fails_and_says(owner, &["device", "list", "attic"], 4, "not_found", "copal fleet list").await;
    fails_and_says(
        owner,
        &["device", "show", "nobody", "--fleet", "attic"],
        4,
        "not_found",
        "copal fleet list",
    )
    .await;
    fails_and_says(owner, &["device", "show", "nobody"], 4, "not_found", "copal device list").await;
    fails_and_says(owner, &["device", "retry", &hash[..32]], 4, "not_found", "copal device list").await;
    fails_and_says(owner, &["release", "show", "9.9.9"], 4, "not_found", "copal release list").await;
    fails_and_says(owner, &["release", "show", &hash], 4, "not_found", "copal release list").await;
    fails(owner, &["release", "show", "latest"], 4, "not_found").await;
    fails(owner, &["release", "deploy", "latest"], 4, "not_found").await;
    for word in ["show", "log", "watch", "retry"] {
        fails_and_says(owner, &["build", word, "nothing"], 4, "not_found", "copal build list").await;
    }
    fails(owner, &["token", "revoke", "nothing"], 4, "not_found").await;

    // Command lines that make no sense, or leave open what is meant.
    for words in
        [&["release"][..], &["device", "show"], &["no-such-command"], &["status", "--until-on-target"]]
    {
        assert_eq!(owner.run(words, "").await.status.code(), Some(2), "{words:?}");
    }
    fails(owner, &["device", "tag", "nobody", "canary"], 2, "usage").await;
    owner.fleet("cellar", &[]).await;
    fails_and_says(owner, &["status"], 2, "usage", "--fleet").await;
    assert_eq!(owner.json(&["status", "--fleet", "cellar"]).await["fleet"]["slug"], "cellar");
    assert_eq!(run_with(owner, &["status", "--json"], &[("COPAL_FLEET", "cellar")]).await.0, Some(0));

    // A person of one fleet: sees it and no other, and nothing once taken out of it.
    let made = owner.run(&["user", "create", "max@example.org"], "correct horse battery").await;
    assert!(made.status.success(), "{}", text(&made));
    fails(owner, &["user", "change", "nobody@example.org", "--disable"], 4, "not_found").await;
    fails(owner, &["member", "set", "nobody@example.org", "viewer", "--fleet", "porch"], 4, "user_unknown")
        .await;
    let set = owner.ok(&["member", "set", "max@example.org", "operator", "--fleet", "porch"]).await;
    assert!(set.contains("max@example.org is operator on porch"), "{set}");
    assert_eq!(owner.json(&["member", "list", "porch"]).await["items"][0]["server_role"], "member");
    owner.ok(&["member", "remove", "max@example.org", "--fleet", "porch"]).await;
    fails(owner, &["member", "remove", "max@example.org", "--fleet", "porch"], 4, "not_found").await;
    assert!(owner.ok(&["user", "change", "max@example.org", "--disable"]).await.contains("shut out"));

    // A token that may only read, of one fleet; revoked, it is worth nothing.
    let args = ["token", "create", "ci", "--scope", "read", "--for-fleet", "porch", "--expires", "1h"];
    let made = owner.json(&args).await;
    let (id, token) = (field(&made, "id"), field(&made, "token"));
    assert!(owner.ok(&["token", "list"]).await.contains(&id));
    let env = [("COPAL_TOKEN", token.as_str())];
    assert_eq!(run_with(owner, &["status", "porch"], &env).await.0, Some(0));
    assert_eq!(
        run_with(owner, &["status", "cellar"], &env).await.0,
        Some(4),
        "the other fleet is not there for it"
    );
    let (exit, said) = run_with(owner, &["fleet", "delete", "porch", "--yes"], &env).await;
    assert_eq!(exit, Some(3), "{said}");
    fails_and_says(
        owner,
        &["token", "create", "x", "--for-fleet", "attic"],
        4,
        "not_found",
        "copal fleet list",
    )
    .await;
    assert!(owner.ok(&["token", "create", "quiet", "-q"]).await.starts_with("copal_"));
    owner.ok(&["token", "revoke", &id]).await;
    let (exit, said) = run_with(owner, &["status", "porch"], &env).await;
    assert_eq!(exit, Some(3), "{said}");
    assert!(said.contains("copal login") && !said.contains(&token), "{said}");

    // Nobody signed in; no such server; a server that is down; one that shows something else.
    let stranger = Owner { home: tempfile::tempdir().unwrap() };
    fails_and_says(&stranger, &["status"], 2, "usage", "copal login").await;
    fails_and_says(&stranger, &["status", "--url", &world.cloud.url], 3, "not_signed_in", "copal login")
        .await;
    fails(owner, &["status", "--url", "http://cloud.example.org"], 2, "usage").await;
    let url = world.cloud.url.clone();
    world.cloud.kill().await;
    fails_and_says(&world.owner, &["status", "porch"], 5, "unreachable", "is the server running").await;
    world.cloud.restart().await;
    assert_eq!(world.cloud.url, url);
    world.owner.ok(&["logout"]).await;
    fails_and_says(&world.owner, &["status", "porch"], 3, "not_signed_in", "copal login").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_released_waited_for_unpinned_and_withdrawn_by_the_command_line() {
    let world = World::new(1).await;
    let owner = &world.owner;
    let name = world.devices[0].prefix.clone();
    let name = name.as_str();
    eventually("it joined", 60, || async {
        let list = owner.json(&["device", "list"]).await;
        if items(&list).len() == 1 { Ok(()) } else { Err(list.to_string()) }
    })
    .await;
    assert_eq!(owner.ok(&["os", "list", "porch"]).await.trim(), "none");
    fails_and_says(owner, &["os", "deploy", "porch", "latest", "--all"], 4, "not_found", "copal os release")
        .await;

    let good = world.agent_bundle("9.0.0", &another_agent()).await;
    let made = owner.json(&["os", "release", "porch", &good]).await;
    let good = field(&made["release"], "id");
    assert!(owner.ok(&["os", "list", "porch"]).await.contains("9.0.0"));
    fails(owner, &["os", "deploy", "porch", "9.0.0"], 2, "usage").await;
    let misspelt = ["os", "deploy", "porch", "9.0.0", "--tag", "ring=canray", "--wait"];
    fails_and_says(owner, &misspelt, 4, "not_found", "device tag").await;
    let one = ["os", "deploy", "porch", "9.0.0", "--device", name, "--wait", "--timeout", "120"];
    let dry = owner.json(&[&one[..], &["--dry-run"]].concat()).await;
    assert_eq!((dry["dry_run"].as_bool(), dry["devices"].as_u64()), (Some(true), Some(1)));
    assert!(owner.ok(&one).await.contains("are told to run agent 9.0.0"));
    let agent = async || owner.json(&["device", "show", name]).await["agent"].clone();
    let runs = agent().await;
    assert_eq!((field(&runs, "release"), field(&runs, "pinned")), (good.clone(), good.clone()));

    assert_eq!(owner.json(&["os", "unpin", name]).await["agent"]["pinned"], Value::Null);
    assert!(owner.ok(&["os", "unpin", name]).await.contains(name));
    fails(owner, &["os", "unpin", "nobody"], 4, "not_found").await;
    owner.ok(&["os", "deploy", "porch", "9.0.0", "--all", "--wait", "--timeout", "60"]).await;

    // One that is for nothing: the wait says so, it is taken back, and devices go back to the one before.
    let bad = world.agent_bundle("9.1.0", b"\x7fELF of no machine").await;
    let all = ["os", "release", "porch", &bad, "--deploy", "all"];
    let bad = field(&owner.json(&all).await["release"], "id");
    let wait = ["os", "deploy", "porch", "9.1.0", "--all", "--wait"];
    let error = fails(owner, &wait, 1, "device_failed").await;
    assert!(field(&error, "why").contains("agent_exec"), "{error}");
    assert_eq!(owner.json(&["os", "retry", "porch", "9.1.0", "--all"]).await["count"], 1);
    fails(owner, &["os", "withdraw", "porch", "9.1.0", "--reason", " "], 3, "reason_missing").await;
    let done = owner.json(&["os", "withdraw", "porch", "9.1.0", "--reason", "starts nowhere"]).await;
    assert_eq!((field(&done, "target"), done["devices"].as_u64()), (good.clone(), Some(1)));
    let shown = owner.ok(&["os", "show", "porch", &bad[..12]]).await;
    assert!(shown.contains("starts nowhere"), "{shown}");
    assert!(owner.ok(&["os", "list", "porch"]).await.contains("starts nowhere"));
    eventually("it is on target again", 60, || async {
        let device = owner.json(&["device", "show", name]).await;
        let there =
            device["agent"]["target"]["release"] == good.as_str() && device["agent"]["reason"].is_null();
        there.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    fails_and_says(owner, &wait, 3, "release_invalidated", "copal os withdraw porch 9.1.0 --undo").await;
    assert!(
        owner.ok(&["os", "withdraw", "porch", "9.1.0", "--undo"]).await.contains("may be deployed again")
    );
    assert!(owner.ok(&["audit", "list"]).await.contains("host_release.withdraw"));

    assert_eq!(owner.json(&["os", "window", "porch", "22:30-04:00"]).await["reboot_window"], "22:30-04:00");
    assert!(owner.ok(&["os", "window", "porch", "none"]).await.contains("at any time"));
    assert_eq!(owner.json(&["fleet", "check-every", "porch", "1h"]).await["check_every_s"], 3600);
    assert!(owner.ok(&["fleet", "check-every", "porch", "default"]).await.contains("as each one says"));
    assert_eq!(owner.run(&["fleet", "check-every", "porch", "1m"], "").await.status.code(), Some(2));
    assert_eq!(owner.run(&["os", "window", "porch", "tonight"], "").await.status.code(), Some(2));
}

/// Exit code and everything said, with more in the environment.
async fn run_with(owner: &Owner, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(copal_e2e::binary("copal"));
    command.args(args).env("COPAL_HOME", owner.home.path()).envs(env.iter().copied());
    let output = command.stdin(std::process::Stdio::null()).output().await.unwrap();
    (output.status.code(), text(&output))
}

/// What bash offers for a line, by the script `copal completions bash` prints.
async fn completed(owner: &Owner, line: &str) -> String {
    let script = owner.ok(&["completions", "bash"]).await;
    let dir = tempfile::tempdir().unwrap();
    let file: &Path = &dir.path().join("copal");
    std::fs::write(file, script).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let ask = format!(
        "source {}; COMP_WORDS=({line}); [ '{last}' ] || COMP_WORDS+=(''); COMP_CWORD={at}; \
         _copal copal '{last}' '{before}'; echo \"${{COMPREPLY[*]}}\"",
        file.display(),
        last = words[words.len() - 1],
        before = words[words.len() - 2],
        at = words.len() - 1,
    );
    let output = tokio::process::Command::new("bash").args(["--norc", "-c", &ask]).output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
