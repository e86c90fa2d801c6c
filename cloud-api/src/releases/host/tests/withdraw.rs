//! Operating systems and agents that are taken back.

use super::*;

async fn withdrawn(fleet: &Fleet, id: &str) -> Value {
    let body = json!({"reason": "bricks the modem"});
    fleet.ok("POST", &format!("{PATH}/{id}/withdraw"), Some(body)).await
}

async fn given(fleet: &Fleet, device: &Device) -> Value {
    fleet.shown(device).await["os"]["target"]["release"].clone()
}

/// Three operating systems, oldest first.
async fn three(fleet: &Fleet) -> [String; 3] {
    let mut made = Vec::new();
    for step in 0..3 {
        made.push(taken(fleet, &os(fleet, step)).await);
    }
    made.try_into().unwrap()
}

#[tokio::test]
async fn devices_go_back_to_what_they_were_to_run_before() {
    let fleet = stocked().await;
    let (follows, pinned) = (fleet.device(1).await, fleet.device(2).await);
    let [first, second, third] = three(&fleet).await;
    deployed(&fleet, &first, json!({"all": true})).await;
    deployed(&fleet, &second, json!({"devices": [pinned.id]})).await;
    deployed(&fleet, &third, json!({"devices": [pinned.id]})).await;
    deployed(&fleet, &second, json!({"devices": [follows.id]})).await;
    deployed(&fleet, &third, json!({"devices": [follows.id]})).await;
    assert_eq!(fleet.ok("GET", &format!("{PATH}/{third}"), None).await["withdrawn"], Value::Null);

    let done = withdrawn(&fleet, &third).await;
    assert_eq!((&done["devices"], &done["target"]), (&json!(2), &json!(first)));
    assert_eq!(done["release"]["withdrawn"], "bricks the modem");
    assert_eq!((given(&fleet, &pinned).await, given(&fleet, &follows).await), (json!(second), json!(second)));
    let assignment = pinned.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.host.unwrap().sha256.to_string(), second, "and it is signed so");
    // One that was withdrawn meanwhile is no way back, and a device that only followed its fleet follows it again.
    withdrawn(&fleet, &second).await;
    assert_eq!((given(&fleet, &pinned).await, given(&fleet, &follows).await), (json!(first), json!(first)));
    assert_eq!(fleet.shown(&follows).await["os"]["pinned"], Value::Null);

    // Nobody is given it any more, its blobs neither.
    let answer = deploy(&fleet, &third, json!({"all": true})).await;
    assert_eq!(answer.code(), "release_invalidated");
    assert!(answer.json()["detail"].as_str().unwrap().contains("withdrawn"));
    let path = format!("/device/v1/releases/{third}");
    assert_eq!(pinned.get(&fleet, &path, None).await.code(), "release_unknown");
    assert_eq!(fleet.ok("GET", &format!("{PATH}/{third}"), None).await["devices_given"], 0);
    let latest = fleet.ok("GET", PATH, None).await;
    assert_eq!(latest["items"][0]["withdrawn"], "bricks the modem");

    let audit = fleet.ok("GET", "/api/v1/audit", None).await;
    let entry =
        audit["items"].as_array().unwrap().iter().find(|e| e["verb"] == "host_release.withdraw").unwrap();
    assert_eq!(entry["object"], format!("release:{second}"));
    assert_eq!(entry["detail"]["reason"], "bricks the modem");
}

#[tokio::test]
async fn the_dashboard_lists_systems_with_where_they_are_and_why_one_was_withdrawn() {
    let fleet = stocked().await;
    fleet.device(1).await;
    let page = async || {
        let answer = fleet.call("GET", "/fleets/porch/systems", None).await;
        assert_eq!(answer.status, StatusCode::OK);
        String::from_utf8(answer.bytes).unwrap()
    };
    assert!(page().await.contains("copal os release porch os.copal"), "what to do first");
    let [first, second, _] = three(&fleet).await;
    deployed(&fleet, &first, json!({"all": true})).await;
    deployed(&fleet, &second, json!({"all": true})).await;
    fleet
        .ok("POST", &format!("{PATH}/{second}/withdraw"), Some(json!({"reason": "<b>bricks</b> \u{202e}it"})))
        .await;
    let shown = page().await;
    for expected in ["the fleet&#39;s target", "operating system", "1.1.0", "at any time", &second[..12]] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(shown.contains("withdrawn") && shown.contains("bricks"), "{shown}");
    assert!(!shown.contains("<b>bricks") && !shown.contains('\u{202e}'), "a reason is text");
}

