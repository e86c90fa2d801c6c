//! Connections: a socket from an address of the device's own, and TLS where the cloud has it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use anyhow::{Context as _, bail};
use copal_protocol::config::DeviceFile;
use http::Uri;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, lookup_host},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, HandshakeKind, client::Resumption, pki_types::ServerName},
};

use crate::{Shared, counted::Counted, seen::Way};

/// Either kind of socket.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Where the cloud is, and how it is known.
pub(crate) struct Wires {
    host: String,
    port: u16,
    /// What each device's own is made of.
    tls: Option<ClientConfig>,
}

impl Wires {
    pub(crate) fn new(file: &DeviceFile) -> anyhow::Result<Self> {
        let base: Uri = file.cloud_url.parse().context("the cloud's URL")?;
        let host = base.host().context("the cloud's URL has no host")?.to_owned();
        let (secure, port) = match base.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => bail!("{base} is neither http nor https"),
        };
        let port = base.port_u16().unwrap_or(port);
        let tls = secure
            .then(|| {
                let mut config = copal_tls::client_config(&file.tls_pins, &copal_tls::system_clock())?;
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                // An agent's channel begins anew each time; only its HTTP client remembers sessions.
                config.resumption = Resumption::disabled();
                anyhow::Ok(config)
            })
            .transpose()?;
        Ok(Self { host, port, tls })
    }

    /// Host and port, as a request names them.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// TLS that knows no session of before.
    pub(crate) fn forgetful(&self) -> Option<TlsConnector> {
        self.tls.clone().map(|config| TlsConnector::from(Arc::new(config)))
    }

    /// TLS that remembers the sessions of one device, for as many connections as its client keeps.
    pub(crate) fn remembering(&self) -> Option<TlsConnector> {
        let mut config = self.tls.clone()?;
        config.resumption = Resumption::in_memory_sessions(8);
        Some(TlsConnector::from(Arc::new(config)))
    }

    /// Connects the device of this number.
    pub(crate) async fn open(
        &self,
        shared: &Arc<Shared>,
        number: usize,
        way: Way,
        tls: Option<&TlsConnector>,
    ) -> anyhow::Result<Box<dyn Wire>> {
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
        let passed = shared.seen.passed(way);
        passed.connections.fetch_add(1, Relaxed);
        let counted = Counted { socket, shared: shared.clone(), way };
        let Some(tls) = tls else { return Ok(Box::new(counted)) };
        let name = ServerName::try_from(self.host.clone())?;
        let tls = tls.connect(name, counted).await?;
        if tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            passed.resumed.fetch_add(1, Relaxed);
        }
        Ok(Box::new(tls))
    }
}
