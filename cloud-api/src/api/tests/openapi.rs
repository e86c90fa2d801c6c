//! The OpenAPI document, and what it lets us check about every route.

use axum::http::StatusCode;

use crate::{api::openapi, testing::Cloud};

#[test]
fn the_checked_in_document_is_current() {
    let checked_in = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json")).unwrap();
    assert!(
        checked_in == openapi::text(),
        "cloud-api/openapi.json is not what the code says: cargo run -p copal-cloud -- openapi > cloud-api/openapi.json"
    );
}

#[tokio::test]
async fn every_route_but_the_doors_refuses_who_shows_nothing() {
    let cloud = Cloud::new().await;
    let document: serde_json::Value = serde_json::from_str(&openapi::text()).unwrap();
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(path.starts_with("/api/v1/"), "{path}");
        for method in ["get", "post", "put", "patch", "delete"] {
            let Some(operation) = item.get(method) else { continue };
            let open = operation["security"]
                .as_array()
                .is_some_and(|s| s.iter().any(|r| r.as_object().unwrap().is_empty()));
            let door = matches!((method, path.as_str()), ("post", "/api/v1/setup" | "/api/v1/session"));
            assert_eq!(open, door, "{method} {path}");
            if open {
                continue;
            }
            let concrete: String = path
                .split('/')
                .map(|part| if part.starts_with('{') { "00112233445566778899aabbccddeeff" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let body = matches!(method, "post" | "put" | "patch").then(|| serde_json::json!({}));
            let answer = cloud.call(&method.to_uppercase(), &concrete, "", body).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(answer.code(), "credentials_missing", "{method} {path}");
            let answer = cloud.call(&method.to_uppercase(), &concrete, "copal_wrong", None).await;
            assert_eq!(answer.code(), "token_invalid", "{method} {path}");
            seen += 1;
        }
    }
    assert!(seen > 10);
}
