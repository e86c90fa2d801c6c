//! Digests and identifiers. Each is parsed once, where it enters, and cannot be wrong afterwards.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

/// Why a string is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} expected, got {got:?}: {want}")]
pub struct ParseIdError {
    what: &'static str,
    got: String,
    want: &'static str,
}

fn parse_error(what: &'static str, got: &str, want: &'static str) -> ParseIdError {
    ParseIdError { what, got: got.chars().take(80).collect(), want }
}

fn is_lower_hex(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

macro_rules! hex_array {
    ($name:ident, $len:literal) => {
        impl $name {
            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Takes raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// A SHA-256 digest as OCI writes it: `sha256:` and 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);
hex_array!(Digest, 32);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        const WANT: &str = "`sha256:` and 64 lowercase hex digits";
        let Some(digits) = s.strip_prefix("sha256:") else { return Err(parse_error("a digest", s, WANT)) };
        Sha256Hex::from_str(digits).map(|d| Self(d.0)).map_err(|_| parse_error("a digest", s, WANT))
    }
}

/// A SHA-256 as bare hex: names a signed document by its payload, or a key by its public half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hex([u8; 32]);
hex_array!(Sha256Hex, 32);

impl Sha256Hex {
    /// The SHA-256 of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Sha256Hex {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        const WANT: &str = "64 lowercase hex digits";
        let mut bytes = [0; 32];
        if !is_lower_hex(s) || hex::decode_to_slice(s, &mut bytes).is_err() {
            return Err(parse_error("a SHA-256", s, WANT));
        }
        Ok(Self(bytes))
    }
}

/// Names a key: SHA-256 of the raw public key. A hint for finding it, never a proof.
pub type KeyId = Sha256Hex;

/// 128 random bits in lowercase hex. [`FleetId`], [`AppId`], [`DeviceId`], [`CommandId`] and [`SessionId`] are such ids of their own type.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);
        hex_array!($name, 16);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 16];
                if !is_lower_hex(s) || hex::decode_to_slice(s, &mut bytes).is_err() {
                    return Err(parse_error($what, s, "32 lowercase hex digits"));
                }
                Ok(Self(bytes))
            }
        }
    };
}

random_id!(
    /// Names a fleet, on every server and for ever.
    FleetId,
    "a fleet id"
);
random_id!(
    /// Names an app: what a fleet runs.
    AppId,
    "an app id"
);
random_id!(
    /// Names a device within its fleet; given at enrolment.
    DeviceId,
    "a device id"
);

random_id!(
    /// Names a command, so that it is done at most once.
    CommandId,
    "a command id"
);
random_id!(
    /// Names a terminal's session.
    SessionId,
    "a session id"
);

/// The most characters a service, volume or network name may have.
pub const MAX_NAME: usize = 63;

/// The name of a service, volume or network: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most [`MAX_NAME`] characters.
///
/// Docker's own rule for container names, so that `<prefix>-<app>-<service>` is always one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut bytes = s.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !first || !rest || s.len() > MAX_NAME {
            return Err(parse_error(
                "a name",
                s,
                "letters, digits, `_`, `.` and `-`, beginning with a letter or digit, at most 63",
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_lowercase_hex_with_its_algorithm() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"")));
        for bad in [text.to_uppercase().as_str(), &text[7..], &text[..70], "sha512:00", ""] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_32_hex_digits() {
        assert!("00112233445566778899aabbccddeeff".parse::<DeviceId>().is_ok());
        for bad in ["", "0011", "00112233445566778899AABBCCDDEEFF", "../../../../../../../../etc/pass"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_climb_or_hide() {
        assert!("web-1.a_b".parse::<Name>().is_ok());
        for bad in ["", "-web", "..", "a/b", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
