//! The server's API. Every answer is bounded, no redirect is followed (a captive portal must not get credentials), the
//! token goes in a header only, and plain HTTP is refused off loopback.

use std::time::Duration;

use copal_protocol::device_api::Problem;
use futures_util::StreamExt as _;
use reqwest::{Method, Response, StatusCode, Url, header};
use serde_json::Value;

use crate::failure::{Failure, Kind, Result};

/// The most bytes a JSON answer may have.
const MAX_JSON: usize = 16 << 20;
/// The most items a listing is read to.
const MAX_ITEMS: usize = 100_000;
/// Time to answer, except for streams and uploads.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server, and who we are there.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    /// For WebSockets.
    sockets: reqwest::Client,
    base: Url,
    token: Option<String>,
    /// Why what is asked is asked.
    why: Option<header::HeaderValue>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.base)
    }
}

/// Parses the URL of a server: https, or http on loopback; no user, query or fragment.
///
/// # Errors
/// Says what is wrong with it.
pub fn server_url(text: &str) -> Result<Url> {
    let bad = |why: &str| Failure::usage(format!("use the server address {text:?}"), why);
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&with_scheme).map_err(|e| bad(&e.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("an address carries no user or password"));
    }
    let host = url.host_str().ok_or_else(|| bad("it names no host"))?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(host) => {}
        "http" => {
            return Err(bad("plain http is accepted on this machine only (127.0.0.1, ::1, localhost)")
                .next("use https; `copal-cloud tls init` makes a private CA where there is no public one"));
        }
        _ => return Err(bad("it begins with https://")),
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The address as it is kept and compared: without a slash at its end.
#[must_use]
pub fn address(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// One segment of a path or a value of a query, with everything unusual escaped.
#[must_use]
pub fn seg(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'~')
            || (byte == b'.' && text.len() > 2)
        {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl Api {
    /// A client for a server that shows one of `pins` (or, without pins, a certificate of a public CA).
    ///
    /// # Errors
    /// Where a pin is malformed.
    pub fn new(base: Url, pins: &[String], token: Option<String>) -> Result<Self> {
        let what = format!("connect to {}", address(&base));
        let config = copal_tls::client_config(pins, &copal_tls::system_clock())
            .map_err(|e| Failure::trust("pin_invalid", &what, e))?;
        Self::with_tls(base, config, token)
    }

    /// A client with a TLS configuration of one's own.
    ///
    /// # Errors
    /// Where the HTTP library refuses it.
    pub fn with_tls(base: Url, config: rustls::ClientConfig, token: Option<String>) -> Result<Self> {
        let client = |config: rustls::ClientConfig| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(config)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(15))
                .user_agent(concat!("copal/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|e| Failure::local("set up HTTP", e))
        };
        // A connection that is to become a WebSocket must not be agreed to be HTTP/2.
        let mut one = config.clone();
        one.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { client: client(config)?, sockets: client(one)?, base, token, why: None })
    }

    /// The same server, told why with every request, for its audit log.
    ///
    /// # Errors
    /// Where a header cannot carry it.
    pub fn saying(self, why: Option<&str>) -> Result<Self> {
        let Some(text) = why.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(self) };
        let value = header::HeaderValue::from_bytes(text.as_bytes());
        let value =
            value.map_err(|_| Failure::usage("say why", "--why is one line, without control characters"))?;
        Ok(Self { why: Some(value), ..self })
    }

    /// The same server, signed in otherwise.
    #[must_use]
    pub fn with_token(&self, token: Option<String>) -> Self {
        Self { token, ..self.clone() }
    }

    /// The server's address.
    #[must_use]
    pub fn address(&self) -> String {
        address(&self.base)
    }

    /// A request below `/api/v1`, for [`Self::send`].
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.asking(&self.client, method, path)
    }

    fn asking(&self, client: &reqwest::Client, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = client.request(method, format!("{}/api/v1{path}", self.address()));
        let request = match &self.why {
            Some(why) => request.header("x-copal-why", why),
            None => request,
        };
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and gives the answer where it is a good one. `what` is said when it fails: "list the fleets".
    ///
    /// # Errors
    /// A refusal of the server, or no answer.
    pub async fn send(&self, what: &str, request: reqwest::RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|e| self.transport(what, &e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(what, response).await)
    }

    /// Opens a WebSocket of this subprotocol below `/api/v1`.
    ///
    /// # Errors
    /// A refusal of the server, no answer, or something between that lets no WebSocket through.
    pub async fn upgrade(&self, what: &str, path: &str, protocol: &str) -> Result<reqwest::Upgraded> {
        use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
        let key = generate_key();
        let request = self
            .asking(&self.sockets, Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = request.send().await.map_err(|e| self.transport(what, &e))?;
        let not_taken = |why: String| {
            Failure::new(Kind::Network, "no_websocket", what, why)
                .next("is there a proxy between that lets no WebSocket through?")
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if response.status().is_success() {
                return Err(not_taken(format!("{} answered {}", self.address(), response.status())));
            }
            return Err(self.refusal(what, response).await);
        }
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(|v| v.as_bytes().to_vec());
        if accepted.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(not_taken("the answer is to no WebSocket of ours".to_owned()));
        }
        response.upgrade().await.map_err(|e| not_taken(e.to_string()))
    }

    /// Reads an answer as bytes of at most `max`.
    ///
    /// # Errors
    /// Where there are more, or the connection breaks.
    pub async fn read(&self, what: &str, response: Response, max: usize) -> Result<Vec<u8>> {
        self.body(what, response, max).await
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn get(&self, what: &str, path: &str) -> Result<Value> {
        let response = self.send(what, self.request(Method::GET, path).timeout(TIMEOUT)).await?;
        self.json(what, response).await
    }

    /// GET, as bytes of at most `max`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn bytes(&self, what: &str, path: &str, max: usize) -> Result<Vec<u8>> {
        let response = self.send(what, self.request(Method::GET, path).timeout(TIMEOUT)).await?;
        self.body(what, response, max).await
    }

    /// As [`Self::bytes`]; `None` where there is no such thing.
    ///
    /// # Errors
    /// As [`Self::send`], 404 aside.
    pub async fn maybe_bytes(&self, what: &str, path: &str, max: usize) -> Result<Option<Vec<u8>>> {
        match self.bytes(what, path, max).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(failure) if failure.kind == Kind::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Any method with a JSON body; gives the JSON answered, `null` for an empty answer.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn call(&self, what: &str, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.request(method, path).timeout(TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(what, request).await?;
        self.json(what, response).await
    }

    /// Sends a signed document.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn put_document(&self, what: &str, method: Method, path: &str, body: Vec<u8>) -> Result<Value> {
        let request = self.request(method, path).timeout(TIMEOUT).body(body);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let response = self.send(what, request).await?;
        self.json(what, response).await
    }

    /// Every item of a paged listing; `query` begins with `&` or is empty.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn all(&self, what: &str, path: &str, query: &str) -> Result<Vec<Value>> {
        self.some(what, path, query, MAX_ITEMS).await
    }

    /// The first `count` items of a paged listing.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn some(&self, what: &str, path: &str, query: &str, count: usize) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut after = String::new();
        while items.len() < count {
            let limit = (count - items.len()).clamp(1, 500);
            let mut page = self.get(what, &format!("{path}?limit={limit}{query}{after}")).await?;
            match page["items"].take() {
                Value::Array(more) if !more.is_empty() => items.extend(more),
                _ => break,
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", seg(next)),
                None => break,
            }
        }
        items.truncate(count);
        Ok(items)
    }

    /// Reads an answer as JSON.
    ///
    /// # Errors
    /// Where it is too large or no JSON (a captive portal answers HTML).
    pub async fn json(&self, what: &str, response: Response) -> Result<Value> {
        let bytes = self.body(what, response, MAX_JSON).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| {
            let why = format!("{} answered something that is not JSON", self.address());
            Failure::new(Kind::Network, "answer_not_understood", what, why)
                .next("is this the address of a copal-cloud, and no proxy or portal between?")
        })
    }

    async fn body(&self, what: &str, response: Response, max: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| self.transport(what, &e))?;
            if bytes.len() + chunk.len() > max {
                let why = format!("{} answered more than {max} bytes", self.address());
                return Err(Failure::new(Kind::Network, "answer_too_large", what, why));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Turns a failure of the network into words.
    #[must_use]
    pub fn transport(&self, what: &str, error: &reqwest::Error) -> Failure {
        let server = self.address();
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        if is_certificate_error(error) {
            let why = format!("{server} does not show a certificate that is trusted here: {cause}");
            return Failure::trust("certificate_refused", what, why).next(format!(
                "if the server's key was changed on purpose: copal login {server} --pin <pin>"
            ));
        }
        if error.is_timeout() {
            let why = format!("{server} did not answer in time");
            return Failure::new(Kind::Timeout, "timeout", what, why).next("try again");
        }
        Failure::new(Kind::Network, "unreachable", what, format!("{server} cannot be reached: {cause}"))
            .next("is the server running, and is the address right? (copal server show, --url)")
    }

    async fn refusal(&self, what: &str, response: Response) -> Failure {
        let status = response.status();
        let retry =
            response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse::<u32>().ok());
        let body = self.body(what, response, 64 << 10).await.unwrap_or_default();
        let problem: Problem = serde_json::from_slice(&body).unwrap_or(Problem {
            type_: String::new(),
            title: String::new(),
            status: status.as_u16(),
            detail: String::new(),
            code: format!("http_{}", status.as_u16()),
            request_id: String::new(),
        });
        map_problem(what, &self.address(), status, &problem, retry)
    }
}

