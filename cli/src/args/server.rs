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

/// Users.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List the people of this server, for owners
    List,
    /// Let a person in; asks for the password to begin with, or reads it from standard input
    Create {
        /// The address to sign in with
        email: String,
        /// What the person is on the whole server; `member` is nothing but what fleets give (copal member set)
        #[arg(long, value_enum, default_value = "member")]
        role: ServerRole,
    },
    /// Change what a person is, or shut the person out
    Change {
        /// The address
        email: String,
        /// What the person is to be on the whole server
        #[arg(long, value_enum, required_unless_present_any = ["disable", "enable"])]
        role: Option<ServerRole>,
        /// Shut out: sessions end, tokens stop working
        #[arg(long)]
        disable: bool,
        /// Let in again
        #[arg(long, conflicts_with = "disable")]
        enable: bool,
    },
}

/// Members of a fleet.
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// List those who are more on this fleet than on the whole server, or nothing there
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        slug: Option<String>,
    },
    /// Make a person a member of a fleet, or change what a member is
    Set {
        /// The address of a user of this server
        email: String,
        /// What the person is on the fleet
        #[arg(value_enum)]
        role: FleetRole,
    },
    /// Take a member out of a fleet
    Remove {
        /// The address
        email: String,
    },
}

/// What a person is on the whole server; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServerRole {
    /// Nothing by itself: sees and does what its fleets give
    Member,
    /// Looks
    Viewer,
    /// Deploys what there is, and acts on devices
    Operator,
    /// Pushes new releases
    Developer,
    /// Makes fleets, lets devices in and out
    Admin,
    /// Everything, users included
    Owner,
}

impl ServerRole {
    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Developer => "developer",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// What a person is on a fleet; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FleetRole {
    /// Looks
    Viewer,
    /// Deploys what there is, and acts on devices
    Operator,
    /// Pushes new releases
    Developer,
    /// Lets devices and members in and out
    Admin,
}

impl FleetRole {
    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Developer => "developer",
            Self::Admin => "admin",
        }
    }
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
