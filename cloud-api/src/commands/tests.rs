//! What ends by itself, and answers that come late.

use copal_protocol::{
    channel::{Ack, AckState},
    ids::CommandId,
};
use serde_json::json;

use super::{answer, end, next};
use crate::{
    auth::Role,
    devices::testing::{Device, Fleet},
};

fn commands(device: &Device) -> String {
    format!("/api/v1/fleets/porch/devices/{}/commands", device.id)
}

fn stored(verb: &str) -> serde_json::Value {
    json!({"verb": verb, "delivery": "store", "ttl_s": 600})
}

/// Everything in the database of this kind.
async fn execute(fleet: &Fleet, sql: &'static str) {
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query(sql).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn what_was_sent_and_never_answered_is_given_up_and_still_takes_an_answer() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let path = format!("/api/v1/fleets/porch/devices/{}/commands", device.id);
    let body = json!({"verb": "reboot", "delivery": "store", "ttl_s": 60});
    let made = fleet.ok("POST", &path, Some(body)).await;
    let shown = async || fleet.ok("GET", &format!("{path}/{}", made["id"].as_str().unwrap()), None).await;
    assert!(next(app, &entry, 1).await.unwrap().is_some());
    assert!(next(app, &entry, 1).await.unwrap().is_none(), "once a channel");
    end::sweep(app).await.unwrap();
    assert_eq!(shown().await["state"], "delivered", "its time is not over");
    let mut tx = app.db.write().await.unwrap();
    sqlx::query("UPDATE commands SET due_at = 1").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    end::sweep(app).await.unwrap();
    let given_up = shown().await;
    assert_eq!((&given_up["state"], &given_up["code"]), (&json!("unknown"), &json!("no_answer")));
    let id: CommandId = made["id"].as_str().unwrap().parse().unwrap();
    let ack = Ack { id, state: AckState::Done, code: None, message: String::new(), result: None };
    answer(app, &entry, &ack).await.unwrap();
    let ended = shown().await;
    assert_eq!((&ended["state"], &ended["code"]), (&json!("done"), &json!(null)));
}

#[tokio::test]
async fn old_commands_and_large_results_make_room() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let path = format!("/api/v1/fleets/porch/devices/{}/commands", device.id);
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    for n in 0..205 {
        sqlx::query(
            "INSERT INTO commands (id, device_id, verb, args, delivery, ttl_s, asked_by, why, state, result, created_at,
                ended_at, due_at) VALUES ($1, $2, 'probes', '{}', 'direct', 30, 'anna', '', 'done', '1', 1, 1, 1)",
        )
        .bind(format!("{n:032x}"))
        .bind(device.id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    fleet.ok("POST", &path, Some(json!({"verb": "probes"}))).await;
    let count: (i64, i64) = sqlx::query_as("SELECT COUNT(*), COUNT(result) FROM commands")
        .fetch_one(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(count, (200, 19));
}

#[tokio::test]
async fn who_may_only_ask_keeps_nobody_from_acting_and_flushes_no_act() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let path = commands(&device);
    let cloud = &fleet.cloud;
    let act = fleet.ok("POST", &path, Some(json!({"verb": "reboot"}))).await;
    let mut viewers = Vec::new();
    for n in 0..5 {
        viewers.push(cloud.user(&format!("v{n}@example.org"), Role::Viewer).await);
    }
    let month = json!({"verb": "probes", "delivery": "store", "ttl_s": 2_592_000});
    assert_eq!(cloud.call("POST", &path, &viewers[0], Some(month)).await.code(), "ttl_invalid");
    let mut asked = 0;
    for viewer in &viewers {
        let mut own = 0;
        while cloud.call("POST", &path, viewer, Some(stored("probes"))).await.status == 201 {
            own += 1;
        }
        assert!(own <= 16, "of one person");
        asked += own;
    }
    assert_eq!(asked, 64, "of all");
    fleet.ok("POST", &path, Some(stored("reboot"))).await;
    // As many that ended, and one more: the oldest question goes, and no act.
    execute(&fleet, "UPDATE commands SET ended_at = 1, state = 'done' WHERE verb = 'probes'").await;
    execute(
        &fleet,
        "INSERT INTO commands (id, device_id, verb, args, delivery, ttl_s, asked_by, why, state, created_at, ended_at, due_at)
         SELECT lower(hex(randomblob(16))), device_id, verb, args, delivery, ttl_s, asked_by, why, state, created_at, ended_at, due_at
         FROM commands, (VALUES (1), (2), (3), (4)) WHERE verb = 'probes'",
    )
    .await;
    fleet.ok("POST", &path, Some(json!({"verb": "probes"}))).await;
    let one = format!("{path}/{}", act["id"].as_str().unwrap());
    assert_eq!(fleet.ok("GET", &one, None).await["state"], "unreachable", "it is still known");
}

