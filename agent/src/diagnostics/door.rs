//! How a program on this device asks the running agent for the checks that need its login: one line of JSON in, one out, over a
//! socket in a folder that only root enters. Whoever can ask learns what root can see anyway.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use copal_protocol::diagnosis::Diagnosis;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use super::{Deps, PATIENCE, diagnose};
use crate::state::tolerant;

/// Bytes of a request.
const MOST_ASKED: u64 = 4 << 10;
/// Bytes of an answer: as many results as there may be.
const MOST_TOLD: u64 = 1 << 20;
/// A round, and one that was asked for just before.
const WHOLE: Duration = PATIENCE.saturating_mul(2).saturating_add(Duration::from_secs(5));

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    names: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(Diagnosis),
    Refused(String),
}

fn place(run_dir: &Path) -> PathBuf {
    run_dir.join("diagnose").join("door")
}

/// Whether an agent listens there.
#[must_use]
pub fn is_open(run_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(place(run_dir)).is_ok()
}

/// Answers until dropped.
pub async fn serve(deps: Arc<Deps>) {
    let listener = match open(&deps.places.run_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "programs on this device cannot ask for checks: the socket cannot be made");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        // One at a time: whoever says nothing for long is let go.
        if !matches!(tokio::time::timeout(WHOLE, talk(stream, &deps)).await, Ok(Ok(()))) {
            tracing::debug!("a question at the device was not answered");
        }
    }
}

async fn talk(stream: UnixStream, deps: &Deps) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(read.take(MOST_ASKED));
    match tokio::time::timeout(Duration::from_secs(2), reader.read_line(&mut line)).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request { names }) => match Box::pin(diagnose(deps, &names)).await {
            Ok(diagnosis) => Answer::Done(diagnosis),
            Err(e) => Answer::Refused(e.to_string()),
        },
        Err(e) => Answer::Refused(format!("the request is not understood: {e}")),
    };
    let mut bytes = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
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

/// Asks the running agent.
///
/// # Errors
/// Why it did not answer.
pub async fn ask(run_dir: &Path, names: &[String]) -> Result<Diagnosis, String> {
    let path = place(run_dir);
    let asking = async {
        let mut stream = UnixStream::connect(&path).await?;
        let mut line = serde_json::to_vec(&Request { names: names.to_vec() }).map_err(io::Error::other)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut told = Vec::new();
        stream.take(MOST_TOLD).read_to_end(&mut told).await?;
        Ok::<_, io::Error>(told)
    };
    let told = match tokio::time::timeout(WHOLE, asking).await {
        Ok(Ok(told)) => told,
        Ok(Err(e)) => return Err(format!("{}: {e}", path.display())),
        Err(_) => return Err(format!("{}: no answer within {} s", path.display(), WHOLE.as_secs())),
    };
    // The agent that runs may be newer than this program: it updates itself.
    match tolerant::from_slice(&told) {
        Ok(Answer::Done(diagnosis)) if diagnosis.is_sound() => Ok(diagnosis),
        Ok(Answer::Done(_)) => Err("its answer is out of bounds".to_owned()),
        Ok(Answer::Refused(why)) => Err(why),
        Err(e) => Err(format!("its answer is not understood: {e}")),
    }
}
