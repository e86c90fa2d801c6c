//! Bodies of the device routes that are not signed documents. Routes, limits and codes: `docs/protocol.md`.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DeviceId, FleetId, Sha256Hex},
    keys::PublicKey,
};

/// `POST /device/v1/enrol`: a device asks to join a fleet. Repeating it with the same keys gives the same device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The fleet of `copal.json`.
    pub fleet_id: FleetId,
    /// The public part of the enrolment token.
    pub token_id: String,
    /// Proof of the secret part: [`crate::enrol::token_mac`], hex.
    pub token_mac: Sha256Hex,
    /// The device's Ed25519 key.
    pub public_key: PublicKey,
    /// The device's X25519 key for sealed secrets, base64.
    pub seal_key: String,
    /// Proof for the CLI that this key is the card's: [`crate::enrol::introduction_mac`], hex. The cloud only keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introduction_mac: Option<Sha256Hex>,
    /// The public name of the introduction secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introduction_id: Option<String>,
    /// What people will call it; the host name by default. At most 63 characters.
    #[serde(default)]
    pub name: String,
    /// OCI architecture.
    pub arch: String,
    /// Device type of `copal.json`.
    pub device_type: String,
    /// Ed25519 signature, hex, by the device's key over [`crate::enrol::enrol_message`]: it holds the key it shows.
    pub signature: String,
}

/// Answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolResponse {
    /// The device's id, for ever.
    pub device_id: DeviceId,
    /// Where it stands.
    pub state: DeviceState,
}

/// Where a device stands with its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Waits for a person.
    Pending,
    /// A person allowed it before it came.
    Preauthorised,
    /// In.
    Accepted,
    /// A person said no.
    Rejected,
    /// Was in; is out.
    Revoked,
}

/// `POST /device/v1/challenge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    /// Who wants to log in.
    pub device_id: DeviceId,
}

/// Answer to [`ChallengeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeResponse {
    /// 32 random bytes, hex; good once, for 60 s.
    pub challenge: Sha256Hex,
}

/// `POST /device/v1/login`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Who logs in.
    pub device_id: DeviceId,
    /// The challenge answered.
    pub challenge: Sha256Hex,
    /// Ed25519 signature, hex, over [`crate::enrol::login_message`].
    pub signature: String,
    /// The link the last login gave; absent at the first. Showing another than the newest or the one before it marks a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_link: Option<String>,
}

/// Answer to [`LoginRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginResponse {
    /// Bearer token of the device routes and the registry.
    pub token: String,
    /// Seconds it is good for.
    pub expires_in: u64,
    /// To show at the next login; store it before the token is used.
    pub refresh_link: String,
}

/// `POST /device/v1/freshness`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessRequest {
    /// 32 random bytes, hex.
    pub nonce: Sha256Hex,
}

/// A refusal: RFC 9457 problem details, as every route answers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A page about the code.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// One line for people.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What was tried, on what, why not, what to do.
    #[serde(default)]
    pub detail: String,
    /// Stable, `snake_case`.
    #[serde(default)]
    pub code: String,
    /// To find it in the server's log.
    #[serde(default)]
    pub request_id: String,
}
