//! WebSockets: who may open one, and how it ends.

use super::*;
use crate::app;

#[tokio::test]
async fn a_hello_is_welcomed_and_a_deploy_is_hinted_at_once() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, welcome) = world.open(&device).await;
    assert_eq!(welcome.etag, None);
    assert_eq!((welcome.ping_s, welcome.lease_s), (360, 450));
    assert!(welcome.time.abs_diff(app::now()) < 60 && welcome.reconnect_window_s > 0);
    world.fleet.release(false).await;
    let CloudFrame::Hint { etag: Some(etag), .. } = line.next().await else { panic!("no hint") };
    let state = device.get(&world.fleet, "/device/v1/state", None).await;
    assert_eq!(state.headers[header::ETAG], format!("\"{etag}\"").as_str());
    line.silence().await;
    let (_second, welcome) = world.open(&device).await;
    assert_eq!(welcome.etag, Some(etag), "a welcome says it, too");
}

#[tokio::test]
async fn a_new_root_is_told_at_once_though_nothing_is_assigned() {
    let mut world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, welcome) = world.open(&device).await;
    assert_eq!(welcome.root, Some(world.fleet.root.version));
    world.fleet.new_root(|_| {}).await;
    let CloudFrame::Hint { etag, root } = line.next().await else { panic!("no hint") };
    assert_eq!((etag, root), (None, Some(world.fleet.root.version)));
    line.silence().await;
}

#[tokio::test]
async fn a_newer_channel_replaces_the_older_whose_end_changes_nothing() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut old, first) = world.open(&device).await;
    let (mut new, second) = world.open(&device).await;
    assert!(second.epoch > first.epoch);
    assert_eq!(old.bye().await, "replaced");
    drop(old);
    new.silence().await;
    assert!(world.is_open(&device));
    let entry = world.fleet.cloud.app.devices.get(device.id).unwrap();
    assert!(entry.is_online(app::now() + u64::from(second.ping_s)), "by its lease, though no poll came");
    new.0.close(None).await.unwrap();
    world.until_closed(&device).await;
    assert!(!entry.is_online(app::now() + u64::from(second.ping_s)));
}

#[tokio::test]
async fn a_revoked_device_is_cut_off_and_so_is_one_that_was_cloned() {
    let world = World::new().await;
    let (revoked, cloned) = (world.fleet.device(1).await, world.fleet.device(2).await);
    let (mut first, _) = world.open(&revoked).await;
    let (mut second, _) = world.open(&cloned).await;
    world.fleet.ok("POST", &format!("/api/v1/devices/{}/revoke", revoked.id), None).await;
    assert_eq!(first.bye().await, "device_revoked");
    assert_eq!(world.fleet.shown(&revoked).await["online"], false);
    let (status, problem) = world.dial(&revoked).await.err().unwrap();
    assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &"device_revoked".into()));
    second.silence().await;
    world.fleet.cloud.app.devices.cut(cloned.id);
    assert_eq!(second.bye().await, "token_invalid");
}

#[tokio::test]
async fn a_channel_ends_with_its_fleet_though_its_session_ran_out() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    world.fleet.ok("DELETE", "/api/v1/fleets/porch?force=true", None).await;
    assert_eq!(line.bye().await, "device_revoked");
}

