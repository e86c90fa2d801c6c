//! A fleet's chain of roots: the owner signs and uploads them, the server checks, keeps and shows them.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use copal_protocol::{
    documents::{Document as _, ReleaseMode, Role as KeyRole, Root},
    envelope::Envelope,
    keys::PublicKey,
    verify::{self, Verified},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Json, Path, Raw, fleets::allowed};
use crate::{
    app::{self, App},
    audit,
    auth::{Act, Caller},
    bus::Event,
    error::{Problem, Result},
    rollouts,
    store::fleets,
};

/// Routes of roots.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(upload)).routes(routes!(show))
}

/// What was taken.
#[derive(Debug, Serialize, ToSchema)]
pub struct Uploaded {
    /// The version of the root uploaded.
    pub version: u64,
}

/// Takes the next root of a fleet (an envelope). The first pins the owner's root keys; each later one must be signed by
/// the keys of the one before. The same root again is no error. A server restored from a back-up takes the roots it
/// has lost again, one after the other.
#[utoipa::path(put, path = "/fleets/{slug}/root", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet.")),
    request_body(content = Object, description = "A Root envelope, at most 64 KiB.", content_type = "application/json"),
    responses((status = 200, body = Uploaded),
        (status = 409, description = "`root_exists`: another root has this version; `root_gap`: upload those between first"),
        (status = 422, description = "An `E_…` code of docs/protocol.md, or `root_keys`")))]
