//! Grants: an operator's signature against a device's offer. Pure but for the keys that come in.

use copal_protocol::{
    documents::{
        Document as _, MAX_REASON, MAX_TERMINAL_BYTES, SPEC, TerminalGrant, TerminalOffer, TerminalTarget,
    },
    envelope::Envelope,
    ids::{DeviceId, FleetId, SessionId},
    keys::{PublicKey, SigningKey},
    terminal::{self, Line, RecordKind, record},
    verify,
};

use crate::failure::{Failure, Result};

/// Who grants, and to which device.
pub struct Operator {
    /// The operator's keys, as many as the root asks for.
    pub keys: Vec<SigningKey>,
    /// For people at the device.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Seconds it may last.
    pub max_s: u32,
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// The device's key, which its card vouches for.
    pub device_key: PublicKey,
    /// Unix seconds.
    pub now: u64,
}

impl Operator {
    /// Judges an offer and answers it: the grant's record, and this end of the line.
    ///
    /// # Errors
    /// An offer that is not this device's for this session.
    pub fn answer(
        &self,
        what: &str,
        offer: &[u8],
        session: SessionId,
        target: &TerminalTarget,
    ) -> Result<(Vec<u8>, Line)> {
        let refused = |e: verify::Error| Failure::verify(what, &e);
        let envelope = Envelope::parse::<TerminalOffer>(offer).map_err(refused)?;
        let offer =
            verify::signed_by::<TerminalOffer>(&self.device_key, self.fleet, &envelope).map_err(refused)?;
        if offer.device_id != self.device || offer.session_id != session || offer.target != *target {
            let why = "the device offers another terminal than was asked for: the server mixed them up, or is not to be trusted";
            return Err(Failure::trust("offer_differs", what, why));
        }
        let (operator_key, line) =
            terminal::answer(&offer).map_err(|e| Failure::trust("offer_unusable", what, e))?;
        let short = |text: &str| text.chars().take(MAX_REASON).collect();
        let grant = TerminalGrant {
            spec: SPEC,
            fleet_id: self.fleet,
            device_id: self.device,
            session_id: session,
            target: target.clone(),
            challenge: offer.challenge,
            device_key: offer.device_key.clone(),
            operator_key,
            operator: short(&self.name),
            reason: short(&self.reason),
            max_s: self.max_s,
            max_bytes: MAX_TERMINAL_BYTES,
            issued_at: self.now,
            ext: None,
        };
        let keys: Vec<&SigningKey> = self.keys.iter().collect();
        let bytes = Envelope::sign(&grant, &keys).map_err(|e| Failure::local(what, e))?.to_bytes();
        if bytes.len() > TerminalGrant::MAX_BYTES {
            return Err(Failure::usage(what, "the grant is too large: give a shorter reason"));
        }
        Ok((record(RecordKind::Grant, &bytes), line))
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::terminal::{LineKey, Records};

    use super::*;

    fn keys() -> (SigningKey, SigningKey) {
        (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]))
    }

    fn offer(key: &LineKey) -> TerminalOffer {
        TerminalOffer {
            spec: SPEC,
            fleet_id: FleetId::from_bytes([1; 16]),
            device_id: DeviceId::from_bytes([2; 16]),
            session_id: SessionId::from_bytes([3; 16]),
            target: TerminalTarget::Host,
            challenge: copal_protocol::ids::Sha256Hex::of(b"c"),
            device_key: key.public(),
            ext: None,
        }
    }

    fn operator() -> Operator {
        let (device, operator) = keys();
        Operator {
            keys: vec![operator],
            name: "anna@laptop".to_owned(),
            reason: "it is slow".to_owned(),
            max_s: 900,
            fleet: FleetId::from_bytes([1; 16]),
            device: DeviceId::from_bytes([2; 16]),
            device_key: device.public(),
            now: 1,
        }
    }

    #[test]
    fn the_devices_own_offer_is_answered_and_both_ends_understand_each_other() {
        let key = LineKey::generate().unwrap();
        let offer = offer(&key);
        let signed = Envelope::sign(&offer, &[&keys().0]).unwrap().to_bytes();
        let (grant, mut ours) =
            operator().answer("open", &signed, offer.session_id, &TerminalTarget::Host).unwrap();
        let mut records = Records::default();
        records.push(&grant);
        let (kind, body) = records.whole().unwrap().unwrap();
        assert_eq!(kind, RecordKind::Grant);
        let grant: TerminalGrant =
            serde_json::from_slice(Envelope::parse::<TerminalGrant>(&body).unwrap().payload()).unwrap();
        let mut theirs = key.accept(&offer, &grant.operator_key).unwrap();
        records.push(&ours.says.seal(b"ls"));
        assert_eq!(theirs.hears.open(&records.whole().unwrap().unwrap().1).unwrap(), b"ls");
    }

    #[test]
    fn an_offer_by_the_server_or_for_something_else_is_not_answered() {
        let key = LineKey::generate().unwrap();
        let offer = offer(&key);
        let code = |signer: &SigningKey, session, target: &TerminalTarget| {
            let signed = Envelope::sign(&offer, &[signer]).unwrap().to_bytes();
            operator().answer("open", &signed, session, target).err().map(|e| e.code)
        };
        let (device, other) = keys();
        let session = offer.session_id;
        assert_eq!(code(&device, session, &TerminalTarget::Host), None);
        assert_eq!(code(&other, session, &TerminalTarget::Host).unwrap(), "E_SIG_UNKNOWN_KEY");
        let another = SessionId::from_bytes([9; 16]);
        assert_eq!(code(&device, another, &TerminalTarget::Host).unwrap(), "offer_differs");
        let web = TerminalTarget::Service("web".parse().unwrap());
        assert_eq!(code(&device, session, &web).unwrap(), "offer_differs");
    }
}
