//! The program against a server in memory: what it sends, what it refuses, and how it ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::{FLEET_ID, TOKEN, World, problem};
use copal_protocol::{
    config::DeviceFile,
    documents::{LockState, Report, Root, SPEC},
    enrol,
    envelope::Envelope,
    ids::{DeviceId, FleetId},
    keys::SigningKey,
    verify,
};
use serde_json::{Value, json};

fn fleet_id() -> FleetId {
    FLEET_ID.parse().unwrap()
}

fn roots(world: &World) -> Vec<Envelope> {
    let state = world.state.lock().unwrap();
    state.roots.iter().map(|bytes| Envelope::parse::<Root>(bytes).unwrap()).collect()
}

#[test]
fn every_root_that_is_uploaded_is_one_a_device_accepts() {
    let world = World::with_fleet();
    world.ok(&["root", "renew", "porch", "--new-epoch"], "");
    world.ok(&["root", "rotate", "root"], "");
    world.ok(&["root", "rotate", "release"], "");
    world.ok(&["root", "policy", "--allow-cap", "cap_net_admin", "--allow-privileged"], "");
    world.ok(&["root", "policy", "--reset", "--env-mode", "declared"], "");
    world.ok(&["root", "set-floor", "12"], "");
    let roots = roots(&world);
    let mut trusted = verify::first_root(&roots[0], fleet_id()).unwrap();
    let mut versions = vec![trusted.clone()];
    for envelope in &roots[1..] {
        trusted = verify::next_root(&trusted, envelope).unwrap();
        versions.push(trusted.clone());
    }
    assert_eq!(trusted.version, 7);
    assert_eq!(trusted.assign_epoch, 2);
    assert!(versions[4].policy.allow.caps.contains("NET_ADMIN"));
    assert!(!trusted.policy.allow.privileged);
    let release = |n: usize| versions[n].roles[&copal_protocol::documents::Role::Release].clone();
    assert_ne!(release(0), release(3), "the release key was replaced");
}

