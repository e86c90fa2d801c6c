//! A build's log: a file that grows while it is followed, bounded, and free of control characters.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::{
    fs,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::watch,
};

/// The longest line kept, in bytes.
const MAX_LINE: usize = 2000;

/// How much a follower gets at once.
const CHUNK: u64 = 32 << 10;

/// How far a log is, and whether it will go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    length: u64,
    ended: bool,
}

/// A log being written.
#[derive(Debug)]
pub(super) struct Log {
    file: Mutex<std::fs::File>,
    max: u64,
    extent: watch::Sender<Extent>,
    path: PathBuf,
}

impl Log {
    pub(super) fn create(path: &Path, max: u64) -> std::io::Result<Self> {
        let file = std::fs::File::create(path)?;
        let extent = watch::Sender::new(Extent { length: 0, ended: false });
        Ok(Self { file: Mutex::new(file), max, extent, path: path.to_owned() })
    }

    /// Adds text, line by line. A log that cannot be written does not fail its build.
    pub(super) fn say(&self, text: &str) {
        for line in text.lines() {
            self.line(&plain(line));
        }
    }

    fn line(&self, line: &str) {
        let now = self.extent.borrow().length;
        if now >= self.max {
            return;
        }
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\n');
        if now + bytes.len() as u64 >= self.max {
            bytes = b"[the log is full; the build goes on without it]\n".to_vec();
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match file.write_all(&bytes) {
            Ok(()) => {
                let full = bytes.starts_with(b"[the log is full");
                self.extent.send_modify(|e| {
                    e.length += bytes.len() as u64;
                    if full {
                        e.length = e.length.max(self.max);
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "writing a build log"),
        }
    }

    pub(super) fn end(&self) {
        self.extent.send_modify(|e| e.ended = true);
    }

    pub(super) fn follow(&self) -> Follower {
        Follower { path: self.path.clone(), offset: 0, extent: Some(self.extent.subscribe()) }
    }
}

/// Without escape sequences and control characters: a log is shown in terminals and pages, and must not steer them.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len().min(MAX_LINE));
    let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if out.len() >= MAX_LINE {
            out.push('…');
            break;
        }
        match c {
            '\u{1b}' => {
                // CSI sequences end at a letter, OSC at BEL or ESC; others are one character.
                match chars.next() {
                    Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                    Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                    _ => {}
                }
            }
            '\t' => out.push('\t'),
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {}
            c => out.push(c),
        }
    }
    out
}

/// Reads a log from its beginning, waiting for more while it grows.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    offset: u64,
    extent: Option<watch::Receiver<Extent>>,
}

/// A follower of a log that has ended; an absent file is an empty log.
#[must_use]
pub fn follow(path: PathBuf) -> Follower {
    Follower { path, offset: 0, extent: None }
}

impl Follower {
    /// Does not wait for more than there is now.
    #[must_use]
    pub fn so_far(mut self) -> Self {
        self.extent = None;
        self
    }

    /// The next piece, whole lines as far as they fit; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            // Read before looking whether it has ended: what was written in between is seen next time around.
            let ended = self.extent.as_mut().is_none_or(|e| e.borrow_and_update().ended);
            let mut file = match fs::File::open(&self.path).await {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            file.seek(std::io::SeekFrom::Start(self.offset)).await?;
            let mut buffer = Vec::new();
            file.take(CHUNK).read_to_end(&mut buffer).await?;
            if let Some(end) = buffer.iter().rposition(|b| *b == b'\n') {
                buffer.truncate(end + 1);
            } else if !ended {
                buffer.clear();
            }
            if !buffer.is_empty() {
                self.offset += buffer.len() as u64;
                return Ok(Some(buffer.into()));
            }
            let Some(extent) = self.extent.as_mut().filter(|_| !ended) else { return Ok(None) };
            if extent.changed().await.is_err() {
                // The writer is gone: what is there is all there will be.
                self.extent = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut follower: Follower) -> String {
        let mut out = Vec::new();
        while let Some(piece) = follower.next().await.unwrap() {
            out.extend_from_slice(&piece);
        }
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_follower_sees_every_line_from_the_first_to_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(&dir.path().join("l"), 1 << 20).unwrap();
        log.say("one");
        let follower = tokio::spawn(all(log.follow()));
        for i in 0..500 {
            log.say(&format!("line {i}"));
            if i % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        log.end();
        let text = follower.await.unwrap();
        assert_eq!(text.lines().count(), 501);
        assert_eq!(text, all(follow(dir.path().join("l"))).await);
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_inert() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(&dir.path().join("l"), 300).unwrap();
        log.say("\u{1b}]0;title\u{7}\u{1b}[31mred\u{1b}[0m \u{8}x\u{202e}");
        for _ in 0..100 {
            log.say("0123456789");
        }
        log.end();
        let text = all(log.follow()).await;
        assert!(text.starts_with("red x\n"), "{text:?}");
        assert!(text.ends_with("[the log is full; the build goes on without it]\n"));
        assert!(text.len() < 400);
    }
}
