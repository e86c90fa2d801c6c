//! A container's log as it grows. Spoken without the client: that one collects a line without an end until it has one, and a
//! program that only draws a progress bar never ends its line.

use std::{collections::HashMap, io::ErrorKind, time::Duration};

use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use bytes::{Buf as _, Bytes, BytesMut};
use copal_protocol::ids::Name;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{Engine, EngineError, READ};
use crate::plan::labels;

/// Bytes of the head of an answer.
const MAX_HEAD: usize = 16 << 10;
/// Bytes of one message of the engine; its own are 16 KiB and a time.
const MAX_MESSAGE: usize = 1 << 20;
/// Read at a time.
const PIECE: usize = 8 << 10;

/// A container of ours, as a list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The service of its label.
    pub service: String,
    /// It runs.
    pub running: bool,
}

/// From where a log is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// Its last lines.
    Tail(u32),
    /// From this moment on, itself included: seconds and nanoseconds.
    Time(u64, u32),
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// One message, with its time before it: a line, or a piece of one that is too long for the engine.
    Message {
        /// From standard error.
        stderr: bool,
        /// What.
        bytes: Bytes,
    },
    /// Of a container with a terminal: bytes as they came, a time at the beginning of each line.
    Raw(Bytes),
}

/// A log that is followed.
pub struct Follow {
    socket: UnixStream,
    read: BytesMut,
    framed: Option<bool>,
}

impl Engine {
    /// The containers of an agent.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn ours(&self, instance: &str) -> Result<Vec<Ours>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{}={instance}", labels::INSTANCE)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let all = self
            .call("listing containers", READ, |d| async move { d.list_containers(Some(options)).await })
            .await?;
        let ours = all.into_iter().filter_map(|one| {
            let service: Name = one.labels?.remove(labels::SERVICE)?.parse().ok()?;
            let name = one.names?.first()?.trim_start_matches('/').to_owned();
            let running =
                one.state.is_some_and(|s| matches!(s.to_string().as_str(), "running" | "restarting"));
            Some(Ours { id: one.id?, name, service: service.to_string(), running })
        });
        Ok(ours.collect())
    }

    /// A container's variables, `NAME=VALUE`; none where it is gone.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn env(&self, id: &str) -> Result<Vec<String>, EngineError> {
        let id = id.to_owned();
        let answer = self
            .call("inspecting a container", READ, |d| async move {
                d.inspect_container(&id, None::<InspectContainerOptions>).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.config.and_then(|c| c.env).unwrap_or_default()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Follows a container's log until it stops.
    ///
    /// # Errors
    /// Where the engine does not answer, or its log driver does not give logs back.
    pub async fn follow(&self, id: &str, since: &Since) -> Result<Follow, EngineError> {
        let host = self.host();
        let absent = |detail: String| EngineError::Absent { host: host.to_owned(), detail };
        let path = host.strip_prefix("unix://").unwrap_or(host);
        let asking = async {
            let mut socket = UnixStream::connect(path).await.map_err(|e| absent(e.to_string()))?;
            let from = match since {
                Since::Tail(lines) => format!("tail={lines}"),
                Since::Time(s, ns) => format!("since={s}.{ns:09}"),
            };
            // By HTTP/1.0 the log is the body up to its end, without chunks around it.
            let ask = format!(
                "GET /containers/{id}/logs?stdout=1&stderr=1&follow=1&timestamps=1&{from} HTTP/1.0\r\nHost: engine\r\n\r\n"
            );
            socket.write_all(ask.as_bytes()).await.map_err(|e| absent(e.to_string()))?;
            let mut read = BytesMut::new();
            let head = loop {
                if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                    break read.split_to(end + 4);
                }
                let more = socket.read_buf(&mut read).await.map_err(|e| absent(e.to_string()))?;
                if more == 0 || read.len() > MAX_HEAD {
                    return Err(absent("its answer is not HTTP".to_owned()));
                }
            };
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0_u16);
            if status != 200 || head.contains("transfer-encoding") {
                let said = String::from_utf8_lossy(&read).chars().take(200).collect::<String>();
                return Err(absent(format!("no log of {id}: {status} {said}")));
            }
            Ok(Follow { socket, read, framed: None })
        };
        let what = || format!("asking for the log of {id}");
        tokio::time::timeout(READ, asking)
            .await
            .unwrap_or_else(|_| Err(EngineError::Timeout { what: what(), after: READ }))
    }
}

impl Follow {
    /// The next part; `None` at its end. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The system's, and one for what no engine says.
    pub async fn next(&mut self) -> std::io::Result<Option<Part>> {
        loop {
            if let Some(part) = self.part()? {
                return Ok(Some(part));
            }
            if self.read.is_empty() {
                // Most are silent most of the time.
                self.read = BytesMut::new();
            }
            self.socket.readable().await?;
            self.read.reserve(PIECE);
            match self.socket.try_read_buf(&mut self.read) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// [`Self::next`], within a time; `Ok(Err)` where nothing came.
    ///
    /// # Errors
    /// As there.
    pub async fn next_within(
        &mut self,
        limit: Duration,
    ) -> std::io::Result<Result<Option<Part>, tokio::time::error::Elapsed>> {
        match tokio::time::timeout(limit, self.next()).await {
            Ok(next) => next.map(Ok),
            Err(elapsed) => Ok(Err(elapsed)),
        }
    }

    fn part(&mut self) -> std::io::Result<Option<Part>> {
        let Some(first) = self.read.first() else { return Ok(None) };
        // A message has a head of 8 bytes, the first 0 to 2; where there is a terminal, a time comes first.
        let framed = *self.framed.get_or_insert(*first <= 2);
        if !framed {
            return Ok(Some(Part::Raw(self.read.split().freeze())));
        }
        let Some(head) = self.read.first_chunk::<8>() else { return Ok(None) };
        let (stderr, length) = (head[0] == 2, u32::from_be_bytes([head[4], head[5], head[6], head[7]]));
        let length = length as usize;
        if head[0] > 3 || length > MAX_MESSAGE {
            return Err(std::io::Error::other("the engine's log is not in messages"));
        }
        if self.read.len() < 8 + length {
            return Ok(None);
        }
        self.read.advance(8);
        Ok(Some(Part::Message { stderr, bytes: self.read.split_to(length).freeze() }))
    }
}
