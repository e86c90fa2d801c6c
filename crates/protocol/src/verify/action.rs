//! What a device is told to do, judged before anything of it is done.

use super::{
    Code, DeviceIdentity, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    signatures,
};
use crate::{
    documents::{Act, Action, MAX_INTEGER, MAX_TTL_S, Role, Root},
    envelope::Envelope,
    network,
};

/// The longest a device blinks, seconds.
const MAX_BLINK_S: u32 = 600;

/// Checks an action for this device. Whether it came before, is of an epoch that is over, or is too old by now, the device's own journal
/// and clock say: one that was done in an epoch before this has its answer still.
///
/// # Errors
/// Signature and payload codes, `E_FLEET`, `E_DEVICE_MISMATCH`, `E_ROOT_BEHIND`.
pub fn action(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    envelope: &Envelope,
) -> Result<Verified<Action>, Error> {
    check_kind::<Action>(envelope)?;
    signatures::check(root, &[Role::Assign], envelope)?;
    let found: Action = parse(envelope)?;
    check_fleet(&found, device.fleet_id)?;
    if found.device_id != device.device_id {
        return Err(Error::new(
            Code::DeviceMismatch,
            format!("for device {}, this is device {}", found.device_id, device.device_id),
        ));
    }
    // Epochs are the owner's: whoever could invent one would use up the numbers of those to come.
    if found.assign_epoch > root.assign_epoch {
        return Err(Error::new(
            Code::RootBehind,
            format!(
                "of epoch {}, root {} is in epoch {}: walk the roots first",
                found.assign_epoch, root.version, root.assign_epoch
            ),
        ));
    }
    let bad = |what: String| Err(Error::new(Code::Payload, what));
    if found.seq == 0 || found.seq > MAX_INTEGER || found.issued_at > MAX_INTEGER {
        return bad(format!("seq {} or issued_at {} makes no sense", found.seq, found.issued_at));
    }
    if found.ttl_s == 0 || found.ttl_s > MAX_TTL_S {
        return bad(format!("ttl_s {} is not within 1 and {MAX_TTL_S}", found.ttl_s));
    }
    match &found.act {
        &Act::Blink { for_s } if for_s == 0 || for_s > MAX_BLINK_S => {
            bad(format!("for_s {for_s} is not within 1 and {MAX_BLINK_S}"))
        }
        &Act::PauseUpdates { for_s: Some(for_s) } if for_s == 0 || for_s > MAX_TTL_S => {
            bad(format!("for_s {for_s} is not within 1 and {MAX_TTL_S}"))
        }
        Act::SetNetwork { proxy, ntp } => {
            if let Err(why) = network::check(proxy.as_deref(), ntp.as_deref()) {
                return bad(why);
            }
            Ok(Verified { document: found, sha256: envelope.payload_sha256() })
        }
        _ => Ok(Verified { document: found, sha256: envelope.payload_sha256() }),
    }
}
