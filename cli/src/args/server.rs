//! What concerns the server rather than a fleet: tokens, and the log of who did what.

use clap::{Subcommand, ValueEnum};

use super::work::duration;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenScope {
    /// All its user may
    Full,
    /// Push and read
    Push,
    /// Read
    Read,
}

impl TokenScope {
    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Push => "push",
            Self::Read => "read",
        }
    }
}

/// Tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown once
    Create {
        /// For people
        name: String,
        /// What it may do
        #[arg(long, value_enum, default_value = "full")]
        scope: TokenScope,
        /// For one fleet only
        #[arg(long = "for-fleet", value_name = "FLEET")]
        for_fleet: Option<String>,
        /// How long it is good for: 12h, 90d [default: until revoked]
        #[arg(long, value_parser = duration)]
        expires: Option<u64>,
    },
    /// List tokens, without the tokens themselves
    List,
    /// Make a token worthless
    Revoke {
        /// Its id
        token: String,
    },
}

/// Audit.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List acts, newest first
    List {
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Recompute the chain of hashes over the whole log; print the newest hash, to note down
    Verify {
        /// A hash noted earlier: fail unless the log still holds it, so that a cut off or rewritten log is seen
        #[arg(long, value_name = "HASH")]
        since: Option<String>,
    },
}
