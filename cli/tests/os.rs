//! Operating systems and agents: bundles uploaded through lost connections, and the key that signs them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::PathBuf;

use common::{World, problem};
use copal_bundle::file;
use copal_cli::home::keyfile::KeyFile;
use copal_protocol::{
    documents::{Compat, HostPayload, Release, ReleaseKind, Role, Root, SPEC},
    envelope::Envelope,
    ids::Sha256Hex,
    keys::SigningKey,
    verify::{self, ExpectedRelease, Platform, Purpose, ReleaseMarks},
};
use serde_json::{Value, json};

fn release(binary: &[u8]) -> Release {
    let payload = HostPayload {
        size: binary.len() as u64,
        sha256: Sha256Hex::of(binary),
        index: None,
        verity_root: None,
    };
    Release {
        spec: SPEC,
        fleet_id: common::FLEET_ID.parse().unwrap(),
        kind: ReleaseKind::Host,
        app_id: None,
        counter: 7,
        version: semver::Version::new(1, 2, 3),
        commit: String::new(),
        created_at: 1_700_000_000,
        expires: None,
        rollback_floor: 0,
        compat: Compat { arch: ["amd64".to_owned()].into(), ..Compat::default() },
        build_record: None,
        services: std::collections::BTreeMap::new(),
        volumes: std::collections::BTreeMap::new(),
        networks: std::collections::BTreeMap::new(),
        payloads: [("agent".parse().unwrap(), payload)].into(),
        data_schema: None,
        min_from: None,
        ext: None,
    }
}

/// A bundle file with this `release.json`.
fn bundle(world: &World, document: &[u8], binary: &[u8]) -> PathBuf {
    let path = world.home.path().join("agent.copal");
    let mut out = std::fs::File::create(&path).unwrap();
    for (name, bytes) in [("release.json", document), ("agent.data", binary)] {
        file::begin(&mut out, name, bytes.len() as u64).unwrap();
        std::io::Write::write_all(&mut out, bytes).unwrap();
        file::pad(&mut out, bytes.len() as u64).unwrap();
    }
    file::finish(&mut out).unwrap();
    path
}

fn key(world: &World, name: &str) -> SigningKey {
    let text = std::fs::read_to_string(world.home.path().join("keys/owner").join(name)).unwrap();
    KeyFile::parse(&text, None).unwrap().key
}

