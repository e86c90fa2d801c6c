//! A terminal on a device, from this side: over the server's WebSocket, under a grant end to end.
//!
//! In: a session that was asked for. Out: its bytes, and how it ended. Under a grant the device's offer is believed under its own key alone,
//! which its card's introduction secret vouches for; then the server, which passes everything on, reads nothing of it.

pub mod grant;
mod tty;

use std::{io::Write as _, time::Duration};

use copal_protocol::{
    documents::TerminalTarget,
    ids::SessionId,
    terminal::{Line, RecordKind, Records},
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};

use self::{
    grant::Operator,
    tty::{Escape, Raw},
};
use crate::{
    failure::{Failure, Kind, Result},
    http::Api,
};

pub(crate) use tty::size as window_size;

const SUBPROTOCOL: &str = "copal.terminal.v1";
/// How long the device may take to open it.
const OPENS: Duration = Duration::from_secs(30);
/// The end of input, as a terminal says it.
const END_OF_INPUT: &[u8] = b"\x04";

/// A session that was asked for.
pub struct Asked {
    /// What is done, for messages.
    pub what: String,
    /// The WebSocket, below the server's address.
    pub path: String,
    /// Its id.
    pub session: SessionId,
    /// What it opens.
    pub target: TerminalTarget,
    /// By whom it is granted, where it needs that.
    pub operator: Option<Operator>,
}

/// How a terminal ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Ended {
    /// Stable.
    pub code: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Of the shell.
    #[serde(default)]
    pub exit_code: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum Told {
    Opened,
    Closed(Ended),
}

/// An open terminal.
pub struct Terminal {
    what: String,
    socket: WebSocketStream<reqwest::Upgraded>,
    /// Its keys, where it runs end to end, and what has come of a record.
    line: Option<(Line, Records)>,
}

enum Came {
    Bytes(Vec<u8>),
    Ended(Ended),
}

impl Terminal {
    /// Opens it: waits for the device, and signs the grant where one is needed.
    ///
    /// # Errors
    /// Why it did not open.
    pub async fn open(api: &Api, asked: Asked) -> Result<Self> {
        let Asked { what, path, session, target, operator } = asked;
        let upgraded = api.upgrade(&what, &path, SUBPROTOCOL).await?;
        let config = WebSocketConfig::default().max_message_size(Some(1 << 20)).max_frame_size(Some(1 << 20));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let mut terminal = Self { what, socket, line: None };
        let late = || {
            Failure::new(
                Kind::Timeout,
                "timeout",
                terminal_what(&session),
                "the device did not open it in time",
            )
        };
        let opened = timeout(OPENS, terminal.opened()).await;
        opened.map_err(|_| late())??;
        let Some(operator) = operator else { return Ok(terminal) };

        let mut records = Records::default();
        let offer = loop {
            match records.whole() {
                Ok(Some((RecordKind::Offer, body))) => break body,
                Ok(Some(_)) | Err(_) => {
                    return Err(Failure::trust(
                        "line_broken",
                        &terminal.what,
                        "the device does not ask for a grant, and this was to run under one: does it have the newest root?",
                    ));
                }
                Ok(None) => {}
            }
            match timeout(OPENS, terminal.came_raw()).await.map_err(|_| late())?? {
                Came::Bytes(bytes) => records.push(&bytes),
                Came::Ended(ended) => return Err(failure(&terminal.what, &ended)),
            }
        };
        let (grant, line) = operator.answer(&terminal.what, &offer, session, &target)?;
        terminal.send_raw(grant).await?;
        terminal.line = Some((line, records));
        Ok(terminal)
    }

    async fn opened(&mut self) -> Result<()> {
        loop {
            match self.message().await? {
                Message::Text(text) => match told(&text) {
                    Some(Told::Opened) => return Ok(()),
                    Some(Told::Closed(ended)) => return Err(failure(&self.what, &ended)),
                    None => {}
                },
                Message::Close(_) => return Err(self.broken("the server closed the connection")),
                _ => {}
            }
        }
    }

