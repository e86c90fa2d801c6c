//! What the box above the list of devices does.

use axum::http::StatusCode;
use serde_json::json;

use crate::devices::testing::Fleet;

#[tokio::test]
async fn the_box_takes_a_filter_and_shows_the_place_where_it_is_wrong() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let tags = json!({"tags": {"site": "paris"}});
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", device.id), Some(tags)).await;
    let page = async |filter: &str| {
        let answer = fleet.call("GET", &format!("/fleets/porch/devices?filter={filter}"), None).await;
        (answer.status, String::from_utf8(answer.bytes).unwrap())
    };
    let (status, html) = page("tag.site%20=%20paris%20and%20online").await;
    assert_eq!(status, StatusCode::OK);
    assert!(html.contains("pi-1") && html.contains("value=\"tag.site = paris and online\""), "{html}");
    assert!(!page("not%20online").await.1.contains("pi-1"));
    let (status, html) = page("nam=%3Cscript%3E").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(html.contains("Did you mean name?") && html.contains("aria-invalid"), "{html}");
    assert!(html.contains("nam=&#60;script&#62;\n^\n") && !html.contains("<script>"), "{html}");
    assert_eq!(
        fleet.call("GET", "/fleets/none/devices?filter=nam", None).await.status,
        StatusCode::NOT_FOUND
    );
}
