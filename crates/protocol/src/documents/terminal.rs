//! A terminal under the policy `grant`: what the device offers, and what an operator signs for it.

use serde::{Deserialize, Serialize};

use super::document;
use crate::ids::{DeviceId, FleetId, Name, SessionId, Sha256Hex};

/// The longest a terminal lives under a grant, seconds.
pub const MAX_GRANT_S: u32 = 15 * 60;
/// The longest it lives without one, seconds.
pub const MAX_TERMINAL_S: u32 = 30 * 60;
/// The longest it stays open without a byte typed, seconds.
pub const MAX_IDLE_S: u32 = 5 * 60;
/// The most bytes a terminal carries, both ways together.
pub const MAX_TERMINAL_BYTES: u64 = 64 << 20;
/// Within so many seconds of its offer a grant must come; a passphrase has to be typed meanwhile.
pub const GRANT_WAIT_S: u32 = 120;
/// The most characters of a reason, or of who asks.
pub const MAX_REASON: usize = 500;

/// What a terminal opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TerminalTarget {
    /// A shell in this service's container.
    Service(Name),
    /// A shell on the device itself.
    Host,
    /// The recording of an earlier session under a grant, which only the device has. Nothing can be typed.
    Recording(SessionId),
}

impl std::fmt::Display for TerminalTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Host => f.write_str("the host"),
            Self::Recording(id) => write!(f, "the recording of {id}"),
        }
    }
}

/// What a device says when a terminal is asked for and its policy is `grant`. Signed by the device, so that `copal shell` knows
/// whom it speaks with. Made anew for each session, which makes every grant good for once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalOffer {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device.
    pub device_id: DeviceId,
    /// The session.
    pub session_id: SessionId,
    /// What was asked for.
    pub target: TerminalTarget,
    /// 32 random bytes, never used again.
    pub challenge: Sha256Hex,
    /// The device's end of the line: an X25519 key in base64, made for this session.
    pub device_key: String,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(TerminalOffer, "terminal-offer", 16 << 10);

/// An operator's leave for one session, against one offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalGrant {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device; no other accepts it.
    pub device_id: DeviceId,
    /// The session.
    pub session_id: SessionId,
    /// What may be opened.
    pub target: TerminalTarget,
    /// The offer's.
    pub challenge: Sha256Hex,
    /// The offer's.
    pub device_key: String,
    /// The operator's end of the line: the encapsulated key, base64.
    pub operator_key: String,
    /// Who opens it, for people; at most [`MAX_REASON`] characters.
    pub operator: String,
    /// Why; the same.
    pub reason: String,
    /// Seconds it may last, by the device's clock that never jumps; at most [`MAX_GRANT_S`].
    pub max_s: u32,
    /// Bytes it may carry, both ways together; at most [`MAX_TERMINAL_BYTES`].
    pub max_bytes: u64,
    /// Unix seconds, for people: how old it may be is counted from the offer.
    pub issued_at: u64,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(TerminalGrant, "terminal-grant", 16 << 10);
