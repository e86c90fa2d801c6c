//! Bytes of blobs by range, from a network that cuts, stalls, and sometimes gives more than was asked for.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use copal_protocol::ids::Sha256Hex;
use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use tokio_util::sync::CancellationToken;

use super::{InstallError, Patience};

/// How often a server that knows no ranges is asked for the whole again.
const WHOLE_AGAIN: u32 = 3;

/// Where blobs come from.
pub trait Blobs: Send + Sync {
    /// Bytes `from..to` of a blob. A server that ignores the range gives the whole: then [`Ranged::from`] is 0.
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>>;
}

/// An answer.
pub struct Ranged {
    /// Where in the blob it begins.
    pub from: u64,
    /// The bytes, in order. It may end early.
    pub stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// Why nothing, or nothing more, came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct FetchError {
    /// For a person.
    pub why: String,
    /// Whether asking again can help.
    pub again: bool,
    /// How long the server asks to wait.
    pub after: Option<Duration>,
}

impl FetchError {
    /// A failure that may pass.
    #[must_use]
    pub fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: true, after: None }
    }
}

/// Fetches ranges to their end, whatever it takes within the limits of patience.
pub(super) struct Fetcher {
    source: Arc<dyn Blobs>,
    patience: Patience,
    pub(super) cancel: CancellationToken,
    runtime: tokio::runtime::Handle,
    /// The answer that is being read. One that is the whole blob is kept: the next range lies further on in it.
    open: Option<Open>,
    whole_again: u32,
    pub(super) received: u64,
    pub(super) requests: u64,
}

struct Open {
    blob: Sha256Hex,
    /// Where its next byte belongs.
    at: u64,
    /// Where it ends; the end of the blob is not known here.
    end: u64,
    left: Bytes,
    stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

impl Fetcher {
    pub(super) fn new(
        source: Arc<dyn Blobs>,
        patience: Patience,
        cancel: CancellationToken,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { source, patience, cancel, runtime, open: None, whole_again: 0, received: 0, requests: 0 }
    }

    /// Stops where the installation was told to.
    pub(super) fn check(&self) -> Result<(), InstallError> {
        if self.cancel.is_cancelled() { Err(InstallError::cancelled()) } else { Ok(()) }
    }

    /// Gives `from..to` of a blob to `sink`, piece by piece, each byte once. A request that must be made asks for all up to
    /// `upto`, for the calls that follow.
    pub(super) fn fetch(
        &mut self,
        blob: Sha256Hex,
        (from, to, upto): (u64, u64, u64),
        sink: &mut dyn FnMut(&[u8]) -> Result<(), InstallError>,
    ) -> Result<(), InstallError> {
        let fits = |open: &Open| open.blob == blob && open.at <= from && to <= open.end;
        self.open = self.open.take().filter(fits);
        let mut at = from;
        let mut failures = 0;
        while at < to {
            self.check()?;
            match self.next(blob, at, upto) {
                Ok((start, bytes)) => {
                    let within =
                        |place: u64| usize::try_from(place.saturating_sub(start)).unwrap_or(usize::MAX);
                    let (skip, useful) = (within(at).min(bytes.len()), within(to).min(bytes.len()));
                    if let Some(open) = &mut self.open {
                        open.at = start + useful as u64;
                        open.left = bytes.slice(useful..);
                    }
                    if skip < useful {
                        sink(&bytes[skip..useful])?;
                        at = start + useful as u64;
                        failures = 0;
                    }
                }
                Err(error) => {
                    self.open = None;
                    failures += 1;
                    if !error.again || failures > self.patience.tries {
                        let what = format!("could not fetch the blob {blob} from byte {at}: {error}");
                        return Err(InstallError::new("os_download", what));
                    }
                    self.wait(failures, error.after)?;
                }
            }
        }
        Ok(())
    }

    /// The next bytes, and where they belong.
    fn next(&mut self, blob: Sha256Hex, at: u64, upto: u64) -> Result<(u64, Bytes), FetchError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open(blob, at, upto)?,
        };
        let bytes = if open.left.is_empty() {
            self.receive(&mut open.stream)?
        } else {
            std::mem::take(&mut open.left)
        };
        let start = open.at;
        self.open = Some(open);
        Ok((start, bytes))
    }

    fn open(&mut self, blob: Sha256Hex, from: u64, to: u64) -> Result<Open, FetchError> {
        self.requests += 1;
        let cancel = self.cancel.clone();
        let answer = self.runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => Err(FetchError::passing("stopped")),
                answer = tokio::time::timeout(self.patience.idle, self.source.range(blob, from, to)) =>
                    answer.unwrap_or_else(|_| Err(FetchError::passing("the server did not answer in time"))),
            }
        })?;
        if answer.from > from {
            let why = format!("the server answered from byte {} when asked from {from}", answer.from);
            return Err(FetchError { why, again: false, after: None });
        }
        if answer.from < from {
            self.whole_again += 1;
            if self.whole_again > WHOLE_AGAIN {
                let why =
                    "the server (or a proxy before it) ignores ranges, and its answers break off".to_owned();
                return Err(FetchError { why, again: false, after: None });
            }
        }
        let end = if answer.from < from { u64::MAX } else { to };
        Ok(Open { blob, at: answer.from, end, left: Bytes::new(), stream: answer.stream })
    }

    fn receive(
        &mut self,
        stream: &mut BoxStream<'static, Result<Bytes, FetchError>>,
    ) -> Result<Bytes, FetchError> {
        let cancel = self.cancel.clone();
        let idle = self.patience.idle;
        let bytes = self.runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => Err(FetchError::passing("stopped")),
                next = tokio::time::timeout(idle, stream.next()) => match next {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) => Err(FetchError::passing("the answer ended too early")),
                    Err(_) => Err(FetchError::passing("nothing came for too long")),
                },
            }
        })?;
        self.received += bytes.len() as u64;
        Ok(bytes)
    }

    fn wait(&self, failures: u32, asked: Option<Duration>) -> Result<(), InstallError> {
        let grown = self.patience.base * (1 << failures.saturating_sub(1).min(6));
        let mut random = [0; 1];
        // Without randomness all devices wait alike, which is no worse than not waiting.
        let _ = getrandom::fill(&mut random);
        let wait = asked.unwrap_or_default().max(grown / 2 + grown * u32::from(random[0]) / 512);
        self.runtime.block_on(async {
            tokio::select! {
                () = self.cancel.cancelled() => Err(InstallError::cancelled()),
                () = tokio::time::sleep(wait.min(Duration::from_secs(300))) => Ok(()),
            }
        })
    }
}
