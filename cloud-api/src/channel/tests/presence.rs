//! How long a device counts as connected, and one that went by itself.

use copal_protocol::channel::{Exchange, ping_payload};
use serde_json::json;

use super::*;
use crate::app;

#[tokio::test]
async fn a_device_counts_as_connected_for_as_long_as_it_pings_by_its_own_word() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    world.timing(|t| t.ping = Duration::from_secs(1200));
    let (mut line, welcome) = world.open(&device).await;
    assert_eq!((welcome.ping_s, welcome.lease_s), (1200, 450), "until it says how often it pings");
    let channels = &world.fleet.cloud.app.channels;
    let lease = || channels.lease(&channels.turn(device.id).unwrap()).as_secs();
    for (says, lasts) in [(600, 1500), (86_400, 3000), (180, 450), (0, 90)] {
        line.0.send(Message::Ping(ping_payload(0, says).to_vec().into())).await.unwrap();
        within(async {
            while lease() != lasts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let Message::Pong(_) = line.0.next().await.unwrap().unwrap() else { panic!("no pong: {says}") };
    }
    // Of another shape: a ping and nothing else.
    line.0.send(Message::Ping(vec![1; 8].into())).await.unwrap();
    let Message::Pong(_) = line.0.next().await.unwrap().unwrap() else { panic!("no pong") };
    line.silence().await;
    assert_eq!(lease(), 90);
}

fn leave() -> DeviceFrame {
    DeviceFrame::Leave { code: "budget".to_owned(), back_within_s: 20_000 }
}

impl World {
    /// The device as people see it, long after it was heard.
    async fn later(&self, device: &Device) -> Value {
        self.fleet.cloud.app.devices.get(device.id).unwrap().set_gone(app::now() + 1);
        self.fleet.ok("GET", &format!("/api/v1/devices/{}", device.id), None).await
    }
}

#[tokio::test]
async fn a_device_that_spares_its_bytes_is_not_offline_before_its_time() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    world.fleet.release(false).await;
    let (mut line, _) = world.open(&device).await;
    line.say(&leave()).await;
    line.closed().await;
    world.until_closed(&device).await;
    let shown = world.later(&device).await;
    assert_eq!((&shown["online"], &shown["reason"]["code"]), (&json!(false), &json!("metered")), "{shown}");
    let by = shown["next_poll_by"].as_u64().unwrap();
    assert!((app::now() + 19_000..app::now() + 20_001).contains(&by), "{by}");
    let swept = world.fleet.cloud.app.devices.get(device.id).unwrap();
    crate::devices::presence::sweep(&world.fleet.cloud.app, false).await.unwrap();
    let events: i64 = sqlx::query_scalar("SELECT count(*) FROM device_events WHERE kind = 'presence'")
        .fetch_one(world.fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(events, 0, "it is not missed");
    // A cloud that begins anew knows it, too.
    let known = crate::devices::memory::Memory::load(&world.fleet.cloud.app.db).await.unwrap();
    let again = known.get(device.id).unwrap();
    again.set_gone(app::now() + 1);
    assert_eq!(again.expected(app::now()), Some(by));
    // Past that time it is gone like any other.
    swept.set_expected(app::now() - 1);
    let shown = world.later(&device).await;
    assert_eq!((&shown["next_poll_by"], &shown["reason"]["code"]), (&Value::Null, &json!("offline")));
    crate::devices::presence::sweep(&world.fleet.cloud.app, false).await.unwrap();
    // And back with the next channel.
    let (_line, _) = world.open(&device).await;
    assert_eq!(world.fleet.cloud.app.devices.get(device.id).unwrap().expected(app::now()), None);
}

#[tokio::test]
async fn a_visit_by_exchange_takes_what_waits_once_and_is_nobodys_channel_afterwards() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let made = world.ask(&device, json!({"verb": "reboot", "delivery": "store", "ttl_s": 600})).await;
    let exchange = async |frames: Vec<DeviceFrame>| {
        let body = serde_json::to_vec(&Exchange { frames }).unwrap();
        let answer = device.post(&world.fleet, "/device/v1/exchange?wait=0", body).await;
        serde_json::from_slice::<Exchange<CloudFrame>>(&answer.bytes).unwrap().frames
    };
    let frames = exchange(vec![DeviceFrame::Hello(hello()), leave()]).await;
    let [CloudFrame::Welcome(_), CloudFrame::Cmd(command)] = &frames[..] else { panic!("{frames:?}") };
    assert!(!world.is_open(&device));
    let refused = world.ask(&device, json!({"verb": "reboot"})).await;
    world.until(&device, &refused, "unreachable").await;
    // It says more at once, and is not told again what it was told.
    let frames = exchange(vec![DeviceFrame::Ack(ack(command, AckState::Done)), leave()]).await;
    assert_eq!(frames, []);
    assert_eq!(world.shown(&device, &made).await["state"], "done");
    let shown = world.later(&device).await;
    assert!(shown["next_poll_by"].is_u64(), "{shown}");
}
