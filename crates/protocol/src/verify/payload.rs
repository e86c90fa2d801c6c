//! Step 5: the very bytes whose signatures were checked, parsed strictly. Also documents one known key signs.

use serde::Deserialize;

use super::{Code, Error, Verified};
use crate::{
    documents::{Document, SPEC},
    envelope::{Envelope, pae},
    ids::FleetId,
    json::{self, JsonError},
    keys::PublicKey,
};

/// Refuses an envelope of another kind or size, however the caller parsed it.
pub(super) fn check_kind<D: Document>(envelope: &Envelope) -> Result<(), Error> {
    if envelope.payload().len() > D::MAX_BYTES {
        return Err(Error::new(
            Code::TooLarge,
            format!("{} bytes where at most {} are accepted", envelope.payload().len(), D::MAX_BYTES),
        ));
    }
    if envelope.payload_type() != D::PAYLOAD_TYPE {
        return Err(Error::new(
            Code::PayloadType,
            format!("{:?} where {:?} is expected", envelope.payload_type(), D::PAYLOAD_TYPE),
        ));
    }
    Ok(())
}

/// Parses a payload: `E_DUP_KEY`, `E_SPEC`, `E_PAYLOAD`, in this order.
pub(super) fn parse<D: Document>(envelope: &Envelope) -> Result<D, Error> {
    /// A later format may have other fields: its version is looked at before they are.
    #[derive(Deserialize)]
    struct SpecOnly {
        spec: u64,
    }
    let bytes = envelope.payload();
    json::check(bytes, json::PAYLOAD_DEPTH).map_err(|e| refusal(&e))?;
    let SpecOnly { spec } = json::typed(bytes).map_err(|e| refusal(&e))?;
    if spec != u64::from(SPEC) {
        return Err(Error::new(
            Code::Spec,
            format!("format version {spec}; this one understands {SPEC}: update it"),
        ));
    }
    json::typed(bytes).map_err(|e| refusal(&e))
}

fn refusal(error: &JsonError) -> Error {
    let code = match error {
        JsonError::DuplicateKey(_) => Code::DupKey,
        JsonError::TooDeep(_) | JsonError::Number(_) | JsonError::Syntax(_) => Code::Payload,
    };
    Error::new(code, error.to_string())
}

/// Refuses a document of another fleet.
pub(super) fn check_fleet<D: Document>(document: &D, fleet: FleetId) -> Result<(), Error> {
    if document.fleet_id() == fleet {
        return Ok(());
    }
    Err(Error::new(Code::Fleet, format!("for fleet {}, this is fleet {fleet}", document.fleet_id())))
}

/// Checks a document that exactly one known key signs (a device's Report, a builder's BuildRecord).
///
/// # Errors
/// Signature and payload codes, `E_FLEET`.
pub fn signed_by<D: Document>(
    key: &PublicKey,
    fleet: FleetId,
    envelope: &Envelope,
) -> Result<Verified<D>, Error> {
    check_kind::<D>(envelope)?;
    let message = pae(envelope.payload_type(), envelope.payload());
    let signatures = envelope.signatures();
    if !signatures.iter().any(|s| key.verifies(&message, &s.sig)) {
        let id = key.id();
        return Err(if signatures.is_empty() {
            Error::new(Code::SigMissing, format!("no signature where key {id} must sign"))
        } else if signatures.iter().any(|s| s.keyid == id) {
            Error::new(Code::SigInvalid, format!("the signature that names key {id} does not fit it"))
        } else {
            Error::new(Code::SigUnknownKey, format!("signed by another key than {id}"))
        });
    }
    let document: D = parse(envelope)?;
    check_fleet(&document, fleet)?;
    Ok(Verified { document, sha256: envelope.payload_sha256() })
}
