//! Commands: judged as an agent judges them, told through their states, and not done. A question is refused: there is nothing to look
//! at.

use std::collections::VecDeque;

use copal_protocol::{
    channel::{Ack, AckState, Command, Order},
    documents::{Act, Root},
    ids::CommandId,
    verify::{self, DeviceIdentity, Verified},
};

/// How many that ended are remembered.
const REMEMBERED: usize = 32;

/// What came of the last ones.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    ended: VecDeque<Ack>,
}

fn ack(id: CommandId, state: AckState) -> Ack {
    Ack { id, state, code: None, message: String::new(), result: None }
}

fn refused(id: CommandId, state: AckState, code: &str, message: impl Into<String>) -> Ack {
    Ack { code: Some(code.to_owned()), message: message.into(), ..ack(id, state) }
}

impl Orders {
    /// What to say of a command, in this order, and whether it asks for a poll. The last ends it; the same id again gets that alone.
    pub(crate) fn take(
        &mut self,
        root: &Verified<Root>,
        identity: &DeviceIdentity,
        command: &Command,
    ) -> (Vec<Ack>, bool) {
        let id = command.id;
        if let Some(ended) = self.ended.iter().find(|ended| ended.id == id) {
            return (vec![ended.clone()], false);
        }
        let mut polls = false;
        let acks = match &command.order {
            Order::Read(_) => vec![refused(id, AckState::Rejected, "not_supported", "a simulated device")],
            Order::Action(envelope) => match verify::action(root, identity, envelope) {
                Err(error) => vec![refused(id, AckState::Rejected, error.code.as_str(), error.detail)],
                Ok(action) if action.id != id => {
                    vec![refused(id, AckState::Rejected, "E_PAYLOAD", "the action has another id")]
                }
                Ok(action) if command.age_s > action.ttl_s => {
                    vec![refused(id, AckState::Expired, "expired", "its time was over before it began")]
                }
                Ok(action) => {
                    polls = matches!(action.act, Act::CheckUpdate {});
                    [AckState::Accepted, AckState::Running, AckState::Done]
                        .map(|state| ack(id, state))
                        .to_vec()
                }
            },
        };
        self.ended.extend(acks.last().cloned());
        while self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
        (acks, polls)
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::testing::{OwnerKeys, sign};

    use super::*;

    #[test]
    fn an_action_goes_through_its_states_once_and_a_foreign_one_is_refused() {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let action = keys.action(1, Act::CheckUpdate {});
        let id = action.id;
        let command = |envelope| Command { id, age_s: 0, order: Order::Action(envelope) };
        let states = |acks: &[Ack]| acks.iter().map(|ack| ack.state).collect::<Vec<_>>();
        let mut orders = Orders::default();
        let good = command(sign(&action, &[&keys.assign]));
        let (acks, polls) = orders.take(&root, &keys.identity(), &good);
        assert_eq!(states(&acks), [AckState::Accepted, AckState::Running, AckState::Done]);
        assert!(polls);
        let (again, polls) = orders.take(&root, &keys.identity(), &good);
        assert_eq!((states(&again), polls), (vec![AckState::Done], false));
        let forged = command(sign(&action, &[&keys.builder]));
        let (acks, _) = Orders::default().take(&root, &keys.identity(), &forged);
        assert_eq!(states(&acks), [AckState::Rejected]);
        let old = Command { age_s: u32::MAX, ..good };
        let (acks, _) = Orders::default().take(&root, &keys.identity(), &old);
        assert_eq!(states(&acks), [AckState::Expired]);
    }
}
