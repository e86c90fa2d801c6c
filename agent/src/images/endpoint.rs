//! The registry on 127.0.0.1 that one pull uses: a random port, a password of its own, and nothing but what is planned.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use copal_protocol::ids::{Digest, Sha256Hex};
use http::{HeaderValue, Method, StatusCode, header};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};

use super::{
    layer::{Sink, bring},
    plan::{MANIFEST_TYPE, Plan, PlannedLayer},
};
use crate::{
    apply::ports::{ApplyError, ProgressSink},
    identity::Session,
};

/// The user name the engine shows; only the password tells.
pub(super) const USER: &str = "copal";

/// A running endpoint. Dropping it closes it.
pub(super) struct Endpoint {
    /// What the engine pulls.
    pub reference: String,
    /// Given to the engine for this pull alone.
    pub password: String,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    plan: Plan,
    /// The cloud's repository.
    source: String,
    session: Arc<Session>,
    /// SHA-256 of the whole Authorization header expected: compared by hash, so that timing tells nothing.
    expected: Sha256Hex,
    failure: Mutex<Option<ApplyError>>,
    failed: Notify,
    done: AtomicU64,
    total: u64,
    progress: ProgressSink,
    /// Layers being brought; aborted with the endpoint.
    layers: Mutex<tokio::task::JoinSet<()>>,
}

impl Endpoint {
    /// Opens an endpoint for this plan.
    ///
    /// # Errors
    /// Where no port or no randomness can be had.
    pub async fn open(
        plan: Plan,
        source: &str,
        session: Arc<Session>,
        progress: ProgressSink,
    ) -> Result<Self, ApplyError> {
        let failed = |e: &dyn std::fmt::Display| {
            ApplyError::new("image_failed", format!("the local endpoint for the pull cannot be opened: {e}"))
        };
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| failed(&e))?;
        let password = hex::encode(secret);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|e| failed(&e))?;
        let port = listener.local_addr().map_err(|e| failed(&e))?.port();
        let reference = format!("127.0.0.1:{port}/{}@{}", plan.repo, plan.manifest_digest);
        let header = format!("Basic {}", BASE64.encode(format!("{USER}:{password}")));
        let total = plan.layers.values().map(|l| l.layer.size).sum();
        let shared = Arc::new(Shared {
            plan,
            source: source.to_owned(),
            session,
            expected: Sha256Hex::of(header.as_bytes()),
            failure: Mutex::default(),
            failed: Notify::new(),
            done: AtomicU64::new(0),
            total,
            progress,
            layers: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::debug!(error = %e, "the local endpoint ended");
            }
        });
        Ok(Self { reference, password, shared, server })
    }

    /// Waits until a layer failed in a way that trying again within this pull cannot mend.
    pub async fn failure(&self) -> ApplyError {
        loop {
            let waiting = self.shared.failed.notified();
            if let Some(error) = self.take_failure() {
                return error;
            }
            waiting.await;
        }
    }

    /// What failed, if something did: more telling than what the engine makes of it.
    pub fn take_failure(&self) -> Option<ApplyError> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
        self.shared.layers.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    if Sha256Hex::of(shown) != shared.expected {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"copal\"")])
            .into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let head = request.method() == Method::HEAD;
    let path = request.uri().path();
    if path == "/v2/" || path == "/v2" {
        return StatusCode::OK.into_response();
    }
    let asked = path
        .strip_prefix("/v2/")
        .and_then(|p| p.strip_prefix(shared.plan.repo.as_str()))
        .and_then(|p| p.strip_prefix('/'))
        .and_then(|p| p.split_once('/'))
        .and_then(|(kind, digest)| Some((kind, digest.parse::<Digest>().ok()?)));
    match asked {
        Some(("manifests", d)) if d == shared.plan.manifest_digest => {
            whole(&shared.plan.manifest, d, MANIFEST_TYPE, head)
        }
        Some(("blobs", d)) if d == shared.plan.config_digest => {
            whole(&shared.plan.config, d, "application/octet-stream", head)
        }
        Some(("blobs", d)) => match shared.plan.layers.get(&d) {
            Some(layer) => stream(&shared, layer.clone(), range_start(request.headers()), head),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn whole(bytes: &[u8], digest: Digest, media_type: &'static str, head: bool) -> Response {
    let length = bytes.len();
    let body = if head { Body::empty() } else { Body::from(bytes.to_vec()) };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(value) = HeaderValue::from_str(&digest.to_string()) {
        headers.insert("docker-content-digest", value);
    }
    response
}

/// The first byte of a `bytes=N-` request; engines resume so inside one pull.
fn range_start(headers: &http::HeaderMap) -> u64 {
    headers
        .get(header::RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes="))
        .and_then(|v| v.split_once('-'))
        .and_then(|(from, _)| from.parse().ok())
        .unwrap_or(0)
}

fn stream(shared: &Arc<Shared>, planned: PlannedLayer, from: u64, head: bool) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let exact = !planned.unpack || planned.layer.digest == planned.layer.diff_id;
    if exact {
        // Otherwise the length is not known before the end, and the body is chunked.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(planned.layer.size.saturating_sub(from)));
    }
    if head {
        return response;
    }
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let total = if exact { planned.layer.size.to_string() } else { "*".to_owned() };
        let last = if exact { planned.layer.size.saturating_sub(1) } else { u64::MAX >> 1 };
        if let Ok(value) = HeaderValue::from_str(&format!("bytes {from}-{last}/{total}")) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let task_shared = shared.clone();
    let task = async move {
        let mut pipe = Pipe { sender, skip: from, shared: task_shared.clone() };
        if let Err(error) = bring(&task_shared.session, &task_shared.source, &planned, &mut pipe).await {
            tracing::debug!(code = error.code, message = error.message, "a layer failed");
            // Hung up rather than ended: the engine must not take what came for the whole.
            let _ = pipe.sender.send(Err(io::Error::other(error.message.clone()))).await;
            task_shared.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            task_shared.failed.notify_waiters();
        }
    };
    shared.layers.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    *response.body_mut() = Body::from_stream(chunks);
    response
}

/// From a layer to the engine's request.
struct Pipe {
    sender: mpsc::Sender<io::Result<Bytes>>,
    /// Bytes the engine has already.
    skip: u64,
    shared: Arc<Shared>,
}

impl Sink for Pipe {
    async fn take(&mut self, mut bytes: Bytes) -> bool {
        let had = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= had as u64;
        let rest = bytes.split_off(had);
        rest.is_empty() || self.sender.send(Ok(rest)).await.is_ok()
    }

    fn fetched(&self, bytes: u64) {
        let done = self.shared.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.shared.progress)(done.min(self.shared.total), self.shared.total);
    }
}
