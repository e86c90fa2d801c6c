//! Certificates by ACME: asked for and renewed in the background, kept in `tls/acme`.

use std::{os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{
    RootCertStore, ServerConfig, crypto::CryptoProvider, pki_types::CertificateDer,
    pki_types::pem::PemObject as _,
};
use rustls_acme::{AcmeConfig, caches::DirCache};
use tokio_stream::StreamExt as _;

/// The two faces of a server under ACME: to the CA that validates, and to everyone else.
#[derive(Debug, Clone)]
pub(super) struct Acme {
    pub(super) challenge: Arc<ServerConfig>,
    pub(super) usual: Arc<ServerConfig>,
}

/// Begins; errors of the CA are logged and tried again with backoff.
pub(super) fn start(
    domains: &[String],
    email: Option<&str>,
    directory: Option<&str>,
    directory_ca: Option<&Path>,
    dir: &Path,
    provider: &Arc<CryptoProvider>,
) -> anyhow::Result<Acme> {
    // It will hold the account's key and the certificate's.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making the folder {}", dir.display()))?;
    let mut config = AcmeConfig::new_with_provider(domains, provider.clone())
        .contact(email.map(|e| format!("mailto:{e}")))
        .cache(DirCache::new(dir.join("acme")));
    config = match directory {
        Some(url) => config.directory(url),
        None => config.directory_lets_encrypt(true),
    };
    if let Some(path) = directory_ca {
        let what = || format!("reading acme_directory_ca {}", path.display());
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(path).with_context(what)? {
            roots.add(cert.with_context(what)?).with_context(what)?;
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
    super::terminator::resumable(&mut usual)?;
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
