//! Deploying with control.

use serde_json::{Value, json};

use crate::devices::testing::{Device, Fleet};

async fn deploy(fleet: &Fleet, body: Value) -> Value {
    fleet.ok("POST", "/api/v1/fleets/porch/deploy", Some(body)).await
}

async fn refused(fleet: &Fleet, body: Value) -> String {
    let answer = fleet.call("POST", "/api/v1/fleets/porch/deploy", Some(body.clone())).await;
    assert!(answer.status.is_client_error(), "{body}: {answer:?}");
    answer.code()
}

async fn given(fleet: &Fleet, device: &Device) -> String {
    fleet.shown(device).await["target"]["release"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_fleet_follows_the_newest_until_it_is_pinned_and_again_from_latest() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let first = fleet.release(false).await;
    let second = fleet.release(false).await;
    assert_eq!(given(&fleet, &device).await, second);
    let done = deploy(&fleet, json!({"release": "v0.1.0"})).await;
    assert_eq!((&done["release"], &done["devices"]), (&json!(first), &json!(1)));
    assert_eq!(done["seqs"][device.id.to_string()], 3);
    assert_eq!(given(&fleet, &device).await, first, "back to an older one");
    let third = fleet.release(false).await;
    assert_eq!(given(&fleet, &device).await, first, "pinned");
    let shown = fleet.ok("GET", "/api/v1/fleets/porch", None).await;
    assert_eq!(shown["pinned_release"], first.as_str());
    deploy(&fleet, json!({"release": "latest"})).await;
    assert_eq!(given(&fleet, &device).await, third);
    let fourth = fleet.release(false).await;
    assert_eq!(given(&fleet, &device).await, fourth);
}

#[tokio::test]
async fn named_and_tagged_devices_go_first_then_all() {
    let fleet = Fleet::new().await;
    let (canary, tagged, rest) = (fleet.device(1).await, fleet.device(2).await, fleet.device(3).await);
    let first = fleet.release(false).await;
    deploy(&fleet, json!({"release": first})).await;
    let second = fleet.release(false).await;
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", tagged.id), Some(json!({"tags": {"ring": "1"}}))).await;
    let dry = json!({"release": second, "devices": [canary.id], "tag": {"ring": "1"}, "dry_run": true});
    assert_eq!(deploy(&fleet, dry).await["devices"], 2);
    assert_eq!(given(&fleet, &canary).await, first, "a dry run changes nothing");
    let wrong = json!({"release": second, "devices": [canary.id], "expect_count": 2});
    assert_eq!(refused(&fleet, wrong).await, "count_mismatch");
    deploy(&fleet, json!({"release": second, "devices": [canary.id], "expect_count": 1})).await;
    deploy(&fleet, json!({"release": second, "tag": {"ring": "1"}})).await;
    assert_eq!(given(&fleet, &canary).await, second);
    assert_eq!(given(&fleet, &tagged).await, second);
    assert_eq!(given(&fleet, &rest).await, first);

    deploy(&fleet, json!({"release": "latest"})).await;
    assert_eq!(given(&fleet, &rest).await, second);
    assert_eq!(fleet.shown(&canary).await["pinned_release"], Value::Null, "the first step's pins are lifted");
    let third = fleet.release(false).await;
    assert_eq!(given(&fleet, &canary).await, third);
}

#[tokio::test]
async fn a_pinned_device_stays_until_it_follows_again() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let first = fleet.release(false).await;
    let path = format!("/api/v1/devices/{}", device.id);
    fleet.ok("PATCH", &path, Some(json!({"pinned_release": first}))).await;
    let second = fleet.release(false).await;
    assert_eq!(given(&fleet, &device).await, first);
    fleet.ok("PATCH", &path, Some(json!({"name": "kitchen"}))).await;
    assert_eq!(given(&fleet, &device).await, first, "what is left out stays");
    fleet.ok("PATCH", &path, Some(json!({"pinned_release": null}))).await;
    assert_eq!(given(&fleet, &device).await, second);
}

