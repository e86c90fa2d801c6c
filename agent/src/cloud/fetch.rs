//! Reading an answer: never more than its cap, never slower than 1 KiB/s for 60 s, never past a total deadline.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use copal_protocol::device_api::Problem;
use http::header;

use super::{backoff::retry_after, error::CloudError};

/// Bytes of a refusal that are read.
pub(super) const MOST_REFUSED: usize = 16 << 10;

/// How patient a reader is.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Until the headers are there.
    pub first_byte: Duration,
    /// A stretch that brings fewer than `least` bytes is too slow.
    pub window: Duration,
    /// Bytes a window must bring.
    pub least: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(60), window: Duration::from_secs(60), least: 60 << 10 }
    }
}

impl Limits {
    /// The longest a whole document of at most `cap` bytes may take: its bytes at the slowest rate, and the headers.
    #[must_use]
    pub fn deadline(&self, cap: usize) -> Duration {
        let windows = (cap as u64).div_ceil(self.least.max(1)) + 1;
        self.first_byte + self.window * u32::try_from(windows).unwrap_or(u32::MAX)
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status: 2xx or 304.
    pub status: u16,
    /// Without its quotes.
    pub etag: Option<String>,
    /// At most the cap.
    pub body: Bytes,
}

/// A blob being read.
pub struct Blob {
    response: reqwest::Response,
    /// Which byte of the blob the next chunk begins at.
    at: u64,
    pace: Pace,
}

impl Blob {
    pub(super) fn new(response: reqwest::Response, at: u64, limits: Limits) -> Self {
        Self { response, at, pace: Pace::new(limits) }
    }

    /// Which byte of the blob the next chunk begins at.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// `E_TRANSPORT`, `E_SLOW`.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CloudError> {
        let chunk = self.pace.next(&mut self.response).await?;
        if let Some(bytes) = &chunk {
            self.at += bytes.len() as u64;
        }
        Ok(chunk)
    }
}

struct Pace {
    limits: Limits,
    began: Instant,
    brought: u64,
}

impl Pace {
    fn new(limits: Limits) -> Self {
        Self { limits, began: Instant::now(), brought: 0 }
    }

    async fn next(&mut self, response: &mut reqwest::Response) -> Result<Option<Bytes>, CloudError> {
        let left = self.limits.window.saturating_sub(self.began.elapsed());
        match tokio::time::timeout(left, response.chunk()).await {
            Ok(Ok(chunk)) => {
                self.brought += chunk.as_ref().map_or(0, |b| b.len() as u64);
                if self.brought >= self.limits.least {
                    // This stretch was fast enough; the next begins.
                    self.began = Instant::now();
                    self.brought = 0;
                }
                Ok(chunk)
            }
            Ok(Err(e)) => {
                Err(CloudError::transport(format!("the connection broke while reading: {}", e.without_url())))
            }
            Err(_) => Err(CloudError::Slow(format!(
                "{} bytes in {} s; at least {} are expected: the connection is too slow",
                self.brought,
                self.limits.window.as_secs(),
                self.limits.least
            ))),
        }
    }
}

/// Reads a whole body of at most `cap` bytes.
pub(super) async fn read_body(
    mut response: reqwest::Response,
    cap: usize,
    limits: &Limits,
) -> Result<Bytes, CloudError> {
    let too_large = || {
        CloudError::TooLarge(format!(
            "more than the {cap} bytes this kind of answer may have: reading was stopped"
        ))
    };
    if response.content_length().is_some_and(|n| n > cap as u64) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    let mut pace = Pace::new(limits.clone());
    while let Some(chunk) = pace.next(&mut response).await? {
        if body.len() + chunk.len() > cap {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What a refusing answer says.
pub(super) async fn refusal(response: reqwest::Response, limits: &Limits, now: u64) -> CloudError {
    let status = response.status().as_u16();
    let retry = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|v| v.to_str().ok())
        .map(|v| retry_after(v, now));
    let problem: Option<Problem> = match read_body(response, MOST_REFUSED, limits).await {
        Ok(body) => serde_json::from_slice(&body).ok(),
        Err(_) => None,
    };
    let bounded =
        |text: &str, max: usize| -> String { text.chars().filter(|c| !c.is_control()).take(max).collect() };
    let (code, detail) = match problem {
        Some(p) => {
            (bounded(&p.code, 64), bounded(if p.detail.is_empty() { &p.title } else { &p.detail }, 500))
        }
        None => (String::new(), "without saying why".to_owned()),
    };
    CloudError::Refused { status, code, detail, retry_after: retry }
}
