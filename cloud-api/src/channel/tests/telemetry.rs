//! Events and telemetry on a channel.

use copal_protocol::{
    channel::{Batch, Class, Exchange, Stored},
    telemetry::FEATURE,
};
use serde_json::json;

use super::*;

fn telling() -> DeviceFrame {
    DeviceFrame::Hello(Hello { features: vec![FEATURE.to_owned()], ..hello() })
}

fn batch(class: Class, first_seq: u64) -> DeviceFrame {
    let items = vec![json!({"kind": "boot", "code": "asked", "of": "facts"}); 3];
    DeviceFrame::Batch(Batch { class, boot_id: "b".repeat(32), first_seq, dropped: 0, items })
}

#[tokio::test]
async fn what_is_stored_is_said_at_once_and_again_with_every_welcome() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let mut line = world.dial(&device).await.unwrap();
    line.say(&telling()).await;
    let CloudFrame::Welcome(welcome) = line.next().await else { panic!("no welcome") };
    assert_eq!(welcome.stored, Some(0));
    line.say(&batch(Class::Event, 1)).await;
    assert_eq!(line.next().await, CloudFrame::Stored(Stored { class: Class::Event, up_to: 3 }));
    line.say(&batch(Class::Telemetry, 7)).await;
    assert_eq!(line.next().await, CloudFrame::Stored(Stored { class: Class::Telemetry, up_to: 9 }));
    // The same without a WebSocket.
    let body = serde_json::to_vec(&Exchange { frames: vec![telling(), batch(Class::Event, 2)] }).unwrap();
    let answer = device.post(&world.fleet, "/device/v1/exchange?wait=0", body).await;
    let frames = serde_json::from_slice::<Exchange<CloudFrame>>(&answer.bytes).unwrap().frames;
    let [CloudFrame::Welcome(welcome), CloudFrame::Stored(stored)] = &frames[..] else {
        panic!("{frames:?}")
    };
    assert_eq!((welcome.stored, stored.up_to), (Some(3), 4));
    // A device that does not know of it is told nothing of it.
    let (_line, welcome) = world.open(&device).await;
    assert_eq!(welcome.stored, None);
}

#[tokio::test]
async fn watching_a_device_live_is_on_record_and_reading_what_is_stored_is_not() {
    let fleet = crate::devices::testing::Fleet::new().await;
    let device = fleet.device(1).await;
    let rows = || async {
        let log = fleet.ok("GET", "/api/v1/audit?limit=500", None).await;
        let items = log["items"].as_array().unwrap().clone();
        items.into_iter().filter(|e| e["object"] == format!("device:{}", device.id)).collect::<Vec<_>>()
    };
    let before = rows().await.len();
    let at = format!("/api/v1/fleets/porch/devices/{}", device.id);
    for route in ["events", "metrics", "health", "commands"] {
        fleet.ok("GET", &format!("{at}/{route}"), None).await;
    }
    assert_eq!(rows().await.len(), before);
    // Also where nothing comes of it.
    let watched = fleet.call("GET", &format!("{at}/metrics/live"), None).await;
    assert_eq!(watched.code(), "device_away");
    let after = rows().await;
    assert_eq!(after.len(), before + 1);
    let watch = after.iter().find(|e| e["verb"] == "metrics.watch").unwrap();
    assert_eq!(watch["who"].as_str().unwrap(), "token:test (anna@example.org)");
}
