//! Who this device is: keys made on it, its enrolment, and its login.
//!
//! In: `copal.json` and the cloud's answers. Out: signatures, and a token for the device routes. Never here: a private key
//! or token that leaves the device or reaches a log; a key made anew because a file was damaged.

mod keys;
mod session;

pub use keys::{Identity, IdentityError};
pub use session::{Session, SessionError};
