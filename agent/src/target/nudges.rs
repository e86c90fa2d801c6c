//! What makes the synchronisation look sooner, or lets it look less often. None of it is believed: what should run is what a
//! poll brings, verified.

use copal_protocol::ids::Sha256Hex;

/// How things stand beside the poll; one value, replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nudges {
    /// A channel is up, and would tell of anything new: polls may rest.
    pub up: bool,
    /// What the cloud last said that the state route would serve; absent where it has said nothing, or that there is nothing.
    pub hinted: Option<Sha256Hex>,
    /// The version of the Root the cloud last said to be the newest; absent where it has said none.
    pub hinted_root: Option<u64>,
    /// Rises when a poll is asked for at once.
    pub asked: u64,
    /// The budget of bytes has no room for a channel: what is not asked for is polled seldom.
    pub seldom: bool,
    /// A person paused updates: nothing new is installed.
    pub paused: bool,
}