#[tokio::test]
async fn what_devices_would_refuse_is_not_deployed() {
    let mut fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let first = fleet.release(false).await;
    let second = fleet.release(false).await;
    let draft = fleet.release(true).await;
    assert_eq!(refused(&fleet, json!({"release": draft})).await, "release_is_draft");
    assert_eq!(refused(&fleet, json!({"release": "9.9.9"})).await, "not_found");
    assert_eq!(refused(&fleet, json!({})).await, "release_missing");
    assert_eq!(refused(&fleet, json!({"release": first, "devices": ["0".repeat(32)]})).await, "not_found");
    assert_eq!(refused(&fleet, json!({"release": first, "devices": ["x"]})).await, "not_found");

    let shown = fleet.ok("GET", &format!("/api/v1/releases/{second}"), None).await;
    let app = fleet.keys.app_id.to_string();
    let floor = shown["counter"].as_u64().unwrap();
    fleet.new_root(|root| root.floors.extend([(app, floor)])).await;
    assert_eq!(refused(&fleet, json!({"release": first})).await, "below_floor");
    let third = fleet.release(false).await;
    let revoked: copal_protocol::ids::Sha256Hex = third.parse().unwrap();
    fleet.new_root(|root| root.revoked_releases.extend([revoked])).await;
    assert_eq!(given(&fleet, &device).await, second, "a revoked newest release is left at once");
    assert_eq!(refused(&fleet, json!({"release": third})).await, "release_revoked");
}

#[tokio::test]
async fn a_device_of_another_kind_is_left_alone_and_says_why() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE devices SET arch = 'arm64'").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let release = fleet.release(false).await;
    let shown = fleet.shown(&device).await;
    assert_eq!((&shown["target"], &shown["reason"]["code"]), (&Value::Null, &json!("incompatible")));
    let named = json!({"release": release, "devices": [device.id]});
    assert_eq!(refused(&fleet, named).await, "incompatible");
    deploy(&fleet, json!({"release": release})).await;
}

#[tokio::test]
async fn what_a_stop_cut_short_is_finished_at_the_next_start() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let first = fleet.release(false).await;
    let id = crate::releases::prepare(&fleet.cloud.app, fleet.new_release(false)).await.unwrap();
    // As if the cloud had stopped right after the commit that made it final.
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE releases SET status = 'final' WHERE id = $1")
        .bind(&id)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(given(&fleet, &device).await, first);
    super::catch_up(&fleet.cloud.app).await.unwrap();
    assert_eq!(given(&fleet, &device).await, id);
}

#[tokio::test]
async fn a_deployment_to_a_filter_needs_the_number_that_was_seen_and_pins_who_is_meant_now() {
    let fleet = Fleet::new().await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    let first = fleet.release(false).await;
    deploy(&fleet, json!({"release": first})).await;
    let second = fleet.release(false).await;
    let meant = json!({"release": second, "filter": "name = pi-1 and online"});
    let with = |key: &str, value: Value| {
        let mut body = meant.clone();
        body[key] = value;
        body
    };
    assert_eq!(refused(&fleet, meant.clone()).await, "expect_count_missing");
    assert_eq!(refused(&fleet, with("filter", json!("name =="))).await, "filter_invalid");
    assert_eq!(refused(&fleet, with("devices", json!([one.id]))).await, "filter_alone");
    assert_eq!(deploy(&fleet, with("dry_run", json!(true))).await["devices"], 1);
    assert_eq!(refused(&fleet, with("expect_count", json!(2))).await, "count_mismatch");
    assert_eq!(given(&fleet, &one).await, first, "nothing was changed by any of these");
    let done = deploy(&fleet, with("expect_count", json!(1))).await;
    assert_eq!(done["seqs"].as_object().unwrap().keys().collect::<Vec<_>>(), [&one.id.to_string()]);
    assert_eq!((given(&fleet, &one).await, given(&fleet, &two).await), (second, first));
    let log = fleet.ok("GET", "/api/v1/audit?limit=1", None).await;
    assert_eq!(log["items"][0]["detail"]["filter"], r#"name = "pi-1" and online = true"#);
    // Nobody is meant: nobody is told, and above all not everybody.
    let none = json!({"release": "latest", "filter": "name = nobody", "expect_count": 0});
    assert_eq!(deploy(&fleet, none).await["devices"], 0);
}
