//! From what the builder made to a stored release.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{BuildRecord, Document as _, Release, ReleaseKind, ReleaseMode, Root, SPEC},
    envelope::Envelope,
    ids::Digest,
    policy,
    verify::{self, Verified},
};

use super::{NewRelease, rows};
use crate::{
    app::{self, App},
    error::{Problem, Result},
    store::{Tx, fleets},
};

/// The most characters of a note.
pub(super) const MAX_NOTE: usize = 4_000;

/// Makes the release document and stores it as `built`: policy-checked against the fleet's Root, numbered, and signed
/// by the builder where the fleet's mode allows it. Answers its id, the SHA-256 of its payload.
///
/// # Errors
/// `root_missing`, `root_expired`, `version_taken`, `release_too_large`, `release_empty`, and the codes of policy and
/// verification.
pub async fn prepare(app: &App, new: NewRelease) -> Result<String> {
    let fleet = fleets::by_id(app, new.fleet).await?;
    let root = fleets::latest_root(app, new.fleet).await?.ok_or_else(|| {
        Problem::conflict(
            "root_missing",
            format!("The fleet {} has no Root yet, so nobody says what it may run. Its owner runs `copal fleet create {}`.", fleet.slug, fleet.slug),
        )
    })?;
    let now = app::now();
    verify::root_in_time(&root, now).map_err(|e| {
        Problem::conflict(
            "root_expired",
            format!("{}. Devices take nothing new until the owner runs `copal root renew`.", e.detail),
        )
    })?;
    let refused = |e: verify::Error| Problem::invalid(e.code.as_str(), e.detail);
    let record = verify::signed_by::<BuildRecord>(&app.keys.builder.public(), new.fleet, &new.build_record)
        .map_err(refused)?;
    if new.services.is_empty() {
        return Err(Problem::invalid("release_empty", "A release has at least one service."));
    }

    let mut tx = app.db.write().await?;
    let (counter, version) = number(&mut tx, &new, now).await?;
    let release = Release {
        spec: SPEC,
        fleet_id: new.fleet,
        kind: ReleaseKind::App,
        app_id: Some(fleet.app_id),
        counter,
        version,
        commit: record.commit.clone(),
        created_at: now,
        expires: None,
        rollback_floor: 0,
        compat: new.compat,
        build_record: Some(new.build_record.payload_sha256()),
        services: new.services,
        volumes: new.volumes,
        networks: new.networks,
        payloads: BTreeMap::new(),
        data_schema: None,
        min_from: None,
        ext: None,
    };
    policy::check_release(&root.policy, &release).map_err(refused)?;
    let envelope = sign(app, &root, &release)?;
    let bytes = envelope.to_bytes();
    // An owner's signatures still have to fit.
    if bytes.len() + 4096 > Release::MAX_BYTES {
        return Err(Problem::invalid(
            "release_too_large",
            format!(
                "The release document has {} bytes; devices take {}. Split the compose file.",
                bytes.len(),
                Release::MAX_BYTES
            ),
        ));
    }
    let id = envelope.payload_sha256().to_string();
    sqlx::query(
        "INSERT INTO releases (id, fleet_id, counter, version, source, branch, status, draft, note, envelope,
            build_record, build_id, size, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'built', $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(&id)
    .bind(new.fleet.to_string())
    .bind(counter.cast_signed())
    .bind(release.version.to_string())
    .bind(&new.source)
    .bind(&new.branch)
    .bind(new.draft)
    .bind(new.note.chars().take(MAX_NOTE).collect::<String>())
    .bind(&bytes)
    .bind(new.build_record.to_bytes())
    .bind(&new.build_id)
    .bind(size(&release).cast_signed())
    .bind(now.cast_signed())
    .execute(&mut *tx)
    .await?;
    keep_blobs(&mut tx, &id, &release).await?;
    tx.commit().await?;
    Ok(id)
}

/// Counter and version of the next release.
async fn number(tx: &mut Tx, new: &NewRelease, now: u64) -> Result<(u64, semver::Version)> {
    let fleet = new.fleet.to_string();
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT counter, version FROM releases WHERE fleet_id = $1 AND line = 'app'")
            .bind(&fleet)
            .fetch_all(&mut **tx)
            .await?;
    let counter = rows.iter().map(|(counter, _)| counter.unsigned_abs() + 1).max().unwrap_or(0).max(now);
    let versions = rows.iter().filter_map(|(_, v)| v.parse::<semver::Version>().ok());
    let version = match &new.version {
        Some(version) => {
            if rows.iter().any(|(_, v)| *v == version.to_string()) {
                return Err(Problem::conflict(
                    "version_taken",
                    format!(
                        "There is a release {version} of this fleet already, and releases never change. Use another tag."
                    ),
                ));
            }
            version.clone()
        }
        None => next_version(versions.max()),
    };
    Ok((counter, version))
}

/// The patch number raised; what ended in a pre-release is finished first.
fn next_version(highest: Option<semver::Version>) -> semver::Version {
    match highest {
        None => semver::Version::new(0, 1, 0),
        Some(v) if !v.pre.is_empty() => semver::Version::new(v.major, v.minor, v.patch),
        Some(v) => semver::Version::new(v.major, v.minor, v.patch + 1),
    }
}

/// Signs where the fleet's mode lets the builder, and looks at the result as a device would.
fn sign(app: &App, root: &Verified<Root>, release: &Release) -> Result<Envelope> {
    let mode = root.policy.release_mode;
    let keys: &[_] = match mode {
        ReleaseMode::Builder | ReleaseMode::Both => &[&app.keys.builder],
        ReleaseMode::Owner => &[],
    };
    let envelope = Envelope::sign(release, keys).map_err(Problem::internal)?;
    if mode == ReleaseMode::Builder {
        let app_id = release.app_id.ok_or_else(|| Problem::internal("an app release without an app"))?;
        rows::judge(root, app_id, release, &envelope).map_err(|e| {
            Problem::invalid(
                e.code.as_str(),
                format!(
                    "Devices would refuse this release: {}. Where it is about signatures, the fleet's Root may not list this server's builder key; see `copal root show`.",
                    e.detail
                ),
            )
        })?;
    }
    Ok(envelope)
}

/// Bytes of all images, shared blobs counted once.
fn size(release: &Release) -> u64 {
    let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
    for image in release.services.values().flat_map(|s| s.images.values()) {
        blobs.insert(image.config_digest, image.config_size);
        blobs.extend(image.layers.iter().map(|l| (l.digest, l.size)));
    }
    blobs.values().fold(0, |sum, n| sum.saturating_add(*n))
}

/// What the release keeps from being collected, and what its fleet's devices may pull.
async fn keep_blobs(tx: &mut Tx, id: &str, release: &Release) -> Result<()> {
    for image in release.services.values().flat_map(|s| s.images.values()) {
        let blobs = [(image.manifest_digest, "manifest"), (image.config_digest, "config")];
        let layers = image.layers.iter().map(|l| (l.digest, "layer"));
        for (digest, role) in blobs.into_iter().chain(layers) {
            sqlx::query(
                "INSERT INTO release_blobs (release_id, repo, digest, role) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (release_id, repo, digest) DO NOTHING",
            )
            .bind(id)
            .bind(&image.repo)
            .bind(digest.to_string())
            .bind(role)
            .execute(&mut **tx)
            .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise_from_the_highest() {
        let next = |v: &str| next_version(Some(v.parse().unwrap())).to_string();
        assert_eq!(next_version(None).to_string(), "0.1.0");
        assert_eq!(next("1.2.3"), "1.2.4");
        assert_eq!(next("2.0.0-rc.1"), "2.0.0");
    }
}
