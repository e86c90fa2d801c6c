//! Takes a connection through its handshake.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use rustls::{ServerConfig, crypto::CryptoProvider};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{acme::Acme, files::Files, private_ca};
use crate::config::{Config, Tls};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often files are looked at, and the leaf of the private CA is thought of.
const LOOK: Duration = Duration::from_secs(10);

/// Secures connections.
#[derive(Debug, Clone)]
pub struct Terminator {
    kind: Kind,
    /// What devices pin; empty under a public CA.
    pub pins: Vec<String>,
}

#[derive(Debug, Clone)]
enum Kind {
    Files(Arc<ServerConfig>, Arc<Files>),
    Acme(Acme),
}

impl Terminator {
    /// Reads what the settings name; `None` for plain HTTP. Watches over it until the process ends.
    ///
    /// # Errors
    /// When a certificate or key cannot be used; says which.
    pub fn start(config: &Config) -> anyhow::Result<Option<Self>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let dir = config.tls_dir();
        match &config.tls {
            Tls::Off => Ok(None),
            Tls::Files { cert, key } => {
                Self::files(Files::open(cert, key, provider.clone())?, provider, Vec::new(), None)
            }
            Tls::PrivateCa => {
                private_ca::renew(&dir, std::time::SystemTime::now())?;
                let files = || Files::open(&dir.join("leaf.crt"), &dir.join("leaf.key"), provider.clone());
                let pins = vec![private_ca::pin(&dir)?];
                Self::files(files()?, provider.clone(), pins, Some(dir.clone()))
            }
            Tls::Acme { domains, email, directory, directory_ca } => {
                let (email, directory) = (email.as_deref(), directory.as_deref());
                let acme =
                    super::acme::start(domains, email, directory, directory_ca.as_deref(), &dir, &provider)?;
                Ok(Some(Self { kind: Kind::Acme(acme), pins: Vec::new() }))
            }
        }
    }

    fn files(
        files: Files,
        provider: Arc<CryptoProvider>,
        pins: Vec<String>,
        private: Option<std::path::PathBuf>,
    ) -> anyhow::Result<Option<Self>> {
        let files = Arc::new(files);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(files.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        resumable(&mut config)?;
        tokio::spawn(watch(Arc::downgrade(&files), private));
        Ok(Some(Self { kind: Kind::Files(Arc::new(config), files), pins }))
    }

    /// Takes a connection through its handshake. `None` when it was only the ACME CA validating.
    ///
    /// # Errors
    /// When the handshake fails or takes too long.
    pub async fn accept(&self, tcp: TcpStream) -> std::io::Result<Option<TlsStream<TcpStream>>> {
        let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the handshake took too long");
        tokio::time::timeout(HANDSHAKE, self.handshake(tcp)).await.map_err(late)?
    }

    async fn handshake(&self, tcp: TcpStream) -> std::io::Result<Option<TlsStream<TcpStream>>> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        match &self.kind {
            Kind::Files(config, _) => start.into_stream(config.clone()).await.map(Some),
            Kind::Acme(acme) if rustls_acme::is_tls_alpn_challenge(&start.client_hello()) => {
                let mut tls = start.into_stream(acme.challenge.clone()).await?;
                tls.shutdown().await?;
                Ok(None)
            }
            Kind::Acme(acme) => start.into_stream(acme.usual.clone()).await.map(Some),
        }
    }

    /// Reads certificate files again, changed or not: SIGHUP.
    pub fn reload(&self) {
        if let Kind::Files(_, files) = &self.kind {
            files.reload(true);
        }
    }
}

/// Lets devices go on with an earlier session, which saves them a certificate chain: by tickets, as many as there are devices, and
/// not by a memory of the last 256. One a connection is enough.
pub(super) fn resumable(config: &mut ServerConfig) -> anyhow::Result<()> {
    config.ticketer =
        rustls::crypto::ring::Ticketer::new().context("making a key for TLS session tickets")?;
    config.send_tls13_tickets = 1;
    Ok(())
}

/// Looks at the files until nobody serves them any more, and renews the private CA's leaf in time.
async fn watch(files: std::sync::Weak<Files>, private: Option<std::path::PathBuf>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(files) = files.upgrade() else { return };
        if let Some(dir) = &private
            && let Err(error) = private_ca::renew(dir, std::time::SystemTime::now())
        {
            tracing::error!(error = %format!("{error:#}"), "renewing the leaf of the private CA");
        }
        files.reload(false);
    }
}
