use axum::http::Request;
use tower::ServiceExt as _;

use super::*;

#[tokio::test]
async fn without_credentials_there_is_a_challenge_that_says_where_to_go() {
    let (_dir, app) = testing::app().await;
    let request =
        Request::get("/v2/demo/web/manifests/v1").header("host", "127.0.0.1:5").body(Body::empty()).unwrap();
    let response = router().with_state(app).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.headers()["www-authenticate"],
        r#"Bearer realm="http://127.0.0.1:5/registry/token",service="copal",scope="repository:demo/web:pull""#
    );
    let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
    assert!(std::str::from_utf8(&body).unwrap().contains("UNAUTHORIZED"));
}
