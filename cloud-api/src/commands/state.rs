//! Where a command stands, and what may follow. Pure.

use copal_protocol::{channel::AckState, documents::Delivery};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Seconds a `direct` command waits for the channel to take it.
pub(crate) const DIRECT_S: u64 = 2;
/// Seconds after which the line of a `direct` command that was sent and not answered is probed.
pub(crate) const ANSWER_S: u64 = 3;
/// Seconds past its time after which a `direct` command that was sent and never taken is given up: who gets it later does not
/// begin it any more.
pub(crate) const LATE_S: u64 = 30;
/// Seconds past its time after which a command that was sent, and of which nothing more was heard, is given up.
pub(crate) const SILENCE_S: u64 = 86_400;
/// The code of a command that was given up.
pub(crate) const NO_ANSWER: &str = "no_answer";

/// The code of what was not sent because whoever asked may not ask it any more.
pub(crate) const ACCESS_LOST: &str = "access_lost";
/// The code of what was not sent because this version of the cloud cannot read it.
pub(crate) const UNREADABLE: &str = "unreadable";
/// The code of what somebody took back before it was sent.
pub(crate) const CANCELLED: &str = "cancelled";

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// Not sent yet.
    Queued,
    /// Sent; that it arrived is not known.
    Delivered,
    /// The device wrote it down and will do it.
    Accepted,
    /// The device does it.
    Running,
    /// Ended well.
    Done,
    /// Ended, and not well.
    Failed,
    /// The device did not do it, for `code`.
    Rejected,
    /// Its time was over before it began.
    Expired,
    /// The device was away, and the command was for now or not at all.
    Unreachable,
    /// Whether it was done is not known.
    Unknown,
}

impl CommandState {
    /// The word in the database and on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        }
    }

    /// The state a word of the database means.
    pub(crate) fn from_word(word: &str) -> anyhow::Result<Self> {
        let all = [
            Self::Queued,
            Self::Delivered,
            Self::Accepted,
            Self::Running,
            Self::Done,
            Self::Failed,
            Self::Rejected,
            Self::Expired,
            Self::Unreachable,
            Self::Unknown,
        ];
        all.into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| anyhow::anyhow!("command state {word:?} in the database"))
    }

    /// How far it is.
    const fn rank(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::Delivered => 1,
            Self::Accepted => 2,
            Self::Running => 3,
            _ => 4,
        }
    }

    /// Whether nothing follows.
    pub(crate) const fn is_final(self) -> bool {
        self.rank() == 4
    }
}

impl From<AckState> for CommandState {
    fn from(state: AckState) -> Self {
        match state {
            AckState::Accepted => Self::Accepted,
            AckState::Running => Self::Running,
            AckState::Done => Self::Done,
            AckState::Failed => Self::Failed,
            AckState::Rejected => Self::Rejected,
            AckState::Expired => Self::Expired,
            AckState::Unknown => Self::Unknown,
        }
    }
}

/// Whether what a device says of a command is news. It says things twice, and late ones of an older channel; only what is
/// further on counts. What was given up for want of an answer still takes one.
pub(crate) fn moves_on(now: CommandState, code: Option<&str>, said: CommandState) -> bool {
    said.rank() > now.rank() || (now == CommandState::Unknown && code == Some(NO_ANSWER) && said.is_final())
}

/// When a command in this state ends by itself, Unix seconds.
pub(crate) fn due(state: CommandState, delivery: Delivery, ttl_s: u32, created_at: u64) -> u64 {
    let over = created_at.saturating_add(u64::from(ttl_s));
    match (state, delivery) {
        (CommandState::Queued, Delivery::Direct) => over.min(created_at + DIRECT_S),
        (CommandState::Queued, Delivery::Store) => over,
        (CommandState::Delivered, Delivery::Direct) => over.saturating_add(LATE_S),
        _ => over.saturating_add(SILENCE_S),
    }
}

/// How a command in this state ends when its time came: state, code, and words for people.
pub(crate) fn ends(
    state: CommandState,
    delivery: Delivery,
) -> Option<(CommandState, &'static str, &'static str)> {
    match (state, delivery) {
        (CommandState::Queued, Delivery::Direct) => Some((
            CommandState::Unreachable,
            "device_away",
            "The device has no channel to the cloud now; nothing was sent. A stored command waits for it.",
        )),
        (CommandState::Queued, Delivery::Store) => {
            Some((CommandState::Expired, "ttl_over", "The device did not come in time; nothing was sent."))
        }
        (CommandState::Delivered | CommandState::Accepted | CommandState::Running, _) => Some((
            CommandState::Unknown,
            NO_ANSWER,
            "It was sent, and nothing more was heard of it. Whether it was done is not known.",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [CommandState; 10] = [
        CommandState::Queued,
        CommandState::Delivered,
        CommandState::Accepted,
        CommandState::Running,
        CommandState::Done,
        CommandState::Failed,
        CommandState::Rejected,
        CommandState::Expired,
        CommandState::Unreachable,
        CommandState::Unknown,
    ];

    #[test]
    fn words_go_there_and_back() {
        for state in ALL {
            assert_eq!(CommandState::from_word(state.as_str()).unwrap(), state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert!(CommandState::from_word("sung").is_err());
    }

    #[test]
    fn nothing_goes_backwards_and_what_ended_stays() {
        for now in ALL {
            for said in ALL {
                if moves_on(now, None, said) {
                    assert!(!now.is_final() && said.rank() > now.rank(), "{now:?} -> {said:?}");
                }
                assert!(!moves_on(now, None, now), "{now:?} twice");
            }
        }
        assert!(moves_on(CommandState::Queued, None, CommandState::Done), "after a restored back-up");
        assert!(!moves_on(CommandState::Running, None, CommandState::Accepted));
        assert!(!moves_on(CommandState::Unreachable, Some("device_away"), CommandState::Done));
    }

    #[test]
    fn what_was_given_up_takes_a_late_answer_and_the_devices_own_unknown_does_not() {
        assert!(moves_on(CommandState::Unknown, Some(NO_ANSWER), CommandState::Done));
        assert!(!moves_on(CommandState::Unknown, Some(NO_ANSWER), CommandState::Running));
        assert!(!moves_on(CommandState::Unknown, Some("crashed"), CommandState::Done));
    }

    #[test]
    fn a_direct_command_waits_two_seconds_and_a_stored_one_its_time() {
        use CommandState::{Accepted, Delivered, Queued};
        assert_eq!(due(Queued, Delivery::Direct, 30, 100), 102);
        assert_eq!(due(Queued, Delivery::Direct, 1, 100), 101);
        assert_eq!(due(Queued, Delivery::Store, 30, 100), 130);
        assert_eq!(due(Delivered, Delivery::Direct, 30, 100), 130 + LATE_S);
        assert_eq!(due(Accepted, Delivery::Direct, 30, 100), 130 + SILENCE_S, "what was begun may take long");
        assert_eq!(due(Delivered, Delivery::Store, 30, 100), 130 + SILENCE_S);
        for state in ALL {
            assert_eq!(ends(state, Delivery::Store).is_none(), state.is_final(), "{state:?}");
        }
    }
}
