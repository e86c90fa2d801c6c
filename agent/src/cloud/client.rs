//! The client and where it connects to.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use copal_protocol::network;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::time::Instant;

use super::{
    error::CloudError,
    fetch::{Answer, Blob, Limits, MOST_REFUSED, read_body, refusal},
    names::{Names, RESOLV_CONF},
    tally::{Sessions, Tally, head},
};
use crate::{
    clock::Clock,
    settings::{check_url, is_loopback},
};

/// TCP's own probes of a connection that is idle between two requests.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What was sent and not acknowledged by then ends the connection: nobody is there any more.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Users and passwords of proxies that are remembered while the agent runs, so as not to be shown.
const MAX_HIDDEN: usize = 64;

/// A connection that nobody asks anything on is let go of.
const IDLE: Duration = Duration::from_secs(90);

/// Where the cloud is and how to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    urls: Vec<String>,
    pins: Vec<String>,
}

impl Address {
    /// Checks base URLs and pins.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn new(urls: &[String], pins: &[String]) -> Result<Self, String> {
        if urls.is_empty() || urls.len() > 16 {
            return Err("there must be 1 to 16 base URLs".to_owned());
        }
        for url in urls {
            check_url(url)?;
        }
        for pin in pins {
            pin.parse::<copal_tls::Pin>().map_err(|e| e.to_string())?;
        }
        Ok(Self {
            urls: urls.iter().map(|u| u.trim_end_matches('/').to_owned()).collect(),
            pins: pins.to_vec(),
        })
    }
}

/// A request for a bounded answer.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// GET or POST.
    pub method: Method,
    /// From the base URL on, beginning with `/`.
    pub path: &'a str,
    /// The device's token.
    pub bearer: Option<&'a str>,
    /// The payload hash one has already.
    pub etag: Option<&'a str>,
    /// A JSON body.
    pub body: Option<Vec<u8>>,
    /// The most bytes of the answer.
    pub cap: usize,
    /// How long the server may hold the request on purpose.
    pub wait: Duration,
}

impl<'a> Call<'a> {
    /// A GET.
    #[must_use]
    pub fn get(path: &'a str, cap: usize) -> Self {
        Self { method: Method::GET, path, bearer: None, etag: None, body: None, cap, wait: Duration::ZERO }
    }

    /// A POST of JSON.
    #[must_use]
    pub fn post(path: &'a str, body: Vec<u8>, cap: usize) -> Self {
        Self { method: Method::POST, body: Some(body), ..Self::get(path, cap) }
    }

    /// With the device's token.
    #[must_use]
    pub fn bearer(self, token: &'a str) -> Self {
        Self { bearer: Some(token), ..self }
    }
}

/// Talks to the cloud.
pub struct Cloud {
    state: Mutex<State>,
    /// Which of the URLs answered last.
    current: AtomicUsize,
    clock: Clock,
    limits: Limits,
    tally: Arc<Tally>,
    idle: Duration,
}

struct State {
    address: Address,
    /// Set by a person; absent: what the environment says.
    proxy: Option<String>,
    /// TLS to that address. Made once: a session is gone on with only under the very configuration that began it.
    tls: Option<rustls::ClientConfig>,
    client: Option<(reqwest::Client, Option<SystemTime>)>,
    /// Counts changes of the way: what came by an older one says nothing of this.
    way: u64,
    unreached: Option<Unreached>,
    /// What is not shown of the proxies that were ever gone by.
    hidden: BTreeSet<String>,
}

/// That no call came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreached {
    /// Since when: the first that failed after one that did not, or when this way was first gone.
    pub since: Instant,
    /// The last one failed because a certificate is not for the time this device has.
    pub by_time: bool,
}

impl Unreached {
    fn now() -> Self {
        Self { since: Instant::now(), by_time: false }
    }
}

