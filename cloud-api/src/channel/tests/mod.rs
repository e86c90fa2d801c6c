//! Channels over real sockets, against the real router behind the real listener.

mod commands;
mod exchange;
mod logs;
mod presence;
mod socket;
mod streams;
mod telemetry;

use std::time::Duration;

use copal_protocol::channel::{self, Ack, AckState, CloudFrame, DeviceFrame, Hello, SUBPROTOCOL, Welcome};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{StatusCode, header};
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};

use super::memory::Timing;
use crate::{
    devices::testing::{Device, Fleet},
    serve,
};

/// A fleet behind a listener.
struct World {
    fleet: Fleet,
    address: std::net::SocketAddr,
    listener: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    async fn on(socket: TcpListener) -> Self {
        Self::holding(socket, 200).await
    }

    /// Whose listener holds so many connections.
    async fn holding(socket: TcpListener, capacity: usize) -> Self {
        let fleet = Fleet::new().await;
        let address = socket.local_addr().unwrap();
        let (router, stopping) = (fleet.cloud.router.clone(), fleet.cloud.app.stopping.clone());
        let listener = tokio::spawn(serve::listen(socket, None, router, stopping, capacity));
        Self { fleet, address, listener }
    }

    fn timing(&self, change: impl FnOnce(&mut Timing)) {
        let mut timing = self.fleet.cloud.app.channels.timing();
        change(&mut timing);
        self.fleet.cloud.app.channels.set_timing(timing);
    }

    /// A socket that was let in and has not said hello.
    async fn dial(&self, device: &Device) -> Result<Line, (StatusCode, Value)> {
        self.dial_with(device, TcpStream::connect(self.address).await.unwrap(), SUBPROTOCOL).await
    }

    async fn dial_with(
        &self,
        device: &Device,
        tcp: TcpStream,
        protocol: &str,
    ) -> Result<Line, (StatusCode, Value)> {
        let mut request = format!("ws://{}/device/v1/channel", self.address).into_client_request().unwrap();
        let bearer = format!("Bearer {}", device.session);
        request.headers_mut().insert(header::AUTHORIZATION, bearer.parse().unwrap());
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        match client_async(request, tcp).await {
            Ok((line, response)) => {
                assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
                Ok(Line(line))
            }
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err((response.status(), serde_json::from_slice(body).unwrap_or_default()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// An open channel, and its welcome.
    async fn open(&self, device: &Device) -> (Line, Welcome) {
        let mut line = self.dial(device).await.unwrap();
        line.say(&DeviceFrame::Hello(hello())).await;
        let CloudFrame::Welcome(welcome) = line.next().await else { panic!("no welcome") };
        (line, welcome)
    }

    fn is_open(&self, device: &Device) -> bool {
        self.fleet.cloud.app.channels.is_open(device.id)
    }

    async fn until_closed(&self, device: &Device) {
        within(async {
            while self.is_open(device) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    fn commands(device: &Device) -> String {
        format!("/api/v1/fleets/porch/devices/{}/commands", device.id)
    }

    async fn ask(&self, device: &Device, body: Value) -> Value {
        self.fleet.ok("POST", &Self::commands(device), Some(body)).await
    }

    async fn shown(&self, device: &Device, command: &Value) -> Value {
        let id = command["id"].as_str().unwrap();
        self.fleet.ok("GET", &format!("{}/{id}", Self::commands(device)), None).await
    }

    /// A command, once it is in this state.
    async fn until(&self, device: &Device, command: &Value, state: &str) -> Value {
        within(async {
            loop {
                let shown = self.shown(device, command).await;
                if shown["state"] == state {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

/// A device's end.
struct Line(WebSocketStream<TcpStream>);

impl Line {
    async fn say(&mut self, frame: &DeviceFrame) {
        self.text(channel::write(frame).unwrap()).await;
    }

    async fn text(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.unwrap();
    }

    /// The next frame.
    async fn next(&mut self) -> CloudFrame {
        within(async {
            loop {
                match self.0.next().await.unwrap().unwrap() {
                    Message::Text(text) => return channel::read(text.as_bytes()).unwrap().unwrap(),
                    Message::Pong(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        })
        .await
    }

    async fn command(&mut self) -> channel::Command {
        match self.next().await {
            CloudFrame::Cmd(command) => command,
            other => panic!("{other:?}"),
        }
    }

    /// The goodbye's code; then the line is closed.
    async fn bye(&mut self) -> String {
        let code = match self.next().await {
            CloudFrame::Bye { code, retry_within_s } => {
                assert!(retry_within_s > 0);
                code
            }
            other => panic!("{other:?}"),
        };
        self.closed().await;
        code
    }

    async fn closed(&mut self) {
        within(async { while let Some(Ok(_)) = self.0.next().await {} }).await;
    }

    /// That nothing is on its way: what was asked before it is answered after everything that was said.
    async fn silence(&mut self) {
        self.0.send(Message::Ping(b"still here".as_slice().into())).await.unwrap();
        within(async {
            match self.0.next().await.unwrap().unwrap() {
                Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        })
        .await;
    }

    async fn ack(&mut self, command: &channel::Command, state: AckState) {
        self.say(&DeviceFrame::Ack(ack(command, state))).await;
    }
}

fn ack(command: &channel::Command, state: AckState) -> Ack {
    Ack { id: command.id, state, code: None, message: String::new(), result: None }
}

fn hello() -> Hello {
    Hello {
        agent_version: "0.1.0".to_owned(),
        boot_id: "b".repeat(32),
        uptime_s: 7,
        features: vec![],
        etag: None,
    }
}

/// Nothing here takes this long; without it a failure would hang.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("in time")
}

/// A listener and a socket whose buffers are as small as they can be.
fn small(socket: TcpSocket) -> TcpSocket {
    socket.set_send_buffer_size(1).unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    socket
}
