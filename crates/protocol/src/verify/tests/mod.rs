//! One test a code, named after what it promises; documents are made by [`crate::testing`].

mod actions;
mod assignments;
mod chains;
mod docs;
mod envelopes;
mod hostile;
mod releases;
mod roots;
mod signatures;
mod terminals;
mod vectors;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{Code, Error};
use crate::{
    documents::Document,
    envelope::{Envelope, pae},
    keys::SigningKey,
};

/// The code of a refusal; accepting fails the test.
#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.expect_err("accepted what must be refused").code
}

/// An envelope over any payload bytes, under any type, rightly signed.
fn signed_bytes(payload_type: &str, payload: &[u8], keys: &[&SigningKey]) -> Vec<u8> {
    let message = pae(payload_type, payload);
    let signatures: Vec<Value> = keys
        .iter()
        .map(|key| json!({"keyid": key.public().id(), "sig": BASE64.encode(key.sign(&message))}))
        .collect();
    let envelope =
        json!({"payload": BASE64.encode(payload), "payloadType": payload_type, "signatures": signatures});
    envelope.to_string().into_bytes()
}

/// A document changed as JSON before it is signed.
fn edited<D: Document>(document: &D, keys: &[&SigningKey], edit: impl FnOnce(&mut Value)) -> Envelope {
    let mut value = serde_json::to_value(document).unwrap();
    edit(&mut value);
    signed_text::<D>(&value.to_string(), keys)
}

/// A payload given as text, signed.
fn signed_text<D: Document>(payload: &str, keys: &[&SigningKey]) -> Envelope {
    Envelope::parse::<D>(&signed_bytes(D::PAYLOAD_TYPE, payload.as_bytes(), keys)).unwrap()
}

/// An envelope with its signatures changed: (keyid, sig) pairs.
fn with_signatures(envelope: &Envelope, signatures: &[(crate::ids::KeyId, [u8; 64])]) -> Envelope {
    let signatures: Vec<Value> =
        signatures.iter().map(|(keyid, sig)| json!({"keyid": keyid, "sig": BASE64.encode(sig)})).collect();
    let bytes = json!({
        "payload": BASE64.encode(envelope.payload()),
        "payloadType": envelope.payload_type(),
        "signatures": signatures,
    });
    Envelope::parse_any(bytes.to_string().as_bytes()).unwrap()
}
