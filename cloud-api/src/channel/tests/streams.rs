//! Streams over real sockets: credit, ends, and what a reader that stops costs.

use bytes::Bytes;
use copal_protocol::{
    channel::{Closed, Credit, FIRST_CREDIT, MAX_STREAMS, OpenLogs, StreamOf},
    flow,
};

use super::{
    super::{Came, CloudStream, StreamError},
    *,
};

fn logs() -> StreamOf {
    StreamOf::Logs(OpenLogs { tail: 10, follow: true, ..OpenLogs::default() })
}

/// A device with logs, and its channel.
pub(super) async fn with_logs(world: &World, serial: u8) -> (Device, Line) {
    let device = world.fleet.device(serial).await;
    let mut line = world.dial(&device).await.unwrap();
    line.say(&DeviceFrame::Hello(Hello { features: vec!["logs".to_owned()], ..hello() })).await;
    let CloudFrame::Welcome(_) = line.next().await else { panic!("no welcome") };
    (device, line)
}

/// A stream, opened by both.
async fn opened(world: &World, device: &Device, line: &mut Line) -> (CloudStream, u32) {
    let memory = world.fleet.cloud.app.channels.clone();
    let id = device.id;
    let opening = tokio::spawn(async move { memory.open_stream(id, logs(), "").await });
    let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
    assert_eq!(open.of, logs());
    line.say(&DeviceFrame::Opened { stream: open.stream }).await;
    (opening.await.unwrap().unwrap(), open.stream)
}

impl Line {
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.0.send(Message::binary(channel::data(stream, bytes))).await.unwrap();
    }

    /// The next message, pings aside.
    async fn any(&mut self) -> Message {
        within(async {
            loop {
                match self.0.next().await.unwrap().unwrap() {
                    Message::Pong(_) => {}
                    message => return message,
                }
            }
        })
        .await
    }
}

async fn came(stream: &CloudStream) -> Came {
    within(stream.recv()).await
}

fn is_end(came: Came, code: &str) -> bool {
    matches!(came, Came::Closed(closed) if closed.code == code)
}

#[tokio::test]
async fn a_device_that_is_away_or_has_no_logs_or_too_many_streams_is_told_of() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let memory = world.fleet.cloud.app.channels.clone();
    assert_eq!(memory.open_stream(device.id, logs(), "").await.unwrap_err(), StreamError::DeviceAway);
    let (_plain, _) = world.open(&device).await;
    let error = memory.open_stream(device.id, logs(), "").await.unwrap_err();
    assert_eq!(error, StreamError::NotSupported, "its hello said nothing of logs");

    let (second, mut line) = with_logs(&world, 2).await;
    let mut streams = Vec::new();
    // Two of a device's are for those who act.
    for _ in 0..MAX_STREAMS - 2 {
        streams.push(opened(&world, &second, &mut line).await);
    }
    assert_eq!(memory.open_stream(second.id, logs(), "").await.unwrap_err(), StreamError::TooMany);
    let (closing, number) = streams.pop().unwrap();
    closing.close("ended", "");
    let CloudFrame::Closed(closed) = line.next().await else { panic!("not closed") };
    assert_eq!((closed.stream, closed.code.as_str()), (number, "ended"));
    opened(&world, &second, &mut line).await;
}

#[tokio::test]
async fn a_refusal_is_handed_on_and_an_end_comes_after_what_was_said() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let memory = world.fleet.cloud.app.channels.clone();
    let id = device.id;
    let opening = tokio::spawn(async move { memory.open_stream(id, logs(), "").await });
    let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
    line.say(&DeviceFrame::Closed(Closed::new(open.stream, "service_unknown", "no such thing"))).await;
    let StreamError::Refused(closed) = opening.await.unwrap().unwrap_err() else { panic!("no refusal") };
    assert_eq!(closed.code, "service_unknown");

    let (stream, number) = opened(&world, &device, &mut line).await;
    line.data(number, b"\x00\xffbinary").await;
    line.data(number, b"").await;
    line.data(number + 77, b"of a stream that just ended").await;
    line.say(&DeviceFrame::Closed(Closed::new(number, "ended", ""))).await;
    assert_eq!(came(&stream).await, Came::Data(Bytes::from_static(b"\x00\xffbinary")));
    assert!(is_end(came(&stream).await, "ended"));
    assert!(is_end(came(&stream).await, "ended"), "for ever");
    assert_eq!(stream.send(b"late").await, Err(super::super::streams::Gone));
    drop(stream);
    line.silence().await;
}

#[tokio::test]
async fn a_reader_that_stops_costs_its_credit_and_a_device_that_goes_past_it_its_channel() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (stream, number) = opened(&world, &device, &mut line).await;
    let half = vec![1; FIRST_CREDIT as usize / 2];
    line.data(number, &half).await;
    line.data(number, &half).await;
    line.silence().await;
    let Came::Data(all) = came(&stream).await else { panic!("no data") };
    assert_eq!(all.len(), FIRST_CREDIT as usize);
    line.silence().await;
    // Only asking for more shows that it was taken.
    let asks = tokio::spawn(async move {
        let more = came(&stream).await;
        (stream, more)
    });
    let credit = line.next().await;
    assert_eq!(credit, CloudFrame::Credit(Credit { stream: number, bytes: FIRST_CREDIT }));
    line.data(number, b"more").await;
    let (stream, more) = asks.await.unwrap();
    assert_eq!(more, Came::Data(Bytes::from_static(b"more")));
    line.data(number, &half).await;
    line.data(number, &half).await;
    assert_eq!(line.bye().await, "protocol");
    let Came::Data(_) = came(&stream).await else { panic!("no data") };
    assert!(is_end(came(&stream).await, "device_away"));
}

