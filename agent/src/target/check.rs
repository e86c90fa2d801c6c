//! Looking for something new at a person's word. In: the wish. Out: what the poll found that was begun after it.

use std::time::Duration;

use copal_protocol::documents::Reason;
use tokio::sync::watch;

use super::nudges::Nudges;
use crate::apply::status::reason;

/// Whoever asked is told no later than this: longer than a slow link takes for a new assignment and its releases.
const WITHIN: Duration = Duration::from_secs(120);

/// How the newest poll ended that somebody asked for.
#[derive(Debug, Clone)]
pub struct Checked {
    /// It answers every wish up to this one ([`Nudges::asked`]).
    pub asked: u64,
    /// What was found; or why nothing could be, or why what was found is refused.
    pub end: Result<String, Reason>,
}

impl Default for Checked {
    fn default() -> Self {
        Self { asked: 0, end: Ok(String::new()) }
    }
}

/// Asks the synchronisation to look, and waits for its answer.
#[derive(Debug, Clone)]
pub struct Checker {
    /// The synchronisation's ear.
    pub nudges: watch::Sender<Nudges>,
    /// What it answers.
    pub checked: watch::Receiver<Checked>,
}

impl Checker {
    /// Looks whether the cloud has something new.
    ///
    /// # Errors
    /// Why that is not known, or why what is new is refused; `timeout` after two minutes.
    pub async fn check(&self) -> Result<String, Reason> {
        let mut mine = 0;
        self.nudges.send_modify(|nudges| {
            nudges.asked += 1;
            mine = nudges.asked;
        });
        let mut checked = self.checked.clone();
        let answered = tokio::time::timeout(WITHIN, checked.wait_for(|checked| checked.asked >= mine));
        match answered.await {
            Ok(Ok(checked)) => checked.end.clone(),
            Ok(Err(_)) => Err(reason("interrupted", "the synchronisation went away in the middle of it")),
            Err(_) => {
                let why = format!(
                    "the cloud did not answer within {} s; the device goes on trying",
                    WITHIN.as_secs()
                );
                Err(reason("timeout", why))
            }
        }
    }
}
