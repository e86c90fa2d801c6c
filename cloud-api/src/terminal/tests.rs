//! What is kept of sessions, and for how long. Sessions themselves are tested with real devices, in tests/e2e.

use std::fs;

use copal_protocol::documents::TerminalMode;
use serde_json::json;

use super::{expire, reconcile, recording_path};
use crate::{
    app,
    backup::{backup, restore},
    devices::testing::{Device, Fleet},
};

const DAY: i64 = 86_400;

/// A session with a recording of these bytes; open where it has no end.
async fn session(fleet: &Fleet, device: &Device, id: char, ended: Option<i64>, bytes: &str) -> String {
    let id = id.to_string().repeat(32);
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query(
        "INSERT INTO terminal_sessions (id, device_id, kind, of, mode, who, user_id, reason, cols, rows, max_s, idle_s, state,
            recording_bytes, created_at, opened_at, ended_at)
         VALUES ($1, $2, 'service', 'web', 'cloud', 'anna', 'u', 'x', 80, 24, 60, 60, 'open', $3, 1, 1, $4)",
    )
    .bind(&id)
    .bind(device.id.to_string())
    .bind(i64::try_from(bytes.len()).unwrap())
    .bind(ended)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    fs::write(recording_path(&fleet.cloud.app.config, &id), bytes).unwrap();
    id
}

async fn kept(fleet: &Fleet) -> Vec<(String, Option<i64>)> {
    let rows = sqlx::query_as("SELECT id, recording_bytes FROM terminal_sessions ORDER BY id");
    rows.fetch_all(fleet.cloud.app.db.read()).await.unwrap()
}

#[tokio::test]
async fn recordings_and_sessions_go_when_they_are_old_and_files_of_no_session_too() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let now = app::now_i64();
    let open = session(&fleet, &device, 'a', None, "open").await;
    let young = session(&fleet, &device, 'b', Some(now - 89 * DAY), "young").await;
    let old = session(&fleet, &device, 'c', Some(now - 91 * DAY), "old").await;
    session(&fleet, &device, 'd', Some(now - 366 * DAY), "forgotten").await;
    let stray = recording_path(&fleet.cloud.app.config, "stray");
    fs::write(&stray, "x").unwrap();
    expire(&fleet.cloud.app, app::now()).await.unwrap();
    assert_eq!(kept(&fleet).await, [(open.clone(), Some(4)), (young.clone(), Some(5)), (old, None)]);
    let mut files: Vec<_> = fs::read_dir(fleet.cloud.app.config.recordings())
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files, [open, young]);
}

#[tokio::test]
async fn what_was_open_when_the_cloud_died_is_ended_with_what_was_recorded_and_backed_up() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let open = session(&fleet, &device, 'a', None, "half a line").await;
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("b.tar"), dir.path().join("restored"));
    backup(&fleet.cloud.app.config.data, &dir.path().join("while-open.tar")).await.unwrap();
    reconcile(&fleet.cloud.app).await.unwrap();
    let (code, sha256): (String, String) =
        sqlx::query_as("SELECT code, recording_sha256 FROM terminal_sessions WHERE id = $1")
            .bind(&open)
            .fetch_one(fleet.cloud.app.db.read())
            .await
            .unwrap();
    let expected = copal_protocol::ids::Sha256Hex::of(b"half a line").to_string();
    assert_eq!((code.as_str(), sha256), ("cloud_restarted", expected));
    let audit: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit WHERE verb = 'terminal.end'")
        .fetch_one(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(audit, 1);
    backup(&fleet.cloud.app.config.data, &file).await.unwrap();
    restore(&data, &file).await.unwrap();
    assert_eq!(fs::read_to_string(data.join(format!("recordings/{open}.cast"))).unwrap(), "half a line");
}

