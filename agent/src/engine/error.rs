//! What can go wrong with the engine, in our words.

use std::time::Duration;

/// A failed call: what was tried, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Nothing answers there.
    #[error("no container engine answers at {host} ({detail})")]
    Absent {
        /// Where it was expected.
        host: String,
        /// What the system said.
        detail: String,
    },
    /// The object is not there.
    #[error("{what}: not found: {message}")]
    NotFound {
        /// What was tried.
        what: String,
        /// The engine's words.
        message: String,
    },
    /// Another object is in the way, or the object is in use.
    #[error("{what}: in conflict: {message}")]
    Conflict {
        /// What was tried.
        what: String,
        /// The engine's words.
        message: String,
    },
    /// No answer in time.
    #[error("{what}: no answer within {} s", after.as_secs())]
    Timeout {
        /// What was tried.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The engine's file system is full.
    #[error("{what}: no space left on the engine's disk: {message}")]
    NoSpace {
        /// What was tried.
        what: String,
        /// The engine's words.
        message: String,
    },
    /// The engine said no.
    #[error("{what}: the engine answered {status}: {message}")]
    Refused {
        /// What was tried.
        what: String,
        /// HTTP status.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// An answer that is not understood, or a broken connection.
    #[error("{what}: {detail}")]
    Broken {
        /// What was tried.
        what: String,
        /// What was wrong.
        detail: String,
    },
}

/// The most characters of the engine's words that are kept.
const MAX_MESSAGE: usize = 500;

/// Text made safe to print and to send: control characters become spaces, and it is cut.
pub(crate) fn tidy(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE)
        .collect::<String>()
        .trim()
        .to_owned()
}

impl EngineError {
    /// Whether the engine itself is gone, rather than one call refused.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// Whether the object asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the engine is in the middle of a change of its own, so that the same call fares otherwise a moment later: the
    /// container is being removed already, or it ended while it was renamed (its network sandbox is what is not found).
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Conflict { message, .. } => {
                message.contains("removal of container") && message.contains("already in progress")
            }
            Self::NotFound { message, .. } => message.contains("sandbox"),
            _ => false,
        }
    }

    /// Takes not-found as success: what should be gone is gone.
    pub(crate) fn gone_is_fine(result: Result<(), Self>) -> Result<(), Self> {
        match result {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    pub(crate) fn from_client(what: impl Into<String>, host: &str, error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as E;
        let what = what.into();
        let no_space = |m: &str| m.contains("no space left on device") || m.contains("disk quota exceeded");
        match error {
            E::SocketNotFoundError(path) => {
                Self::Absent { host: host.to_owned(), detail: format!("{path} does not exist") }
            }
            E::HyperLegacyError { err } if err.is_connect() => {
                let mut detail = err.to_string();
                let mut source = std::error::Error::source(&err);
                while let Some(inner) = source {
                    detail = inner.to_string();
                    source = inner.source();
                }
                Self::Absent { host: host.to_owned(), detail: tidy(&detail) }
            }
            E::DockerResponseServerError { status_code, message } => {
                let message = tidy(&message);
                match status_code {
                    _ if no_space(&message) => Self::NoSpace { what, message },
                    404 => Self::NotFound { what, message },
                    409 => Self::Conflict { what, message },
                    status => Self::Refused { what, status, message },
                }
            }
            E::RequestTimeoutError => {
                Self::Timeout { what, after: Duration::from_secs(super::CLIENT_TIMEOUT_S) }
            }
            E::DockerStreamError { error } if no_space(&error) => {
                Self::NoSpace { what, message: tidy(&error) }
            }
            E::DockerStreamError { error } => Self::Refused { what, status: 200, message: tidy(&error) },
            other => Self::Broken { what, detail: tidy(&other.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_is_in_the_middle_of_passes_and_nothing_else_does() {
        let answered = |status_code: u16, message: &str| {
            let error =
                bollard::errors::Error::DockerResponseServerError { status_code, message: message.into() };
            EngineError::from_client("renaming container 0123", "unix:///engine", error)
        };
        assert!(answered(409, "removal of container 0123 is already in progress").is_passing());
        assert!(answered(404, "sandbox 4567 not found").is_passing());
        assert!(!answered(404, "No such container: 0123").is_passing());
        assert!(
            !answered(409, "Conflict. The container name \"/x\" is already in use by container 4567")
                .is_passing()
        );
        assert!(!answered(500, "sandbox 4567 not found").is_passing());
    }
}
