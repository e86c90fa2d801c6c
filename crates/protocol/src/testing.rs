//! Fixed keys and ready documents for tests, here and in the crates that use this one. Only behind the feature
//! `testing`: the private keys are known to everybody.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    documents::{
        Act, Action, AppTarget, Assignment, CloudAddress, Compat, Delivery, DeviceConfig, Document,
        DocumentRef, Freshness, HostPayload, ImageRef, Layer, Policy, Release, ReleaseKind, ReleaseMode,
        Role, RoleKeys, Root, RootKey, SPEC, ServiceRelease, TerminalGrant, TerminalOffer, TerminalTarget,
    },
    envelope::Envelope,
    ids::{AppId, CommandId, DeviceId, Digest, FleetId, SessionId, Sha256Hex},
    keys::SigningKey,
    spec::ServiceSpec,
    terminal::LineKey,
    verify::{self, DeviceIdentity, Platform, Verified},
};

/// The time at which the fixed documents are made, Unix seconds.
pub const NOW: u64 = 1_800_000_000;
/// A year.
const YEAR: u64 = 365 * 86_400;

/// One key for each role, a device's key, and the ids they go with.
#[derive(Debug)]
pub struct OwnerKeys {
    /// Signs roots.
    pub root: SigningKey,
    /// Signs app releases.
    pub release: SigningKey,
    /// Signs host releases.
    pub host: SigningKey,
    /// The cloud's builder.
    pub builder: SigningKey,
    /// The cloud's online key.
    pub assign: SigningKey,
    /// A person's: signs grants of terminals. Roots of tests list it where they ask for it ([`Self::grant_root`]).
    pub operator: SigningKey,
    /// The device's own.
    pub device: SigningKey,
    /// The fleet.
    pub fleet_id: FleetId,
    /// Its app.
    pub app_id: AppId,
    /// Its device.
    pub device_id: DeviceId,
}

impl OwnerKeys {
    /// The same keys each time, so that documents can be compared with stored ones.
    #[must_use]
    pub fn fixed() -> Self {
        Self::numbered(0)
    }

    /// Another set of keys and ids for each number.
    #[must_use]
    pub fn numbered(n: u8) -> Self {
        let key = |role: u8| fixed_key(n.wrapping_mul(16).wrapping_add(role));
        Self {
            root: key(1),
            release: key(2),
            host: key(3),
            builder: key(4),
            assign: key(5),
            device: key(6),
            operator: key(7),
            fleet_id: FleetId::from_bytes([0xf0_u8.wrapping_add(n); 16]),
            app_id: AppId::from_bytes([0xa0_u8.wrapping_add(n); 16]),
            device_id: DeviceId::from_bytes([0xd0_u8.wrapping_add(n); 16]),
        }
    }

    /// Root 1 in builder mode: one key a role, nothing of the host allowed, good for two years.
    #[must_use]
    pub fn root(&self) -> Root {
        let mut root = Root {
            spec: SPEC,
            fleet_id: self.fleet_id,
            version: 1,
            issued_at: NOW,
            expires: NOW + 2 * YEAR,
            assign_epoch: 1,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            policy: Policy::default(),
            cloud: CloudAddress::default(),
            floors: BTreeMap::new(),
            revoked_releases: BTreeSet::new(),
            ext: None,
        };
        set_role(&mut root, Role::Root, &[&self.root], 1);
        set_role(&mut root, Role::Release, &[&self.release], 1);
        set_role(&mut root, Role::Host, &[&self.host], 1);
        set_role(&mut root, Role::Builder, &[&self.builder], 1);
        set_role(&mut root, Role::Assign, &[&self.assign], 1);
        root
    }

    /// The same in owner mode, locked.
    #[must_use]
    pub fn locked_root(&self) -> Root {
        let mut root = self.root();
        root.policy.release_mode = ReleaseMode::Owner;
        root.policy.env_mode = crate::documents::EnvMode::Declared;
        root.policy.terminal = crate::documents::TerminalMode::Off;
        root
    }

