//! Which release is meant, and which devices.

use copal_protocol::{documents::Root, verify::Verified};

use super::Deploy;
use crate::{
    assignments::content::{self, Candidate, Place},
    error::{Problem, Result},
    releases::{self, Line, line::by_line},
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
    /// What of the line it falls back to.
    pub(super) committed: Option<String>,
    pinned: Option<String>,
}

/// The release a person means: by id, by version, or the newest.
pub(super) async fn release(
    tx: &mut Tx,
    root: &Verified<Root>,
    fleet: &FleetRow,
    line: Line,
    asked: &str,
) -> Result<Candidate> {
    if asked == "latest" {
        return latest(tx, root, fleet, line).await?.ok_or_else(|| {
            let how = match line {
                Line::App => "final release yet: push one",
                Line::Os => "operating system yet: `copal os release`",
                Line::Agent => "agent yet: `copal os release`",
            };
            Problem::new(
                http::StatusCode::NOT_FOUND,
                "not_found",
                format!("The fleet {} has no {how}.", fleet.slug),
            )
        });
    }
    let id: Option<String> = sqlx::query_scalar(
        "SELECT id FROM releases WHERE fleet_id = $1 AND line = $3 AND (id = $2 OR version = $2) AND status <> 'built'
         ORDER BY counter DESC LIMIT 1",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(asked.strip_prefix('v').filter(|v| v.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(asked))
    .bind(line.as_str())
    .fetch_optional(&mut **tx)
    .await?;
    let unknown = || {
        Problem::new(
            http::StatusCode::NOT_FOUND,
            "not_found",
            format!(
                "The fleet {} has no {} {:?}. Name one by id or version; `copal {} list` shows them.",
                fleet.slug,
                line.title(),
                asked.chars().take(80).collect::<String>(),
                if line == Line::App { "release" } else { "os" },
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
    line: Line,
) -> Result<Option<Candidate>> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM releases WHERE fleet_id = $1 AND line = $3 AND status = 'final' ORDER BY counter DESC LIMIT $2",
    )
    .bind(fleet.fleet_id.to_string())
    .bind(LOOK_BACK)
    .bind(line.as_str())
    .fetch_all(&mut **tx)
    .await?;
    let place = Place { arch: &fleet.arch, device_type: &fleet.device_type, floor: 0 };
    for id in ids {
        if let Some(candidate) = releases::candidate(tx, root, fleet.app_id, &id, None).await?
            && content::fits(&candidate, root, &place).is_ok()
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
    let mut found = devices(tx, fleet, deploy).await?;
    if !deploy.named() {
        found.retain(|t| t.pinned.as_deref().is_none_or(|p| p == release));
    }
    Ok(found)
}

/// The devices named, tagged and meant by a filter, else all of the fleet.
pub(super) async fn devices(tx: &mut Tx, fleet: &FleetRow, deploy: &Deploy) -> Result<Vec<Target>> {
    let sql = by_line!(
        deploy.line,
        "SELECT device_id, name, arch, device_type, ",
        "committed_release AS committed, pinned_release AS pinned"
            | "running_os AS committed, pinned_os AS pinned"
            | "running_agent AS committed, pinned_agent AS pinned",
        " FROM devices WHERE fleet_id = $1 AND state = 'accepted' ORDER BY device_id"
    );
    let all: Vec<Target> = sqlx::query_as(sql).bind(fleet.fleet_id.to_string()).fetch_all(&mut **tx).await?;
    if !deploy.named() {
        return Ok(all);
    }
    let mut wanted: std::collections::BTreeSet<String> =
        deploy.devices.iter().map(ToString::to_string).collect();
    if let Some(unknown) = wanted.iter().find(|id| all.iter().all(|t| t.device_id != **id)) {
        return Err(Problem::not_found(format!("accepted device {unknown} in the fleet {}", fleet.slug)));
    }
    if let Some(filtered) = &deploy.filtered {
        // Those that may not be given anything are left out, as everywhere.
        wanted.extend(filtered.ids.iter().cloned());
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
