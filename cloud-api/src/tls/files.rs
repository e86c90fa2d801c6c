//! A certificate and its key from PEM files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use anyhow::{Context as _, ensure};
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Serves the newest pair that could be read; a broken replacement leaves the one before in use.
#[derive(Debug)]
pub(super) struct Files {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<(Arc<CertifiedKey>, Stamp)>,
}

/// Changed when either file did.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Files {
    pub(super) fn open(cert: &Path, key: &Path, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let stamp = stamp(cert, key);
        let pair = read(cert, key, &provider)?;
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            provider,
            current: RwLock::new((Arc::new(pair), stamp)),
        })
    }

    /// Reads the files again if they changed, or if `always`.
    pub(super) fn reload(&self, always: bool) {
        let stamp = stamp(&self.cert, &self.key);
        if !always && self.current.read().unwrap_or_else(PoisonError::into_inner).1 == stamp {
            return;
        }
        match read(&self.cert, &self.key, &self.provider) {
            Ok(pair) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(pair), stamp);
                tracing::info!(cert = %self.cert.display(), "certificate read again");
            }
            Err(error) => {
                // Perhaps only one of the two was replaced so far; the stamp is kept old, so that it is tried again.
                tracing::warn!(error = %format!("{error:#}"), "the changed certificate is not usable; the one before stays in use");
            }
        }
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}

fn stamp(cert: &Path, key: &Path) -> Stamp {
    [cert, key].map(|path| fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len()))))
}

fn read(cert: &Path, key: &Path, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading the certificate {}", cert.display()))?;
    ensure!(!chain.is_empty(), "{} holds no certificate (PEM, leaf first)", cert.display());
    let secret =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading the key {}", key.display()))?;
    CertifiedKey::from_der(chain, secret, provider)
        .with_context(|| format!("{} and {} do not fit together", cert.display(), key.display()))
}
