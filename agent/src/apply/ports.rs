//! What applying needs from other rooms.

use std::{collections::BTreeSet, sync::Arc};

use copal_protocol::{
    documents::{ImageRef, Reason},
    ids::{AppId, Digest, Name, Sha256Hex},
    verify::Code,
};
use futures_util::future::BoxFuture;

use crate::{
    engine::{EngineError, ImageId},
    target::model::AppTarget,
};

/// Told of bytes had and bytes to have while an image comes.
pub type ProgressSink = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A step that failed: a stable code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApplyError {
    /// A reason code or an `E_…` of `docs/protocol.md`.
    pub code: String,
    /// What was tried, on what, why it failed, and what to do.
    pub message: String,
}

impl ApplyError {
    /// Makes one.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }

    /// An engine's failure under the code of the step it broke; absence and a full disk keep their own.
    #[must_use]
    pub fn engine(code: &str, error: &EngineError) -> Self {
        let code = match error {
            EngineError::Absent { .. } => "engine_absent",
            EngineError::NoSpace { .. } => Code::NoSpace.as_str(),
            _ => code,
        };
        Self::new(code, error.to_string())
    }
}

impl From<copal_protocol::verify::Error> for ApplyError {
    fn from(error: copal_protocol::verify::Error) -> Self {
        Self::new(error.code.as_str(), error.detail)
    }
}

/// Something that had to be written down could not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub String);

/// Brings images into the engine, and vouches for them.
pub trait Images: Send + Sync {
    /// Brings the image into the engine and checks its identity (config digest, diff_ids, platform). Returns the engine's
    /// id to make containers from. Dropping the future ends the download; what was had is kept for the next try.
    fn ensure<'a>(
        &'a self,
        app: AppId,
        service: &'a Name,
        image: &'a ImageRef,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<ImageId, ApplyError>>;

    /// Whether it is there already and right; cheap, no network.
    fn present<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>, ApplyError>>;

    /// Lets go of one image this agent brought, so that there is room for the next. Takes only names it made itself, never
    /// by force.
    fn release<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<(), ApplyError>>;

    /// Lets go of every image this agent brought whose config digest is not in `keep`. Takes only names it made itself,
    /// never by force; what cannot go now goes another time.
    fn retain<'a>(&'a self, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), ApplyError>>;
}

/// What is remembered of each app over restarts. Everything is durable when a call returns.
pub trait Ledger: Send + Sync {
    /// The fallback: the effective target that proved itself last, with its documents.
    fn committed(&self, app: AppId) -> Option<AppTarget>;
    /// Makes `target` the fallback and ends its trial; raises floors.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn commit(&self, target: &AppTarget) -> Result<(), StateError>;
    /// The key of the effective target on trial.
    fn trial(&self, app: AppId) -> Option<Sha256Hex>;
    /// Written before the first effect of a trial.
    ///
    /// # Errors
    /// Where it cannot be written; then the trial does not begin.
    fn begin_trial(&self, target: &AppTarget) -> Result<(), StateError>;
    /// Ends a trial badly: `key` is not tried again until the target changes.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn park(&self, app: AppId, key: Sha256Hex, reason: &Reason) -> Result<(), StateError>;
    /// The key that failed, and why.
    fn parked(&self, app: AppId) -> Option<(Sha256Hex, Reason)>;
    /// Every app something is remembered of.
    fn apps(&self) -> Vec<AppId>;
    /// Forgets an app that is no longer assigned.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn drop_app(&self, app: AppId) -> Result<(), StateError>;
}
