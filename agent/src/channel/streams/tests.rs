//! Streams without a socket: a source on one side, the frames on the other.

use copal_protocol::{
    channel::{FIRST_CREDIT, OpenLogs, OpenTerminal},
    flow::Window,
    ids::{CommandId, SessionId},
};
use futures_util::FutureExt as _;

use super::*;

/// A source made of a function.
struct By<F>(F);

impl<F, R> Source for By<F>
where
    F: Fn(StreamIo) -> R + Send + Sync,
    R: Future<Output = End> + Send + 'static,
{
    fn run(&self, _: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        self.0(io).boxed()
    }
}

fn streams<R: Future<Output = End> + Send + 'static>(
    source: impl Fn(StreamIo) -> R + Send + Sync + 'static,
) -> Streams {
    Streams::new(Kinds { logs: Some(Arc::new(By(source))), ..Kinds::default() })
}

fn logs(stream: u32) -> Open {
    Open { stream, of: StreamOf::Logs(OpenLogs { follow: true, ..OpenLogs::default() }) }
}

fn terminal(stream: u32, target: TerminalTarget) -> Open {
    let of = StreamOf::Terminal(OpenTerminal {
        session_id: SessionId::from_bytes([7; 16]),
        target,
        cols: 80,
        rows: 24,
        who: "anna".to_owned(),
        reason: "it is slow".to_owned(),
        max_s: 60,
        idle_s: 60,
        max_bytes: 1 << 20,
        mode: None,
    });
    Open { stream, of }
}

fn end(code: &str, stream: u32, frame: &DeviceFrame) -> bool {
    matches!(frame, DeviceFrame::Closed(closed) if closed.code == code && closed.stream == stream)
}

async fn said(streams: &mut Streams) -> Say {
    tokio::time::timeout(Duration::from_secs(30), streams.next()).await.expect("something is said")
}

async fn frame(streams: &mut Streams) -> DeviceFrame {
    match said(streams).await {
        Say::Frame(frame) => frame,
        Say::Data { .. } => panic!("data"),
    }
}

/// All that is said until nothing more comes.
async fn until_quiet(streams: &mut Streams) -> Vec<Say> {
    let mut said = Vec::new();
    while let Ok(say) = tokio::time::timeout(Duration::from_millis(50), streams.next()).await {
        said.push(match say {
            Say::Data { stream, bytes, .. } => {
                let room = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
                Say::Data { stream, bytes, room }
            }
            frame @ Say::Frame(_) => frame,
        });
    }
    said
}

fn bytes_of(said: &[Say]) -> usize {
    said.iter().map(|say| if let Say::Data { bytes, .. } = say { bytes.len() } else { 0 }).sum()
}

