//! Source to images to a release.
//!
//! In: a [`Request`]: a fleet, a tar of the source, what kind of release it shall be. Out: images in the registry and
//! a signed release, not yet published; a log that is followed while it grows.
//! Never here: git (its rooms hand over a tar), deciding what deploys, and anything of a person's environment: a
//! Dockerfile sees its context and its arguments.
//!
//! ```text
//! queue → context (unpack, bounded) → copal_compose → per service: dockerfile, ignore → engine → image → registry
//!                                                                            └→ BuildRecord → releases::prepare
//! ```
//!
//! A Dockerfile is root on the engine it is built with; `docs/operations.md` says how to keep that engine apart.

use std::{path::PathBuf, time::Duration};

use copal_protocol::ids::FleetId;

use crate::{
    app::App,
    auth::{Act, Author},
    store::fleets::FleetRow,
};

mod bases;
mod context;
mod dockerfile;
mod engine;
mod ignore;
mod image;
mod log;
mod queue;
pub(crate) mod rows;
mod run;

pub use context::{Limits, unpack};
pub use log::{Follower, follow};
pub(crate) use queue::log_file;
pub use queue::{Job, Outcome, Queue, submit};
pub use rows::{BuildRow, Status};

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// For which fleet.
    pub fleet: FleetRow,
    /// The git commit; `None` for an upload.
    pub commit: Option<String>,
    /// The commit, or the SHA-256 of the upload.
    pub source: String,
    /// The branch or tag; empty for an upload.
    pub branch: String,
    /// What changes the outcome.
    pub options: Options,
    /// For people.
    pub note: String,
    /// Who asked, for the log.
    pub pushed_by: String,
}

/// What changes the outcome of a build. Equal requests share one.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Does not deploy by itself.
    pub draft: bool,
    /// The engine's cache is not used.
    pub nocache: bool,
    /// The version a tag names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<semver::Version>,
}

impl Options {
    /// The text that stands in the database; equal options are equal text.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("plain fields are always JSON")
    }
}

/// Why there is no release. The text is for whoever pushed: file and line where there are any, what is wrong, what
/// to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

impl BuildError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a build failed inside");
        Self(
            "something failed in the cloud, not in your project; the server's log has the cause. Try again."
                .into(),
        )
    }
}

/// The platform a fleet's images are for, as releases name it.
#[must_use]
pub fn platform(fleet: &FleetRow) -> String {
    format!("linux/{}", fleet.arch)
}

/// Where the source of a build is kept, so that it can be tried again.
#[must_use]
pub fn source_file(app: &App, build: &str) -> PathBuf {
    app.config.data.join("sources").join(format!("{build}.tar"))
}

/// After a start: builds that were under way have failed, and say so.
///
/// # Errors
/// When the database or a folder fails.
pub async fn reconcile(app: &App) -> anyhow::Result<()> {
    let _ = tokio::fs::remove_dir_all(scratch_dir(app)).await;
    for dir in [scratch_dir(app), app.config.data.join("sources")] {
        tokio::fs::create_dir_all(&dir).await?;
    }
    let count = rows::interrupt(app).await?;
    if count > 0 {
        tracing::warn!(count, "builds were interrupted by the last stop");
    }
    Ok(())
}

/// Where contexts are unpacked while they are built.
fn scratch_dir(app: &App) -> PathBuf {
    app.config.data.join("scratch")
}

/// The longest a build may take.
fn time_limit(app: &App) -> Duration {
    Duration::from_secs(app.config.build.time_s)
}

/// Whether who asked for a build may still release what came of it: builds take long enough for a right to be taken. Where that
/// cannot be asked, nothing is released.
pub(crate) async fn may_still_release(app: &App, author: &Author, fleet: FleetId) -> bool {
    let may = async {
        let mut db = app.db.read().acquire().await?;
        author.may(&mut db, Act::Push, fleet).await
    };
    may.await.unwrap_or_else(|problem| {
        tracing::error!(%problem, "asking whether the author of a build still may release");
        false
    })
}

/// Publishes the release of a build that no push waits for, if its author still may.
pub(crate) fn publish_when_done(app: &App, job: &std::sync::Arc<Job>, author: Author) {
    let (app, job) = (app.clone(), job.clone());
    tokio::spawn(async move {
        let Outcome::Succeeded { release } = job.outcome().await else { return };
        let settled = if may_still_release(&app, &author, job.request.fleet.fleet_id).await {
            crate::releases::publish(&app, &release).await.map(drop)
        } else {
            tracing::warn!(release, "who uploaded it may not release any more; what was built is discarded");
            crate::releases::discard(&app, &release).await
        };
        if let Err(problem) = settled {
            tracing::error!(%problem, release, "settling the release of an upload");
        }
    });
}
