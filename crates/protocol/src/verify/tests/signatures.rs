use super::{releases::install, *};
use crate::{
    documents::{Role, Root},
    ids::KeyId,
    testing::{OwnerKeys, fixed_key, set_role, sign},
};

/// Owner mode, two of three release keys.
fn two_of_three(keys: &OwnerKeys) -> (Root, [crate::keys::SigningKey; 3]) {
    let release = [fixed_key(0x71), fixed_key(0x72), fixed_key(0x73)];
    let mut root = keys.locked_root();
    set_role(&mut root, Role::Release, &[&release[0], &release[1], &release[2]], 2);
    (root, release)
}

#[test]
fn without_a_signature_nothing_is_believed() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    assert_eq!(code(install(&keys, &root, &sign(&keys.release(1), &[]))), Code::SigMissing);
}

#[test]
fn a_flipped_bit_in_signature_or_payload_is_noticed() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = sign(&keys.release(1), &[&keys.builder]);
    for bit in 0..512 {
        let mut sig = good.signatures()[0].sig;
        sig[bit / 8] ^= 1 << (bit % 8);
        let bad = with_signatures(&good, &[(keys.builder.public().id(), sig)]);
        assert_eq!(code(install(&keys, &root, &bad)), Code::SigInvalid, "bit {bit}");
    }
    let other = sign(&keys.release(2), &[]);
    let moved = with_signatures(&other, &[(keys.builder.public().id(), good.signatures()[0].sig)]);
    assert_eq!(code(install(&keys, &root, &moved)), Code::SigInvalid, "another document's signature");
}

#[test]
fn a_malleated_signature_is_refused() {
    // The order of the group, little endian: S + L would verify where S is not checked to be reduced.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = sign(&keys.release(1), &[&keys.builder]);
    let mut sig = good.signatures()[0].sig;
    let mut carry = 0;
    for (byte, l) in sig[32..].iter_mut().zip(L) {
        let sum = u16::from(*byte) + u16::from(l) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    let bad = with_signatures(&good, &[(keys.builder.public().id(), sig)]);
    assert_eq!(code(install(&keys, &root, &bad)), Code::SigInvalid);
}

#[test]
fn another_roles_key_does_not_sign_releases() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    for key in [&keys.root, &keys.release, &keys.host, &keys.assign] {
        assert_eq!(code(install(&keys, &root, &sign(&keys.release(1), &[key]))), Code::SigWrongRole);
    }
    let locked = keys.trusted(&keys.locked_root());
    let built = sign(&keys.release(1), &[&keys.builder]);
    assert_eq!(code(install(&keys, &locked, &built)), Code::SigWrongRole, "the cloud's builder, owner mode");
}

#[test]
fn a_key_root_does_not_list_does_not_sign_anything() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let stranger = fixed_key(0x99);
    assert_eq!(code(install(&keys, &root, &sign(&keys.release(1), &[&stranger]))), Code::SigUnknownKey);
    // Under a listed name the same signature is a broken one.
    let signed = sign(&keys.release(1), &[&stranger]);
    let renamed = with_signatures(&signed, &[(keys.builder.public().id(), signed.signatures()[0].sig)]);
    assert_eq!(code(install(&keys, &root, &renamed)), Code::SigInvalid);
}

#[test]
fn one_key_under_two_names_counts_once() {
    let keys = OwnerKeys::fixed();
    let (root, release) = two_of_three(&keys);
    let root = keys.trusted(&root);
    let good = sign(&keys.release(1), &[&release[0]]);
    let sig = good.signatures()[0].sig;
    let own = release[0].public().id();
    for other in [own, release[1].public().id(), KeyId::of(b"nobody")] {
        let doubled = with_signatures(&good, &[(own, sig), (other, sig)]);
        assert_eq!(code(install(&keys, &root, &doubled)), Code::SigThreshold, "{other}");
    }
}

