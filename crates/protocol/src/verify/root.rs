//! Step 3: the root walk. Version N+1 is accepted on the word of N and of itself; each step is the caller's to
//! persist before the next.

use std::collections::BTreeMap;

use super::{
    Code, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    signatures,
};
use crate::{
    documents::{EnvMode, MAX_INTEGER, ReleaseMode, Role, Root, TerminalMode},
    envelope::Envelope,
    ids::{AppId, FleetId, KeyId},
    keys::decode_array,
};

/// The most roots a device walks in one cycle; the rest follow in the next.
pub const MAX_ROOT_STEPS: usize = 64;
/// The most keys a root may list. With at most 16 signatures this bounds what checking an envelope costs.
pub const MAX_KEYS: usize = 64;
/// The most cloud URLs, and the most pins, a root may list.
const MAX_ADDRESSES: usize = 16;

/// Accepts the first root a device is given, in `copal.json`: it must satisfy its own root role.
///
/// # Errors
/// As [`next_root`], without the old root's part.
pub fn first_root(envelope: &Envelope, fleet: FleetId) -> Result<Verified<Root>, Error> {
    check_kind::<Root>(envelope)?;
    let root: Root = parse(envelope)?;
    check_fleet(&root, fleet)?;
    check_sense(&root)?;
    signed_by_roots(&root, envelope, Code::RootNewSig, "its own")?;
    Ok(Verified { document: root, sha256: envelope.payload_sha256() })
}

/// Accepts root N+1 on the word of N and of itself. Expiry is not judged here: only the last root's counts
/// ([`root_in_time`]).
///
/// # Errors
/// `E_ROOT_VERSION`, `E_ROOT_OLD_SIG`, `E_ROOT_NEW_SIG`, `E_ROOT_INVALID`, `E_FLEET`, and those of parsing.
pub fn next_root(trusted: &Verified<Root>, envelope: &Envelope) -> Result<Verified<Root>, Error> {
    check_kind::<Root>(envelope)?;
    let old = signed_by_roots(trusted, envelope, Code::RootOldSig, "the trusted root's");
    let wanted = trusted.version + 1;
    let root: Root = match (old, parse::<Root>(envelope)) {
        // A root of another version is signed by other keys: that it is out of turn says more.
        (_, Ok(root)) if root.version != wanted => {
            return Err(Error::new(
                Code::RootVersion,
                format!("root {} where root {wanted} comes next", root.version),
            ));
        }
        (Err(refused), _) | (Ok(()), Err(refused)) => return Err(refused),
        (Ok(()), Ok(root)) => root,
    };
    check_fleet(&root, trusted.fleet_id)?;
    check_sense(&root)?;
    if root.assign_epoch < trusted.assign_epoch {
        return Err(Error::new(
            Code::RootInvalid,
            format!("assign_epoch falls from {} to {}", trusted.assign_epoch, root.assign_epoch),
        ));
    }
    signed_by_roots(&root, envelope, Code::RootNewSig, "its own")?;
    Ok(Verified { document: root, sha256: envelope.payload_sha256() })
}

/// Whether the newest root may still bring in new documents.
///
/// # Errors
/// `E_ROOT_EXPIRED`.
pub fn root_in_time(root: &Verified<Root>, now: u64) -> Result<(), Error> {
    if now < root.expires {
        return Ok(());
    }
    Err(Error::new(
        Code::RootExpired,
        format!(
            "root {} was good until {} (Unix seconds), now is {now}: the owner must renew it",
            root.version, root.expires
        ),
    ))
}

/// Whether the fleet is locked by this root: the cloud cannot make the device run code.
///
/// That host keys are the owner's needs no look here: only the root role's signature lists them, and no key stands
/// in two roles, so neither the builder's nor the online key can be one.
#[must_use]
pub fn is_locked(root: &Root) -> bool {
    matches!(root.policy.release_mode, ReleaseMode::Owner | ReleaseMode::Both)
        && root.policy.env_mode == EnvMode::Declared
        && matches!(root.policy.terminal, TerminalMode::Off | TerminalMode::Grant)
}