impl Cloud {
    /// A client of this address; connects when first asked.
    #[must_use]
    pub fn new(address: Address, clock: Clock, limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                address,
                proxy: None,
                tls: None,
                client: None,
                way: 0,
                unreached: Some(Unreached::now()),
                hidden: BTreeSet::new(),
            }),
            current: AtomicUsize::new(0),
            clock,
            limits,
            tally: Arc::default(),
            idle: IDLE,
        }
    }

    /// Lets go of idle connections after so small a part of the time.
    #[must_use]
    pub fn hurried(self, times: u32) -> Self {
        Self { idle: self.idle / times.max(1), ..self }
    }

    /// Goes to another address from now on (Root named one).
    pub fn set_address(&self, address: Address) {
        let mut state = self.state();
        if state.address != address {
            state.address = address;
            (state.tls, state.client) = (None, None);
            self.current.store(0, Ordering::Relaxed);
        }
    }

    /// Goes by this proxy from now on, by new connections only; absent: by what the environment says.
    pub fn set_proxy(&self, proxy: Option<String>) {
        proxy.iter().for_each(|proxy| self.hide(proxy));
        let mut state = self.state();
        state.proxy = proxy;
        state.client = None;
        state.way += 1;
        state.unreached = Some(Unreached::now());
    }

    /// Users and passwords of this proxy are not shown from now on.
    pub fn hide(&self, proxy: &str) {
        let mut state = self.state();
        if state.hidden.len() < MAX_HIDDEN {
            state.hidden.extend(network::secrets_of(proxy));
        }
    }

    /// What is not shown, of the proxy that is set and of those before it.
    #[must_use]
    pub fn hidden(&self) -> BTreeSet<String> {
        self.state().hidden.clone()
    }

    /// Whether the cloud has not answered by the way it is gone to now. No call is made for it: while nothing is asked, what was
    /// heard last counts.
    #[must_use]
    pub fn unreached(&self) -> Option<Unreached> {
        self.state().unreached
    }

    /// What a call says of the way it went.
    fn heard(&self, way: u64, answer: &Result<Answer, CloudError>) {
        let mut state = self.state();
        if state.way != way {
            return;
        }
        let by_time = match answer {
            Ok(_) => return state.unreached = None,
            // Only the cloud refuses by its own codes; what is before it has none of them.
            Err(CloudError::Refused { code, .. }) if !code.is_empty() => return state.unreached = None,
            Err(CloudError::Transport { detail, .. }) => is_of_time(detail),
            Err(_) => false,
        };
        let since = state.unreached.map_or_else(Instant::now, |before| before.since);
        state.unreached = Some(Unreached { since, by_time });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The proxy that is set. May hold a password.
    #[must_use]
    pub fn proxy(&self) -> Option<String> {
        self.state().proxy.clone()
    }

    /// What its requests take on the line.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// The base URLs it goes to.
    #[must_use]
    pub fn bases(&self) -> Vec<String> {
        self.state().address.urls.clone()
    }

    /// Calls, and reads the whole bounded answer.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn call(&self, call: Call<'_>) -> Result<Answer, CloudError> {
        let way = self.state().way;
        let deadline = self.limits.deadline(call.cap) + call.wait;
        let work = async {
            self.tally.said(&call, &HeaderMap::new());
            let response = self.send(&call, &HeaderMap::new(), self.limits.first_byte + call.wait).await?;
            let head = head(response.headers());
            let status = response.status();
            let etag = response
                .headers()
                .get(header::ETAG)
                .and_then(|v| v.to_str().ok())
                .map(|v| v.trim_matches('"').to_owned());
            if status == StatusCode::NOT_MODIFIED || status == StatusCode::NO_CONTENT {
                self.tally.heard(head);
                return Ok(Answer { status: status.as_u16(), etag, body: Bytes::new() });
            }
            if !status.is_success() {
                return Err(self.refused(response).await);
            }
            let html = is_html(response.headers());
            let body = read_body(response, call.cap, &self.limits).await?;
            self.tally.heard(head + body.len());
            let begins = body.iter().find(|b| !b.is_ascii_whitespace());
            if html || begins.is_some_and(|b| *b != b'{') {
                return Err(captive("a page where signed JSON was expected"));
            }
            Ok(Answer { status: status.as_u16(), etag, body })
        };
        let answer = tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
            Err(CloudError::Slow(format!(
                "{} took longer than {} s: the connection is too slow or the server hangs",
                call.path,
                deadline.as_secs()
            )))
        });
        self.heard(way, &answer);
        answer
    }

    /// Starts reading a blob at byte `from`; the reader bounds it.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn blob(&self, path: &str, bearer: &str, from: u64) -> Result<Blob, CloudError> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        self.open_blob(path, bearer, from, range).await
    }

    /// Starts reading the bytes `from..to` of a blob, `to` greater than `from`. A server that knows no ranges starts from the
    /// beginning and goes on to the end.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn range(&self, path: &str, bearer: &str, from: u64, to: u64) -> Result<Blob, CloudError> {
        let range = format!("bytes={from}-{}", to.saturating_sub(1));
        self.open_blob(path, bearer, from, Some(range)).await
    }

    async fn open_blob(
        &self,
        path: &str,
        bearer: &str,
        from: u64,
        range: Option<String>,
    ) -> Result<Blob, CloudError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(header::RANGE, range.parse().expect("digits are a header value"));
        }
        let call = Call::get(path, 0).bearer(bearer);
        let response = self.send(&call, &headers, self.limits.first_byte).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(response, &self.limits, self.clock.now()).await);
        }
        if is_html(response.headers()) {
            return Err(captive("a page where a blob was expected"));
        }
        // A server that knows no ranges starts from the beginning.
        let at = if status == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok(Blob::new(response, at, self.limits.clone()))
    }

    async fn send(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<reqwest::Response, CloudError> {
        let (client, base, count) = self.client()?;
        self.send_by(&client, (&base, count), call, headers, patience).await
    }

    /// Asks for a connection of its own that becomes something else than HTTP. Nothing of the system's keeps it alive: who has
    /// it does that, as its network needs it.
    pub(super) async fn send_alone(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
    ) -> Result<reqwest::Response, CloudError> {
        let (client, base, count) = {
            let mut state = self.state();
            let tls = self.tls(&mut state).map_err(CloudError::transport)?;
            let urls = &state.address.urls;
            let base = urls[self.current.load(Ordering::Relaxed) % urls.len()].clone();
            let client = build(&state.address, state.proxy.as_deref(), tls, (None, self.idle));
            (client.map_err(CloudError::transport)?, base, urls.len())
        };
        self.tally.said(call, headers);
        let response = self.send_by(&client, (&base, count), call, headers, self.limits.first_byte).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.tally.heard(head(response.headers()));
        }
        Ok(response)
    }

    /// TLS as this address wants it.
    fn tls(&self, state: &mut State) -> Result<rustls::ClientConfig, String> {
        if let Some(tls) = &state.tls {
            return Ok(tls.clone());
        }
        let floored = self.clock.clone();
        let time: copal_tls::Clock = Arc::new(move || floored.now());
        let mut tls = copal_tls::client_config(&state.address.pins, &time)
            .map_err(|e| format!("TLS cannot be set up: {e}"))?;
        // One long poll and the odd short call: HTTP/1.1 keeps the client small.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.resumption = rustls::client::Resumption::store(Arc::new(Sessions::new(self.tally.clone())));
        Ok(state.tls.insert(tls).clone())
    }

    /// A refusal's code and text, read within the limits.
    pub(super) async fn refused(&self, response: reqwest::Response) -> CloudError {
        let body = response.content_length().map_or(0, |n| n.min(MOST_REFUSED as u64) as usize);
        self.tally.heard(head(response.headers()) + body);
        refusal(response, &self.limits, self.clock.now()).await
    }

    async fn send_by(
        &self,
        client: &reqwest::Client,
        (base, count): (&str, usize),
        call: &Call<'_>,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<reqwest::Response, CloudError> {
        let mut request = client.request(call.method.clone(), format!("{base}{}", call.path));
        request = request.headers(headers.clone());
        if let Some(token) = call.bearer {
            request = request.bearer_auth(token);
        }
        if let Some(etag) = call.etag {
            request = request.header(header::IF_NONE_MATCH, format!("\"{etag}\""));
        }
        if let Some(body) = &call.body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let sent = match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => {
                let causes = causes(&e.without_url());
                let hint = hint(&causes);
                Err(CloudError::transport(format!("{base}: {causes}{hint}")))
            }
            Err(_) => {
                Err(CloudError::transport(format!("{base}: no answer within {} s", patience.as_secs())))
            }
        };
        if sent.is_err() && count > 1 {
            // The next call tries the next base URL.
            self.current.fetch_add(1, Ordering::Relaxed);
        }
        let response = sent?;
        if response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED {
            return Err(captive(
                "a redirect, which is never followed (it would carry the credential elsewhere)",
            ));
        }
        Ok(response)
    }

    fn client(&self) -> Result<(reqwest::Client, String, usize), CloudError> {
        let mut state = self.state();
        let urls = &state.address.urls;
        let base = urls[self.current.load(Ordering::Relaxed) % urls.len()].clone();
        let count = urls.len();
        // The resolver reads resolv.conf once in its life; a device changes networks.
        let resolver = std::fs::metadata(RESOLV_CONF).and_then(|m| m.modified()).ok();
        if let Some((client, seen)) = &state.client
            && *seen == resolver
        {
            return Ok((client.clone(), base, count));
        }
        let tls = self.tls(&mut state).map_err(CloudError::transport)?;
        let built = build(&state.address, state.proxy.as_deref(), tls, (Some(KEEPALIVE), self.idle));
        let client = built.map_err(CloudError::transport)?;
        state.client = Some((client.clone(), resolver));
        Ok((client, base, count))
    }
}

