//! People and their tokens: who calls, and what they may do.
//!
//! In: the credentials of a request (`Authorization`, or the session cookie). Out: a [`Caller`], or 401.
//! Never here: devices (they have sessions of their own, see `devices/`), and no secret is stored: passwords are
//! argon2id, tokens and sessions are kept as SHA-256.

mod again;
pub mod bounds;
mod caller;
pub mod limits;
pub mod members;
pub mod passwords;
pub mod sessions;
pub mod tokens;
pub mod users;
mod watch;

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use axum::http::StatusCode;
use copal_protocol::ids::FleetId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use again::{Author, Credential};
pub use caller::{PEER_HEADER, basic, own_page, same_site, shown, source};
pub use watch::{Needs, Watch};

use crate::{
    app::App,
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// What rooms of people keep in memory.
#[derive(Debug, Default)]
pub struct Memory {
    /// How often signing in failed lately.
    pub limits: limits::Limits,
    /// Bounds how many passwords are hashed at once.
    pub hashing: passwords::Hashing,
    /// How often persons did what only looks and is audited.
    pub reads: bounds::Reads,
    /// Listeners to events and to metrics, by person.
    pub listeners: bounds::Shares,
}

/// What a person is to this server; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing by itself: sees and does what the fleets it is a member of allow.
    Member,
    /// Looks.
    Viewer,
    /// Deploys what there is.
    Operator,
    /// Pushes new releases.
    Developer,
    /// Makes fleets, lets devices in and out.
    Admin,
    /// Everything, users included.
    Owner,
}

/// What a token may do of what its person may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Looks.
    Read,
    /// Looks, pushes git and images.
    Push,
    /// All of it.
    Full,
}

/// A kind of act, as routes ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Look.
    Read,
    /// Make a release: git push, image push, build, sign, note.
    Push,
    /// Change what devices run: deploy, pin, variables, tags, retry.
    Deploy,
    /// Fleets, roots, enrolment tokens, letting devices in and out, the audit log.
    Manage,
    /// Users and the server itself.
    Own,
}

macro_rules! words {
    ($type:ty, $what:literal, $($variant:ident = $word:literal),*) => {
        impl $type {
            /// The word used in the database and on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = anyhow::Error;

            fn from_str(text: &str) -> anyhow::Result<Self> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => anyhow::bail!("{other:?} is not a {}", $what),
                }
            }
        }
    };
}

words!(
    Role,
    "role",
    Member = "member",
    Viewer = "viewer",
    Operator = "operator",
    Developer = "developer",
    Admin = "admin",
    Owner = "owner"
);
words!(Scope, "scope", Read = "read", Push = "push", Full = "full");

impl Act {
    /// The least role that may do it.
    const fn role(self) -> Role {
        match self {
            Self::Read => Role::Viewer,
            Self::Push => Role::Developer,
            Self::Deploy => Role::Operator,
            Self::Manage => Role::Admin,
            Self::Own => Role::Owner,
        }
    }

    /// The least scope that may do it.
    const fn scope(self) -> Scope {
        match self {
            Self::Read => Scope::Read,
            Self::Push => Scope::Push,
            Self::Deploy | Self::Manage | Self::Own => Scope::Full,
        }
    }
}

/// Which fleets somebody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sees {
    /// Every one.
    All,
    /// These.
    Only(Vec<FleetId>),
}

impl Sees {
    /// Whether this one is among them.
    #[must_use]
    pub fn fleet(&self, fleet: &FleetId) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(fleet),
        }
    }
}

/// Who makes a request. As an axum extractor it refuses with 401 what shows no valid credentials.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For the audit log: `anna@example.org`, `token:ci (anna@example.org)` or `system`.
    pub who: String,
    /// The person's address.
    pub email: String,
    /// The person.
    pub user_id: String,
    /// What the person is on the whole server.
    pub role: Role,
    /// What the person is on single fleets, where that is more.
    pub on_fleets: Arc<BTreeMap<FleetId, Role>>,
    /// What the credentials allow of that.
    pub scope: Scope,
    /// The only fleet the credentials open; `None` opens all.
    pub fleet: Option<FleetId>,
    /// The name of the token, where one was used.
    pub token: Option<String>,
    /// What was shown, by which the caller's rights are looked at again.
    pub credential: Credential,
    /// Where the request came from: an IP address.
    pub source: String,
    /// Why it is made, in the caller's words; for the audit log.
    pub why: String,
}

