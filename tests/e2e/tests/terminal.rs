//! Terminals: a person's shell on a device, by those who may, for as long as they may, and seen by both sides.

use std::{collections::BTreeMap, fs, process::Command};

use copal_e2e::{
    engine, eventually, http,
    pty::Pty,
    repo::{STAY, Services},
    terminal::{SHORT, Web, attach, copal, grant, newest, opening, operator_key, signed, world_with},
    text,
    world::World,
};
use copal_protocol::{
    asciicast,
    documents::TerminalGrant,
    ids::DeviceId,
    keys::SigningKey,
    terminal::{RecordKind, record},
};
use serde_json::{Value, json};

async fn refused(world: &World, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = world.owner.run(&args, "").await;
    assert!(!output.status.success(), "copal {args:?}: {}", text(&output));
    let error = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
    let error: Value = serde_json::from_str(&error).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    error["error"].clone()
}

/// Commands that run in a service's container, as the engine sees them.
async fn processes(world: &World, service: &str) -> String {
    let container = world.service(0, service).await;
    engine::docker(None, &["top", container["Id"].as_str().unwrap(), "-o", "pid,args"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_types_resizes_and_leaves_and_the_terminal_is_as_before() {
    let (world, name) = world_with(&[]).await;
    let mut pty = Pty::start(&copal(&world, &["shell", &name, "app", "--reason", "it looks odd"]));
    pty.shows("# ").await;
    pty.types("echo here-$((40+2)); stty size\r");
    pty.shows("here-42").await;
    pty.shows("24 80").await;
    pty.resize(132, 43);
    eventually("the window's new size is known there", 30, || async {
        pty.types("stty size\r");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        if pty.shown().contains("43 132") { Ok(()) } else { Err(pty.shown()) }
    })
    .await;
    // It is seen at the device, with who and why, and by the cloud.
    let there = world.devices[0].command("terminal").arg("list").output().await.unwrap();
    assert!(text(&there).contains("it looks odd"), "{}", text(&there));
    let live = world.owner.json(&["sessions", "list", "--live"]).await;
    assert_eq!(live["items"][0]["state"], "open", "{live}");
    // While that and logs are open, nobody can reach the agent but by what it opened itself.
    let mut logs = tokio::process::Command::from(copal(&world, &["logs", &name, "-f"]));
    let _logs = logs.stdout(std::process::Stdio::null()).kill_on_drop(true).spawn().unwrap();
    eventually("the logs are open", 30, || async {
        let audit = world.cloud.get("/audit?limit=5").await.to_string();
        if audit.contains("logs.read") { Ok(()) } else { Err(audit) }
    })
    .await;
    let device = world.device(0).await.unwrap();
    assert_eq!((&device["channel"], world.devices[0].open_ports()), (&json!("socket"), vec![]));
    // Ctrl-C reaches what runs there and does not end the terminal here.
    pty.types("sleep 600\r");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    pty.types("\u{3}");
    pty.types("sh -c 'sleep 601 & sleep 602 & exit' ; exit 7\r");
    assert_eq!(pty.ends().await, (Some(7), true), "{}", pty.shown());
    let session = newest(&world).await;
    let facts = [&session["state"], &session["code"], &session["exit_code"], &session["reason"]];
    assert_eq!(facts, [&json!("ended"), &json!("ended"), &json!(7), &json!("it looks odd")], "{session}");
    let left = processes(&world, "app").await;
    assert!(!left.contains("sleep 60"), "what it began in the background is gone, too: {left}");
    assert!(fs::read_dir(world.devices[0].run_dir().join("terminals")).unwrap().next().is_none());
    let audit = world.owner.ok(&["audit", "list", "--json"]).await;
    assert!(audit.contains("terminal.open") && audit.contains("terminal.end"), "{audit}");
    world.owner.ok(&["audit", "verify"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_of_any_bytes_come_through_and_the_recording_has_them_all() {
    let (world, name) = world_with(&[]).await;
    let busybox = fs::read(world.repo.path().join("app/busybox")).unwrap();
    let times = (10 << 20) / busybox.len() + 1;
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", world.devices[0].pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let script = format!(
        "stty raw -echo; printf BE'GI'N; i=0; while [ $i -lt {times} ]; do cat /bin/busybox; i=$((i+1)); done; printf E'N'D; exit 9\n"
    );
    let run = || async {
        let output = world.owner.run(&["shell", &name, "app", "--reason", "bytes", "-q"], &script).await;
        assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let first = run().await;
    let expected = [&b"BEGIN"[..], &busybox.repeat(times), b"END"].concat();
    assert!(first.len() >= expected.len());
    let at = first.len() - expected.len();
    assert!(first[at..] == expected[..], "{} bytes came, {} were sent", first.len(), expected.len());
    let before = resident();

    let session = newest(&world).await;
    let id = session["id"].as_str().unwrap();
    assert_eq!(session["bytes_out"].as_u64().unwrap(), first.len() as u64);
    let file = world.devices[0].dir.path().join("recording.cast");
    world.owner.ok(&["sessions", "download", id, "--out", file.to_str().unwrap()]).await;
    let recording = fs::read_to_string(&file).unwrap();
    assert!(asciicast::output(&recording) == first, "the recording has every byte");
    assert_eq!(
        fs::read(world.cloud.dir.path().join(format!("recordings/{id}.cast"))).unwrap(),
        recording.as_bytes()
    );
    let replayed = world.owner.run(&["sessions", "replay", id, "--fast"], "").await;
    assert!(replayed.stdout == first, "and so has its replay");
    let header: Value = serde_json::from_str(recording.lines().next().unwrap()).unwrap();
    assert_eq!(header["version"], 2);

    run().await;
    let after = resident();
    println!("resident memory of the agent: {before} KiB after 10 MB, {after} KiB after 20 MB");
    assert!(after < before + 8 * 1024, "{before} KiB, then {after} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_by_either_side_ends_it_with_all_it_began_and_so_do_its_bounds() {
    let (world, name) = world_with(&[]).await;
    let begin = |reason: &'static str, more: &'static [&'static str]| {
        let mut args = vec!["shell", &name, "app", "--reason", reason];
        args.extend(more);
        Pty::start(&copal(&world, &args))
    };
    // In the cloud.
    let mut pty = begin("one", &[]);
    pty.shows("# ").await;
    pty.types("setsid sleep 611 & (trap '' HUP; exec sleep 612) >/dev/null 2>&1 & sleep 613\r");
    eventually("they run", 30, || async {
        let list = processes(&world, "app").await;
        if ["sleep 611", "sleep 612", "sleep 613"].iter().all(|s| list.contains(s)) {
            Ok(())
        } else {
            Err(list)
        }
    })
    .await;
    let id = newest(&world).await["id"].as_str().unwrap().to_owned();
    world.owner.ok(&["sessions", "kill", &id]).await;
    let (code, as_before) = pty.ends().await;
    assert_eq!((code, as_before), (Some(1), true), "{}", pty.shown());
    assert!(pty.shown().contains("killed"), "{}", pty.shown());
    eventually("nothing of it runs", 20, || async {
        let list = processes(&world, "app").await;
        if list.contains("sleep 61") { Err(list) } else { Ok(()) }
    })
    .await;
    let session = world.owner.json(&["sessions", "show", &id]).await;
    assert_eq!(session["code"], "killed", "{session}");

    // At the device.
    let mut pty = begin("two", &[]);
    pty.shows("# ").await;
    pty.types("sleep 621\r");
    let killed = world.devices[0].command("terminal").arg("kill").output().await.unwrap();
    assert!(killed.status.success() && text(&killed).contains("is ended"), "{}", text(&killed));
    assert_eq!(pty.ends().await, (Some(1), true), "{}", pty.shown());
    assert!(pty.shown().contains("killed_on_device"), "{}", pty.shown());
    let list = processes(&world, "app").await;
    assert!(!list.contains("sleep 621"), "{list}");

    // By itself.
    let mut pty = begin("three", &["--idle", "2s"]);
    pty.shows("# ").await;
    pty.types("while :; do echo still; sleep 1; done\r");
    assert_eq!(pty.ends().await, (Some(1), true), "{}", pty.shown());
    assert!(pty.shown().contains("idle"), "{}", pty.shown());
    let mut pty = begin("long", &["--max", "2s"]);
    pty.shows("# ").await;
    pty.types("sleep 631\r");
    assert_eq!(pty.ends().await, (Some(1), true), "{}", pty.shown());
    assert!(pty.shown().contains("time_over"), "{}", pty.shown());
    assert_eq!(newest(&world).await["code"], "time_over");
    let list = processes(&world, "app").await;
    assert!(!list.contains("sleep 631"), "{list}");

    // All of a fleet, of a device, of the server; and none opens while they are held back.
    for words in [&["--all"][..], &["--all", "--device", &name], &["--all", "--server"]] {
        let mut pair = [begin("of many", &[]), begin("of many", &[])];
        for pty in &pair {
            pty.shows("# ").await;
        }
        let killed = world.owner.json(&[&["sessions", "kill"], words].concat()).await;
        assert_eq!(killed["ended"].as_array().unwrap().len(), 2, "{killed}");
        for pty in &mut pair {
            assert_eq!(pty.ends().await, (Some(1), true), "{}", pty.shown());
            assert!(pty.shown().contains("killed"), "{}", pty.shown());
        }
    }
    for server in [&[][..], &["--server"]] {
        world.owner.ok(&[&["sessions", "off", "--why", "a laptop is gone"], server].concat()).await;
        let error = refused(&world, &["shell", &name, "app", "--reason", "x"]).await;
        assert_eq!(error["code"], "terminal_stopped", "{error}");
        assert!(error["why"].to_string().contains("a laptop is gone"), "{error}");
        world.owner.ok(&[&["sessions", "on"], server].concat()).await;
    }
    let audit = world.owner.ok(&["audit", "list", "--json", "--limit", "200"]).await;
    let verbs = ["terminal.kill", "terminal.stop", "terminal.let"].map(|verb| audit.matches(verb).count());
    assert_eq!(verbs, [7, 2, 2], "{audit}");

    // The agent's death ends it here, and its next start ends what was left there.
    let mut world = world;
    let mut pty = Pty::start(&copal(&world, &["shell", &name, "app", "--reason", "four"]));
    pty.shows("# ").await;
    pty.types("(trap '' HUP; exec sleep 641) >/dev/null 2>&1 &\r");
    pty.shows("641").await;
    world.devices[0].kill().await;
    let (code, as_before) = pty.ends().await;
    assert!(code != Some(0) && as_before, "{code:?} {}", pty.shown());
    world.devices[0].start();
    eventually("nothing of it runs", 30, || async {
        let list = processes(&world, "app").await;
        if list.contains("sleep 641") { Err(list) } else { Ok(()) }
    })
    .await;

    // A container whose shell sweeps nothing and says that all is well: it is not taken at its word.
    let lies = "setsid sleep 661 >/dev/null 2>&1 &\nrm /bin/sh; printf '#!/bin/busybox true\\n' >/bin/sh; chmod 755 /bin/sh; exit 6\n";
    eventually("a session in it ends", 60, || async {
        let output = world.owner.run(&["shell", &name, "app", "--reason", "five"], lies).await;
        if output.status.code() == Some(6) { Ok(()) } else { Err(text(&output)) }
    })
    .await;
    let list = processes(&world, "app").await;
    assert!(!list.contains("sleep 661"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_gets_none_and_the_device_has_the_last_word() {
    let (world, name) = world_with(&[]).await;
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let route = format!("/fleets/porch/devices/{device}/terminal");
    let good = json!({"service": "app", "reason": "x"});
    for (body, code) in [
        (json!({"service": "app"}), "reason_missing"),
        (json!({"service": "app", "reason": "  "}), "reason_missing"),
        (json!({"service": "app", "reason": "a\nb"}), "reason_invalid"),
        (json!({"reason": "x"}), "target_invalid"),
        (json!({"service": "app", "host": true, "reason": "x"}), "target_invalid"),
        (json!({"service": "../app", "reason": "x"}), "target_invalid"),
        (json!({"service": "app", "reason": "x", "cols": 0}), "size_invalid"),
        (json!({"service": "app", "reason": "x", "max_s": 100_000}), "bound_invalid"),
    ] {
        let (status, answer) = world.cloud.try_call("POST", &route, Some(body.clone())).await;
        assert_eq!((status, answer["code"].as_str()), (422, Some(code)), "{body}: {answer}");
    }
    assert_eq!(refused(&world, &["shell", &name, "app"]).await["code"], "usage");

    // Roles, and tokens.
    let token = |role: &'static str, scope: &'static str| {
        let world = &world;
        async move {
            let email = format!("{role}-{scope}@example.org");
            let person = json!({"email": email, "password": "a long enough one", "role": role});
            world.cloud.call("POST", "/users", person).await;
            let url = format!("{}/api/v1", world.cloud.url);
            let signed_in = http()
                .post(format!("{url}/session"))
                .json(&json!({"email": email, "password": "a long enough one"}))
                .header("x-copal-csrf", "1")
                .send()
                .await
                .unwrap();
            let cookie =
                signed_in.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
            let made = http()
                .post(format!("{url}/tokens"))
                .header("cookie", &cookie)
                .header("x-copal-csrf", "1")
                .json(&json!({"name": "t", "scope": scope}))
                .send()
                .await
                .unwrap();
            let made: Value = made.json().await.unwrap();
            (made["token"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned(), cookie)
        }
    };
    let ask = |token: String, body: Value| {
        let url = format!("{}/api/v1{route}", world.cloud.url);
        async move {
            let answer = http().post(url).bearer_auth(token).json(&body).send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let (viewer, _) = token("viewer", "full").await;
    let (status, answer) = ask(viewer.clone(), good.clone()).await;
    assert_eq!((status, answer["code"].as_str()), (403, Some("role_insufficient")));
    let (reader, _) = token("operator", "read").await;
    assert_eq!(ask(reader, good.clone()).await.0, 403);
    let (operator, cookie) = token("operator", "full").await;
    assert_eq!(
        ask(operator.clone(), json!({"host": true, "reason": "x"})).await.0,
        403,
        "the device itself is an admin's"
    );
    let (status, session) = ask(operator.clone(), good.clone()).await;
    assert_eq!(status, 201, "{session}");

    // Who asked for it comes for it, and nobody else; a foreign page with the cookie does not.
    let path = session["path"].as_str().unwrap();
    let attach = |headers: BTreeMap<&'static str, String>| attach(&world, path, headers);
    let bearer = |token: &str| BTreeMap::from([("authorization", format!("Bearer {token}"))]);
    assert_eq!(attach(bearer(&viewer)).await.err(), Some(404));
    assert_eq!(attach(bearer(&world.cloud.token)).await.err(), Some(404));
    assert_eq!(attach(BTreeMap::new()).await.err(), Some(401));
    let with_cookie = |origin: Option<&str>| {
        let mut headers = BTreeMap::from([("cookie", cookie.clone())]);
        headers.extend(origin.map(|o| ("origin", o.to_owned())));
        headers
    };
    let by_page = http()
        .post(format!("{}/api/v1{route}", world.cloud.url))
        .header("cookie", &cookie)
        .header("x-copal-csrf", "1")
        .json(&good)
        .send()
        .await
        .unwrap();
    let of_page: Value = by_page.json().await.unwrap();
    let of_page = of_page["path"].as_str().unwrap();
    for origin in [None, Some("https://evil.example"), Some("null")] {
        assert_eq!(self::attach(&world, of_page, with_cookie(origin)).await.err(), Some(403), "{origin:?}");
    }
    let mut browser = Web(self::attach(&world, of_page, with_cookie(Some(&world.cloud.url))).await.unwrap());
    assert_eq!(browser.text().await["t"], "opened", "a page of this server opens it");
    browser.say(b"echo in-the-$((1+1))-browser\r").await;
    browser.shows("in-the-2-browser").await;
    // Whoever may no longer is cut off.
    let users = world.cloud.get("/users").await;
    let id = users["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|u| u["email"] == "operator-full@example.org")
        .unwrap()["id"]
        .clone();
    world.cloud.call("PATCH", &format!("/users/{}", id.as_str().unwrap()), json!({"role": "viewer"})).await;
    let closed = browser.closed().await;
    assert_eq!(closed["code"], "access_lost", "{closed}");

    // What the device says.
    assert_eq!(refused(&world, &["shell", &name, "bare", "--reason", "x"]).await["code"], "no_shell");
    assert_eq!(refused(&world, &["shell", &name, "none", "--reason", "x"]).await["code"], "service_unknown");
    assert_eq!(refused(&world, &["shell", &name, "--host", "--reason", "x"]).await["code"], "policy_local");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_file_of_the_device_opens_the_device_itself_and_shuts_everything_at_once() {
    let mut world = World::new(0).await;
    let mut device = copal_e2e::device::Device::new();
    let policy = device.dir.path().join("policy.toml");
    fs::write(&policy, "[terminal]\nhost = true\n").unwrap();
    device.env.push(("COPAL_POLICY".to_owned(), policy.display().to_string()));
    world.join_as(device, None).await;
    let name = world.devices[0].prefix.clone();
    eventually("it has a channel", 60, || async {
        let log = world.devices[0].log();
        if log.contains("the channel is up") { Ok(()) } else { Err(log) }
    })
    .await;
    let mut pty = Pty::start(&copal(&world, &["shell", &name, "--host", "--reason", "the disk"]));
    pty.shows("# ").await;
    pty.types("echo $((6*7))-; tty; stty size\r");
    pty.shows("42-").await;
    pty.shows("/dev/pts/").await;
    pty.shows("24 80").await;
    pty.types("setsid sleep 651 & sleep 652\r");
    pty.shows("652").await;
    let pids = || {
        let found = Command::new("pgrep").args(["-fx", "sleep 65[12]"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap()
    };
    eventually("they run", 20, || async { if pids().lines().count() == 2 { Ok(()) } else { Err(pids()) } })
        .await;
    fs::write(&policy, "[terminal]\nhost = true\nenabled = false\n").unwrap();
    assert_eq!(pty.ends().await, (Some(1), true), "{}", pty.shown());
    assert!(pty.shown().contains("policy_changed"), "{}", pty.shown());
    assert_eq!(pids(), "", "nothing of it runs");
    assert_eq!(refused(&world, &["shell", &name, "--host", "--reason", "x"]).await["code"], "policy_local");
    fs::write(&policy, "[terminal]\nhost = true\n").unwrap();
    let output = world.owner.run(&["shell", &name, "--host", "--reason", "x"], "exit 3\n").await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_grant_the_owner_opens_it_and_the_cloud_sees_nothing() {
    let world = World::with_fleet(1, &[]).await;
    let made = world.owner.json(&["keys", "add", "operator"]).await;
    let public = made["items"][0]["public_key"].as_str().unwrap_or_else(|| panic!("{made}"));
    world.owner.ok(&["root", "add-key", "operator", public, "--fleet", "porch", "--yes"]).await;
    world.owner.ok(&["root", "policy", "--terminal", "grant", "--fleet", "porch", "--yes"]).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"/bin\"]\nCOPY run.sh /run.sh\n\
                      CMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";
    world.repo.write("app/Dockerfile", dockerfile);
    world.push_and_settle("works").await;
    let name = world.devices[0].prefix.clone();

    let mut pty = Pty::start(&copal(&world, &["shell", &name, "app", "--reason", "a leak"]));
    pty.shows("# ").await;
    pty.types("echo sec''ret-$((40+2)); exit 4\r");
    assert_eq!(pty.ends().await, (Some(4), true), "{}", pty.shown());
    assert!(pty.shown().contains("secret-42"), "{}", pty.shown());
    let session = newest(&world).await;
    let id = session["id"].as_str().unwrap().to_owned();
    assert_eq!((&session["mode"], &session["recording_bytes"]), (&json!("grant"), &Value::Null), "{session}");
    assert!(fs::read_dir(world.cloud.dir.path().join("recordings")).unwrap().next().is_none());
    // The device has the recording, and gives it for another grant alone.
    let route = format!("/fleets/porch/sessions/{id}/recording");
    assert_eq!(world.cloud.try_call("GET", &route, None).await.1["code"], "recording_missing");
    let replayed = world.owner.ok(&["sessions", "replay", &id]).await;
    assert!(replayed.contains("secret-42"), "{replayed}");
    let on_disk = fs::read(world.devices[0].state_dir().join(format!("recordings/{id}.cast"))).unwrap();
    let file = world.devices[0].dir.path().join("fetched.cast");
    world.owner.ok(&["sessions", "download", &id, "--out", file.to_str().unwrap()]).await;
    assert_eq!(fs::read(&file).unwrap(), on_disk);

    // A hand-made client, with grants of its own making.
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let operator = operator_key(&world);
    let open = || opening(&world, &device);
    let (mut web, offer, mut line, key) = open().await;
    let used = grant(&offer, key);
    web.say(&signed(&used, &operator)).await;
    web.say(&line.says.seal(b"echo by-$((1+2))-hand; exit 5\r")).await;
    let (closed, shown) = web.until_closed(&mut line).await;
    assert_eq!((&closed["code"], &closed["exit_code"]), (&json!("ended"), &json!(5)), "{closed}");
    assert!(shown.contains("by-3-hand"), "{shown}");

    // It lasts as long and carries as much as was signed, whatever the cloud asked for.
    for (max_s, max_bytes, typed, code) in [
        (2, 1 << 20, "sleep 632\r", "time_over"),
        (60, 20_000, "cat /bin/busybox\r", "bytes_over"),
        (60, 20_000, "stty -echo; cat > /dev/null\r", "bytes_over"),
    ] {
        let (mut web, offer, mut line, key) = open().await;
        let short = TerminalGrant { max_s, max_bytes, ..grant(&offer, key) };
        web.say(&signed(&short, &operator)).await;
        web.say(&line.says.seal(typed.as_bytes())).await;
        if typed.contains("/dev/null") {
            for _ in 0..2 {
                web.say(&line.says.seal(&[b'x'; 10_000])).await;
            }
        }
        let (closed, _) = web.until_closed(&mut line).await;
        assert_eq!(closed["code"], code, "{typed}: {closed}");
    }

    let stranger = SigningKey::from_seed(&[7; 32]);
    for case in ["forged", "replayed", "renamed", "foreign", "challenge", "target", "long", "clear", "none"] {
        let (mut web, offer, mut line, key) = open().await;
        let good = grant(&offer, key);
        let (said, code) = match case {
            "forged" => (signed(&good, &stranger), "E_SIG_UNKNOWN_KEY"),
            "replayed" => (signed(&used, &operator), "E_GRANT_SESSION"),
            "renamed" => {
                let renamed = TerminalGrant { session_id: offer.session_id, ..used.clone() };
                (signed(&renamed, &operator), "E_GRANT_CHALLENGE")
            }
            "foreign" => {
                let foreign = TerminalGrant { device_id: DeviceId::from_bytes([1; 16]), ..good };
                (signed(&foreign, &operator), "E_DEVICE_MISMATCH")
            }
            "challenge" => {
                (signed(&TerminalGrant { challenge: used.challenge, ..good }, &operator), "E_GRANT_CHALLENGE")
            }
            "target" => {
                let target = copal_protocol::documents::TerminalTarget::Host;
                (signed(&TerminalGrant { target, ..good }, &operator), "E_GRANT_TARGET")
            }
            "long" => (signed(&TerminalGrant { max_s: 901, ..good }, &operator), "E_PAYLOAD"),
            "clear" => (b"id\r".to_vec(), "line_broken"),
            _ => (line.says.seal(b"id\r"), "line_broken"),
        };
        web.say(&said).await;
        let closed = web.closed().await;
        assert_eq!(closed["code"], code, "{case}: {closed}");
    }
    // What was granted is typed by the operator alone: what the server adds ends it.
    let (mut web, offer, mut line, key) = open().await;
    web.say(&signed(&grant(&offer, key), &operator)).await;
    web.say(&line.says.seal(b"echo one-$((1+1))\r")).await;
    web.say(&record(RecordKind::Sealed, &[0; 32])).await;
    let (closed, _) = web.until_closed(&mut line).await;
    assert_eq!(closed["code"], "line_broken", "{closed}");
    // Root says no: nothing opens any more.
    world.owner.ok(&["root", "policy", "--terminal", "off", "--fleet", "porch", "--yes"]).await;
    let error = refused(&world, &["shell", &name, "app", "--reason", "x"]).await;
    assert_eq!(error["code"], "terminal_off", "{error}");
}
