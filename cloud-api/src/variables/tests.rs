//! Variables end to end: what is set reaches the right devices, and secrets nobody else.

use axum::http::StatusCode;
use copal_protocol::{
    documents::EnvMode,
    ids::Name,
    seal::{self, SealContext},
    verify::AssignmentMark,
};
use serde_json::{Value, json};

use crate::devices::testing::{Device, Fleet};

async fn seq(fleet: &Fleet, device: &Device) -> u64 {
    device.assignment(fleet, &AssignmentMark::default()).await.seq
}

async fn set(fleet: &Fleet, body: Value) {
    fleet.ok("PUT", "/api/v1/fleets/porch/variables", Some(body)).await;
}

async fn value(fleet: &Fleet, device: &Device) -> String {
    let assignment = device.assignment(fleet, &AssignmentMark::default()).await;
    assignment.env[&fleet.keys.app_id][&"web".parse::<Name>().unwrap()]["GREETING"].clone()
}

#[tokio::test]
async fn a_variable_reaches_the_devices_it_concerns_and_no_others() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    set(&fleet, json!({"name": "GREETING", "value": "hello"})).await;
    let path = format!("/api/v1/devices/{}/variables", one.id);
    fleet.ok("PUT", &path, Some(json!({"name": "GREETING", "value": "salut", "service": "web"}))).await;
    assert_eq!((value(&fleet, &one).await.as_str(), value(&fleet, &two).await.as_str()), ("salut", "hello"));
    assert_eq!((seq(&fleet, &one).await, seq(&fleet, &two).await), (3, 2));
    set(&fleet, json!({"name": "GREETING", "value": "hello"})).await;
    set(&fleet, json!({"name": "OTHER", "value": "x", "service": "worker"})).await;
    assert_eq!((seq(&fleet, &one).await, seq(&fleet, &two).await), (3, 2), "nothing changed for them");
    let gone = fleet.call("DELETE", &format!("{path}?name=GREETING&service=web"), None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(value(&fleet, &one).await, "hello");
    let again = fleet.call("DELETE", &format!("{path}?name=GREETING&service=web"), None).await;
    assert_eq!(again.code(), "not_found");
}

#[tokio::test]
async fn a_secret_is_read_by_its_device_alone_and_sealed_once() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    set(&fleet, json!({"name": "PASSWORD", "value": "hunter2", "secret": true})).await;
    let web: Name = "web".parse().unwrap();
    let first = one.assignment(&fleet, &AssignmentMark::default()).await;
    let text = first.sealed[&fleet.keys.app_id][&web]["PASSWORD"].clone();
    let context = |device: &Device| SealContext {
        fleet: fleet.keys.fleet_id,
        device: device.id,
        app: fleet.keys.app_id,
        service: &web,
        variable: "PASSWORD",
    };
    assert_eq!(*seal::open(&one.seal, &context(&one), &text).unwrap(), b"hunter2");
    assert!(seal::open(&two.seal, &context(&two), &text).is_err());

    set(&fleet, json!({"name": "PASSWORD", "value": "hunter2", "secret": true})).await;
    set(&fleet, json!({"name": "GREETING", "value": "hello"})).await;
    let second = one.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(second.sealed[&fleet.keys.app_id][&web]["PASSWORD"], text, "the ciphertext is used again");
    set(&fleet, json!({"name": "PASSWORD", "value": "hunter3", "secret": true})).await;
    let third = one.assignment(&fleet, &AssignmentMark::default()).await;
    let text = &third.sealed[&fleet.keys.app_id][&web]["PASSWORD"];
    assert_eq!(*seal::open(&one.seal, &context(&one), text).unwrap(), b"hunter3");

    let list = fleet.ok("GET", "/api/v1/fleets/porch/variables", None).await;
    assert_eq!(list[1]["name"], "PASSWORD");
    assert_eq!((&list[1]["value"], &list[1]["secret"]), (&Value::Null, &json!(true)));
    for route in ["/fleets/porch/variables", "/audit", "/fleets/porch/devices"] {
        let text = fleet.ok("GET", &format!("/api/v1{route}"), None).await.to_string();
        assert!(!text.contains("hunter"), "{route}");
    }
    let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT value FROM variables WHERE secret")
        .fetch_all(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert!(rows.iter().all(|r| !r.windows(6).any(|w| w == b"hunter")), "encrypted at rest");
}

async fn code(fleet: &Fleet, body: Value) -> String {
    fleet.call("PUT", "/api/v1/fleets/porch/variables", Some(body)).await.code()
}

#[tokio::test]
async fn names_and_values_are_judged_when_they_are_set() {
    let mut fleet = Fleet::new().await;
    fleet.release(false).await;
    assert_eq!(code(&fleet, json!({"name": "LD_PRELOAD", "value": "x"})).await, "E_ENV_DENIED");
    assert_eq!(code(&fleet, json!({"name": "a b", "value": "x"})).await, "variable_name_invalid");
    assert_eq!(code(&fleet, json!({"name": "A", "value": "x\u{0}"})).await, "variable_value_invalid");
    assert_eq!(
        code(&fleet, json!({"name": "A", "value": "x".repeat(40_000)})).await,
        "variable_value_invalid"
    );
    assert_eq!(code(&fleet, json!({"name": "A", "value": "x", "service": "../x"})).await, "service_invalid");
    fleet.new_root(|root| root.policy.env_mode = EnvMode::Declared).await;
    assert_eq!(code(&fleet, json!({"name": "OTHER", "value": "x"})).await, "E_ENV_UNDECLARED");
    assert_eq!(
        code(&fleet, json!({"name": "GREETING", "value": "x", "service": "db"})).await,
        "E_ENV_UNDECLARED"
    );
    set(&fleet, json!({"name": "GREETING", "value": "x", "service": "web"})).await;
    set(&fleet, json!({"name": "OTHER", "value": "x", "secret": true})).await;
}

#[tokio::test]
async fn what_was_set_in_the_open_stays_home_once_variables_must_be_declared() {
    let mut fleet = Fleet::new().await;
    fleet.release(false).await;
    let device = fleet.device(1).await;
    set(&fleet, json!({"name": "OTHER", "value": "x"})).await;
    fleet.new_root(|root| root.policy.env_mode = EnvMode::Declared).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert!(assignment.env.is_empty());
    assert_eq!(assignment.root_version, 2);
}

#[tokio::test]
async fn more_than_an_assignment_holds_is_held_back_and_said() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let device = fleet.device(1).await;
    for n in 0..8 {
        set(&fleet, json!({"name": format!("A{n}"), "value": "x".repeat(32 << 10)})).await;
    }
    let shown = fleet.shown(&device).await;
    assert_eq!(shown["reason"]["code"], "assignment_too_large");
    let seq = shown["target"]["seq"].as_u64().unwrap();
    fleet.ok("DELETE", "/api/v1/fleets/porch/variables?name=A0", None).await;
    fleet.ok("DELETE", "/api/v1/fleets/porch/variables?name=A1", None).await;
    fleet.ok("DELETE", "/api/v1/fleets/porch/variables?name=A2", None).await;
    let shown = fleet.shown(&device).await;
    assert_ne!(shown["reason"]["code"], "assignment_too_large");
    assert!(shown["target"]["seq"].as_u64().unwrap() >= seq);
}
