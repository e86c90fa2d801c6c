//! `GET /device/v1/state`: the device's assignment. Nothing new is answered from memory; with `wait` the answer is held
//! until there is something new, where there is room for that: a device whose poll is let go early asks at intervals.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};

use super::{
    memory::{Entry, Mark},
    presence,
};
use crate::{
    app::App,
    error::{Problem, Result},
};

/// The longest a poll is held, seconds.
const MAX_WAIT: u64 = 60;

/// The state route.
pub(super) async fn state(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response<Body>> {
    let wait = wait(query.as_deref())?;
    let Some(answer) = now(&app, &headers)? else {
        return changed(&app, &headers).await;
    };
    if wait == 0 {
        return Ok(answer);
    }
    let Some(_place) = app.channels.hold() else { return Ok(answer) };
    let entry = app.devices.session(&headers)?;
    let held = entry.hold();
    let deadline = tokio::time::sleep(Duration::from_secs(wait));
    tokio::pin!(deadline);
    loop {
        // Registered before looking, so that a change in between is not missed.
        let notified = entry.changed.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        let Some(answer) = now(&app, &headers)? else { break };
        tokio::select! {
            () = &mut notified => {
                // With nothing assigned, whatever stirs the device is worth a look of its own: a new Root, for one.
                if let Some(answer) = now(&app, &headers)?
                    && answer.status() == StatusCode::NO_CONTENT
                {
                    return Ok(answer);
                }
            }
            () = &mut deadline => return Ok(answer),
            () = app.stopping.cancelled() => return Ok(answer),
        }
    }
    drop(held);
    changed(&app, &headers).await
}

/// The answer when there is nothing new (304, or 204 before the first assignment), from memory alone; `None` when there
/// is something to send. Every call checks the session and that the device was not revoked.
pub fn now(app: &App, headers: &HeaderMap) -> Result<Option<Response<Body>>> {
    let entry = app.devices.session(headers)?;
    presence::heard(app, &entry);
    let Some(mark) = mark(&entry) else { return Ok(Some(answer(StatusCode::NO_CONTENT, None))) };
    let etag = etag(&mark);
    let same = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| matches_etag(value, &etag));
    Ok(same.then(|| answer(StatusCode::NOT_MODIFIED, Some(etag))))
}

async fn changed(app: &App, headers: &HeaderMap) -> Result<Response<Body>> {
    let entry = app.devices.session(headers)?;
    let stored: Option<(Vec<u8>, String)> =
        sqlx::query_as("SELECT envelope, sha256 FROM assignments WHERE device_id = $1")
            .bind(entry.device_id.to_string())
            .fetch_optional(app.db.read())
            .await?;
    let Some((envelope, sha256)) = stored else { return Ok(answer(StatusCode::NO_CONTENT, None)) };
    let mut response = Response::new(Body::from(envelope));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ETAG, HeaderValue::from_str(&format!("\"{sha256}\"")).map_err(Problem::internal)?);
    Ok(response)
}

fn mark(entry: &Entry) -> Option<Mark> {
    entry.facts().mark
}

fn etag(mark: &Mark) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{}\"", mark.sha256)).expect("hex and quotes are a header value")
}

fn answer(status: StatusCode, etag: Option<HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if let Some(etag) = etag {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// Whether a list of tags has this one; a proxy may have made it weak.
fn matches_etag(value: &HeaderValue, etag: &HeaderValue) -> bool {
    value == etag
        || value.to_str().is_ok_and(|list| {
            list.split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"))
                .any(|tag| tag.as_bytes() == etag.as_bytes())
        })
}

/// How long an answer may be held, seconds, by `wait` of the query.
pub(crate) fn wait(query: Option<&str>) -> Result<u64> {
    let bad = || {
        Problem::bad_request("wait_invalid", format!("`wait` is a whole number of seconds, 0 to {MAX_WAIT}."))
    };
    let Some(value) = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("wait=")) else {
        return Ok(0);
    };
    value.parse::<u64>().ok().filter(|s| *s <= MAX_WAIT).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list_and_when_weak() {
        let etag = HeaderValue::from_static("\"ab\"");
        for (value, same) in
            [("\"ab\"", true), ("W/\"ab\"", true), ("\"x\", \"ab\"", true), ("\"a\"", false), ("ab", false)]
        {
            assert_eq!(matches_etag(&HeaderValue::from_static(value), &etag), same, "{value}");
        }
    }

    #[test]
    fn waiting_is_bounded() {
        assert_eq!(wait(None).unwrap(), 0);
        assert_eq!(wait(Some("x=1&wait=60")).unwrap(), 60);
        for bad in ["wait=61", "wait=-1", "wait=", "wait=1e3"] {
            assert_eq!(wait(Some(bad)).unwrap_err().code(), "wait_invalid", "{bad}");
        }
    }
}
