use copal_protocol::{
    documents::{EnvMode, ReleaseMode, TerminalMode},
    verify::{self, Code},
};

use super::*;
use crate::home::fleets::Chain;

const NOW: u64 = 1_750_000_000;

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

fn listed(role: Role, n: u8) -> Listed {
    Listed { role, public: key(n).public(), label: format!("key {n}") }
}

fn fleet() -> FleetId {
    FleetId::from_bytes([9; 16])
}

/// Root keys 1 and 2 (both where the threshold is 2), release 3, builder 4, assign 5.
fn start(root_threshold: u32) -> Chain {
    let keys = [(Role::Root, 1), (Role::Root, 2), (Role::Release, 3), (Role::Builder, 4), (Role::Assign, 5)];
    let first = first(
        First {
            fleet_id: fleet(),
            keys: keys.map(|(role, n)| listed(role, n)).into(),
            root_threshold,
            release_threshold: 1,
            policy: Policy::default(),
            cloud: CloudAddress::default(),
        },
        NOW,
        365,
    );
    let envelope = sign(&first, None, &[&key(1), &key(2), &key(3)]).unwrap();
    Chain::begin(envelope, fleet()).unwrap()
}

fn step(chain: &mut Chain, change: Change, keys: &[u8]) -> Result<(), verify::Error> {
    let next = next(&chain.newest, change, NOW + 10, 365).unwrap();
    let keys: Vec<_> = keys.iter().map(|n| key(*n)).collect();
    let envelope = sign(&next, Some(&chain.newest), &keys.iter().collect::<Vec<_>>()).unwrap();
    chain.push(envelope)
}

#[test]
fn devices_accept_every_kind_of_change() {
    let mut chain = start(1);
    let lock = Policy {
        release_mode: ReleaseMode::Owner,
        env_mode: EnvMode::Declared,
        terminal: TerminalMode::Off,
        ..Policy::default()
    };
    let changes = [
        Change::Renew,
        Change::NewEpoch,
        Change::AddKey(listed(Role::Release, 6)),
        Change::DropKey(key(6).public().id()),
        Change::Rotate { new: listed(Role::Builder, 7), old: BTreeSet::new() },
        Change::Threshold(Role::Root, 2),
        Change::RevokeRelease(Sha256Hex::of(b"release")),
        Change::Floor { of: "0".repeat(32), counter: 7 },
        Change::Policy(lock),
        Change::Cloud(CloudAddress { urls: vec!["https://b.example".to_owned()], tls_pins: vec![] }),
    ];
    for (n, change) in (2..).zip(changes) {
        step(&mut chain, change, &[1, 2]).unwrap();
        assert_eq!(chain.newest.version, n);
    }
    assert!(verify::is_locked(&chain.newest));
    assert_eq!(chain.newest.assign_epoch, 2);
    assert_eq!(chain.newest.expires, NOW + 10 + 365 * DAY);
    assert!(chain.newest.revoked_releases.contains(&Sha256Hex::of(b"release")));
}

#[test]
fn a_rotated_root_key_signs_with_the_one_it_replaces_and_alone_afterwards() {
    let mut chain = start(1);
    let change = || Change::Rotate { new: listed(Role::Root, 8), old: BTreeSet::new() };
    assert_eq!(step(&mut chain, change(), &[8]).unwrap_err().code, Code::RootOldSig);
    assert_eq!(step(&mut chain, change(), &[1]).unwrap_err().code, Code::RootNewSig);
    step(&mut chain, change(), &[1, 8]).unwrap();
    assert_eq!(step(&mut chain, Change::Renew, &[1, 2]).unwrap_err().code, Code::SigMissing);
    step(&mut chain, Change::Renew, &[8]).unwrap();
}

#[test]
fn a_threshold_needs_that_many_machines() {
    let mut chain = start(2);
    let root = next(&chain.newest, Change::Renew, NOW, 30).unwrap();
    let mut envelope = sign(&root, Some(&chain.newest), &[&key(1)]).unwrap();
    assert_eq!(missing(&chain.newest, &envelope), 1);
    assert_eq!(chain.clone().push(envelope.clone()).unwrap_err().code, Code::RootOldSig);
    envelope.add_signature(&key(2));
    assert_eq!(missing(&chain.newest, &envelope), 0);
    chain.push(envelope).unwrap();
}

#[test]
fn release_and_server_keys_never_sign_a_root() {
    let chain = start(1);
    let root = next(&chain.newest, Change::Renew, NOW, 30).unwrap();
    let envelope = sign(&root, Some(&chain.newest), &[&key(3), &key(4), &key(5)]).unwrap();
    assert!(envelope.signatures().is_empty());
}

#[test]
fn changes_that_would_break_the_fleet_are_refused_before_anything_is_signed() {
    let old = start(1).newest;
    let refused = |change| next(&old, change, NOW, 30).unwrap_err();
    assert!(matches!(refused(Change::DropKey(key(4).public().id())), RootError::TooFew { .. }));
    assert!(matches!(refused(Change::DropKey(key(99).public().id())), RootError::UnknownKey(_)));
    assert!(matches!(refused(Change::AddKey(listed(Role::Release, 1))), RootError::KnownKey(_, "root")));
    assert!(matches!(refused(Change::Threshold(Role::Root, 3)), RootError::TooFew { .. }));
    let of = "0".repeat(32);
    let high = next(&old, Change::Floor { of: of.clone(), counter: 9 }, NOW, 30).unwrap();
    assert!(matches!(
        next(&high, Change::Floor { of, counter: 8 }, NOW, 30),
        Err(RootError::FloorFalls { .. })
    ));
}

#[test]
fn a_clock_that_fell_behind_does_not_make_an_older_root() {
    let old = start(1).newest;
    let root = next(&old, Change::Renew, 0, 30).unwrap();
    assert_eq!(root.issued_at, old.issued_at);
    assert!(root.expires > root.issued_at);
}
