//! Opening a channel: a socket from an address of the device's own, TLS where the cloud has it, the WebSocket's handshake.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use copal_protocol::{channel, config::DeviceFile};
use http::{HeaderValue, Uri, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, lookup_host},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use crate::{Shared, counted::Counted, http::later};

/// Either kind of socket.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An open channel.
pub(crate) type Channel = WebSocketStream<Box<dyn Wire>>;

/// Where the cloud is, and how it is known.
pub(crate) struct Link {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// Why there is no channel.
pub(crate) enum NoChannel {
    /// The cloud is full at the moment; come again after this.
    Later(Duration),
    /// The token is none any more: a cloud that was started again knows no sessions.
    LogIn,
    /// Anything else.
    Failed(anyhow::Error),
}

impl Link {
    pub(crate) fn new(file: &DeviceFile) -> anyhow::Result<Self> {
        let base: Uri = file.cloud_url.parse().context("the cloud's URL")?;
        let host = base.host().context("the cloud's URL has no host")?.to_owned();
        let (scheme, port) = match base.scheme_str() {
            Some("https") => ("wss", 443),
            Some("http") => ("ws", 80),
            _ => bail!("{base} is neither http nor https"),
        };
        let port = base.port_u16().unwrap_or(port);
        let tls = (scheme == "wss")
            .then(|| {
                let mut config = copal_tls::client_config(&file.tls_pins, &copal_tls::system_clock())?;
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                anyhow::Ok(TlsConnector::from(Arc::new(config)))
            })
            .transpose()?;
        let uri = format!("{scheme}://{host}:{port}/device/v1/channel").parse()?;
        Ok(Self { uri, host, port, tls })
    }

    /// Opens a channel for the device of this number.
    pub(crate) async fn open(
        &self,
        shared: &Arc<Shared>,
        number: usize,
        token: &str,
    ) -> Result<Channel, NoChannel> {
        let wire = self.wire(shared, number).await.map_err(NoChannel::Failed)?;
        let mut request = self.uri.clone().into_client_request().map_err(|e| NoChannel::Failed(e.into()))?;
        let headers = request.headers_mut();
        let bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| NoChannel::Failed(e.into()))?;
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(channel::SUBPROTOCOL));
        let config = WebSocketConfig::default()
            .read_buffer_size(1 << 10)
            .write_buffer_size(0)
            .max_message_size(Some(channel::MAX_MESSAGE));
        match client_async_with_config(request, wire, Some(config)).await {
            Ok((channel, _)) => Ok(channel),
            Err(tungstenite::Error::Http(answer)) => {
                let status = answer.status().as_u16();
                Err(match later(status, answer.headers()) {
                    Some(later) => NoChannel::Later(later),
                    None if status == 401 => NoChannel::LogIn,
                    None => NoChannel::Failed(tungstenite::Error::Http(answer).into()),
                })
            }
            Err(error) => Err(NoChannel::Failed(error.into())),
        }
    }

    async fn wire(&self, shared: &Arc<Shared>, number: usize) -> anyhow::Result<Box<dyn Wire>> {
        let to =
            lookup_host((self.host.as_str(), self.port)).await?.next().context("the cloud has no address")?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            // Devices have addresses of their own; so many sockets would not fit between two.
            let own = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + u32::try_from(number).unwrap_or(0);
            socket.bind(SocketAddr::new(IpAddr::V4(own.into()), 0))?;
        }
        let socket = socket.connect(to).await?;
        socket.set_nodelay(true)?;
        let counted = Counted { socket, shared: shared.clone() };
        match &self.tls {
            None => Ok(Box::new(counted)),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())?;
                Ok(Box::new(tls.connect(name, counted).await?))
            }
        }
    }
}
