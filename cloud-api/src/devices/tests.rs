//! Devices end to end against the router.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use copal_protocol::{
    documents::{Freshness, LockState, Reason, Report},
    enrol,
    envelope::Envelope,
    ids::{DeviceId, Sha256Hex},
    seal::SealKey,
    testing::fixed_key,
    verify::{self, AssignmentMark},
};
use serde_json::{Value, json};

use super::testing::{Device, Fleet};
use crate::{app, auth::Role, devices, store::fleets, testing::Answer};

fn said(code: &str) -> Reason {
    devices::rows::reason(code, "said so")
}

#[tokio::test]
async fn a_token_lets_one_device_in_and_the_same_device_again() {
    let fleet = Fleet::new().await;
    let token = fleet.enrolment_token(json!({})).await;
    let (seal, other_seal) = (SealKey::from_bytes(&[1; 32]), SealKey::from_bytes(&[2; 32]));
    let first = fleet.enrolment(&token, 7, &seal);

    let mut wrong_mac = first.clone();
    wrong_mac.token_mac = Sha256Hex::of(b"guess");
    assert_eq!(fleet.post("/device/v1/enrol", "", &wrong_mac).await.code(), "enrolment_token_invalid");
    let mut unknown = first.clone();
    unknown.token_id = "nobody".to_owned();
    assert_eq!(fleet.post("/device/v1/enrol", "", &unknown).await.code(), "enrolment_token_invalid");
    let mut stolen = first.clone();
    stolen.signature = hex::encode(fixed_key(9).sign(b"x"));
    assert_eq!(fleet.post("/device/v1/enrol", "", &stolen).await.code(), "enrolment_signature_invalid");

    let once = fleet.post("/device/v1/enrol", "", &first).await;
    assert_eq!(once.status, StatusCode::OK, "{once:?}");
    let again = fleet.post("/device/v1/enrol", "", &first).await;
    assert_eq!(once.json(), again.json(), "the same keys are the same device");
    let second = fleet.enrolment(&token, 8, &other_seal);
    assert_eq!(fleet.post("/device/v1/enrol", "", &second).await.code(), "enrolment_token_used");
    let fresh = fleet.enrolment_token(json!({})).await;
    let reused = fleet.enrolment(&fresh, 7, &other_seal);
    assert_eq!(fleet.post("/device/v1/enrol", "", &reused).await.code(), "device_key_known");
    let expired = fleet.enrolment_token(json!({})).await;
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE enrolment_tokens SET expires_at = 5").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let late = fleet.enrolment(&expired, 8, &other_seal);
    assert_eq!(fleet.post("/device/v1/enrol", "", &late).await.code(), "enrolment_token_expired");
}

#[tokio::test]
async fn two_devices_at_once_do_not_share_a_token() {
    let fleet = Fleet::new().await;
    let token = fleet.enrolment_token(json!({})).await;
    let seal = SealKey::from_bytes(&[1; 32]);
    let requests: Vec<_> = (1..6).map(|n| fleet.enrolment(&token, n, &seal)).collect();
    let answers =
        futures_util::future::join_all(requests.iter().map(|r| fleet.post("/device/v1/enrol", "", r))).await;
    assert_eq!(answers.iter().filter(|a| a.status == StatusCode::OK).count(), 1);
}