    /// Root 1 where a terminal needs a grant of the operator key.
    #[must_use]
    pub fn grant_root(&self) -> Root {
        let mut root = self.root();
        root.policy.terminal = crate::documents::TerminalMode::Grant;
        set_role(&mut root, Role::Operator, &[&self.operator], 1);
        root
    }

    /// What the device offers for a terminal in `web`. Not signed yet.
    #[must_use]
    pub fn offer(&self, key: &LineKey) -> TerminalOffer {
        TerminalOffer {
            spec: SPEC,
            fleet_id: self.fleet_id,
            device_id: self.device_id,
            session_id: SessionId::from_bytes([0x5e; 16]),
            target: TerminalTarget::Service("web".parse().expect("a name")),
            challenge: Sha256Hex::of(b"challenge"),
            device_key: key.public(),
            ext: None,
        }
    }

    /// The operator's leave for an offer. Not signed yet.
    #[must_use]
    pub fn grant(&self, offer: &TerminalOffer, operator_key: &str) -> TerminalGrant {
        TerminalGrant {
            spec: SPEC,
            fleet_id: offer.fleet_id,
            device_id: offer.device_id,
            session_id: offer.session_id,
            target: offer.target.clone(),
            challenge: offer.challenge,
            device_key: offer.device_key.clone(),
            operator_key: operator_key.to_owned(),
            operator: "anna@example.org".to_owned(),
            reason: "it is slow".to_owned(),
            max_s: 900,
            max_bytes: 1 << 20,
            issued_at: NOW,
            ext: None,
        }
    }

    /// Signs a root with the root key and accepts it as a first root.
    ///
    /// # Panics
    /// When it does not verify.
    #[must_use]
    pub fn trusted(&self, root: &Root) -> Verified<Root> {
        verify::first_root(&sign(root, &[&self.root]), self.fleet_id).expect("the root is sound")
    }

    /// An app release of one service `web`, which asks nothing of its host. Not signed yet.
    #[must_use]
    pub fn release(&self, counter: u64) -> Release {
        let service = ServiceRelease {
            spec: ServiceSpec::default(),
            overridable_env: BTreeSet::from(["GREETING".to_owned()]),
            images: BTreeMap::from([("linux/amd64".to_owned(), image("demo/web"))]),
        };
        Release {
            spec: SPEC,
            fleet_id: self.fleet_id,
            kind: ReleaseKind::App,
            app_id: Some(self.app_id),
            counter,
            version: semver::Version::new(1, 0, counter),
            commit: String::new(),
            created_at: NOW,
            expires: None,
            rollback_floor: 0,
            compat: Compat::default(),
            build_record: None,
            services: BTreeMap::from([("web".parse().expect("a name"), service)]),
            volumes: BTreeMap::new(),
            networks: BTreeMap::new(),
            payloads: BTreeMap::new(),
            data_schema: None,
            min_from: None,
            ext: None,
        }
    }

    /// A host release for the type of [`platform`] whose root file system is `image`, with an index that names nothing real.
    /// Not signed yet.
    #[must_use]
    pub fn host_release(&self, counter: u64, image: &[u8]) -> Release {
        let index = DocumentRef { sha256: Sha256Hex::of(b"index"), size: Some(5) };
        let rootfs = HostPayload {
            size: image.len() as u64,
            sha256: Sha256Hex::of(image),
            index: Some(index),
            verity_root: None,
        };
        let mut release = self.release(counter);
        release.kind = ReleaseKind::Host;
        release.app_id = None;
        release.services.clear();
        release.payloads = BTreeMap::from([("rootfs".parse().expect("a name"), rootfs)]);
        release.compat.device_types = [platform().device_type].into();
        release
    }

