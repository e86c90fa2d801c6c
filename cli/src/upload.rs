//! A blob to the server in pieces, through lost connections. The server says where it stands; what it has is not sent
//! again.

use std::{
    io::SeekFrom,
    path::Path,
    time::{Duration, Instant},
};

use copal_bundle::file::Span;
use copal_protocol::ids::Sha256Hex;
use futures_util::stream;
use indicatif::ProgressBar;
use reqwest::{Method, header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::{
    failure::{Failure, Kind, Result},
    http::{Api, seg},
};

/// Bytes of a piece. The server takes 16 MiB; with less, a lost connection costs less to tell.
const PIECE: u64 = 8 << 20;
/// Bytes between two movements of the bar.
const STEP: usize = 64 << 10;
/// The longest a piece may take: at 32 kB/s.
const PIECE_TIME: Duration = Duration::from_secs(270);
/// The longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// A blob that lies in a file.
#[derive(Debug, Clone)]
pub struct Blob<'a> {
    /// What it is, for people: `rootfs.data`.
    pub name: &'a str,
    /// The file.
    pub file: &'a Path,
    /// Where in it.
    pub span: Span,
    /// Its hash.
    pub sha256: Sha256Hex,
}

/// What an upload sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes sent now.
    pub sent: u64,
    /// Bytes the server had.
    pub skipped: u64,
}

/// Uploads a blob; `patience` is how long to go on without any progress.
///
/// # Errors
/// A refusal that trying again does not change, the network's failure when patience ends, or the file's.
pub async fn upload(
    api: &Api,
    fleet: &str,
    blob: &Blob<'_>,
    patience: Duration,
    bar: &ProgressBar,
) -> Result<Sent> {
    let what = format!("upload {}", blob.name);
    let path = format!("/fleets/{}/uploads", seg(fleet));
    let wanted = json!({ "sha256": blob.sha256, "size": blob.span.size });
    let mut tries = Tries { since: Instant::now(), patience, wait: Duration::from_millis(500) };
    let begun = loop {
        match api.call(&what, Method::POST, &path, Some(&wanted)).await {
            Ok(begun) => break begun,
            Err(failure) => tries.again(failure).await?,
        }
    };
    let path = format!("{path}/{}", seg(begun["id"].as_str().unwrap_or_default()));
    let mut at = stands(&what, &begun, blob)?;
    let mut done = begun["done"] == true;
    let skipped = at;
    bar.set_position(at);
    let mut file = tokio::fs::File::open(blob.file).await.map_err(|e| Failure::local(&what, e))?;
    let mut damaged = false;
    while !done {
        let piece = read(&mut file, blob, at).await.map_err(|e| Failure::local(&what, e))?;
        let answer = match send(api, &what, &path, at, piece, bar).await {
            Ok(answer) => answer,
            Err(failure) if failure.code == "digest_mismatch" => {
                if damaged {
                    return Err(failure.next("the file is damaged: make the bundle anew"));
                }
                damaged = true;
                at = 0;
                continue;
            }
            Err(failure) => {
                tries.again(failure).await?;
                match api.get(&what, &path).await {
                    Ok(answer) => answer,
                    Err(failure) if is_passing(&failure) => continue,
                    Err(failure) => return Err(failure),
                }
            }
        };
        let now = stands(&what, &answer, blob)?;
        if now > at {
            tries.progress();
        }
        at = now;
        done = answer["done"] == true;
        bar.set_position(at);
    }
    bar.set_position(blob.span.size);
    Ok(Sent { sent: blob.span.size - skipped.min(blob.span.size), skipped })
}

fn stands(what: &str, answer: &Value, blob: &Blob<'_>) -> Result<u64> {
    answer["offset"].as_u64().filter(|at| *at <= blob.span.size).ok_or_else(|| {
        Failure::new(
            Kind::Network,
            "answer_not_understood",
            what,
            "the server does not say where the upload stands",
        )
    })
}

async fn read(file: &mut tokio::fs::File, blob: &Blob<'_>, at: u64) -> std::io::Result<Vec<u8>> {
    let length = (blob.span.size - at).min(PIECE);
    file.seek(SeekFrom::Start(blob.span.offset + at)).await?;
    let mut piece = Vec::new();
    file.take(length).read_to_end(&mut piece).await?;
    if piece.len() as u64 != length {
        return Err(std::io::Error::other("the file became shorter while it was read"));
    }
    Ok(piece)
}

async fn send(
    api: &Api,
    what: &str,
    path: &str,
    at: u64,
    piece: Vec<u8>,
    bar: &ProgressBar,
) -> Result<Value> {
    let length = piece.len();
    let bar = bar.clone();
    let steps: Vec<(u64, Vec<u8>)> =
        piece.chunks(STEP).enumerate().map(|(n, step)| (at + (n * STEP) as u64, step.to_vec())).collect();
    let body = stream::iter(steps.into_iter().map(move |(at, step)| {
        bar.set_position(at);
        std::io::Result::Ok(step)
    }));
    let request = api
        .request(Method::PATCH, &format!("{path}?offset={at}"))
        .timeout(PIECE_TIME)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .body(reqwest::Body::wrap_stream(body));
    let response = api.send(what, request).await?;
    api.json(what, response).await
}

/// Whether trying again may help.
fn is_passing(failure: &Failure) -> bool {
    const CODES: &[&str] = &["upload_offset", "upload_busy", "body_cut", "body_unreadable", "http_408"];
    matches!(failure.kind, Kind::Network | Kind::Timeout) && failure.code != "disk_full"
        || CODES.contains(&failure.code.as_str())
}

/// How long to go on.
struct Tries {
    since: Instant,
    patience: Duration,
    wait: Duration,
}

impl Tries {
    fn progress(&mut self) {
        self.since = Instant::now();
        self.wait = Duration::from_millis(500);
    }

    /// Waits before the next try, or gives up.
    async fn again(&mut self, failure: Failure) -> Result<()> {
        if !is_passing(&failure) {
            return Err(failure);
        }
        if self.since.elapsed() >= self.patience {
            return Err(failure.next("what arrived is kept for a week: the same command goes on from there"));
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(MAX_WAIT);
        Ok(())
    }
}
