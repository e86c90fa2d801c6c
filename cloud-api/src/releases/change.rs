//! What happens to a release after it was built. Its document never changes; its status and signatures do.

use std::collections::BTreeSet;

use copal_protocol::{
    documents::{Release, ReleaseMode, Role},
    envelope::{Envelope, pae},
    verify,
};
use serde_json::json;

use super::{ReleaseStatus, make::MAX_NOTE, rows};
use crate::{
    app::App,
    audit,
    auth::Caller,
    error::{Problem, Result},
    rollouts,
    store::{Tx, fleets},
};

/// The push is through: `built` becomes final, draft or awaiting_signature; a final one goes to a fleet that follows
/// the newest. Publishing again answers where it stands. Audit is the caller's part.
///
/// # Errors
/// `not_found`, or when the database fails.
pub async fn publish(app: &App, id: &str) -> Result<ReleaseStatus> {
    // A task of its own: the push it belongs to may hang up, and a final release must reach its fleet all the same.
    let (app, id) = (app.clone(), id.to_owned());
    tokio::spawn(async move { settle(&app, &id).await }).await.map_err(Problem::internal)?
}

async fn settle(app: &App, id: &str) -> Result<ReleaseStatus> {
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, id).await?;
    let status = row.status()?;
    if status != ReleaseStatus::Built {
        return Ok(status);
    }
    let status = if row.draft { ReleaseStatus::Draft } else { ready(app, &row).await? };
    set_status(&mut tx, id, status).await?;
    tx.commit().await?;
    after(app, &row, status).await?;
    Ok(status)
}

/// A draft is to deploy like any other release.
///
/// # Errors
/// `not_found`, `release_not_draft`.
pub async fn finalise(app: &App, caller: &Caller, id: &str) -> Result<ReleaseStatus> {
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, id).await?;
    match row.status()? {
        ReleaseStatus::Draft => {}
        status @ (ReleaseStatus::Final | ReleaseStatus::AwaitingSignature) => return Ok(status),
        status => {
            return Err(Problem::conflict(
                "release_not_draft",
                format!("Release {} is {}; only a draft can be made final.", row.version, status.as_str()),
            ));
        }
    }
    let status = ready(app, &row).await?;
    sqlx::query("UPDATE releases SET draft = FALSE WHERE id = $1").bind(id).execute(&mut *tx).await?;
    set_status(&mut tx, id, status).await?;
    let detail = json!({"version": row.version, "status": status});
    audit::record(&mut tx, caller, "release.finalise", &format!("release:{id}"), detail).await?;
    tx.commit().await?;
    after(app, &row, status).await?;
    Ok(status)
}

/// Takes a release back, or takes that back. What runs it goes on running it; a fleet that follows the newest goes to
/// the newest that is left.
///
/// # Errors
/// `not_found`.
pub async fn set_invalidated(
    app: &App,
    caller: &Caller,
    id: &str,
    invalidated: bool,
) -> Result<ReleaseStatus> {
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, id).await?;
    let before = row.status()?;
    let status = match (before, invalidated) {
        (ReleaseStatus::Built, _) => return Err(Problem::not_found("such release")),
        (ReleaseStatus::Invalidated, true) => return Ok(before),
        (ReleaseStatus::Invalidated, false) if row.draft => ReleaseStatus::Draft,
        (ReleaseStatus::Invalidated, false) => ready(app, &row).await?,
        (_, true) => ReleaseStatus::Invalidated,
        (_, false) => return Ok(before),
    };
    set_status(&mut tx, id, status).await?;
    let verb = if invalidated { "release.invalidate" } else { "release.validate" };
    audit::record(&mut tx, caller, verb, &format!("release:{id}"), json!({"version": row.version})).await?;
    tx.commit().await?;
    super::tell(app, row.fleet()?, id);
    rollouts::follow_latest(app, row.fleet()?).await?;
    Ok(status)
}

/// Changes what people wrote about a release.
///
/// # Errors
/// `not_found`, `note_too_long`.
pub async fn set_note(app: &App, caller: &Caller, id: &str, note: &str) -> Result<()> {
    if note.chars().count() > MAX_NOTE {
        return Err(Problem::invalid("note_too_long", format!("A note has at most {MAX_NOTE} characters.")));
    }
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, id).await?;
    sqlx::query("UPDATE releases SET note = $2 WHERE id = $1").bind(id).bind(note).execute(&mut *tx).await?;
    audit::record(&mut tx, caller, "release.note", &format!("release:{id}"), json!({"note": note})).await?;
    tx.commit().await?;
    super::tell(app, row.fleet()?, id);
    Ok(())
}

