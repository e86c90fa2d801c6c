//! How a person at the device speaks with the running agent: one line of JSON in, one out, over a socket in a folder that
//! only root enters. What is asked for is judged by the agent, by everything that binds the cloud's targets too.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use copal_protocol::{documents::Reason, ids::Sha256Hex};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::{
    act::{Ask, Asked},
    journal::Key,
    machine::Wanted,
};
use crate::{apply::status::reason, clock::Clock, state::tolerant, target::Store};

/// Bytes of a request or an answer.
const MOST: u64 = 1 << 20;
/// An agent that does not answer within this hangs, or restarts the device just now.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the slots stand.
    Status,
    /// Install this bundle file (an absolute path).
    Install {
        /// The bundle.
        file: PathBuf,
    },
    /// Go back to the other slot.
    Rollback,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// What was begun, or the status.
    Done(String),
    /// Why not.
    Refused(Reason),
}

fn place(run_dir: &Path) -> PathBuf {
    run_dir.join("os").join("door")
}

/// Answers until dropped.
pub async fn serve(run_dir: &Path, store: Arc<Store>, clock: Clock, asks: mpsc::Sender<Asked>) {
    let listener = match open(run_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "people at this device cannot ask for OS updates: the socket cannot be made");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        // One at a time: whoever says nothing for long is let go.
        let talk = async {
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            tokio::io::BufReader::new(read.take(MOST)).read_line(&mut line).await?;
            let answer = match answer(&line, &store, &clock, &asks).await {
                Ok(done) => Answer::Done(done),
                Err(why) => Answer::Refused(why),
            };
            let mut bytes = serde_json::to_vec(&answer).map_err(io::Error::other)?;
            bytes.push(b'\n');
            write.write_all(&bytes).await
        };
        if !matches!(tokio::time::timeout(PATIENCE, talk).await, Ok(Ok(()))) {
            tracing::debug!("a request at the device was not answered");
        }
    }
}

fn open(run_dir: &Path) -> io::Result<UnixListener> {
    let path = place(run_dir);
    let folder = path.parent().unwrap_or(run_dir);
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    UnixListener::bind(&path)
}

async fn answer(
    line: &str,
    store: &Arc<Store>,
    clock: &Clock,
    asks: &mpsc::Sender<Asked>,
) -> Result<String, Reason> {
    let request: Request = serde_json::from_str(line)
        .map_err(|e| reason("os_cancelled", format!("the request is not understood: {e}")))?;
    let ask = match request {
        Request::Status => Ask::Status,
        Request::Rollback => Ask::Rollback,
        Request::Install { file } => {
            let (store, now) = (store.clone(), clock.now());
            let path = file.clone();
            let taken = tokio::task::spawn_blocking(move || take(&path, &store, now)).await;
            let wanted = taken.map_err(|e| reason("os_cancelled", e.to_string()))??;
            Ask::Install { wanted, file }
        }
    };
    let (sender, said) = oneshot::channel();
    let gone = || reason("os_cancelled", "the updater does not answer; look at the agent's log");
    asks.send((ask, sender)).await.map_err(|_| gone())?;
    said.await.map_err(|_| gone())?
}

/// Judges a bundle's release and keeps its document.
fn take(path: &Path, store: &Store, now: u64) -> Result<Wanted, Reason> {
    let cannot = |why: String| reason("os_corrupt", format!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|e| {
        cannot(format!("{e}; the agent's service does not see /home, /root and /tmp: put the bundle under /media, /mnt or /var"))
    })?;
    let contents = copal_bundle::file::read(&mut file).map_err(|e| cannot(e.to_string()))?;
    let release = store
        .judge_os_file(&contents.release)
        .map_err(|e| reason(e.code.as_str(), format!("{}: {}", path.display(), e.detail)))?;
    store.keep_os_file(&release, &contents.release).map_err(|e| reason(e.code(), e.to_string()))?;
    // Each time a person asks is a try of its own.
    let key = Key { release: release.sha256(), retry: now };
    Ok(Wanted { key, version: release.version.clone(), counter: release.counter })
}

/// Asks the running agent; `None` where none answers there.
///
/// # Errors
/// The system's, and an answer that is none.
pub fn ask(run_dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let mut stream = match UnixStream::connect(place(run_dir)) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = serde_json::to_vec(request).map_err(io::Error::other)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, MOST)).read_line(&mut line)?;
    Ok(Some(tolerant::from_slice(line.as_bytes()).map_err(io::Error::other)?))
}

/// Names a release as people compare them.
#[must_use]
pub fn short(release: Sha256Hex) -> String {
    release.to_string()[..12].to_owned()
}
