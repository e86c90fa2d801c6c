//! What people ask of services. In: a service, or a volume, and what is to become of it. Out: one answer, once it is so or
//! will not be. Brought about by the same loop as everything else, so that nothing works against it.
//!
//! A name means every app of the device that has a service (or volume) of that name; most devices have one app.

use copal_protocol::{documents::Reason, ids::Name};
use tokio::sync::oneshot;

/// What is to become of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Its container ends and begins again. Its update lock does not hinder: a person asked.
    Restart(Name),
    /// It ends, and stays so.
    Stop(Name),
    /// It runs again.
    Start(Name),
    /// A volume, or all of them, are made anew; whoever uses them ends before and begins after.
    Purge(Option<Name>),
}

/// A question on its way.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub what: Ask,
    /// Gets a sentence where it came about, else why not.
    pub answer: oneshot::Sender<Result<String, Reason>>,
}
