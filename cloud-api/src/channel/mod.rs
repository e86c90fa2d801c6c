//! The device channel: what the cloud has to say reaches a device at once, and what a device did is known at once.
//!
//! In: one WebSocket a device (or, where none passes, exchanges of the same frames), opened under the device's session.
//! Out: hints that the assignment changed, commands, who is connected; into `commands/` and `devices/` what devices say.
//! Never here: the truth. A device polls whether it has a channel or not; losing one loses nothing. And no queue in
//! memory: a hint is the newest state, a command is a row, so a slow reader costs one message and is then cut off.
//!
//! | file | what it does |
//! |---|---|
//! | `memory` | whose channel is open, by epoch; how many there may be |
//! | `socket` | one WebSocket, from its request to its end |
//! | `exchange` | the same frames by long poll |
//! | `frames` | what is to be said now, and what to do with what was said |
//! | `streams` | logs and terminals of a device, with credit |
//!
//! A channel's life: the request is judged as every device's is → `101` → the device's `hello` within 10 s → its turn
//! begins (an epoch; an older channel of the device is told `replaced` and its end changes nothing) → `welcome`, what
//! waits for it, and from then on what comes → it ends by either side, by silence longer than the lease, by a reader
//! that does not read, by a revocation, or with the cloud (`restarting`).

mod exchange;
mod frames;
mod memory;
mod socket;
mod streams;
#[cfg(test)]
mod tests;

use axum::{
    extract::DefaultBodyLimit,
    routing::{get, post},
};

pub use memory::Memory;
pub(crate) use streams::{Came, CloudStream, StreamError};

use crate::app::App;

/// The routes of the channel.
pub fn router() -> axum::Router<App> {
    axum::Router::new().route("/device/v1/channel", get(socket::open)).route(
        "/device/v1/exchange",
        post(exchange::exchange).layer(DefaultBodyLimit::max(exchange::MAX_BODY)),
    )
}
