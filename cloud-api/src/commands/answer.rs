//! What a device says of a command. Things come twice and out of order; only what is further on counts.

use copal_protocol::{
    channel::{Ack, MAX_MESSAGE},
    text,
};
use serde_json::json;

use super::{
    rows,
    state::{self, CommandState},
    tell,
};
use crate::{
    app::{self, App},
    devices::{
        memory::Entry,
        rows::{NewEvent, add_events},
    },
    error::Result,
};

/// The most characters of what a device says to people.
const MAX_TEXT: usize = 2_000;

/// Takes what a device says of one of its commands. What it says of another's, or of none, is left aside: it learns
/// nothing from it.
///
/// # Errors
/// When the database fails.
pub(crate) async fn answer(app: &App, entry: &Entry, ack: &Ack) -> Result<()> {
    let said = CommandState::from(ack.state);
    let news = |row: &rows::CommandRow| -> Result<bool> {
        Ok(state::moves_on(row.state()?, row.code.as_deref(), said))
    };
    // Looked at before a write is begun: a device may say the same a hundred times.
    let known = rows::one(app, &entry.device_id.to_string(), &ack.id.to_string()).await?;
    let Some(row) = known else {
        tracing::debug!(device = %entry.device_id, command = %ack.id, "an answer to no command of this device");
        return Ok(());
    };
    if !news(&row)? {
        return Ok(());
    }
    // That nothing was heard is the cloud's to say; of a device it would be news again and again.
    let code = ack.code.as_deref().map(|code| short(code, 64)).filter(|code| code != state::NO_ANSWER);
    let message = short(&ack.message, MAX_TEXT);
    let result = ack.result.as_ref().map(ToString::to_string);
    let (result, message) = match result {
        Some(text) if text.len() > MAX_MESSAGE => {
            (None, format!("{message} (the result was too large to keep)"))
        }
        other => (other, message),
    };
    let mut tx = app.db.write().await?;
    let Some(row) = rows::of(&mut tx, &row.id).await? else { return Ok(()) };
    if !news(&row)? {
        return Ok(());
    }
    let now = app::now();
    let step =
        rows::Step { state: said, code: code.as_deref(), message: &message, result: result.as_deref() };
    rows::step(&mut tx, &row, &step, now).await?;
    // What changed a device belongs to its history; what was only asked does not.
    if said.is_final() && row.envelope.is_some() {
        let words = if message.is_empty() { String::new() } else { format!(": {message}") };
        let event = NewEvent {
            kind: "command",
            code: said.as_str().to_owned(),
            message: format!("{} of {} ended as {}{words}", row.verb, row.asked_by, said.as_str()),
            data: json!({"command": row.id, "verb": row.verb, "code": code}),
        };
        add_events(&mut tx, entry.device_id, now, &[event]).await?;
    }
    tx.commit().await?;
    tell(app, &entry.fleet_id.to_string(), &row);
    Ok(())
}

/// A device's text within bounds, unable to steer a terminal.
fn short(said: &str, max: usize) -> String {
    text::inert(said).chars().take(max).collect()
}
