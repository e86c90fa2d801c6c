//! What devices say of their health, how it shows, and how it is found.

use std::collections::BTreeMap;

use copal_protocol::diagnosis::{Diagnosis, HealthReport, ProbeResult, Verdict};
use serde_json::{Value, json};

use crate::devices::testing::{Device, Fleet};

fn health(taken_at: u64, found: &[(&str, Verdict)]) -> HealthReport {
    let probes =
        found.iter().map(|(name, verdict)| ProbeResult::new(name, *verdict, "as found").of("/")).collect();
    let mut health = HealthReport::default();
    health.take(&Diagnosis { probes, taken_at });
    health
}

async fn report(fleet: &Fleet, device: &mut Device, health: HealthReport) {
    let answer = device.report(fleet, |report| report.health = Some(health)).await;
    assert!(answer.status.is_success(), "{answer:?}");
}

async fn meant(fleet: &Fleet, filter: &str) -> usize {
    let query: String = filter.bytes().map(|b| format!("%{b:02X}")).collect();
    let page = fleet.ok("GET", &format!("/api/v1/fleets/porch/devices?filter={query}"), None).await;
    page["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn the_last_verdicts_show_and_are_found() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let (mut device, other) = (fleet.device(1).await, fleet.device(2).await);
    let path = |device: &Device| format!("/api/v1/fleets/porch/devices/{}/health", device.id);
    let nothing = fleet.ok("GET", &path(&other), None).await;
    assert_eq!(nothing, json!({"verdict": null, "at": null, "checks": []}));
    let now = crate::app::now();
    report(&fleet, &mut device, health(now - 50, &[("disk", Verdict::Warning), ("clock", Verdict::Ok)]))
        .await;
    let shown = fleet.ok("GET", &path(&device), None).await;
    assert_eq!((&shown["verdict"], &shown["at"]), (&json!("warning"), &json!(now - 50)));
    let disk = &shown["checks"][1];
    assert_eq!(
        (&disk["name"], &disk["detail"], &disk["at"]),
        (&json!("disk"), &json!("as found"), &json!(now - 50))
    );
    let listed = fleet.ok("GET", &format!("/api/v1/devices/{}", device.id), None).await;
    assert_eq!((&listed["health"], &listed["health_at"]), (&json!("warning"), &json!(now - 50)));

    // The same again, and then worse; a clock of 1970 is not believed.
    report(&fleet, &mut device, health(now - 50, &[("disk", Verdict::Ok)])).await;
    assert_eq!(fleet.ok("GET", &path(&device), None).await["verdict"], "warning", "one round counts once");
    report(&fleet, &mut device, health(7, &[("disk", Verdict::Failed), ("memory", Verdict::Ok)])).await;
    let shown = fleet.ok("GET", &path(&device), None).await;
    assert_eq!(shown["verdict"], "failed");
    assert!(shown["at"].as_u64().unwrap() >= now, "{shown}");
    let names: Vec<&Value> = shown["checks"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["disk", "memory"], "what is not told any more goes");
    for (filter, count) in [
        ("health = failed", 1),
        ("check.disk = failed and check.memory = ok", 1),
        ("health in (warning, failed) and last_seen < 1h", 1),
        ("check.disk = failed and last_seen < 1h", 1),
        ("not has health", 1),
        ("check.clock = ok", 0),
        ("check.disk != ok", 2),
    ] {
        assert_eq!(meant(&fleet, filter).await, count, "{filter}");
    }
}

#[tokio::test]
async fn what_no_agent_says_is_left_aside() {
    let fleet = Fleet::new().await;
    fleet.release(false).await;
    let mut device = fleet.device(1).await;
    let mut steering = health(1, &[("disk", Verdict::Failed)]);
    steering.checks.get_mut("disk").unwrap().detail = "\u{1b}[31mred".to_owned();
    let mut many = health(2, &[]);
    many.checks = (0..33)
        .map(|n| (format!("check_{n}"), health(2, &[("x", Verdict::Failed)]).checks["x"].clone()))
        .collect::<BTreeMap<_, _>>();
    for bad in [steering, many] {
        report(&fleet, &mut device, bad).await;
    }
    let shown = fleet.ok("GET", &format!("/api/v1/fleets/porch/devices/{}/health", device.id), None).await;
    assert_eq!(shown, json!({"verdict": null, "at": null, "checks": []}));
    let other = format!("/api/v1/fleets/other/devices/{}/health", device.id);
    assert_eq!(fleet.call("GET", &other, None).await.code(), "not_found");
}
