//! DSSE envelopes: a payload, what it is, and who signed it.
//!
//! What is signed is the pre-authentication encoding of type and payload, so that a release can never be taken for
//! an assignment. Parsing is strict ([`crate::json`]); nothing inside is believed before [`crate::verify`] did its part.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use crate::{
    documents::Document,
    ids::{KeyId, Sha256Hex},
    json,
    keys::{PublicKey, SigningKey, decode_array},
    verify::{Code, Error},
};

/// The most signatures an envelope may carry.
pub const MAX_SIGNATURES: usize = 16;

/// A parsed envelope: its shape is sound, its signatures are not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Envelope {
    payload: Vec<u8>,
    payload_type: String,
    signatures: Vec<Signature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// A hint at whose it is.
    pub keyid: KeyId,
    /// Over [`pae`] of type and payload.
    pub sig: [u8; 64],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

impl TryFrom<Wire> for Envelope {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        if wire.signatures.len() > MAX_SIGNATURES {
            return Err(format!("{} signatures, at most {MAX_SIGNATURES}", wire.signatures.len()));
        }
        let payload = BASE64.decode(&wire.payload).map_err(|e| format!("payload: {e}"))?;
        let signatures = wire
            .signatures
            .iter()
            .map(|s| Some(Signature { keyid: s.keyid, sig: decode_array(&s.sig)? }))
            .collect::<Option<Vec<_>>>()
            .ok_or("a signature is not 64 bytes in padded base64")?;
        Ok(Self { payload, payload_type: wire.payload_type, signatures })
    }
}

impl From<Envelope> for Wire {
    fn from(envelope: Envelope) -> Self {
        let signature = |s: &Signature| WireSignature { keyid: s.keyid, sig: BASE64.encode(s.sig) };
        Self {
            payload: BASE64.encode(&envelope.payload),
            signatures: envelope.signatures.iter().map(signature).collect(),
            payload_type: envelope.payload_type,
        }
    }
}

/// DSSE's pre-authentication encoding.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Wraps payload bytes with no signature yet.
    #[must_use]
    pub fn unsigned<D: Document>(payload: Vec<u8>) -> Self {
        Self { payload, payload_type: D::PAYLOAD_TYPE.to_owned(), signatures: Vec::new() }
    }

    /// Serialises a document and signs it with each key.
    ///
    /// # Errors
    /// When the document cannot be written as JSON, which only a map with non-text keys could cause.
    pub fn sign<D: Document>(document: &D, keys: &[&SigningKey]) -> Result<Self, serde_json::Error> {
        let mut envelope = Self::unsigned::<D>(serde_json::to_vec(document)?);
        for key in keys {
            envelope.add_signature(key);
        }
        Ok(envelope)
    }

    /// Adds a key's signature, replacing its earlier one.
    pub fn add_signature(&mut self, key: &SigningKey) {
        let keyid = key.public().id();
        let sig = key.sign(&pae(&self.payload_type, &self.payload));
        self.signatures.retain(|s| s.keyid != keyid);
        self.signatures.push(Signature { keyid, sig });
    }

    /// Adds a signature made elsewhere, in place of an earlier one under the same key id; `false` where the envelope is
    /// full ([`MAX_SIGNATURES`]). Whether it is right is the caller's to know ([`crate::verify::merge_signatures`]).
    pub fn push_signature(&mut self, signature: Signature) -> bool {
        self.signatures.retain(|s| s.keyid != signature.keyid);
        let room = self.signatures.len() < MAX_SIGNATURES;
        if room {
            self.signatures.push(signature);
        }
        room
    }

    /// Parses an envelope that should hold a `D`.
    ///
    /// # Errors
    /// `E_TOO_LARGE`, `E_ENVELOPE`, `E_PAYLOAD_TYPE`.
    pub fn parse<D: Document>(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > D::MAX_BYTES {
            return Err(Error::new(
                Code::TooLarge,
                format!("{} bytes where at most {} are accepted", bytes.len(), D::MAX_BYTES),
            ));
        }
        let envelope = Self::parse_any(bytes)?;
        if envelope.payload_type != D::PAYLOAD_TYPE {
            return Err(Error::new(
                Code::PayloadType,
                format!("{:?} where {:?} is expected", envelope.payload_type, D::PAYLOAD_TYPE),
            ));
        }
        Ok(envelope)
    }

    /// Parses an envelope of whatever type; the caller has bounded its size.
    ///
    /// # Errors
    /// `E_ENVELOPE`.
    pub fn parse_any(bytes: &[u8]) -> Result<Self, Error> {
        let bad = |why: String| Error::new(Code::Envelope, why);
        let wire: Wire = json::from_slice(bytes, json::ENVELOPE_DEPTH).map_err(|e| bad(e.to_string()))?;
        Self::try_from(wire).map_err(bad)
    }

    /// The envelope on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and lists are always JSON")
    }

    /// The payload's bytes; not to be believed before verification.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the payload claims to be.
    #[must_use]
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    /// The signatures, unchecked.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The name of the document: SHA-256 of its payload.
    #[must_use]
    pub fn payload_sha256(&self) -> Sha256Hex {
        Sha256Hex::of(&self.payload)
    }

    /// Whether one of the signatures is `key`'s and right.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let id = key.id();
        let message = pae(&self.payload_type, &self.payload);
        self.signatures.iter().any(|s| s.keyid == id && key.verifies(&message, &s.sig))
    }
}