fn signed(world: &World, binary: &[u8]) -> PathBuf {
    let envelope = Envelope::sign(&release(binary), &[&key(world, "host.key")]).unwrap();
    bundle(world, &envelope.to_bytes(), binary)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Whether a device that trusts the newest root takes a release signed by this key.
fn accepted(world: &World, key: &SigningKey) -> Result<(), verify::Code> {
    let roots = world.state.lock().unwrap().roots.clone();
    let first = Envelope::parse::<Root>(&roots[0]).unwrap();
    let mut trusted = verify::first_root(&first, common::FLEET_ID.parse().unwrap()).unwrap();
    for next in &roots[1..] {
        trusted = verify::next_root(&trusted, &Envelope::parse::<Root>(next).unwrap()).unwrap();
    }
    let envelope = Envelope::sign(&release(b"agent"), &[key]).unwrap();
    let platform = Platform {
        device_type: "generic".to_owned(),
        arch: "amd64".to_owned(),
        agent: semver::Version::new(1, 0, 0),
        os: None,
    };
    let expected = ExpectedRelease::host(envelope.payload_sha256());
    let purpose = Purpose::Install { now: 1_700_000_001 };
    verify::release(&trusted, &expected, &ReleaseMarks::default(), &platform, purpose, &envelope)
        .map(drop)
        .map_err(|e| e.code)
}

#[test]
fn a_new_fleet_lists_a_host_key_from_its_first_root() {
    let world = World::with_fleet();
    assert_eq!(accepted(&world, &key(&world, "host.key")), Ok(()));
    let shown: Value = serde_json::from_str(&world.ok(&["root", "show", "porch", "--json"], "")).unwrap();
    assert_eq!(shown["version"], 1);
    // One key, one role: neither of the others may.
    for other in ["root.key", "release.key"] {
        assert_eq!(accepted(&world, &key(&world, other)), Err(verify::Code::SigWrongRole), "{other}");
    }
}

#[test]
fn a_fleet_from_before_gets_one_by_a_new_key_and_a_new_root() {
    let world = World::new();
    std::fs::remove_file(world.home.path().join("keys/owner/host.key")).unwrap();
    world.ok(&["fleet", "create", "porch", "--arch", "amd64", "--yes"], "");
    let made: Value =
        serde_json::from_str(&world.ok(&["keys", "add", "host", "--label", "press", "--json"], "")).unwrap();
    let public = made["items"][0]["public_key"].as_str().unwrap();
    let host = key(&world, "host.key");
    assert_eq!(
        (made["items"][0]["role"].as_str(), public),
        (Some("host"), host.public().to_string().as_str())
    );
    assert_eq!(accepted(&world, &host), Err(verify::Code::SigUnknownKey));
    world.ok(&["root", "add-key", "host", public, "--label", "press", "--fleet", "porch"], "");
    assert_eq!(accepted(&world, &host), Ok(()));
    let (code, error) = world.fails(&["keys", "add", "builder"]);
    assert_eq!(code, 2, "{error}");
    let roots = &world.state.lock().unwrap().roots;
    let newest = Envelope::parse::<Root>(&roots[1]).unwrap();
    let root: Root = serde_json::from_slice(newest.payload()).unwrap();
    assert_eq!(root.roles[&Role::Host].threshold, 1);
}

#[test]
fn a_bundle_is_uploaded_through_lost_connections_and_not_twice() {
    let world = World::with_fleet();
    // More than one piece, each of the first two cut in half.
    let binary = bytes(9 << 20);
    let file = signed(&world, &binary);
    world.state.lock().unwrap().cuts = 2;
    let args = ["os", "release", "porch", file.to_str().unwrap(), "--json"];
    let done: Value = serde_json::from_str(&world.ok(&args, "")).unwrap();
    assert_eq!((done["uploaded"].as_u64(), done["skipped"].as_u64()), (Some(9 << 20), Some(0)));
    assert_eq!(done["release"]["version"], "1.2.3");
    {
        let state = world.state.lock().unwrap();
        let (_, have) = state.uploads.values().next().unwrap();
        assert!(*have == binary, "what arrived is what was sent");
        let posts = state.seen.iter().filter(|(key, _)| key == "POST /fleets/porch/host-releases").count();
        assert_eq!(posts, 1);
    }
    let patches = |world: &World| {
        world.state.lock().unwrap().seen.iter().filter(|(key, _)| key.starts_with("PATCH")).count()
    };
    let before = patches(&world);
    let output = world.run(&args[..4], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("agent.data: 9.00 MiB are in the cloud already"), "{said}");
    assert_eq!(patches(&world), before, "nothing is sent again");
}

#[test]
fn it_is_deployed_at_once_where_that_was_asked_and_nothing_is_sent_where_the_place_is_none() {
    let world = World::with_fleet();
    let file = signed(&world, b"agent");
    let file = file.to_str().unwrap();
    let (code, error) = world.fails(&["os", "release", "porch", file, "--tag", "nonsense"]);
    assert_eq!(code, 2, "{error}");
    assert!(world.state.lock().unwrap().uploads.is_empty());
    let deploy = format!("POST /fleets/porch/host-releases/{}/deploy", "ab".repeat(32));
    let answer = json!({ "release": "ab", "version": "1.2.3", "devices": 4, "seqs": {}, "dry_run": false });
    world.answer(&deploy, (200, answer.to_string()));
    let said = world.ok(&["os", "release", "porch", file, "--deploy", "all"], "");
    assert!(said.contains("4 device(s) are told to run it"), "{said}");
    let body = |world: &World| {
        let state = world.state.lock().unwrap();
        let (_, body) = state.seen.iter().rev().find(|(key, _)| *key == deploy).unwrap();
        serde_json::from_str::<Value>(body).unwrap()
    };
    assert_eq!(body(&world), json!({ "all": true }));
    world.ok(&["os", "deploy", "porch", "1.2.3", "--tag", "ring=1", "--dry-run"], "");
    assert_eq!(body(&world), json!({ "tag": { "ring": "1" }, "dry_run": true }));
    assert_eq!(world.fails(&["os", "deploy", "porch", "1.2.3"]).0, 2, "somewhere must be said");
    assert!(world.ok(&["os", "list", "porch"], "").contains("abababababab"));
    assert!(world.ok(&["os", "show", "porch", "abab"], "").contains("1.2.3"));
    assert!(world.ok(&["os", "window", "porch", "22:30-04:00"], "").contains("between 22:30-04:00 UTC"));
    assert!(world.ok(&["os", "window", "porch", "none"], "").contains("at any time"));
    assert_eq!(world.fails(&["os", "window", "porch", "tonight"]).0, 2);
}

/// The fake server has one release, and this device.
fn with_device(device: &Value) -> (World, String) {
    let world = World::with_fleet();
    let file = signed(&world, b"agent");
    world.ok(&["os", "release", "porch", file.to_str().unwrap()], "");
    let id = "ab".repeat(32);
    let told = json!({ "release": id, "version": "1.2.3", "devices": 1, "seqs": {}, "dry_run": false });
    world.answer(&format!("POST /fleets/porch/host-releases/{id}/deploy"), (200, told.to_string()));
    world.answer("GET /fleets/porch/devices", (200, json!({ "items": [device], "next": null }).to_string()));
    (world, id)
}

#[test]
fn a_deployment_is_waited_for_and_says_with_its_exit_code_how_it_ended() {
    let wait = ["os", "deploy", "porch", "1.2.3", "--all", "--wait", "--timeout", "0"];
    let device = |agent: Value| json!({ "device_id": "01".repeat(16), "name": "north", "state": "accepted", "on_target": false, "agent": agent });
    let id = "ab".repeat(32);
    let (world, _) = with_device(&device(json!({ "release": id, "target": { "release": id } })));
    let output = world.run(&wait, "");
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("1 device(s) run it"));

    let trial = json!({ "stage": "agent_trial", "done": 0, "total": 0 });
    let under_way = json!({ "release": id, "target": { "release": id }, "progress": trial });
    let (world, _) = with_device(&device(under_way));
    let (code, error) = world.fails(&wait);
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("not_on_target") && error.contains("north"), "{error}");

    let why = json!({ "code": "agent_exec", "message": "for another machine", "release": id });
    let failed = json!({ "target": { "release": id }, "failed": id, "reason": why });
    let (world, _) = with_device(&device(failed));
    let (code, error) = world.fails(&wait);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("device_failed") && error.contains("for another machine"), "{error}");

    let (world, _) = with_device(&device(json!({ "target": { "release": "cd".repeat(32) } })));
    let (code, error) = world.fails(&wait);
    assert_eq!((code, error.contains("target_changed")), (1, true), "{error}");
}

