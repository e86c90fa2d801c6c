//! A hostile network: between device and cloud, it may change any answer.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};

/// What to do with an answer: given path and body, another body or none to leave it.
pub type Rewrite = dyn Fn(&str, &[u8]) -> Option<Answer> + Send + Sync;

/// Another answer.
pub enum Answer {
    /// Another body, same status and headers.
    Body(Vec<u8>),
    /// Another status, empty body.
    Status(u16),
    /// A body without end, of this many bytes in all, with no length told.
    Endless(usize),
}

/// A running proxy.
#[derive(Clone)]
pub struct Proxy {
    pub url: String,
    inner: Arc<Inner>,
}

struct Inner {
    upstream: Mutex<String>,
    rewrite: Mutex<Arc<Rewrite>>,
    http: reqwest::Client,
    seen: Mutex<Vec<String>>,
}

impl Proxy {
    pub fn start(upstream: &str) -> Self {
        Self::on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), upstream)
    }

    /// On a listener made elsewhere.
    pub fn on(listener: std::net::TcpListener, upstream: &str) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Inner {
            upstream: Mutex::new(upstream.to_owned()),
            rewrite: Mutex::new(Arc::new(|_: &str, _: &[u8]| None)),
            http: crate::http(),
            seen: Mutex::default(),
        });
        let app = Router::new().fallback(forward).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, inner }
    }

    pub fn rewrite(&self, f: impl Fn(&str, &[u8]) -> Option<Answer> + Send + Sync + 'static) {
        *self.inner.rewrite.lock().unwrap() = Arc::new(f);
    }

    pub fn honest(&self) {
        self.rewrite(|_, _| None);
    }

    /// Paths asked for so far.
    pub fn seen(&self) -> Vec<String> {
        self.inner.seen.lock().unwrap().clone()
    }
}

async fn forward(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    inner.seen.lock().unwrap().push(target.clone());
    let upstream = inner.upstream.lock().unwrap().clone();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap_or_default();
    let mut headers = parts.headers.clone();
    headers.remove(http::header::HOST);
    headers.remove(http::header::ACCEPT_ENCODING);
    let sent = inner
        .http
        .request(parts.method, format!("{upstream}{target}"))
        .headers(headers)
        .body(body)
        .send()
        .await;
    let Ok(answer) = sent else {
        return Response::builder().status(502).body(Body::empty()).unwrap();
    };
    let status = answer.status();
    let headers = answer.headers().clone();
    let body = answer.bytes().await.unwrap_or_default();
    let rewrite = inner.rewrite.lock().unwrap().clone();
    let (status, body, changed) = match rewrite(parts.uri.path(), &body) {
        None => (status, Body::from(body), false),
        Some(Answer::Body(other)) => (status, Body::from(other), true),
        Some(Answer::Status(other)) => (other.try_into().unwrap(), Body::empty(), true),
        Some(Answer::Endless(total)) => {
            let chunk = Bytes::from(vec![b' '; 64 << 10]);
            let chunks = (0..total / chunk.len()).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
            (status, Body::from_stream(futures_util::stream::iter(chunks)), true)
        }
    };
    let mut response = Response::builder().status(status);
    for (name, value) in &headers {
        let length = name == http::header::CONTENT_LENGTH || name == http::header::TRANSFER_ENCODING;
        if !(length && (changed || name == http::header::TRANSFER_ENCODING)) {
            response = response.header(name, value);
        }
    }
    response.body(body).unwrap()
}
