//! Signing in, sessions, tokens, roles.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use serde_json::{Value, json};

use crate::{
    api::setup,
    auth::{Role, Scope},
    testing::{Answer, Cloud, PASSWORD},
};

async fn sign_in(cloud: &Cloud, email: &str, password: &str) -> Answer {
    cloud.call("POST", "/api/v1/session", "", Some(json!({"email": email, "password": password}))).await
}

fn cookie(answer: &Answer) -> String {
    let text = answer.headers[header::SET_COOKIE].to_str().unwrap();
    text.split(';').next().unwrap().to_owned()
}

async fn with_cookie(
    cloud: &Cloud,
    method: &str,
    path: &str,
    cookie: &str,
    extra: &[(&str, &str)],
) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header(header::COOKIE, cookie);
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    cloud.send(request.body(Body::empty()).unwrap()).await
}

async fn audited(cloud: &Cloud) -> Vec<(String, String, String)> {
    sqlx::query_as("SELECT who, verb, object FROM audit ORDER BY id")
        .fetch_all(cloud.app.db.read())
        .await
        .unwrap()
}

#[tokio::test]
async fn the_setup_link_works_once() {
    let cloud = Cloud::new().await;
    let old = setup::link(&cloud.app).await.unwrap().unwrap();
    let link = setup::link(&cloud.app).await.unwrap().unwrap();
    let token = |link: &str| link.split_once("token=").unwrap().1.to_owned();
    let ask = |token: String, password: &str| json!({"token": token, "email": "Anna@Example.org", "password": password});
    let call = |body| cloud.call("POST", "/api/v1/setup", "", Some(body));

    assert_eq!(call(ask(token(&old), PASSWORD)).await.code(), "setup_token_invalid", "an older link");
    assert_eq!(call(ask(token(&link), "short")).await.code(), "password_weak");
    let done = call(ask(token(&link), PASSWORD)).await;
    assert_eq!((done.status, &done.json()["role"]), (StatusCode::CREATED, &json!("owner")));
    let me = with_cookie(&cloud, "GET", "/api/v1/me", &cookie(&done), &[]).await;
    assert_eq!(me.json()["email"], "anna@example.org");
    assert_eq!(call(ask(token(&link), PASSWORD)).await.code(), "setup_token_invalid");
    assert!(setup::link(&cloud.app).await.unwrap().is_none());
    assert_eq!(
        audited(&cloud).await,
        [("anna@example.org".into(), "user.setup".into(), "user:anna@example.org".into())]
    );
}

