//! HTTP to the cloud: our own TLS with pins, bounded answers, back-off.
//!
//! In: a path and a body. Out: a bounded answer, or a [`CloudError`] with a stable code. Never here: a redirect followed
//! (it would carry the credential elsewhere), an answer read without a cap, a credential in a log or an error.

mod backoff;
mod client;
mod error;
mod fetch;
mod names;
mod tally;
mod upgrade;

pub use backoff::{Backoff, retry_after};
pub use client::{Address, Call, Cloud, Unreached};
pub use error::CloudError;
pub use fetch::{Answer, Blob, Limits};
pub use names::{ask_server, name_servers};
pub use tally::{Tally, on_the_line};
pub use upgrade::{NoSocket, Upgraded};

/// Random 64 bits for jitter; a constant where the system has no randomness (jitter is no secret).
#[must_use]
pub fn random() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX / 2)
}