fn build(
    address: &Address,
    proxy: Option<&str>,
    tls: rustls::ClientConfig,
    (keepalive, idle): (Option<Duration>, Duration),
) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Names::new(RESOLV_CONF))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only()
        .connect_timeout(Duration::from_secs(30))
        .tcp_keepalive(keepalive)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .pool_idle_timeout(idle)
        .pool_max_idle_per_host(2)
        .user_agent(concat!("copal-agent/", env!("CARGO_PKG_VERSION")));
    let only_here =
        address.urls.iter().all(|u| u.parse::<http::Uri>().is_ok_and(|u| u.host().is_some_and(is_loopback)));
    match proxy {
        // A proxy elsewhere cannot reach this machine's own loopback; one on it can.
        Some(proxy) if !only_here || is_here(proxy) => {
            let proxy = reqwest::Proxy::all(proxy).map_err(|_| "the proxy that is set is none".to_owned())?;
            builder = builder.proxy(proxy);
        }
        _ if only_here => builder = builder.no_proxy(),
        _ => {}
    }
    builder.build().map_err(|e| format!("the HTTP client cannot be set up: {}", causes(&e)))
}

/// Whether a proxy is on this machine.
fn is_here(proxy: &str) -> bool {
    proxy.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some_and(is_loopback))
}

