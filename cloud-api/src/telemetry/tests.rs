use copal_protocol::telemetry::{Gauge, Measured, Summary};
use serde_json::{Value, json};

use super::*;
use crate::devices::testing::{Device, Fleet};

const NOW: u64 = 1_800_000_000;

fn batch(first_seq: u64, dropped: u64, items: Vec<Value>) -> Batch {
    Batch { class: Class::Event, boot_id: "b".repeat(32), first_seq, dropped, items }
}

fn some(numbers: std::ops::Range<u64>) -> Vec<Value> {
    numbers.map(|n| json!({"kind": "service", "code": "exited", "message": "it ended", "at": NOW, "data": {"n": n}})).collect()
}

async fn tell(fleet: &Fleet, device: &Device, batch: Batch) -> u64 {
    events::take(&fleet.cloud.app, device.id, &batch, app::now()).await.unwrap().up_to
}

async fn page(fleet: &Fleet, device: &Device, query: &str) -> Vec<Value> {
    let path = format!("/api/v1/fleets/porch/devices/{}/events?limit=500{query}", device.id);
    fleet.ok("GET", &path, None).await["items"].as_array().unwrap().clone()
}

/// Numbers of the events of the device's own, newest first.
async fn numbers(fleet: &Fleet, device: &Device) -> Vec<u64> {
    page(fleet, device, "").await.iter().filter_map(|e| e["seq"].as_u64()).collect()
}

#[tokio::test]
async fn events_are_stored_once_whatever_is_repeated_or_comes_out_of_order() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    assert_eq!(tell(&fleet, &device, batch(1, 0, some(1..4))).await, 3);
    assert_eq!(tell(&fleet, &device, batch(1, 0, some(1..4))).await, 3, "repeated");
    assert_eq!(tell(&fleet, &device, batch(2, 0, some(2..6))).await, 5, "half of it is new");
    assert_eq!(tell(&fleet, &device, batch(8, 0, some(8..10))).await, 5, "too early: 6 and 7 may still come");
    assert_eq!(tell(&fleet, &device, batch(6, 0, some(6..8))).await, 7);
    assert_eq!(tell(&fleet, &device, batch(8, 0, some(8..10))).await, 9);
    assert_eq!(tell(&fleet, &device, batch(1, 0, some(1..4))).await, 9, "an old one, late");
    assert_eq!(numbers(&fleet, &device).await, (1..10).rev().collect::<Vec<_>>());
    // A gap that is told is counted, as far as it is one.
    assert_eq!(tell(&fleet, &device, batch(20, 15, some(20..21))).await, 20);
    let gap = page(&fleet, &device, "&kind=gap").await;
    assert_eq!((gap.len(), &gap[0]["data"]["count"]), (1, &json!(10)));
    for odd in [batch(21, 0, vec![]), batch(u64::MAX, u64::MAX, some(0..1)), batch(21, 0, some(0..300))] {
        assert_eq!(tell(&fleet, &device, odd).await, 20);
    }
    // Two at once, as when an old channel is not known to be dead.
    let (one, two) = tokio::join!(
        tell(&fleet, &device, batch(21, 0, some(21..24))),
        tell(&fleet, &device, batch(21, 0, some(21..24)))
    );
    assert_eq!((one, two, numbers(&fleet, &device).await.len()), (23, 23, 13));
}

