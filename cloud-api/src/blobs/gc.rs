//! Garbage collection: removes what no release, tag, manifest or upload of the last day can reach.
//!
//! 0. Uploads that nobody continues are forgotten (`uploads/`), recordings that are too old removed (`terminal/`).
//! 1. Manifests: kept when a release names them, a tag points at them, they are younger than the grace, a kept index
//!    lists them, or they refer (`subject`) to a kept one. The others' rows go.
//! 2. Links: a repository forgets blobs that none of its kept manifests, no release and no upload names.
//! 3. Blobs: what no repository and no release names goes, one at a time, each behind the [`super::Gate`], its
//!    conditions asked again in the same transaction that removes its row.
//! 4. Objects without a row, left by a crash between the two, go once they are older than the grace.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::ids::Digest;
use futures_util::TryStreamExt as _;
use object_store::ObjectStoreExt as _;

use super::{GRACE_S, object};
use crate::{
    app::{App, now},
    registry::Manifest,
};

/// What a collection did.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Manifests removed.
    pub manifests: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes freed.
    pub bytes: u64,
    /// Blobs that stay.
    pub kept: u64,
}

/// Removes what nothing reaches any more; safe while uploads and builds go on.
///
/// # Errors
/// When database or store do not answer; what was removed until then was garbage.
pub async fn gc(app: &App) -> anyhow::Result<GcReport> {
    crate::uploads::expire(app, now()).await?;
    crate::terminal::expire(app, now()).await?;
    collect(app, now().saturating_sub(GRACE_S)).await
}

/// As [`gc`], with everything made before `horizon` (Unix seconds) being old enough to go.
pub(crate) async fn collect(app: &App, horizon: u64) -> anyhow::Result<GcReport> {
    let horizon = horizon.cast_signed();
    let mut report = GcReport { manifests: sweep_manifests(app, horizon).await?, ..GcReport::default() };
    let candidates: Vec<(String, i64)> = sqlx::query_as(
        "SELECT digest, size FROM blobs b WHERE created_at < $1
         AND NOT EXISTS (SELECT 1 FROM repo_blobs r WHERE r.digest = b.digest)
         AND NOT EXISTS (SELECT 1 FROM release_blobs r WHERE r.digest = b.digest)",
    )
    .bind(horizon)
    .fetch_all(app.db.read())
    .await?;
    for (digest, size) in candidates {
        let _alone = app.blob_gate.0.write().await;
        let mut tx = app.db.write().await?;
        let gone = sqlx::query(
            "DELETE FROM blobs WHERE digest = $1
             AND NOT EXISTS (SELECT 1 FROM repo_blobs r WHERE r.digest = blobs.digest)
             AND NOT EXISTS (SELECT 1 FROM release_blobs r WHERE r.digest = blobs.digest)",
        )
        .bind(&digest)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        if gone == 1 {
            remove_object(app, &digest.parse()?).await?;
            report.blobs += 1;
            report.bytes += u64::try_from(size).unwrap_or(0);
        }
    }
    sweep_objects(app, horizon).await?;
    report.kept = u64::try_from(
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM blobs").fetch_one(app.db.read()).await?,
    )?;
    Ok(report)
}

async fn remove_object(app: &App, digest: &Digest) -> object_store::Result<()> {
    match app.blobs.delete(&object(digest)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Repository, digest, media type, subject, body, whether it stays by itself.
type Row = (String, String, String, Option<String>, Vec<u8>, bool);

/// A manifest, as far as reachability is concerned.
struct Node {
    repo: String,
    digest: String,
    rooted: bool,
    subject: Option<String>,
    children: Vec<String>,
    blobs: Vec<String>,
}

/// Removes unreachable manifests and the links of blobs that only they named.
async fn sweep_manifests(app: &App, horizon: i64) -> anyhow::Result<u64> {
    // The whole sweep is one write: what it saw is what it removes. Rows are small and it holds no blob bytes.
    let mut tx = app.db.write().await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT m.repo, m.digest, m.media_type, m.subject, m.body,
            m.created_at >= $1
            OR EXISTS (SELECT 1 FROM image_tags t WHERE t.repo = m.repo AND t.digest = m.digest)
            OR EXISTS (SELECT 1 FROM release_blobs r WHERE r.digest = m.digest)
         FROM manifests m",
    )
    .bind(horizon)
    .fetch_all(&mut *tx)
    .await?;
    let nodes: Vec<Node> = rows
        .into_iter()
        .map(|(repo, digest, media_type, subject, body, rooted)| {
            let manifest = Manifest::parse(&media_type, &body).ok();
            let (children, blobs) = manifest.map_or_else(Default::default, |m| {
                (
                    m.manifests.iter().map(ToString::to_string).collect(),
                    m.blobs.iter().map(|(d, _)| d.to_string()).collect(),
                )
            });
            Node { repo, digest, rooted, subject, children, blobs }
        })
        .collect();
    let keep = reachable(&nodes);
    let mut named: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut removed = 0;
    for (node, keep) in nodes.iter().zip(&keep) {
        if *keep {
            named.extend(node.blobs.iter().map(|b| (node.repo.as_str(), b.as_str())));
        } else {
            sqlx::query("DELETE FROM manifests WHERE repo = $1 AND digest = $2")
                .bind(&node.repo)
                .bind(&node.digest)
                .execute(&mut *tx)
                .await?;
            removed += 1;
        }
    }
    let links: Vec<(String, String)> = sqlx::query_as(
        "SELECT repo, digest FROM repo_blobs r WHERE created_at < $1
         AND NOT EXISTS (SELECT 1 FROM release_blobs b WHERE b.digest = r.digest)
         AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.digest = r.digest AND '@' || u.fleet_id = r.repo)",
    )
    .bind(horizon)
    .fetch_all(&mut *tx)
    .await?;
    for (repo, digest) in links {
        if !named.contains(&(repo.as_str(), digest.as_str())) {
            sqlx::query("DELETE FROM repo_blobs WHERE repo = $1 AND digest = $2")
                .bind(&repo)
                .bind(&digest)
                .execute(&mut *tx)
                .await?;
        }
    }
    tx.commit().await?;
    Ok(removed)
}

