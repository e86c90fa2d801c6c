//! How the agent and the CLI know the cloud they talk to.
//!
//! In: pins (from Root, `copal.json` or `copal login`) and a clock. Out: a [`rustls::ClientConfig`].
//! Never here: the system's certificate store (it may be absent or altered on a device), network, disk, or a wall
//! clock of our own: a device may boot in 1970, so the caller gives one that never runs below its floor.
//!
//! With pins, a server is accepted when one certificate of the chain it sends has a pinned public key, every
//! signature from the server's certificate up to that one is right, each of them is within its time, and the server's
//! certificate names the host. The certificate of a private CA may be the pinned one, as long as the server sends it.
//! Without pins, the public CAs compiled in decide.
#![forbid(unsafe_code)]

mod certificate;
mod pins;
mod probe;

use std::{fmt, sync::Arc};

pub use certificate::{Certificate, CertificateError};
pub use pins::{Pin, PinError};
pub use probe::Probe;
use rustls::{ClientConfig, RootCertStore, pki_types::UnixTime, time_provider::TimeProvider};

/// Tells the time certificates are judged by, in Unix seconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A clock that reads the system's. For machines that keep time; a device passes one with a floor.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A pin is not one.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The TLS library refused.
    #[error("the TLS configuration cannot be made: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes the configuration: with `pins`, only a server that shows one of them; without, the public CAs.
/// Each pin is the base64 of the SHA-256 of a DER SubjectPublicKeyInfo. HTTP/2 and HTTP/1.1 are offered.
///
/// # Errors
/// [`ConfigError::Pin`] where a pin is malformed: it is refused rather than skipped, so that a typing error never
/// widens what is trusted.
pub fn client_config(pins: &[String], clock: &Clock) -> Result<ClientConfig, ConfigError> {
    let builder = builder(clock)?;
    let mut config = if pins.is_empty() {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        builder.with_root_certificates(roots).with_no_client_auth()
    } else {
        let pins = pins.iter().map(|pin| pin.parse()).collect::<Result<Vec<Pin>, _>>()?;
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pins::PinVerifier::new(pins)))
            .with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A configuration that accepts no server and remembers the chain it was shown: for telling a person the
/// fingerprint before anything is sent.
///
/// # Errors
/// [`ConfigError::Tls`].
pub fn probe_config(clock: &Clock) -> Result<(ClientConfig, Probe), ConfigError> {
    let probe = Probe::default();
    let config = builder(clock)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(probe.clone()))
        .with_no_client_auth();
    Ok((config, probe))
}

fn builder(
    clock: &Clock,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_details(provider, Arc::new(Time(Arc::clone(clock))))
        .with_safe_default_protocol_versions()
}

struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs((self.0)())))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