#[tokio::test]
async fn malformed_bodies_are_refused_with_a_code() {
    let fleet = Fleet::new().await;
    let send = |body: String| {
        let request = Request::post("/device/v1/challenge")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body));
        fleet.cloud.send(request.unwrap())
    };
    let id = "0".repeat(32);
    for body in [
        String::new(),
        "[]".to_owned(),
        format!("{{\"device_id\":\"{id}\",\"device_id\":\"{id}\"}}"),
        format!("{{\"device_id\":\"{id}\",\"more\":1}}"),
        "{\"device_id\":\"../../etc\"}".to_owned(),
    ] {
        assert_eq!(send(body.clone()).await.code(), "body_malformed", "{body}");
    }
    let huge = send(format!("{{\"device_id\":\"{}\"}}", "a".repeat(100_000))).await;
    assert_eq!((huge.status, huge.code()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large".to_owned()));
}

#[tokio::test]
async fn a_login_needs_the_key_and_a_fresh_challenge_and_tells_nothing_else() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let stranger = Device {
        key: fixed_key(2),
        seal: SealKey::from_bytes(&[2; 32]),
        id: device.id,
        link: None,
        session: String::new(),
        counter: 0,
        forger: None,
    };
    let wrong_key = stranger.try_login(&fleet, None).await;
    let unknown = Device { id: DeviceId::from_bytes([9; 16]), ..stranger }.try_login(&fleet, None).await;
    assert_eq!((wrong_key.status, wrong_key.code()), (StatusCode::UNAUTHORIZED, "login_refused".to_owned()));
    assert_eq!(wrong_key.json()["detail"], unknown.json()["detail"], "no oracle");

    let challenge = fleet
        .cloud
        .call("POST", "/device/v1/challenge", "", Some(json!({"device_id": device.id})))
        .await
        .json()["challenge"]
        .clone();
    let parsed: Sha256Hex = serde_json::from_value(challenge.clone()).unwrap();
    let signature = hex::encode(device.key.sign(&enrol::login_message(device.id, parsed)));
    let body = json!({"device_id": device.id, "challenge": challenge, "signature": signature, "refresh_link": device.link});
    let first = fleet.cloud.call("POST", "/device/v1/login", "", Some(body.clone())).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    let replayed = fleet.cloud.call("POST", "/device/v1/login", "", Some(body)).await;
    assert_eq!(replayed.code(), "login_refused");
    for token in ["", "x", "AAAA", device.session.trim_end_matches(|_| true)] {
        assert_eq!(
            fleet.cloud.call("GET", "/device/v1/state", token, None).await.status,
            StatusCode::UNAUTHORIZED
        );
    }
}

#[tokio::test]
async fn a_lost_answer_is_no_clone_and_a_copied_card_is() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let mut device = fleet.device(1).await;
    // The answer is lost: the device shows the same link again.
    let link = device.link.clone();
    assert_eq!(device.try_login(&fleet, link.clone()).await.status, StatusCode::OK);
    device.login(&fleet).await;
    device.login(&fleet).await;

    // A copy of the card from before shows a link that has been followed.
    let copy = device.try_login(&fleet, link).await;
    assert_eq!((copy.status, copy.code()), (StatusCode::CONFLICT, "clone_suspected".to_owned()));
    let shown = fleet.shown(&device).await;
    assert_eq!(shown["reason"]["code"], "clone_suspected");
    assert_eq!(
        device.get(&fleet, "/device/v1/state", None).await.code(),
        "token_invalid",
        "sessions are cut"
    );
    let link = device.link.clone();
    assert_eq!(
        device.try_login(&fleet, link.clone()).await.code(),
        "clone_suspected",
        "the true one waits as well"
    );
    // Nothing new is made for it.
    let before = shown["target"]["seq"].clone();
    fleet.release(false).await;
    assert_eq!(fleet.shown(&device).await["target"]["seq"], before);

    fleet.ok("POST", &format!("/api/v1/devices/{}/accept", device.id), None).await;
    device.login(&fleet).await;
    let after = fleet.shown(&device).await;
    assert_ne!(after["target"]["seq"], before);
    assert_eq!(after["clone_suspected"], false);
    let events = fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await.to_string();
    assert!(events.contains("clone_suspected"), "{events}");
}

