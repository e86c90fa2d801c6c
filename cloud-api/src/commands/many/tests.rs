//! Rounds over several devices: who is asked, how far it is, what is refused.

use axum::http::StatusCode;
use copal_protocol::channel::{Ack, AckState, Command, Order};
use serde_json::{Value, json};

use super::pace;
use crate::{
    auth::{Role, Scope},
    commands::{answer, next},
    devices::testing::{Device, Fleet},
};

const PATH: &str = "/api/v1/fleets/porch/commands";

/// As if each of them held a channel: what it is sent, it acknowledges so.
async fn answers(fleet: &Fleet, device: &Device, state: AckState, result: Option<Value>) -> Command {
    let entry = fleet.cloud.app.devices.get(device.id).unwrap();
    let command = next(&fleet.cloud.app, &entry, 1).await.unwrap().unwrap();
    let code = (state != AckState::Done).then(|| "service_unknown".to_owned());
    let ack = Ack { id: command.id, state, code, message: "as said".to_owned(), result };
    answer(&fleet.cloud.app, &entry, &ack).await.unwrap();
    command
}

async fn tag(fleet: &Fleet, device: &Device, ring: &str) {
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", device.id), Some(json!({"tags": {"ring": ring}}))).await;
}

#[tokio::test]
async fn each_device_meant_is_asked_once_and_what_came_of_it_is_counted() {
    let fleet = Fleet::new().await;
    let devices = [fleet.device(1).await, fleet.device(2).await, fleet.device(3).await];
    for (device, ring) in devices.iter().zip(["canary", "canary", "late"]) {
        tag(&fleet, device, ring).await;
    }
    let app = &fleet.cloud.app;
    let ask = json!({"verb": "restart_service", "args": {"service": "web"}, "filter": "tag.ring = canary",
        "delivery": "store", "ttl_s": 600});
    let mut dry = ask.clone();
    dry["dry_run"] = json!(true);
    let seen = fleet.ok("POST", PATH, Some(dry)).await;
    assert_eq!((&seen["total"], seen["sample"].as_array().unwrap().len()), (&json!(2), 2));
    assert_eq!(fleet.ok("GET", PATH, None).await["items"], json!([]), "nothing was begun");

    let made = fleet.ok("POST", PATH, Some(ask)).await;
    assert_eq!((&made["total"], &made["states"]), (&json!(2), &json!({"queued": 2})));
    assert_eq!((&made["filter"], &made["ended"]), (&json!("tag.ring = \"canary\""), &json!(false)));
    assert!(pace::turn(app).await.unwrap());
    assert!(!pace::turn(app).await.unwrap(), "each is asked once");
    let entry = app.devices.get(devices[2].id).unwrap();
    assert!(next(app, &entry, 1).await.unwrap().is_none(), "the third is not meant");
    let command = answers(&fleet, &devices[0], AckState::Done, None).await;
    assert!(matches!(command.order, Order::Action(_)), "signed as every act is");
    let path = format!("{PATH}/{}", made["id"].as_str().unwrap());
    let half = fleet.ok("GET", &path, None).await;
    assert_eq!((&half["states"], &half["ended"]), (&json!({"done": 1, "queued": 1}), &json!(false)));
    answers(&fleet, &devices[1], AckState::Failed, None).await;
    let over = fleet.ok("GET", &format!("{path}?wait=5"), None).await;
    assert_eq!((&over["states"], &over["ended"]), (&json!({"done": 1, "failed": 1}), &json!(true)));
    assert!(over["ended_at"].is_u64());

    let first = fleet.ok("GET", &format!("{path}/devices?limit=1"), None).await;
    let after = first["next"].as_str().unwrap();
    let rest = fleet.ok("GET", &format!("{path}/devices?limit=1&after={after}"), None).await;
    assert_eq!(rest["next"], Value::Null);
    let failed = fleet.ok("GET", &format!("{path}/devices?state=failed"), None).await;
    let failed = &failed["items"][0];
    assert_eq!((&failed["code"], &failed["message"]), (&json!("service_unknown"), &json!("as said")));
    assert_eq!(failed["device_id"], devices[1].id.to_string());
    let own = format!("/api/v1/fleets/porch/devices/{}/commands", devices[1].id);
    assert_eq!(fleet.ok("GET", &own, None).await["items"][0]["id"], failed["command_id"]);

    let audit = fleet.ok("GET", "/api/v1/audit?limit=1", None).await;
    let row = &audit["items"][0];
    assert_eq!((&row["verb"], &row["object"]), (&json!("fleet_command.create"), &json!("fleet:porch")));
    assert_eq!(
        (&row["detail"]["devices"], &row["detail"]["filter"]),
        (&json!(2), &made["filter"]),
        "one row for the act"
    );
    let mut ids: Vec<_> = devices[..2].iter().map(|device| format!("{}\n", device.id)).collect();
    ids.sort_unstable();
    let named = copal_protocol::ids::Sha256Hex::of(ids.concat().as_bytes()).to_string();
    assert_eq!(row["detail"]["devices_sha256"], named, "and which they were can be told for ever");
}