    fn broken(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Network, "broken", &self.what, why)
    }

    async fn message(&mut self) -> Result<Message> {
        match self.socket.next().await {
            Some(Ok(message)) => Ok(message),
            Some(Err(e)) => Err(self.broken(e)),
            None => Err(self.broken("the server closed the connection")),
        }
    }

    async fn send_raw(&mut self, bytes: Vec<u8>) -> Result<()> {
        let sent = self.socket.send(Message::Binary(bytes.into())).await;
        sent.map_err(|e| self.broken(e))
    }

    /// What comes next, as the device said it.
    async fn came_raw(&mut self) -> Result<Came> {
        loop {
            match self.message().await? {
                Message::Binary(bytes) => return Ok(Came::Bytes(bytes.into())),
                Message::Text(text) => {
                    if let Some(Told::Closed(ended)) = told(&text) {
                        return Ok(Came::Ended(ended));
                    }
                }
                Message::Close(_) => return Err(self.broken("the server closed the connection")),
                _ => {}
            }
        }
    }

    /// What comes next, in the clear. Nothing is lost when the wait is given up.
    async fn came(&mut self) -> Result<Came> {
        loop {
            if let Some((line, records)) = &mut self.line {
                let mut plain = Vec::new();
                let broken = |why: String| Failure::trust("line_broken", &self.what, why);
                while let Some((kind, body)) = records.whole().map_err(|e| broken(e.to_string()))? {
                    if kind != RecordKind::Sealed {
                        return Err(broken("a record out of place".to_owned()));
                    }
                    plain.extend(line.hears.open(&body).map_err(|e| broken(e.to_string()))?);
                }
                if !plain.is_empty() {
                    return Ok(Came::Bytes(plain));
                }
            }
            match (self.came_raw().await?, &mut self.line) {
                (Came::Bytes(bytes), Some((_, records))) => records.push(&bytes),
                (came, _) => return Ok(came),
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes = match &mut self.line {
            Some((line, _)) => line.says.seal(bytes),
            None => bytes.to_vec(),
        };
        self.send_raw(bytes).await
    }

    /// Reads all it says, as far as `most` bytes.
    ///
    /// # Errors
    /// Where it ends otherwise than well.
    pub async fn read_all(mut self, most: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.came().await? {
                Came::Bytes(bytes) => all.extend(bytes),
                Came::Ended(ended) if ended.code == "ended" => return Ok(all),
                Came::Ended(ended) => return Err(failure(&self.what, &ended)),
            }
            if all.len() > most {
                return Err(Failure::new(
                    Kind::Network,
                    "answer_too_large",
                    self.what,
                    format!("more than {most} bytes came"),
                ));
            }
        }
    }

    /// Shows it in this terminal until it ends.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn show(mut self) -> Result<Ended> {
        let mut windows =
            signal(SignalKind::window_change()).map_err(|e| Failure::local("hear of windows", e))?;
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|e| Failure::local("hear of the end", e))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(|e| Failure::local("hear of the end", e))?;
        let raw = Raw::enter();
        let mut typed = tty::typed();
        let mut escape = Escape::default();
        let mut said_end = false;
        let left = |why: &str| Ended { code: "left".to_owned(), message: why.to_owned(), exit_code: None };
        let ended = loop {
            tokio::select! {
                came = self.came() => match came? {
                    Came::Bytes(bytes) => {
                        // Whoever reads slowly slows the device: nothing is read while this is written.
                        let mut out = std::io::stdout().lock();
                        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                            break left("nobody reads its output");
                        }
                    }
                    Came::Ended(ended) => break ended,
                },
                keys = typed.recv(), if !said_end => match keys {
                    Some(keys) if escape.is_in(&keys) => break left("it was left by ~."),
                    Some(keys) => self.send(&keys).await?,
                    None => {
                        said_end = true;
                        self.send(END_OF_INPUT).await?;
                    }
                },
                _ = windows.recv() => if let Some((cols, rows)) = tty::size() {
                    let resize = json!({ "t": "resize", "cols": cols, "rows": rows }).to_string();
                    let sent = self.socket.send(Message::Text(resize.into())).await;
                    sent.map_err(|e| self.broken(e))?;
                },
                _ = terminate.recv() => break left("this program was told to end"),
                _ = hangup.recv() => break left("this terminal was closed"),
            }
        };
        drop(raw);
        let _ = timeout(Duration::from_secs(2), self.socket.close(None)).await;
        Ok(ended)
    }
}

fn terminal_what(session: &SessionId) -> String {
    format!("open the terminal {session}")
}

fn told(text: &str) -> Option<Told> {
    serde_json::from_str(text).ok()
}

/// A terminal that did not open, or did not end by itself.
#[must_use]
pub fn failure(what: &str, ended: &Ended) -> Failure {
    let kind = match ended.code.as_str() {
        "device_away" => Kind::Timeout,
        "policy_local" | "terminal_off" | "access_lost" => Kind::Refused,
        code if code.starts_with("E_") => Kind::Trust,
        "line_broken" => Kind::Trust,
        "service_unknown" | "recording_unknown" => Kind::NotFound,
        _ => Kind::Failure,
    };
    let why = if ended.message.is_empty() { "the terminal ended" } else { &ended.message };
    let failure = Failure::new(kind, &ended.code, what, why);
    match ended.code.as_str() {
        "not_running" => failure.next("copal device start DEVICE SERVICE"),
        "no_shell" => {
            failure.next("add a shell to the image, or look from outside: copal logs, copal device diagnose")
        }
        "line_broken" => {
            failure.next("under a grant both sides speak end to end: add --grant, or use a newer copal")
        }
 "terminal_mode" => failure.next(
            "copal device show DEVICE tells the root it trusts; open it again when that is the fleet's newest (copal root show)",
        ),
        "idle" | "time_over" | "bytes_over" => failure.next("open another"),
        _ => failure,
    }
}