#[tokio::test]
async fn nothing_new_is_a_304_and_something_new_has_its_hash() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    assert_eq!(device.get(&fleet, "/device/v1/state", None).await.status, StatusCode::NO_CONTENT);
    fleet.release(false).await;
    let first = device.get(&fleet, "/device/v1/state", None).await;
    let etag = first.headers[header::ETAG].to_str().unwrap().to_owned();
    let same = device.get(&fleet, "/device/v1/state", Some(&etag)).await;
    assert_eq!((same.status, same.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
    fleet.release(false).await;
    let second = device.get(&fleet, "/device/v1/state", Some(&etag)).await;
    assert_eq!(second.status, StatusCode::OK);
    assert_ne!(second.bytes, first.bytes);
    assert_eq!(device.get(&fleet, "/device/v1/state?wait=61", None).await.code(), "wait_invalid");
}

#[tokio::test]
async fn a_held_poll_ends_with_a_release_a_revocation_or_the_cloud() {
    let fleet = Arc::new(Fleet::new().await);
    fleet.release(false).await;
    let device = Arc::new(fleet.device(1).await);
    let held = |etag: String| {
        let (fleet, device) = (fleet.clone(), device.clone());
        tokio::spawn(async move { device.get(&fleet, "/device/v1/state?wait=60", Some(&etag)).await })
    };
    let etag = |answer: &Answer| answer.headers[header::ETAG].to_str().unwrap().to_owned();
    let first = device.get(&fleet, "/device/v1/state", None).await;
    let poll = held(etag(&first));
    tokio::task::yield_now().await;
    fleet.release(false).await;
    let second = poll.await.unwrap();
    assert_eq!(second.status, StatusCode::OK);

    let poll = held(etag(&second));
    while fleet.shown(&device).await["online"] != true {}
    fleet.ok("POST", &format!("/api/v1/devices/{}/revoke", device.id), None).await;
    let cut = poll.await.unwrap();
    assert_eq!((cut.status, cut.code()), (StatusCode::FORBIDDEN, "device_revoked".to_owned()));
    assert_eq!(device.get(&fleet, "/device/v1/roots/1", None).await.code(), "device_revoked");
    assert_eq!(device.try_login(&fleet, device.link.clone()).await.code(), "device_revoked");
    assert_eq!(fleet.shown(&device).await["online"], false, "it called a moment ago, and is out");
    assert_eq!(fleet.cloud.app.devices.online(app::now()), 0);
    assert_eq!(fleet.shown(&device).await["reason"]["code"], "revoked");
    let accept = fleet.call("POST", &format!("/api/v1/devices/{}/accept", device.id), None).await;
    assert_eq!(accept.code(), "device_revoked");

    let other = Arc::new(fleet.device(2).await);
    let first = other.get(&fleet, "/device/v1/state", None).await;
    let (f, d, e) = (fleet.clone(), other.clone(), etag(&first));
    let poll = tokio::spawn(async move { d.get(&f, "/device/v1/state?wait=60", Some(&e)).await });
    tokio::task::yield_now().await;
    fleet.cloud.app.stopping.cancel();
    assert_eq!(poll.await.unwrap().status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn a_poll_that_finds_no_room_to_be_held_is_answered_at_once() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    fleet.cloud.app.channels.allow(1, 0);
    let poll = device.get(&fleet, "/device/v1/state?wait=60", None);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(30), poll).await.expect("not held");
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn documents_are_those_of_the_fleet_and_of_the_device() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    assert_eq!(device.get(&fleet, "/device/v1/roots/1", None).await.status, StatusCode::OK);
    for none in ["2", "0", "-1", "x"] {
        assert_eq!(
            device.get(&fleet, &format!("/device/v1/roots/{none}"), None).await.code(),
            "root_unknown"
        );
    }
    let draft = fleet.release(true).await;
    let path = format!("/device/v1/releases/{draft}");
    assert_eq!(device.get(&fleet, &path, None).await.code(), "release_unknown", "a draft that is not for it");
    let pin = json!({"pinned_release": draft});
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", device.id), Some(pin)).await;
    let release = device.get(&fleet, &path, None).await;
    let envelope = Envelope::parse::<copal_protocol::documents::Release>(&release.bytes).unwrap();
    assert_eq!(envelope.payload_sha256().to_string(), draft);
    assert_eq!(device.get(&fleet, "/device/v1/releases/..", None).await.code(), "release_unknown");
}

#[tokio::test]
async fn freshness_vouches_for_the_newest_assignment_against_the_nonce() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let nonce = Sha256Hex::of(b"nonce");
    let ask =
        || fleet.cloud.call("POST", "/device/v1/freshness", &device.session, Some(json!({"nonce": nonce})));
    assert_eq!(ask().await.code(), "no_assignment");
    fleet.release(false).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    let mark = AssignmentMark {
        assign_epoch: assignment.assign_epoch,
        seq: assignment.seq,
        sha256: Some(assignment.sha256()),
    };
    let answer = ask().await;
    let envelope = Envelope::parse::<Freshness>(&answer.bytes).unwrap();
    verify::freshness(&fleet.trusted(), &device.identity(&fleet), nonce, &mark, &envelope).unwrap();
}

