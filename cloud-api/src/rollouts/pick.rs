//! Which release is meant, and which devices.

use copal_protocol::{documents::Root, verify::Verified};

use super::Deploy;
use crate::{
    assignments::content::{self, Candidate, Place},
    error::{Problem, Result},
    releases,
    store::{Tx, fleets::FleetRow},
};

/// How many releases back `latest` looks for one that devices would take.
const LOOK_BACK: i64 = 100;

/// A device a release is meant for.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Target {
    pub(super) device_id: String,
    pub(super) name: String,
    pub(super) arch: String,
    pub(super) device_type: String,
    pub(super) committed_release: Option<String>,
    pinned_release: Option<String>,
}

/// The release a person means: by id, by version, or the newest.
pub(super) async fn release(
    tx: &mut Tx,
    root: &Verified<Root>,
    fleet: &FleetRow,
    asked: &str,
) -> Result<Candidate> {
    if asked == "latest" {
        return latest(tx, root, fleet).await?.ok_or_else(|| {
            Problem::new(
                http::StatusCode::NOT_FOUND,
                "not_found",
                format!("The fleet {} has no final release yet: push one.", fleet.slug),
            )
        });
    }
    let id: Option<String> = sqlx::query_scalar(
        "SELECT id FROM releases WHERE fleet_id = $1 AND (id = $2 OR version = $2) AND status <> 'built'
         ORDER BY counter DESC LIMIT 1",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(asked.strip_prefix('v').filter(|v| v.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(asked))
    .fetch_optional(&mut **tx)
    .await?;
    let unknown = || {
        Problem::new(
            http::StatusCode::NOT_FOUND,
            "not_found",
            format!(
                "The fleet {} has no release {:?}. Name one by id or version; `copal release list` shows them.",
                fleet.slug,
                asked.chars().take(80).collect::<String>()
            ),
        )
    };
    let id = id.ok_or_else(unknown)?;
    releases::candidate(tx, root, fleet.app_id, &id, None).await?.ok_or_else(unknown)
}

/// The newest final release that devices of the fleet would take.
pub(super) async fn latest(
    tx: &mut Tx,
    root: &Verified<Root>,
    fleet: &FleetRow,
) -> Result<Option<Candidate>> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM releases WHERE fleet_id = $1 AND status = 'final' ORDER BY counter DESC LIMIT $2",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(LOOK_BACK)
    .fetch_all(&mut **tx)
    .await?;
    let place = Place { arch: &fleet.arch, device_type: &fleet.device_type, floor: 0 };
    for id in ids {
        if let Some(candidate) = releases::candidate(tx, root, fleet.app_id, &id, None).await?
            && content::fits(&candidate, fleet.app_id, root, &place).is_ok()
        {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// The devices meant: those named and tagged, else those of the fleet that follow it.
pub(super) async fn targets(
    tx: &mut Tx,
    fleet: &FleetRow,
    deploy: &Deploy,
    release: &str,
) -> Result<Vec<Target>> {
    let all: Vec<Target> = sqlx::query_as(
        "SELECT device_id, name, arch, device_type, committed_release, pinned_release FROM devices
         WHERE fleet_id = $1 AND state = 'accepted' ORDER BY device_id",
    )
    .bind(fleet.fleet_id.to_string())
    .fetch_all(&mut **tx)
    .await?;
    if deploy.devices.is_empty() && deploy.tag.is_empty() {
        return Ok(all
            .into_iter()
            .filter(|t| t.pinned_release.as_deref().is_none_or(|p| p == release))
            .collect());
    }
    let mut wanted: std::collections::BTreeSet<String> =
        deploy.devices.iter().map(ToString::to_string).collect();
    if let Some(unknown) = wanted.iter().find(|id| all.iter().all(|t| t.device_id != **id)) {
        return Err(Problem::not_found(format!("accepted device {unknown} in the fleet {}", fleet.slug)));
    }
    if !deploy.tag.is_empty() {
        let tags: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT t.device_id, t.key, t.value FROM device_tags t JOIN devices d ON d.device_id = t.device_id
             WHERE d.fleet_id = $1",
        )
        .bind(fleet.fleet_id.to_string())
        .fetch_all(&mut **tx)
        .await?;
        let tags: std::collections::BTreeSet<_> = tags.into_iter().collect();
        let tagged = |id: &str| {
            deploy.tag.iter().all(|(key, value)| tags.contains(&(id.to_owned(), key.clone(), value.clone())))
        };
        wanted.extend(all.iter().filter(|t| tagged(&t.device_id)).map(|t| t.device_id.clone()));
    }
    Ok(all.into_iter().filter(|t| wanted.contains(&t.device_id)).collect())
}
