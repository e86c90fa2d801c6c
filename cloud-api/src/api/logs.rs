//! Logs of a device's services: read from the device while somebody asks, and kept nowhere here.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use copal_protocol::{
    channel::{OpenLogs, StreamOf},
    ids::Name,
    logs::{LogLine, MAX_RECORD, MAX_SEARCH, MAX_TAIL, Moment, Only, Sieve},
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Path, Query, devices::device};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, Needs, Watch},
    channel::{Came, CloudStream},
    devices::memory,
    error::{Problem, Result},
};

/// Something is said this often, so that proxies do not close a quiet stream and its reader knows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this long with the code `renew`: its reader comes back after the last number, and its
/// credentials are looked at again.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How long the last words to a slow reader may take.
const LAST: Duration = Duration::from_secs(5);
/// Lines where nobody says how many.
const TAIL: u32 = 200;
/// Services in one request.
const MAX_SERVICES: usize = 32;

/// Routes of logs.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(logs))
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Params {
    /// Of these services, commas between them; all where absent.
    service: Option<String>,
    /// Lines after this number (`seq`); `Last-Event-ID` means the same.
    after: Option<u64>,
    /// So many of the wanted lines from before, at most 100,000; where neither this nor `after` is given 200, with `since` all.
    tail: Option<u32>,
    /// Only lines said then or later, by the device's clock: `10m`, `2h30m` or `7d` before now, or RFC 3339 (UTC without an offset).
    since: Option<String>,
    /// Only lines said before then, written as `since`; not with `follow`.
    until: Option<String>,
    /// Go on with what comes.
    #[serde(default)]
    follow: bool,
    /// Only lines with this text in them, as it is, of at most 200 characters; upper and lower case are the same.
    search: Option<String>,
    /// Upper and lower case differ in what is searched for.
    #[serde(default)]
    match_case: bool,
    /// As a file to keep.
    #[serde(default)]
    download: bool,
}

/// Reads the logs of a device's services from the device: one JSON object a line (`application/x-ndjson`), or the same as
/// server-sent events where `Accept` asks for `text/event-stream`. Lines rise by `seq`; `n` has no gap within a service but where
/// the device let go of lines, and `dropped` counts lines that were over the service's rate. The last object may be
/// `{"end": {"code", "message"}}`: `device_away` where the device went, `renew` where it is time to come again after the last `seq`,
/// `access_lost` where whoever reads may not any more.
/// Empty lines are signs of life. The device itself leaves out what is not wanted; of one whose agent is too old for
/// that the cloud does, and `tail` counts what is looked through. Needs the role viewer.
#[utoipa::path(get, path = "/fleets/{slug}/devices/{id}/logs", tag = "devices",
    params(("slug" = String, Path, description = "The fleet."), ("id" = String, Path, description = "The device."), Params),
    responses((status = 200, description = "Lines", content_type = "application/x-ndjson"),
        (status = 400, description = "`logs_invalid`"),
        (status = 409, description = "`device_away`, `device_not_accepted`, `no_websocket`, `not_supported`, `service_unknown`"),
        (status = 503, description = "`too_many_streams`")))]