#[tokio::test]
async fn who_does_not_say_hello_is_cut_off_and_pings_buy_no_time() {
    let world = World::new().await;
    world.timing(|t| t.hello = Duration::from_millis(200));
    let device = world.fleet.device(1).await;
    let mut silent = world.dial(&device).await.unwrap();
    assert_eq!(silent.bye().await, "protocol");
    let mut pinging = world.dial(&device).await.unwrap();
    pinging.silence().await;
    pinging.text(r#"{"t":"of a later version"}"#).await;
    assert_eq!(pinging.bye().await, "protocol");
    let mut acting = world.dial(&device).await.unwrap();
    acting.text(r#"{"t":"credit","stream":1,"bytes":1}"#).await;
    assert_eq!(acting.bye().await, "protocol");
    assert!(!world.is_open(&device));
}

#[tokio::test]
async fn a_malformed_frame_ends_the_channel_and_an_unknown_one_does_not() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    for known_later in [r#"{"t":"sing","song":[1]}"#, r#"{"t":"opened","stream":1}"#] {
        line.text(known_later).await;
    }
    line.0.send(Message::binary(b"\0\0\0\x01data".as_slice())).await.unwrap();
    line.silence().await;
    let large = format!(r#"{{"t":"sing","song":"{}"}}"#, "a".repeat(channel::MAX_MESSAGE));
    let hello = channel::write(&DeviceFrame::Hello(hello())).unwrap();
    for bad in
        ["{}", "not json", r#"{"t":"ack"}"#, r#"{"t":"credit","stream":1,"bytes":1.5}"#, &large, &hello]
    {
        let (mut line, _) = world.open(&device).await;
        line.text(bad).await;
        assert_eq!(line.bye().await, "protocol", "{bad:.40}");
    }
}

#[tokio::test]
async fn only_devices_with_a_session_and_the_right_words_open_one() {
    let world = World::new().await;
    let mut device = world.fleet.device(1).await;
    let dial = async |device: &Device, protocol: &str| {
        let tcp = TcpStream::connect(world.address).await.unwrap();
        let (status, problem) = world.dial_with(device, tcp, protocol).await.err().unwrap();
        (status.as_u16(), problem["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(dial(&device, "chat").await, (400, "subprotocol_unknown".to_owned()));
    let plain = device.get(&world.fleet, "/device/v1/channel", None).await;
    assert_eq!((plain.status, plain.code()), (StatusCode::BAD_REQUEST, "upgrade_missing".to_owned()));
    device.session = "x".to_owned();
    assert_eq!(dial(&device, SUBPROTOCOL).await, (401, "token_invalid".to_owned()));
}

#[tokio::test]
async fn there_are_only_so_many_channels_and_a_refused_device_is_told_when_to_come_again() {
    let world = World::new().await;
    let (one, two) = (world.fleet.device(1).await, world.fleet.device(2).await);
    world.fleet.cloud.app.channels.allow(1, 1);
    let (mut line, _) = world.open(&one).await;
    let (status, problem) = world.dial(&two).await.err().unwrap();
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"channels_full".into()));
    let poll = two.get(&world.fleet, "/device/v1/state", None).await;
    assert_eq!(poll.status, StatusCode::NO_CONTENT, "who has no channel polls");
    line.0.close(None).await.unwrap();
    within(async { while world.dial(&two).await.is_err() {} }).await;

    world.fleet.cloud.app.channels.allow(100, 1);
    let _greeting = [world.dial(&one).await.unwrap(), world.dial(&one).await.unwrap()];
    let (_, problem) = world.dial(&one).await.err().unwrap();
    assert_eq!(problem["code"], "channels_full", "one device does not take the places of all");
}

#[tokio::test]
async fn a_device_that_falls_silent_is_away_when_its_lease_is_over() {
    let world = World::new().await;
    world.timing(|t| t.ping = Duration::from_millis(100));
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        line.silence().await;
    }
    assert!(world.is_open(&device));
    world.until_closed(&device).await;
    line.closed().await;
}

#[tokio::test]
async fn a_device_that_does_not_read_is_cut_off() {
    let socket = small(TcpSocket::new_v4().unwrap());
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let world = World::on(socket.listen(16).unwrap()).await;
    world.timing(|t| t.write = Duration::from_millis(300));
    let device = world.fleet.device(1).await;
    for _ in 0..60 {
        world.ask(&device, serde_json::json!({"verb": "reboot", "delivery": "store", "ttl_s": 60})).await;
    }
    let tcp = small(TcpSocket::new_v4().unwrap()).connect(world.address).await.unwrap();
    let mut line = world.dial_with(&device, tcp, SUBPROTOCOL).await.unwrap();
    line.say(&DeviceFrame::Hello(hello())).await;
    within(async {
        while !world.is_open(&device) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    world.until_closed(&device).await;
}

#[tokio::test]
async fn when_the_cloud_stops_devices_are_told_to_come_back() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let mut greeting = world.dial(&device).await.unwrap();
    world.fleet.cloud.app.stopping.cancel();
    assert_eq!(line.bye().await, "restarting");
    assert_eq!(greeting.bye().await, "restarting");
    within(world.fleet.cloud.app.channels.farewell()).await;
    within(world.listener).await.unwrap();
}

#[tokio::test]
async fn a_report_on_the_channel_is_taken_as_by_its_route() {
    let world = World::new().await;
    world.fleet.release(false).await;
    let mut device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let envelope =
        device.signed_report(&world.fleet, |report| report.agent_version = "9.9.9".to_owned()).await;
    line.say(&DeviceFrame::Report { envelope: envelope.clone() }).await;
    line.silence().await;
    assert_eq!(world.fleet.shown(&device).await["agent_version"], "9.9.9");
    line.say(&DeviceFrame::Report { envelope }).await;
    line.silence().await;
}

#[tokio::test]
async fn a_channel_holds_its_place_among_the_connections_there_may_be() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::holding(TcpListener::bind("127.0.0.1:0").await.unwrap(), 1).await;
    let device = world.fleet.device(1).await;
    let ask = async || {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let _ = tcp.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        let _ = tcp.read_to_string(&mut answer).await;
        answer
    };
    let (mut line, _) = world.open(&device).await;
    assert_eq!(ask().await, "", "one file is open, and one may be");
    line.silence().await;
    line.0.close(None).await.unwrap();
    world.until_closed(&device).await;
    within(async { while !ask().await.starts_with("HTTP/1.1 200") {} }).await;
}

#[tokio::test]
async fn channels_are_counted() {
    let world = World::new().await;
    let (one, two) = (world.fleet.device(1).await, world.fleet.device(2).await);
    let (_line, _) = world.open(&one).await;
    two.post(&world.fleet, "/device/v1/exchange", br#"{"frames":[]}"#.to_vec()).await;
    assert_eq!(world.fleet.cloud.app.channels.count(), (1, 1));
    let metrics = world.fleet.call("GET", "/metrics", None).await;
    assert!(String::from_utf8(metrics.bytes).unwrap().contains(r#"copal_channels{by="websocket"}"#));
}
