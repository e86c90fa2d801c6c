//! A grant of a terminal, judged before a shell is started.

use super::{
    Code, DeviceIdentity, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    signatures,
};
use crate::{
    documents::{
        GRANT_WAIT_S, MAX_GRANT_S, MAX_INTEGER, MAX_REASON, MAX_TERMINAL_BYTES, Role, Root, TerminalGrant,
        TerminalOffer,
    },
    envelope::Envelope,
};

/// Checks a grant against the offer it answers. `age_s` is how long ago the offer was made, by a clock that never jumps. The
/// caller uses each offer once, so that a grant is good for once.
///
/// # Errors
/// Signature and payload codes, `E_FLEET`, `E_DEVICE_MISMATCH`, `E_GRANT_SESSION`, `E_GRANT_CHALLENGE`, `E_GRANT_TARGET`,
/// `E_GRANT_EXPIRED`.
pub fn terminal_grant(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    offer: &TerminalOffer,
    age_s: u64,
    envelope: &Envelope,
) -> Result<Verified<TerminalGrant>, Error> {
    check_kind::<TerminalGrant>(envelope)?;
    signatures::check(root, &[Role::Operator], envelope)?;
    let found: TerminalGrant = parse(envelope)?;
    check_fleet(&found, device.fleet_id)?;
    let refuse = |code, why: String| Err(Error::new(code, why));
    if found.device_id != device.device_id {
        let why = format!("for device {}, this is device {}", found.device_id, device.device_id);
        return refuse(Code::DeviceMismatch, why);
    }
    if found.session_id != offer.session_id {
        let why = format!("for session {}, this is session {}", found.session_id, offer.session_id);
        return refuse(Code::GrantSession, why);
    }
    if found.challenge != offer.challenge || found.device_key != offer.device_key {
        return refuse(Code::GrantChallenge, "it answers another offer: each is good for once".to_owned());
    }
    if found.target != offer.target {
        return refuse(Code::GrantTarget, format!("for {}, asked for is {}", found.target, offer.target));
    }
    if age_s > u64::from(GRANT_WAIT_S) {
        let why = format!("it came {age_s} s after the offer, {GRANT_WAIT_S} s are accepted: open it again");
        return refuse(Code::GrantExpired, why);
    }
    let long = |text: &str| text.chars().count() > MAX_REASON;
    let bad = if !(1..=MAX_GRANT_S).contains(&found.max_s) {
        format!("max_s {} is not within 1 and {MAX_GRANT_S}", found.max_s)
    } else if !(1..=MAX_TERMINAL_BYTES).contains(&found.max_bytes) {
        format!("max_bytes {} is not within 1 and {MAX_TERMINAL_BYTES}", found.max_bytes)
    } else if found.reason.trim().is_empty() || long(&found.reason) || long(&found.operator) {
        format!("reason and operator have at most {MAX_REASON} characters, and a reason at least one")
    } else if found.issued_at > MAX_INTEGER {
        format!("issued_at {} makes no sense", found.issued_at)
    } else {
        return Ok(Verified { document: found, sha256: envelope.payload_sha256() });
    };
    refuse(Code::Payload, bad)
}
