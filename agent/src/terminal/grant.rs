//! Leave by an operator's signature: an offer goes out, a grant must come back in its time.

use copal_protocol::{
    channel::OpenTerminal,
    documents::{
        Document as _, GRANT_WAIT_S, Role, Root, SPEC, TerminalGrant, TerminalMode, TerminalOffer,
        TerminalTarget,
    },
    envelope::Envelope,
    ids::{SessionId, Sha256Hex},
    terminal::{Line, LineKey, RecordKind, Records, record},
    verify::{self, Code, Error, Verified},
};
use tokio::time::{Duration, Instant, timeout_at};

use crate::{
    channel::streams::{End, Input, StreamIo},
    identity::{Identity, Session},
    target::Store,
};

/// What Root says of terminals, and who this device is.
pub trait Trust: Send + Sync {
    /// Who may authorise one.
    fn mode(&self) -> TerminalMode;
    /// An offer for a session, signed by this device.
    ///
    /// # Errors
    /// Why none can be made.
    fn offer(
        &self,
        session: SessionId,
        target: &TerminalTarget,
        key: &LineKey,
    ) -> Result<(TerminalOffer, Envelope), String>;
    /// Judges a grant against an offer that was made `age_s` seconds ago; and says by which of Root's keys it is signed.
    ///
    /// # Errors
    /// Any code of [`verify::terminal_grant`].
    fn judge(
        &self,
        offer: &TerminalOffer,
        age_s: u64,
        grant: &Envelope,
    ) -> Result<(Verified<TerminalGrant>, String), Error>;
}

/// This device's.
pub struct OwnTrust {
    /// Holds Root.
    pub store: std::sync::Arc<Store>,
    /// Holds the device's key.
    pub session: std::sync::Arc<Session>,
}

impl Trust for OwnTrust {
    fn mode(&self) -> TerminalMode {
        self.store.root().policy.terminal
    }

    fn offer(
        &self,
        session_id: SessionId,
        target: &TerminalTarget,
        key: &LineKey,
    ) -> Result<(TerminalOffer, Envelope), String> {
        let mut challenge = [0; 32];
        getrandom::fill(&mut challenge).map_err(|e| format!("the system has no randomness: {e}"))?;
        self.session.identity(|identity| {
            let device = identity.device().ok_or("this device is not enrolled yet")?;
            let offer = TerminalOffer {
                spec: SPEC,
                fleet_id: device.fleet_id,
                device_id: device.device_id,
                session_id,
                target: target.clone(),
                challenge: Sha256Hex::from_bytes(challenge),
                device_key: key.public(),
                ext: None,
            };
            let envelope = Envelope::sign(&offer, &[identity.signing()]).map_err(|e| e.to_string())?;
            Ok((offer, envelope))
        })
    }

    fn judge(
        &self,
        offer: &TerminalOffer,
        age_s: u64,
        grant: &Envelope,
    ) -> Result<(Verified<TerminalGrant>, String), Error> {
        let device = self
            .session
            .identity(Identity::device)
            .ok_or_else(|| Error::new(Code::DeviceMismatch, "this device is not enrolled yet"))?;
        let root = self.store.root();
        let judged = verify::terminal_grant(&root, &device, offer, age_s, grant)?;
        Ok((judged, signers(&root, grant)))
    }
}

/// The operator keys that signed, as Root calls them. Who somebody says to be is their own word; this is the owner's.
fn signers(root: &Root, grant: &Envelope) -> String {
    let keys = verify::signers(root, grant).into_iter().filter(|(_, role)| *role == Role::Operator);
    let named = keys.map(|(id, _)| match root.keys.get(&id).map(|key| key.label.as_str()) {
        Some(label) if !label.is_empty() => format!("key {id} ({label})"),
        _ => format!("key {id}"),
    });
    named.collect::<Vec<_>>().join(" and ")
}

/// A session that an operator signed.
pub struct Granted {
    /// What was signed.
    pub grant: Verified<TerminalGrant>,
    /// By which of Root's keys.
    pub signed_by: String,
    /// This device's end of the line.
    pub line: Line,
    /// What came after the grant.
    pub records: Records,
}

/// Offers, and waits for the grant. Whatever else comes first ends it: one offer takes one answer.
pub(super) async fn ask(trust: &dyn Trust, asked: &OpenTerminal, io: &StreamIo) -> Result<Granted, End> {
    let failed = |why: String| End::because("failed", why);
    let key = LineKey::generate().map_err(|e| failed(format!("the system has no randomness: {e}")))?;
    let (offer, envelope) = trust.offer(asked.session_id, &asked.target, &key).map_err(failed)?;
    let made = Instant::now();
    let gone = || End::because("ended", "nobody waits for it any more");
    io.send(record(RecordKind::Offer, &envelope.to_bytes()).into()).await.map_err(|_| gone())?;

    let mut records = Records::default();
    let until = made + Duration::from_secs(GRANT_WAIT_S.into());
    let (kind, body) = loop {
        match records.whole() {
            Ok(Some(found)) => break found,
            Ok(None) => {}
            Err(e) => return Err(End::because("line_broken", e.to_string())),
        }
        match timeout_at(until, io.recv()).await {
            Ok(Some(Input::Data(bytes))) => records.push(&bytes),
            Ok(Some(Input::Resize { .. })) => {}
            Ok(None) => return Err(gone()),
            Err(_) => {
                let why = format!("no grant came within {GRANT_WAIT_S} s of the offer: open it again");
                return Err(End::because(Code::GrantExpired.as_str(), why));
            }
        }
    };
    if kind != RecordKind::Grant {
        return Err(End::because("line_broken", "a grant was expected: use `copal shell`"));
    }
    let refused = |e: Error| {
        tracing::warn!(session = %asked.session_id, code = %e.code, detail = e.detail, "a grant of a terminal was refused");
        End::because(e.code.as_str(), e.detail)
    };
    if body.len() > TerminalGrant::MAX_BYTES {
        return Err(refused(Error::new(Code::TooLarge, "the grant is too large")));
    }
    let envelope = Envelope::parse::<TerminalGrant>(&body).map_err(refused)?;
    let (grant, signed_by) = trust.judge(&offer, made.elapsed().as_secs(), &envelope).map_err(refused)?;
    let line = key
        .accept(&offer, &grant.operator_key)
        .map_err(|e| End::because(Code::Payload.as_str(), e.to_string()))?;
    Ok(Granted { grant, signed_by, line, records })
}

#[cfg(test)]
mod tests {
    use copal_protocol::testing::{OwnerKeys, sign};

    use super::*;

    #[test]
    fn who_granted_is_told_by_the_owners_name_of_the_key() {
        let keys = OwnerKeys::fixed();
        let mut root = keys.grant_root();
        let id = keys.operator.public().id();
        let offer = keys.offer(&LineKey::generate().unwrap());
        let grant = TerminalGrant { operator: "the owner in person".to_owned(), ..keys.grant(&offer, "") };
        let by = |root: &Root| signers(root, &sign(&grant, &[&keys.operator, &keys.device, &keys.release]));
        let label = |root: &mut Root, label: &str| root.keys.get_mut(&id).unwrap().label = label.to_owned();
        label(&mut root, "night shift");
        assert_eq!(by(&root), format!("key {id} (night shift)"));
        label(&mut root, "");
        assert_eq!(by(&root), format!("key {id}"));
    }
}
