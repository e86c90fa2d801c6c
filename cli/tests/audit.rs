//! The audit log and filters, against a server in memory that may lie.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::World;
use copal_protocol::audit::{Entry, Row, START};
use serde_json::{Value, json};

fn log(count: i64) -> Vec<Row> {
    let mut before = START.to_owned();
    (1..=count)
        .map(|id| {
            let entry = Entry {
                id,
                at: 1_700_000_000,
                who: "anna@example.org".to_owned(),
                from: "192.0.2.1".to_owned(),
                verb: "fleet.create".to_owned(),
                object: "fleet:porch".to_owned(),
                why: String::new(),
                detail: json!({"z": 1, "a": 2}),
            };
            before = entry.hash(&before);
            Row { entry, hash: before.clone() }
        })
        .collect()
}

/// Newest first, as the server lists it.
fn page(rows: &[Row]) -> (u16, String) {
    let items: Vec<&Row> = rows.iter().rev().collect();
    (200, json!({ "items": items, "next": null }).to_string())
}

#[test]
fn a_log_is_verified_without_trust_in_the_server() {
    let world = World::new();
    let rows = log(4);
    world.answer("GET /audit", page(&rows));
    let said = world.ok(&["audit", "verify", "--quiet"], "");
    assert_eq!(said.lines().last(), Some(rows[3].hash.as_str()), "the newest hash is the last line: {said}");
    let said: Value =
        serde_json::from_str(&world.ok(&["audit", "verify", "--since", &rows[1].hash, "--json"], ""))
            .unwrap();
    assert_eq!(
        (&said["rows"], &said["head"], &said["since_id"]),
        (&json!(4), &json!(rows[3].hash), &json!(2))
    );
    assert!(world.ok(&["audit", "list"], "").contains(&rows[0].hash[..12]));

    let mut changed = rows.clone();
    changed[1].entry.who = "nobody".to_owned();
    world.answer("GET /audit", page(&changed));
    let (code, error) = world.fails(&["audit", "verify"]);
    assert!(code == 6 && error.contains("row 2") && error.contains("audit_broken"), "{code} {error}");

    world.answer("GET /audit", page(&rows[..3]));
    world.ok(&["audit", "verify"], "");
    let (code, error) = world.fails(&["audit", "verify", "--since", &rows[3].hash]);
    assert!(code == 6 && error.contains("audit_rewritten"), "{code} {error}");
    assert_eq!(world.fails(&["audit", "verify", "--since", "abc"]).0, 2);
    // A server that turns in circles is not followed for ever.
    world.answer("GET /audit", (200, json!({ "items": rows, "next": "again" }).to_string()));
    assert_eq!(world.fails(&["audit", "verify"]).0, 6);
}

#[test]
fn a_filter_that_is_wrong_is_refused_here_with_the_place() {
    let world = World::with_fleet();
    let (code, error) = world.fails(&["device", "list", "porch", "--filter", "tag.site = paris and onlin"]);
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("\n                     ^\n") && error.contains("Did you mean online?"),
        "{error}"
    );
    world.ok(&["device", "list", "porch", "--filter", "not online"], "");
    world.ok(&["status", "porch", "--filter", "not on_target"], "");
}

#[test]
fn a_deployment_to_a_filter_is_good_for_the_number_that_was_seen() {
    let world = World::with_fleet();
    let answer =
        json!({ "release": "ab".repeat(32), "version": "1.2.0", "devices": 3, "seqs": {}, "dry_run": true });
    world.answer("POST /fleets/porch/deploy", (200, answer.to_string()));
    let deploy = ["release", "deploy", "latest", "--filter", "tag.ring=canary"];
    let (code, error) = world.fails(&deploy);
    assert!(code == 2 && error.contains("3 device(s) will be pinned to release 1.2.0"), "{code} {error}");
    world.ok(&[&deploy[..], &["--yes"]].concat(), "");
    let bodies: Vec<Value> = {
        let state = world.state.lock().unwrap();
        let asked = state.seen.iter().filter(|(key, _)| key == "POST /fleets/porch/deploy");
        asked.map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
    };
    let filter = "tag.ring = \"canary\"";
    let dry = json!({ "release": "latest", "filter": filter, "dry_run": true });
    assert_eq!(
        bodies,
        [dry.clone(), dry, json!({ "release": "latest", "filter": filter, "expect_count": 3 })]
    );
    assert_eq!(world.fails(&[&deploy[..], &["--tag", "a=b"]].concat()).0, 2, "one or the other");
}
