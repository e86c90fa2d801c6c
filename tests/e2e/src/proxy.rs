//! A hostile network: between device and cloud, it may change any answer. A WebSocket passes only where a test says what
//! becomes of its frames.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{
        Request, State,
        ws::{self, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse as _, Response},
};
use copal_protocol::channel::SUBPROTOCOL;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{
    HeaderMap, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, SEC_WEBSOCKET_PROTOCOL},
};
use tokio::sync::broadcast;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};

/// What to do with an answer: given path and body, another body or none to leave it.
pub type Rewrite = dyn Fn(&str, &[u8]) -> Option<Answer> + Send + Sync;

/// Another answer.
pub enum Answer {
    /// Another body, same status and headers.
    Body(Vec<u8>),
    /// Another status, empty body.
    Status(u16),
    /// A page of HTML, with status 200.
    Page(&'static str),
    /// A redirect to there.
    Redirect(&'static str),
    /// A body without end, of this many bytes in all, with no length told.
    Endless(usize),
}

/// What becomes of a frame of the cloud: the texts the device gets in its place.
pub type Frames = dyn FnMut(String) -> Vec<String> + Send;

/// Said to a channel, it ends.
const CLOSE: &str = "";

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
    frames: Mutex<Option<Box<Frames>>>,
    said: broadcast::Sender<String>,
    told: Mutex<Vec<String>>,
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
            frames: Mutex::default(),
            said: broadcast::channel(64).0,
            told: Mutex::default(),
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

    /// Lets WebSockets through from now on; `f` makes of each frame of the cloud what the device gets.
    pub fn frames(&self, f: impl FnMut(String) -> Vec<String> + Send + 'static) {
        *self.inner.frames.lock().unwrap() = Some(Box::new(f));
    }

    /// Says something to the devices on open channels, as if the cloud did.
    pub fn say(&self, frame: &str) {
        let _ = self.inner.said.send(frame.to_owned());
    }

    /// Ends all channels that are open now.
    pub fn close(&self) {
        self.say(CLOSE);
    }

    /// What devices said on channels so far.
    pub fn told(&self) -> Vec<String> {
        self.inner.told.lock().unwrap().clone()
    }

    /// Paths asked for so far.
    pub fn seen(&self) -> Vec<String> {
        self.inner.seen.lock().unwrap().clone()
    }
}

async fn forward(
    State(inner): State<Arc<Inner>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    request: Request,
) -> Response {
    let passes = inner.frames.lock().unwrap().is_some();
    if let Ok(upgrade) = upgrade
        && passes
    {
        inner.seen.lock().unwrap().push(request.uri().path().to_owned());
        let rewrite = inner.rewrite.lock().unwrap().clone();
        match rewrite(request.uri().path(), b"") {
            Some(Answer::Page(html)) => return ([(CONTENT_TYPE, "text/html")], html).into_response(),
            Some(Answer::Redirect(to)) => return (StatusCode::FOUND, [(LOCATION, to)]).into_response(),
            _ => {}
        }
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        return channel(&inner, upgrade, &uri, &headers).await;
    }
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
        Some(Answer::Page(html)) => {
            return ([(CONTENT_TYPE, "text/html")], html).into_response();
        }
        Some(Answer::Redirect(to)) => return (StatusCode::FOUND, [(LOCATION, to)]).into_response(),
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

/// A WebSocket to the cloud, and its frames on their way.
async fn channel(inner: &Arc<Inner>, upgrade: WebSocketUpgrade, uri: &Uri, headers: &HeaderMap) -> Response {
    let upstream = inner.upstream.lock().unwrap().replacen("http://", "ws://", 1);
    let mut asked = format!("{upstream}{uri}").into_client_request().unwrap();
    for name in [AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL] {
        asked.headers_mut().extend(headers.get(&name).map(|value| (name.clone(), value.clone())));
    }
    let host = asked.uri().authority().unwrap().to_string();
    let Ok(socket) = tokio::net::TcpStream::connect(host).await else {
        return Response::builder().status(502).body(Body::empty()).unwrap();
    };
    let mut cloud = match client_async(asked, socket).await {
        Ok((cloud, _)) => cloud,
        Err(Error::Http(answer)) => {
            return Response::builder().status(answer.status()).body(Body::empty()).unwrap();
        }
        Err(_) => return Response::builder().status(502).body(Body::empty()).unwrap(),
    };
    let (inner, mut said) = (inner.clone(), inner.said.subscribe());
    upgrade.protocols([SUBPROTOCOL]).on_upgrade(async move |mut device| {
        loop {
            let sent = tokio::select! {
                message = cloud.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        let frames = inner.frames.lock().unwrap().as_mut().map_or_else(Vec::new, |f| f(text.to_string()));
                        let mut sent = Ok(());
                        for frame in frames {
                            sent = sent.and(device.send(ws::Message::Text(frame.into())).await);
                        }
                        sent
                    }
                    Some(Ok(_)) => Ok(()),
                    None | Some(Err(_)) => return,
                },
                frame = said.recv() => match frame {
                    Ok(frame) if frame == CLOSE => return,
                    Ok(frame) => device.send(ws::Message::Text(frame.into())).await,
                    Err(_) => Ok(()),
                },
                message = device.recv() => match message {
                    Some(Ok(ws::Message::Text(text))) => {
                        inner.told.lock().unwrap().push(text.to_string());
                        cloud.send(Message::text(text.to_string())).await.map_err(axum::Error::new)
                    }
                    // Pings are answered on either side by whoever reads.
                    Some(Ok(_)) => Ok(()),
                    None | Some(Err(_)) => return,
                },
            };
            if sent.is_err() {
                return;
            }
        }
    })
}
