//! Streams of logs.

use std::path::PathBuf;

use bytes::Bytes;
use copal_protocol::{
    channel::StreamOf,
    logs::{MAX_SEARCH, MAX_TAIL, Sieve},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use super::{read::Reader, ring::folders};
use crate::{
    channel::streams::{End, Source, StreamIo},
    clock::system_time,
};

/// Bytes of lines at a time.
const PIECE: usize = 16 << 10;

/// Feeds streams from the rings.
pub struct Logs {
    /// Where the rings are.
    pub dir: PathBuf,
    /// The number of the last line that can be read.
    pub written: watch::Receiver<u64>,
}

impl Source for Logs {
    fn run(&self, of: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        feed(self.dir.clone(), self.written.clone(), of, io).boxed()
    }
}

async fn feed(dir: PathBuf, mut written: watch::Receiver<u64>, of: StreamOf, io: StreamIo) -> End {
    let StreamOf::Logs(asked) = of else {
        return End::because("not_supported", "no stream of logs");
    };
    let search = asked.only.as_ref().and_then(|only| only.search.as_deref());
    if search.is_some_and(|text| text.chars().count() > MAX_SEARCH) {
        return End::because("not_supported", "what is searched for is too long");
    }
    let (after, tail, follow) = (asked.after, asked.tail.min(MAX_TAIL), asked.follow);
    let sieve = Sieve::new(&asked, system_time());
    let services: Vec<String> = asked.services.iter().map(ToString::to_string).collect();
    let here = folders(&dir).unwrap_or_default();
    if let Some(unknown) = services.iter().find(|service| !here.contains_key(*service)) {
        let named: Vec<&str> = here.keys().map(String::as_str).collect();
        let message =
            format!("no service {unknown} has said anything here; those that have: {}", named.join(", "));
        return End::because("service_unknown", message);
    }
    let failed = |error: std::io::Error| End::because("failed", format!("the logs cannot be read: {error}"));
    // What looks for the last lines may read much.
    let opening = move || Reader::open(dir, services, after, tail, sieve);
    let mut reader = match tokio::task::spawn_blocking(opening).await {
        Ok(Ok(reader)) => reader,
        Ok(Err(error)) => return failed(error),
        Err(error) => return failed(std::io::Error::other(error)),
    };
    io.opened();
    loop {
        written.mark_unchanged();
        let (lines, more) = match reader.batch(PIECE) {
            Ok(batch) => batch,
            Err(error) => return failed(error),
        };
        if !lines.is_empty() {
            if io.send(Bytes::from(lines)).await.is_err() {
                return End::ended();
            }
            continue;
        }
        if more {
            // Nothing that is wanted so far: others have a turn, and whoever asked may be gone.
            tokio::select! {
                biased;
                () = io.gone() => return End::ended(),
                () = tokio::task::yield_now() => continue,
            }
        }
        if !follow {
            return End::ended();
        }
        tokio::select! {
            news = written.changed() => if news.is_err() {
                return End::because("failed", "logs are not collected any more");
            },
            () = io.gone() => return End::ended(),
        }
    }
}