#[test]
fn the_threshold_counts_distinct_keys_of_the_role() {
    let keys = OwnerKeys::fixed();
    let (root, release) = two_of_three(&keys);
    let root = keys.trusted(&root);
    let with = |signers: &[&SigningKey]| install(&keys, &root, &sign(&keys.release(1), signers));
    assert_eq!(code(with(&[&release[0]])), Code::SigThreshold);
    assert_eq!(code(with(&[&release[0], &keys.assign])), Code::SigThreshold);
    assert!(with(&[&release[0], &release[2]]).is_ok());
    assert!(with(&[&release[0], &release[1], &release[2]]).is_ok());
}

#[test]
fn a_keyid_is_a_hint_only() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = sign(&keys.release(1), &[&keys.builder]);
    let sig = good.signatures()[0].sig;
    for hint in [keys.assign.public().id(), KeyId::of(b"nobody")] {
        assert!(install(&keys, &root, &with_signatures(&good, &[(hint, sig)])).is_ok(), "{hint}");
    }
}

#[test]
fn bad_signatures_beside_enough_good_ones_change_nothing() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = sign(&keys.release(1), &[&keys.builder]);
    let (id, sig) = (keys.builder.public().id(), good.signatures()[0].sig);
    let noisy = with_signatures(
        &good,
        &[(keys.release.public().id(), [1; 64]), (KeyId::of(b"nobody"), [2; 64]), (id, [3; 64]), (id, sig)],
    );
    assert!(install(&keys, &root, &noisy).is_ok());
}

#[test]
fn of_several_faults_the_first_in_the_written_order_is_told() {
    let keys = OwnerKeys::fixed();
    let (root, release) = two_of_three(&keys);
    let root = keys.trusted(&root);
    let all = sign(&keys.release(1), &[&release[0], &keys.assign, &fixed_key(0x99)]);
    let sigs: Vec<_> = all.signatures().iter().map(|s| (s.keyid, s.sig)).collect();
    let broken = (release[1].public().id(), [1; 64]);
    let judge =
        |signatures: &[(KeyId, [u8; 64])]| code(install(&keys, &root, &with_signatures(&all, signatures)));
    assert_eq!(judge(&[sigs[0], sigs[1], sigs[2], broken]), Code::SigInvalid);
    assert_eq!(judge(&[sigs[0], sigs[1], sigs[2]]), Code::SigThreshold);
    assert_eq!(judge(&[sigs[1], sigs[2]]), Code::SigWrongRole);
    assert_eq!(judge(&[sigs[2]]), Code::SigUnknownKey);
    assert_eq!(judge(&[]), Code::SigMissing);
}

#[test]
fn in_mode_both_neither_side_alone_is_enough() {
    let keys = OwnerKeys::fixed();
    let mut root = keys.root();
    root.policy.release_mode = crate::documents::ReleaseMode::Both;
    let root = keys.trusted(&root);
    let with = |signers: &[&SigningKey]| install(&keys, &root, &sign(&keys.release(1), signers));
    assert_eq!(code(with(&[&keys.builder])), Code::SigThreshold);
    assert_eq!(code(with(&[&keys.release])), Code::SigThreshold);
    assert_eq!(code(with(&[&keys.assign])), Code::SigWrongRole);
    assert!(with(&[&keys.builder, &keys.release]).is_ok());
}

#[test]
fn merging_takes_over_only_signatures_that_count() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let mut ours = sign(&keys.release(1), &[&keys.builder]);
    let theirs = sign(&keys.release(1), &[&keys.release, &fixed_key(0x99)]);
    let forged = with_signatures(&theirs, &[(keys.host.public().id(), [1; 64])]);
    assert_eq!(crate::verify::merge_signatures(&root, &mut ours, &theirs), 1);
    assert_eq!(crate::verify::merge_signatures(&root, &mut ours, &forged), 0);
    assert_eq!(crate::verify::merge_signatures(&root, &mut ours, &theirs), 0, "known already");
    let other = sign(&keys.release(2), &[&keys.release]);
    assert_eq!(crate::verify::merge_signatures(&root, &mut ours, &other), 0, "of another document");
    let signers = crate::verify::signers(&root, &ours);
    let expected = [(keys.builder.public().id(), Role::Builder), (keys.release.public().id(), Role::Release)];
    assert_eq!(signers, expected.into_iter().collect());
}
