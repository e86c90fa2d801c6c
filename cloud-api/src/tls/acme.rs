//! Certificates by ACME: asked for and renewed in the background, kept in `tls/acme`.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig, crypto::CryptoProvider, pki_types::CertificateDer,
    pki_types::pem::PemObject as _,
};
use rustls_acme::{AcmeConfig, caches::DirCache};
use tokio_stream::StreamExt as _;

use anyhow::Context as _;

/// The two faces of a server under ACME: to the CA that validates, and to everyone else.
#[derive(Debug, Clone)]
pub(super) struct Acme {
    pub(super) challenge: Arc<ServerConfig>,
    pub(super) usual: Arc<ServerConfig>,
}

/// A CA whose directory is itself under a private CA: a local one, as in tests. PEM.
const DIRECTORY_CA_ENV: &str = "COPAL_ACME_DIRECTORY_CA";

/// Begins; errors of the CA are logged and tried again with backoff.
pub(super) fn start(
    domains: &[String],
    email: Option<&str>,
    directory: Option<&str>,
    dir: &std::path::Path,
    provider: &Arc<CryptoProvider>,
) -> anyhow::Result<Acme> {
    let mut config = AcmeConfig::new_with_provider(domains, provider.clone())
        .contact(email.map(|e| format!("mailto:{e}")))
        .cache(DirCache::new(dir.join("acme")));
    config = match directory {
        Some(url) => config.directory(url),
        None => config.directory_lets_encrypt(true),
    };
    if let Ok(path) = std::env::var(DIRECTORY_CA_ENV) {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&path)
            .with_context(|| format!("reading {DIRECTORY_CA_ENV} {path}"))?
        {
            roots.add(cert.with_context(|| format!("reading {path}"))?).with_context(|| path.clone())?;
        }
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config = config.client_tls_config(Arc::new(client));
    }
    let mut state = config.state();
    let challenge = state.challenge_rustls_config_with_provider(provider.clone());
    let mut usual = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(state.resolver());
    usual.alpn_protocols = vec![b"http/1.1".to_vec()];
    tokio::spawn(async move {
        while let Some(event) = state.next().await {
            match event {
                Ok(done) => tracing::info!(?done, "ACME"),
                Err(error) => tracing::error!(%error, "ACME failed; it is tried again"),
            }
        }
    });
    Ok(Acme { challenge, usual: Arc::new(usual) })
}