/// Bytes that tell their place.
fn pattern(from: u64, n: usize) -> Vec<u8> {
    (from..from + n as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[tokio::test]
async fn a_reader_that_stops_costs_its_credit_and_no_more() {
    let mut streams = streams(|io| async move {
        while io.send(Bytes::from(vec![7; 5000])).await.is_ok() {}
        End::ended()
    });
    assert_eq!(streams.open(logs(1)), None);
    assert_eq!(frame(&mut streams).await, DeviceFrame::Opened { stream: 1 });
    let before = until_quiet(&mut streams).await;
    assert_eq!(bytes_of(&before), FIRST_CREDIT as usize);
    streams.credit(Credit { stream: 1, bytes: 300 });
    assert_eq!(bytes_of(&until_quiet(&mut streams).await), 300);
    streams.credit(Credit { stream: 2, bytes: 300 });
    assert_eq!(bytes_of(&until_quiet(&mut streams).await), 0, "credit of another stream");
}

#[tokio::test]
async fn a_stream_that_waits_for_credit_holds_no_other_up() {
    let mut streams = streams(|io| async move {
        let _ = io.send(Bytes::from(vec![7; 200_000])).await;
        End::ended()
    });
    for stream in 0..MAX_STREAMS as u32 {
        streams.open(logs(stream));
    }
    let all = until_quiet(&mut streams).await;
    assert_eq!(bytes_of(&all), MAX_STREAMS * FIRST_CREDIT as usize);
    streams.credit(Credit { stream: 3, bytes: 200_000 });
    let rest = until_quiet(&mut streams).await;
    assert_eq!(bytes_of(&rest), 200_000 - FIRST_CREDIT as usize);
    assert!(matches!(rest.last(), Some(Say::Frame(frame)) if end("ended", 3, frame)), "its end comes last");
}

#[tokio::test]
async fn a_terminal_goes_before_logs_and_recordings_which_still_have_their_turn() {
    let floods = |io: StreamIo| async move {
        while io.send(Bytes::from(vec![7; io::PIECE])).await.is_ok() {}
        End::ended()
    };
    let source: Arc<dyn Source> = Arc::new(By(floods));
    let kinds = Kinds { logs: Some(source.clone()), terminal: Some(source), ..Kinds::default() };
    let mut streams = Streams::new(kinds);
    streams.open(logs(1));
    streams.open(terminal(2, TerminalTarget::Recording(SessionId::from_bytes([9; 16]))));
    streams.open(terminal(3, TerminalTarget::Host));
    for stream in 1..=3 {
        streams.credit(Credit { stream, bytes: 8 << 20 });
    }
    let mut order = Vec::new();
    while order.len() < 12 * (FAIR as usize + 1) {
        // All of them have something to say whenever one may.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        match said(&mut streams).await {
            Say::Data { stream, .. } | Say::Frame(DeviceFrame::Opened { stream }) => order.push(stream),
            Say::Frame(frame) => panic!("{frame:?}"),
        }
    }
    let turns: Vec<&[u32]> = order.split(|stream| *stream != 3).collect();
    assert!(turns.iter().all(|turn| turn.len() <= FAIR as usize), "nobody waits for ever: {order:?}");
    let whole = turns.iter().filter(|turn| turn.len() == FAIR as usize).count();
    assert!(whole >= turns.len() - 2, "and the terminal waits for one message at most: {order:?}");
    assert!(order.contains(&1) && order.contains(&2), "{order:?}");
}

#[tokio::test]
async fn what_is_not_known_or_too_many_is_refused() {
    let mut streams = streams(|io| async move {
        io.gone().await;
        End::ended()
    });
    let open = Open { stream: 9, of: StreamOf::Unknown };
    assert!(end("not_supported", 9, &streams.open(open).unwrap()));
    assert!(end("not_supported", 1, &Streams::new(Kinds::default()).open(logs(1)).unwrap()));
    for stream in 0..MAX_STREAMS as u32 {
        assert_eq!(streams.open(logs(stream)), None);
    }
    assert!(end("too_many_streams", 100, &streams.open(logs(100)).unwrap()));
    streams.closed(0);
    assert_eq!(streams.open(logs(101)), None);
    assert_eq!(streams.data(77, b"of no stream"), None);
    assert_eq!(streams.open(logs(101)), None, "a number that is in use opens nothing");
    assert!(until_quiet(&mut streams).await.is_empty(), "refused before anything was opened, or silent");
}

#[tokio::test]
async fn a_source_may_refuse_before_it_opens_and_its_panic_is_told() {
    let mut streams = streams(|io| async move {
        match io.recv().await {
            Some(Input::Data(bytes)) if bytes == "panic" => panic!("as asked"),
            _ => End::because("service_unknown", "x".repeat(5000)),
        }
    });
    streams.open(logs(1));
    streams.open(logs(2));
    for _ in 0..2 {
        assert!(matches!(frame(&mut streams).await, DeviceFrame::Opened { .. }));
    }
    assert_eq!(streams.data(1, b"panic"), None);
    assert!(end("failed", 1, &frame(&mut streams).await));
    streams.data(2, b"go");
    let DeviceFrame::Closed(closed) = frame(&mut streams).await else { panic!("no end") };
    assert_eq!((closed.code.as_str(), closed.message.len()), ("service_unknown", 2000));
    assert!(streams.open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_the_cloud_s_word_and_with_the_channel() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let mut streams = streams(move |io| {
        let told = told.clone();
        async move {
            assert_eq!(io.recv().await, None);
            assert_eq!(io.send(Bytes::from_static(b"late")).await, Err(Gone));
            told.send(()).unwrap();
            // One that never ends by itself is cut off.
            std::future::pending().await
        }
    });
    streams.open(logs(1));
    streams.open(logs(2));
    for _ in 0..2 {
        frame(&mut streams).await;
    }
    streams.closed(1);
    tells.recv().await.unwrap();
    let sources = streams.sources.clone();
    assert_eq!(sources.load(Relaxed), 2);
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(sources.load(Relaxed), 1);
    assert!(streams.next().now_or_never().is_none(), "of what the cloud closed nothing is said");
    drop(streams);
    tells.recv().await.unwrap();
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(sources.load(Relaxed), 0);
}

#[tokio::test]
async fn a_window_s_newest_size_is_told_once_and_in_its_place() {
    let mut streams = streams(|io| async move {
        io.opened();
        tokio::task::yield_now().await;
        assert_eq!(io.recv().await, Some(Input::Data(Bytes::from_static(b"ab"))));
        assert_eq!(io.recv().await, Some(Input::Resize { cols: 9, rows: 8 }));
        assert_eq!(io.recv().await, Some(Input::Data(Bytes::from_static(b"c"))));
        End::because("so", CommandId::from_bytes([0; 16]).to_string())
    });
    streams.open(logs(1));
    for n in 0..1000 {
        streams.resize(1, n, n);
    }
    streams.data(1, b"a");
    streams.data(1, b"");
    streams.data(1, b"b");
    streams.resize(1, 9, 8);
    streams.data(1, b"c");
    frame(&mut streams).await;
    assert!(end("so", 1, &frame(&mut streams).await));
}

#[tokio::test]
async fn a_cloud_that_sends_without_credit_loses_the_stream() {
    let mut streams = streams(|io| async move {
        io.gone().await;
        End::ended()
    });
    streams.open(logs(1));
    for _ in 0..FIRST_CREDIT / 1024 {
        assert_eq!(streams.data(1, &[0; 1024]), None);
    }
    assert!(end("credit_exceeded", 1, &streams.data(1, b"x").unwrap()));
    assert_eq!(streams.data(1, b"x"), None);
}

/// An echo, fed and read in pieces of any size with credit of any size: every byte comes back once, in its order.
#[tokio::test]
async fn no_byte_is_lost_or_repeated_whatever_the_credit() {
    const ALL: u64 = 3 << 20;
    for mut seed in 1..4_u64 {
        let mut streams = streams(|io| async move {
            let mut n = 0;
            while let Some(Input::Data(bytes)) = io.recv().await {
                n += bytes.len() as u64;
                let mut rest = bytes;
                while !rest.is_empty() {
                    // Waits are given up at any moment.
                    let _ = io.send_some(&mut rest).now_or_never();
                    if !rest.is_empty() && io.send_some(&mut rest).await.is_err() {
                        return End::because("gone", "");
                    }
                }
                if n == ALL {
                    return End::ended();
                }
            }
            End::because("gone", "")
        });
        streams.open(logs(1));
        assert_eq!(frame(&mut streams).await, DeviceFrame::Opened { stream: 1 });
        let (mut to_device, mut window) = (copal_protocol::flow::Credit::default(), Window::default());
        let (mut sent, mut back, mut held) = (0_u64, 0_u64, 0_usize);
        loop {
            let n = (random(&mut seed) % 40_000).min(ALL - sent) as usize;
            let n = to_device.spend(n);
            assert_eq!(streams.data(1, &pattern(sent, n)), None);
            sent += n as u64;
            // Read when the dice say so.
            if random(&mut seed).is_multiple_of(3)
                && let Some(bytes) = window.read(std::mem::take(&mut held))
            {
                streams.credit(Credit { stream: 1, bytes });
            }
            let wait = Duration::from_millis(if n == 0 { 5 } else { 0 });
            match tokio::time::timeout(wait, streams.next()).await {
                Ok(Say::Data { bytes, stream: 1, .. }) => {
                    window.came(bytes.len()).unwrap();
                    assert!(bytes.len() <= io::PIECE);
                    assert_eq!(bytes, pattern(back, bytes.len()));
                    back += bytes.len() as u64;
                    held += bytes.len();
                }
                Ok(Say::Frame(DeviceFrame::Credit(credit))) => to_device.add(credit.bytes),
                Ok(Say::Frame(frame)) => {
                    assert!(end("ended", 1, &frame), "{frame:?}");
                    break;
                }
                Ok(Say::Data { .. }) => panic!("of another stream"),
                Err(_) => {}
            }
        }
        assert_eq!((sent, back), (ALL, ALL));
    }
}