#[test]
fn no_private_key_and_no_introduction_ever_reaches_the_server() {
    let world = World::with_fleet();
    let out = world.home.path().join("copal.json");
    world.ok(&["device", "config", "porch", "--name", "porch-1", "--out", out.to_str().unwrap()], "");
    let file: DeviceFile = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((file.spec, file.fleet_id, file.enrolment_token.as_str()), (SPEC, fleet_id(), "abc.def"));
    let root = Envelope::parse::<Root>(file.root.to_string().as_bytes()).unwrap();
    verify::first_root(&root, fleet_id()).unwrap();
    let introduction = file.introduction.unwrap();
    let (id, secret) = enrol::split_token(&introduction).unwrap();
    let mut secrets = vec![id.to_owned(), secret.to_owned()];
    for entry in std::fs::read_dir(world.home.path().join("keys/owner")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        if path.extension().is_some_and(|e| e == "key") {
            let text = std::fs::read_to_string(&path).unwrap();
            secrets.push(text.lines().rev().nth(1).unwrap().to_owned());
        }
    }
    assert_eq!(secrets.len(), 5, "an introduction, and three keys");
    for (request, body) in &world.state.lock().unwrap().seen {
        for secret in &secrets {
            assert!(!body.contains(secret) && !request.contains(secret), "{request}: {body}");
        }
        assert!(!request.contains(TOKEN), "the token goes in a header only");
    }
    for private in ["copal.json", "credentials.json"] {
        let mode = world.home.path().join(private).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    assert_eq!(world.fails(&["device", "config", "porch", "--out", out.to_str().unwrap()]).0, 1);
}

#[test]
fn keys_are_never_overwritten() {
    let world = World::new();
    let path = world.home.path().join("keys/owner/root.key");
    let before = std::fs::read(&path).unwrap();
    let (code, error) = world.fails(&["keys", "init"]);
    assert_eq!(code, 1, "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn refusals_have_the_exit_code_of_their_kind() {
    let world = World::with_fleet();
    for (answer, code, said) in [
        (problem(404, "not_found", "There is no fleet porch."), 4, "There is no fleet porch."),
        (problem(403, "forbidden", "You may not."), 3, "(forbidden)"),
        (problem(401, "token_invalid", "Expired."), 3, "copal login"),
        (problem(500, "internal", "Broken."), 5, "(internal)"),
        ((200, "<html>sign in to the hotel</html>".to_owned()), 5, "not JSON"),
        ((503, "not json".to_owned()), 5, "try again"),
        ((302, "http://127.0.0.1:1/steal".to_owned()), 5, "redirects"),
        (problem(400, "x", "evil \u{1b}]0;title\u{7}"), 3, "\\u{1b}"),
    ] {
        world.answer("GET /fleets/porch", answer.clone());
        let (got, error) = world.fails(&["fleet", "show", "porch"]);
        assert_eq!(got, code, "{answer:?}: {error}");
        assert!(error.contains(said), "{answer:?}: {error}");
        assert!(!error.contains('\u{1b}'));
    }
    let (code, error) = world.fails(&["fleet", "list", "--url", "http://127.0.0.1:1", "--json"]);
    assert_eq!(code, 3, "nothing signs us in there: {error}");
    let output = world.run(&["fleet", "show", "porch", "--json"], "");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["exit_code"], 3);
}

#[test]
fn nobody_to_ask_is_not_taken_for_a_yes() {
    let world = World::new();
    let (code, error) = world.fails(&["fleet", "create", "porch", "--arch", "amd64"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--yes"));
    assert!(world.state.lock().unwrap().roots.is_empty(), "no root was made");
    // What was begun goes on.
    world.ok(&["fleet", "create", "porch", "--arch", "amd64", "--yes"], "");
}

#[test]
fn a_server_key_other_than_expected_is_refused() {
    let world = World::new();
    let wrong = "0".repeat(64);
    let (code, error) = world.fails(&["fleet", "create", "porch", "--arch", "amd64", "--expect-key", &wrong]);
    assert_eq!(code, 6, "{error}");
    assert!(world.state.lock().unwrap().roots.is_empty());
}

#[test]
fn a_server_that_shows_another_root_is_not_believed() {
    let world = World::with_fleet();
    let mine = world.state.lock().unwrap().roots[0].clone();
    let forger = SigningKey::from_seed(&[66; 32]);
    let envelope = Envelope::parse::<Root>(&mine).unwrap();
    let mut root: Root = serde_json::from_slice(envelope.payload()).unwrap();
    root.version = 2;
    root.issued_at += 1;
    let forged = Envelope::sign(&root, &[&forger]).unwrap().to_bytes();
    world.state.lock().unwrap().roots.push(forged);
    let (code, error) = world.fails(&["root", "show", "porch"]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("E_ROOT_OLD_SIG"), "{error}");
    root.version = 1;
    world.state.lock().unwrap().roots = vec![Envelope::sign(&root, &[&forger]).unwrap().to_bytes()];
    let (code, error) = world.fails(&["root", "renew", "porch"]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("root_differs"), "{error}");
}

#[test]
fn a_restored_server_gets_the_roots_it_lost_and_a_new_epoch() {
    let world = World::with_fleet();
    world.ok(&["root", "renew", "porch"], "");
    world.state.lock().unwrap().roots.truncate(1);
    world.ok(&["root", "renew", "porch", "--new-epoch"], "");
    assert_eq!(roots(&world).len(), 3);
}

#[test]
fn a_root_the_server_refuses_is_not_kept() {
    let world = World::with_fleet();
    world.answer("PUT /fleets/porch/root", problem(422, "root_invalid", "No."));
    assert_eq!(world.fails(&["root", "renew", "porch"]).0, 3);
    world.state.lock().unwrap().answers.clear();
    let shown: Value = serde_json::from_str(&world.ok(&["root", "show", "porch", "--json"], "")).unwrap();
    assert_eq!(shown["version"], 1);
}

#[test]
fn two_machines_sign_a_root_where_two_keys_must() {
    let world = World::new();
    world.ok(&["keys", "init", "--set", "one", "--count", "2", "--threshold", "2"], "");
    world.ok(&["fleet", "create", "porch", "--arch", "amd64", "--keys", "one", "--yes"], "");
    let keys = world.home.path().join("keys/one");
    let second = std::fs::read_dir(&keys)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("root-"))
        .unwrap();
    let away = world.home.path().join("second.key");
    std::fs::rename(&second, &away).unwrap();
    let (code, error) = world.fails(&["root", "renew", "porch"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("copal root sign porch-root-2.json"), "{error}");
    std::fs::rename(keys.join("root.key"), world.home.path().join("first.key")).unwrap();
    std::fs::rename(&away, &second).unwrap();
    world.ok(&["root", "sign", "porch-root-2.json", "--yes"], "");
    assert_eq!(roots(&world).len(), 2);
}

/// A device that came from a card of this machine, with the report it signed.
fn join(world: &World, signer: Option<&SigningKey>, root: usize, lock: LockState) -> DeviceId {
    let out = world.home.path().join("card.json");
    world.ok(&["device", "config", "porch", "--force", "--out", out.to_str().unwrap()], "");
    let file: DeviceFile = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let introduction = file.introduction.unwrap();
    let (id, secret) = enrol::split_token(&introduction).unwrap();
    let key = SigningKey::from_seed(&[77; 32]);
    let device_id = DeviceId::from_bytes([5; 16]);
    let envelope = roots(world)[root].clone();
    let report = Report {
        spec: SPEC,
        fleet_id: fleet_id(),
        device_id,
        boot_id: "0".repeat(32),
        report_counter: 1,
        root_version: u64::try_from(root).unwrap() + 1,
        root_sha256: envelope.payload_sha256(),
        lock,
        assign_epoch: 1,
        seq_accepted: 0,
        seq_applied: 0,
        unfresh: false,
        running: std::collections::BTreeMap::new(),
        committed: std::collections::BTreeMap::new(),
        reason: None,
        progress: None,
        host: None,
        agent: None,
        health: None,
        agent_version: "0.1.0".to_owned(),
        os_version: String::new(),
        arch: "amd64".to_owned(),
        time: 0,
        ext: None,
    };
    let signed = Envelope::sign(&report, &[signer.unwrap_or(&key)]).unwrap().to_bytes();
    let mut state = world.state.lock().unwrap();
    state.reports.insert(device_id.to_string(), signed);
    state.devices = vec![json!({
        "device_id": device_id, "name": "porch-1", "state": "accepted", "public_key": key.public(),
        "introduction_id": id,
        "introduction_mac": enrol::introduction_mac(secret, fleet_id(), &key.public()),
    })];
    device_id
}

#[test]
fn a_lock_ends_well_only_by_the_devices_own_word() {
    let world = World::with_fleet();
    // No card was made: the fleet has no device, and is locked as far as it goes.
    world.ok(&["fleet", "lock", "porch", "--yes", "--timeout", "0"], "");
    let newest = roots(&world).len() - 1;
    join(&world, None, newest, LockState::Locked);
    let out = world.ok(&["fleet", "lock", "porch", "--check", "--timeout", "0", "--json"], "");
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["locked"], true);
    assert_eq!(out["devices"][0]["state"], "proven");

    // The server drops the device it listed a moment ago.
    let hidden = std::mem::take(&mut world.state.lock().unwrap().devices);
    let (code, error) = world.fails(&["fleet", "lock", "porch", "--check", "--timeout", "0"]);
    assert_eq!(code, 6, "{error}");
    world.state.lock().unwrap().devices = hidden;

    world.ok(&["fleet", "unlock", "porch", "--yes"], "");
    assert_eq!(world.fails(&["fleet", "lock", "porch", "--check"]).0, 6);
}

#[test]
fn a_forged_report_does_not_prove_a_lock() {
    let world = World::with_fleet();
    world.ok(&["fleet", "lock", "porch", "--yes", "--timeout", "0"], "");
    let newest = roots(&world).len() - 1;
    join(&world, Some(&common::builder()), newest, LockState::Locked);
    let (code, error) = world.fails(&["fleet", "lock", "porch", "--check", "--timeout", "0"]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("lock_not_proven"), "{error}");
}

#[test]
fn a_device_that_stays_behind_is_named_when_time_is_up() {
    let world = World::with_fleet();
    join(&world, None, 0, LockState::Open);
    let output = world.run(&["fleet", "lock", "porch", "--yes", "--timeout", "0"], "");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("it trusts root 1 still"));
}

#[test]
fn a_card_that_never_became_a_device_is_missed_by_a_lock() {
    let world = World::with_fleet();
    world.ok(&["device", "config", "porch", "--out", "lost.json"], "");
    assert_eq!(world.fails(&["fleet", "lock", "porch", "--yes", "--timeout", "0"]).0, 6);
    world.ok(&["fleet", "lock", "porch", "--check", "--timeout", "0", "--allow-unseen"], "");
    let cards: Value = serde_json::from_str(&world.ok(&["device", "cards", "list", "--json"], "")).unwrap();
    let id = cards["items"][0]["id"].as_str().unwrap();
    world.ok(&["device", "cards", "forget", id, "--yes"], "");
    world.ok(&["fleet", "lock", "porch", "--check", "--timeout", "0"], "");
}

#[test]
fn lists_are_tables_for_people_and_items_for_programs() {
    let world = World::with_fleet();
    insta::assert_snapshot!(world.ok(&["fleet", "list"], ""), @r"
    FLEET  TYPE     ARCH   MODE     ROOT  DEVICES  ONLINE  ON TARGET  FAILED
    porch  generic  amd64  builder  0     0        0       0          0
    ");
    let list: Value = serde_json::from_str(&world.ok(&["fleet", "list", "--json"], "")).unwrap();
    assert_eq!(list["items"][0]["slug"], "porch");
    assert_eq!(world.ok(&["device", "list"], ""), "none\n");
}

#[test]
fn enrolment_tokens_are_listed_and_revoked_without_their_secret_in_a_url() {
    let world = World::with_fleet();
    insta::assert_snapshot!(world.ok(&["device", "tokens", "list"], ""), @r"
    TOKEN  FOR      DEVICES LEFT  MADE                  UNTIL
    abc    porch-1  2             2023-11-14T22:13:20Z  2027-01-15T08:00:00Z
    ");
    // Out of a copal.json, where the whole token stands.
    world.ok(&["device", "tokens", "revoke", "abc.def"], "");
    let seen = world.state.lock().unwrap().seen.clone();
    assert_eq!(seen.last().unwrap().0, "DELETE /fleets/porch/enrolment-tokens/abc");
}

#[test]
fn a_deleted_fleet_leaves_its_name_free_and_its_roots_kept() {
    let world = World::with_fleet();
    let refusal = problem(409, "fleet_has_devices", "The fleet has 2 devices.");
    world.state.lock().unwrap().answers.insert("DELETE /fleets/porch".to_owned(), refusal);
    let (_, error) = world.fails(&["fleet", "delete", "porch", "--yes"]);
    assert!(error.contains("copal fleet delete porch --force"), "{error}");
    let folder = world.home.path().join("fleets").join(FLEET_ID);
    assert!(folder.exists(), "a fleet that stays is still known");

    world.state.lock().unwrap().answers.clear();
    world.ok(&["fleet", "delete", "porch", "--yes"], "");
    assert!(!folder.exists());
    assert!(folder.with_extension("deleted").join("roots/1.json").exists());
}
