//! Releases: numbering, modes, signatures, status.

use axum::http::StatusCode;
use copal_protocol::{
    documents::{Release, ReleaseMode},
    envelope::Envelope,
    testing::fixed_key,
};
use serde_json::{Value, json};

use super::{ReleaseStatus, discard, prepare, publish, unpublished};
use crate::devices::testing::Fleet;

async fn status(fleet: &Fleet, id: &str) -> String {
    fleet.ok("GET", &format!("/api/v1/releases/{id}"), None).await["status"].as_str().unwrap().to_owned()
}

async fn envelope(fleet: &Fleet, id: &str) -> Envelope {
    let answer = fleet.call("GET", &format!("/api/v1/releases/{id}/envelope"), None).await;
    Envelope::parse::<Release>(&answer.bytes).unwrap()
}

fn body(envelope: &Envelope) -> Option<Value> {
    Some(serde_json::from_slice(&envelope.to_bytes()).unwrap())
}

async fn target(fleet: &Fleet) -> Value {
    fleet.ok("GET", "/api/v1/fleets/porch", None).await["target_release"].clone()
}

#[tokio::test]
async fn a_release_is_invisible_until_published_then_final_and_followed() {
    let fleet = Fleet::new().await;
    let app = &fleet.cloud.app;
    let id = prepare(app, fleet.new_release(false)).await.unwrap();
    assert_eq!(fleet.call("GET", &format!("/api/v1/releases/{id}"), None).await.code(), "not_found");
    assert_eq!(unpublished(app).await.unwrap()[0].id, id);
    assert_eq!(publish(app, &id).await.unwrap(), ReleaseStatus::Final);
    assert_eq!(publish(app, &id).await.unwrap(), ReleaseStatus::Final, "again");
    assert_eq!(target(&fleet).await, id.as_str());
    discard(app, &id).await.unwrap();
    let shown = fleet.ok("GET", &format!("/api/v1/releases/{id}"), None).await;
    assert_eq!(shown["signed_by"][0]["role"], "builder");
    assert_eq!((&shown["version"], &shown["commit"]), (&json!("0.1.0"), &json!("c0ffee")));
    assert_eq!(shown["services"]["web"]["images"]["linux/amd64"]["size"], 11);
    let record = fleet.call("GET", &format!("/api/v1/releases/{id}/build-record"), None).await;
    assert_eq!(record.status, StatusCode::OK);

    let dropped = prepare(app, fleet.new_release(false)).await.unwrap();
    discard(app, &dropped).await.unwrap();
    assert!(unpublished(app).await.unwrap().is_empty());
    assert_eq!(publish(app, &dropped).await.unwrap_err().code(), "not_found");
}

#[tokio::test]
async fn counters_and_versions_rise_and_a_tag_names_one_release() {
    let fleet = Fleet::new().await;
    for _ in 0..3 {
        fleet.release(false).await;
    }
    let mut tagged = fleet.new_release(false);
    tagged.version = Some("2.0.0".parse().unwrap());
    let id = prepare(&fleet.cloud.app, tagged.clone()).await.unwrap();
    publish(&fleet.cloud.app, &id).await.unwrap();
    assert_eq!(prepare(&fleet.cloud.app, tagged).await.unwrap_err().code(), "version_taken");
    fleet.release(false).await;
    let list = fleet.ok("GET", "/api/v1/fleets/porch/releases", None).await;
    let items = list["items"].as_array().unwrap();
    let versions: Vec<_> = items.iter().map(|r| r["version"].as_str().unwrap()).collect();
    assert_eq!(versions, ["2.0.1", "2.0.0", "0.1.2", "0.1.1", "0.1.0"]);
    let counters: Vec<_> = items.iter().map(|r| r["counter"].as_u64().unwrap()).collect();
    assert!(counters.windows(2).all(|w| w[0] > w[1]), "{counters:?}");
    let page = fleet.ok("GET", "/api/v1/fleets/porch/releases?limit=2", None).await;
    let next = page["next"].as_str().unwrap();
    let page = fleet.ok("GET", &format!("/api/v1/fleets/porch/releases?limit=2&after={next}"), None).await;
    assert_eq!(page["items"][0]["version"], "0.1.2");
}

