//! The lines of releases: what one is a version of.

use copal_protocol::{
    documents::{Release, ReleaseKind},
    ids::{AppId, Sha256Hex},
    verify::ExpectedRelease,
};

use crate::error::{Problem, Result};

/// What a release is a version of. Each line has counters, targets, pins and retries of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Containers.
    App,
    /// The operating system.
    Os,
    /// The agent.
    Agent,
}

impl Line {
    /// The word used in the database and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Os => "os",
            Self::Agent => "agent",
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::App => "release",
            Self::Os => "operating system",
            Self::Agent => "agent",
        }
    }

    /// The line a word of the database means.
    pub(crate) fn from_word(word: &str) -> Result<Self> {
        [Self::App, Self::Os, Self::Agent]
            .into_iter()
            .find(|line| line.as_str() == word)
            .ok_or_else(|| Problem::internal(format!("release line {word:?} in the database")))
    }

    /// The line of a document.
    pub(crate) fn of(release: &Release) -> Self {
        match release.kind {
            ReleaseKind::App => Self::App,
            ReleaseKind::Host if release.payloads.keys().any(|name| name.as_str() == "agent") => Self::Agent,
            ReleaseKind::Host => Self::Os,
        }
    }

    /// What a device that was assigned this release expects it to be.
    pub(crate) const fn expected(self, app_id: AppId, sha256: Sha256Hex) -> ExpectedRelease {
        match self {
            Self::App => ExpectedRelease::app(app_id, sha256),
            Self::Os | Self::Agent => ExpectedRelease::host(sha256),
        }
    }
}

/// SQL with the column of a line in its middle: `by_line!(line, "UPDATE devices SET ", app | os | agent, " = $2 …")`.
macro_rules! by_line {
    ($line:expr, $before:literal, $app:literal | $os:literal | $agent:literal, $after:literal) => {
        match $line {
            $crate::releases::Line::App => concat!($before, $app, $after),
            $crate::releases::Line::Os => concat!($before, $os, $after),
            $crate::releases::Line::Agent => concat!($before, $agent, $after),
        }
    };
}
pub(crate) use by_line;
