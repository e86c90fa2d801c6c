//! From a back-up file to a data folder. Nothing is put in place before every checksum was right.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use copal_protocol::ids::Sha256Hex;
use sha2::{Digest as _, Sha256};

use super::{FORMAT, MANIFEST, Manifest};
use crate::{app, config::Config, devices, store::Db};

/// The most bytes of a manifest: a million files.
const MAX_MANIFEST: u64 = 256 << 20;

/// Unpacks a back-up into a data folder that is empty or not there; gives how many files and bytes.
///
/// # Errors
/// When the folder holds anything, or the back-up is damaged or made by something newer; the folder is then as before.
pub async fn restore(data: &Path, from: &Path) -> anyhow::Result<(usize, u64)> {
    let empty = match fs::read_dir(data) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| format!("reading {}", data.display())),
    };
    ensure!(empty, "{} is not empty: restore into a new folder, then start the server on it", data.display());
    let mut beside = data.as_os_str().to_owned();
    beside.push(".restoring");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| format!("clearing {}", beside.display()))?;
    }
    let restored = unpack_and_prepare(&beside, from).await;
    let placed = restored.and_then(|done| {
        // An empty folder may stand there; renaming onto it replaces it.
        fs::rename(&beside, data)
            .with_context(|| format!("moving {} to {}", beside.display(), data.display()))
            .map(|()| done)
    });
    if placed.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    placed
}

async fn unpack_and_prepare(beside: &Path, from: &Path) -> anyhow::Result<(usize, u64)> {
    let (dir, file) = (beside.to_owned(), from.to_owned());
    let done = tokio::task::spawn_blocking(move || unpack(&dir, &file)).await.context("unpacking")??;
    let db = Db::open(&Config::local(beside.to_owned()).database()).await?;
    let mut tx = db.write().await?;
    // Devices went on after the back-up was made: by the links it knows, all of them would look like clones.
    devices::forget_links(&mut tx).await?;
    // Whoever was signed in then may have been thrown out since.
    sqlx::query("DELETE FROM sessions").execute(&mut *tx).await?;
    let source = from.display().to_string();
    crate::audit::record_as(
        &mut tx,
        "system",
        "local",
        "server.restore",
        "server",
        serde_json::json!({"from": source}),
    )
    .await?;
    sqlx::query("INSERT INTO meta (key, value) VALUES ('restored_at', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(app::now_i64().to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    db.close().await;
    Ok(done)
}

fn unpack(dir: &Path, from: &Path) -> anyhow::Result<(usize, u64)> {
    let folder = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    folder(dir).with_context(|| format!("making {}", dir.display()))?;
    let file = fs::File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let damaged = || format!("{} is not a whole back-up", from.display());
    let mut found: HashMap<String, (u64, Sha256Hex)> = HashMap::new();
    let mut manifest: Option<Manifest> = None;
    for entry in tar::Archive::new(io::BufReader::new(file)).entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        ensure!(manifest.is_none(), "{}: something follows its manifest", damaged());
        ensure!(
            entry.header().entry_type() == tar::EntryType::Regular,
            "{}: it holds a link or device",
            damaged()
        );
        let path = entry.path().with_context(damaged)?.into_owned();
        let text = path.to_str().with_context(damaged)?.to_owned();
        if text == MANIFEST {
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_MANIFEST).read_to_end(&mut bytes).with_context(damaged)?;
            manifest = Some(serde_json::from_slice(&bytes).with_context(damaged)?);
            continue;
        }
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        ensure!(plain && !found.contains_key(&text), "{}: {text:?} is no path of ours", damaged());
        let to = dir.join(&path);
        if let Some(parent) = to.parent() {
            folder(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let mode = entry.header().mode().with_context(damaged)? & 0o777;
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode | 0o600)
            .open(&to)
            .with_context(|| format!("writing {}", to.display()))?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = entry.read(&mut buffer).with_context(damaged)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            out.write_all(&buffer[..n]).with_context(|| format!("writing {}", to.display()))?;
            size += n as u64;
        }
        out.sync_all().with_context(|| format!("writing {}", to.display()))?;
        found.insert(text, (size, Sha256Hex::from_bytes(hash.finalize().into())));
    }
    let Some(manifest) = manifest else { bail!("{}: it ends before its manifest", damaged()) };
    ensure!(
        manifest.format == FORMAT,
        "{} is of format {}, made by copal-cloud {}; this version reads format {FORMAT}",
        from.display(),
        manifest.format,
        manifest.server
    );
    ensure!(
        manifest.files.len() == found.len(),
        "{}: it holds other files than its manifest says",
        damaged()
    );
    for file in &manifest.files {
        ensure!(
            found.get(&file.path) == Some(&(file.size, file.sha256)),
            "{}: {} is missing or changed",
            damaged(),
            file.path
        );
    }
    Ok((found.len(), manifest.files.iter().map(|f| f.size).sum()))
}
