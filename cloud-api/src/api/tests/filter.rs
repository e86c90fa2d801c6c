//! Lists of devices by a filter.

use axum::http::StatusCode;
use serde_json::json;

use crate::devices::testing::Fleet;

#[tokio::test]
async fn devices_are_listed_by_a_filter_and_a_wrong_one_says_where() {
    let fleet = Fleet::new().await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    let tags = json!({"tags": {"site": "paris"}});
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", two.id), Some(tags)).await;
    let list = async |query: &str| {
        let found = fleet.ok("GET", &format!("/api/v1/fleets/porch/devices?{query}"), None).await;
        let items = found["items"].as_array().unwrap();
        items.iter().map(|d| d["device_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (one, two) = (one.id.to_string(), two.id.to_string());
    assert_eq!(list("filter=tag.site%20%3D%20paris").await, [two.as_str()]);
    assert_eq!(list("filter=online&filter=name%20~%20*-1").await, [one.as_str()], "both must hold");
    assert_eq!(list("filter=online&tag=site=paris").await, [two.as_str()]);
    assert_eq!(list("filter=reason%20=%20no_release%20and%20not%20on_target").await.len(), 2);
    assert_eq!(list("filter=last_seen%20%3E%202h").await, [] as [String; 0]);
    assert_eq!(list("filter=").await.len(), 2);
    let wrong = fleet.call("GET", "/api/v1/fleets/porch/devices?filter=online%20and%20nam=x", None).await;
    assert_eq!((wrong.status, wrong.code()), (StatusCode::BAD_REQUEST, "filter_invalid".to_owned()));
    let detail = wrong.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("column 12") && detail.contains("Did you mean name?"), "{detail}");
    // Another fleet's filter opens nothing.
    let other = fleet.call("GET", "/api/v1/fleets/none/devices?filter=nam", None).await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}