#[tokio::test]
async fn a_report_is_believed_only_signed_newer_and_of_the_device_itself() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let mut device = fleet.device(1).await;
    let other = fleet.device(2).await;
    assert_eq!(device.report(&fleet, |r| r.report_counter = 10).await.status, StatusCode::NO_CONTENT);
    let old = device.report(&fleet, |r| r.report_counter = 10).await;
    assert_eq!((old.status, old.code()), (StatusCode::CONFLICT, "report_old".to_owned()));
    let foreign = device.report(&fleet, |r| {
        r.report_counter = 11;
        r.device_id = other.id;
    });
    assert_eq!(foreign.await.code(), "E_DEVICE_MISMATCH");
    device.forger = Some(fixed_key(9));
    let forged = device.report(&fleet, |r| r.report_counter = 12).await;
    assert!(forged.code().starts_with("E_SIG_"), "{}", forged.code());
    device.forger = None;
    let huge = device.post(&fleet, "/device/v1/report", vec![b'x'; (256 << 10) + 1]).await;
    assert_eq!((huge.status, huge.code()), (StatusCode::PAYLOAD_TOO_LARGE, "E_TOO_LARGE".to_owned()));
    assert_eq!(device.report(&fleet, |r| r.report_counter = 13).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn reports_become_state_one_reason_and_events() {
    let fleet = Fleet::new().await;
    let release = fleet.release(false).await;
    let mut device = fleet.device(1).await;
    let path = format!("/api/v1/devices/{}", device.id);
    assert_eq!(fleet.shown(&device).await["reason"]["code"], "updating");

    device.report(&fleet, |_| {}).await;
    let shown = fleet.shown(&device).await;
    assert_eq!(shown["on_target"], true, "{shown}");
    assert_eq!(shown["committed_release"], release.as_str());
    assert_eq!(shown["lock"], "open");
    let app = fleet.keys.app_id.to_string();
    assert_eq!(shown["running"][&app]["web"]["state"], "absent");
    assert!(shown["running"][&app]["web"]["desired"].as_str().unwrap().starts_with("sha256:"));

    fleet.release(false).await;
    device
        .report(&fleet, |r| {
            r.seq_applied -= 1;
            r.lock = LockState::Locked;
            r.reason = Some(Reason {
                service: Some("web".parse().unwrap()),
                exit_code: Some(7),
                log_tail: vec!["out of\u{1b}[31m cheese\r\n".to_owned()],
                ..said("rolled_back")
            });
            r.committed = [(fleet.keys.app_id, release.parse().unwrap())].into();
        })
        .await;
    let shown = fleet.shown(&device).await;
    assert_eq!((&shown["on_target"], &shown["reason"]["code"]), (&json!(false), &json!("rolled_back")));
    assert_eq!(shown["reason"]["log_tail"][0], "out of\u{fffd}[31m cheese\u{fffd}\u{fffd}");
    let events = fleet.ok("GET", &format!("{path}/events"), None).await;
    let kinds: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["lock", "reason", "committed", "enrolled"]);
    assert_eq!(events["items"][1]["data"]["exit_code"], 7);

    let report = fleet.call("GET", &format!("{path}/report"), None).await;
    let envelope = Envelope::parse::<Report>(&report.bytes).unwrap();
    verify::signed_by::<Report>(&device.key.public(), fleet.keys.fleet_id, &envelope).unwrap();
}

#[tokio::test]
async fn events_of_a_device_are_bounded() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    let many: Vec<_> =
        (0..5_200).map(|n| devices::rows::NewEvent::new("reason", format!("c{n}"), "")).collect();
    devices::rows::add_events(&mut tx, device.id, 1, &many).await.unwrap();
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM device_events").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(count, 5_000);
}

#[tokio::test]
async fn a_restarted_cloud_knows_devices_and_asks_them_to_log_in_again() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let device = fleet.device(1).await;
    let memory = devices::Memory::load(&fleet.cloud.app.db).await.unwrap();
    assert_eq!(memory.get(device.id).unwrap().seq(), Some(1));
    assert!(!memory.get(device.id).unwrap().is_online(app::now()));
    devices::presence::sweep(&fleet.cloud.app, false).await.unwrap();
    let memory = devices::Memory::load(&fleet.cloud.app.db).await.unwrap();
    assert!(memory.get(device.id).unwrap().is_online(app::now()), "when it was seen is written down");
    let headers = [(header::AUTHORIZATION, format!("Bearer {}", device.session).parse().unwrap())];
    assert_eq!(memory.session(&headers.into_iter().collect()).unwrap_err().code(), "token_invalid");
}

