//! Looking again at what somebody may, after the moment in which it was judged. A body comes slowly, a stream lasts, a stored
//! command waits for days: meanwhile a role can be taken away, a token revoked, a person shut out.

use copal_protocol::ids::FleetId;
use sqlx::SqliteConnection;

use super::{Act, Caller, Role, Scope, members};
use crate::{
    app::{self, App},
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// By what a caller showed who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: it is the server itself.
    System,
    /// A token, by its id.
    Token(String),
    /// A session, by its hash.
    Session(String),
}

/// Who asked for something that happens later, as it is kept with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Author {
    /// The person; empty for the server itself, and for what was asked before this was kept.
    pub user_id: String,
    /// The token, where one was used.
    pub token_id: Option<String>,
}

impl Caller {
    /// The caller as of now.
    ///
    /// # Errors
    /// 401 `credentials_ended` where the session or token ended, or the person was shut out.
    pub async fn again(&self, db: &mut SqliteConnection) -> Result<Self> {
        let (sql, key) = match &self.credential {
            Credential::System => return Ok(self.clone()),
            Credential::Token(id) => (
                "SELECT u.role FROM tokens t JOIN users u ON u.id = t.user_id \
                 WHERE t.id = $1 AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > $2) \
                 AND u.disabled_at IS NULL",
                id,
            ),
            Credential::Session(hash) => (
                "SELECT u.role FROM sessions s JOIN users u ON u.id = s.user_id \
                 WHERE s.id_hash = $1 AND s.expires_at > $2 AND u.disabled_at IS NULL",
                hash,
            ),
        };
        let role: Option<String> =
            sqlx::query_scalar(sql).bind(key).bind(app::now_i64()).fetch_optional(&mut *db).await?;
        let role = role.ok_or_else(|| {
            Problem::unauthorized(
                "credentials_ended",
                "The session or token ended meanwhile, or the person was shut out; nothing was done.",
            )
        })?;
        let role = role.parse::<Role>()?;
        let on_fleets = members::of_user(db, &self.user_id, role).await?;
        Ok(Self { role, on_fleets, ..self.clone() })
    }

    /// Refuses where the caller is less by now than when this request was judged: to be asked within the write of an act.
    ///
    /// # Errors
    /// 401 `credentials_ended`, 403 `rights_changed`.
    pub async fn holds(&self, db: &mut SqliteConnection) -> Result<()> {
        let now = self.again(db).await?;
        if now.role >= self.role && self.on_fleets.iter().all(|(fleet, role)| now.role_on(*fleet) >= *role) {
            return Ok(());
        }
        Err(Problem::forbidden(
            "rights_changed",
            format!("What {} may do was lessened while this was under way; nothing was done.", self.email),
        ))
    }

    /// Whether the caller may still do this, as [`Caller::may`].
    ///
    /// # Errors
    /// Those of [`Caller::again`] and [`Caller::may`].
    pub async fn still_may(&self, app: &App, act: Act, fleet: Option<&FleetRow>) -> Result<()> {
        let mut db = app.db.read().acquire().await?;
        self.again(&mut db).await?.may(act, fleet)
    }

    /// What is kept of the caller with what happens later.
    #[must_use]
    pub fn author(&self) -> Author {
        let token_id = match &self.credential {
            Credential::Token(id) => Some(id.clone()),
            Credential::System | Credential::Session(_) => None,
        };
        Author { user_id: self.user_id.clone(), token_id }
    }
}

impl Author {
    /// Whether whoever asked may still do this on a fleet. A session that ended, and a token that expired as it was to, take
    /// nothing away from what was asked before; a revoked token does.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn may(&self, db: &mut SqliteConnection, act: Act, fleet: FleetId) -> Result<bool> {
        if self.user_id.is_empty() {
            return Ok(true);
        }
        let role: Option<String> =
            sqlx::query_scalar("SELECT role FROM users WHERE id = $1 AND disabled_at IS NULL")
                .bind(&self.user_id)
                .fetch_optional(&mut *db)
                .await?;
        let Some(role) = role else { return Ok(false) };
        if let Some(token) = &self.token_id {
            let scope: Option<String> =
                sqlx::query_scalar("SELECT scope FROM tokens WHERE id = $1 AND revoked_at IS NULL")
                    .bind(token)
                    .fetch_optional(&mut *db)
                    .await?;
            let Some(scope) = scope else { return Ok(false) };
            if scope.parse::<Scope>()? < act.scope() {
                return Ok(false);
            }
        }
        let role = role.parse::<Role>()?;
        let on_fleets = members::of_user(db, &self.user_id, role).await?;
        Ok(on_fleets.get(&fleet).map_or(role, |on| role.max(*on)) >= act.role())
    }
}
