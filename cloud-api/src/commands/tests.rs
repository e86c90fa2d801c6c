//! What ends by itself, and answers that come late.

use copal_protocol::{
    channel::{Ack, AckState},
    ids::CommandId,
};
use serde_json::json;

use super::{answer, end, next};
use crate::devices::testing::Fleet;

#[tokio::test]
async fn what_was_sent_and_never_answered_is_given_up_and_still_takes_an_answer() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let path = format!("/api/v1/fleets/porch/devices/{}/commands", device.id);
    let body = json!({"verb": "reboot", "delivery": "store", "ttl_s": 60});
    let made = fleet.ok("POST", &path, Some(body)).await;
    let shown = async || fleet.ok("GET", &format!("{path}/{}", made["id"].as_str().unwrap()), None).await;
    assert!(next(app, &entry, 1).await.unwrap().is_some());
    assert!(next(app, &entry, 1).await.unwrap().is_none(), "once a channel");
    end::sweep(app).await.unwrap();
    assert_eq!(shown().await["state"], "delivered", "its time is not over");
    let mut tx = app.db.write().await.unwrap();
    sqlx::query("UPDATE commands SET due_at = 1").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    end::sweep(app).await.unwrap();
    let given_up = shown().await;
    assert_eq!((&given_up["state"], &given_up["code"]), (&json!("unknown"), &json!("no_answer")));
    let id: CommandId = made["id"].as_str().unwrap().parse().unwrap();
    let ack = Ack { id, state: AckState::Done, code: None, message: String::new(), result: None };
    answer(app, &entry, &ack).await.unwrap();
    let ended = shown().await;
    assert_eq!((&ended["state"], &ended["code"]), (&json!("done"), &json!(null)));
}

#[tokio::test]
async fn old_commands_and_large_results_make_room() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let path = format!("/api/v1/fleets/porch/devices/{}/commands", device.id);
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    for n in 0..205 {
        sqlx::query(
            "INSERT INTO commands (id, device_id, verb, args, delivery, ttl_s, asked_by, why, state, result, created_at,
                ended_at, due_at) VALUES ($1, $2, 'probes', '{}', 'direct', 30, 'anna', '', 'done', '1', 1, 1, 1)",
        )
        .bind(format!("{n:032x}"))
        .bind(device.id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    fleet.ok("POST", &path, Some(json!({"verb": "probes"}))).await;
    let count: (i64, i64) = sqlx::query_as("SELECT COUNT(*), COUNT(result) FROM commands")
        .fetch_one(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(count, (200, 19));
}
