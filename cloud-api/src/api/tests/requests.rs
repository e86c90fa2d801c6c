//! What holds for every request: forms of refusals, request ids, bounds, headers.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use serde_json::json;

use crate::{auth::Role, testing::Cloud};

#[tokio::test]
async fn every_refusal_is_a_problem_with_a_code_and_the_request_id() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let post = |kind: &str, body: Vec<u8>| {
        Request::post("/api/v1/fleets")
            .header(header::AUTHORIZATION, format!("Bearer {anna}"))
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .unwrap()
    };
    let get = |path: &str| {
        Request::get(path)
            .header(header::AUTHORIZATION, format!("Bearer {anna}"))
            .body(Body::empty())
            .unwrap()
    };
    let put = Request::put("/healthz").body(Body::empty()).unwrap();
    let cases = [
        (get("/nowhere"), 404, "not_found"),
        (get("/api/v1/nowhere"), 404, "not_found"),
        (get("/api/v1/fleets/absent"), 404, "not_found"),
        (get("/api/v1/fleets/%ff%fe"), 404, "not_found"),
        (put, 405, "method_not_allowed"),
        (post("text/plain", b"{}".to_vec()), 415, "not_json"),
        (post("application/json", b"{".to_vec()), 400, "json_invalid"),
        (post("application/json", b"[]".to_vec()), 422, "body_invalid"),
        (post("application/json", br#"{"slug":1}"#.to_vec()), 422, "body_invalid"),
        (post("application/json", b"[".repeat(100_000)), 422, "body_invalid"),
        (post("application/json", vec![b' '; (1 << 20) + 1]), 413, "body_too_large"),
        (get("/api/v1/fleets?limit=x"), 400, "query_invalid"),
        (get("/api/v1/fleets?limit=0"), 400, "limit_invalid"),
        (get("/api/v1/fleets?lmit=1"), 400, "query_invalid"),
    ];
    for (request, status, code) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = cloud.send(request).await;
        assert_eq!(answer.status.as_u16(), status, "{what}");
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{what}");
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{what}");
        assert_eq!(problem["status"], status, "{what}");
        assert_eq!(problem["request_id"].as_str().unwrap(), answer.headers["x-request-id"], "{what}");
        assert!(!problem["detail"].as_str().unwrap().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_token_in_the_url_is_refused_wherever() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    for path in [
        format!("/api/v1/fleets?access_token={anna}"),
        format!("/api/v1/fleets?x={anna}"),
        "/api/v1/fleets?token=abc".to_owned(),
        format!("/healthz?a=b&c={anna}"),
        format!("/healthz?c={}", anna.replace('_', "%5F")),
    ] {
        let answer = cloud.call("GET", &path, &anna, None).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNAUTHORIZED, "token_in_url".to_owned()),
            "{path}"
        );
        assert!(!String::from_utf8_lossy(&answer.bytes).contains(&anna));
    }
}

#[tokio::test]
async fn a_name_that_begins_like_a_token_is_none() {
    let cloud = Cloud::new().await;
    assert_eq!(
        cloud.call("GET", "/healthz?from=greenhouse/copal_agent", "", None).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn answers_carry_security_headers_and_no_foreign_request_id() {
    let cloud = Cloud::new().await;
    let request = Request::get("/healthz").header("x-request-id", "mine").body(Body::empty()).unwrap();
    let answer = cloud.send(request).await;
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["x-frame-options"], "DENY");
    assert_eq!(answer.headers["referrer-policy"], "no-referrer");
    assert!(answer.headers.contains_key("content-security-policy"));
    assert_ne!(answer.headers["x-request-id"], "mine");
}

#[tokio::test]
async fn a_client_cannot_say_where_it_comes_from() {
    let cloud = Cloud::new().await;
    let body = json!({"email": "a@b.c", "password": "wrong password"}).to_string();
    let request = Request::post("/api/v1/session")
        .header("x-copal-peer", "10.1.2.3")
        .header(header::CONTENT_TYPE, "application/json");
    cloud.send(request.body(Body::from(body)).unwrap()).await;
    let source: String =
        sqlx::query_scalar("SELECT source FROM audit").fetch_one(cloud.app.db.read()).await.unwrap();
    assert_eq!(source, "unknown");
}

#[tokio::test]
async fn health_needs_no_credentials_and_metrics_do() {
    let cloud = Cloud::new().await;
    let viewer = cloud.user("vera@example.org", Role::Viewer).await;
    assert_eq!(cloud.call("GET", "/healthz", "", None).await.status, StatusCode::OK);
    assert_eq!(cloud.call("GET", "/readyz", "", None).await.status, StatusCode::OK);
    assert_eq!(cloud.call("GET", "/metrics", "", None).await.status, StatusCode::UNAUTHORIZED);
    let metrics = cloud.call("GET", "/metrics", &viewer, None).await;
    let text = String::from_utf8(metrics.bytes).unwrap();
    assert!(text.contains("copal_fleets 0"), "{text}");
    assert!(text.contains("copal_http_requests_total"), "{text}");
    cloud.app.stopping.cancel();
    assert_eq!(cloud.call("GET", "/readyz", "", None).await.code(), "stopping");
    assert_eq!(cloud.call("GET", "/healthz", "", None).await.status, StatusCode::OK);
}
