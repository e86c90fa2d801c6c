//! The order of assignments over a device's life.

use copal_protocol::verify::AssignmentMark;
use proptest::prelude::*;
use serde_json::json;

use super::{refresh_device, refresh_fleet};
use crate::{devices::testing::Fleet, rollouts};

async fn stored(fleet: &Fleet) -> Vec<(String, Vec<u8>)> {
    sqlx::query_as("SELECT device_id, envelope FROM assignments ORDER BY device_id")
        .fetch_all(fleet.cloud.app.db.read())
        .await
        .unwrap()
}

#[tokio::test]
async fn unchanged_content_keeps_its_bytes() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let device = fleet.device(1).await;
    let before = stored(&fleet).await;
    assert_eq!(refresh_fleet(&fleet.cloud.app, fleet.keys.fleet_id).await.unwrap(), 0);
    refresh_device(&fleet.cloud.app, device.id).await.unwrap();
    rollouts::catch_up(&fleet.cloud.app).await.unwrap();
    assert_eq!(stored(&fleet).await, before);
}

#[tokio::test]
async fn a_new_root_concerns_the_whole_fleet() {
    let mut fleet = Fleet::new().await;
    fleet.release(false).await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    fleet.new_root(|_| {}).await;
    for device in [&one, &two] {
        let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
        assert_eq!((assignment.root_version, assignment.seq), (2, 2));
    }
}

#[tokio::test]
async fn after_a_restore_a_new_epoch_orders_above_what_devices_had() {
    let mut fleet = Fleet::new().await;
    let first = fleet.release(false).await;
    let device = fleet.device(1).await;
    fleet.release(false).await;
    fleet.ok("POST", "/api/v1/fleets/porch/deploy", Some(json!({"release": first}))).await;
    let had = device.assignment(&fleet, &AssignmentMark::default()).await;
    let mark = AssignmentMark { assign_epoch: had.assign_epoch, seq: had.seq, sha256: Some(had.sha256()) };
    // The back-up knew nothing of the last two.
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE assignments SET seq = 1, content_sha256 = ''").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    refresh_fleet(&fleet.cloud.app, fleet.keys.fleet_id).await.unwrap();
    assert_eq!(fleet.shown(&device).await["target"]["seq"], 2, "below what the device has: refused there");
    fleet.new_root(|root| root.assign_epoch += 1).await;
    let now = device.assignment(&fleet, &mark).await;
    assert_eq!((now.assign_epoch, now.seq), (2, 3));
}

#[tokio::test]
async fn a_large_fleet_is_brought_up_to_date_in_batches() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let key = |n: u32| {
        let mut seed = [1; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        copal_protocol::keys::SigningKey::from_seed(&seed)
    };
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    for n in 0..1_200_u32 {
        sqlx::query(
            "INSERT INTO devices (device_id, fleet_id, name, state, public_key, seal_key, arch, device_type, created_at)
             SELECT $1, fleet_id, name, state, $2, seal_key, arch, device_type, 0 FROM devices WHERE device_id = $3",
        )
        .bind(format!("{n:032x}"))
        .bind(key(n).public().to_string())
        .bind(device.id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    fleet.release(false).await;
    assert_eq!(stored(&fleet).await.len(), 1_201);
}

#[derive(Debug, Clone)]
enum Step {
    Variable(u8),
    Secret(u8),
    Release,
    Deploy(u8),
    Root(bool),
    Retry,
    Refresh,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3_u8).prop_map(Step::Variable),
        (0..3_u8).prop_map(Step::Secret),
        Just(Step::Release),
        (0..3_u8).prop_map(Step::Deploy),
        any::<bool>().prop_map(Step::Root),
        Just(Step::Retry),
        Just(Step::Refresh),
    ];
    proptest::collection::vec(step, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, a device that follows every assignment accepts each: the order rises when the
    /// content changes, and equal order means equal bytes.
    #[test]
    fn a_device_accepts_every_assignment_of_its_life(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut fleet = Fleet::new().await;
            let mut releases = vec![fleet.release(false).await];
            let device = fleet.device(1).await;
            let mut mark = AssignmentMark::default();
            let mut bytes = Vec::new();
            for step in steps {
                match step {
                    Step::Variable(n) => {
                        let body = json!({"name": "GREETING", "value": n.to_string()});
                        fleet.ok("PUT", "/api/v1/fleets/porch/variables", Some(body)).await;
                    }
                    Step::Secret(n) => {
                        let body = json!({"name": "PASSWORD", "value": n.to_string(), "secret": true});
                        let path = format!("/api/v1/devices/{}/variables", device.id);
                        fleet.ok("PUT", &path, Some(body)).await;
                    }
                    Step::Release => releases.push(fleet.release(false).await),
                    Step::Deploy(n) => {
                        let release = &releases[usize::from(n) % releases.len()];
                        fleet.ok("POST", "/api/v1/fleets/porch/deploy", Some(json!({"release": release}))).await;
                    }
                    Step::Root(epoch) => fleet.new_root(|root| root.assign_epoch += u64::from(epoch)).await,
                    Step::Retry => {
                        fleet.ok("POST", &format!("/api/v1/devices/{}/retry", device.id), None).await;
                    }
                    Step::Refresh => {
                        refresh_fleet(&fleet.cloud.app, fleet.keys.fleet_id).await.unwrap();
                    }
                }
                let next = device.assignment(&fleet, &mark).await;
                let now = stored(&fleet).await[0].1.clone();
                if mark.sha256.is_some() {
                    let rose = (next.assign_epoch, next.seq) > (mark.assign_epoch, mark.seq);
                    assert_eq!(rose, now != bytes);
                }
                mark = AssignmentMark {
                    assign_epoch: next.assign_epoch,
                    seq: next.seq,
                    sha256: Some(next.sha256()),
                };
                bytes = now;
            }
        });
    }
}
