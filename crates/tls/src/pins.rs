//! Judging a server by pins.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::certificate::Certificate;

/// The most certificates a server may send.
const MAX_CHAIN: usize = 10;

/// A pin that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a pin: the base64 (padded) of a SHA-256 over a public key is expected, 44 characters")]
pub struct PinError(String);

/// SHA-256 over the DER SubjectPublicKeyInfo of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| PinError(text.chars().take(60).collect()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

/// Accepts a server whose chain reaches a pinned key.
#[derive(Debug)]
pub(crate) struct PinVerifier {
    pins: Vec<Pin>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinVerifier {
    pub(crate) fn new(pins: Vec<Pin>) -> Self {
        Self { pins, algorithms: ring::default_provider().signature_verification_algorithms }
    }

    fn is_pinned(&self, certificate: &Certificate) -> bool {
        self.pins.iter().any(|pin| pin.0 == *certificate.spki_sha256())
    }
}

fn parse(der: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(der).map_err(|_| Error::InvalidCertificate(TlsCertificateError::BadEncoding))
}

fn in_time(certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let refusal = |error| Err(Error::InvalidCertificate(error));
    if seconds < certificate.not_before {
        refusal(TlsCertificateError::NotValidYet)
    } else if seconds > certificate.not_after {
        refusal(TlsCertificateError::Expired)
    } else {
        Ok(())
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.len() >= MAX_CHAIN {
            return Err(Error::General(format!(
                "the server sent {} certificates, at most {MAX_CHAIN} are read",
                intermediates.len() + 1
            )));
        }
        let server = ParsedCertificate::try_from(end_entity)?;
        verify_server_name(&server, server_name)?;
        let leaf = parse(end_entity)?;
        if self.is_pinned(&leaf) {
            // The handshake proves that the server holds the pinned key. Who signed its certificate adds nothing,
            // and self-signed certificates as commonly made (marked as a CA) would fail a path check.
            in_time(&leaf, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        let mut refused = None;
        for anchor in intermediates {
            let certificate = parse(anchor)?;
            if !self.is_pinned(&certificate) {
                continue;
            }
            let attempt = in_time(&certificate, now).and_then(|()| {
                let mut roots = RootCertStore::empty();
                roots.add(anchor.clone())?;
                verify_server_cert_signed_by_trust_anchor(
                    &server,
                    &roots,
                    intermediates,
                    now,
                    self.algorithms.all,
                )
            });
            match attempt {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or(Error::InvalidCertificate(TlsCertificateError::UnknownIssuer)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
