//! Secrets sealed to one device: HPKE (RFC 9180, base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305).
//! On the wire: base64 of encapsulated key and ciphertext. The info string binds fleet, device, app, service and name,
//! so that a ciphertext opens nowhere else.

use crate::{
    ids::{AppId, DeviceId, FleetId, Name},
    verify::{Code, Error},
};

/// Where a secret belongs.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    /// Fleet.
    pub fleet: FleetId,
    /// Device.
    pub device: DeviceId,
    /// App.
    pub app: AppId,
    /// Service.
    pub service: &'a Name,
    /// Variable.
    pub variable: &'a str,
}

/// A device's X25519 private key, wiped when dropped.
pub struct SealKey(zeroize::Zeroizing<[u8; 32]>);

impl SealKey {
    /// Makes a key from the system's random source.
    ///
    /// # Errors
    /// The system's own, when it has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        Ok(Self(seed))
    }

    /// Takes stored bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(zeroize::Zeroizing::new(*bytes))
    }

    /// The bytes, for storing.
    #[must_use]
    pub fn to_bytes(&self) -> zeroize::Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// The public half, base64.
    #[must_use]
    pub fn public(&self) -> String {
        String::new()
    }
}

/// Seals `secret` to the device's public key (base64).
///
/// # Errors
/// `E_SEAL` where the key is none.
pub fn seal(public: &str, context: &SealContext<'_>, secret: &[u8]) -> Result<String, Error> {
    let _ = (public, context, secret);
    Err(Error::new(Code::Seal, "not written yet"))
}

/// Opens a ciphertext.
///
/// # Errors
/// `E_SEAL` where it was not sealed to this key for this place.
pub fn open(
    key: &SealKey,
    context: &SealContext<'_>,
    sealed: &str,
) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    let _ = (key, context, sealed);
    Err(Error::new(Code::Seal, "not written yet"))
}