/// Any refusal of signatures gets `code`, except that none at all stays `E_SIG_MISSING`.
fn signed_by_roots(judge: &Root, envelope: &Envelope, code: Code, whose: &str) -> Result<(), Error> {
    signatures::check(judge, &[Role::Root], envelope).map_err(|e| match e.code {
        Code::SigMissing => e,
        _ => Error::new(code, format!("not signed by enough of {whose} root keys: {e}")),
    })
}

/// Whether the content of a root makes sense, so that what is judged by it later cannot surprise.
fn check_sense(root: &Root) -> Result<(), Error> {
    let bad = |why: String| Err(Error::new(Code::RootInvalid, why));
    if root.version == 0 || root.version >= MAX_INTEGER {
        return bad(format!("version {}", root.version));
    }
    if root.expires <= root.issued_at {
        return bad(format!("expires at {}, issued at {}", root.expires, root.issued_at));
    }
    if root.keys.len() > MAX_KEYS {
        return bad(format!("{} keys, at most {MAX_KEYS}", root.keys.len()));
    }
    for (keyid, key) in &root.keys {
        if key.alg != "ed25519" {
            return bad(format!("key {keyid} is of algorithm {:?}, only ed25519 is known", key.alg));
        }
        if key.public.id() != *keyid {
            return bad(format!("key {keyid} is not named by its own hash, {}", key.public.id()));
        }
    }
    check_roles(root)?;
    for (what, count) in [("URLs", root.cloud.urls.len()), ("pins", root.cloud.tls_pins.len())] {
        if count > MAX_ADDRESSES {
            return bad(format!("{count} {what} of the cloud, at most {MAX_ADDRESSES}"));
        }
    }
    for url in &root.cloud.urls {
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return bad(format!("cloud URL {url:?} is neither https:// nor http://"));
        }
    }
    for pin in &root.cloud.tls_pins {
        if decode_array::<32>(pin).is_none() {
            return bad(format!("pin {pin:?} is not 32 bytes in padded base64"));
        }
    }
    // A misspelt floor would protect nothing, in silence.
    for key in root.floors.keys() {
        let prefixed =
            ["host/", "agent/"].iter().any(|p| key.strip_prefix(p).is_some_and(|rest| !rest.is_empty()));
        if !prefixed && key.parse::<AppId>().is_err() {
            return bad(format!(
                "floor {key:?} is neither an app id nor host/<device type> nor agent/<arch>"
            ));
        }
    }
    Ok(())
}

fn check_roles(root: &Root) -> Result<(), Error> {
    let bad = |why: String| Err(Error::new(Code::RootInvalid, why));
    let mut held: BTreeMap<KeyId, Role> = BTreeMap::new();
    for (&role, keys) in &root.roles {
        let name = role.as_str();
        if keys.threshold == 0 || keys.threshold as usize > keys.keyids.len() {
            return bad(format!("role {name} asks for {} of {} keys", keys.threshold, keys.keyids.len()));
        }
        for keyid in &keys.keyids {
            if !root.keys.contains_key(keyid) {
                return bad(format!("role {name} names key {keyid}, which is not listed"));
            }
            if let Some(other) = held.insert(*keyid, role) {
                return bad(format!("key {keyid} stands in the roles {} and {name}", other.as_str()));
            }
        }
    }
    let needed: &[Role] = match root.policy.release_mode {
        ReleaseMode::Builder => &[Role::Root, Role::Assign, Role::Builder],
        ReleaseMode::Owner => &[Role::Root, Role::Assign, Role::Release],
        ReleaseMode::Both => &[Role::Root, Role::Assign, Role::Builder, Role::Release],
    };
    for role in needed {
        if !root.roles.contains_key(role) {
            return bad(format!("no role {}, which this release mode needs", role.as_str()));
        }
    }
    Ok(())
}
