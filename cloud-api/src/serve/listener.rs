//! Accepts connections and speaks HTTP/1.1 on them, within bounds: on how many there are, how long a handshake and a
//! request head may take, and which of them go first when there are too many.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::tls::Terminator;

/// How long a request head may take, from the first byte or from the end of the request before.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests may still take once the server stops.
const FAREWELL: Duration = Duration::from_secs(10);
/// What was sent and not acknowledged by then ends the connection: nobody is there any more, or nobody reads.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Files the rest of the process needs: database, blobs, git, builds.
const SPARE_FILES: u64 = 256;
/// The most connections, whatever the system would allow.
const MOST: u64 = 200_000;

/// Connections with no request in hand: before their first, and between two. When there is no room for another, the one
/// that has been silent longest goes: a peer that is slow on purpose must not keep others out.
#[derive(Debug, Default)]
struct Silent {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, CancellationToken>>,
}

impl Silent {
    fn evict(&self) -> bool {
        let oldest = self.lock().pop_first();
        oldest.inspect(|(_, token)| token.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place among the others.
#[derive(Debug)]
struct Seat {
    silent: Arc<Silent>,
    /// Where it stands in [`Silent`]; 0 while a request is in hand.
    place: AtomicU64,
    evicted: CancellationToken,
}

impl Seat {
    fn take(silent: &Arc<Silent>) -> Arc<Self> {
        let seat =
            Self { silent: silent.clone(), place: AtomicU64::new(0), evicted: CancellationToken::new() };
        seat.silent();
        Arc::new(seat)
    }

    fn silent(&self) {
        let place = self.silent.next.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.place.swap(place, Ordering::Relaxed);
        let mut waiting = self.silent.lock();
        waiting.remove(&before);
        waiting.insert(place, self.evicted.clone());
    }

    fn busy(&self) {
        let place = self.place.swap(0, Ordering::Relaxed);
        self.silent.lock().remove(&place);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.busy();
    }
}

/// A response body; once it is sent (or dropped) its connection is silent again.
struct Tracked {
    body: Body,
    seat: Arc<Seat>,
}

impl hyper::body::Body for Tracked {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.seat.silent();
    }
}

/// How many connections the limit on open files leaves room for, after raising it as far as we may.
pub(super) fn capacity() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let mut files = 1024;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        files = soft;
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
            files = hard;
        }
    }
    let room = files.saturating_sub(SPARE_FILES).clamp(64, MOST);
    usize::try_from(room).unwrap_or(64)
}

/// A connection's place among those there may be. A request carries it, so that a channel that outlives its request goes
/// on holding it: it is a file that is open.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Serves until `stopping`, then lets what runs finish.
pub(crate) async fn run(
    listener: TcpListener,
    terminator: Option<Terminator>,
    router: Router,
    stopping: CancellationToken,
    capacity: usize,
) {
    let room = Arc::new(Semaphore::new(capacity));
    let silent = Arc::new(Silent::default());
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let (tcp, peer) = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, most likely: someone else in the process took them. Do not spin.
                    tracing::warn!(%error, "accepting a connection");
                    silent.evict();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let permit = match room.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if silent.evict() => match room.clone().acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => break,
            },
            // Everyone here is at work: this one must come again.
            Err(_) => continue,
        };
        let (terminator, router, silent, stopping, abort) =
            (terminator.clone(), router.clone(), silent.clone(), stopping.clone(), abort.clone());
        tasks.spawn(async move {
            let seat = Seat::take(&silent);
            let admission = Admission { _permit: Arc::new(permit) };
            tokio::select! {
                () = connection(tcp, peer, terminator, router, seat.clone(), admission, stopping) => {}
                () = seat.evicted.cancelled() => {}
                () = abort.cancelled() => {}
            }
            seat.busy();
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(FAREWELL, tasks.wait()).await.is_err() {
        tracing::warn!("{} connections did not finish in {} s and are cut", tasks.len(), FAREWELL.as_secs());
        abort.cancel();
        tasks.wait().await;
    }
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    terminator: Option<Terminator>,
    router: Router,
    seat: Arc<Seat>,
    admission: Admission,
    stopping: CancellationToken,
) {
    let _ = tcp.set_nodelay(true);
    let patience = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    let _ = setsockopt(&tcp, TcpUserTimeout, &patience);
    // Each phase has room of its own, and gives it back at its end.
    match terminator {
        None => Box::pin(http(tcp, peer, router, seat, admission, stopping)).await,
        Some(terminator) => match Box::pin(terminator.accept(tcp)).await {
            Ok(Some(tls)) => Box::pin(http(tls, peer, router, seat, admission, stopping)).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%peer, %error, "handshake"),
        },
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    seat: Arc<Seat>,
    admission: Admission,
    stopping: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        seat.busy();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(admission.clone());
        let (router, seat) = (router.clone(), seat.clone());
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, Infallible>(response.map(|body| Tracked { body, seat }))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopping.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection");
    }
}