#[tokio::test]
async fn streams_end_with_their_channel_and_with_who_holds_them() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (stream, number) = opened(&world, &device, &mut line).await;
    drop(stream);
    let CloudFrame::Closed(closed) = line.next().await else { panic!("not closed") };
    assert_eq!(closed.stream, number);
    let turn = world.fleet.cloud.app.channels.turn(device.id).unwrap();
    assert_eq!(turn.streams.count(), 0);
    let (stream, _) = opened(&world, &device, &mut line).await;
    // A newer channel of the device ends the older, and what was on it.
    let (_newer, _) = world.open(&device).await;
    assert_eq!(line.bye().await, "replaced");
    assert!(is_end(came(&stream).await, "device_away"));
    drop(stream);
    assert_eq!(world.fleet.cloud.app.channels.streams.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_terminal_s_way_waits_for_the_device_s_credit_and_tells_the_newest_size() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (stream, number) = opened(&world, &device, &mut line).await;
    let all: Vec<u8> = (0..3 * FIRST_CREDIT).map(|n| (n / 7) as u8).collect();
    let sends = tokio::spawn({
        let all = all.clone();
        async move {
            stream.send(&all).await.unwrap();
            stream
        }
    });
    let (mut got, mut window) = (Vec::new(), flow::Window::default());
    while got.len() < all.len() {
        let Message::Binary(message) = line.any().await else { panic!("no data") };
        let (of, bytes) = channel::parse_data(&message).unwrap();
        assert_eq!(of, number);
        window.came(bytes.len()).unwrap();
        got.extend_from_slice(bytes);
        if let Some(bytes) = window.read(bytes.len()) {
            line.say(&DeviceFrame::Credit(Credit { stream: number, bytes })).await;
        }
    }
    assert_eq!(got, all);
    let stream = sends.await.unwrap();
    for n in 0..100 {
        stream.resize(n, n);
    }
    let CloudFrame::Resize { mut cols, .. } = line.next().await else { panic!("no size") };
    // The first may have been on its way already.
    if cols != 99 {
        let CloudFrame::Resize { cols: last, .. } = line.next().await else { panic!("no size") };
        cols = last;
    }
    assert_eq!(cols, 99);
}

#[tokio::test]
async fn ten_megabytes_pass_to_a_reader_that_dawdles() {
    const ALL: usize = 10 << 20;
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (stream, number) = opened(&world, &device, &mut line).await;
    let reads = tokio::spawn(async move {
        let mut all = Vec::new();
        let mut dawdle = 0_u32;
        loop {
            match came(&stream).await {
                Came::Data(bytes) => all.extend_from_slice(&bytes),
                Came::Closed(closed) => return (all, closed.code),
            }
            dawdle = dawdle.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            if dawdle >> 29 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let said: Vec<u8> = (0..ALL).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let (mut at, mut credit) = (0, flow::Credit::default());
    while at < ALL {
        let n = credit.spend((ALL - at).min(16 << 10));
        line.data(number, &said[at..at + n]).await;
        at += n;
        if credit.is_spent() {
            let CloudFrame::Credit(more) = line.next().await else { panic!("no credit") };
            credit.add(more.bytes);
        }
    }
    line.say(&DeviceFrame::Closed(Closed::new(number, "ended", ""))).await;
    let (all, code) = reads.await.unwrap();
    assert_eq!(code, "ended");
    assert!(all == said, "every byte once, in its order");
}

#[tokio::test]
async fn who_looks_takes_neither_all_streams_of_a_device_nor_those_of_who_acts() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let mut line = world.dial(&device).await.unwrap();
    let features = ["logs", "bundle"].map(ToOwned::to_owned).to_vec();
    line.say(&DeviceFrame::Hello(Hello { features, ..hello() })).await;
    let CloudFrame::Welcome(_) = line.next().await else { panic!("no welcome") };
    let memory = world.fleet.cloud.app.channels.clone();
    let mut held = Vec::new();
    let opens = [("vera", 3), ("viktor", 3), ("olga", 0)];
    for (who, most) in opens {
        for _ in 0..most {
            let (memory, id) = (memory.clone(), device.id);
            let opening = tokio::spawn(async move { memory.open_stream(id, logs(), who).await });
            let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
            line.say(&DeviceFrame::Opened { stream: open.stream }).await;
            held.push(opening.await.unwrap().unwrap());
        }
        let refused = memory.open_stream(device.id, logs(), who).await.unwrap_err();
        assert_eq!(
            refused,
            if most > 0 && held.len() < 6 { StreamError::TooManyOfOne } else { StreamError::TooMany }
        );
    }
    let (bundle, id) = (memory.clone(), device.id);
    let opening = tokio::spawn(async move { bundle.open_stream(id, StreamOf::Bundle {}, "olga").await });
    let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
    line.say(&DeviceFrame::Opened { stream: open.stream }).await;
    opening.await.unwrap().unwrap();
}
