//! The door for commands of this machine: a unix socket in the data folder, open to whoever may read that folder's
//! keys anyway. One line in (a command), one line out (JSON). It lets `copal-cloud gc` work beside a running server,
//! whose uploads and builds only the server itself can keep apart from the collection.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use crate::{app::App, blobs};

const SOCKET: &str = "control.sock";
/// How long a command may take to be said.
const SAY: Duration = Duration::from_secs(5);

/// Listens until the server stops.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(app: &App) -> anyhow::Result<()> {
    let path = app.config.run().join(SOCKET);
    // Left by a server that was killed; the data folder is locked, so nobody listens on it.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let app = app.clone();
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = app.stopping.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the control socket");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
            };
            let app = app.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(&app, stream).await {
                    tracing::warn!(error = %format!("{error:#}"), "a command over the control socket");
                }
            });
        }
        let _ = std::fs::remove_file(&path);
    });
    Ok(())
}

async fn answer(app: &App, stream: UnixStream) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read).take(100);
    tokio::time::timeout(SAY, read.read_line(&mut line)).await.context("no command came")??;
    let reply = match line.trim() {
        "gc" => match blobs::gc(app).await {
            Ok(report) => serde_json::to_value(report)?,
            Err(error) => serde_json::json!({"error": format!("{error:#}")}),
        },
        other => serde_json::json!({"error": format!("unknown command {other:?}")}),
    };
    write.write_all(format!("{reply}\n").as_bytes()).await?;
    Ok(())
}

/// Says a command to the server of a data folder.
///
/// # Errors
/// When there is none, or it fails; says why.
pub async fn ask(data: &Path, command: &str) -> anyhow::Result<serde_json::Value> {
    let path = data.join("run").join(SOCKET);
    let stream = UnixStream::connect(&path)
        .await
        .with_context(|| format!("asking the server that runs on {}", data.display()))?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{command}\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(read).take(1 << 20).read_line(&mut line).await?;
    let reply: serde_json::Value = serde_json::from_str(&line).context("the server's answer")?;
    match reply.get("error").and_then(|e| e.as_str()) {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(reply),
    }
}
