//! Why the cloud did not answer as hoped.

use std::time::Duration;

use copal_protocol::verify::Code;

/// A failure of a call to the cloud. What runs goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// No answer, or one that is not the cloud's.
    #[error("{detail}")]
    Transport {
        /// What was tried and what happened.
        detail: String,
        /// Something answered that is not the cloud: a sign-in page of the network, most often.
        captive: bool,
    },
    /// It came too slowly.
    #[error("{0}")]
    Slow(String),
    /// It was larger than its kind may be.
    #[error("{0}")]
    TooLarge(String),
    /// The cloud said no.
    #[error("the cloud answered {status} {code}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its stable code; empty where it gave none.
        code: String,
        /// Its words.
        detail: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
}

impl CloudError {
    /// A network failure.
    #[must_use]
    pub fn transport(detail: impl Into<String>) -> Self {
        Self::Transport { detail: detail.into(), captive: false }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Transport { .. } => Code::Transport.as_str(),
            Self::Slow(_) => Code::Slow.as_str(),
            Self::TooLarge(_) => Code::TooLarge.as_str(),
            Self::Refused { code, .. } if !code.is_empty() => code,
            Self::Refused { .. } => "cloud_refused",
        }
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the cloud answered with this status.
    #[must_use]
    pub fn is_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}
