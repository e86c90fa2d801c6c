//! From an owner's signed envelope and blobs that were uploaded to a host release: an operating system or an agent.

#[cfg(test)]
mod tests;

use copal_protocol::{
    documents::{HostPayload, Release, Root},
    envelope::Envelope,
    ids::{Digest, Name, Sha256Hex},
    verify::{self, Verified},
};
use serde_json::json;

use super::{Line, ReleaseStatus, index, rows};
use crate::{
    app::{self, App},
    audit,
    auth::Caller,
    error::{Problem, Result},
    store::{
        Tx,
        fleets::{self, FleetRow},
    },
    uploads,
};

/// A blob of a release.
#[derive(Debug, Clone, Copy)]
struct Part {
    digest: Digest,
    size: u64,
    /// `index`, `data` or `agent`.
    role: &'static str,
}

/// Takes a host release whose blobs are all here. Taken again, it is the same one. Answers its id.
///
/// # Errors
/// `root_missing`, `root_expired`, `not_host`, `incompatible`, `counter_old`, `blob_missing`, `index_invalid`,
/// `index_mismatch`, and the codes of verification.
pub async fn create(app: &App, caller: &Caller, fleet: &FleetRow, bytes: &[u8]) -> Result<String> {
    let refused = |e: verify::Error| Problem::invalid(e.code.as_str(), e.detail);
    let envelope = Envelope::parse::<Release>(bytes).map_err(refused)?;
    let root = fleets::latest_root(app, fleet.fleet_id).await?.ok_or_else(|| {
        Problem::conflict("root_missing", "The fleet has no Root yet: its owner runs `copal fleet create`.")
    })?;
    verify::root_in_time(&root, app::now()).map_err(|e| {
        Problem::conflict(
            "root_expired",
            format!("{}. Devices take nothing new until the owner runs `copal root renew`.", e.detail),
        )
    })?;
    let release = judged(fleet, &root, &envelope)?;
    let line = Line::of(&release);
    fits_fleet(fleet, line, &release)?;
    let parts = parts(app, fleet, &release).await?;

    let id = envelope.payload_sha256().to_string();
    let mut tx = app.db.write().await?;
    let there: Option<String> = sqlx::query_scalar("SELECT id FROM releases WHERE id = $1 AND fleet_id = $2")
        .bind(&id)
        .bind(fleet.fleet_id.to_string())
        .fetch_optional(&mut *tx)
        .await?;
    if there.is_some() {
        return Ok(id);
    }
    newer(&mut tx, fleet, line, &release).await?;
    // Asked again within the write: what is here now cannot be collected before the release names it.
    for part in &parts {
        known(&mut tx, fleet, part).await?;
    }
    sqlx::query(
        "INSERT INTO releases (id, fleet_id, line, counter, version, source, branch, status, note, envelope, size, created_at)
         VALUES ($1, $2, $3, $4, $5, '', '', 'final', '', $6, $7, $8)",
    )
    .bind(&id)
    .bind(fleet.fleet_id.to_string())
    .bind(line.as_str())
    .bind(release.counter.cast_signed())
    .bind(release.version.to_string())
    .bind(envelope.to_bytes())
    .bind(parts.iter().map(|p| p.size).fold(0_u64, u64::saturating_add).cast_signed())
    .bind(app::now_i64())
    .execute(&mut *tx)
    .await?;
    for part in &parts {
        sqlx::query(
            "INSERT INTO release_blobs (release_id, repo, digest, role) VALUES ($1, $2, $3, $4)
             ON CONFLICT (release_id, repo, digest) DO NOTHING",
        )
        .bind(&id)
        .bind(uploads::shelf(fleet.fleet_id))
        .bind(part.digest.to_string())
        .bind(part.role)
        .execute(&mut *tx)
        .await?;
    }
    let detail = json!({"line": line, "version": release.version.to_string(), "counter": release.counter});
    audit::record(&mut tx, caller, "host_release.create", &format!("release:{id}"), detail).await?;
    tx.commit().await?;
    super::tell(app, fleet.fleet_id, &id);
    Ok(id)
}

