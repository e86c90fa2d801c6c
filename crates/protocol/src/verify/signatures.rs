//! Who signed: distinct public keys of a role, counted.
//!
//! A key id is a hint at which key to try first and decides nothing. Signatures beyond the threshold, and
//! signatures that do not verify, do not spoil a document that has enough good ones: an owner's signature
//! may be added to a builder's, and whoever can add rubbish could as well withhold the document.

use std::collections::{BTreeMap, BTreeSet};

use super::{Code, Error};
use crate::{
    documents::{Role, Root},
    envelope::{Envelope, pae},
    ids::KeyId,
};

/// Demands the threshold of every role in `wanted`.
///
/// Where it is not met, the code is the first of these that holds: no signature at all (`E_SIG_MISSING`); one names a
/// listed key and no listed key verifies it (`E_SIG_INVALID`); some key of a wanted role signed, too few
/// (`E_SIG_THRESHOLD`); a key of another role signed (`E_SIG_WRONG_ROLE`); else `E_SIG_UNKNOWN_KEY`.
pub(super) fn check(root: &Root, wanted: &[Role], envelope: &Envelope) -> Result<(), Error> {
    let tally = Tally::of(root, envelope);
    let mut missing = None;
    let mut some_good = false;
    for &role in wanted {
        let (good, threshold) = match root.roles.get(&role) {
            Some(keys) => (keys.keyids.intersection(&tally.signers).count(), keys.threshold as usize),
            // A role that Root does not list cannot be met by anybody.
            None => (0, usize::MAX),
        };
        some_good |= good > 0;
        // A threshold of 0 never gets here (E_ROOT_INVALID), and must not open the door if it did.
        if (good < threshold || good == 0) && missing.is_none() {
            missing = Some((role, good, threshold));
        }
    }
    let Some((role, good, threshold)) = missing else { return Ok(()) };

    let role = role.as_str();
    if envelope.signatures().is_empty() {
        return Err(Error::new(Code::SigMissing, format!("no signature where role {role} must sign")));
    }
    if let Some(keyid) = tally.invalid {
        return Err(Error::new(
            Code::SigInvalid,
            format!("the signature that names key {keyid} fits no key of root {}", root.version),
        ));
    }
    if some_good {
        return Err(Error::new(
            Code::SigThreshold,
            format!("{good} key(s) of role {role} signed, {threshold} must"),
        ));
    }
    if let Some(keyid) = tally.signers.first() {
        let is = root
            .roles
            .iter()
            .find(|(_, keys)| keys.keyids.contains(keyid))
            .map_or("no role", |(r, _)| r.as_str());
        return Err(Error::new(
            Code::SigWrongRole,
            format!("signed by key {keyid} of {is}, where role {role} must sign"),
        ));
    }
    Err(Error::new(
        Code::SigUnknownKey,
        format!("signed by keys that root {} does not list, where role {role} must sign", root.version),
    ))
}

/// The listed keys that signed an envelope, with their roles. A key in no role is left out.
#[must_use]
pub fn signers(root: &Root, envelope: &Envelope) -> BTreeMap<KeyId, Role> {
    let role_of = |keyid: &KeyId| {
        root.roles.iter().find(|(_, keys)| keys.keyids.contains(keyid)).map(|(role, _)| *role)
    };
    Tally::of(root, envelope)
        .signers
        .into_iter()
        .filter_map(|keyid| Some((keyid, role_of(&keyid)?)))
        .collect()
}

/// Takes over from `theirs` the signatures that are right, by listed keys that have not signed `ours` yet, and says
/// how many. The same payload is demanded; rubbish is left behind, so that nobody can fill an envelope up with it.
pub fn merge_signatures(root: &Root, ours: &mut Envelope, theirs: &Envelope) -> usize {
    if ours.payload() != theirs.payload() || ours.payload_type() != theirs.payload_type() {
        return 0;
    }
    let have = signers(root, ours);
    let message = pae(theirs.payload_type(), theirs.payload());
    let mut added = BTreeSet::new();
    for signature in theirs.signatures() {
        if let Some(key) = root.keys.get(&signature.keyid)
            && !have.contains_key(&signature.keyid)
            && key.public.verifies(&message, &signature.sig)
            && ours.push_signature(signature.clone())
        {
            added.insert(signature.keyid);
        }
    }
    added.len()
}

struct Tally {
    /// Listed keys that signed, of whatever role.
    signers: BTreeSet<KeyId>,
    /// The first signature that names a listed key and fits none.
    invalid: Option<KeyId>,
}

impl Tally {
    /// At most [`crate::envelope::MAX_SIGNATURES`] × [`super::MAX_KEYS`] signature checks.
    fn of(root: &Root, envelope: &Envelope) -> Self {
        let message = pae(envelope.payload_type(), envelope.payload());
        let mut tally = Self { signers: BTreeSet::new(), invalid: None };
        for signature in envelope.signatures() {
            let hinted = root.keys.get_key_value(&signature.keyid);
            let signer = hinted
                .into_iter()
                .chain(&root.keys)
                .find(|(_, key)| key.public.verifies(&message, &signature.sig))
                .map(|(keyid, _)| *keyid);
            match signer {
                Some(keyid) => {
                    tally.signers.insert(keyid);
                }
                None if hinted.is_some() => {
                    tally.invalid.get_or_insert(signature.keyid);
                }
                None => {}
            }
        }
        tally
    }
}
