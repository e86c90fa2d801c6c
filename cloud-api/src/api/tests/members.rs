//! People who are something on some fleets only.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{
    auth::{Role, Scope},
    testing::Cloud,
};

async fn two_fleets(cloud: &Cloud) -> String {
    let owner = cloud.user("olga@example.org", Role::Owner).await;
    for slug in ["greenhouse", "orchard"] {
        let body = json!({"slug": slug, "device_type": "generic-amd64", "arch": "amd64"});
        assert_eq!(
            cloud.call("POST", "/api/v1/fleets", &owner, Some(body)).await.status,
            StatusCode::CREATED
        );
    }
    owner
}

fn slugs(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|f| f["slug"].as_str().unwrap()).collect()
}

const MAX: &str = "/api/v1/fleets/greenhouse/members/max@example.org";

#[tokio::test]
async fn a_member_sees_and_does_on_its_fleets_what_its_role_there_says_and_learns_of_no_other() {
    let cloud = Cloud::new().await;
    let owner = two_fleets(&cloud).await;
    let max = cloud.user("max@example.org", Role::Member).await;
    let fleets = || cloud.call("GET", "/api/v1/fleets", &max, None);
    assert_eq!(slugs(&fleets().await.json()), [""; 0]);
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse", &max, None).await.code(),
        cloud.call("GET", "/api/v1/fleets/absent", &max, None).await.code()
    );

    let set = cloud.call("PUT", MAX, &owner, Some(json!({"role": "viewer"}))).await;
    assert_eq!((set.status, &set.json()["server_role"]), (StatusCode::OK, &json!("member")));
    assert_eq!(slugs(&fleets().await.json()), ["greenhouse"]);
    let me = cloud.call("GET", "/api/v1/me", &max, None).await.json();
    assert_eq!((&me["role"], &me["fleets"]), (&json!("member"), &json!({"greenhouse": "viewer"})));
    assert_eq!(cloud.call("GET", "/api/v1/fleets/orchard", &max, None).await.code(), "not_found");
    let token = json!({});
    let tokens = "/api/v1/fleets/greenhouse/enrolment-tokens";
    assert_eq!(cloud.call("POST", tokens, &max, Some(token.clone())).await.code(), "role_insufficient");
    // What is the whole server's stays shut, and a token opens no more than its person may.
    for path in ["/api/v1/audit", "/api/v1/users"] {
        assert_eq!(cloud.call("GET", path, &max, None).await.code(), "role_insufficient", "{path}");
    }
    assert_eq!(
        cloud
            .call(
                "POST",
                "/api/v1/tokens",
                &max,
                Some(json!({"name": "x", "scope": "full", "fleet": "orchard"}))
            )
            .await
            .code(),
        "not_found"
    );

    assert_eq!(cloud.call("PUT", MAX, &owner, Some(json!({"role": "admin"}))).await.status, StatusCode::OK);
    assert_eq!(cloud.call("POST", tokens, &max, Some(token)).await.status, StatusCode::CREATED);
    assert_eq!(cloud.call("DELETE", MAX, &max, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(slugs(&fleets().await.json()), [""; 0], "at once");
    assert_eq!(cloud.call("DELETE", MAX, &owner, None).await.code(), "not_found");
    let verbs = cloud.call("GET", "/api/v1/audit?limit=500", &owner, None).await.json();
    let verbs: Vec<&str> =
        verbs["items"].as_array().unwrap().iter().filter_map(|e| e["verb"].as_str()).collect();
    assert_eq!(verbs.iter().filter(|v| **v == "member.set").count(), 2);
    assert_eq!(verbs.iter().filter(|v| **v == "member.remove").count(), 1);
}

#[tokio::test]
async fn a_fleets_admin_makes_members_and_nothing_above_itself() {
    let cloud = Cloud::new().await;
    let owner = two_fleets(&cloud).await;
    let max = cloud.user("max@example.org", Role::Member).await;
    cloud.user("eva@example.org", Role::Viewer).await;
    cloud.call("PUT", MAX, &owner, Some(json!({"role": "admin"}))).await;
    let eva = "/api/v1/fleets/greenhouse/members/EVA@example.org";
    assert_eq!(cloud.call("PUT", eva, &max, Some(json!({"role": "admin"}))).await.status, StatusCode::OK);
    let list = cloud.call("GET", "/api/v1/fleets/greenhouse/members?limit=1", &max, None).await.json();
    assert_eq!((&list["items"][0]["email"], list["next"].is_string()), (&json!("eva@example.org"), true));
    for role in ["owner", "member"] {
        assert_eq!(cloud.call("PUT", eva, &max, Some(json!({"role": role}))).await.code(), "role_invalid");
    }
    let nobody = "/api/v1/fleets/greenhouse/members/nobody@example.org";
    assert_eq!(cloud.call("PUT", nobody, &max, Some(json!({"role": "viewer"}))).await.code(), "user_unknown");
    // Not on the other fleet, not with less than admin, not by a token that only reads.
    let other = "/api/v1/fleets/orchard/members/max@example.org";
    assert_eq!(cloud.call("PUT", other, &max, Some(json!({"role": "viewer"}))).await.code(), "not_found");
    cloud.call("PUT", MAX, &owner, Some(json!({"role": "developer"}))).await;
    assert_eq!(
        cloud.call("PUT", eva, &max, Some(json!({"role": "viewer"}))).await.code(),
        "role_insufficient"
    );
    assert_eq!(
        cloud.call("GET", "/api/v1/fleets/greenhouse/members", &max, None).await.code(),
        "role_insufficient"
    );
    let reads = cloud.token("max@example.org", Role::Member, Scope::Read, None).await;
    assert_eq!(cloud.call("DELETE", MAX, &reads, None).await.code(), "role_insufficient");
}
