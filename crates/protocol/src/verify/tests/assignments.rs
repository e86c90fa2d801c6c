use super::*;
use crate::{
    documents::{AppTarget, Assignment, Freshness, Role, Root},
    ids::{DeviceId, Sha256Hex},
    testing::{OwnerKeys, fixed_key, set_role, sign},
    verify::{self, AssignmentMark, Verified},
};

fn accept(
    keys: &OwnerKeys,
    root: &Verified<Root>,
    mark: &AssignmentMark,
    envelope: &Envelope,
) -> Result<Verified<Assignment>, Error> {
    verify::assignment(root, &keys.identity(), mark, envelope)
}

fn mark(keys: &OwnerKeys, root: &Verified<Root>, envelope: &Envelope) -> AssignmentMark {
    AssignmentMark::of(&accept(keys, root, &AssignmentMark::default(), envelope).unwrap())
}

#[test]
fn an_assignment_is_for_one_device_with_one_key() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = keys.assignment(1, &[]);
    assert!(accept(&keys, &root, &AssignmentMark::default(), &sign(&good, &[&keys.assign])).is_ok());
    let of_another = Assignment { device_id: DeviceId::from_bytes([7; 16]), ..good.clone() };
    let other_key = Assignment { device_key_sha256: Sha256Hex::of(b"the key before"), ..good.clone() };
    for bad in [of_another, other_key] {
        let judged = accept(&keys, &root, &AssignmentMark::default(), &sign(&bad, &[&keys.assign]));
        assert_eq!(code(judged), Code::DeviceMismatch);
    }
    let foreign = Assignment { fleet_id: OwnerKeys::numbered(1).fleet_id, ..good };
    let judged = accept(&keys, &root, &AssignmentMark::default(), &sign(&foreign, &[&keys.assign]));
    assert_eq!(code(judged), Code::Fleet);
}

#[test]
fn only_the_online_key_assigns() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    for key in [&keys.root, &keys.release, &keys.builder, &keys.host] {
        let judged =
            accept(&keys, &root, &AssignmentMark::default(), &sign(&keys.assignment(1, &[]), &[key]));
        assert_eq!(code(judged), Code::SigWrongRole);
    }
}

#[test]
fn an_assignment_by_a_newer_root_waits_for_the_walk() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let ahead = Assignment { root_version: 2, ..keys.assignment(1, &[]) };
    let judged = accept(&keys, &root, &AssignmentMark::default(), &sign(&ahead, &[&keys.assign]));
    assert_eq!(code(judged), Code::RootBehind);
}

#[test]
fn an_older_assignment_is_not_accepted_again() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let newest = sign(&keys.assignment(5, &[]), &[&keys.assign]);
    let mark = mark(&keys, &root, &newest);
    for seq in [0, 1, 4] {
        let old = sign(&keys.assignment(seq, &[]), &[&keys.assign]);
        assert_eq!(code(accept(&keys, &root, &mark, &old)), Code::AssignRollback, "{seq}");
    }
    assert!(accept(&keys, &root, &mark, &newest).is_ok(), "the same again");
    assert!(accept(&keys, &root, &mark, &sign(&keys.assignment(6, &[]), &[&keys.assign])).is_ok());
}

#[test]
fn two_contents_under_one_seq_are_noticed() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let mark = mark(&keys, &root, &sign(&keys.assignment(5, &[]), &[&keys.assign]));
    let other = sign(&keys.assignment(5, &[Sha256Hex::of(b"other")]), &[&keys.assign]);
    assert_eq!(code(accept(&keys, &root, &mark, &other)), Code::AssignEquivocation);
}

#[test]
fn the_mark_survives_a_restart_as_text() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let mark = mark(&keys, &root, &sign(&keys.assignment(5, &[]), &[&keys.assign]));
    let stored = serde_json::to_vec(&mark).unwrap();
    let read: AssignmentMark = crate::json::from_slice(&stored, 4).unwrap();
    assert_eq!(read, mark);
    let old = sign(&keys.assignment(4, &[]), &[&keys.assign]);
    assert_eq!(code(accept(&keys, &root, &read, &old)), Code::AssignRollback);
}

#[test]
fn a_restored_cloud_starts_again_only_in_an_epoch_the_owner_signed() {
    let keys = OwnerKeys::fixed();
    let first = keys.trusted(&keys.root());
    let before = sign(&keys.assignment(900, &[]), &[&keys.assign]);
    let mark = mark(&keys, &first, &before);
    let restored = Assignment { assign_epoch: 2, root_version: 1, ..keys.assignment(3, &[]) };
    let restored = sign(&restored, &[&keys.assign]);
    assert_eq!(
        code(accept(&keys, &first, &mark, &restored)),
        Code::RootBehind,
        "an epoch the cloud invented"
    );

    let second = Root { version: 2, assign_epoch: 2, ..keys.root() };
    let second = verify::next_root(&first, &sign(&second, &[&keys.root])).unwrap();
    assert!(accept(&keys, &second, &mark, &restored).is_ok());
    let from_the_old_epoch = sign(&keys.assignment(901, &[]), &[&keys.assign]);
    assert_eq!(code(accept(&keys, &second, &mark, &from_the_old_epoch)), Code::AssignRollback);
    assert!(
        accept(&keys, &second, &mark, &before).is_ok(),
        "what was accepted is still known after a restart"
    );
}

