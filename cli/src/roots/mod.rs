//! Making root documents. Pure: the old root, what is to change, the time and the keys come in; the next root comes
//! out. Nothing here decides whether a change is wise; [`copal_protocol::verify`] decides whether it is valid.

use std::collections::BTreeSet;

use copal_protocol::{
    documents::{CloudAddress, Document as _, Policy, Role, RoleKeys, Root, RootKey, SPEC},
    envelope::Envelope,
    ids::{FleetId, KeyId, Sha256Hex},
    keys::{PublicKey, SigningKey},
};

/// A day in seconds.
pub const DAY: u64 = 86_400;

/// A public key with its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What it may sign.
    pub role: Role,
    /// The key.
    pub public: PublicKey,
    /// For people.
    pub label: String,
}

/// What a first root is made from.
#[derive(Debug, Clone)]
pub struct First {
    /// The fleet.
    pub fleet_id: FleetId,
    /// Every key.
    pub keys: Vec<Listed>,
    /// Threshold of the root role.
    pub root_threshold: u32,
    /// Threshold of the release role.
    pub release_threshold: u32,
    /// What the owner allows.
    pub policy: Policy,
    /// Where the cloud is.
    pub cloud: CloudAddress,
}

/// What differs in the next root.
#[derive(Debug, Clone)]
pub enum Change {
    /// Nothing but its time.
    Renew,
    /// Assignments begin a new epoch: the cloud was restored from a back-up.
    NewEpoch,
    /// One more key.
    AddKey(Listed),
    /// One key less, from whatever role it has.
    DropKey(KeyId),
    /// A key takes the place of others of its role (of all of them where none is named).
    Rotate {
        /// The new key.
        new: Listed,
        /// Those it replaces.
        old: BTreeSet<KeyId>,
    },
    /// Another threshold.
    Threshold(Role, u32),
    /// This release must not run any more.
    RevokeRelease(Sha256Hex),
    /// Nothing below this counter is accepted.
    Floor {
        /// `<app id>`, `host/<device type>` or `agent/<arch>`.
        of: String,
        /// The counter.
        counter: u64,
    },
    /// Another policy.
    Policy(Policy),
    /// Another address or pin of the cloud.
    Cloud(CloudAddress),
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// The key is not listed.
    #[error("key {0} is not listed in this root")]
    UnknownKey(KeyId),
    /// The key is listed.
    #[error("key {0} is listed already, as {1}")]
    KnownKey(KeyId, &'static str),
    /// The role would have too few keys.
    #[error("role {role} would keep {left} key(s) where {threshold} must sign")]
    TooFew {
        /// The role.
        role: &'static str,
        /// Keys left.
        left: usize,
        /// Its threshold.
        threshold: u32,
    },
    /// A floor can only rise.
    #[error("the floor of {of} is {now} and can only rise; {wanted} is lower")]
    FloorFalls {
        /// Whose.
        of: String,
        /// The floor.
        now: u64,
        /// What was asked.
        wanted: u64,
    },
    /// The document cannot be written, or is too large.
    #[error("{0}")]
    Document(String),
}

/// Makes Root 1.
#[must_use]
pub fn first(first: First, now: u64, valid_days: u32) -> Root {
    let mut root = Root {
        spec: SPEC,
        fleet_id: first.fleet_id,
        version: 1,
        issued_at: now,
        expires: now + u64::from(valid_days) * DAY,
        assign_epoch: 1,
        keys: std::collections::BTreeMap::new(),
        roles: std::collections::BTreeMap::new(),
        policy: first.policy,
        cloud: first.cloud,
        floors: std::collections::BTreeMap::new(),
        revoked_releases: BTreeSet::new(),
        ext: None,
    };
    for key in first.keys {
        list(&mut root, key);
    }
    for (role, threshold) in [(Role::Root, first.root_threshold), (Role::Release, first.release_threshold)] {
        if let Some(keys) = root.roles.get_mut(&role) {
            keys.threshold = threshold;
        }
    }
    root
}

/// Makes Root N+1: `old` with `change`, issued now.
///
/// # Errors
/// See [`RootError`].
pub fn next(old: &Root, change: Change, now: u64, valid_days: u32) -> Result<Root, RootError> {
    let mut root = Root {
        version: old.version + 1,
        // A machine whose clock fell behind must not issue a root older than the one before it.
        issued_at: now.max(old.issued_at),
        expires: now.max(old.issued_at) + u64::from(valid_days) * DAY,
        ..old.clone()
    };
    match change {
        Change::Renew => {}
        Change::NewEpoch => root.assign_epoch += 1,
        Change::AddKey(key) => add(&mut root, key)?,
        Change::DropKey(keyid) => drop_key(&mut root, keyid)?,
        Change::Rotate { new, old } => {
            let role = new.role;
            let replaced = if old.is_empty() {
                root.roles.get(&role).map(|r| r.keyids.clone()).unwrap_or_default()
            } else {
                old
            };
            add(&mut root, new)?;
            for keyid in replaced {
                drop_key(&mut root, keyid)?;
            }
        }
        Change::Threshold(role, threshold) => {
            if let Some(keys) = root.roles.get_mut(&role) {
                keys.threshold = threshold;
            }
        }
        Change::RevokeRelease(release) => {
            root.revoked_releases.insert(release);
        }
        Change::Floor { of, counter } => {
            let floor = root.floors.entry(of.clone()).or_default();
            if counter < *floor {
                return Err(RootError::FloorFalls { of, now: *floor, wanted: counter });
            }
            *floor = counter;
        }
        Change::Policy(policy) => root.policy = policy,
        Change::Cloud(cloud) => root.cloud = cloud,
    }
    for (role, keys) in &root.roles {
        if keys.keyids.len() < keys.threshold as usize || keys.threshold == 0 {
            return Err(RootError::TooFew {
                role: role.as_str(),
                left: keys.keyids.len(),
                threshold: keys.threshold,
            });
        }
    }
    Ok(root)
}

fn list(root: &mut Root, key: Listed) {
    let keyid = key.public.id();
    root.keys.insert(keyid, RootKey { alg: "ed25519".to_owned(), public: key.public, label: key.label });
    let role =
        root.roles.entry(key.role).or_insert_with(|| RoleKeys { keyids: BTreeSet::new(), threshold: 1 });
    role.keyids.insert(keyid);
}

fn add(root: &mut Root, key: Listed) -> Result<(), RootError> {
    let keyid = key.public.id();
    if let Some((role, _)) = root.roles.iter().find(|(_, keys)| keys.keyids.contains(&keyid)) {
        return Err(RootError::KnownKey(keyid, role.as_str()));
    }
    list(root, key);
    Ok(())
}

fn drop_key(root: &mut Root, keyid: KeyId) -> Result<(), RootError> {
    root.keys.remove(&keyid).ok_or(RootError::UnknownKey(keyid))?;
    for keys in root.roles.values_mut() {
        keys.keyids.remove(&keyid);
    }
    root.roles.retain(|role, keys| {
        // The last operator or host key may go, and its role with it; the others are needed or guard a mode.
        !keys.keyids.is_empty() || !matches!(role, Role::Operator | Role::Host)
    });
    Ok(())
}

/// Which of `keys` may sign `root` as it follows `old`: those in the root role of either.
pub fn signers<'a>(root: &Root, old: Option<&Root>, keys: &[&'a SigningKey]) -> Vec<&'a SigningKey> {
    let listed =
        |judge: &Root, id: &KeyId| judge.roles.get(&Role::Root).is_some_and(|role| role.keyids.contains(id));
    let may = |key: &&SigningKey| {
        let id = key.public().id();
        listed(root, &id) || old.is_some_and(|old| listed(old, &id))
    };
    keys.iter().copied().filter(may).collect()
}

/// Signs a root with every key that may.
///
/// # Errors
/// Where it is larger than devices accept.
pub fn sign(root: &Root, old: Option<&Root>, keys: &[&SigningKey]) -> Result<Envelope, RootError> {
    let envelope =
        Envelope::sign(root, &signers(root, old, keys)).map_err(|e| RootError::Document(e.to_string()))?;
    let size = envelope.to_bytes().len();
    if size > Root::MAX_BYTES {
        return Err(RootError::Document(format!(
            "the root would be {size} bytes, at most {} are accepted",
            Root::MAX_BYTES
        )));
    }
    Ok(envelope)
}

/// How many more root keys of `judge` must sign `envelope`.
#[must_use]
pub fn missing(judge: &Root, envelope: &Envelope) -> usize {
    let Some(role) = judge.roles.get(&Role::Root) else { return 0 };
    let good = role
        .keyids
        .iter()
        .filter(|id| judge.keys.get(id).is_some_and(|key| envelope.is_signed_by(&key.public)))
        .count();
    (role.threshold as usize).saturating_sub(good)
}

#[cfg(test)]
mod tests;
