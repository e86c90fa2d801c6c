//! Who may do what on a fleet: every route below one, asked as each role, by people who are something else on another fleet.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{
    api::openapi,
    auth::{Role, Scope},
    devices::testing::Fleet,
};

/// What each route needs on its fleet. In paths `{slug}`, `{device}`, `{release}`, `{build}` and `{round}` are the fleet's own; `{none}` is an id of nothing.
const TABLE: &[(Role, &str, &str, &str)] = &[
    (Role::Viewer, "get", "/builds/{build}", ""),
    (Role::Viewer, "get", "/builds/{build}/log", ""),
    (Role::Developer, "post", "/builds/{build}/retry", "{}"),
    (Role::Viewer, "get", "/devices/{device}", ""),
    (Role::Operator, "patch", "/devices/{device}", r#"{"name": "porch-1"}"#),
    (Role::Admin, "post", "/devices/{device}/accept", "{}"),
    (Role::Viewer, "get", "/devices/{device}/events", ""),
    (Role::Viewer, "get", "/devices/{device}/report", ""),
    (Role::Operator, "post", "/devices/{device}/retry", "{}"),
    (Role::Viewer, "get", "/devices/{device}/variables", ""),
    (Role::Operator, "put", "/devices/{device}/variables", r#"{"name": "A", "value": "b"}"#),
    (Role::Operator, "delete", "/devices/{device}/variables?name=A", ""),
    (Role::Viewer, "get", "/fleets/{slug}", ""),
    (Role::Viewer, "get", "/fleets/{slug}/builds", ""),
    (Role::Developer, "post", "/fleets/{slug}/builds", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/commands", ""),
    (Role::Viewer, "post", "/fleets/{slug}/commands", r#"{"verb": "probes", "dry_run": true}"#),
    (Role::Operator, "post", "/fleets/{slug}/commands", r#"{"verb": "check_update", "dry_run": true}"#),
    (Role::Operator, "post", "/fleets/{slug}/commands", r#"{"verb": "reboot", "expect_count": 1}"#),
    (Role::Viewer, "get", "/fleets/{slug}/commands/{round}", ""),
    (Role::Operator, "post", "/fleets/{slug}/commands/{round}/cancel", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/commands/{round}/devices", ""),
    (Role::Operator, "post", "/fleets/{slug}/deploy", r#"{"release": "latest", "dry_run": true}"#),
    (Role::Operator, "post", "/fleets/{slug}/deploy", r#"{"release": "latest"}"#),
    (Role::Viewer, "get", "/fleets/{slug}/devices", ""),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/commands", ""),
    (Role::Viewer, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "probes"}"#),
    (Role::Viewer, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "network"}"#),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/commands",
        r#"{"verb": "restart_service", "args": {"service": "web"}}"#,
    ),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/commands",
        r#"{"verb": "stop_service", "args": {"service": "web"}}"#,
    ),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/commands",
        r#"{"verb": "start_service", "args": {"service": "web"}}"#,
    ),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "purge_data"}"#),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "pause_updates"}"#),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "resume_updates"}"#),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "reboot"}"#),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/commands", r#"{"verb": "check_update"}"#),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/commands",
        r#"{"verb": "blink", "args": {"for_s": 1}}"#,
    ),
    (
        Role::Admin,
        "post",
        "/fleets/{slug}/devices/{device}/commands",
        r#"{"verb": "set_network", "args": {"ntp": []}}"#,
    ),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/commands/{none}", ""),
    // One's own; there is none here. Anybody's needs the role operator.
    (Role::Viewer, "post", "/fleets/{slug}/devices/{device}/commands/{none}/cancel", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/events", ""),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/health", ""),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/logs", ""),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/metrics", ""),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/metrics/live", ""),
    (Role::Operator, "post", "/fleets/{slug}/devices/{device}/support-bundle", "{}"),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/terminal",
        r#"{"service": "web", "reason": "x"}"#,
    ),
    (
        Role::Operator,
        "post",
        "/fleets/{slug}/devices/{device}/terminal",
        r#"{"recording": "00000000000000000000000000000000", "reason": "x"}"#,
    ),
    (Role::Admin, "post", "/fleets/{slug}/devices/{device}/terminal", r#"{"host": true, "reason": "x"}"#),
    (Role::Viewer, "get", "/fleets/{slug}/devices/{device}/terminal/{none}", ""),
    (Role::Viewer, "get", "/fleets/{slug}/enrolment-tokens", ""),
    (Role::Admin, "post", "/fleets/{slug}/enrolment-tokens", "{}"),
    (Role::Admin, "delete", "/fleets/{slug}/enrolment-tokens/{none}", ""),
    (Role::Viewer, "get", "/fleets/{slug}/host-releases", ""),
    (Role::Developer, "post", "/fleets/{slug}/host-releases", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/host-releases/{none}", ""),
    (Role::Operator, "post", "/fleets/{slug}/host-releases/{none}/deploy", r#"{"all": true}"#),
    (Role::Viewer, "get", "/fleets/{slug}/host-releases/{none}/envelope", ""),
    (Role::Operator, "post", "/fleets/{slug}/host-releases/{none}/retry", r#"{"all": true}"#),
    (Role::Operator, "post", "/fleets/{slug}/host-releases/{none}/withdraw", r#"{"reason": "x"}"#),
    (Role::Admin, "get", "/fleets/{slug}/members", ""),
    (Role::Admin, "put", "/fleets/{slug}/members/eva@example.org", r#"{"role": "viewer"}"#),
    (Role::Admin, "delete", "/fleets/{slug}/members/eva@example.org", ""),
    (Role::Operator, "put", "/fleets/{slug}/reboot-window", r#"{"reboot_window": "01:00-02:00"}"#),
    (Role::Operator, "put", "/fleets/{slug}/check-every", r#"{"check_every_s": 3600}"#),
    (Role::Viewer, "get", "/fleets/{slug}/releases", ""),
    (Role::Admin, "put", "/fleets/{slug}/root", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/roots/latest", ""),
    (Role::Viewer, "get", "/fleets/{slug}/sessions", ""),
    (Role::Operator, "delete", "/fleets/{slug}/sessions", ""),
    (Role::Operator, "delete", "/fleets/{slug}/sessions?device={device}", ""),
    (Role::Viewer, "get", "/fleets/{slug}/sessions/{none}", ""),
    (Role::Operator, "delete", "/fleets/{slug}/sessions/{none}", ""),
    (Role::Operator, "get", "/fleets/{slug}/sessions/{none}/recording", ""),
    (Role::Viewer, "get", "/fleets/{slug}/terminals", ""),
    (Role::Admin, "put", "/fleets/{slug}/terminals", r#"{"stopped": false}"#),
    (
        Role::Developer,
        "post",
        "/fleets/{slug}/uploads",
        r#"{"sha256": "0000000000000000000000000000000000000000000000000000000000000000", "size": 5}"#,
    ),
    (Role::Developer, "get", "/fleets/{slug}/uploads/{none}", ""),
    (Role::Developer, "patch", "/fleets/{slug}/uploads/{none}?offset=0", "{}"),
    (Role::Viewer, "get", "/fleets/{slug}/variables", ""),
    (Role::Operator, "put", "/fleets/{slug}/variables", r#"{"name": "A", "value": "b"}"#),
    (Role::Operator, "delete", "/fleets/{slug}/variables?name=A", ""),
    (Role::Viewer, "get", "/releases/{release}", ""),
    (Role::Developer, "patch", "/releases/{release}", r#"{"note": "x"}"#),
    (Role::Viewer, "get", "/releases/{release}/build-record", ""),
    (Role::Viewer, "get", "/releases/{release}/envelope", ""),
    (Role::Developer, "post", "/releases/{release}/signatures", "{}"),
    // What shuts things comes last.
    (Role::Admin, "post", "/devices/{device}/revoke", "{}"),
    (Role::Admin, "delete", "/fleets/{slug}", ""),
];

/// A path as the document has it.
fn documented(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let path = path
        .replace("/roots/latest", "/roots/{version}")
        .replace("/members/eva@example.org", "/members/{email}")
        .replace("/terminal/{none}", "/terminal/{session}")
        .replace("/sessions/{none}", "/sessions/{session}")
        .replace("/commands/{none}", "/commands/{command}")
        .replace("{round}", "{command}");
    ["{device}", "{release}", "{build}", "{none}"].iter().fold(path, |path, id| path.replace(id, "{id}"))
}

fn word(role: Role) -> Value {
    json!({ "role": role })
}

#[tokio::test]
async fn each_role_opens_its_routes_of_its_own_fleet_and_none_beyond() {
    let document: Value = serde_json::from_str(&openapi::text()).unwrap();
    let below = ["/fleets/{slug}", "/devices/{id}", "/releases/{id}", "/builds/{id}"];
    let mut all = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1").unwrap();
        if below.iter().any(|of| path.starts_with(of)) {
            all.extend(methods.as_object().unwrap().keys().map(|method| (method.clone(), path.to_owned())));
        }
    }
    let named = TABLE.iter().map(|(_, method, path, _)| ((*method).to_owned(), documented(path)));
    assert_eq!(named.collect::<BTreeSet<_>>(), all, "each route stands in the table");

    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let release = fleet.release(false).await;
    let cloud = &fleet.cloud;
    let mut tx = cloud.app.db.write().await.unwrap();
    sqlx::query(
        "INSERT INTO builds (id, fleet_id, source, branch, platform, options, status, pushed_by, created_at)
         VALUES ('b1', $1, 'c0ffee', 'main', 'linux/amd64', '', 'failed', 'anna', 1)",
    )
    .bind(fleet.keys.fleet_id.to_string())
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let round = json!({"verb": "check_update", "expect_count": 1, "delivery": "store", "ttl_s": 600});
    let round = fleet.ok("POST", "/api/v1/fleets/porch/commands", Some(round)).await;
    let round = round["id"].as_str().unwrap().to_owned();
    let orchard = json!({"slug": "orchard", "device_type": "generic", "arch": "amd64"});
    fleet.ok("POST", "/api/v1/fleets", Some(orchard)).await;
    cloud.user("eva@example.org", Role::Member).await;

    let full = cloud.user("max@example.org", Role::Member).await;
    let reads = cloud.token("max@example.org", Role::Member, Scope::Read, None).await;
    let member = |slug: &str| format!("/api/v1/fleets/{slug}/members/max@example.org");
    let ask = |token: String, method: &'static str, path: &'static str, body: &'static str| {
        let path = path
            .replace("{slug}", "porch")
            .replace("{device}", &device.id.to_string())
            .replace("{release}", &release)
            .replace("{build}", "b1")
            .replace("{round}", &round)
            .replace("{none}", &"0".repeat(32));
        async move {
            let body = (!body.is_empty()).then(|| serde_json::from_str(body).unwrap());
            let answer = cloud.call(&method.to_uppercase(), &format!("/api/v1{path}"), &token, body).await;
            let code = serde_json::from_slice::<Value>(&answer.bytes).unwrap_or_default();
            let code = code["code"].as_str().unwrap_or_default().to_owned();
            (answer.status, code)
        }
    };
    // Whatever somebody is on another fleet, here it counts nothing.
    fleet.ok("PUT", &member("orchard"), Some(word(Role::Admin))).await;
    for (needs, method, path, body) in TABLE {
        let (status, code) = ask(full.clone(), method, path, body).await;
        assert_eq!(
            (status, &*code),
            (StatusCode::NOT_FOUND, "not_found"),
            "no member: {needs} {method} {path}"
        );
    }
    for here in [Role::Viewer, Role::Operator, Role::Developer, Role::Admin] {
        fleet.ok("PUT", &member("porch"), Some(word(here))).await;
        for (needs, method, path, body) in TABLE {
            let what = format!("{here}: {method} {path} {body}");
            // By a token that only reads an admin does not more, and a lesser role is told first.
            let (status, code) = ask(reads.clone(), method, path, body).await;
            let may = here >= *needs && *needs == Role::Viewer;
            let refused = ["role_insufficient", "scope_insufficient"].contains(&&*code);
            assert_eq!(refused, !may, "by a token that reads: {what}: {status} {code}");
            let (status, code) = ask(full.clone(), method, path, body).await;
            if here < *needs {
                assert_eq!((status, &*code), (StatusCode::FORBIDDEN, "role_insufficient"), "{what}");
            } else {
                assert!(
                    status != StatusCode::FORBIDDEN && status != StatusCode::UNAUTHORIZED,
                    "{what}: {code}"
                );
                // Some are of things that this fleet has none of.
                let none = path.contains("{none}") || path.ends_with("/report");
                let found = status != StatusCode::NOT_FOUND || none || code != "not_found";
                assert!(found, "{what}: {code}");
            }
        }
    }
    // And it was the same person all the time, who is an admin of the other fleet still.
    let me = cloud.call("GET", "/api/v1/me", &full, None).await.json();
    assert_eq!(me["fleets"], json!({"porch": "admin", "orchard": "admin"}));
}

#[tokio::test]
async fn brakes_and_kills_of_the_whole_server_are_its_admins_alone() {
    let fleet = Fleet::new().await;
    let cloud = &fleet.cloud;
    let stop = || Some(json!({"stopped": true}));
    for (role, may) in
        [(Role::Member, false), (Role::Viewer, false), (Role::Developer, false), (Role::Admin, true)]
    {
        let token = cloud.user(&format!("{role}@example.org"), role).await;
        let put = cloud.call("PUT", "/api/v1/terminals", &token, stop()).await.status;
        let kill = cloud.call("DELETE", "/api/v1/sessions", &token, None).await.status;
        assert_eq!((put == StatusCode::OK, kill == StatusCode::OK), (may, may), "{role}");
    }
    // Nor a token that opens one fleet, whoever's it is; nor an admin of one fleet.
    let one = cloud.token("anna@example.org", Role::Owner, Scope::Full, Some(fleet.keys.fleet_id)).await;
    cloud.user("max@example.org", Role::Member).await;
    fleet.ok("PUT", "/api/v1/fleets/porch/members/max@example.org", Some(word(Role::Admin))).await;
    let max = cloud.user("max@example.org", Role::Member).await;
    for token in [&one, &max] {
        let put = cloud.call("PUT", "/api/v1/terminals", token, stop()).await;
        assert_eq!(put.status, StatusCode::FORBIDDEN, "{put:?}");
        assert_eq!(cloud.call("DELETE", "/api/v1/sessions", token, None).await.status, StatusCode::FORBIDDEN);
        let own = cloud.call("PUT", "/api/v1/fleets/porch/terminals", token, stop()).await;
        assert_eq!(own.status, StatusCode::OK, "{own:?}");
    }
}
