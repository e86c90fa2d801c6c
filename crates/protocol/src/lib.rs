//! What the parts of Copal say to one another, and why a device may believe it.
//!
//! In: bytes from anywhere. Out: [`verify::Verified`] documents, or an error with a stable code.
//! Never here: network, disk, clocks or randomness that a caller did not pass in; what is decided here
//! is decided by pure functions, so that the same input gives the same answer on a device, in the CLI and in a test.
//!
//! | room | what it holds |
//! |---|---|
//! | [`ids`] | digests and identifiers, parsed once at the edge |
//! | [`keys`] | Ed25519 keys and key ids |
//! | [`envelope`] | DSSE envelopes: signing, strict parsing |
//! | [`json`] | strict JSON: bounded depth, no duplicate keys |
//! | [`documents`] | the payload of each signed document |
//! | [`spec`] | the normalised service spec a release carries |
//! | [`verify`] | the verification order of a device, step by step |
//! | [`policy`] | what a service may ask of its host |
//! | [`clock`] | the earliest time it can be |
//! | [`seal`] | secrets sealed to one device |
//! | [`enrol`] | enrolment tokens, login challenges, introduction secrets |
//! | [`text`] | foreign text, made safe to show |
//! | [`device_api`] | bodies of the device routes that are not signed documents |
//! | [`channel`] | frames between a device and its cloud |
//! | [`terminal`] | a terminal end to end: records, keys |
//! | [`asciicast`] | recordings of terminals |
//! | [`flow`] | credit of the channel's streams |
//! | [`telemetry`] | events, metrics and facts of a device |
//! | [`logs`] | lines of service logs |
//! | [`diagnosis`] | results of a device's health checks, and their text |
//! | [`network`] | the proxy and the time servers a device can be given |
//! | [`audit`] | the hash chain of the audit log |
//! | [`config`] | `copal.json`, what a device is given before its first start |
//! | `testing` | fixed keys and ready documents, behind a feature of that name |
//!
//! The normative text is `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod asciicast;
pub mod audit;
pub mod channel;
pub mod clock;
pub mod config;
pub mod device_api;
pub mod diagnosis;
pub mod documents;
pub mod enrol;
pub mod envelope;
pub mod flow;
pub mod ids;
pub mod json;
pub mod keys;
pub mod logs;
pub mod network;
pub mod policy;
pub mod seal;
pub mod spec;
pub mod telemetry;
pub mod terminal;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod verify;
pub mod window;