#[tokio::test]
async fn a_brake_holds_its_fleet_or_all_and_allows_nothing() {
    let mut fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let terminal = format!("/api/v1/fleets/porch/devices/{}/terminal", device.id);
    let ask = async |fleet: &Fleet| {
        fleet.post(&terminal, &fleet.token, &json!({"service": "web", "reason": "x"})).await
    };
    let set = async |fleet: &Fleet, route: &str, stopped: bool| {
        fleet.ok("PUT", &format!("/api/v1{route}"), Some(json!({ "stopped": stopped }))).await
    };
    fleet.new_root(|root| root.policy.terminal = TerminalMode::Off).await;
    // Off by the owner's word is off, whatever an admin says here.
    let now = set(&fleet, "/fleets/porch/terminals", false).await;
    assert_eq!(now["stopped"], false);
    assert_eq!(ask(&fleet).await.code(), "terminal_off");
    fleet.new_root(|root| root.policy.terminal = TerminalMode::Cloud).await;
    assert_eq!(ask(&fleet).await.code(), "device_away", "Root allows it again");

    for route in ["/fleets/porch/terminals", "/terminals"] {
        let now = set(&fleet, route, true).await;
        assert_eq!((&now["stopped"], now["by"].as_array().unwrap().len()), (&json!(true), 1), "{now}");
        let refused = ask(&fleet).await;
        assert_eq!((refused.status, &*refused.code()), (http::StatusCode::CONFLICT, "terminal_stopped"));
        // Twice is once, in the log too.
        set(&fleet, route, true).await;
        let shown = fleet.ok("GET", "/api/v1/fleets/porch/terminals", None).await;
        assert_eq!(shown["by"].as_array().unwrap().len(), 1, "{shown}");
        set(&fleet, route, false).await;
        assert_eq!(ask(&fleet).await.code(), "device_away");
    }
    // Another fleet's holds only that.
    let other = json!({"slug": "orchard", "device_type": "generic", "arch": "amd64"});
    fleet.ok("POST", "/api/v1/fleets", Some(other)).await;
    set(&fleet, "/fleets/orchard/terminals", true).await;
    assert_eq!(ask(&fleet).await.code(), "device_away");

    // A brake ends nothing; a kill of all ends what nobody came for, too, and no other fleet's.
    let open = session(&fleet, &device, 'a', None, "x").await;
    let old = session(&fleet, &device, 'b', Some(app::now_i64()), "x").await;
    let none = fleet.ok("DELETE", "/api/v1/fleets/orchard/sessions", None).await;
    assert_eq!(none, json!({"ended": [], "left": []}));
    let foreign = format!("/api/v1/fleets/orchard/sessions?device={}", device.id);
    assert_eq!(fleet.call("DELETE", &foreign, None).await.code(), "not_found");
    let killed = fleet.ok("DELETE", "/api/v1/fleets/porch/sessions", None).await;
    assert_eq!(killed, json!({"ended": [open], "left": []}), "and not {old}");
    let log = fleet.ok("GET", "/api/v1/audit?limit=500", None).await;
    let count = |verb: &str| log["items"].as_array().unwrap().iter().filter(|e| e["verb"] == verb).count();
    assert_eq!([count("terminal.stop"), count("terminal.let"), count("terminal.kill")], [3, 2, 1]);
}

#[tokio::test]
async fn no_young_recording_goes_for_a_new_session_and_fleets_have_room_of_their_own() {
    let fleet = Fleet::new().await;
    let (device, app) = (fleet.device(1).await, &fleet.cloud.app);
    let now = app::now_i64();
    let old = session(&fleet, &device, 'a', Some(now - 31 * DAY), "old").await;
    let young = session(&fleet, &device, 'b', Some(now - 29 * DAY), "young").await;
    let newest = session(&fleet, &device, 'c', Some(now), "of who would push the others out").await;
    let mut tx = app.db.write().await.unwrap();
    let full = super::keep::RECORDINGS_BYTES;
    sqlx::query("UPDATE terminal_sessions SET recording_bytes = $1 WHERE id = $2")
        .bind(full)
        .bind(&newest)
        .execute(&mut *tx)
        .await
        .unwrap();
    let since = now - 30 * DAY;
    let fleet_id = fleet.keys.fleet_id.to_string();
    assert_eq!(
        super::rows::recorded(&mut tx, &fleet_id, since).await.unwrap(),
        full + 5,
        "no further one opens"
    );
    assert_eq!(super::rows::recorded(&mut tx, "another", since).await.unwrap(), 0);
    tx.commit().await.unwrap();
    expire(app, app::now()).await.unwrap();
    assert_eq!(kept(&fleet).await, [(old, None), (young, Some(5)), (newest, Some(full))]);
}