#[tokio::test]
async fn what_waits_can_be_taken_back_by_who_asked_and_by_who_may_act() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let path = commands(&device);
    let cancel = |made: &serde_json::Value| format!("{path}/{}/cancel", made["id"].as_str().unwrap());
    let viewer = fleet.cloud.user("vera@example.org", Role::Viewer).await;
    let (act, sent) = (
        fleet.ok("POST", &path, Some(stored("reboot"))).await,
        fleet.ok("POST", &path, Some(stored("check_update"))).await,
    );
    let question = fleet.cloud.call("POST", &path, &viewer, Some(stored("probes"))).await.json();
    let refused = fleet.cloud.call("POST", &cancel(&act), &viewer, None).await;
    assert_eq!(refused.code(), "role_insufficient");
    let gone = fleet.ok("POST", &cancel(&act), None).await;
    assert_eq!((&gone["state"], &gone["code"]), (&json!("rejected"), &json!("cancelled")));
    assert_eq!(fleet.ok("POST", &cancel(&act), None).await, gone, "once more is fine");
    let own = fleet.cloud.call("POST", &cancel(&question), &viewer, None).await.json();
    assert_eq!(own["code"], "cancelled");
    let command = next(app, &entry, 1).await.unwrap().unwrap();
    assert_eq!(command.id.to_string(), sent["id"].as_str().unwrap(), "nothing of it is ever sent");
    assert!(next(app, &entry, 1).await.unwrap().is_none());
    assert_eq!(fleet.call("POST", &cancel(&sent), None).await.code(), "command_sent");
    let audit = fleet.ok("GET", "/api/v1/audit?limit=2", None).await;
    assert_eq!(audit["items"][1]["verb"], "command.cancel");
    assert_eq!(audit["items"][1]["detail"]["command"], act["id"]);
}

#[tokio::test]
async fn what_waited_is_not_sent_for_who_may_not_any_more() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let path = commands(&device);
    for (email, lost) in [
        ("a@example.org", "UPDATE users SET role = 'viewer' WHERE email = 'a@example.org'"),
        ("b@example.org", "UPDATE users SET disabled_at = 1 WHERE email = 'b@example.org'"),
        (
            "c@example.org",
            "UPDATE tokens SET revoked_at = 1 WHERE user_id = (SELECT id FROM users WHERE email = 'c@example.org')",
        ),
    ] {
        let token = fleet.cloud.user(email, Role::Operator).await;
        let made = fleet.cloud.call("POST", &path, &token, Some(stored("reboot"))).await.json();
        execute(&fleet, lost).await;
        assert!(next(app, &entry, 1).await.unwrap().is_none(), "{email}");
        let shown = fleet.ok("GET", &format!("{path}/{}", made["id"].as_str().unwrap()), None).await;
        assert_eq!((&shown["state"], &shown["code"]), (&json!("rejected"), &json!("access_lost")));
    }
    // What the device may have done already is its own to say.
    let token = fleet.cloud.user("d@example.org", Role::Operator).await;
    let made = fleet.cloud.call("POST", &path, &token, Some(stored("reboot"))).await.json();
    assert!(next(app, &entry, 1).await.unwrap().is_some());
    execute(&fleet, "UPDATE users SET disabled_at = 1 WHERE email = 'd@example.org'").await;
    let again = next(app, &entry, 2).await.unwrap().unwrap();
    assert_eq!(again.id.to_string(), made["id"].as_str().unwrap());
}

#[tokio::test]
async fn what_cannot_be_read_any_more_ends_and_what_follows_is_sent() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let path = commands(&device);
    let (question, act) = (
        fleet.ok("POST", &path, Some(stored("probes"))).await,
        fleet.ok("POST", &path, Some(stored("check_update"))).await,
    );
    let last = fleet.ok("POST", &path, Some(stored("reboot"))).await;
    execute(&fleet, "UPDATE commands SET args = '{\"of_old\": 1}' WHERE verb = 'probes'").await;
    execute(&fleet, "UPDATE commands SET envelope = x'00' WHERE verb = 'check_update'").await;
    let command = next(app, &entry, 1).await.unwrap().unwrap();
    assert_eq!(command.id.to_string(), last["id"].as_str().unwrap());
    for made in [question, act] {
        let shown = fleet.ok("GET", &format!("{path}/{}", made["id"].as_str().unwrap()), None).await;
        assert_eq!((&shown["state"], &shown["code"]), (&json!("failed"), &json!("unreadable")));
    }
}

#[tokio::test]
async fn a_device_that_says_again_that_it_does_not_know_is_heard_once() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let made = fleet.ok("POST", &commands(&device), Some(stored("reboot"))).await;
    next(app, &entry, 1).await.unwrap().unwrap();
    execute(&fleet, "UPDATE commands SET due_at = 1").await;
    end::sweep(app).await.unwrap();
    let id: CommandId = made["id"].as_str().unwrap().parse().unwrap();
    for _ in 0..5 {
        let code = Some("no_answer".to_owned());
        let ack = Ack { id, state: AckState::Unknown, code, message: String::new(), result: None };
        answer(app, &entry, &ack).await.unwrap();
    }
    let events = fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await;
    let told = events["items"].as_array().unwrap().iter().filter(|e| e["kind"] == "command").count();
    assert_eq!(told, 1);
}