/// What a server's refusal means here.
#[must_use]
pub fn map_problem(
    what: &str,
    server: &str,
    status: StatusCode,
    problem: &Problem,
    retry_after: Option<u32>,
) -> Failure {
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        s if s.is_client_error() => Kind::Refused,
        _ => Kind::Network,
    };
    let said = [&problem.detail, &problem.title].into_iter().find(|text| !text.is_empty());
    let why = match said {
        Some(said) => said.chars().take(2000).collect(),
        None => format!("{server} answered {status}"),
    };
    let code =
        if problem.code.is_empty() { format!("http_{}", status.as_u16()) } else { problem.code.clone() };
    let failure = Failure::new(kind, &code, what, why);
    let id = problem.request_id.as_str();
    match status {
        StatusCode::UNAUTHORIZED => failure.next(format!("sign in again: copal login {server}")),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            failure.next(format!("try again in {} s", retry_after.unwrap_or(10).clamp(1, 3600)))
        }
        s if s.is_redirection() => failure.next("use the address it redirects to, if it is your server's"),
        s if s.is_server_error() && !id.is_empty() => {
            failure.next(format!("the server's log has the cause under request {id}"))
        }
        _ => failure,
    }
}

/// Whether a request failed because of the server's certificate.
#[must_use]
pub fn is_certificate_error(error: &reqwest::Error) -> bool {
    names_certificate(error, 0)
}

