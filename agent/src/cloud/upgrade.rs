//! From an HTTP request to a WebSocket, over the same TLS, names, pins and proxy rules as every other request. Whatever
//! speaks after that is somebody else's matter.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{Call, Cloud, CloudError};

/// The connection, after the cloud took it for a WebSocket.
pub type Upgraded = reqwest::Upgraded;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum NoSocket<E> {
    /// The cloud cannot be reached, or says no: later perhaps.
    #[error(transparent)]
    Failed(E),
    /// Something on the way, or an older cloud, does not let a WebSocket through, while requests may pass.
    #[error("no WebSocket passes: {0}")]
    NotTaken(String),
}

impl Cloud {
    /// Opens a WebSocket of this subprotocol.
    ///
    /// # Errors
    /// [`NoSocket`].
    pub async fn upgrade(
        &self,
        path: &str,
        bearer: &str,
        protocol: &'static str,
    ) -> Result<Upgraded, NoSocket<CloudError>> {
        let key = generate_key();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        headers.insert(header::SEC_WEBSOCKET_KEY, key.parse().expect("base64 is a header value"));
        let call = Call::get(path, 0).bearer(bearer);
        let response = self.send_alone(&call, &headers).await.map_err(NoSocket::Failed)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {}
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE => return Err(NoSocket::Failed(self.refused(response).await)),
            other => return Err(NoSocket::NotTaken(format!("the answer is {other}"))),
        }
        let is = |name, wanted: &str| {
            let value = response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
            value.is_some_and(|v| v.trim().eq_ignore_ascii_case(wanted))
        };
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if !is(header::UPGRADE, "websocket") || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(NoSocket::NotTaken("the answer is to no WebSocket of ours".to_owned()));
        }
        if !is(header::SEC_WEBSOCKET_PROTOCOL, protocol) {
            return Err(NoSocket::NotTaken(format!("the answer does not speak {protocol}")));
        }
        response
            .upgrade()
            .await
            .map_err(|e| NoSocket::NotTaken(format!("the connection did not change over: {e}")))
    }
}