#[tokio::test]
async fn health_checks_of_many_show_a_verdict_for_each_and_who_is_away_is_unreachable() {
    let fleet = Fleet::new().await;
    let (here, away) = (fleet.device(1).await, fleet.device(2).await);
    let app = &fleet.cloud.app;
    let viewer = fleet.cloud.user("vera@example.org", Role::Viewer).await;
    let made = fleet
        .cloud
        .call("POST", PATH, &viewer, Some(json!({"verb": "probes", "delivery": "store", "ttl_s": 60})))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "a viewer may look, at all of them");
    pace::turn(app).await.unwrap();
    let result = json!({"taken_at": 5, "probes": [
        {"name": "disk", "subject": "/", "verdict": "ok", "detail": "fine"},
        {"name": "disk", "subject": "/data", "verdict": "failed", "detail": "full"},
        {"name": "clock", "verdict": "ok", "detail": "set"}]});
    answers(&fleet, &here, AckState::Done, Some(result)).await;
    let direct = fleet
        .ok("POST", PATH, Some(json!({"verb": "probes", "filter": format!("id = \"{}\"", away.id)})))
        .await;
    pace::turn(app).await.unwrap();
    let path = format!("{PATH}/{}", made.json()["id"].as_str().unwrap());
    let shown = fleet.ok("GET", &path, None).await;
    assert_eq!(shown["verdicts"], json!({"failed": 1}));
    let found = fleet.ok("GET", &format!("{path}/devices?state=done"), None).await;
    let found = &found["items"][0];
    assert_eq!(
        (&found["checks"], &found["verdict"]),
        (&json!({"clock": "ok", "disk": "failed"}), &json!("failed"))
    );
    let direct = fleet.ok("GET", &format!("{PATH}/{}", direct["id"].as_str().unwrap()), None).await;
    assert_eq!((&direct["states"], &direct["ended"]), (&json!({"unreachable": 1}), &json!(true)));
}

#[tokio::test]
async fn what_takes_something_away_needs_the_number_of_devices_that_are_meant() {
    let fleet = Fleet::new().await;
    for n in 1..=2 {
        fleet.device(n).await;
    }
    let ask = |more: Value| {
        let mut body = json!({"verb": "reboot", "filter": "name ~ \"*\""});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, code) in [
        (json!({}), "count_missing"),
        (json!({"verb": "purge_data"}), "count_missing"),
        (json!({"verb": "stop_service", "args": {"service": "web"}}), "count_missing"),
        (json!({"verb": "set_network", "args": {"ntp": []}}), "count_missing"),
        (json!({"verb": "check_update", "filter": null}), "count_missing"),
        (json!({"expect_count": 3}), "count_differs"),
        (json!({"filter": "name = nobody", "expect_count": 0}), "no_devices"),
        (json!({"filter": "nam = x"}), "filter_invalid"),
        (json!({"verb": "sing"}), "verb_unknown"),
        (json!({"delivery": "store", "expect_count": 2}), "ttl_missing"),
    ] {
        assert_eq!(fleet.call("POST", PATH, Some(ask(more.clone()))).await.code(), code, "{more}");
    }
    assert_eq!(fleet.ok("GET", PATH, None).await["items"], json!([]));
    for _ in 0..4 {
        fleet.ok("POST", PATH, Some(ask(json!({"expect_count": 2})))).await;
    }
    assert_eq!(
        fleet.call("POST", PATH, Some(ask(json!({"expect_count": 2})))).await.code(),
        "too_many_rounds"
    );
    fleet.ok("POST", PATH, Some(json!({"verb": "probes"}))).await;
}

