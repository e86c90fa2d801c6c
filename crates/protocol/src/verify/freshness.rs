//! Step 6, second half: the cloud's word, for this nonce, that an assignment is the newest.

use super::{
    AssignmentMark, Code, DeviceIdentity, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    signatures,
};
use crate::{
    documents::{Freshness, Role, Root},
    envelope::Envelope,
    ids::Sha256Hex,
};

/// Checks the cloud's word that `newest` is what it would serve now.
///
/// # Errors
/// Signature and payload codes, `E_FLEET`, `E_DEVICE_MISMATCH`, `E_NONCE`, `E_NOT_FRESH`.
pub fn freshness(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    nonce: Sha256Hex,
    newest: &AssignmentMark,
    envelope: &Envelope,
) -> Result<Verified<Freshness>, Error> {
    check_kind::<Freshness>(envelope)?;
    signatures::check(root, &[Role::Assign], envelope)?;
    let found: Freshness = parse(envelope)?;
    check_fleet(&found, device.fleet_id)?;
    if found.device_id != device.device_id {
        return Err(Error::new(
            Code::DeviceMismatch,
            format!("for device {}, this is device {}", found.device_id, device.device_id),
        ));
    }
    if found.nonce != nonce {
        return Err(Error::new(Code::Nonce, format!("answers nonce {}, asked with {nonce}", found.nonce)));
    }
    let same = Some(found.assignment_sha256) == newest.sha256
        && (found.assign_epoch, found.seq) == (newest.assign_epoch, newest.seq);
    if !same {
        return Err(Error::new(
            Code::NotFresh,
            format!(
                "the cloud's newest is (epoch, seq) ({}, {}), ours is ({}, {}){}",
                found.assign_epoch,
                found.seq,
                newest.assign_epoch,
                newest.seq,
                if (found.assign_epoch, found.seq) == (newest.assign_epoch, newest.seq) {
                    " with other content"
                } else {
                    ": fetch the state again"
                }
            ),
        ));
    }
    Ok(Verified { document: found, sha256: envelope.payload_sha256() })
}
