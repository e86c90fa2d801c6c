//! Processes of a person inside a container.
//!
//! The terminal's own stream is spoken here by hand: the client takes a first byte of 0, 1 or 2 for a header of its own, and what a
//! terminal says may be any bytes.

use std::time::Duration;

use bollard::{
    exec::{ResizeExecOptions, StartExecOptions},
    models::ExecConfig,
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{Engine, EngineError, READ, WRITE};

/// The most bytes before an answer's body.
const MAX_HEAD: usize = 16 << 10;
/// The most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 4 << 10;

/// A process that was asked for.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// What runs.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// With a terminal, and with streams.
    pub tty: bool,
    /// As root, whatever the container's user is.
    pub root: bool,
}

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecState {
    /// It runs.
    pub running: bool,
    /// What it ended with.
    pub exit_code: Option<i64>,
    /// Its number on the engine's host.
    pub pid: Option<i64>,
}

impl Engine {
    /// Prepares a process in a running container, and gives its id.
    ///
    /// # Errors
    /// Where the container is gone or does not run.
    pub async fn exec_create(&self, container: &str, request: ExecRequest) -> Result<String, EngineError> {
        let config = ExecConfig {
            attach_stdin: Some(request.tty),
            attach_stdout: Some(request.tty),
            attach_stderr: Some(request.tty),
            tty: Some(request.tty),
            env: Some(request.env),
            cmd: Some(request.command),
            user: request.root.then(|| "0".to_owned()),
            ..ExecConfig::default()
        };
        let container = container.to_owned();
        let made = self
            .call("preparing a process", WRITE, |d| async move { d.create_exec(&container, config).await });
        Ok(made.await?.id)
    }

    /// Starts one whose streams nobody wants.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn exec_run(&self, exec: &str) -> Result<(), EngineError> {
        let exec = exec.to_owned();
        let detached = StartExecOptions { detach: true, tty: false, output_capacity: None };
        let started = self
            .call("starting a process", WRITE, |d| async move { d.start_exec(&exec, Some(detached)).await });
        started.await.map(|_| ())
    }

    /// Starts one with a terminal: its stream, and what of it has come already.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn exec_attach(&self, exec: &str) -> Result<(UnixStream, Bytes), EngineError> {
        const WHAT: &str = "starting a terminal";
        let broken = |detail: String| EngineError::Broken { what: WHAT.to_owned(), detail };
        let host = self.host();
        let path = host.strip_prefix("unix://").unwrap_or(host);
        let talk = async {
            let absent =
                |e: std::io::Error| EngineError::Absent { host: host.to_owned(), detail: e.to_string() };
            let mut socket = UnixStream::connect(path).await.map_err(absent)?;
            let body = r#"{"Detach":false,"Tty":true}"#;
            let request = format!(
                "POST /exec/{exec}/start HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n\
                 Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(request.as_bytes()).await.map_err(|e| broken(e.to_string()))?;
            let mut came = BytesMut::with_capacity(4 << 10);
            let end = loop {
                if let Some(end) = came.windows(4).position(|w| w == b"\r\n\r\n") {
                    break end + 4;
                }
                if came.len() > MAX_HEAD {
                    return Err(broken("the head of the answer does not end".to_owned()));
                }
                match socket.read_buf(&mut came).await {
                    Ok(0) => return Err(broken("the engine closed the connection".to_owned())),
                    Ok(_) => {}
                    Err(e) => return Err(broken(e.to_string())),
                }
            };
            let head = came.split_to(end);
            match status(&head) {
                // Engines that were not asked to upgrade, or do not know it, say 200 and go on the same.
                Some(101 | 200) => Ok((socket, came.freeze())),
                Some(status) => {
                    while came.len() < MAX_REFUSAL {
                        let more =
                            tokio::time::timeout(Duration::from_millis(200), socket.read_buf(&mut came));
                        if !matches!(more.await, Ok(Ok(n)) if n > 0) {
                            break;
                        }
                    }
                    let message = super::error::tidy(&String::from_utf8_lossy(&came));
                    Err(EngineError::Refused { what: WHAT.to_owned(), status, message })
                }
                None => Err(broken("the engine's answer is not HTTP".to_owned())),
            }
        };
        match tokio::time::timeout(READ, talk).await {
            Ok(result) => result,
            Err(_) => Err(EngineError::Timeout { what: WHAT.to_owned(), after: READ }),
        }
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// Where the process has not started yet, or has ended.
    pub async fn exec_resize(&self, exec: &str, cols: u16, rows: u16) -> Result<(), EngineError> {
        let exec = exec.to_owned();
        self.call("resizing a terminal", READ, |d| async move {
            d.resize_exec(&exec, ResizeExecOptions { height: rows, width: cols }).await
        })
        .await
    }

    /// How a process stands.
    ///
    /// # Errors
    /// Where the engine has forgotten it.
    pub async fn exec_state(&self, exec: &str) -> Result<ExecState, EngineError> {
        let exec = exec.to_owned();
        let found =
            self.call("asking after a process", READ, |d| async move { d.inspect_exec(&exec).await }).await?;
        Ok(ExecState {
            running: found.running.unwrap_or(false),
            exit_code: found.exit_code,
            pid: found.pid.filter(|pid| *pid > 0),
        })
    }
}

/// The status of an answer's first line.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that answers anything with `answer`.
    async fn attach(answer: &'static [u8]) -> Result<(UnixStream, Bytes), EngineError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let serve = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let n = socket.read(&mut asked).await.unwrap();
            socket.write_all(answer).await.unwrap();
            String::from_utf8(asked[..n].to_vec()).unwrap()
        });
        let engine = Engine::connect(Some(&format!("unix://{}", path.display())));
        let attached = engine.exec_attach("abc").await;
        assert!(serve.await.unwrap().starts_with("POST /exec/abc/start HTTP/1.1\r\n"));
        attached
    }

    #[tokio::test]
    async fn a_terminal_may_begin_with_any_byte() {
        let answer = b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n\x01\x00\x02$ ";
        let (_, came) = attach(answer).await.unwrap();
        assert_eq!(&came[..], b"\x01\x00\x02$ ");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_engines_words() {
        let answer = b"HTTP/1.1 409 Conflict\r\n\r\n{\"message\":\"container is paused\"}";
        let error = attach(answer).await.unwrap_err().to_string();
        assert!(error.contains("409") && error.contains("container is paused"), "{error}");
        let error = attach(b"hello\r\n\r\n").await.unwrap_err().to_string();
        assert!(error.contains("not HTTP"), "{error}");
    }
}