impl Caller {
    /// The server itself, acting on its own account (a build that ended, an operator at its command line).
    #[must_use]
    pub fn system() -> Self {
        Self {
            who: "system".to_owned(),
            email: String::new(),
            user_id: String::new(),
            role: Role::Owner,
            on_fleets: Arc::default(),
            scope: Scope::Full,
            fleet: None,
            token: None,
            credential: Credential::System,
            source: "local".to_owned(),
            why: String::new(),
        }
    }

    /// What the person is on this fleet.
    #[must_use]
    pub fn role_on(&self, fleet: FleetId) -> Role {
        self.on_fleets.get(&fleet).map_or(self.role, |role| self.role.max(*role))
    }

    /// Which fleets the caller sees.
    #[must_use]
    pub fn sees(&self) -> Sees {
        match self.fleet {
            Some(fleet) if self.role_on(fleet) >= Role::Viewer => Sees::Only(vec![fleet]),
            Some(_) => Sees::Only(Vec::new()),
            None if self.role >= Role::Viewer => Sees::All,
            None => Sees::Only(self.on_fleets.keys().copied().collect()),
        }
    }

    /// Whether the caller may do this, on this fleet where it is about one.
    ///
    /// # Errors
    /// 404 `not_found` for a fleet the token does not open or the person is no member of, 403 `role_insufficient` or `scope_insufficient` else.
    pub fn may(&self, act: Act, fleet: Option<&FleetRow>) -> Result<()> {
        match (self.fleet, fleet) {
            (Some(own), Some(asked)) if own != asked.fleet_id => {
                return Err(Problem::not_found(format!("fleet {:?}", asked.slug)));
            }
            (Some(_), None) if act != Act::Read => {
                return Err(Problem::forbidden(
                    "scope_insufficient",
                    "This token opens one fleet only; what was asked concerns the whole server. Use a token without a fleet.",
                ));
            }
            _ => {}
        }
        let role = fleet.map_or(self.role, |fleet| self.role_on(fleet.fleet_id));
        if let (Role::Member, Some(fleet)) = (role, fleet) {
            return Err(Problem::not_found(format!("fleet {:?}", fleet.slug)));
        }
        if role < act.role() {
            let (of, ask) = fleet.map_or_else(
                || ("this server".to_owned(), "an owner of this server"),
                |fleet| (format!("fleet {:?}", fleet.slug), "an admin of the fleet"),
            );
            return Err(Problem::forbidden(
                "role_insufficient",
                format!(
                    "{} has the role {role} on {of}; this needs {} or more. Ask {ask}.",
                    self.email,
                    act.role()
                ),
            ));
        }
        if self.scope < act.scope() {
            return Err(Problem::forbidden(
                "scope_insufficient",
                format!(
                    "The token has the scope {}; this needs {}. Make another with `copal token create --scope {}`.",
                    self.scope,
                    act.scope(),
                    act.scope()
                ),
            ));
        }
        Ok(())
    }
}

/// Refuses one more try after too many failures.
///
/// # Errors
/// 429 `too_many_attempts`, with the time to wait.
pub fn limited(app: &App, account: &str, source: &str) -> Result<()> {
    app.auth.limits.check(account, source, std::time::Instant::now()).map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_attempts",
            format!("Too many failed attempts. Try again in {seconds} s."),
        )
        .retry_after(seconds)
    })
}

/// `prefix` and 256 random bits in base64url: a token or session id as its holder has it.
///
/// # Errors
/// When the system has no randomness.
pub fn random_secret(prefix: &str) -> Result<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| Problem::internal(format!("no randomness: {e}")))?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// 128 random bits in hex: an id.
///
/// # Errors
/// When the system has no randomness.
pub fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Problem::internal(format!("no randomness: {e}")))?;
    Ok(hex::encode(bytes))
}