#[test]
fn a_replaced_online_key_assigns_no_more() {
    let keys = OwnerKeys::fixed();
    let first = keys.trusted(&keys.root());
    let mut second = Root { version: 2, ..keys.root() };
    set_role(&mut second, Role::Assign, &[&fixed_key(0x88)], 1);
    let second = verify::next_root(&first, &sign(&second, &[&keys.root])).unwrap();
    let stolen = sign(&keys.assignment(6, &[]), &[&keys.assign]);
    assert_eq!(code(accept(&keys, &second, &AssignmentMark::default(), &stolen)), Code::SigUnknownKey);
    let fresh = Assignment { root_version: 2, ..keys.assignment(6, &[]) };
    assert!(accept(&keys, &second, &AssignmentMark::default(), &sign(&fresh, &[&fixed_key(0x88)])).is_ok());
}

#[test]
fn names_of_variables_cannot_climb_out_of_the_secrets_folder() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let app = keys.app_id.to_string();
    for field in ["env", "sealed"] {
        for name in ["../../etc/passwd", "", "a/b", ".hidden", "A=B", "A\u{0}", "1A", "é", &"A".repeat(129)]
        {
            let envelope = edited(&keys.assignment(1, &[]), &[&keys.assign], |v| {
                v[field] = json!({ &app: { "web": { name: "x" } } });
            });
            let judged = accept(&keys, &root, &AssignmentMark::default(), &envelope);
            assert_eq!(code(judged), Code::Payload, "{field} {name:?}");
        }
        let envelope = edited(&keys.assignment(1, &[]), &[&keys.assign], |v| {
            v[field] = json!({ &app: { "web": { "GOOD_name.1-x": "x" } } });
        });
        assert!(accept(&keys, &root, &AssignmentMark::default(), &envelope).is_ok());
        let envelope = edited(&keys.assignment(1, &[]), &[&keys.assign], |v| {
            v[field] = json!({ &app: { "web": { "A": "x\u{0}y" } } });
        });
        assert_eq!(code(accept(&keys, &root, &AssignmentMark::default(), &envelope)), Code::Payload);
    }
}

#[test]
fn an_app_assigned_twice_or_an_absurd_interval_is_refused() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let mut twice = keys.assignment(1, &[Sha256Hex::of(b"a")]);
    twice.apps.push(AppTarget { app_id: keys.app_id, sha256: Sha256Hex::of(b"b"), retry: 0 });
    let mut absurd = keys.assignment(1, &[]);
    absurd.config.poll_interval_s = Some(0);
    for bad in [twice, absurd] {
        let judged = accept(&keys, &root, &AssignmentMark::default(), &sign(&bad, &[&keys.assign]));
        assert_eq!(code(judged), Code::Payload);
    }
}

/// What [`fresh`] answers for a Freshness edited by `edit`, where assignment 5 is the newest known.
fn fresh(edit: impl FnOnce(&mut Freshness)) -> Result<Verified<Freshness>, Error> {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let newest = sign(&keys.assignment(5, &[]), &[&keys.assign]);
    let mark = mark(&keys, &root, &newest);
    let nonce = Sha256Hex::of(b"nonce");
    let mut answer = keys.freshness(nonce, &newest, 5);
    edit(&mut answer);
    verify::freshness(&root, &keys.identity(), nonce, &mark, &sign(&answer, &[&keys.assign]))
}

#[test]
fn a_fresh_answer_is_for_this_device_and_this_assignment() {
    assert!(fresh(|_| ()).is_ok());
    assert_eq!(code(fresh(|f| f.device_id = DeviceId::from_bytes([7; 16]))), Code::DeviceMismatch);
    assert_eq!(code(fresh(|f| f.fleet_id = OwnerKeys::numbered(1).fleet_id)), Code::Fleet);
}

#[test]
fn an_answer_to_an_older_question_is_not_fresh() {
    assert_eq!(code(fresh(|f| f.nonce = Sha256Hex::of(b"yesterday's"))), Code::Nonce);
}

#[test]
fn an_assignment_the_cloud_no_longer_serves_is_not_fresh() {
    assert_eq!(code(fresh(|f| f.seq = 6)), Code::NotFresh);
    assert_eq!(code(fresh(|f| f.assign_epoch = 2)), Code::NotFresh);
    assert_eq!(code(fresh(|f| f.assignment_sha256 = Sha256Hex::of(b"other"))), Code::NotFresh);
}

#[test]
fn freshness_does_not_depend_on_the_devices_clock() {
    // A device that believes it is 1970, and a cloud that says anything: the nonce alone decides.
    assert!(fresh(|f| f.time = 0).is_ok());
    assert!(fresh(|f| f.time = crate::documents::MAX_INTEGER).is_ok());
}