pub(crate) async fn upload(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    Raw(bytes): Raw,
) -> Result<Json<Uploaded>> {
    let fleet = allowed(&app, &caller, &slug, Act::Manage).await?;
    let envelope = Envelope::parse::<Root>(&bytes).map_err(|e| refused(&e))?;
    let current = fleets::latest_root(&app, fleet.fleet_id).await?;
    let root = match &current {
        None => first(&envelope, &fleet)?,
        Some(current) => match known(&app, &fleet, current, &envelope).await? {
            Known::Same(version) => return Ok(Json(Uploaded { version })),
            Known::Next(root) => *root,
        },
    };
    names_our_keys(&app, &root)?;

    let version = i64::try_from(root.version).map_err(Problem::internal)?;
    let mut tx = app.db.write().await?;
    let made = sqlx::query(
        "INSERT INTO roots (fleet_id, version, sha256, envelope, uploaded_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (fleet_id, version) DO NOTHING",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(version)
    .bind(root.sha256().to_string())
    .bind(envelope.to_bytes())
    .bind(app::now_i64())
    .execute(&mut *tx)
    .await?;
    if made.rows_affected() == 0 {
        return Err(exists(root.version));
    }
    sqlx::query("UPDATE fleets SET root_version = $1, release_mode = $2 WHERE fleet_id = $3")
        .bind(version)
        .bind(fleets::mode_word(root.policy.release_mode))
        .bind(fleet.fleet_id.to_string())
        .execute(&mut *tx)
        .await?;
    let detail = serde_json::json!({"version": root.version, "sha256": root.sha256().to_string()});
    audit::record(&mut tx, &caller, "root.upload", &format!("fleet:{slug}"), detail).await?;
    tx.commit().await?;
    let version = root.version;
    app.roots.put(fleet.fleet_id, Arc::new(root));
    // The Root stands, whatever becomes of this: assignments are looked at again at each start and each change.
    if let Err(problem) = rollouts::follow_latest(&app, fleet.fleet_id).await {
        tracing::error!(%problem, fleet = slug, "bringing assignments up to date after a new Root");
    }
    app.devices.stir(fleet.fleet_id);
    app.bus.publish(Event::Fleet { fleet_id: fleet.fleet_id.to_string(), id: slug });
    Ok(Json(Uploaded { version }))
}

/// Shows a root's envelope.
#[utoipa::path(get, path = "/fleets/{slug}/roots/{version}", tag = "fleets",
    params(("slug" = String, Path, description = "The fleet."),
        ("version" = String, Path, description = "A version, or `latest`.")),
    responses((status = 200, description = "The envelope.", content_type = "application/json", body = Object),
        (status = 404, description = "`not_found`, `root_unknown`")))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((slug, version)): Path<(String, String)>,
) -> Result<Response> {
    let fleet = allowed(&app, &caller, &slug, Act::Read).await?;
    let version = if version == "latest" { Some(fleet.root_version) } else { version.parse().ok() };
    let bytes = match version {
        Some(version) => fleets::root_envelope(&app, fleet.fleet_id, version).await?,
        None => None,
    };
    let bytes = bytes.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "root_unknown",
            format!("The fleet {slug:?} has no such root (yet)."),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

enum Known {
    /// This very root is here already.
    Same(u64),
    /// It follows the newest.
    Next(Box<Verified<Root>>),
}

fn first(envelope: &Envelope, fleet: &fleets::FleetRow) -> Result<Verified<Root>> {
    let root = verify::first_root(envelope, fleet.fleet_id).map_err(|e| refused(&e))?;
    if root.version != 1 {
        return Err(Problem::conflict(
            "root_gap",
            format!(
                "This is root {}, and the server has none: upload the chain from root 1 on.",
                root.version
            ),
        ));
    }
    Ok(root)
}

async fn known(
    app: &App,
    fleet: &fleets::FleetRow,
    current: &Verified<Root>,
    envelope: &Envelope,
) -> Result<Known> {
    // What it claims decides only which refusal is the helpful one.
    let claimed: Option<Root> =
        copal_protocol::json::from_slice(envelope.payload(), copal_protocol::json::PAYLOAD_DEPTH).ok();
    if let Some(claimed) = claimed.filter(|c| c.fleet_id() == fleet.fleet_id) {
        if claimed.version <= current.version {
            let stored = fleets::root_envelope(app, fleet.fleet_id, claimed.version).await?;
            let same = stored
                .and_then(|bytes| Envelope::parse::<Root>(&bytes).ok())
                .is_some_and(|stored| stored.payload() == envelope.payload());
            return if same { Ok(Known::Same(claimed.version)) } else { Err(exists(claimed.version)) };
        }
        if claimed.version > current.version + 1 {
            return Err(Problem::conflict(
                "root_gap",
                format!(
                    "This is root {}, and the newest here is {}: upload root {} first.",
                    claimed.version,
                    current.version,
                    current.version + 1
                ),
            ));
        }
    }
    let root = verify::next_root(current, envelope).map_err(|e| refused(&e))?;
    Ok(Known::Next(Box::new(root)))
}

fn exists(version: u64) -> Problem {
    Problem::conflict(
        "root_exists",
        format!(
            "The server has another root {version}. Take the newest with `copal root show` and make the next one."
        ),
    )
}

fn refused(error: &verify::Error) -> Problem {
    Problem::invalid(error.code.as_str(), format!("The root is refused: {}", error.detail))
}

/// A root that does not list this server's keys would make every document it signs worthless to the devices.
fn names_our_keys(app: &App, root: &Root) -> Result<()> {
    let lists = |role: KeyRole, key: &PublicKey| {
        root.roles.get(&role).is_some_and(|r| r.threshold == 1 && r.keyids.contains(&key.id()))
    };
    let missing = |role: KeyRole, key: &PublicKey| {
        Problem::invalid(
            "root_keys",
            format!(
                "The root must list this server's {} key {} (id {}) in the role {}, with threshold 1.",
                role.as_str(),
                key,
                key.id(),
                role.as_str()
            ),
        )
    };
    let assign = app.keys.assign.public();
    if !lists(KeyRole::Assign, &assign) {
        return Err(missing(KeyRole::Assign, &assign));
    }
    // In every mode: in owner mode, too, build records are signed by it.
    let builder = app.keys.builder.public();
    if !lists(KeyRole::Builder, &builder) && root.policy.release_mode != ReleaseMode::Owner {
        return Err(missing(KeyRole::Builder, &builder));
    }
    Ok(())
}