#[tokio::test]
async fn a_connected_device_costs_no_write_each_sweep_and_is_written_down_at_the_end() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let (app, now) = (&fleet.cloud.app, app::now());
    let entry = app.devices.get(device.id).unwrap();
    let sweep = |at, all| {
        let swept = app.devices.sweep(at, all);
        swept.seen.iter().for_each(|(entry, seen)| entry.written(*seen));
        swept.offline.iter().for_each(|entry| entry.told_offline());
        (swept.seen.iter().map(|(_, seen)| *seen).collect::<Vec<_>>(), swept.offline.len())
    };
    assert_eq!(app.devices.sweep(now, false).seen.len(), 1);
    assert_eq!(sweep(now, false).0.len(), 1, "given again until it is written");
    let held = entry.hold();
    assert!(sweep(now + 10, false).0.is_empty());
    assert_eq!(sweep(now + 20, true).0, [now + 20]);
    assert_eq!(sweep(now + 90, false).0.len(), 1);
    drop(held);
    assert_eq!(sweep(now + 30, false).1, 0);
    assert_eq!(app.devices.sweep(now + 1_000, false).offline.len(), 1);
    assert_eq!(sweep(now + 1_000, false).1, 1, "told until the database has it");
    assert_eq!(sweep(now + 1_001, false).1, 0, "told once");
}

#[tokio::test]
async fn a_revocation_holds_even_when_its_caller_hangs_up() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let path = format!("/api/v1/devices/{}/revoke", device.id);
    {
        let mut call = Box::pin(fleet.call("POST", &path, None));
        // Polled until it waits for the first time, then dropped.
        assert!(futures_util::poll!(&mut call).is_pending());
    }
    while fleet.shown(&device).await["state"] != "revoked" {
        tokio::task::yield_now().await;
    }
    loop {
        let answer = device.get(&fleet, "/device/v1/roots/1", None).await;
        if answer.status == StatusCode::FORBIDDEN {
            break;
        }
    }
}

