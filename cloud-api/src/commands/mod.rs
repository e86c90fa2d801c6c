//! Commands: what people ask of one device or of many, and what came of it.
//!
//! In: what people ask (`api/commands.rs`), what devices answer (`channel/`). Out: rows, the next command to send, hints on
//! the bus. Never here: sockets, and what a device makes of a command. The queue is the database: whoever sends takes the
//! next from it and marks it first, so that what ended here was never sent, and what was sent ends by the device's word.
//!
//! | file | what it does |
//! |---|---|
//! | [`order`] | from a verb and its arguments to an act or a question |
//! | [`state`] | where a command stands and what may follow; pure |
//! | `make` | asking: signed, queued, audited |
//! | `take` | sending: the next one of a device |
//! | `answer` | what the device says of one |
//! | `end` | what ends without the device's word |
//! | [`many`] | rounds: the same asked of every device that a filter means |
//! | `rows` | the database |

mod answer;
mod end;
mod make;
pub(crate) mod many;
pub(crate) mod order;
pub(crate) mod rows;
pub(crate) mod state;
mod take;
#[cfg(test)]
mod tests;

pub(crate) use answer::answer;
pub(crate) use end::cancel;
pub(crate) use make::{Asked, make};
pub(crate) use take::next;

use crate::{app::App, bus::Event};

/// Ends what is due and asks the devices of rounds, until the cloud stops.
pub async fn run(app: App) {
    tokio::join!(end::run(app.clone()), many::run(app));
}

/// Tells listeners that a command moved on.
fn tell(app: &App, fleet_id: &str, row: &rows::CommandRow) {
    app.bus.publish(Event::Command {
        fleet_id: fleet_id.to_owned(),
        device_id: row.device_id.clone(),
        id: row.id.clone(),
    });
}