/// What a person can do about the commonest failures of TLS.
fn hint(causes: &str) -> &'static str {
    if causes.contains("UnknownIssuer") {
        "; none of the server's certificates is pinned or from a public CA: another server answers, or its key was changed \
         without a new Root naming its pin"
    } else if causes.contains("NotValidForName") || causes.contains("not valid for name") {
        "; the server's certificate is for another name than copal.json's URL"
    } else if is_of_time(causes) {
        "; check this device's clock, then the server's certificate"
    } else {
        ""
    }
}

/// Whether TLS failed because a certificate is not for the time this device has: in the words of either kind of check.
fn is_of_time(causes: &str) -> bool {
    ["NotValidYet", "Expired", "certificate not valid yet", "certificate expired"]
        .iter()
        .any(|word| causes.contains(word))
}

fn is_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.to_ascii_lowercase().contains("html"))
}

fn captive(what: &str) -> CloudError {
    CloudError::Transport {
        detail: format!(
            "captive: {what}; probably a sign-in page of this network answers instead of the cloud: sign the network in"
        ),
        captive: true,
    }
}

/// An error with all its causes; reqwest's own text names only the outermost.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, pki_types::UnixTime};

    use super::*;

    #[test]
    fn a_certificate_for_another_time_is_told_from_other_failures_in_either_check_s_words() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let told = |error| rustls::Error::InvalidCertificate(error).to_string();
        for error in [
            CertificateError::Expired,
            CertificateError::NotValidYet,
            CertificateError::ExpiredContext { time: at(9), not_after: at(5) },
            CertificateError::NotValidYetContext { time: at(5), not_before: at(9) },
        ] {
            assert!(is_of_time(&told(error.clone())), "{error:?}");
            assert!(hint(&told(error)).contains("clock"));
        }
        assert!(!is_of_time(&told(CertificateError::UnknownIssuer)));
    }

    #[test]
    fn what_is_heard_by_an_older_way_says_nothing_of_this_one() {
        let urls = ["http://127.0.0.1:1".to_owned()];
        let cloud = Cloud::new(Address::new(&urls, &[]).unwrap(), Clock::default(), Limits::default());
        let answer = || Ok(Answer { status: 204, etag: None, body: Bytes::new() });
        let refused = |code: &str| {
            Err(CloudError::Refused {
                status: 502,
                code: code.to_owned(),
                detail: String::new(),
                retry_after: None,
            })
        };
        assert!(cloud.unreached().is_some(), "nothing was heard yet");
        cloud.heard(0, &answer());
        assert_eq!(cloud.unreached(), None);
        cloud.heard(0, &refused(""));
        assert!(cloud.unreached().is_some_and(|u| !u.by_time), "something before the cloud");
        cloud.heard(0, &refused("device_revoked"));
        assert_eq!(cloud.unreached(), None, "who is refused has reached it");
        cloud.set_proxy(None);
        cloud.heard(0, &answer());
        assert!(cloud.unreached().is_some());
        cloud.heard(1, &Err(CloudError::transport("invalid peer certificate: Expired")));
        assert!(cloud.unreached().is_some_and(|u| u.by_time));
    }
}
