//! The device routes, over connections that one device has for itself, as an agent does: at most two are kept, for as long as the
//! cloud keeps its end or the agent would its own.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use copal_protocol::ids::Sha256Hex;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use crate::{Shared, seen::Way};

/// How long an agent keeps an idle connection. A cloud may close its end before.
pub(crate) const KEPT: Duration = Duration::from_secs(90);
/// How many of them.
const MOST: usize = 2;
/// Beyond the time the cloud holds a request on purpose.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most bytes of an answer.
const MAX_ANSWER: usize = 2 << 20;

/// The cloud said no.
#[derive(Debug)]
pub(crate) struct Refused {
    what: String,
    pub(crate) status: u16,
    /// It is busy, and said when to come again.
    pub(crate) later: Option<Duration>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Of any error.
    pub(crate) fn of(error: &anyhow::Error) -> Option<&Self> {
        error.downcast_ref()
    }

    /// Only a person can change this: revoked, pending, a clone, a spent token.
    pub(crate) fn needs_a_person(&self) -> bool {
        matches!(self.status, 401 | 403 | 409)
    }
}

/// When to come again, of an answer that says that the cloud is busy.
pub(crate) fn later(status: u16, headers: &HeaderMap) -> Option<Duration> {
    let said = || headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok();
    matches!(status, 429 | 503).then(|| Duration::from_secs(said().unwrap_or(5)))
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) bearer: Option<&'a str>,
    pub(crate) etag: Option<Sha256Hex>,
    pub(crate) body: Bytes,
    /// How long the cloud may hold it.
    pub(crate) wait: Duration,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        let body = Bytes::new();
        Self { method: Method::GET, path, bearer: None, etag: None, body, wait: Duration::ZERO }
    }

    pub(crate) fn post(path: &'a str, body: Vec<u8>) -> Self {
        Self { method: Method::POST, body: body.into(), ..Self::get(path) }
    }
}

/// An answer that is no refusal: 200 and the like, 204, 304.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// See the module.
pub(crate) struct Http {
    number: usize,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<Idle>>,
}

impl Http {
    /// Of the device of this number.
    pub(crate) fn new(shared: &Shared, number: usize) -> Self {
        Self { number, tls: shared.wires.remembering(), idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what has idled for so long.
    pub(crate) fn close(&self, idle: Duration) {
        self.idle().retain(|one| one.since.elapsed() < idle && !one.sender.is_closed());
    }

    /// Calls, and reads the whole answer.
    pub(crate) async fn call(&self, shared: &Arc<Shared>, call: Call<'_>) -> anyhow::Result<Answer> {
        let what = format!("{} {}", call.method, call.path.split('?').next().unwrap_or_default());
        let patience = PATIENCE + call.wait;
        let calling = Box::pin(self.once_or_twice(shared, &call));
        let answered = tokio::time::timeout(patience, calling).await;
        let (status, headers, body) = answered
            .with_context(|| format!("no answer within {} s", patience.as_secs()))
            .flatten()
            .with_context(|| what.clone())?;
        if matches!(status, 200..300 | 304) {
            return Ok(Answer { status, body });
        }
        let what = format!("{what}: {status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
        Err(Refused { what, status, later: later(status, &headers) }.into())
    }

    /// A kept connection may be one that the cloud just let go of; then a new one is taken.
    async fn once_or_twice(
        &self,
        shared: &Arc<Shared>,
        call: &Call<'_>,
    ) -> anyhow::Result<(u16, HeaderMap, Bytes)> {
        if let Some(kept) = self.kept() {
            match self.on(shared, kept, call).await {
                Err(error) if was_gone(&error, call) => {}
                done => return done,
            }
        }
        let new = self.connect(shared).await?;
        self.on(shared, new, call).await
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle();
        idle.retain(|one| !one.sender.is_closed());
        Some(idle.pop()?.sender)
    }

    async fn connect(&self, shared: &Arc<Shared>) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        // Each is a file; where they are few, some devices wait for others.
        let room = shared.room.clone().acquire_owned().await?;
        let wire = shared.wires.open(shared, self.number, Way::Http, self.tls.as_ref()).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(wire)).await?;
        tokio::spawn(async move {
            // How it ended, whoever sent a request on it hears.
            let _ = connection.await;
            drop(room);
        });
        Ok(sender)
    }

    async fn on(
        &self,
        shared: &Shared,
        mut sender: SendRequest<Full<Bytes>>,
        call: &Call<'_>,
    ) -> anyhow::Result<(u16, HeaderMap, Bytes)> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.path)
            .header(header::HOST, shared.wires.authority())
            .header(header::ACCEPT, "*/*")
            .header(header::USER_AGENT, concat!("copal-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = call.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(etag) = call.etag {
            request = request.header(header::IF_NONE_MATCH, format!("\"{etag}\""));
        }
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        sender.ready().await?;
        let answer = sender.send_request(request.body(Full::new(call.body.clone()))?).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?.to_bytes();
        let mut idle = self.idle();
        // Where files are few, what is not needed now is another device's.
        if idle.len() < MOST && !sender.is_closed() && shared.has_room() {
            idle.push(Idle { sender, since: Instant::now() });
        }
        drop(idle);
        Ok((head.status.as_u16(), head.headers, body))
    }
}

/// Whether the connection was gone before the cloud took the request, as far as that can be known.
fn was_gone(error: &anyhow::Error, call: &Call<'_>) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(|error| {
        error.is_canceled() || error.is_closed() || (call.method == Method::GET && !error.is_timeout())
    })
}