#[test]
fn a_release_is_taken_back_with_a_reason_and_a_device_follows_its_fleet_again() {
    let (world, id) = with_device(&json!({}));
    let withdraw = format!("POST /fleets/porch/host-releases/{id}/withdraw");
    let answer = json!({ "release": { "id": id }, "target": null, "devices": 3 });
    world.answer(&withdraw, (200, answer.to_string()));
    let body = |world: &World, key: &str| {
        let state = world.state.lock().unwrap();
        let (_, body) = state.seen.iter().rev().find(|(seen, _)| seen == key).unwrap();
        serde_json::from_str::<Value>(body).unwrap()
    };
    let said = world.ok(&["os", "withdraw", "porch", "1.2.3", "--reason", "too hot"], "");
    assert!(said.contains("3 device(s) were given it") && said.contains("to run nothing"), "{said}");
    assert_eq!(body(&world, &withdraw), json!({ "reason": "too hot" }));
    let said = world.ok(&["os", "withdraw", "porch", "1.2.3", "--undo"], "");
    assert!(said.contains("may be deployed again"), "{said}");
    assert_eq!(body(&world, &withdraw), json!({ "undo": true }));
    for wrong in [
        &["os", "withdraw", "porch", "1.2.3"][..],
        &["os", "withdraw", "porch", "1.2.3", "--undo", "--reason", "x"],
    ] {
        assert_eq!(world.fails(wrong).0, 2, "{wrong:?}");
    }
    let deploy = format!("POST /fleets/porch/host-releases/{id}/deploy");
    world.answer(&deploy, problem(409, "release_invalidated", "Release 1.2.3 was withdrawn."));
    let (code, error) = world.fails(&["os", "deploy", "porch", "1.2.3", "--all"]);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("copal os withdraw porch 1.2.3 --undo"), "{error}");
}

#[test]
fn what_no_device_would_take_is_refused_before_a_byte_is_sent() {
    let world = World::with_fleet();
    let unsigned = json!({ "unsigned": release(b"agent") }).to_string();
    let file = bundle(&world, unsigned.as_bytes(), b"agent");
    let (code, error) = world.fails(&["os", "release", "porch", file.to_str().unwrap()]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("copal os bundle sign"), "{error}");
    let mut foreign = release(b"agent");
    foreign.fleet_id = copal_protocol::ids::FleetId::from_bytes([9; 16]);
    let envelope = Envelope::sign(&foreign, &[&key(&world, "host.key")]).unwrap();
    let file = bundle(&world, &envelope.to_bytes(), b"agent");
    assert_eq!(world.fails(&["os", "release", "porch", file.to_str().unwrap()]).0, 2);
    std::fs::write(&file, b"no bundle").unwrap();
    assert_eq!(world.fails(&["os", "release", "porch", file.to_str().unwrap()]).0, 2);
    assert!(world.state.lock().unwrap().uploads.is_empty());
    // A refusal of the server is not tried again.
    let file = signed(&world, b"agent");
    world.answer("POST /fleets/porch/uploads", problem(507, "disk_full", "No room."));
    let (_, error) = world.fails(&["os", "release", "porch", file.to_str().unwrap()]);
    assert!(error.contains("disk_full"), "{error}");
    world.answer("POST /fleets/porch/uploads", problem(403, "role_insufficient", "You may not."));
    assert_eq!(world.fails(&["os", "release", "porch", file.to_str().unwrap()]).0, 3);
}
