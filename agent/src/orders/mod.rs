//! What a device is told to do, once. In: commands of the channel, each with the moment it came. Out: acts, and acks.
//!
//! 1. A signed Action is judged by today's root; the policy file of this device has the last word.
//! 2. Its id is written down *before* anything is done ([`journal`]). The same id again gets the same answer; one from before
//!    what is remembered is refused.
//! 3. It is done through whoever owns the matter: the supervisor for services, the synchronisation for updates.
//! 4. Its end is written down, then told, and told again until the channel took it ([`acks`]).
//!
//! After a crash in the middle what can be done twice is done again; of all else it is said that nobody knows.
//! Never here: anything that is not one of the typed acts; a shell; a second try of what can be done only once.

pub mod acks;
mod blink;
pub mod desk;
mod hands;
pub mod journal;
pub mod pause;
pub mod policy;
#[cfg(test)]
mod tests;

use copal_protocol::channel::Command;
use tokio::time::Instant;

pub use acks::Acks;
pub use blink::LEDS;
pub use desk::{Deps, run};
pub use hands::{Hands, RealHands};

/// A command, and when it came: from then on it ages by this device's own clock.
#[derive(Debug, Clone)]
pub struct Received {
    /// The command.
    pub command: Command,
    /// When.
    pub at: Instant,
}
