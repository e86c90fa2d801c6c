//! The verification order of a device, step by step, as pure functions: time and what is remembered are arguments.
//! Any failure keeps what runs.
//!
//! In: parsed [`Envelope`](crate::envelope::Envelope)s, the trusted root, what the device remembers ([`AssignmentMark`],
//! [`ReleaseMarks`]). Out: [`Verified`] documents, or an [`Error`] with a stable code. Never here: clocks, disk,
//! network, and no believing of a byte whose signature was not checked.
//!
//! | room | step |
//! |---|---|
//! | `error` | the codes |
//! | `root` | 3: the root walk |
//! | `signatures` | 4: who signed |
//! | `payload` | 5: the very bytes verified, parsed |
//! | `assignment`, `freshness` | 6 |
//! | `action` | what a device is told to do |
//! | `terminal` | who may open a terminal |
//! | `release`, `shape` | 7 |
//! | [`chain`] | all of them over files, for people |
//!
//! Policy (8) is [`crate::policy`]; the later steps need an engine and are the agent's.

mod action;
mod assignment;
pub mod chain;
mod error;
mod freshness;
mod payload;
mod release;
mod root;
mod shape;
mod signatures;
mod terminal;
#[cfg(test)]
mod tests;

pub use action::action;
pub use assignment::{AssignmentMark, DeviceIdentity, assignment};
pub use error::{Code, Error};
pub use freshness::freshness;
pub use payload::signed_by;
pub use release::{
    ExpectedRelease, Judged, Platform, Purpose, ReleaseMarks, judge_again, release, root_floor,
};
pub use root::{MAX_KEYS, MAX_ROOT_STEPS, first_root, is_locked, next_root, root_in_time};
pub use signatures::{merge_signatures, signers};
pub use terminal::terminal_grant;

use crate::ids::Sha256Hex;

/// A document that passed verification; there is no other way to make one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<D> {
    document: D,
    sha256: Sha256Hex,
}

impl<D> Verified<D> {
    /// Payload hash.
    pub fn sha256(&self) -> Sha256Hex {
        self.sha256
    }

    /// The document, owned.
    pub fn into_inner(self) -> D {
        self.document
    }
}

impl<D> std::ops::Deref for Verified<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.document
    }
}