/// Takes a host release back, with the reason, or lets it be deployed again.
pub(crate) async fn set_withdrawn(tx: &mut Tx, id: &str, reason: Option<&str>) -> Result<()> {
    let status = if reason.is_some() { ReleaseStatus::Invalidated } else { ReleaseStatus::Final };
    sqlx::query("UPDATE releases SET status = $2, note = $3 WHERE id = $1")
        .bind(id)
        .bind(status.as_str())
        .bind(reason.unwrap_or_default())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The document, as a device of the right kind would accept it.
fn judged(fleet: &FleetRow, root: &Verified<Root>, envelope: &Envelope) -> Result<Release> {
    let refused = |e: verify::Error| {
        let next = match e.code {
            verify::Code::SigMissing | verify::Code::SigThreshold => " Sign it: `copal os bundle sign`.",
            verify::Code::SigUnknownKey | verify::Code::SigWrongRole => {
                " The fleet's Root lists who may sign one: `copal root add-key host PUBLIC`."
            }
            _ => "",
        };
        Problem::invalid(
            e.code.as_str(),
            format!("Devices would refuse this host release: {}.{next}", e.detail),
        )
    };
    let release: Release = serde_json::from_slice(envelope.payload())
        .map_err(|e| Problem::invalid("E_PAYLOAD", format!("The release document cannot be read: {e}.")))?;
    if Line::of(&release) == Line::App {
        return Err(Problem::invalid(
            "not_host",
            "This is a release of an app. Those come from a push; here operating systems and agents are taken.",
        ));
    }
    rows::judge(root, fleet.app_id, &release, envelope).map_err(refused)?;
    Ok(release)
}

fn fits_fleet(fleet: &FleetRow, line: Line, release: &Release) -> Result<()> {
    let compat = &release.compat;
    let bad = |what: String| Err(Problem::invalid("incompatible", what));
    if line == Line::Os && !compat.device_types.contains(&fleet.device_type) {
        return bad(format!(
            "The release is for device types {:?}; the fleet {} has {:?}.",
            compat.device_types, fleet.slug, fleet.device_type
        ));
    }
    if !compat.arch.is_empty() && !compat.arch.contains(&fleet.arch) {
        return bad(format!(
            "The release is for architectures {:?}; the fleet {} has {:?}.",
            compat.arch, fleet.slug, fleet.arch
        ));
    }
    Ok(())
}

async fn newer(tx: &mut Tx, fleet: &FleetRow, line: Line, release: &Release) -> Result<()> {
    let newest: Option<(i64, String)> = sqlx::query_as(
        "SELECT counter, version FROM releases WHERE fleet_id = $1 AND line = $2 ORDER BY counter DESC LIMIT 1",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(line.as_str())
    .fetch_optional(&mut **tx)
    .await?;
    match newest {
        Some((counter, version)) if release.counter <= counter.unsigned_abs() => Err(Problem::conflict(
            "counter_old",
            format!(
                "The release has the counter {}, the newest here ({version}) {counter}: counters only rise. Make the bundle anew; \
                 it then counts from the time it is made.",
                release.counter
            ),
        )),
        _ => Ok(()),
    }
}

/// Every blob of a release: its agent, or the index and data of each image.
async fn parts(app: &App, fleet: &FleetRow, release: &Release) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (name, payload) in &release.payloads {
        match &payload.index {
            None => parts.push(Part { digest: digest(payload.sha256), size: payload.size, role: "agent" }),
            Some(found) => {
                let size = found.size.ok_or_else(|| {
                    Problem::invalid(
                        "E_PAYLOAD",
                        format!("The payload {name} names an index without its size."),
                    )
                })?;
                let part = Part { digest: digest(found.sha256), size, role: "index" };
                known(&mut *app.db.read().acquire().await?, fleet, &part).await?;
                parts.push(part);
                parts.extend(data(app, &part, name, payload).await?);
            }
        }
    }
    Ok(parts)
}

/// The data blob an index speaks of, where it speaks of this payload.
async fn data(app: &App, index: &Part, name: &Name, payload: &HostPayload) -> Result<Option<Part>> {
    let header = index::header(app, &index.digest, index.size).await?;
    let image = Sha256Hex::from_bytes(header.image_sha256);
    if (image, header.image_size) != (payload.sha256, payload.size) {
        return Err(Problem::invalid(
            "index_mismatch",
            format!(
                "The index of {name} is of an image {image} ({} bytes), the release names {} ({} bytes).",
                header.image_size, payload.sha256, payload.size
            ),
        ));
    }
    let digest = Digest::from_bytes(header.data_sha256);
    // An image of nothing but zeros has no data.
    Ok((header.data_size > 0).then_some(Part { digest, size: header.data_size, role: "data" }))
}

fn digest(sha256: Sha256Hex) -> Digest {
    Digest::from_bytes(*sha256.as_bytes())
}

/// Refuses where the fleet does not have a blob, whole.
async fn known(db: &mut sqlx::SqliteConnection, fleet: &FleetRow, part: &Part) -> Result<()> {
    let size: Option<i64> = sqlx::query_scalar(
        "SELECT b.size FROM blobs b JOIN repo_blobs r ON r.digest = b.digest WHERE r.repo = $1 AND b.digest = $2",
    )
    .bind(uploads::shelf(fleet.fleet_id))
    .bind(part.digest.to_string())
    .fetch_optional(db)
    .await?;
    match size {
        None => Err(Problem::conflict(
            "blob_missing",
            format!("The release's {} blob {} is not here: upload it first.", part.role, part.digest),
        )),
        Some(size) if size.unsigned_abs() != part.size => Err(Problem::invalid(
            "index_mismatch",
            format!(
                "The {} blob {} has {size} bytes, the release says {}.",
                part.role, part.digest, part.size
            ),
        )),
        Some(_) => Ok(()),
    }
}

/// The size of a blob that a host release assigned to this device names; `None` for every other.
///
/// # Errors
/// When the database fails.
pub(crate) async fn blob_for(app: &App, device: &str, digest: &Digest) -> Result<Option<u64>> {
    let size: Option<i64> = sqlx::query_scalar(
        "SELECT b.size FROM assignments a
         JOIN release_blobs r ON r.release_id = a.os_id OR r.release_id = a.agent_id
         JOIN blobs b ON b.digest = r.digest
         WHERE a.device_id = $1 AND r.digest = $2 LIMIT 1",
    )
    .bind(device)
    .bind(digest.to_string())
    .fetch_optional(app.db.read())
    .await?;
    Ok(size.map(i64::unsigned_abs))
}
