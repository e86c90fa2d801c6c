//! Fleets, their roots and enrolment tokens.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use copal_protocol::{
    documents::{CloudAddress, Policy, Role as KeyRole, RoleKeys, Root, RootKey, SPEC},
    enrol::split_token,
    envelope::Envelope,
    keys::{PublicKey, SigningKey},
};
use serde_json::{Value, json};

use crate::{
    app,
    auth::Role,
    devices::testing::Fleet,
    store::fleets,
    testing::{Answer, Cloud},
};

async fn fleet(cloud: &Cloud, token: &str, slug: &str) -> Answer {
    let body = json!({"slug": slug, "device_type": "generic-amd64", "arch": "amd64"});
    cloud.call("POST", "/api/v1/fleets", token, Some(body)).await
}

fn owner(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

/// A root of the fleet that lists the server's keys, unless told to leave one out.
async fn root(cloud: &Cloud, version: u64, owner: &SigningKey, without: Option<KeyRole>) -> Root {
    let fleet = fleets::by_slug(&cloud.app, "greenhouse").await.unwrap();
    let mut keys = BTreeMap::new();
    let mut roles = BTreeMap::new();
    let mut add = |role: KeyRole, key: PublicKey| {
        keys.insert(key.id(), RootKey { alg: "ed25519".to_owned(), public: key, label: String::new() });
        roles.insert(role, RoleKeys { keyids: BTreeSet::from([key.id()]), threshold: 1 });
    };
    let stranger = SigningKey::from_seed(&[99; 32]).public();
    let stranger2 = SigningKey::from_seed(&[98; 32]).public();
    add(KeyRole::Root, owner.public());
    add(
        KeyRole::Builder,
        if without == Some(KeyRole::Builder) { stranger } else { cloud.app.keys.builder.public() },
    );
    add(
        KeyRole::Assign,
        if without == Some(KeyRole::Assign) { stranger2 } else { cloud.app.keys.assign.public() },
    );
    Root {
        spec: SPEC,
        fleet_id: fleet.fleet_id,
        version,
        issued_at: app::now(),
        expires: app::now() + 1_000_000,
        assign_epoch: 1,
        keys,
        roles,
        policy: Policy::default(),
        cloud: CloudAddress::default(),
        floors: BTreeMap::new(),
        revoked_releases: BTreeSet::new(),
        ext: None,
    }
}

async fn upload(cloud: &Cloud, token: &str, root: &Root, keys: &[&SigningKey]) -> Answer {
    let envelope = Envelope::sign(root, keys).unwrap();
    let body: Value = serde_json::from_slice(&envelope.to_bytes()).unwrap();
    cloud.call("PUT", "/api/v1/fleets/greenhouse/root", token, Some(body)).await
}

#[tokio::test]
async fn a_fleet_is_made_shown_listed_and_deleted() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    let made = fleet(&cloud, &anna, "greenhouse").await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made = made.json();
    assert_eq!(made["fleet_id"].as_str().unwrap().len(), 32);
    assert_eq!(made["git_url"], "http://127.0.0.1:0/git/greenhouse.git");
    assert_eq!(made["devices"], json!({"total": 0, "online": 0, "on_target": 0, "failed": 0}));
    assert_eq!(made["builder_key"], cloud.app.keys.builder.public().to_string());
    assert_eq!(fleet(&cloud, &anna, "greenhouse").await.code(), "fleet_exists");
    assert_eq!(fleet(&cloud, &anna, "../etc").await.code(), "slug_invalid");
    assert_eq!(cloud.call("GET", "/api/v1/fleets/greenhouse", &anna, None).await.json(), made);
    for slug in ["aa", "bb"] {
        fleet(&cloud, &anna, slug).await;
    }
    let page = cloud.call("GET", "/api/v1/fleets?limit=2", &anna, None).await.json();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (2, &json!("bb")));
    let page = cloud.call("GET", "/api/v1/fleets?limit=2&after=bb", &anna, None).await.json();
    assert_eq!((&page["items"][0]["slug"], &page["next"]), (&json!("greenhouse"), &Value::Null));
    assert_eq!(
        cloud.call("DELETE", "/api/v1/fleets/greenhouse", &anna, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse", &anna, None).await.status,
        StatusCode::NOT_FOUND
    );
    let verbs: Vec<String> = sqlx::query_scalar("SELECT verb FROM audit ORDER BY id")
        .fetch_all(cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(verbs, ["fleet.create", "fleet.create", "fleet.create", "fleet.delete"]);
}

#[tokio::test]
async fn a_fleet_with_devices_is_deleted_only_by_force() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    let id = fleet(&cloud, &anna, "greenhouse").await.json()["fleet_id"].as_str().unwrap().to_owned();
    let mut tx = cloud.app.db.write().await.unwrap();
    sqlx::query(
        "INSERT INTO devices (device_id, fleet_id, name, state, public_key, seal_key, arch, device_type, created_at) \
         VALUES ('00112233445566778899aabbccddeeff', $1, 'd', 'accepted', 'k', 's', 'amd64', 'x', 0)",
    )
    .bind(&id)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse", &anna, None).await.json()["devices"]["total"],
        1
    );
    let refused = cloud.call("DELETE", "/api/v1/fleets/greenhouse", &anna, None).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "fleet_has_devices"));
    let done = cloud.call("DELETE", "/api/v1/fleets/greenhouse?force=true", &anna, None).await;
    assert_eq!(done.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_chain_of_roots_is_taken_in_order_and_shown() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    fleet(&cloud, &anna, "greenhouse").await;
    let (old, new) = (owner(1), owner(2));
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse/roots/latest", &anna, None).await.code(),
        "root_unknown"
    );

    let two = root(&cloud, 2, &old, None).await;
    assert_eq!(upload(&cloud, &anna, &two, &[&old]).await.code(), "root_gap", "the chain begins at 1");
    let one = root(&cloud, 1, &old, None).await;
    assert_eq!(upload(&cloud, &anna, &one, &[&new]).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(upload(&cloud, &anna, &one, &[&old]).await.json(), json!({"version": 1}));
    assert_eq!(upload(&cloud, &anna, &one, &[&old]).await.json(), json!({"version": 1}), "the same again");
    let other = Root { expires: one.expires + 1, ..one.clone() };
    assert_eq!(upload(&cloud, &anna, &other, &[&old]).await.code(), "root_exists");

    // Rotation: signed by the old and the new owner key.
    let two = root(&cloud, 2, &new, None).await;
    assert_eq!(upload(&cloud, &anna, &two, &[&new]).await.code(), "E_ROOT_OLD_SIG");
    assert_eq!(upload(&cloud, &anna, &two, &[&old]).await.code(), "E_ROOT_NEW_SIG");
    let four = root(&cloud, 4, &new, None).await;
    assert_eq!(upload(&cloud, &anna, &four, &[&old, &new]).await.code(), "root_gap");
    assert_eq!(upload(&cloud, &anna, &two, &[&old, &new]).await.json(), json!({"version": 2}));
    assert_eq!(
        upload(&cloud, &anna, &one, &[&old]).await.json(),
        json!({"version": 1}),
        "an old one is no error"
    );

    assert_eq!(cloud.call("GET", "/api/v1/fleets/greenhouse", &anna, None).await.json()["root_version"], 2);
    let latest = cloud.call("GET", "/api/v1/fleets/greenhouse/roots/latest", &anna, None).await;
    let envelope = Envelope::parse::<Root>(&latest.bytes).unwrap();
    assert_eq!(envelope.payload(), serde_json::to_vec(&two).unwrap());
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse/roots/1", &anna, None).await.status,
        StatusCode::OK
    );
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse/roots/9", &anna, None).await.code(),
        "root_unknown"
    );

    let id = fleets::by_slug(&cloud.app, "greenhouse").await.unwrap().fleet_id;
    assert_eq!(fleets::latest_root(&cloud.app, id).await.unwrap().unwrap().version, 2);
    cloud.app.roots.forget(id);
    assert_eq!(
        fleets::latest_root(&cloud.app, id).await.unwrap().unwrap().version,
        2,
        "read again from the database"
    );
}