#[tokio::test]
async fn what_devices_would_refuse_is_refused_at_the_push() {
    let mut fleet = Fleet::new().await;
    let app = fleet.cloud.app.clone();
    let mut privileged = fleet.new_release(false);
    privileged.services.values_mut().next().unwrap().spec.privileged = true;
    assert_eq!(prepare(&app, privileged).await.unwrap_err().code(), "E_POLICY_PRIVILEGED");
    let mut empty = fleet.new_release(false);
    empty.services.clear();
    assert_eq!(prepare(&app, empty).await.unwrap_err().code(), "release_empty");
    let mut forged = fleet.new_release(false);
    forged.build_record =
        Envelope::unsigned::<copal_protocol::documents::BuildRecord>(forged.build_record.payload().to_vec());
    forged.build_record.add_signature(&fixed_key(77));
    assert!(prepare(&app, forged).await.unwrap_err().code().starts_with("E_SIG_"));
    fleet.new_root(|root| root.expires = root.issued_at + 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(prepare(&app, fleet.new_release(false)).await.unwrap_err().code(), "root_expired");
}

#[tokio::test]
async fn a_draft_deploys_nowhere_until_it_is_final() {
    let fleet = Fleet::new().await;
    let first = fleet.release(false).await;
    let draft = fleet.release(true).await;
    assert_eq!((status(&fleet, &draft).await.as_str(), target(&fleet).await), ("draft", json!(first)));
    let path = format!("/api/v1/releases/{draft}");
    assert_eq!(fleet.call("PATCH", &path, Some(json!({"final": false}))).await.code(), "final_invalid");
    let shown = fleet.ok("PATCH", &path, Some(json!({"final": true, "note": "better"}))).await;
    assert_eq!((&shown["status"], &shown["note"]), (&json!("final"), &json!("better")));
    assert_eq!(target(&fleet).await, draft.as_str());
    let long = json!({"note": "x".repeat(4_001)});
    assert_eq!(fleet.call("PATCH", &path, Some(long)).await.code(), "note_too_long");
}

#[tokio::test]
async fn in_owner_mode_a_release_waits_for_the_owners_keys() {
    let mut fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    fleet.new_root(|root| root.policy.release_mode = ReleaseMode::Owner).await;
    let id = fleet.release(false).await;
    assert_eq!(status(&fleet, &id).await, "awaiting_signature");
    assert_eq!(target(&fleet).await, Value::Null);
    assert_eq!(fleet.shown(&device).await["reason"]["code"], "awaiting_signature");

    let path = format!("/api/v1/releases/{id}/signatures");
    let unsigned = envelope(&fleet, &id).await;
    assert!(unsigned.signatures().is_empty(), "the builder does not sign where its word counts for nothing");
    let with = |key: &copal_protocol::keys::SigningKey| {
        let mut signed = unsigned.clone();
        signed.add_signature(key);
        signed
    };
    let code = |body: Option<Value>| {
        let (fleet, path) = (&fleet, &path);
        async move { fleet.call("POST", path, body).await.code() }
    };
    assert_eq!(code(body(&unsigned)).await, "E_SIG_MISSING");
    assert_eq!(code(body(&with(&fixed_key(77)))).await, "E_SIG_UNKNOWN_KEY");
    assert_eq!(code(body(&with(&fleet.keys.root))).await, "E_SIG_WRONG_ROLE");
    let mut other = Envelope::unsigned::<Release>(b"{}".to_vec());
    other.add_signature(&fleet.keys.release);
    assert_eq!(code(body(&other)).await, "payload_differs");
    let mut broken = body(&with(&fleet.keys.release)).unwrap();
    let mut wrong = Envelope::unsigned::<Release>(b"{}".to_vec());
    wrong.add_signature(&fleet.keys.release);
    broken["signatures"] = body(&wrong).unwrap()["signatures"].clone();
    assert_eq!(code(Some(broken)).await, "E_SIG_INVALID");
    assert_eq!(status(&fleet, &id).await, "awaiting_signature");

    let signed = fleet.ok("POST", &path, body(&with(&fleet.keys.release))).await;
    assert_eq!((&signed["status"], &signed["signed_by"][0]["role"]), (&json!("final"), &json!("release")));
    assert_eq!(target(&fleet).await, id.as_str());
    assert_eq!(fleet.shown(&device).await["reason"]["code"], "updating");
    fleet.ok("POST", &path, body(&with(&fleet.keys.release))).await;
}

#[tokio::test]
async fn both_modes_need_both_signatures() {
    let mut fleet = Fleet::new().await;
    fleet.new_root(|root| root.policy.release_mode = ReleaseMode::Both).await;
    let id = fleet.release(false).await;
    assert_eq!(status(&fleet, &id).await, "awaiting_signature");
    let mut signed = envelope(&fleet, &id).await;
    assert_eq!(signed.signatures().len(), 1);
    signed.add_signature(&fleet.keys.release);
    fleet.ok("POST", &format!("/api/v1/releases/{id}/signatures"), body(&signed)).await;
    assert_eq!(status(&fleet, &id).await, "final");
}

#[tokio::test]
async fn an_invalidated_release_goes_nowhere_new_and_the_fleet_goes_to_what_is_left() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let first = fleet.release(false).await;
    let second = fleet.release(false).await;
    let path = format!("/api/v1/releases/{second}");
    fleet.ok("PATCH", &path, Some(json!({"invalidated": true}))).await;
    assert_eq!(target(&fleet).await, first.as_str());
    assert_eq!(fleet.shown(&device).await["target"]["release"], first.as_str());
    let deploy = fleet.call("POST", "/api/v1/fleets/porch/deploy", Some(json!({"release": second}))).await;
    assert_eq!(deploy.code(), "release_invalidated");
    fleet.ok("PATCH", &path, Some(json!({"invalidated": false}))).await;
    assert_eq!(target(&fleet).await, second.as_str());
    // The last one left runs on where it runs.
    fleet.ok("PATCH", &path, Some(json!({"invalidated": true}))).await;
    fleet.ok("PATCH", &format!("/api/v1/releases/{first}"), Some(json!({"invalidated": true}))).await;
    assert_eq!(fleet.shown(&device).await["target"]["release"], first.as_str());
}