    /// An assignment of these releases' payloads to the device. Not signed yet.
    #[must_use]
    pub fn assignment(&self, seq: u64, releases: &[Sha256Hex]) -> Assignment {
        let apps = releases.iter().map(|sha256| AppTarget { app_id: self.app_id, sha256: *sha256, retry: 0 });
        Assignment {
            spec: SPEC,
            fleet_id: self.fleet_id,
            device_id: self.device_id,
            device_key_sha256: self.device.public().id(),
            root_version: 1,
            assign_epoch: 1,
            seq,
            issued_at: NOW,
            apps: apps.collect(),
            host: None,
            agent: None,
            env: BTreeMap::new(),
            sealed: BTreeMap::new(),
            config: DeviceConfig::default(),
            not_before: None,
            ext: None,
        }
    }

    /// The cloud's word that `newest` is the newest, for a nonce. Not signed yet.
    #[must_use]
    pub fn freshness(&self, nonce: Sha256Hex, newest: &Envelope, seq: u64) -> Freshness {
        Freshness {
            spec: SPEC,
            fleet_id: self.fleet_id,
            device_id: self.device_id,
            nonce,
            assignment_sha256: newest.payload_sha256(),
            assign_epoch: 1,
            seq,
            time: NOW,
            ext: None,
        }
    }

    /// An act of the device, good for an hour. Not signed yet.
    #[must_use]
    pub fn action(&self, seq: u64, act: Act) -> Action {
        Action {
            spec: SPEC,
            fleet_id: self.fleet_id,
            device_id: self.device_id,
            id: CommandId::from_bytes(u128::from(seq).to_be_bytes()),
            assign_epoch: 1,
            seq,
            act,
            delivery: Delivery::Store,
            ttl_s: 3600,
            issued_at: NOW,
            ext: None,
        }
    }

    /// The device, as an assignment must name it.
    #[must_use]
    pub fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            fleet_id: self.fleet_id,
            device_id: self.device_id,
            key_sha256: self.device.public().id(),
        }
    }
}

/// A key whose seed is one byte, repeated.
#[must_use]
pub fn fixed_key(byte: u8) -> SigningKey {
    SigningKey::from_seed(&[byte; 32])
}

/// Gives a role these keys and this threshold; keys no role names any more are dropped.
pub fn set_role(root: &mut Root, role: Role, keys: &[&SigningKey], threshold: u32) {
    for key in keys {
        let listed = RootKey { alg: "ed25519".to_owned(), public: key.public(), label: String::new() };
        root.keys.insert(key.public().id(), listed);
    }
    root.roles
        .insert(role, RoleKeys { keyids: keys.iter().map(|key| key.public().id()).collect(), threshold });
    let named: BTreeSet<_> = root.roles.values().flat_map(|keys| keys.keyids.iter().copied()).collect();
    root.keys.retain(|keyid, _| named.contains(keyid));
}

/// Signs any document.
///
/// # Panics
/// When it cannot be written as JSON.
#[must_use]
pub fn sign<D: Document>(document: &D, keys: &[&SigningKey]) -> Envelope {
    Envelope::sign(document, keys).expect("documents are JSON")
}

/// An image of one layer; its digests are those of texts.
#[must_use]
pub fn image(repo: &str) -> ImageRef {
    ImageRef {
        repo: repo.to_owned(),
        manifest_digest: Digest::of(b"manifest"),
        config_digest: Digest::of(b"config"),
        config_size: 6,
        size: 11,
        layers: vec![Layer {
            digest: Digest::of(b"layer"),
            size: 5,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            diff_id: Digest::of(b"layer, unpacked"),
        }],
    }
}

/// An amd64 device of type `generic` with agent 0.1.0.
#[must_use]
pub fn platform() -> Platform {
    Platform {
        device_type: "generic".to_owned(),
        arch: "amd64".to_owned(),
        agent: semver::Version::new(0, 1, 0),
        os: None,
    }
}
