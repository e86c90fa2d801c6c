//! The same without a WebSocket.

use copal_protocol::channel::Exchange;
use serde_json::json;

use super::*;

async fn exchange(
    world: &World,
    device: &Device,
    wait: u32,
    frames: Vec<DeviceFrame>,
) -> Result<Vec<CloudFrame>, (StatusCode, String)> {
    let body = serde_json::to_vec(&Exchange { frames }).unwrap();
    let answer = device.post(&world.fleet, &format!("/device/v1/exchange?wait={wait}"), body).await;
    if answer.status != StatusCode::OK {
        return Err((answer.status, answer.code()));
    }
    Ok(serde_json::from_slice::<Exchange<CloudFrame>>(&answer.bytes).unwrap().frames)
}

#[tokio::test]
async fn what_passes_a_websocket_passes_an_exchange() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let ask = json!({"verb": "reboot", "delivery": "store", "ttl_s": 60});
    let made = world.ask(&device, ask.clone()).await;
    let frames = exchange(&world, &device, 0, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    let [CloudFrame::Welcome(_), CloudFrame::Cmd(command)] = &frames[..] else { panic!("{frames:?}") };
    assert!(world.is_open(&device));
    let done = DeviceFrame::Ack(ack(command, AckState::Done));
    assert_eq!(exchange(&world, &device, 0, vec![done]).await.unwrap(), []);
    assert_eq!(world.shown(&device, &made).await["state"], "done");

    let (held, ()) = tokio::join!(exchange(&world, &device, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.fleet.release(false).await;
    });
    let [CloudFrame::Hint { etag: Some(_), .. }] = held.unwrap()[..] else { panic!("no hint") };
    let (held, made) = tokio::join!(exchange(&world, &device, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.ask(&device, json!({"verb": "reboot"})).await
    });
    let [CloudFrame::Cmd(command)] = &held.unwrap()[..] else { panic!("no command") };
    assert_eq!(command.id.to_string(), made["id"].as_str().unwrap());

    // Its answer was lost: a hello begins anew, and what did not end is said again.
    let frames = exchange(&world, &device, 0, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    let [CloudFrame::Welcome(_), CloudFrame::Cmd(again)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(again.id, command.id);
}

#[tokio::test]
async fn a_held_exchange_ends_with_a_revocation_a_newer_one_or_a_channel() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    exchange(&world, &device, 0, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    let (one, two) = tokio::join!(exchange(&world, &device, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        exchange(&world, &device, 0, vec![]).await
    });
    assert_eq!((one.unwrap(), two.unwrap()), (vec![], vec![]));

    let (held, (line, _)) = tokio::join!(exchange(&world, &device, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.open(&device).await
    });
    let bye = |frames: &[CloudFrame]| match frames {
        [CloudFrame::Bye { code, .. }] => code.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(bye(&held.unwrap()), "replaced");
    assert_eq!(bye(&exchange(&world, &device, 60, vec![]).await.unwrap()), "replaced");
    assert!(world.is_open(&device));
    drop(line);
    world.until_closed(&device).await;

    exchange(&world, &device, 0, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    let path = format!("/api/v1/devices/{}/revoke", device.id);
    let fleet = &world.fleet;
    let (held, _) = tokio::join!(exchange(&world, &device, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fleet.ok("POST", &path, None).await
    });
    assert_eq!(held.unwrap_err(), (StatusCode::FORBIDDEN, "device_revoked".to_owned()));

    let other = world.fleet.device(2).await;
    let of_other = format!("/api/v1/devices/{}", other.id);
    assert_eq!(fleet.ok("GET", &of_other, None).await["channel"], Value::Null);
    exchange(&world, &other, 0, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    assert_eq!(fleet.ok("GET", &of_other, None).await["channel"], "exchange");
    let refused = fleet.call("GET", &format!("/api/v1/fleets/porch/devices/{}/logs", other.id), None).await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (StatusCode::CONFLICT, Some("no_websocket"))
    );
    assert!(refused.json()["detail"].as_str().unwrap().contains("Upgrade"), "which says what to do");
    let (held, ()) = tokio::join!(exchange(&world, &other, 60, vec![]), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.fleet.cloud.app.stopping.cancel();
    });
    assert_eq!(bye(&held.unwrap()), "restarting");
}

#[tokio::test]
async fn where_no_place_is_left_an_exchange_is_answered_at_once() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    world.fleet.cloud.app.channels.allow(100, 0);
    let frames = exchange(&world, &device, 60, vec![DeviceFrame::Hello(hello())]).await.unwrap();
    assert!(matches!(frames[..], [CloudFrame::Welcome(_)]), "{frames:?}");
    let at_once = tokio::time::timeout(Duration::from_secs(30), exchange(&world, &device, 60, vec![]));
    assert_eq!(at_once.await.unwrap().unwrap(), []);
    // What there is to say is said all the same.
    let made = world.ask(&device, json!({"verb": "reboot", "delivery": "store", "ttl_s": 60})).await;
    let frames = exchange(&world, &device, 60, vec![]).await.unwrap();
    let [CloudFrame::Cmd(command)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(command.id.to_string(), made["id"].as_str().unwrap());
}

#[tokio::test]
async fn what_is_no_exchange_is_refused_and_a_later_frame_left_aside() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let send = async |body: String| {
        let answer = device.post(&world.fleet, "/device/v1/exchange", body.into_bytes()).await;
        (answer.status.as_u16(), if answer.status.is_success() { String::new() } else { answer.code() })
    };
    let malformed = (400, "frame_malformed".to_owned());
    assert_eq!(send(r#"{"frames":[{"t":"sing","song":1}]}"#.to_owned()).await.0, 200);
    assert_eq!(send("{}".to_owned()).await, malformed);
    assert_eq!(send(r#"{"frames":[{"t":"ack"}]}"#.to_owned()).await, malformed);
    assert_eq!(send(r#"{"frames":[{"t":"sing","t":"sing"}]}"#.to_owned()).await, malformed);
    assert_eq!(send(format!(r#"{{"frames":[{}]}}"#, [r#"{"t":"x"}"#; 65].join(","))).await, malformed);
    let large = format!(r#"{{"frames":[{{"t":"x","y":"{}"}}]}}"#, "a".repeat(channel::MAX_MESSAGE));
    assert_eq!(send(large).await, (413, "frame_too_large".to_owned()));
    assert_eq!(send("a".repeat(2 << 20)).await.0, 413);
    let waited = device.post(&world.fleet, "/device/v1/exchange?wait=61", b"{}".to_vec()).await;
    assert_eq!(waited.code(), "wait_invalid");
}

#[tokio::test]
async fn a_device_that_greets_again_and_again_is_told_to_wait() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let greet = || DeviceFrame::Hello(hello());
    let twice = exchange(&world, &device, 0, vec![greet(), greet()]).await;
    assert_eq!(twice.unwrap_err(), (StatusCode::BAD_REQUEST, "frame_malformed".to_owned()));
    let mut refused = None;
    for _ in 0..40 {
        refused = exchange(&world, &device, 0, vec![greet()]).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.unwrap(), (StatusCode::TOO_MANY_REQUESTS, "too_many_requests".to_owned()));
    let other = world.fleet.device(2).await;
    exchange(&world, &other, 0, vec![greet()]).await.unwrap();
}
