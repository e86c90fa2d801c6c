//! What somebody may is looked at when the act is done, however long the request took to come.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::{Request, header},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    auth::{Role, Scope},
    store::fleets,
    testing::{Answer, Cloud, PASSWORD},
};

/// A request whose body comes only after something else happened. By then its head was judged.
async fn slowly(
    cloud: &Cloud,
    (method, path, token): (&str, &str, &str),
    body: &Value,
    meanwhile: impl Future<Output = ()>,
) -> Answer {
    let ((begun, begins), (go, goes)) = (oneshot::channel(), oneshot::channel::<()>());
    let bytes = Bytes::from(body.to_string());
    let body = Body::from_stream(stream::once(async move {
        begun.send(()).unwrap();
        goes.await.unwrap();
        Ok::<_, Infallible>(bytes)
    }));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .unwrap();
    let (answer, ()) = tokio::join!(cloud.send(request), async {
        begins.await.unwrap();
        meanwhile.await;
        go.send(()).unwrap();
    });
    answer
}

/// A cloud with the fleet `porch`, and its owner's token.
async fn cloud() -> (Cloud, String) {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let body = json!({"slug": "porch", "device_type": "generic", "arch": "amd64"});
    cloud.call("POST", "/api/v1/fleets", &anna, Some(body)).await;
    (cloud, anna)
}

async fn user(cloud: &Cloud, anna: &str, email: &str) -> Value {
    let users = cloud.call("GET", "/api/v1/users", anna, None).await.json();
    users["items"].as_array().unwrap().iter().find(|u| u["email"] == email).unwrap().clone()
}

async fn change(cloud: &Cloud, anna: &str, email: &str, what: Value) {
    let path = format!("/api/v1/users/{}", user(cloud, anna, email).await["id"].as_str().unwrap());
    assert_eq!(cloud.call("PATCH", &path, anna, Some(what)).await.status, 200);
}

#[tokio::test]
async fn a_password_that_comes_late_restores_neither_a_role_nor_a_person() {
    let (cloud, anna) = cloud().await;
    let new = json!({"current": PASSWORD, "new": "another horse battery"});
    let removed = [
        ("olga@example.org", json!({"role": "viewer"}), "rights_changed"),
        ("otto@example.org", json!({"disabled": true}), "password_wrong"),
    ];
    for (email, what, code) in removed {
        let token = cloud.user(email, Role::Owner).await;
        let meanwhile = change(&cloud, &anna, email, what);
        let answer = slowly(&cloud, ("POST", "/api/v1/me/password", &token), &new, meanwhile).await;
        assert_eq!(answer.code(), code);
    }
    assert_eq!(user(&cloud, &anna, "olga@example.org").await["role"], "viewer");
    assert!(user(&cloud, &anna, "otto@example.org").await["disabled_at"].is_u64());
    let otto = json!({"email": "otto@example.org", "password": "another horse battery"});
    assert_eq!(cloud.call("POST", "/api/v1/session", "", Some(otto)).await.code(), "sign_in_failed");

    // Nobody else's word in between: it is changed, and the role stays.
    let ute = cloud.user("ute@example.org", Role::Developer).await;
    assert_eq!(cloud.call("POST", "/api/v1/me/password", &ute, Some(new)).await.status, 204);
    assert_eq!(user(&cloud, &anna, "ute@example.org").await["role"], "developer");
}

#[tokio::test]
async fn who_lost_a_right_while_the_body_came_gives_none_and_does_nothing() {
    let (cloud, anna) = cloud().await;
    let max = cloud.user("max@example.org", Role::Member).await;
    let member = "/api/v1/fleets/porch/members/max@example.org";
    cloud.call("PUT", member, &anna, Some(json!({"role": "admin"}))).await;
    let vera = cloud.user("vera@example.org", Role::Member).await;
    let out = async {
        assert_eq!(cloud.call("DELETE", member, &anna, None).await.status, 204);
    };
    let path = "/api/v1/fleets/porch/members/vera@example.org";
    let answer = slowly(&cloud, ("PUT", path, &max), &json!({"role": "admin"}), out).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "rights_changed"));
    assert_eq!(cloud.call("GET", "/api/v1/fleets/porch", &vera, None).await.status, 404);

    let olga = cloud.user("olga@example.org", Role::Owner).await;
    let own =
        format!("/api/v1/users/{}", user(&cloud, &anna, "olga@example.org").await["id"].as_str().unwrap());
    let down = change(&cloud, &anna, "olga@example.org", json!({"role": "viewer"}));
    let answer = slowly(&cloud, ("PATCH", &own, &olga), &json!({"role": "owner"}), down).await;
    assert_eq!(answer.code(), "rights_changed");
    let olga = cloud.user("olga@example.org", Role::Owner).await;
    let down = change(&cloud, &anna, "olga@example.org", json!({"role": "viewer"}));
    let new = json!({"email": "new@example.org", "password": PASSWORD, "role": "owner"});
    assert_eq!(slowly(&cloud, ("POST", "/api/v1/users", &olga), &new, down).await.code(), "rights_changed");

    let fleet = fleets::by_slug(&cloud.app, "porch").await.unwrap().fleet_id;
    let token = cloud.token("otto@example.org", Role::Developer, Scope::Full, Some(fleet)).await;
    let gone = async {
        let mut tx = cloud.app.db.write().await.unwrap();
        sqlx::query("UPDATE tokens SET revoked_at = 1 WHERE fleet_id IS NOT NULL")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    let new = json!({"name": "mine", "scope": "full", "fleet": "porch"});
    let answer = slowly(&cloud, ("POST", "/api/v1/tokens", &token), &new, gone).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "credentials_ended"));
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens WHERE name = 'mine'")
        .fetch_one(cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(left, 0);
    // An act of any other room.
    let olga = cloud.user("olga@example.org", Role::Owner).await;
    let down = change(&cloud, &anna, "olga@example.org", json!({"disabled": true}));
    let answer =
        slowly(&cloud, ("POST", "/api/v1/fleets/porch/enrolment-tokens", &olga), &json!({}), down).await;
    assert_eq!(answer.code(), "credentials_ended");
}

#[tokio::test]
async fn what_one_takes_from_oneself_is_taken() {
    let (cloud, anna) = cloud().await;
    let olga = cloud.user("olga@example.org", Role::Owner).await;
    change(&cloud, &olga, "olga@example.org", json!({"role": "viewer"})).await;
    let max = cloud.user("max@example.org", Role::Member).await;
    let member = "/api/v1/fleets/porch/members/max@example.org";
    cloud.call("PUT", member, &anna, Some(json!({"role": "admin"}))).await;
    let viewer = Some(json!({"role": "viewer"}));
    assert_eq!(cloud.call("PUT", member, &max, viewer).await.status, 200);
    assert_eq!(cloud.call("DELETE", member, &max, None).await.status, 204);
    cloud.call("PUT", member, &anna, Some(json!({"role": "admin"}))).await;
    assert_eq!(cloud.call("DELETE", "/api/v1/fleets/porch", &max, None).await.status, 204);
    let tokens = cloud.call("GET", "/api/v1/tokens", &max, None).await.json();
    let own = format!("/api/v1/tokens/{}", tokens["items"][0]["id"].as_str().unwrap());
    assert_eq!(cloud.call("DELETE", &own, &max, None).await.status, 204);
}
