use super::*;
use crate::{
    documents::{EnvMode, ReleaseMode, Role, RoleKeys, Root, RootKey, TerminalMode},
    ids::{KeyId, Sha256Hex},
    testing::{NOW, OwnerKeys, fixed_key, set_role, sign},
    verify::{self, MAX_KEYS, Verified, first_root, is_locked, next_root, root_in_time},
};

fn next(root: &Root) -> Root {
    Root { version: root.version + 1, ..root.clone() }
}

#[test]
fn the_first_root_vouches_for_itself_and_for_its_fleet() {
    let keys = OwnerKeys::fixed();
    let root = keys.root();
    let accepted = first_root(&sign(&root, &[&keys.root]), keys.fleet_id).unwrap();
    assert_eq!(*accepted, root);
    assert_eq!(accepted.sha256(), Sha256Hex::of(&serde_json::to_vec(&root).unwrap()));
    assert_eq!(code(first_root(&sign(&root, &[]), keys.fleet_id)), Code::SigMissing);
    assert_eq!(code(first_root(&sign(&root, &[&keys.assign]), keys.fleet_id)), Code::RootNewSig);
    let other = OwnerKeys::numbered(1);
    assert_eq!(code(first_root(&sign(&root, &[&keys.root]), other.fleet_id)), Code::Fleet);
}

#[test]
fn a_root_needs_the_word_of_the_one_before_it() {
    let keys = OwnerKeys::fixed();
    let trusted = keys.trusted(&keys.root());
    let new_key = fixed_key(0x55);
    let mut second = next(&trusted);
    set_role(&mut second, Role::Root, &[&new_key], 1);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&new_key]))), Code::RootOldSig);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[]))), Code::SigMissing);
    assert!(next_root(&trusted, &sign(&second, &[&new_key, &keys.root])).is_ok());
}

#[test]
fn a_root_needs_its_own_word() {
    let keys = OwnerKeys::fixed();
    let trusted = keys.trusted(&keys.root());
    let mut second = next(&trusted);
    set_role(&mut second, Role::Root, &[&fixed_key(0x55)], 1);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&keys.root]))), Code::RootNewSig);
}

#[test]
fn thresholds_of_both_roots_bind() {
    let keys = OwnerKeys::fixed();
    let (b, c) = (fixed_key(0x55), fixed_key(0x56));
    let mut first = keys.root();
    set_role(&mut first, Role::Root, &[&keys.root, &b], 2);
    let trusted = first_root(&sign(&first, &[&keys.root, &b]), keys.fleet_id).unwrap();
    assert_eq!(code(first_root(&sign(&first, &[&b]), keys.fleet_id)), Code::RootNewSig);
    let mut second = next(&first);
    set_role(&mut second, Role::Root, &[&b, &c], 2);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&b, &c]))), Code::RootOldSig);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&keys.root, &b]))), Code::RootNewSig);
    assert!(next_root(&trusted, &sign(&second, &[&keys.root, &b, &c])).is_ok());
}

#[test]
fn no_version_is_skipped_repeated_or_taken_back() {
    let keys = OwnerKeys::fixed();
    let first = keys.trusted(&keys.root());
    for version in [0, 1, 3, 2_000_000] {
        let root = Root { version, ..keys.root() };
        assert_eq!(code(next_root(&first, &sign(&root, &[&keys.root]))), Code::RootVersion, "{version}");
    }
    // Also where the keys changed on the way, so that its signatures mean nothing to us.
    let later_key = fixed_key(0x55);
    let mut third = Root { version: 3, ..keys.root() };
    set_role(&mut third, Role::Root, &[&later_key], 1);
    assert_eq!(code(next_root(&first, &sign(&third, &[&later_key]))), Code::RootVersion);
    let second = next_root(&first, &sign(&next(&first), &[&keys.root])).unwrap();
    assert_eq!(code(next_root(&second, &sign(&*first, &[&keys.root]))), Code::RootVersion);
}

#[test]
fn a_root_of_another_fleet_is_refused() {
    let keys = OwnerKeys::fixed();
    let trusted = keys.trusted(&keys.root());
    let second = Root { fleet_id: OwnerKeys::numbered(1).fleet_id, ..next(&trusted) };
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&keys.root]))), Code::Fleet);
}

#[test]
fn a_device_offline_for_years_walks_over_expired_roots() {
    let keys = OwnerKeys::fixed();
    let mut signer = fixed_key(0x60);
    let mut root = keys.root();
    root.expires = NOW + 10;
    set_role(&mut root, Role::Root, &[&signer], 1);
    let mut trusted: Verified<Root> = first_root(&sign(&root, &[&signer]), keys.fleet_id).unwrap();
    for n in 0x61..0x71 {
        let new = fixed_key(n);
        let mut following = next(&trusted);
        set_role(&mut following, Role::Root, &[&new], 1);
        trusted = next_root(&trusted, &sign(&following, &[&signer, &new])).unwrap();
        signer = new;
    }
    assert_eq!(trusted.version, 17);
    assert_eq!(code(root_in_time(&trusted, NOW + 10)), Code::RootExpired);
    assert!(root_in_time(&trusted, NOW + 9).is_ok());
    let renewed = Root { expires: NOW + 1_000, ..next(&trusted) };
    let renewed = next_root(&trusted, &sign(&renewed, &[&signer])).unwrap();
    assert!(root_in_time(&renewed, NOW + 10).is_ok());
}