#[tokio::test]
async fn who_may_not_act_on_one_device_may_not_act_on_many() {
    let fleet = Fleet::new().await;
    fleet.device(1).await;
    let viewer = fleet.cloud.user("vera@example.org", Role::Viewer).await;
    let reader = fleet.cloud.token("otto@example.org", Role::Operator, Scope::Read, None).await;
    let act = json!({"verb": "check_update", "filter": "name ~ \"*\""});
    for (token, code) in [(&viewer, "role_insufficient"), (&reader, "scope_insufficient")] {
        for more in [json!({}), json!({"dry_run": true})] {
            let mut body = act.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = fleet.cloud.call("POST", PATH, token, Some(body)).await;
            assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, code.to_owned()));
        }
    }
    let made = fleet.ok("POST", PATH, Some(act)).await;
    let cancel = format!("{PATH}/{}/cancel", made["id"].as_str().unwrap());
    assert_eq!(fleet.cloud.call("POST", &cancel, &viewer, None).await.code(), "role_insufficient");
    // Nobody was asked yet.
    let over = fleet.ok("POST", &cancel, None).await;
    assert_eq!((&over["states"], &over["ended"]), (&json!({"rejected": 1}), &json!(true)));
    assert!(!pace::turn(&fleet.cloud.app).await.unwrap());
    let devices = fleet.ok("GET", &cancel.replace("/cancel", "/devices"), None).await;
    assert_eq!(
        (&devices["items"][0]["code"], &devices["items"][0]["command_id"]),
        (&json!("cancelled"), &Value::Null)
    );
}

#[tokio::test]
async fn one_device_that_cannot_be_asked_holds_up_no_other_and_a_password_is_kept_no_longer_than_needed() {
    let fleet = Fleet::new().await;
    let (gone, here) = (fleet.device(1).await, fleet.device(2).await);
    let app = &fleet.cloud.app;
    let body = json!({"verb": "set_network", "args": {"proxy": "http://me:hunter2@proxy:3128"}, "expect_count": 2,
        "delivery": "store", "ttl_s": 60});
    let made = fleet.ok("POST", PATH, Some(body)).await;
    assert_eq!(made["args"]["proxy"], "http://(redacted)@proxy:3128");
    fleet.ok("POST", &format!("/api/v1/devices/{}/revoke", gone.id), None).await;
    pace::turn(app).await.unwrap();
    let path = format!("{PATH}/{}", made["id"].as_str().unwrap());
    let devices = fleet.ok("GET", &format!("{path}/devices?state=rejected"), None).await;
    assert_eq!(devices["items"][0]["code"], "device_not_accepted");
    answers(&fleet, &here, AckState::Done, None).await;
    assert_eq!(fleet.ok("GET", &path, None).await["ended"], true);
    // What was signed has it in base64, so none of that may be left at all.
    let signed: i64 = sqlx::query_scalar("SELECT COALESCE(SUM(LENGTH(envelope)), 0) FROM commands")
        .fetch_one(app.db.read())
        .await
        .unwrap();
    assert_eq!(signed, 0);
    for query in [
        "SELECT COALESCE(args_whole, '') || args FROM fleet_commands",
        "SELECT args || COALESCE(hex(envelope), '') FROM commands",
        "SELECT detail FROM audit",
    ] {
        let kept: Vec<String> = sqlx::query_scalar(query).fetch_all(app.db.read()).await.unwrap();
        let hex: String = b"hunter2".iter().map(|b| format!("{b:02X}")).collect();
        assert!(
            kept.iter().all(|text| !text.contains("hunter2") && !text.contains(&hex)),
            "{query}: {kept:?}"
        );
    }
}

