//! Accepts connections and speaks HTTP/1.1 on them, within bounds: on how many there are, how long a handshake and a
//! request head may take, and which of them go first when there are too many.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::tls::Terminator;

/// How long a request head may take, from the first byte or from the end of the request before.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests may still take once the server stops.
const FAREWELL: Duration = Duration::from_secs(10);
/// Files the rest of the process needs: database, blobs, git, builds.
const SPARE_FILES: u64 = 256;
/// The most connections, whatever the system would allow.
const MOST: u64 = 200_000;

/// Connections that have not yet sent a whole request head, oldest first. When there is no room for another, the
/// oldest of these goes: a peer that is slow on purpose must not keep others out.
#[derive(Debug, Default)]
struct Silent {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, CancellationToken>>,
}

impl Silent {
    fn enter(&self) -> (u64, CancellationToken) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let token = CancellationToken::new();
        self.lock().insert(id, token.clone());
        (id, token)
    }

    fn leave(&self, id: u64) {
        self.lock().remove(&id);
    }

    fn evict(&self) -> bool {
        let oldest = self.lock().pop_first();
        oldest.inspect(|(_, token)| token.cancel()).is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Serves until `stopping`, then lets what runs finish.
pub(super) async fn run(
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
            let (id, evicted) = silent.enter();
            tokio::select! {
                () = connection(tcp, peer, terminator, router, (&silent, id), stopping) => {}
                () = evicted.cancelled() => {}
                () = abort.cancelled() => {}
            }
            silent.leave(id);
            drop(permit);
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
    silent: (&Arc<Silent>, u64),
    stopping: CancellationToken,
) {
    let _ = tcp.set_nodelay(true);
    match terminator {
        None => http(tcp, peer, router, silent, stopping).await,
        Some(terminator) => match terminator.accept(tcp).await {
            Ok(Some(tls)) => http(tls, peer, router, silent, stopping).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%peer, %error, "handshake"),
        },
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    (silent, id): (&Arc<Silent>, u64),
    stopping: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        silent.leave(id);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
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
