//! A blob, or one range of it, as an answer of HTTP: streamed from the store, never gathered.

use std::ops::Range;

use axum::{body::Body, response::Response};
use copal_protocol::ids::Digest;
use http::{HeaderMap, StatusCode, header};

use crate::app::App;

/// What of a blob was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it. Other units and nonsense mean that too, as HTTP allows.
    Whole,
    /// These bytes.
    One(Range<u64>),
    /// Several ranges at once.
    Several,
    /// Bytes it does not have.
    Unsatisfiable,
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Reads `Range` and `If-Range` of a request for a blob of this size.
pub(crate) fn asked(headers: &HeaderMap, digest: &Digest, size: u64) -> Asked {
    // If-Range with another entity: the whole is sent, as if no range had been asked.
    let same = headers.get(header::IF_RANGE).is_none_or(|v| v.as_bytes() == etag(digest).as_bytes());
    let text = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    text.filter(|_| same).map_or(Asked::Whole, |text| parse(text, size))
}

fn parse(text: &str, size: u64) -> Asked {
    let Some(spec) = text.strip_prefix("bytes=") else { return Asked::Whole };
    if spec.contains(',') {
        return Asked::Several;
    }
    let Some((first, last)) = spec.split_once('-') else { return Asked::Whole };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.trim().is_empty() => size.saturating_sub(suffix)..size,
        _ => return Asked::Whole,
    };
    if range.start < range.end { Asked::One(range) } else { Asked::Unsatisfiable }
}

/// The answer: 206 with a range, else 200; without its body for `head`.
pub(crate) async fn respond(
    app: &App,
    digest: &Digest,
    size: u64,
    range: Option<Range<u64>>,
    head: bool,
) -> anyhow::Result<Response> {
    let length = range.as_ref().map_or(size, |r| r.end - r.start);
    let mut response = Response::builder()
        .header(header::ETAG, etag(digest))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, "private, max-age=31536000, immutable")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length);
    if let Some(range) = &range {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    let body = if head || length == 0 {
        Body::empty()
    } else {
        Body::from_stream(super::read(app, digest, range).await?)
    };
    Ok(response.body(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        assert_eq!(parse("bytes=0-3", 10), Asked::One(0..4));
        assert_eq!(parse("bytes=7-", 10), Asked::One(7..10));
        assert_eq!(parse("bytes=-3", 10), Asked::One(7..10));
        assert_eq!(parse("bytes=-30", 10), Asked::One(0..10));
        assert_eq!(parse("bytes=5-99", 10), Asked::One(5..10));
        for beyond in ["bytes=10-", "bytes=-0", "bytes=10-12"] {
            assert_eq!(parse(beyond, 10), Asked::Unsatisfiable, "{beyond}");
        }
        assert_eq!(parse("bytes=0-1,4-5", 10), Asked::Several);
        for whole in ["bytes=3-1", "lines=1-2", "bytes=x", "bytes=-", "bytes=99999999999999999999-"] {
            assert_eq!(parse(whole, 10), Asked::Whole, "{whole}");
        }
    }
}