/// Looks through the causes. An `io::Error` hides what it wraps from `source`, and they come nested.
fn names_certificate(error: &(dyn std::error::Error + 'static), depth: usize) -> bool {
    if depth > 16 {
        return false;
    }
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    if wrapped.is_some_and(|inner| names_certificate(inner, depth + 1)) {
        return true;
    }
    error.source().is_some_and(|cause| names_certificate(cause, depth + 1))
}

/// Reads server-sent events from a stream's bytes.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    data: String,
    /// Of the last event, to resume after.
    pub last_id: Option<String>,
}

/// The most bytes an unfinished event may have.
const MAX_EVENT: usize = 1 << 20;

impl Events {
    /// Begins a new stream after this event.
    #[must_use]
    pub fn after(last_id: Option<String>) -> Self {
        Self { last_id, ..Self::default() }
    }

    /// Takes bytes as they come; gives the data of every event that ended in them.
    ///
    /// # Errors
    /// Where one event grows without end.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Value>> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if let Ok(value) = serde_json::from_str(&std::mem::take(&mut self.data)) {
                    events.push(value);
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                self.data.push('\n');
            } else if let Some(id) = line.strip_prefix("id:") {
                self.last_id = Some(id.trim().to_owned());
            }
        }
        if self.buffer.len() + self.data.len() > MAX_EVENT {
            return Err(Failure::new(
                Kind::Network,
                "answer_too_large",
                "follow events",
                "an event has no end",
            ));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for good in ["http://127.0.0.1:8080/", "http://[::1]:1", "http://localhost", "https://a.example/"] {
            assert!(server_url(good).is_ok(), "{good}");
        }
        assert_eq!(address(&server_url("cloud.example/").unwrap()), "https://cloud.example");
        assert_eq!(address(&server_url("https://a.example/x/?q#f").unwrap()), "https://a.example/x");
        for bad in ["http://192.168.1.2", "http://localhost.evil.example", "ftp://a", "https://u:p@a", ""] {
            assert_eq!(server_url(bad).unwrap_err().kind, Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn words_cannot_leave_their_place_in_a_path() {
        assert_eq!(seg("../a b?c#é"), "..%2Fa%20b%3Fc%23%C3%A9");
        assert_eq!(seg(".."), "%2E%2E");
        assert_eq!(seg("v1.2.3"), "v1.2.3");
    }

    #[test]
    fn events_are_read_across_any_cut() {
        let text = b": hello\nid: 7\nevent: device\ndata: {\"kind\":\ndata: \"device\"}\n\ndata: 5\r\n\r\n";
        for cut in 0..text.len() {
            let mut events = Events::default();
            let mut got = events.feed(&text[..cut]).unwrap();
            got.extend(events.feed(&text[cut..]).unwrap());
            assert_eq!(got, [json!({"kind": "device"}), json!(5)], "{cut}");
            assert_eq!(events.last_id.as_deref(), Some("7"));
        }
        assert!(Events::default().feed(&vec![b'x'; MAX_EVENT + 1]).is_err());
    }
}