#[tokio::test]
async fn a_device_has_few_sessions_and_the_oldest_ends_first() {
    let fleet = Fleet::new().await;
    let mut device = fleet.device(1).await;
    let first = device.session.clone();
    for _ in 0..2 {
        device.login(&fleet).await;
    }
    assert_eq!(
        fleet.cloud.call("GET", "/device/v1/state", &first, None).await.status,
        StatusCode::NO_CONTENT
    );
    device.login(&fleet).await;
    assert_eq!(fleet.cloud.call("GET", "/device/v1/state", &first, None).await.code(), "token_invalid");
    assert_eq!(device.get(&fleet, "/device/v1/state", None).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn after_a_restore_no_device_is_taken_for_a_clone() {
    let fleet = Fleet::new().await;
    let mut device = fleet.device(1).await;
    // The back-up is from before this login.
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE devices SET link_hash = 'old', link_previous_hash = 'older'")
        .execute(&mut *tx)
        .await
        .unwrap();
    devices::forget_links(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    device.login(&fleet).await;
    device.login(&fleet).await;
}

#[tokio::test]
async fn people_list_filter_name_and_tag_devices() {
    let fleet = Fleet::new().await;
    let mut ids = Vec::new();
    for n in 1..=5 {
        ids.push(fleet.device(n).await.id.to_string());
    }
    ids.sort();
    let list = |query: &str| {
        let path = format!("/api/v1/fleets/porch/devices{query}");
        let fleet = &fleet;
        async move {
            let page = fleet.ok("GET", &path, None).await;
            let ids =
                page["items"].as_array().unwrap().iter().map(|d| d["device_id"].as_str().unwrap().to_owned());
            (ids.collect::<Vec<_>>(), page["next"].clone())
        }
    };
    assert_eq!(list("").await.0, ids);
    let (first, next) = list("?limit=2").await;
    assert_eq!(first, ids[..2]);
    let (second, next) = list(&format!("?limit=2&after={}", next.as_str().unwrap())).await;
    assert_eq!(second, ids[2..4]);
    assert_eq!(
        list(&format!("?limit=2&after={}", next.as_str().unwrap())).await,
        (ids[4..].to_vec(), Value::Null)
    );

    let path = |n: usize| format!("/api/v1/devices/{}", ids[n]);
    let tags = json!({"name": "kitchen", "tags": {"site": "paris", "ring": "1"}});
    let shown = fleet.ok("PATCH", &path(1), Some(tags)).await;
    assert_eq!((&shown["name"], &shown["tags"]["site"]), (&json!("kitchen"), &json!("paris")));
    fleet.ok("PATCH", &path(3), Some(json!({"tags": {"site": "paris"}}))).await;
    assert_eq!(list("?tag=site=paris").await.0, [ids[1].clone(), ids[3].clone()]);
    assert_eq!(list("?tag=site=paris&tag=ring=1").await.0, [ids[1].clone()]);
    fleet.ok("PATCH", &path(1), Some(json!({"tags": {"site": null}}))).await;
    assert_eq!(list("?tag=site=paris").await.0, [ids[3].clone()]);

    for (body, code) in [
        (json!({"name": "a\u{202e}b"}), "name_invalid"),
        (json!({"name": ""}), "name_invalid"),
        (json!({"tags": {"a b": "c"}}), "tag_invalid"),
        (json!({"colour": "red"}), "body_invalid"),
        (json!({"pinned_release": "9.9.9"}), "not_found"),
    ] {
        assert_eq!(fleet.call("PATCH", &path(0), Some(body.clone())).await.code(), code, "{body}");
    }
    assert_eq!(fleet.call("GET", "/api/v1/fleets/porch/devices?tag=x", None).await.code(), "tag_invalid");
    assert_eq!(fleet.call("GET", "/api/v1/fleets/porch/devices?limit=0", None).await.code(), "limit_invalid");
}

#[tokio::test]
async fn a_viewer_looks_and_another_fleets_token_sees_nothing() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let viewer = fleet.cloud.user("eve@example.org", Role::Viewer).await;
    let path = format!("/api/v1/devices/{}", device.id);
    assert_eq!(fleet.cloud.call("GET", &path, &viewer, None).await.status, StatusCode::OK);
    for (method, route, body) in [
        ("PATCH", "", Some(json!({"name": "x"}))),
        ("POST", "/revoke", None),
        ("POST", "/accept", None),
        ("POST", "/retry", None),
        ("PUT", "/variables", Some(json!({"name": "A", "value": "b"}))),
    ] {
        let answer = fleet.cloud.call(method, &format!("{path}{route}"), &viewer, body).await;
        assert_eq!(answer.code(), "role_insufficient", "{method} {route}");
    }
    let elsewhere = json!({"slug": "other", "device_type": "generic", "arch": "amd64"});
    fleet.ok("POST", "/api/v1/fleets", Some(elsewhere)).await;
    let other = fleets::by_slug(&fleet.cloud.app, "other").await.unwrap().fleet_id;
    let token =
        fleet.cloud.token("bob@example.org", Role::Owner, crate::auth::Scope::Full, Some(other)).await;
    for route in ["", "/events", "/report", "/variables"] {
        let answer = fleet.cloud.call("GET", &format!("{path}{route}"), &token, None).await;
        assert_eq!(answer.code(), "not_found");
        assert!(!String::from_utf8_lossy(&answer.bytes).contains("porch"), "existence is not told");
    }
}

#[tokio::test]
async fn a_parked_release_is_tried_again_when_a_person_asks() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let device = fleet.device(1).await;
    let asked = fleet.ok("POST", &format!("/api/v1/devices/{}/retry", device.id), None).await;
    assert_eq!(asked["seq"], 2);
    assert_eq!(device.assignment(&fleet, &AssignmentMark::default()).await.apps[0].retry, 1);
}

#[tokio::test]
async fn acts_leave_audit_rows() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let path = format!("/api/v1/devices/{}", device.id);
    fleet.ok("PATCH", &path, Some(json!({"name": "kitchen"}))).await;
    fleet.ok("POST", &format!("{path}/retry"), None).await;
    let secret = json!({"name": "PASSWORD", "value": "hunter2", "secret": true});
    fleet.ok("PUT", &format!("{path}/variables"), Some(secret)).await;
    fleet.ok("POST", &format!("{path}/revoke"), None).await;
    let audit = fleet.ok("GET", "/api/v1/audit", None).await.to_string();
    for verb in ["device.change", "device.retry", "variable.set", "device.revoke"] {
        assert!(audit.contains(verb), "{verb}");
    }
    assert!(!audit.contains("hunter2"));
}