#[tokio::test]
async fn events_are_listed_by_time_and_kind_and_bounded() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let mut items = some(1..2);
    items.push(
        json!({"kind": "boot", "code": "unclean", "message": "it was cut off", "at": 1_000, "data": {}}),
    );
    tell(&fleet, &device, batch(1, 0, items)).await;
    let boots = page(&fleet, &device, "&kind=boot").await;
    assert_eq!(
        (boots.len(), &boots[0]["at"], &boots[0]["boot_id"]),
        (1, &json!(1_000), &json!("b".repeat(32)))
    );
    assert!(boots[0]["received_at"].as_u64().unwrap() > 1_000);
    assert!(page(&fleet, &device, "&since=2000&kind=boot").await.is_empty());
    let old = fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await;
    assert!(
        old["items"].as_array().unwrap().iter().any(|e| e["kind"] == "boot"),
        "the other route tells the same: {old}"
    );
    let mut first = 3;
    while first < 5_400 {
        tell(&fleet, &device, batch(first, 0, some(first..first + 256))).await;
        first += 256;
    }
    let count: i64 = sqlx::query_scalar("SELECT COUNT(seq) FROM device_events")
        .fetch_one(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(count, 5_000);
    assert_eq!(
        tell(&fleet, &device, batch(1, 0, some(1..3))).await,
        first - 1,
        "also what was let go of is known"
    );
    rows_age(&fleet, 100).await;
    let before = numbers(&fleet, &device).await.len();
    tell(&fleet, &device, batch(first, 0, some(first..first + 1))).await;
    assert!(before > 0 && page(&fleet, &device, "").await.len() >= 500);
    let oldest: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM device_events")
        .fetch_one(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(oldest, 4_901, "what is too old goes, a hundred at a time; one was noted by the cloud");
}

/// Everything was heard so many days ago.
async fn rows_age(fleet: &Fleet, days: u64) {
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE device_events SET received_at = $1")
        .bind((app::now() - days * 86_400).cast_signed())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_commit_told_by_report_and_by_event_is_one() {
    let fleet = Fleet::new().await;
    let mut device = fleet.device(1).await;
    let release = fleet.release(false).await;
    let commit = |release: &str| json!({"kind": "committed", "code": "committed", "message": "x", "at": NOW, "data": {"release": release}});
    let committed = async || page(&fleet, &device, "&kind=committed").await;
    tell(&fleet, &device, batch(1, 0, vec![commit(&release)])).await;
    assert_eq!(committed().await.len(), 1);
    device.report(&fleet, |_| {}).await;
    let committed = async || page(&fleet, &device, "&kind=committed").await;
    assert_eq!(committed().await.len(), 1, "the event came first");
    // Two more while it was away, and the report tells of the last alone.
    tell(&fleet, &device, batch(2, 0, vec![commit("another"), commit(&release)])).await;
    assert_eq!(committed().await.len(), 3);
    let second = fleet.device(2).await;
    let mut second = second;
    second.report(&fleet, |_| {}).await;
    assert_eq!(tell(&fleet, &second, batch(1, 0, vec![commit(&release)])).await, 1);
    let both = page(&fleet, &second, "&kind=committed").await;
    assert_eq!((both.len(), &both[0]["seq"]), (1, &json!(1)), "the report came first");
}

fn span(at: u64, cpu: i64) -> Summary {
    let device = Measured {
        gauges: [("cpu".to_owned(), Gauge { min: 0, avg: cpu, max: 2 * cpu, last: cpu })].into(),
        counters: [("net_in".to_owned(), 10)].into(),
    };
    let services = [("web".to_owned(), device.clone())].into();
    Summary { at: Some(at), for_s: 3600, samples: 120, device, services }
}

#[tokio::test]
async fn metrics_are_kept_for_a_month_joined_when_they_are_old_and_given_in_steps() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let now = app::now() / 3600 * 3600;
    for hour in (0..40 * 24).rev() {
        let at = now - hour * 3600;
        let mut tx = app.db.write().await.unwrap();
        // Twice, as after an answer that was lost.
        for _ in 0..2 {
            metrics::store(&mut tx, device.id, &[span(at, 500)], at + 1).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    let (count, oldest): (i64, i64) = sqlx::query_as("SELECT COUNT(*), MIN(at) FROM device_metrics")
        .fetch_one(app.db.read())
        .await
        .unwrap();
    assert!((250..330).contains(&count), "{count} spans");
    assert!(oldest.unsigned_abs() >= now - 31 * 86_400);
    let path = format!("/api/v1/fleets/porch/devices/{}/metrics", device.id);
    let day = fleet.ok("GET", &format!("{path}?from={}&to={now}&step=3600", now - 86_400), None).await;
    let points = day["points"].as_array().unwrap();
    assert_eq!(points.len(), 24, "{day}");
    assert_eq!(
        points[0]["services"]["web"]["gauges"]["cpu"],
        json!({"min": 0, "avg": 500, "max": 1000, "last": 500})
    );
    let month =
        fleet.ok("GET", &format!("{path}?from={}&to={now}&step=86400", now - 20 * 86_400), None).await;
    let points = month["points"].as_array().unwrap();
    assert_eq!(points.len(), 20);
    // Each hour is counted once, also those that were joined; days meet within one of the joined spans of six hours.
    let total: u64 = points.iter().map(|p| p["device"]["counters"]["net_in"].as_u64().unwrap()).sum();
    assert!((4_740..=4_860).contains(&total), "{total}");
    for odd in ["?from=5&to=5", "?from=0&step=60", "?step=5", "?to=99999999999999999999"] {
        assert_eq!(fleet.call("GET", &format!("{path}{odd}"), None).await.status, 400, "{odd}");
    }
}

#[tokio::test]
async fn metrics_of_a_device_are_bounded_however_many_it_tells() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let app = &fleet.cloud.app;
    let entry = app.devices.get(device.id).unwrap();
    let now = app::now();
    let mut first = 1;
    for round in 0..20_u64 {
        let item = |n: u64| {
            let mut item = serde_json::to_value(span(now - 20_000 + round * 1000 + n * 20, 5)).unwrap();
            item["of"] = json!("metrics");
            item
        };
        let mut items: Vec<Value> = (0..50).map(item).collect();
        items.push(json!({"of": "poems"}));
        items.push(
            json!({"of": "metrics", "for_s": 1, "samples": 1, "device": {}, "junk": "x".repeat(9_000)}),
        );
        items.push(json!({"of": "facts", "kernel": "6.1", "cores": 4, "later": true}));
        let told = items.len() as u64;
        let batch = Batch { class: Class::Telemetry, ..batch(first, 0, items) };
        let stored = take(app, &entry, batch).await.unwrap();
        assert_eq!(stored, Stored { class: Class::Telemetry, up_to: first + told - 1 });
        first += told;
    }
    let (count, bytes): (i64, i64) = sqlx::query_as("SELECT COUNT(*), SUM(LENGTH(body)) FROM device_metrics")
        .fetch_one(app.db.read())
        .await
        .unwrap();
    assert!(count <= 210, "{count} spans of {bytes} bytes");
    let shown = fleet.shown(&device).await;
    assert_eq!((&shown["facts"]["kernel"], &shown["facts"]["cores"]), (&json!("6.1"), &json!(4)), "{shown}");
}

#[tokio::test]
async fn a_device_that_tells_much_pushes_out_nothing_the_cloud_noted_of_it() {
    let fleet = Fleet::new().await;
    let device = fleet.device(1).await;
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    let noted = crate::devices::rows::NewEvent::new("state", "clone_suspected", "two hold its key");
    crate::devices::rows::add_events(&mut tx, device.id, app::now(), &[noted]).await.unwrap();
    sqlx::query(
        "WITH RECURSIVE n (seq) AS (VALUES (1) UNION ALL SELECT seq + 1 FROM n WHERE seq < 5000)
         INSERT INTO device_events (device_id, at, kind, code, message, data, boot_id, seq, received_at)
         SELECT $1, $2, 'service', 'exited', '', '{}', 'b', seq, $2 FROM n",
    )
    .bind(device.id.to_string())
    .bind(app::now_i64())
    .execute(&mut *tx)
    .await
    .unwrap();
    sqlx::query("UPDATE devices SET event_seq = 5000").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(tell(&fleet, &device, batch(5001, 0, some(5001..5101))).await, 5100);
    let (told, noted): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(seq), COUNT(CASE WHEN code = 'clone_suspected' THEN 1 END) FROM device_events",
    )
    .fetch_one(fleet.cloud.app.db.read())
    .await
    .unwrap();
    assert_eq!((told, noted), (5_000, 1));
}
