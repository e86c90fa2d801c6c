//! Acts of one device: what is sent, what is shown, and how it ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::World;
use serde_json::{Value, json};

const DEVICE: &str = "d00102030405060708090a0b0c0d0e0f";
const COMMAND: &str = "c00102030405060708090a0b0c0d0e0f";

fn world() -> World {
    let world = World::with_fleet();
    let device = json!({ "device_id": DEVICE, "name": "porch-1", "fleet": "porch", "state": "accepted" });
    world.state.lock().unwrap().devices.push(device);
    world
}

fn command(state: &str, more: &Value) -> Value {
    let ended = !matches!(state, "queued" | "delivered" | "accepted" | "running");
    let mut command = json!({
        "id": COMMAND, "device_id": DEVICE, "verb": "reboot", "args": {}, "state": state, "ended": ended,
        "message": "", "code": null, "asked_by": "anna@example.org", "created_at": 1_700_000_000,
    });
    for (name, value) in more.as_object().unwrap() {
        command[name] = value.clone();
    }
    command
}

/// What is asked is answered with the first, what came of it with the second.
fn answers(world: &World, made: &Value, then: &Value) {
    let path = format!("/fleets/porch/devices/{DEVICE}/commands");
    world.answer(&format!("POST {path}"), (201, made.to_string()));
    world.answer(&format!("GET {path}/{COMMAND}"), (200, then.to_string()));
}

fn asked(world: &World) -> Value {
    let state = world.state.lock().unwrap();
    let (_, body) = state.seen.iter().rev().find(|(what, _)| what.starts_with("POST ")).unwrap();
    serde_json::from_str(body).unwrap()
}

#[test]
fn each_act_is_asked_as_the_api_takes_it() {
    let world = world();
    answers(&world, &command("queued", &json!({})), &command("done", &json!({})));
    let cases: &[(&[&str], Value)] = &[
        (&["restart", "porch-1", "web"], json!({"verb": "restart_service", "args": {"service": "web"}})),
        (&["stop", "porch-1", "web"], json!({"verb": "stop_service", "args": {"service": "web"}})),
        (&["start", "porch-1", "web"], json!({"verb": "start_service", "args": {"service": "web"}})),
        (&["purge", "porch-1", "--yes"], json!({"verb": "purge_data", "args": {}})),
        (
            &["purge", "porch-1", "--volume", "data", "--yes"],
            json!({"verb": "purge_data", "args": {"volume": "data"}}),
        ),
        (
            &["reboot", "porch-1", "--ttl", "1d"],
            json!({"verb": "reboot", "args": {}, "delivery": "store", "ttl_s": 86_400}),
        ),
        (&["check", "porch-1"], json!({"verb": "check_update", "args": {}})),
        (&["pause", "porch-1", "--for", "2h"], json!({"verb": "pause_updates", "args": {"for_s": 7200}})),
        (&["pause", "porch-1"], json!({"verb": "pause_updates", "args": {}})),
        (&["resume", "porch-1"], json!({"verb": "resume_updates", "args": {}})),
        (&["blink", "porch-1"], json!({"verb": "blink", "args": {"for_s": 30}})),
    ];
    for (args, body) in cases {
        let args: Vec<&str> = ["device"].iter().chain(*args).copied().collect();
        let out = world.ok(&args, "");
        assert!(out.contains("on device porch-1: done"), "{args:?}: {out}");
        assert_eq!(asked(&world), *body, "{args:?}");
    }
    let (code, error) = world.fails(&["device", "purge", "porch-1"]);
    assert_eq!(code, 2, "nobody said yes: {error}");
}

#[test]
fn how_it_ended_is_the_exit_code() {
    let world = world();
    for (state, code, exit, said) in [
        ("rejected", "policy_local", 1, "policy.toml"),
        ("rejected", "not_supported", 1, "too old"),
        ("failed", "engine_down", 1, "(engine_down)"),
        ("unknown", "", 1, "(unknown)"),
        ("expired", "ttl_over", 7, "(ttl_over)"),
        ("unreachable", "device_away", 7, "--ttl 1d"),
    ] {
        let ended = command(state, &json!({ "code": code, "message": "so it \u{1b}[31mis" }));
        answers(&world, &command("queued", &json!({})), &ended);
        let (got, error) = world.fails(&["device", "reboot", "porch-1"]);
        assert_eq!(got, exit, "{state}: {error}");
        assert!(error.contains(said) && !error.contains('\u{1b}'), "{state}: {error}");
    }
    let running = command("running", &json!({}));
    answers(&world, &running, &running);
    let (code, error) = world.fails(&["device", "reboot", "porch-1", "--timeout", "1s"]);
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("(not_ended)"), "{error}");
    let out = world.ok(&["device", "reboot", "porch-1", "--no-wait", "--json"], "");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["state"], "running");
}

#[test]
fn what_health_checks_found_is_shown_worst_first() {
    let world = world();
    let result = json!({"taken_at": 5, "probes": [
        {"name": "clock", "verdict": "ok", "detail": "set"},
        {"name": "disk", "verdict": "failed", "value": 99, "unit": "percent", "detail": "full", "advice": "free some"},
    ]});
    answers(&world, &command("queued", &json!({})), &command("done", &json!({ "result": result })));
    let out = world.ok(&["device", "diagnose", "porch-1", "clock", "disk"], "");
    assert_eq!(asked(&world), json!({"verb": "probes", "args": {"names": ["clock", "disk"]}}));
    assert!(out.find("disk").unwrap() < out.find("clock").unwrap(), "{out}");
    let out = world.ok(&["device", "diagnose", "porch-1", "--json"], "");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), result);
    for odd in [
        json!({}),
        json!({"taken_at": 5, "probes": [{"name": "x", "verdict": "ok", "detail": "\u{1b}[31m"}]}),
    ] {
        answers(&world, &command("queued", &json!({})), &command("done", &json!({ "result": odd })));
        let (code, error) = world.fails(&["device", "diagnose", "porch-1"]);
        assert_eq!(code, 1, "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn commands_are_listed_with_what_came_of_them() {
    let world = world();
    let args = json!({"verb": "restart_service", "args": {"service": "web"}, "code": "policy_local", "message": "no\u{7}"});
    let page = json!({ "items": [command("rejected", &args)], "next": null });
    world.answer(&format!("GET /fleets/porch/devices/{DEVICE}/commands"), (200, page.to_string()));
    let out = world.ok(&["device", "commands", "porch-1"], "");
    assert!(out.contains("restart_service web") && out.contains("policy_local: no"), "{out}");
    assert!(!out.contains('\u{7}'));
}
