//! Errors: what was tried, why it failed, what to do next, and the exit code scripts go by.

use std::fmt;

use serde_json::json;

use crate::output::safe;

/// What went wrong, as scripts need to know it. The numbers are stable and documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1: something on this machine, or a build or deployment that failed.
    Failure,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: the server refused.
    Refused,
    /// 4: there is no such thing.
    NotFound,
    /// 5: the server could not be reached, or broke.
    Network,
    /// 6: something is not signed, not pinned or not proven as it must be.
    Trust,
    /// 7: it did not happen in time.
    Timeout,
}

impl Kind {
    /// The exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Network => 5,
            Self::Trust => 6,
            Self::Timeout => 7,
        }
    }
}

/// A command that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the exit code.
    pub kind: Kind,
    /// Stable: the server's problem code, an `E_…` of verification, or one of the CLI's.
    pub code: String,
    /// What was tried, on what.
    pub what: String,
    /// Why it failed.
    pub why: String,
    /// What to do.
    pub next: Option<String>,
}

/// What commands return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure of a kind.
    #[must_use]
    pub fn new(kind: Kind, code: &str, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { kind, code: code.to_owned(), what: what.into(), why: why.to_string(), next: None }
    }

    /// Something on this machine.
    #[must_use]
    pub fn local(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Kind::Failure, "local", what, why)
    }

    /// The command line makes no sense.
    #[must_use]
    pub fn usage(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Kind::Usage, "usage", what, why)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, "not_found", what, why)
    }

    /// Not signed, pinned or proven as it must be.
    #[must_use]
    pub fn trust(code: &str, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Kind::Trust, code, what, why)
    }

    /// A refusal of verification.
    #[must_use]
    pub fn verify(what: impl Into<String>, error: &copal_protocol::verify::Error) -> Self {
        Self::new(Kind::Trust, error.code.as_str(), what, &error.detail)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says where to look for what there is, where there was no such thing and nobody said so yet.
    #[must_use]
    pub fn not_found_next(mut self, next: &str) -> Self {
        if self.kind == Kind::NotFound {
            self.next.get_or_insert_with(|| next.to_owned());
        }
        self
    }

    /// Writes it to standard error; as one JSON object where `json` is asked for.
    pub fn print(&self, json: bool) {
        if json {
            let error = json!({
                "code": self.code, "exit_code": self.kind.exit_code(),
                "what": self.what, "why": self.why, "next": self.next,
            });
            eprintln!("{}", json!({ "error": error }));
        } else {
            eprintln!("{self}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: cannot {}: {} ({})", safe(&self.what), safe(&self.why), safe(&self.code))?;
        if let Some(next) = &self.next {
            write!(f, "\n  next: {}", safe(next))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