/// Which manifests stay: the rooted ones, what they list, and what refers to them, until nothing more is added.
fn reachable(nodes: &[Node]) -> Vec<bool> {
    let index: BTreeMap<(&str, &str), usize> =
        nodes.iter().enumerate().map(|(i, n)| ((n.repo.as_str(), n.digest.as_str()), i)).collect();
    let mut referrers: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        if let Some(subject) = &node.subject {
            referrers.entry((&node.repo, subject)).or_default().push(i);
        }
    }
    let mut keep = vec![false; nodes.len()];
    let mut queue: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].rooted).collect();
    while let Some(i) = queue.pop() {
        if std::mem::replace(&mut keep[i], true) {
            continue;
        }
        let node = &nodes[i];
        queue.extend(node.children.iter().filter_map(|c| index.get(&(node.repo.as_str(), c.as_str()))));
        queue.extend(referrers.get(&(node.repo.as_str(), node.digest.as_str())).into_iter().flatten());
    }
    keep
}

/// Removes objects that have no row, once they are old enough not to be an upload about to get one.
async fn sweep_objects(app: &App, horizon: i64) -> anyhow::Result<()> {
    let mut objects = app.blobs.list(None);
    while let Some(meta) = objects.try_next().await? {
        let Some(digest) =
            meta.location.filename().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok())
        else {
            continue;
        };
        if meta.last_modified.timestamp() >= horizon {
            continue;
        }
        let _alone = app.blob_gate.0.write().await;
        if super::size(app, &digest).await?.is_none() {
            remove_object(app, &digest).await?;
        }
    }
    Ok(())
}

/// For tests: everything that exists is old.
#[cfg(test)]
pub(crate) async fn collect_all(app: &App) -> GcReport {
    collect(app, now() + 10).await.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blobs::{self, Spool},
        registry::testing::{app, image},
    };

    async fn blob(app: &App, repo: &str, bytes: &[u8]) -> Digest {
        blobs::store_bytes(app, repo, bytes).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_release_names_stays_and_what_nothing_names_goes() {
        let (_dir, app) = app().await;
        let (kept_manifest, kept) = image(&app, "demo/web", b"kept", None).await;
        let (_, gone) = image(&app, "demo/web", b"gone", None).await;
        let loose = blob(&app, "demo/web", b"loose").await;
        let mut tx = app.db.write().await.unwrap();
        sqlx::query("INSERT INTO fleets (fleet_id, slug, app_id, device_type, arch, created_at) VALUES ('f','demo','a','x','amd64',0)")
            .execute(&mut *tx).await.unwrap();
        sqlx::query("INSERT INTO releases (id, fleet_id, counter, version, source, branch, status, note, envelope, size, created_at) VALUES ('r','f',1,'1.0.0','','','final','',x'',0,0)")
            .execute(&mut *tx).await.unwrap();
        sqlx::query("INSERT INTO release_blobs (release_id, repo, digest, role) VALUES ('r','demo/web',$1,'manifest')")
            .bind(kept_manifest.to_string()).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let report = collect_all(&app).await;
        assert_eq!(report.manifests, 1);
        assert!(blobs::size_in(&app, "demo/web", &kept).await.unwrap().is_some());
        for digest in [gone, loose] {
            assert!(blobs::size(&app, &digest).await.unwrap().is_none());
            assert!(blobs::read(&app, &digest, None).await.is_err());
        }
        assert_eq!(collect_all(&app).await, GcReport { kept: report.kept, ..GcReport::default() });
    }

    #[tokio::test]
    async fn a_tagged_image_and_what_refers_to_it_stay() {
        let (_dir, app) = app().await;
        let (_, tagged) = image(&app, "demo/web", b"tagged", Some("v1")).await;
        assert_eq!(collect_all(&app).await.blobs, 0);
        assert!(blobs::size(&app, &tagged).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_is_young_stays() {
        let (_dir, app) = app().await;
        let young = blob(&app, "demo/web", b"young").await;
        assert_eq!(gc(&app).await.unwrap().blobs, 0);
        assert!(blobs::size(&app, &young).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_blob_stored_while_it_is_collected_is_there_afterwards() {
        let (_dir, app) = app().await;
        for round in 0..20_u8 {
            let bytes = [round; 100];
            let digest = blob(&app, "demo/a", &bytes).await;
            let writer = async {
                let mut spool = Spool::begin(&blobs::uploads_dir(&app), 1000).await.unwrap();
                spool.write(&bytes).await.unwrap();
                blobs::store(&app, "demo/b", spool.finish().await.unwrap(), &digest).await.unwrap();
            };
            // The link of the first storing counts as old; the collector may take the blob before the second.
            let ((), _) = tokio::join!(writer, async { collect(&app, now() + 10).await.unwrap() });
            if blobs::size(&app, &digest).await.unwrap().is_some() {
                assert!(blobs::read(&app, &digest, None).await.is_ok(), "a row without its bytes");
            }
        }
    }
}
