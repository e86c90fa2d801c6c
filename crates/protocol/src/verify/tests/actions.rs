use super::*;
use crate::{
    documents::{Act, Action, MAX_TTL_S, Root},
    ids::DeviceId,
    testing::{OwnerKeys, sign},
    verify,
};

fn judge(keys: &OwnerKeys, action: &Action) -> Result<verify::Verified<Action>, Error> {
    let root = keys.trusted(&keys.root());
    verify::action(&root, &keys.identity(), &sign(action, &[&keys.assign]))
}

#[test]
fn an_action_is_for_one_device_of_one_fleet() {
    let keys = OwnerKeys::fixed();
    let good = keys.action(1, Act::Reboot {});
    assert_eq!(judge(&keys, &good).unwrap().act, Act::Reboot {});
    let of_another = Action { device_id: DeviceId::from_bytes([7; 16]), ..good.clone() };
    assert_eq!(code(judge(&keys, &of_another)), Code::DeviceMismatch);
    let foreign = Action { fleet_id: OwnerKeys::numbered(1).fleet_id, ..good };
    assert_eq!(code(judge(&keys, &foreign)), Code::Fleet);
}

#[test]
fn only_the_online_key_orders() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let action = keys.action(1, Act::Reboot {});
    for key in [&keys.root, &keys.release, &keys.builder, &keys.host] {
        let judged = verify::action(&root, &keys.identity(), &sign(&action, &[key]));
        assert_eq!(code(judged), Code::SigWrongRole);
    }
    let judged = verify::action(&root, &keys.identity(), &sign(&action, &[&keys.device]));
    assert_eq!(code(judged), Code::SigUnknownKey);
    let other = sign(&keys.assignment(1, &[]), &[&keys.assign]);
    assert_eq!(code(verify::action(&root, &keys.identity(), &other)), Code::PayloadType);
}

#[test]
fn only_what_is_listed_can_be_ordered() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let good = keys.action(1, Act::StopService { service: "web".parse().unwrap() });
    for edit in [
        json!({"verb": "run", "command": "sh"}),
        json!({"verb": "reboot", "force": true}),
        json!({"verb": "stop_service"}),
        json!({"verb": "stop_service", "service": "../web"}),
        json!({"service": "web"}),
        json!({"verb": "set_network"}),
        json!({"verb": "set_network", "proxy": "ftp://proxy"}),
        json!({"verb": "set_network", "ntp": ["a b"]}),
        json!({"verb": "set_network", "ntp": [], "dns": []}),
    ] {
        let bad = edited(&good, &[&keys.assign], |action| action["act"] = edit.clone());
        assert_eq!(code(verify::action(&root, &keys.identity(), &bad)), Code::Payload, "{edit}");
    }
}

#[test]
fn an_action_has_an_end_and_a_place_in_order() {
    let keys = OwnerKeys::fixed();
    let good = keys.action(1, Act::Blink { for_s: 600 });
    assert!(judge(&keys, &good).is_ok());
    for bad in [
        Action { seq: 0, ..good.clone() },
        Action { seq: 1 << 53, ..good.clone() },
        Action { ttl_s: 0, ..good.clone() },
        Action { ttl_s: MAX_TTL_S + 1, ..good.clone() },
        Action { act: Act::Blink { for_s: 0 }, ..good.clone() },
        Action { act: Act::Blink { for_s: 601 }, ..good.clone() },
        Action { act: Act::PauseUpdates { for_s: Some(0) }, ..good.clone() },
    ] {
        assert_eq!(code(judge(&keys, &bad)), Code::Payload, "{bad:?}");
    }
}

#[test]
fn no_action_is_of_an_epoch_that_the_owner_did_not_begin() {
    let keys = OwnerKeys::fixed();
    let action = keys.action(1, Act::Reboot {});
    let ahead = Action { assign_epoch: 2, ..action.clone() };
    assert_eq!(code(judge(&keys, &ahead)), Code::RootBehind);
    let second = keys.trusted(&Root { assign_epoch: 2, ..keys.root() });
    let by = |action: &Action| verify::action(&second, &keys.identity(), &sign(action, &[&keys.assign]));
    assert_eq!(by(&ahead).unwrap().assign_epoch, 2);
    // One that names none is of the first: what was signed before there were others stays there.
    assert!(!serde_json::to_string(&action).unwrap().contains("assign_epoch"));
    assert_eq!(by(&action).unwrap().assign_epoch, 1);
}
