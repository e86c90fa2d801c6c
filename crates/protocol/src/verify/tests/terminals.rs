use super::*;
use crate::{
    documents::{
        GRANT_WAIT_S, MAX_GRANT_S, MAX_TERMINAL_BYTES, Role, TerminalGrant, TerminalOffer, TerminalTarget,
    },
    ids::{DeviceId, SessionId, Sha256Hex},
    terminal::{self, LineKey},
    testing::{OwnerKeys, set_role, sign},
    verify,
};

struct Opening {
    keys: OwnerKeys,
    offer: TerminalOffer,
    good: TerminalGrant,
}

fn opening() -> Opening {
    let keys = OwnerKeys::fixed();
    let offer = keys.offer(&LineKey::generate().unwrap());
    let (operator_key, _) = terminal::answer(&offer).unwrap();
    let good = keys.grant(&offer, &operator_key);
    Opening { keys, offer, good }
}

impl Opening {
    fn judge_signed(
        &self,
        age_s: u64,
        envelope: &Envelope,
    ) -> Result<verify::Verified<TerminalGrant>, Error> {
        let root = self.keys.trusted(&self.keys.grant_root());
        verify::terminal_grant(&root, &self.keys.identity(), &self.offer, age_s, envelope)
    }

    fn judge(&self, grant: &TerminalGrant) -> Result<verify::Verified<TerminalGrant>, Error> {
        self.judge_signed(0, &sign(grant, &[&self.keys.operator]))
    }
}

#[test]
fn a_grant_is_for_one_offer_of_one_session_of_one_device() {
    let o = opening();
    assert_eq!(*o.judge(&o.good).unwrap(), o.good);
    let good = &o.good;
    let cases = [
        (TerminalGrant { device_id: DeviceId::from_bytes([7; 16]), ..good.clone() }, Code::DeviceMismatch),
        (TerminalGrant { fleet_id: OwnerKeys::numbered(1).fleet_id, ..good.clone() }, Code::Fleet),
        (TerminalGrant { session_id: SessionId::from_bytes([7; 16]), ..good.clone() }, Code::GrantSession),
        (TerminalGrant { challenge: Sha256Hex::of(b"yesterday's"), ..good.clone() }, Code::GrantChallenge),
        (TerminalGrant { device_key: good.operator_key.clone(), ..good.clone() }, Code::GrantChallenge),
        (TerminalGrant { target: TerminalTarget::Host, ..good.clone() }, Code::GrantTarget),
        (
            TerminalGrant { target: TerminalTarget::Service("db".parse().unwrap()), ..good.clone() },
            Code::GrantTarget,
        ),
    ];
    for (bad, expected) in cases {
        assert_eq!(code(o.judge(&bad)), expected, "{bad:?}");
    }
}

#[test]
fn a_grant_comes_soon_and_has_an_end() {
    let o = opening();
    let signed = sign(&o.good, &[&o.keys.operator]);
    assert!(o.judge_signed(u64::from(GRANT_WAIT_S), &signed).is_ok());
    assert_eq!(code(o.judge_signed(u64::from(GRANT_WAIT_S) + 1, &signed)), Code::GrantExpired);
    for bad in [
        TerminalGrant { max_s: 0, ..o.good.clone() },
        TerminalGrant { max_s: MAX_GRANT_S + 1, ..o.good.clone() },
        TerminalGrant { max_bytes: 0, ..o.good.clone() },
        TerminalGrant { max_bytes: MAX_TERMINAL_BYTES + 1, ..o.good.clone() },
        TerminalGrant { reason: " ".to_owned(), ..o.good.clone() },
        TerminalGrant { reason: "x".repeat(501), ..o.good.clone() },
        TerminalGrant { issued_at: 1 << 53, ..o.good.clone() },
    ] {
        assert_eq!(code(o.judge(&bad)), Code::Payload, "{bad:?}");
    }
    let more = edited(&o.good, &[&o.keys.operator], |grant| grant["verb"] = json!("forward"));
    assert_eq!(code(o.judge_signed(0, &more)), Code::Payload);
}

#[test]
fn only_an_operator_of_this_fleet_grants() {
    let o = opening();
    let keys = &o.keys;
    // The cloud has the assign and the builder key: neither opens a terminal.
    for key in [&keys.assign, &keys.builder, &keys.root, &keys.release, &keys.host] {
        assert_eq!(code(o.judge_signed(0, &sign(&o.good, &[key]))), Code::SigWrongRole);
    }
    for key in [&keys.device, &OwnerKeys::numbered(1).operator] {
        assert_eq!(code(o.judge_signed(0, &sign(&o.good, &[key]))), Code::SigUnknownKey);
    }
    let forged = with_signatures(&sign(&o.good, &[]), &[(keys.operator.public().id(), [1; 64])]);
    assert_eq!(code(o.judge_signed(0, &forged)), Code::SigInvalid);
    assert_eq!(code(o.judge_signed(0, &sign(&o.good, &[]))), Code::SigMissing);
    let other = sign(&keys.action(1, crate::documents::Act::Reboot {}), &[&keys.operator]);
    assert_eq!(code(o.judge_signed(0, &other)), Code::PayloadType);

    // A Root without operators opens nothing, and one that asks for two is not met by one.
    let signed = sign(&o.good, &[&keys.operator]);
    let none = keys.trusted(&keys.root());
    assert_eq!(
        code(verify::terminal_grant(&none, &keys.identity(), &o.offer, 0, &signed)),
        Code::SigUnknownKey
    );
    let mut two = keys.grant_root();
    set_role(&mut two, Role::Operator, &[&keys.operator, &crate::testing::fixed_key(99)], 2);
    let two = keys.trusted(&two);
    assert_eq!(
        code(verify::terminal_grant(&two, &keys.identity(), &o.offer, 0, &signed)),
        Code::SigThreshold
    );
}

#[test]
fn an_offer_is_the_devices_own_word() {
    let o = opening();
    let signed = sign(&o.offer, &[&o.keys.device]);
    let read =
        |envelope| verify::signed_by::<TerminalOffer>(&o.keys.device.public(), o.keys.fleet_id, envelope);
    assert_eq!(*read(&signed).unwrap(), o.offer);
    assert_eq!(code(read(&sign(&o.offer, &[&o.keys.assign]))), Code::SigUnknownKey);
}
