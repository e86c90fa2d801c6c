//! Watching that who holds a stream may still have it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Act, Caller, Sees};
use crate::{
    app::App,
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// Looked at this often: for so long goes on what was taken away.
const EVERY: Duration = Duration::from_secs(3);

/// What somebody must still be allowed to.
#[derive(Debug, Clone)]
pub enum Needs {
    /// This, on this fleet.
    May(Act, Box<FleetRow>),
    /// To see these fleets, neither more nor fewer.
    See(Sees),
}

/// Looks again and again, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    lost: CancellationToken,
    why: Arc<OnceLock<String>>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Begins, for who was judged just now.
    #[must_use]
    pub fn new(app: &App, caller: &Caller, needs: Needs) -> Self {
        let (lost, why) = (CancellationToken::new(), Arc::new(OnceLock::new()));
        let (app, caller, told) = (app.clone(), caller.clone(), (lost.clone(), Arc::clone(&why)));
        // A task of its own, since a stream that is busy would give up each look for what comes.
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                match look(&app, &caller, &needs).await {
                    Ok(()) => {}
                    Err(problem) if problem.status().is_client_error() => {
                        let _ = told.1.set(problem.detail().to_owned());
                        told.0.cancel();
                        return;
                    }
                    Err(problem) => tracing::warn!(%problem, "whether a stream may go on; looked at again"),
                }
            }
        });
        Self { lost, why, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until it is lost, and says why.
    pub async fn lost(&self) -> &str {
        self.lost.cancelled().await;
        self.why.get().map_or("", String::as_str)
    }

    /// Whether it is.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }
}

async fn look(app: &App, caller: &Caller, needs: &Needs) -> Result<()> {
    match needs {
        Needs::May(act, fleet) => caller.still_may(app, *act, Some(fleet)).await,
        Needs::See(sees) => {
            let mut db = app.db.read().acquire().await?;
            if caller.again(&mut db).await?.sees() == *sees {
                return Ok(());
            }
            Err(Problem::forbidden("rights_changed", "Which fleets you see has changed; come again."))
        }
    }
}
