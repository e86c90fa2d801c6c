//! Secrets sealed to one device: HPKE (RFC 9180, base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305).
//! On the wire: base64 of encapsulated key and ciphertext. The info string binds fleet, device, app, service and name,
//! so that a ciphertext opens nowhere else.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::ChaCha20Poly1305,
    kdf::HkdfSha256, kem::X25519HkdfSha256 as Kem,
};
use zeroize::Zeroizing;

use crate::{
    ids::{AppId, DeviceId, FleetId, Name},
    keys::decode_array,
    verify::{Code, Error},
};

/// The most bytes a secret may have; an assignment carries it twice encoded and has to stay within its own bound.
pub const MAX_SECRET: usize = 64 << 10;

/// Bytes of the encapsulated key before the ciphertext.
const ENCAPPED: usize = 32;
/// Bytes of the authentication tag after it.
const TAG: usize = 16;

type PublicKey = <Kem as hpke::Kem>::PublicKey;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type EncappedKey = <Kem as hpke::Kem>::EncappedKey;

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

impl SealContext<'_> {
    /// No part but the last can hold a line break, so that no two places give the same bytes.
    fn info(&self) -> Vec<u8> {
        let Self { fleet, device, app, service, variable } = self;
        format!("copal seal v1\n{fleet}\n{device}\n{app}\n{service}\n{variable}").into_bytes()
    }
}

/// A device's X25519 private key, wiped when dropped.
pub struct SealKey(Zeroizing<[u8; 32]>);

impl SealKey {
    /// Makes a key from the system's random source.
    ///
    /// # Errors
    /// The system's own, when it has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        Ok(Self(seed))
    }

    /// Takes stored bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The bytes, for storing.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// The public half, base64.
    #[must_use]
    pub fn public(&self) -> String {
        BASE64.encode(Kem::sk_to_pk(&self.private()).to_bytes())
    }

    fn private(&self) -> PrivateKey {
        PrivateKey::from_bytes(&*self.0).expect("any 32 bytes are an X25519 private key")
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealKey({})", self.public())
    }
}

/// Whether a text is a public key secrets can be sealed to: 32 bytes in padded base64.
#[must_use]
pub fn is_public_key(public: &str) -> bool {
    decode_array::<32>(public).is_some()
}

/// Seals `secret` to the device's public key (base64).
///
/// # Errors
/// `E_SEAL` where the key is none, or the secret is longer than [`MAX_SECRET`].
pub fn seal(public: &str, context: &SealContext<'_>, secret: &[u8]) -> Result<String, Error> {
    if secret.len() > MAX_SECRET {
        return Err(refused(context, &format!("{} bytes, at most {MAX_SECRET} can be sealed", secret.len())));
    }
    let key: [u8; 32] = decode_array(public)
        .ok_or_else(|| refused(context, "the device's sealing key is not 32 bytes in padded base64"))?;
    let key =
        PublicKey::from_bytes(&key).map_err(|_| refused(context, "the device's sealing key is unusable"))?;
    let (encapped, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeS::Base,
        &key,
        &context.info(),
        secret,
        &[],
    )
    .map_err(|_| refused(context, "the device's sealing key is unusable"))?;
    let mut out = encapped.to_bytes().to_vec();
    out.extend_from_slice(&ciphertext);
    Ok(BASE64.encode(out))
}

/// Opens a ciphertext.
///
/// # Errors
/// `E_SEAL` where it was not sealed to this key for this place.
pub fn open(key: &SealKey, context: &SealContext<'_>, sealed: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let sealed =
        BASE64.decode(sealed).map_err(|_| refused(context, "the ciphertext is not padded base64"))?;
    if sealed.len() < ENCAPPED + TAG {
        return Err(refused(context, "the ciphertext is too short"));
    }
    let (encapped, ciphertext) = sealed.split_at(ENCAPPED);
    let encapped = EncappedKey::from_bytes(encapped)
        .map_err(|_| refused(context, "its encapsulated key is unusable"))?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeR::Base,
        &key.private(),
        &encapped,
        &context.info(),
        ciphertext,
        &[],
    )
    .map(Zeroizing::new)
    .map_err(|_| refused(context, "it was not sealed to this device for this place"))
}