#[test]
fn a_root_that_makes_no_sense_is_refused_though_rightly_signed() {
    let keys = OwnerKeys::fixed();
    type Edit = fn(&mut Root, &OwnerKeys);
    let edits: [(&str, Edit); 22] = [
        ("version 0", |r, _| r.version = 0),
        ("expires before it was issued", |r, _| r.expires = r.issued_at),
        ("a key under another name", |r, k| {
            let key = r.keys.remove(&k.host.public().id()).unwrap();
            r.keys.insert(KeyId::of(b"host"), key);
            r.roles.get_mut(&Role::Host).unwrap().keyids = [KeyId::of(b"host")].into();
        }),
        ("one key under two names, to meet a threshold of two alone", |r, k| {
            let alias = KeyId::of(b"alias");
            r.keys.insert(alias, r.keys[&k.release.public().id()].clone());
            r.roles.get_mut(&Role::Release).unwrap().keyids.insert(alias);
        }),
        ("a key in two roles", |r, k| {
            r.roles.get_mut(&Role::Release).unwrap().keyids.insert(k.assign.public().id());
        }),
        ("the builder as host publisher", |r, k| {
            r.roles.get_mut(&Role::Host).unwrap().keyids = [k.builder.public().id()].into();
        }),
        ("a threshold of 0", |r, _| r.roles.get_mut(&Role::Release).unwrap().threshold = 0),
        ("a threshold of 0 for root itself", |r, _| r.roles.get_mut(&Role::Root).unwrap().threshold = 0),
        ("a threshold nobody can meet", |r, _| r.roles.get_mut(&Role::Assign).unwrap().threshold = 2),
        ("a role without keys", |r, _| {
            r.roles.insert(Role::Operator, RoleKeys { keyids: Default::default(), threshold: 1 });
        }),
        ("a key that is not listed", |r, _| {
            r.roles.get_mut(&Role::Release).unwrap().keyids.insert(KeyId::of(b"nobody"));
        }),
        ("no root role", |r, _| {
            r.roles.remove(&Role::Root);
        }),
        ("no assign role", |r, _| {
            r.roles.remove(&Role::Assign);
        }),
        ("builder mode without a builder", |r, _| {
            r.roles.remove(&Role::Builder);
        }),
        ("owner mode without release keys", |r, _| {
            r.policy.release_mode = ReleaseMode::Owner;
            r.roles.remove(&Role::Release);
        }),
        ("mode both without release keys", |r, _| {
            r.policy.release_mode = ReleaseMode::Both;
            r.roles.remove(&Role::Release);
        }),
        ("another algorithm", |r, k| r.keys.get_mut(&k.host.public().id()).unwrap().alg = "rsa".to_owned()),
        ("more keys than are looked at", |r, _| {
            for n in 0..=MAX_KEYS {
                let public = SigningKey::from_seed(&[u8::try_from(n).unwrap() | 0x80; 32]).public();
                r.keys
                    .insert(public.id(), RootKey { alg: "ed25519".to_owned(), public, label: String::new() });
            }
        }),
        ("a floor of nothing known", |r, _| {
            r.floors.insert("hots/generic".to_owned(), 3);
        }),
        ("a pin that can never match", |r, _| r.cloud.tls_pins.push("AAAA".to_owned())),
        ("a cloud that is no web address", |r, _| r.cloud.urls.push("file:///etc/passwd".to_owned())),
        ("a version beyond which none can follow", |r, _| r.version = (1 << 53) - 1),
    ];
    for (what, edit) in edits {
        let mut root = keys.root();
        edit(&mut root, &keys);
        let refused = code(first_root(&sign(&root, &[&keys.root]), keys.fleet_id));
        assert_eq!(refused, Code::RootInvalid, "{what}");
    }
}

#[test]
fn a_next_root_is_held_to_the_same_sense() {
    let keys = OwnerKeys::fixed();
    let trusted = keys.trusted(&keys.root());
    let mut second = next(&trusted);
    second.roles.remove(&Role::Assign);
    assert_eq!(code(next_root(&trusted, &sign(&second, &[&keys.root]))), Code::RootInvalid);
    let lower_epoch = Root { assign_epoch: 0, ..next(&trusted) };
    assert_eq!(code(next_root(&trusted, &sign(&lower_epoch, &[&keys.root]))), Code::RootInvalid);
}

#[test]
fn a_weak_key_does_not_enter_a_root() {
    let keys = OwnerKeys::fixed();
    let weak = BASE64.encode({
        let mut point = [0; 32];
        point[0] = 1;
        point
    });
    let host = keys.host.public().id().to_string();
    let envelope = edited(&keys.root(), &[&keys.root], |v| v["keys"][&host]["pub"] = json!(weak));
    assert_eq!(code(first_root(&envelope, keys.fleet_id)), Code::Payload);
}

#[test]
fn locked_means_owner_signed_declared_and_no_terminal_of_the_cloud() {
    let root = OwnerKeys::fixed().locked_root();
    assert!(is_locked(&root));
    let with = |edit: fn(&mut Root)| {
        let mut root = root.clone();
        edit(&mut root);
        is_locked(&root)
    };
    assert!(with(|r| r.policy.release_mode = ReleaseMode::Both));
    assert!(with(|r| r.policy.terminal = TerminalMode::Grant));
    assert!(!with(|r| r.policy.release_mode = ReleaseMode::Builder));
    assert!(!with(|r| r.policy.env_mode = EnvMode::Open));
    assert!(!with(|r| r.policy.terminal = TerminalMode::Cloud));
}

#[test]
fn the_cloud_cannot_unlock_a_fleet() {
    let keys = OwnerKeys::fixed();
    let trusted = keys.trusted(&keys.locked_root());
    let mut open = next(&trusted);
    open.policy.release_mode = ReleaseMode::Builder;
    // All it has: its own two keys.
    let refused = code(verify::next_root(&trusted, &sign(&open, &[&keys.builder, &keys.assign])));
    assert_eq!(refused, Code::RootOldSig);
}
