//! Streams over a real socket.

use copal_agent::channel::streams::{End, Input, Source, StreamIo};
use copal_protocol::{channel::Credit, flow};

use super::*;

/// Says back whatever it is told.
struct Echo;

impl Source for Echo {
    fn run(&self, _: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        Box::pin(async move {
            while let Some(Input::Data(bytes)) = io.recv().await {
                if io.send(bytes).await.is_err() {
                    break;
                }
            }
            End::ended()
        })
    }
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_through_a_real_socket() {
    const ALL: usize = 10 << 20;
    let mut cloud = Cloud::start(Mode::Takes).await;
    let kinds = Kinds { logs: Some(Arc::new(Echo)), ..Kinds::default() };
    let agent = Agent::start_with(&cloud, pace(), kinds, None);
    let mut socket = cloud.socket().await;
    let text = |frame: &CloudFrame| Message::Text(copal_protocol::channel::write(frame).unwrap().into());
    let of = StreamOf::Logs(OpenLogs { follow: true, ..OpenLogs::default() });
    for frame in [welcome(None), CloudFrame::Open(Open { stream: 7, of })] {
        socket.send(text(&frame)).await.unwrap();
    }
    // As much again for a stream that is not open comes in between, so that both sides have their lines full.
    let byte = |n: usize| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8;
    let (mut credit, mut window) = (flow::Credit::default(), flow::Window::default());
    let (mut sent, mut back) = (0, 0);
    within("all of it came back", async {
        while back < ALL {
            // All that may be sent is sent before anything is read.
            while sent < ALL && !credit.is_spent() {
                let n = credit.spend((ALL - sent).min(50_000));
                let bytes: Vec<u8> = (sent..sent + n).map(byte).collect();
                socket.send(Message::Binary(copal_protocol::channel::data(7, &bytes).into())).await.unwrap();
                socket.send(Message::Binary(copal_protocol::channel::data(8, &bytes).into())).await.unwrap();
                sent += n;
            }
            match socket.recv().await.unwrap().unwrap() {
                Message::Binary(message) => {
                    let (stream, bytes) = copal_protocol::channel::parse_data(&message).unwrap();
                    assert_eq!(stream, 7);
                    assert!(bytes.iter().enumerate().all(|(at, b)| *b == byte(back + at)), "in its order");
                    window.came(bytes.len()).unwrap();
                    back += bytes.len();
                    if let Some(bytes) = window.read(bytes.len()) {
                        socket.send(text(&CloudFrame::Credit(Credit { stream: 7, bytes }))).await.unwrap();
                    }
                }
                Message::Text(said) => match copal_protocol::channel::read(said.as_bytes()).unwrap() {
                    Some(DeviceFrame::Hello(hello)) => assert_eq!(hello.features[0], "logs"),
                    Some(DeviceFrame::Credit(more)) => credit.add(more.bytes),
                    Some(DeviceFrame::Closed(closed)) => panic!("{closed:?}"),
                    _ => {}
                },
                _ => {}
            }
        }
    })
    .await;
    assert!(agent.running.nudges.borrow().up, "on one channel");
}