pub(crate) async fn logs(
    State(app): State<App>,
    caller: Caller,
    Path((slug, id)): Path<(String, String)>,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response> {
    let (fleet, row) = device(&app, &caller, &id, Act::Read).await?;
    if fleet.slug != slug {
        return Err(Problem::not_found("such device in this fleet"));
    }
    memory::refuse_unless_accepted(row.device_state()?).map_err(|refused| {
        let why = format!("This device is not heard: it is {} ({}).", row.state, refused.code());
        Problem::conflict("device_not_accepted", why)
    })?;
    let asked = Asked::of(&params, &headers)?;
    app.auth.reads.take(&caller.user_id, std::time::Instant::now())?;
    let detail = json!({
        "services": asked.open.services, "after": asked.open.after, "tail": asked.open.tail, "follow": params.follow,
        "search": params.search, "since": params.since, "until": params.until,
    });
    // Written before anything is read: whoever looked is on record, whatever came of it.
    let mut tx = app.db.write().await?;
    audit::record(&mut tx, &caller, "logs.read", &format!("device:{id}"), detail).await?;
    tx.commit().await?;
    let Asked { open, sse } = asked;
    // Of a device that cannot itself; then by this clock, for want of the device's.
    let sieve = Sieve::new(&open, app::now());
    let stream = app.channels.open_stream(row.id()?, StreamOf::Logs(open), &caller.user_id).await?;
    let sieve = if stream.sieves() { Sieve::default() } else { sieve };
    let name = row.name;
    let access = Watch::new(&app, &caller, Needs::May(Act::Read, Box::new(fleet)));
    let reader = Reader {
        app,
        stream,
        sieve,
        sse,
        rest: BytesMut::new(),
        until: Instant::now() + LIFETIME,
        access,
        over: false,
        began: false,
    };
    let kind = if sse { "text/event-stream" } else { "application/x-ndjson" };
    let (say, said) = mpsc::channel(1);
    tokio::spawn(pass(reader, say));
    let body = stream::unfold(said, async |mut said| {
        let bytes: Bytes = said.recv().await?;
        Some((Ok::<_, Infallible>(bytes), said))
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that would collect a stream before they pass it on.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if params.download {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = name.chars().take(64).map(plain).collect();
        let disposition = format!("attachment; filename=\"{name}-logs.ndjson\"");
        headers.insert(
            header::CONTENT_DISPOSITION,
            HeaderValue::from_str(&disposition).map_err(Problem::internal)?,
        );
    }
    Ok(response)
}

/// What was asked for, checked.
#[derive(Debug, Clone)]
struct Asked {
    open: OpenLogs,
    sse: bool,
}

impl Asked {
    fn of(params: &Params, headers: &HeaderMap) -> Result<Self> {
        let bad = |why: String| Problem::bad_request("logs_invalid", why);
        let header = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let named = params.service.as_deref().unwrap_or_default();
        let named: Vec<&str> = named.split(',').filter(|name| !name.is_empty()).collect();
        if named.len() > MAX_SERVICES {
            return Err(bad(format!(
                "At most {MAX_SERVICES} services at a time; leave them out to mean all."
            )));
        }
        let services = named.into_iter().map(|name| {
            let parsed: Result<Name, _> = name.parse();
            parsed.map_err(|_| bad("service holds something that is no service's name.".to_owned()))
        });
        let services = services.collect::<Result<Vec<Name>>>()?;
        let search = params.search.clone().filter(|text| !text.is_empty());
        if search.as_ref().is_some_and(|text| text.chars().count() > MAX_SEARCH) {
            return Err(bad(format!("search has at most {MAX_SEARCH} characters.")));
        }
        let moment = |name: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(str::parse::<Moment>).transpose();
            parsed.map_err(|e| bad(format!("{name}: {e}.")))
        };
        let (since, until) = (moment("since", &params.since)?, moment("until", &params.until)?);
        if until.is_some() && params.follow {
            return Err(bad("What follows has no end: leave out until or follow.".to_owned()));
        }
        if since.zip(until).is_some_and(|(since, until)| since.is_past(until)) {
            return Err(bad("since is not before until.".to_owned()));
        }
        let tail = params.tail.unwrap_or(if since.is_some() { MAX_TAIL } else { TAIL });
        if tail > MAX_TAIL {
            return Err(bad(format!("tail is at most {MAX_TAIL}.")));
        }
        let after = header("last-event-id").and_then(|id| id.parse().ok()).or(params.after);
        if after.is_some_and(|after| after >= 1 << 53) {
            return Err(bad("after is no number of a line.".to_owned()));
        }
        let sse = header("accept").is_some_and(|accept| accept.contains("text/event-stream"));
        let only = Only { since, until, search, match_case: params.match_case };
        let only = (only != Only::default()).then_some(only);
        Ok(Self { open: OpenLogs { services, after, tail, follow: params.follow, only }, sse })
    }
}

/// Passes a stream on. Whoever does not read holds it no longer than who does, and no longer than they may.
async fn pass(mut reader: Reader, say: mpsc::Sender<Bytes>) {
    loop {
        let next = tokio::select! {
            next = reader.next() => next,
            () = say.closed() => return,
        };
        let Some(bytes) = next else { return };
        let over = async {
            tokio::select! {
                () = tokio::time::sleep_until(reader.until) => {}
                _ = reader.access.lost() => {}
            }
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            biased;
            said = say.send(bytes) => if said.is_err() { return },
            () = over => return,
        }
    }
}

/// A stream on its way out. Holds what the device has credit for, and one line.
struct Reader {
    app: App,
    stream: CloudStream,
    /// Of what the device does not leave out by itself.
    sieve: Sieve,
    sse: bool,
    /// A line that has not ended yet.
    rest: BytesMut,
    until: Instant,
    access: Watch,
    over: bool,
    began: bool,
}

impl Reader {
    /// The next bytes; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        // The head of the answer goes out with its first bytes, and a quiet log has none for long.
        if !std::mem::replace(&mut self.began, true) {
            return Some(Bytes::from_static(b"\n"));
        }
        loop {
            let came = tokio::select! {
                biased;
                why = self.access.lost() => {
                    let why = why.to_owned();
                    return Some(self.end("access_lost", &why));
                }
                () = tokio::time::sleep_until(self.until) => {
                    return Some(self.end("renew", "Come again after the last number."));
                }
                () = self.app.stopping.cancelled() => {
                    return Some(self.end("restarting", "The cloud stops; come again after the last number."));
                }
                came = self.stream.recv() => came,
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b"\n")),
            };
            match came {
                Came::Data(bytes) => {
                    let Ok(out) = self.lines(&bytes) else {
                        return Some(self.end("log_malformed", "The device sent what is no log."));
                    };
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                }
                Came::Closed(closed) if closed.code == "ended" => return None,
                Came::Closed(closed) => return Some(self.end(&closed.code, &closed.message)),
            }
        }
    }

    /// What is said of whole lines. Each is read as what it must be: a device is not believed to send harmless text.
    fn lines(&mut self, bytes: &[u8]) -> Result<BytesMut, serde_json::Error> {
        let mut out = BytesMut::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.len() > MAX_RECORD {
                return Err(serde::de::Error::custom("a line without an end"));
            }
            if !piece.ends_with(b"\n") {
                continue;
            }
            let line: LogLine = serde_json::from_slice(&self.rest)?;
            self.rest.clear();
            if self.sieve.takes(&line) {
                self.say(&mut out, Some(line.seq), &serde_json::to_string(&line)?);
            }
        }
        Ok(out)
    }

    fn say(&self, out: &mut BytesMut, seq: Option<u64>, text: &str) {
        if self.sse {
            if let Some(seq) = seq {
                out.extend_from_slice(format!("id: {seq}\n").as_bytes());
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\n\n");
        } else {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\n");
        }
    }

    fn end(&mut self, code: &str, message: &str) -> Bytes {
        let cut = |text: &str, most| copal_protocol::text::inert(text).chars().take(most).collect::<String>();
        let end = json!({ "end": { "code": cut(code, 64), "message": cut(message, 500) } });
        let mut out = BytesMut::new();
        self.say(&mut out, None, &end.to_string());
        self.over = true;
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        serde_json::from_str(query).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let none = HeaderMap::new();
        let asked = Asked::of(&params("{}"), &none).unwrap();
        assert_eq!(asked.open, OpenLogs { tail: TAIL, ..OpenLogs::default() });
        assert!(!asked.sse);
        let asked = Asked::of(&params(r#"{"service": "web,db,", "after": 7, "search": "ÄRGER"}"#), &none)
            .unwrap()
            .open;
        assert_eq!((asked.services.len(), asked.after), (2, Some(7)));
        assert_eq!(asked.only, Some(Only { search: Some("ÄRGER".to_owned()), ..Only::default() }));
        let asked = params(r#"{"since": "10m", "until": "2026-11-23T08:00", "search": "", "tail": 5}"#);
        let asked = Asked::of(&asked, &none).unwrap().open;
        let (since, until) = (Some(Moment::AgoS(600)), Some(Moment::At(1_795_420_800)));
        assert_eq!((asked.tail, asked.only), (5, Some(Only { since, until, ..Only::default() })));
        assert_eq!(Asked::of(&params(r#"{"since": "10m"}"#), &none).unwrap().open.tail, MAX_TAIL);
        let mut resumed = HeaderMap::new();
        resumed.insert("last-event-id", HeaderValue::from_static("9"));
        resumed.insert("accept", HeaderValue::from_static("text/event-stream"));
        let asked = Asked::of(&params(r#"{"after": 7}"#), &resumed).unwrap();
        assert_eq!((asked.open.after, asked.sse), (Some(9), true));
        for bad in [
            json!({"service": "../x"}),
            json!({"service": "a,".repeat(33)}),
            json!({"tail": MAX_TAIL + 1}),
            json!({"search": "x".repeat(MAX_SEARCH + 1)}),
            json!({"after": 1_u64 << 53}),
            json!({"since": "yesterday"}),
            json!({"until": "10m", "follow": true}),
            json!({"since": "5m", "until": "10m"}),
        ] {
            let refused = Asked::of(&params(&bad.to_string()), &none).unwrap_err();
            assert_eq!(refused.code(), "logs_invalid", "{bad}");
        }
    }
}