/// Adds an owner's signatures to a release. Each must be right and by a release key of the newest Root; when they
/// suffice, a release that waited for them becomes final.
///
/// # Errors
/// `not_found`, `payload_differs`, `signature_missing`, and the codes of verification.
pub async fn add_signatures(app: &App, caller: &Caller, id: &str, bytes: &[u8]) -> Result<ReleaseStatus> {
    let offered =
        Envelope::parse::<Release>(bytes).map_err(|e| Problem::invalid(e.code.as_str(), e.detail))?;
    let fleet = rows::by_id(app, id).await?.fleet()?;
    let root = fleets::latest_root(app, fleet)
        .await?
        .ok_or_else(|| Problem::conflict("root_missing", "The fleet has no Root yet."))?;

    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, id).await?;
    let mut envelope = row.envelope()?;
    if offered.payload() != envelope.payload() {
        return Err(Problem::invalid(
            "payload_differs",
            "The signed bytes are not this release's. Sign it anew: `copal release sign`.",
        ));
    }
    let mut added = BTreeSet::new();
    let message = pae(offered.payload_type(), offered.payload());
    let have = verify::signers(&root, &envelope);
    for signature in offered.signatures().iter().filter(|s| !have.contains_key(&s.keyid)) {
        let refuse = |code: &'static str, why: &str| {
            Problem::invalid(code, format!("The signature of key {} {why}.", signature.keyid))
        };
        let key = root
            .keys
            .get(&signature.keyid)
            .ok_or_else(|| refuse("E_SIG_UNKNOWN_KEY", "is by a key the fleet's Root does not list"))?;
        let listed = |role| root.roles.get(&role).is_some_and(|r| r.keyids.contains(&signature.keyid));
        if !listed(Role::Release) && !listed(Role::Builder) {
            return Err(refuse("E_SIG_WRONG_ROLE", "is by a key that may not sign releases"));
        }
        if !key.public.verifies(&message, &signature.sig) {
            return Err(refuse("E_SIG_INVALID", "is not right"));
        }
        added.insert(signature.keyid.to_string());
    }
    if offered.signatures().is_empty() {
        return Err(Problem::invalid("E_SIG_MISSING", "The envelope has no signature."));
    }
    if added.is_empty() {
        return row.status();
    }
    if verify::merge_signatures(&root, &mut envelope, &offered) != added.len() {
        return Err(Problem::invalid(
            "E_ENVELOPE",
            "The release has as many signatures as an envelope may carry.",
        ));
    }
    let bytes = envelope.to_bytes();
    // Read again as a device will: signatures have a bound too.
    let envelope =
        Envelope::parse::<Release>(&bytes).map_err(|e| Problem::invalid(e.code.as_str(), e.detail))?;
    let document = row.document()?;
    let app_id = document.app_id.ok_or_else(|| Problem::internal("an app release without an app"))?;
    let complete = rows::judge(&root, app_id, &document, &envelope).is_ok();
    let before = row.status()?;
    let status = match before {
        ReleaseStatus::AwaitingSignature if complete => ReleaseStatus::Final,
        other => other,
    };
    sqlx::query("UPDATE releases SET envelope = $2, status = $3 WHERE id = $1")
        .bind(id)
        .bind(&bytes)
        .bind(status.as_str())
        .execute(&mut *tx)
        .await?;
    let detail = json!({"version": row.version, "keys": added, "status": status});
    audit::record(&mut tx, caller, "release.sign", &format!("release:{id}"), detail).await?;
    tx.commit().await?;
    super::tell(app, fleet, id);
    // Also for one that was final before a stricter Root: signed now, it may go where it could not.
    rollouts::follow_latest(app, fleet).await?;
    Ok(status)
}

/// What a release that is no draft is: final where the signatures it has suffice, else waiting for the owner's.
async fn ready(app: &App, row: &rows::ReleaseRow) -> Result<ReleaseStatus> {
    let root = fleets::latest_root(app, row.fleet()?).await?;
    let Some(root) = root else { return Ok(ReleaseStatus::AwaitingSignature) };
    if root.policy.release_mode == ReleaseMode::Builder {
        return Ok(ReleaseStatus::Final);
    }
    let document = row.document()?;
    let app_id = document.app_id.ok_or_else(|| Problem::internal("an app release without an app"))?;
    let complete = rows::judge(&root, app_id, &document, &row.envelope()?).is_ok();
    Ok(if complete { ReleaseStatus::Final } else { ReleaseStatus::AwaitingSignature })
}

async fn set_status(tx: &mut Tx, id: &str, status: ReleaseStatus) -> Result<()> {
    sqlx::query("UPDATE releases SET status = $2 WHERE id = $1")
        .bind(id)
        .bind(status.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn after(app: &App, row: &rows::ReleaseRow, status: ReleaseStatus) -> Result<()> {
    let fleet = row.fleet()?;
    super::tell(app, fleet, &row.id);
    if status == ReleaseStatus::Final {
        rollouts::follow_latest(app, fleet).await?;
    }
    Ok(())
}