#[tokio::test]
async fn rounds_that_only_wait_keep_no_further_one_from_beginning_and_a_cancelled_one_is_never_sent() {
    let fleet = Fleet::new().await;
    let (one, other) = (fleet.device(1).await, fleet.device(2).await);
    let app = &fleet.cloud.app;
    let ask = json!({"verb": "reboot", "filter": "name ~ \"*\"", "expect_count": 2, "delivery": "store", "ttl_s": 600});
    let mut rounds = Vec::new();
    for _ in 0..6 {
        rounds.push(fleet.ok("POST", PATH, Some(ask.clone())).await);
        pace::turn(app).await.unwrap();
    }
    let sent = next(app, &app.devices.get(one.id).unwrap(), 1).await.unwrap().unwrap();
    for round in &rounds {
        let path = format!("{PATH}/{}", round["id"].as_str().unwrap());
        fleet.ok("POST", &format!("{path}/cancel"), None).await;
    }
    let entry = app.devices.get(other.id).unwrap();
    assert!(next(app, &entry, 1).await.unwrap().is_none(), "all of them were taken back");
    let first = format!("{PATH}/{}", rounds[0]["id"].as_str().unwrap());
    let half = fleet.ok("GET", &first, None).await;
    assert_eq!(half["states"], json!({"queued": 1, "rejected": 1}), "what was sent goes on");
    let devices = fleet.ok("GET", &format!("{first}/devices?state=queued"), None).await;
    assert_eq!(devices["items"][0]["command_id"], sent.id.to_string());
    let last = format!("{PATH}/{}", rounds[5]["id"].as_str().unwrap());
    assert_eq!(fleet.ok("GET", &last, None).await["ended"], true);
    let own = format!("/api/v1/fleets/porch/devices/{}/commands", other.id);
    let shown = fleet.ok("GET", &own, None).await;
    assert_eq!(
        (&shown["items"][0]["state"], &shown["items"][0]["code"]),
        (&json!("rejected"), &json!("cancelled"))
    );
}

#[tokio::test]
async fn a_round_goes_no_further_when_its_author_may_not_and_one_that_cannot_be_read_holds_up_no_other() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let olga = fleet.cloud.user("olga@example.org", Role::Operator).await;
    let ask = json!({"verb": "reboot", "expect_count": 1, "delivery": "store", "ttl_s": 600});
    let made = fleet.cloud.call("POST", PATH, &olga, Some(ask.clone())).await.json();
    let old = fleet.ok("POST", PATH, Some(json!({"verb": "probes"}))).await;
    let sound = fleet.ok("POST", PATH, Some(ask)).await;
    let mut tx = app.db.write().await.unwrap();
    for sql in [
        "UPDATE users SET role = 'viewer' WHERE email = 'olga@example.org'",
        "UPDATE fleet_commands SET args = '{\"of_old\": 1}' WHERE verb = 'probes'",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    pace::turn(app).await.unwrap();
    for (round, state, code) in [(made, "rejected", "access_lost"), (old, "failed", "unreadable")] {
        let path = format!("{PATH}/{}", round["id"].as_str().unwrap());
        assert_eq!(fleet.ok("GET", &path, None).await["ended"], true);
        let devices = fleet.ok("GET", &format!("{path}/devices"), None).await;
        let shown = &devices["items"][0];
        assert_eq!((&shown["state"], &shown["code"]), (&json!(state), &json!(code)));
    }
    let command = next(app, &app.devices.get(device.id).unwrap(), 1).await.unwrap().unwrap();
    let path = format!("{PATH}/{}/devices", sound["id"].as_str().unwrap());
    assert_eq!(fleet.ok("GET", &path, None).await["items"][0]["command_id"], command.id.to_string());
    let audit = fleet.ok("GET", "/api/v1/audit?limit=2", None).await;
    let ends: Vec<_> = audit["items"].as_array().unwrap().iter().map(|row| &row["verb"]).collect();
    assert_eq!(ends, ["fleet_command.end", "fleet_command.end"]);
}