#[tokio::test]
async fn a_session_begins_reads_writes_and_ends() {
    let cloud = Cloud::new().await;
    cloud.user("anna@example.org", Role::Owner).await;
    let answer = sign_in(&cloud, "anna@example.org", PASSWORD).await;
    let set = answer.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(set.contains("HttpOnly; SameSite=Strict") && set.contains("Path=/;"), "{set}");
    let session = cookie(&answer);
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT id_hash FROM sessions").fetch_all(cloud.app.db.read()).await.unwrap();
    assert!(stored.iter().all(|hash| !session.contains(hash)), "only a hash is kept");

    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", &session, &[]).await.status, StatusCode::OK);
    let refused = with_cookie(&cloud, "DELETE", "/api/v1/session", &session, &[]).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::FORBIDDEN, "csrf"));
    let foreign = [("x-copal-csrf", "1"), ("origin", "https://evil.example"), ("host", "127.0.0.1")];
    assert_eq!(with_cookie(&cloud, "DELETE", "/api/v1/session", &session, &foreign).await.code(), "csrf");
    let ended = with_cookie(&cloud, "DELETE", "/api/v1/session", &session, &[("x-copal-csrf", "1")]).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert!(ended.headers[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", &session, &[]).await.code(), "session_invalid");
}

#[tokio::test]
async fn a_planted_session_id_is_worthless() {
    let cloud = Cloud::new().await;
    cloud.user("anna@example.org", Role::Owner).await;
    let planted = "copal_session=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let body = json!({"email": "anna@example.org", "password": PASSWORD}).to_string();
    let request = Request::post("/api/v1/session")
        .header(header::COOKIE, planted)
        .header(header::CONTENT_TYPE, "application/json");
    let answer = cloud.send(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_ne!(cookie(&answer), planted);
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", planted, &[]).await.code(), "session_invalid");
}

#[tokio::test]
async fn failed_sign_ins_are_alike_audited_and_slowed() {
    let cloud = Cloud::new().await;
    cloud.user("anna@example.org", Role::Owner).await;
    let wrong = sign_in(&cloud, "anna@example.org", "wrong password").await;
    let unknown = sign_in(&cloud, "nobody@example.org", "wrong password").await;
    assert_eq!((wrong.status, wrong.code()), (StatusCode::UNAUTHORIZED, "sign_in_failed".to_owned()));
    assert_eq!(wrong.json()["detail"], unknown.json()["detail"], "an unknown user is not told apart");
    for _ in 0..4 {
        assert_eq!(sign_in(&cloud, "anna@example.org", "wrong password").await.code(), "sign_in_failed");
    }
    let slowed = sign_in(&cloud, "anna@example.org", PASSWORD).await;
    assert_eq!((slowed.status, slowed.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "too_many_attempts"));
    assert!(slowed.headers.contains_key(header::RETRY_AFTER));
    let refused = audited(&cloud).await.into_iter().filter(|row| row.1 == "session.refused").count();
    assert_eq!(refused, 6);
}

#[tokio::test]
async fn a_new_password_ends_the_sessions_of_the_old_one() {
    let cloud = Cloud::new().await;
    cloud.user("anna@example.org", Role::Owner).await;
    let session = cookie(&sign_in(&cloud, "anna@example.org", PASSWORD).await);
    cloud.user("anna@example.org", Role::Owner).await;
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", &session, &[]).await.code(), "session_invalid");
}

#[tokio::test]
async fn a_token_is_shown_once_kept_as_a_hash_expires_and_is_revoked() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let ask = |body: Value| cloud.call("POST", "/api/v1/tokens", &anna, Some(body));
    let made = ask(json!({"name": "ci", "scope": "read", "expires_in_s": 3600})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let (id, token) = (made.json()["id"].clone(), made.json()["token"].as_str().unwrap().to_owned());
    assert_eq!(token.len(), "copal_".len() + 43);
    let listed = cloud.call("GET", "/api/v1/tokens", &anna, None).await;
    assert!(!String::from_utf8_lossy(&listed.bytes).contains(&token));
    let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tokens WHERE hash = $1 OR name = $1 OR id = $1")
        .bind(&token)
        .fetch_one(cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(kept, 0);

    let me = cloud.call("GET", "/api/v1/me", &token, None).await.json();
    assert_eq!((&me["token"], &me["scope"]), (&json!("ci"), &json!("read")));
    assert_eq!(
        cloud
            .call("POST", "/api/v1/tokens", &token, Some(json!({"name": "x", "scope": "full"})))
            .await
            .code(),
        "scope_insufficient"
    );

    let expire = async |at: i64| {
        let mut tx = cloud.app.db.write().await.unwrap();
        sqlx::query("UPDATE tokens SET expires_at = $1 WHERE name = 'ci'")
            .bind(at)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    expire(1).await;
    assert_eq!(cloud.call("GET", "/api/v1/me", &token, None).await.code(), "token_expired");
    expire(i64::MAX).await;
    assert_eq!(cloud.call("GET", "/api/v1/me", &token, None).await.status, StatusCode::OK);
    let path = format!("/api/v1/tokens/{}", id.as_str().unwrap());
    assert_eq!(cloud.call("DELETE", &path, &anna, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(cloud.call("GET", "/api/v1/me", &token, None).await.code(), "token_invalid");
    assert_eq!(cloud.call("DELETE", &path, &anna, None).await.code(), "not_found");

    for (body, code) in [
        (json!({"name": "", "scope": "read"}), "name_invalid"),
        (json!({"name": "a\nb", "scope": "read"}), "name_invalid"),
        (json!({"name": "x", "scope": "read", "expires_in_s": 0}), "expiry_invalid"),
        (json!({"name": "x", "scope": "all"}), "body_invalid"),
        (json!({"name": "x", "scope": "read", "fleet": "none"}), "not_found"),
        (json!({"name": "x", "scope": "read", "admin": true}), "body_invalid"),
    ] {
        assert_eq!(ask(body.clone()).await.code(), code, "{body}");
    }
}

#[tokio::test]
async fn people_do_not_see_or_revoke_each_others_tokens_except_an_owner() {
    let cloud = Cloud::new().await;
    let owner = cloud.user("olga@example.org", Role::Owner).await;
    let anna = cloud.user("anna@example.org", Role::Admin).await;
    let list = cloud.call("GET", "/api/v1/tokens", &owner, None).await.json();
    let path = format!("/api/v1/tokens/{}", list["items"][0]["id"].as_str().unwrap());
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(cloud.call("DELETE", &path, &anna, None).await.code(), "not_found");
    let list = cloud.call("GET", "/api/v1/tokens", &anna, None).await.json();
    let path = format!("/api/v1/tokens/{}", list["items"][0]["id"].as_str().unwrap());
    assert_eq!(cloud.call("DELETE", &path, &owner, None).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_viewer_looks_and_nothing_more() {
    let cloud = Cloud::new().await;
    let admin = cloud.user("anna@example.org", Role::Admin).await;
    let fleet = json!({"slug": "greenhouse", "device_type": "generic-amd64", "arch": "amd64"});
    assert_eq!(
        cloud.call("POST", "/api/v1/fleets", &admin, Some(fleet.clone())).await.status,
        StatusCode::CREATED
    );
    for (name, role) in
        [("viewer", Role::Viewer), ("operator", Role::Operator), ("developer", Role::Developer)]
    {
        let token = cloud.user(&format!("{name}@example.org"), role).await;
        assert_eq!(cloud.call("GET", "/api/v1/fleets/greenhouse", &token, None).await.status, StatusCode::OK);
        for (method, path, body) in [
            ("POST", "/api/v1/fleets", Some(json!({"slug": "xx", "device_type": "x", "arch": "arm"}))),
            ("DELETE", "/api/v1/fleets/greenhouse", None),
            ("PUT", "/api/v1/fleets/greenhouse/root", Some(json!({}))),
            ("POST", "/api/v1/fleets/greenhouse/enrolment-tokens", Some(json!({}))),
            ("DELETE", "/api/v1/fleets/greenhouse/enrolment-tokens/x", None),
            ("GET", "/api/v1/audit", None),
        ] {
            let answer = cloud.call(method, path, &token, body).await;
            assert_eq!(
                (answer.status, answer.code()),
                (StatusCode::FORBIDDEN, "role_insufficient".to_owned()),
                "{name} {method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn a_token_of_one_fleet_sees_only_it() {
    let cloud = Cloud::new().await;
    let admin = cloud.user("anna@example.org", Role::Owner).await;
    for slug in ["mine", "other"] {
        let body = json!({"slug": slug, "device_type": "x", "arch": "arm64"});
        cloud.call("POST", "/api/v1/fleets", &admin, Some(body)).await;
    }
    let mine = crate::store::fleets::by_slug(&cloud.app, "mine").await.unwrap().fleet_id;
    let token = cloud.token("anna@example.org", Role::Owner, Scope::Full, Some(mine)).await;
    let list = cloud.call("GET", "/api/v1/fleets", &token, None).await.json();
    assert_eq!(
        list["items"].as_array().unwrap().iter().map(|f| f["slug"].as_str().unwrap()).collect::<Vec<_>>(),
        ["mine"]
    );
    let foreign = cloud.call("GET", "/api/v1/fleets/other", &token, None).await;
    let absent = cloud.call("GET", "/api/v1/fleets/absent", &token, None).await;
    assert_eq!((foreign.status, foreign.code()), (absent.status, absent.code()));
    assert_eq!(foreign.status, StatusCode::NOT_FOUND);
    assert_eq!(cloud.call("GET", "/api/v1/audit", &token, None).await.status, StatusCode::FORBIDDEN);
    let wider = json!({"name": "x", "scope": "full"});
    assert_eq!(cloud.call("POST", "/api/v1/tokens", &token, Some(wider)).await.code(), "scope_insufficient");
    // When its fleet goes, so does the token: it must not come to open everything.
    assert_eq!(
        cloud.call("DELETE", "/api/v1/fleets/mine", &admin, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(cloud.call("GET", "/api/v1/fleets", &token, None).await.code(), "token_invalid");
}

#[tokio::test]
async fn acts_are_listed_newest_first_in_pages() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    for i in 0..3 {
        cloud
            .call("POST", "/api/v1/tokens", &anna, Some(json!({"name": format!("t{i}"), "scope": "read"})))
            .await;
    }
    let page = cloud.call("GET", "/api/v1/audit?limit=2", &anna, None).await.json();
    let names = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["detail"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&page), ["t2", "t1"]);
    assert_eq!(page["items"][0]["who"], "token:test (anna@example.org)");
    let next = page["next"].as_str().unwrap();
    let page = cloud.call("GET", &format!("/api/v1/audit?limit=2&after={next}"), &anna, None).await.json();
    assert_eq!((names(&page), &page["next"]), (vec!["t0".to_owned()], &Value::Null));
}

#[tokio::test]
async fn owners_make_change_and_shut_out_users_but_never_the_last_owner() {
    let cloud = Cloud::new().await;
    let owner = cloud.user("olga@example.org", Role::Owner).await;
    let new = json!({"email": "Bob@example.org", "password": PASSWORD, "role": "viewer"});
    let made = cloud.call("POST", "/api/v1/users", &owner, Some(new.clone())).await;
    assert_eq!((made.status, &made.json()["email"]), (StatusCode::CREATED, &json!("bob@example.org")));
    assert_eq!(cloud.call("POST", "/api/v1/users", &owner, Some(new)).await.code(), "user_exists");
    let path = format!("/api/v1/users/{}", made.json()["id"].as_str().unwrap());
    let session = cookie(&sign_in(&cloud, "bob@example.org", PASSWORD).await);
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/users", &session, &[]).await.code(), "role_insufficient");

    let change = |path: String, body: Value| {
        let (cloud, owner) = (&cloud, owner.clone());
        async move { cloud.call("PATCH", &path, &owner, Some(body)).await }
    };
    assert_eq!(change(path.clone(), json!({"role": "admin"})).await.json()["role"], "admin");
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", &session, &[]).await.json()["role"], "admin");
    let out = change(path.clone(), json!({"disabled": true})).await.json();
    assert!(out["disabled_at"].is_u64());
    assert_eq!(with_cookie(&cloud, "GET", "/api/v1/me", &session, &[]).await.code(), "session_invalid");
    assert_eq!(sign_in(&cloud, "bob@example.org", PASSWORD).await.code(), "sign_in_failed");
    assert_eq!(change(path.clone(), json!({"disabled": false})).await.json()["disabled_at"], Value::Null);
    assert_eq!(sign_in(&cloud, "bob@example.org", PASSWORD).await.status, StatusCode::OK);

    let list = cloud.call("GET", "/api/v1/users", &owner, None).await.json();
    let olga = format!("/api/v1/users/{}", list["items"][1]["id"].as_str().unwrap());
    assert_eq!(list["items"][1]["email"], "olga@example.org");
    for body in [json!({"role": "viewer"}), json!({"disabled": true})] {
        assert_eq!(change(olga.clone(), body).await.code(), "last_owner");
    }
    assert_eq!(
        cloud.call("GET", "/api/v1/users", &owner, None).await.status,
        StatusCode::OK,
        "nothing of it stands"
    );
    assert_eq!(change("/api/v1/users/none".to_owned(), json!({})).await.code(), "not_found");
}

#[tokio::test]
async fn a_password_is_changed_with_the_current_one() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Viewer).await;
    let ask = |current: &str, new: &str| {
        let (cloud, anna, body) = (&cloud, anna.clone(), json!({"current": current, "new": new}));
        async move { cloud.call("POST", "/api/v1/me/password", &anna, Some(body)).await }
    };
    assert_eq!(ask("wrong password", "another good one").await.code(), "password_wrong");
    assert_eq!(ask(PASSWORD, "short").await.code(), "password_weak");
    assert_eq!(ask(PASSWORD, "another good one").await.status, StatusCode::NO_CONTENT);
    assert_eq!(sign_in(&cloud, "anna@example.org", PASSWORD).await.code(), "sign_in_failed");
    let me = sign_in(&cloud, "anna@example.org", "another good one").await;
    assert_eq!((me.status, &me.json()["role"]), (StatusCode::OK, &json!("viewer")));
}