#[tokio::test]
async fn a_root_without_the_servers_keys_is_refused() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    fleet(&cloud, &anna, "greenhouse").await;
    for without in [KeyRole::Builder, KeyRole::Assign] {
        let root = root(&cloud, 1, &owner(1), Some(without)).await;
        let answer = upload(&cloud, &anna, &root, &[&owner(1)]).await;
        assert_eq!(answer.code(), "root_keys");
        assert!(answer.json()["detail"].as_str().unwrap().contains(without.as_str()));
    }
    let foreign = Root {
        fleet_id: copal_protocol::ids::FleetId::from_bytes([7; 16]),
        ..root(&cloud, 1, &owner(1), None).await
    };
    assert_eq!(upload(&cloud, &anna, &foreign, &[&owner(1)]).await.code(), "E_FLEET");
    let garbage = cloud.call("PUT", "/api/v1/fleets/greenhouse/root", &anna, Some(json!({"a": 1}))).await;
    assert_eq!(garbage.code(), "E_ENVELOPE");
}

#[tokio::test]
async fn an_enrolment_token_is_shown_once_sealed_at_rest_and_revoked() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    fleet(&cloud, &anna, "greenhouse").await;
    let path = "/api/v1/fleets/greenhouse/enrolment-tokens";
    let made = cloud.call("POST", path, &anna, Some(json!({"note": "shelf 3"}))).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made = made.json();
    let token = made["token"].as_str().unwrap();
    let (id, secret) = split_token(token).unwrap();
    assert_eq!((id, &made["uses"]), (made["id"].as_str().unwrap(), &json!(1)));
    let stored: Vec<u8> = sqlx::query_scalar("SELECT secret FROM enrolment_tokens")
        .fetch_one(cloud.app.db.read())
        .await
        .unwrap();
    assert!(!stored.windows(secret.len()).any(|w| w == secret.as_bytes()));
    let opened = cloud.app.keys.at_rest.open(&format!("enrolment_tokens/{id}"), &stored).unwrap();
    assert_eq!(opened, secret.as_bytes());

    let list = cloud.call("GET", path, &anna, None).await;
    assert!(!String::from_utf8_lossy(&list.bytes).contains(secret));
    assert_eq!(list.json()["items"][0]["note"], "shelf 3");
    let one = format!("{path}/{id}");
    assert_eq!(cloud.call("DELETE", &one, &anna, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(cloud.call("DELETE", &one, &anna, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(cloud.call("GET", path, &anna, None).await.json()["items"], json!([]));
    for (body, code) in [
        (json!({"uses": 0}), "uses_invalid"),
        (json!({"expires_in_s": 0}), "expiry_invalid"),
        (json!({"expires_in_s": 99_999_999_999_u64}), "expiry_invalid"),
        (json!({"note": "a\u{0}b"}), "name_invalid"),
    ] {
        assert_eq!(cloud.call("POST", path, &anna, Some(body)).await.code(), code);
    }
}

#[tokio::test]
async fn every_place_counts_the_same_devices_as_online() {
    let fleet = Fleet::new().await;
    let (stays, goes) = (fleet.device(1).await, fleet.device(2).await);
    let online = async || {
        let shown = fleet.ok("GET", "/api/v1/fleets/porch", None).await["devices"]["online"].clone();
        let list = fleet.ok("GET", "/api/v1/fleets/porch/devices", None).await;
        let listed = list["items"].as_array().unwrap().iter().filter(|d| d["online"] == true).count();
        assert_eq!(shown, listed);
        assert_eq!(fleet.cloud.app.devices.online(app::now()), listed, "what /metrics says");
        listed
    };
    assert_eq!(online().await, 2);
    fleet.ok("POST", &format!("/api/v1/devices/{}/revoke", goes.id), None).await;
    assert_eq!(online().await, 1);
    assert_eq!(fleet.shown(&stays).await["online"], true);
}