fn refused(context: &SealContext<'_>, why: &str) -> Error {
    Error::new(Code::Seal, format!("secret {:?} of service {}: {why}", context.variable, context.service))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context<'a>(service: &'a Name, variable: &'a str) -> SealContext<'a> {
        SealContext {
            fleet: FleetId::from_bytes([1; 16]),
            device: DeviceId::from_bytes([2; 16]),
            app: AppId::from_bytes([3; 16]),
            service,
            variable,
        }
    }

    #[test]
    fn what_is_sealed_opens_on_its_device_in_its_place_only() {
        let (web, db): (Name, Name) = ("web".parse().unwrap(), "db".parse().unwrap());
        let key = SealKey::generate().unwrap();
        let here = context(&web, "TOKEN");
        let sealed = seal(&key.public(), &here, b"hunter2").unwrap();
        assert_eq!(&**open(&key, &here, &sealed).unwrap(), b"hunter2");

        let elsewhere = [
            context(&db, "TOKEN"),
            context(&web, "OTHER"),
            SealContext { fleet: FleetId::from_bytes([9; 16]), ..here },
            SealContext { device: DeviceId::from_bytes([9; 16]), ..here },
            SealContext { app: AppId::from_bytes([9; 16]), ..here },
        ];
        for place in elsewhere {
            assert_eq!(open(&key, &place, &sealed).unwrap_err().code, Code::Seal, "{place:?}");
        }
        let other = SealKey::generate().unwrap();
        assert_eq!(open(&other, &here, &sealed).unwrap_err().code, Code::Seal);
    }

    #[test]
    fn a_changed_ciphertext_does_not_open_and_errors_tell_nothing_of_the_secret() {
        let web: Name = "web".parse().unwrap();
        let key = SealKey::from_bytes(&[7; 32]);
        let here = context(&web, "TOKEN");
        let sealed = BASE64.decode(seal(&key.public(), &here, b"hunter2").unwrap()).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let error = open(&key, &here, &BASE64.encode(&changed)).unwrap_err();
            assert_eq!(error.code, Code::Seal, "byte {at}");
            assert!(!error.to_string().contains("hunter2"));
        }
        for junk in ["", "AAAA", "!", &BASE64.encode([0; 47]), &BASE64.encode([0; 64])] {
            assert_eq!(open(&key, &here, junk).unwrap_err().code, Code::Seal, "{junk}");
        }
    }

    #[test]
    fn a_key_of_small_order_or_shape_is_refused() {
        let web: Name = "web".parse().unwrap();
        let here = context(&web, "TOKEN");
        for key in [BASE64.encode([0; 32]), BASE64.encode([1; 31]), String::new(), "not base64".to_owned()] {
            assert_eq!(seal(&key, &here, b"x").unwrap_err().code, Code::Seal, "{key}");
        }
    }

    #[test]
    fn two_sealings_of_one_secret_differ() {
        let web: Name = "web".parse().unwrap();
        let key = SealKey::generate().unwrap();
        let here = context(&web, "TOKEN");
        assert_ne!(seal(&key.public(), &here, b"x").unwrap(), seal(&key.public(), &here, b"x").unwrap());
    }

    /// RFC 9180, appendix A.2.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode, first
    /// encryption. The library has to be the algorithm the protocol names.
    #[test]
    fn the_algorithm_is_that_of_rfc_9180() {
        let bytes = |text: &str| hex::decode(text).unwrap();
        let private = bytes("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        let public = bytes("4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a");
        let encapped = bytes("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a");
        let key = SealKey::from_bytes(&private.try_into().unwrap());
        assert_eq!(key.public(), BASE64.encode(public));
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.private(),
            &EncappedKey::from_bytes(&encapped).unwrap(),
            &bytes("4f6465206f6e2061204772656369616e2055726e"),
            &bytes(
                "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
            ),
            &bytes("436f756e742d30"),
        );
        assert_eq!(opened.unwrap(), b"Beauty is truth, truth beauty");
    }
}
