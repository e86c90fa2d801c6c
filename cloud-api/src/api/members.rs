//! Who may do what on one fleet, for its admins.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Page, Paging, Path, Query, fleets::allowed};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller, Role, users},
    error::{Problem, Result},
    store::fleets::FleetRow,
};

/// The most members of one fleet.
const MAX_MEMBERS: i64 = 1_000;

/// Routes of members.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(set, remove))
}

/// A member of a fleet.
#[derive(Debug, Serialize, ToSchema)]
pub struct Member {
    /// The address the person signs in with.
    pub email: String,
    /// What the person is on this fleet. The role on the whole server counts where it is greater.
    pub role: Role,
    /// The role on the whole server.
    pub server_role: Role,
    /// Since when, Unix seconds.
    pub created_at: u64,
}

/// What a person is to be on a fleet.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// `viewer`, `operator`, `developer` or `admin`.
    pub role: Role,
}

#[derive(sqlx::FromRow)]
struct Row {
    email: String,
    role: String,
    server_role: String,
    created_at: i64,
}

impl TryFrom<Row> for Member {
    type Error = Problem;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            role: row.role.parse::<Role>()?,
            server_role: row.server_role.parse::<Role>()?,
            email: row.email,
            created_at: row.created_at.unsigned_abs(),
        })
    }
}

/// Lists a fleet's members, by address; for its admins. Those whose role on the whole server lets them in are not among them.
#[utoipa::path(get, path = "/fleets/{slug}/members", tag = "people",
    params(("slug" = String, Path, description = "The fleet's name."), Paging),
    responses((status = 200, body = Page<Member>)))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<Member>>> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT u.email, m.role, u.role AS server_role, m.created_at FROM members m JOIN users u ON u.id = m.user_id \
         WHERE m.fleet_id = $1 AND u.email > $2 ORDER BY u.email LIMIT $3",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(paging.after(String::new())?)
    .bind(paging.sql_limit()?)
    .fetch_all(app.db.read())
    .await?;
    let members = rows.into_iter().map(Member::try_from).collect::<Result<Vec<_>>>()?;
    Ok(Json(Page::of(&paging, members, |m| m.email.clone(), |m| m)?))
}

/// The person an address names, and the address as it is kept.
async fn person(app: &App, email: &str) -> Result<users::UserRow> {
    let email = users::normal_email(email)?;
    users::by_email(app, &email).await?.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "user_unknown",
            format!(
                "There is no user {email} here. An owner of this server makes one: copal user create {email}."
            ),
        )
    })
}

/// Refuses what would let a caller give away, or take from somebody, more than the caller has on this fleet.
fn not_above(caller: &Caller, fleet: &FleetRow, role: Role) -> Result<()> {
    if role <= caller.role_on(fleet.fleet_id) {
        return Ok(());
    }
    Err(Problem::forbidden(
        "role_insufficient",
        format!("The role {role} is more than {} has on fleet {:?}.", caller.email, fleet.slug),
    ))
}

/// Makes a person a member of a fleet, or changes what a member is; for the fleet's admins. The person is a user of the server already.
#[utoipa::path(put, path = "/fleets/{slug}/members/{email}", tag = "people", request_body = Membership,
    params(("slug" = String, Path, description = "The fleet's name."),
        ("email" = String, Path, description = "The person's address.")),
    responses((status = 200, body = Member), (status = 404, description = "`user_unknown`"),
        (status = 409, description = "`too_many_members`"), (status = 422, description = "`role_invalid`")))]
pub(crate) async fn set(
    State(app): State<App>,
    caller: Caller,
    Path((slug, email)): Path<(String, String)>,
    Json(asked): Json<Membership>,
) -> Result<Json<Member>> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    if !(Role::Viewer..=Role::Admin).contains(&asked.role) {
        return Err(Problem::invalid(
            "role_invalid",
            format!(
                "On a fleet one is viewer, operator, developer or admin; {} is a role on the whole server.",
                asked.role
            ),
        ));
    }
    not_above(&caller, &fleet, asked.role)?;
    let user = person(&app, &email).await?;
    let mut tx = app.db.write().await?;
    // Before it: what is changed may be the caller's own.
    caller.holds(&mut tx).await?;
    let others: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM members WHERE fleet_id = $1 AND user_id <> $2")
            .bind(fleet.fleet_id.to_string())
            .bind(&user.id)
            .fetch_one(&mut *tx)
            .await?;
    if others >= MAX_MEMBERS {
        return Err(Problem::conflict(
            "too_many_members",
            format!("Fleet {slug:?} has {others} members, and {MAX_MEMBERS} is the most. Remove some first."),
        ));
    }
    let created_at: i64 = sqlx::query_scalar(
        "INSERT INTO members (fleet_id, user_id, role, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (fleet_id, user_id) DO UPDATE SET role = excluded.role RETURNING created_at",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(&user.id)
    .bind(asked.role.as_str())
    .bind(app::now_i64())
    .fetch_one(&mut *tx)
    .await?;
    let detail = serde_json::json!({"user": user.email, "role": asked.role});
    audit::note(&mut tx, &caller, "member.set", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    let member = Row { email: user.email, role: asked.role.to_string(), server_role: user.role, created_at };
    Ok(Json(member.try_into()?))
}

/// Takes a member out of a fleet; for the fleet's admins, and for everyone oneself. A role on the whole server stays.
#[utoipa::path(delete, path = "/fleets/{slug}/members/{email}", tag = "people",
    params(("slug" = String, Path, description = "The fleet's name."),
        ("email" = String, Path, description = "The person's address.")),
    responses((status = 204), (status = 404, description = "`not_found`")))]
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path((slug, email)): Path<(String, String)>,
) -> Result<StatusCode> {
    let email = users::normal_email(&email)?;
    let own = email == caller.email && caller.scope == crate::auth::Scope::Full;
    let fleet = allowed(&app, &caller, &slug, if own { Act::Read } else { Act::Manage }).await?;
    let mut tx = app.db.write().await?;
    caller.holds(&mut tx).await?;
    let gone = sqlx::query(
        "DELETE FROM members WHERE fleet_id = $1 AND user_id = (SELECT id FROM users WHERE email = $2)",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(&email)
    .execute(&mut *tx)
    .await?;
    if gone.rows_affected() == 0 {
        return Err(Problem::not_found(format!("member {email} of fleet {slug:?}")));
    }
    let detail = serde_json::json!({"user": email});
    audit::note(&mut tx, &caller, "member.remove", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
