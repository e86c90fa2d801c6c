//! Step 6: what one device should run, for this device, in order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Code, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    signatures,
};
use crate::{
    documents::{Assignment, Role, Root},
    envelope::Envelope,
    ids::{DeviceId, FleetId, Sha256Hex},
    policy::is_variable_name,
};

/// Who the device is, as an assignment must name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Its fleet.
    pub fleet_id: FleetId,
    /// Its id.
    pub device_id: DeviceId,
    /// SHA-256 of its public key.
    pub key_sha256: Sha256Hex,
}

/// The newest assignment accepted so far; persisted on acceptance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AssignmentMark {
    /// Its epoch.
    pub assign_epoch: u64,
    /// Its seq.
    pub seq: u64,
    /// Its payload hash; absent before the first.
    pub sha256: Option<Sha256Hex>,
}

impl AssignmentMark {
    /// The mark an accepted assignment leaves.
    #[must_use]
    pub fn of(assignment: &Verified<Assignment>) -> Self {
        Self { assign_epoch: assignment.assign_epoch, seq: assignment.seq, sha256: Some(assignment.sha256()) }
    }
}

/// Accepts an assignment (steps 2, 4, 5 and 6). One that was accepted before is accepted again whatever its epoch: a
/// device that starts without a network after its root moved on still knows its target.
///
/// # Errors
/// Signature and payload codes, `E_FLEET`, `E_DEVICE_MISMATCH`, `E_ROOT_BEHIND`, `E_ASSIGN_ROLLBACK`,
/// `E_ASSIGN_EQUIVOCATION`.
pub fn assignment(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    mark: &AssignmentMark,
    envelope: &Envelope,
) -> Result<Verified<Assignment>, Error> {
    check_kind::<Assignment>(envelope)?;
    signatures::check(root, &[Role::Assign], envelope)?;
    let found: Assignment = parse(envelope)?;
    check_fleet(&found, device.fleet_id)?;
    check_device(device, &found)?;
    check_content(&found)?;
    let verified = Verified { document: found, sha256: envelope.payload_sha256() };
    check_order(root, mark, &verified)?;
    Ok(verified)
}

fn check_device(device: &DeviceIdentity, found: &Assignment) -> Result<(), Error> {
    if found.device_id != device.device_id {
        return Err(Error::new(
            Code::DeviceMismatch,
            format!("for device {}, this is device {}", found.device_id, device.device_id),
        ));
    }
    if found.device_key_sha256 != device.key_sha256 {
        return Err(Error::new(
            Code::DeviceMismatch,
            format!(
                "for device {} with key {}, this one has key {}",
                found.device_id, found.device_key_sha256, device.key_sha256
            ),
        ));
    }
    Ok(())
}

fn check_order(root: &Root, mark: &AssignmentMark, found: &Verified<Assignment>) -> Result<(), Error> {
    if found.root_version > root.version {
        return Err(Error::new(
            Code::RootBehind,
            format!("goes by root {}, ours is {}: walk the roots first", found.root_version, root.version),
        ));
    }
    // Epochs are the owner's: a cloud that could invent one would outlive its own replacement.
    if found.assign_epoch > root.assign_epoch {
        return Err(Error::new(
            Code::RootBehind,
            format!(
                "of epoch {}, root {} is in epoch {}",
                found.assign_epoch, root.version, root.assign_epoch
            ),
        ));
    }
    let order = (found.assign_epoch, found.seq);
    let newest = (mark.assign_epoch, mark.seq);
    if order == newest && mark.sha256 == Some(found.sha256()) {
        return Ok(());
    }
    if found.assign_epoch < root.assign_epoch {
        return Err(Error::new(
            Code::AssignRollback,
            format!(
                "of epoch {}, root {} ended it with epoch {}",
                found.assign_epoch, root.version, root.assign_epoch
            ),
        ));
    }
    if order < newest {
        return Err(Error::new(
            Code::AssignRollback,
            format!(
                "(epoch, seq) is ({}, {}), ({}, {}) was accepted before",
                order.0, order.1, newest.0, newest.1
            ),
        ));
    }
    if order == newest && mark.sha256.is_some_and(|known| known != found.sha256()) {
        return Err(Error::new(
            Code::AssignEquivocation,
            format!("other content under (epoch, seq) ({}, {}), which was accepted before", order.0, order.1),
        ));
    }
    Ok(())
}

/// What serde cannot say of the fields. Names of variables become file names and `execve` strings on the device.
fn check_content(found: &Assignment) -> Result<(), Error> {
    let bad = |why: String| Err(Error::new(Code::Payload, why));
    let mut apps = BTreeSet::new();
    for app in &found.apps {
        if !apps.insert(app.app_id) {
            return bad(format!("app {} is assigned twice", app.app_id));
        }
    }
    if let Some(seconds) = found.config.poll_interval_s
        && !(10..=86_400).contains(&seconds)
    {
        return bad(format!("poll_interval_s is {seconds}, 10 to 86400 is accepted"));
    }
    let sets: [&BTreeMap<_, _>; 2] = [&found.env, &found.sealed];
    for (service, set) in sets.into_iter().flat_map(BTreeMap::values).flatten() {
        for (name, value) in set {
            if !is_variable_name(name) {
                let name: String = name.chars().take(80).collect();
                return bad(format!("service {service}: {name:?} is not a name for a variable"));
            }
            if value.contains('\0') {
                return bad(format!("service {service}: the value of {name} holds a NUL"));
            }
        }
    }
    Ok(())
}