/// How a secret of 256 random bits is kept: its SHA-256. (A password is not such a secret; see [`passwords`].)
#[must_use]
pub fn hash_secret(secret: &str) -> String {
    copal_protocol::ids::Sha256Hex::of(secret.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, scope: Scope) -> Caller {
        Caller { role, scope, ..Caller::system() }
    }

    #[test]
    fn a_role_may_what_the_lesser_ones_may() {
        let may = |role, act| caller(role, Scope::Full).may(act, None).is_ok();
        let table: Vec<String> =
            [Role::Member, Role::Viewer, Role::Operator, Role::Developer, Role::Admin, Role::Owner]
                .into_iter()
                .map(|role| {
                    let acts = [Act::Read, Act::Deploy, Act::Push, Act::Manage, Act::Own];
                    let allowed: Vec<_> =
                        acts.into_iter().filter(|a| may(role, *a)).map(|a| format!("{a:?}")).collect();
                    format!("{role}: {}", allowed.join(" "))
                })
                .collect();
        insta::assert_snapshot!(table.join("\n"), @r"
        member: 
        viewer: Read
        operator: Read Deploy
        developer: Read Deploy Push
        admin: Read Deploy Push Manage
        owner: Read Deploy Push Manage Own
        ");
    }

    #[test]
    fn a_scope_takes_away() {
        assert!(caller(Role::Owner, Scope::Push).may(Act::Push, None).is_ok());
        assert_eq!(
            caller(Role::Owner, Scope::Push).may(Act::Deploy, None).unwrap_err().code(),
            "scope_insufficient"
        );
        assert_eq!(
            caller(Role::Owner, Scope::Read).may(Act::Push, None).unwrap_err().code(),
            "scope_insufficient"
        );
    }

    #[test]
    fn a_token_of_one_fleet_does_not_learn_of_others() {
        let mine = FleetRow::example("mine", 1);
        let other = FleetRow::example("other", 2);
        let caller = Caller { fleet: Some(mine.fleet_id), ..Caller::system() };
        assert!(caller.may(Act::Manage, Some(&mine)).is_ok());
        assert_eq!(caller.may(Act::Read, Some(&other)).unwrap_err().code(), "not_found");
        assert_eq!(caller.may(Act::Manage, None).unwrap_err().code(), "scope_insufficient");
        assert!(caller.may(Act::Read, None).is_ok());
    }

    #[test]
    fn a_member_has_what_the_fleet_gives_and_learns_of_no_other() {
        let (mine, other) = (FleetRow::example("mine", 1), FleetRow::example("other", 2));
        let on_fleets = Arc::new(BTreeMap::from([(mine.fleet_id, Role::Operator)]));
        let member = Caller { role: Role::Member, on_fleets: on_fleets.clone(), ..Caller::system() };
        assert!(member.may(Act::Read, Some(&mine)).is_ok() && member.may(Act::Deploy, Some(&mine)).is_ok());
        assert_eq!(member.may(Act::Push, Some(&mine)).unwrap_err().code(), "role_insufficient");
        assert_eq!(member.may(Act::Read, Some(&other)).unwrap_err().code(), "not_found");
        assert_eq!(member.may(Act::Read, None).unwrap_err().code(), "role_insufficient");
        assert_eq!(member.sees(), Sees::Only(vec![mine.fleet_id]));

        // The greater role counts, whichever it is; a token of another fleet opens none of it.
        let developer = Caller { role: Role::Developer, ..member.clone() };
        assert!(developer.may(Act::Push, Some(&mine)).is_ok());
        assert_eq!(developer.sees(), Sees::All);
        let elsewhere = Caller { fleet: Some(other.fleet_id), ..member };
        assert_eq!(elsewhere.sees(), Sees::Only(Vec::new()));
        assert_eq!(elsewhere.may(Act::Read, Some(&mine)).unwrap_err().code(), "not_found");
    }
}
