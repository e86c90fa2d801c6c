//! Opening a channel: a connection of its own, and the WebSocket's handshake.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use copal_protocol::channel;
use http::{HeaderValue, Uri, header};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use crate::{
    Shared,
    http::later,
    seen::Way,
    wire::{Wire, Wires},
};

/// An open channel.
pub(crate) type Channel = WebSocketStream<Box<dyn Wire>>;

/// How long the way to an open channel may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens channels.
pub(crate) struct Link {
    uri: Uri,
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
    pub(crate) fn new(wires: &Wires) -> anyhow::Result<Self> {
        let scheme = if wires.is_secure() { "wss" } else { "ws" };
        let uri = format!("{scheme}://{}/device/v1/channel", wires.authority()).parse()?;
        Ok(Self { uri, tls: wires.forgetful() })
    }

    /// Opens a channel for the device of this number.
    pub(crate) async fn open(
        &self,
        shared: &Arc<Shared>,
        number: usize,
        token: &str,
    ) -> Result<Channel, NoChannel> {
        let opening = async {
            let wire = shared.wires.open(shared, number, Way::Channel, self.tls.as_ref()).await?;
            let mut request = self.uri.clone().into_client_request()?;
            let headers = request.headers_mut();
            let bearer = HeaderValue::from_str(&format!("Bearer {token}"))?;
            headers.insert(header::AUTHORIZATION, bearer);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(channel::SUBPROTOCOL));
            let config = WebSocketConfig::default()
                .read_buffer_size(1 << 10)
                .write_buffer_size(0)
                .max_message_size(Some(channel::MAX_MESSAGE));
            anyhow::Ok(client_async_with_config(request, wire, Some(config)).await)
        };
        let opened = tokio::time::timeout(PATIENCE, opening)
            .await
            .context("no channel within a minute")
            .flatten()
            .map_err(NoChannel::Failed)?;
        match opened {
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
}
