//! From a data folder to a back-up file.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use copal_protocol::ids::Sha256Hex;
use sha2::{Digest as _, Sha256};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use super::{FORMAT, File, MANIFEST, Manifest};
use crate::{app, config::Config};

/// How often it is begun anew when something is removed under its hands (a fleet deleted, its blobs collected).
const TRIES: u32 = 3;

/// Writes a back-up of a data folder; gives how many files and bytes it holds.
///
/// # Errors
/// When the folder is not one, a file cannot be read, or `out` exists or cannot be written. Nothing is left at `out`.
pub async fn backup(data: &Path, out: &Path) -> anyhow::Result<(usize, u64)> {
    let config = Config::local(data.to_owned());
    if !config.database().exists() {
        bail!(
            "{} holds no database ({}): name the data folder of a server",
            data.display(),
            config.database().display()
        );
    }
    if out.exists() {
        bail!("{} exists already; a back-up never overwrites one", out.display());
    }
    let partial = with_suffix(out, ".partial");
    for attempt in 1.. {
        let _ = fs::remove_file(&partial);
        let snapshot = with_suffix(out, ".db");
        let _ = fs::remove_file(&snapshot);
        let written = once(&config, &partial, &snapshot).await;
        let _ = fs::remove_file(&snapshot);
        match written {
            Ok(done) => {
                fs::rename(&partial, out).with_context(|| format!("naming {}", out.display()))?;
                if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
                    fs::File::open(parent).and_then(|dir| dir.sync_all()).context("syncing the folder")?;
                }
                return Ok(done);
            }
            Err(error) => {
                let _ = fs::remove_file(&partial);
                let vanished =
                    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound);
                if !vanished || attempt >= TRIES {
                    return Err(error);
                }
                tracing::info!(error = %format!("{error:#}"), "something was removed meanwhile; beginning anew");
            }
        }
    }
    unreachable!("the loop returns")
}

async fn once(config: &Config, partial: &Path, snapshot: &Path) -> anyhow::Result<(usize, u64)> {
    private(snapshot)?;
    let mut db = SqliteConnectOptions::new()
        .filename(config.database())
        .busy_timeout(std::time::Duration::from_secs(30))
        .connect()
        .await
        .with_context(|| format!("opening {}", config.database().display()))?;
    sqlx::query("VACUUM INTO $1")
        .bind(snapshot.display().to_string())
        .execute(&mut db)
        .await
        .context("copying the database")?;
    db.close().await?;
    let mut copy = SqliteConnectOptions::new().filename(snapshot).read_only(true).connect().await?;
    let blobs: BTreeSet<String> =
        sqlx::query_scalar("SELECT digest FROM blobs").fetch_all(&mut copy).await?.into_iter().collect();
    let recordings = crate::terminal::recordings_of(&mut copy).await?;
    copy.close().await?;

    let (config, partial, snapshot) = (config.clone(), partial.to_owned(), snapshot.to_owned());
    tokio::task::spawn_blocking(move || pack(&config, &partial, &snapshot, &blobs, &recordings))
        .await
        .context("packing")?
}

fn pack(
    config: &Config,
    partial: &Path,
    snapshot: &Path,
    blobs: &BTreeSet<String>,
    recordings: &[String],
) -> anyhow::Result<(usize, u64)> {
    let file = private(partial)?;
    let mut tar = Packer { tar: tar::Builder::new(io::BufWriter::new(file)), files: Vec::new() };
    tar.add("copal.db", snapshot)?;
    tar.folder("keys", &config.keys())?;
    tar.folder("tls", &config.tls_dir())?;
    for digest in blobs {
        let hex =
            digest.strip_prefix("sha256:").filter(|h| h.len() == 64).context("a digest in the database")?;
        let path = format!("sha256/{}/{hex}", &hex[..2]);
        tar.add(&format!("blobs/{path}"), &config.blobs().join(&path))?;
    }
    for id in recordings {
        let file = crate::terminal::recording_path(config, id);
        tar.add(&format!("recordings/{id}.cast"), &file)?;
    }
    for repository in sorted(&config.git())? {
        let name = format!("git/{}", name(&repository)?);
        if !repository.is_dir() {
            continue;
        }
        // What points first, what it points to after: objects are only ever added.
        let entries = sorted(&repository)?;
        let (objects, rest): (Vec<_>, Vec<_>) = entries.into_iter().partition(|p| p.ends_with("objects"));
        for entry in rest.into_iter().chain(objects) {
            let path = format!("{name}/{}", self::name(&entry)?);
            if entry.is_dir() { tar.folder(&path, &entry)? } else { tar.add(&path, &entry)? }
        }
    }
    tar.finish()
}

struct Packer {
    tar: tar::Builder<io::BufWriter<fs::File>>,
    files: Vec<File>,
}

impl Packer {
    /// Adds every file below a folder; one that is not there is empty. Symbolic links are left out.
    fn folder(&mut self, name: &str, dir: &Path) -> anyhow::Result<()> {
        for entry in sorted(dir)? {
            let path = format!("{name}/{}", self::name(&entry)?);
            let kind = fs::symlink_metadata(&entry).with_context(|| entry.display().to_string())?;
            if kind.is_dir() {
                self.folder(&path, &entry)?;
            } else if kind.is_file() && !passing(&path) {
                self.add(&path, &entry)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        let what = || format!("reading {}", from.display());
        let file = fs::File::open(from).with_context(what)?;
        let meta = file.metadata().with_context(what)?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        header.set_mode(meta.mode() & 0o777);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        let mut reader = Hashing { from: file.take(meta.len()), hash: Sha256::new(), read: 0 };
        self.tar.append_data(&mut header, path, &mut reader).with_context(what)?;
        if reader.read != meta.len() {
            bail!("{} became shorter while it was read", from.display());
        }
        self.files.push(File {
            path: path.to_owned(),
            size: meta.len(),
            sha256: Sha256Hex::from_bytes(reader.hash.finalize().into()),
            mode: meta.permissions().mode() & 0o777,
        });
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<(usize, u64)> {
        let count = self.files.len();
        let bytes = self.files.iter().map(|f| f.size).sum();
        let manifest = Manifest {
            format: FORMAT,
            server: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: app::now(),
            files: self.files,
        };
        let text = serde_json::to_vec_pretty(&manifest)?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        self.tar.append_data(&mut header, MANIFEST, text.as_slice())?;
        let mut out = self.tar.into_inner()?;
        out.flush()?;
        out.into_inner().map_err(|e| anyhow::anyhow!("writing the back-up: {}", e.error()))?.sync_all()?;
        Ok((count, bytes))
    }
}

struct Hashing {
    from: io::Take<fs::File>,
    hash: Sha256,
    read: u64,
}

impl io::Read for Hashing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.hash.update(&buf[..n]);
        self.read += n as u64;
        Ok(n)
    }
}

/// Half-written files of git and of ourselves.
fn passing(path: &str) -> bool {
    path.ends_with(".lock")
        || path.ends_with(".new")
        || path.contains("/tmp_")
        || path.contains("/incoming-")
        || path.contains("/quarantine")
}

fn sorted(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("reading the folder {}", dir.display()))?,
    };
    let mut paths: Vec<_> = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .with_context(|| dir.display().to_string())?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> anyhow::Result<&str> {
    path.file_name().and_then(|n| n.to_str()).with_context(|| format!("{} has no plain name", path.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// An empty file that only we may read: a back-up holds keys.
fn private(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("making {}", path.display()))
}