#[tokio::test]
async fn a_fleet_goes_back_and_where_nothing_is_left_devices_are_asked_nothing() {
    let fleet = stocked().await;
    let device = fleet.device(1).await;
    let [first, second, third] = three(&fleet).await;
    for id in [&first, &second, &third] {
        deployed(&fleet, id, json!({"all": true})).await;
    }
    withdrawn(&fleet, &second).await;
    assert_eq!(given(&fleet, &device).await, json!(third), "what was not withdrawn stays");
    assert_eq!(withdrawn(&fleet, &third).await["target"], first.as_str(), "over the one that was");
    assert_eq!(given(&fleet, &device).await, json!(first));
    let done = withdrawn(&fleet, &first).await;
    assert_eq!(done["target"], Value::Null);
    assert_eq!(fleet.shown(&device).await["os"], Value::Null, "it has no operating system to run");
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.host, assignment.apps.len()), (None, 0), "and is told so");
    assert_eq!(fleet.ok("GET", "/api/v1/fleets/porch", None).await["target_os"], Value::Null);
}

#[tokio::test]
async fn a_device_that_runs_a_withdrawn_one_with_a_floor_stays_and_says_why() {
    let fleet = stocked().await;
    let mut device = fleet.device(1).await;
    let first = taken(&fleet, &os(&fleet, 0)).await;
    let mut next = os(&fleet, 1);
    next.rollback_floor = next.counter;
    let next = taken(&fleet, &next).await;
    deployed(&fleet, &first, json!({"all": true})).await;
    deployed(&fleet, &next, json!({"all": true})).await;
    let release: Sha256Hex = next.parse().unwrap();
    let runs = HostReport {
        backend: "uboot".to_owned(),
        slots: [("b".to_owned(), slot(SlotState::Committed, true, Some(release)))].into(),
        release: Some(release),
        version: "1.1.0".to_owned(),
        reason: None,
        progress: None,
        failed: None,
    };
    device.report(&fleet, |r| r.host = Some(runs)).await;
    withdrawn(&fleet, &next).await;
    let shown = fleet.shown(&device).await;
    assert_eq!(
        (&shown["os"]["target"], &shown["os"]["reason"]["code"]),
        (&Value::Null, &json!("below_floor"))
    );
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.host, None);
}

#[tokio::test]
async fn a_withdrawal_has_a_reason_concerns_its_line_only_and_can_be_undone() {
    let fleet = stocked().await;
    upload(&fleet, b"agent").await;
    let device = fleet.device(1).await;
    let system = taken(&fleet, &os(&fleet, 0)).await;
    let binary = taken(&fleet, &agent(&fleet, 0, b"agent")).await;
    deployed(&fleet, &system, json!({"all": true})).await;
    deployed(&fleet, &binary, json!({"all": true})).await;
    let path = format!("{PATH}/{binary}/withdraw");
    for (body, code) in [
        (json!({}), "reason_missing"),
        (json!({"reason": " \n"}), "reason_missing"),
        (json!({"reason": "x".repeat(4001)}), "reason_too_long"),
        (json!({"why": "x"}), "body_invalid"),
    ] {
        assert_eq!(fleet.call("POST", &path, Some(body)).await.code(), code);
    }
    withdrawn(&fleet, &binary).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.agent, None);
    assert_eq!(assignment.host.unwrap().sha256.to_string(), system, "the other line stays");
    assert_eq!(blob(&fleet, &device, b"agent", None).await.code(), "blob_unknown");

    let done = fleet.ok("POST", &path, Some(json!({"undo": true}))).await;
    assert_eq!((&done["release"]["withdrawn"], &done["target"]), (&Value::Null, &Value::Null));
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.agent, None, "nothing goes there by itself");
    deployed(&fleet, &binary, json!({"all": true})).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.agent.unwrap().sha256.to_string(), binary);
    let app_release = fleet.release(false).await;
    let answer =
        fleet.call("POST", &format!("{PATH}/{app_release}/withdraw"), Some(json!({"reason": "x"}))).await;
    assert_eq!(answer.code(), "not_found");
}
