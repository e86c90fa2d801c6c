//! An image of the engine into the registry, byte for byte where it matters: the config is stored as it is (but for
//! the architecture of an image built from nothing), so that the image's id stays the config's digest; each layer's tar must have the `diff_id` the config promises. Layers are
//! compressed here, once for each `diff_id`, in a way that gives equal bytes for equal tars.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use copal_protocol::{
    documents::{ImageRef, Layer},
    ids::Digest,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::BuildError;
use crate::{
    app::App,
    blobs::{self, Gathered},
    registry::{MANIFEST_TYPE, put_manifest},
};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The largest config taken.
const MAX_CONFIG: u64 = 4 << 20;

/// The most layers an image may have; the engine itself allows 127.
const MAX_LAYERS: usize = 256;

/// An image in the registry, and how much of it was new there.
pub(super) struct Stored {
    pub(super) image: ImageRef,
    pub(super) new_layers: usize,
    pub(super) new_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    architecture: String,
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// What `docker save` wrote: where each file of it begins.
struct Saved {
    file: PathBuf,
    entries: BTreeMap<PathBuf, (u64, u64)>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Saved {
    fn open(path: &Path) -> io::Result<Self> {
        let mut archive = tar::Archive::new(io::BufReader::new(File::open(path)?));
        let mut saved = Self { file: path.to_owned(), entries: BTreeMap::new(), links: BTreeMap::new() };
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = entry.path()?.into_owned();
            if entry.header().entry_type().is_symlink() {
                // Layers that occur twice are links to the first: `../<id>/layer.tar`.
                let to = entry.link_name()?.map(std::borrow::Cow::into_owned).unwrap_or_default();
                let base = name.parent().unwrap_or(Path::new("")).join(to);
                saved.links.insert(name, lexical(&base));
            } else {
                saved.entries.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(saved)
    }

    fn entry(&self, name: &str) -> io::Result<(io::Take<File>, u64)> {
        let mut name = lexical(Path::new(name));
        if let Some(to) = self.links.get(&name) {
            name.clone_from(to);
        }
        let (at, size) = *self
            .entries
            .get(&name)
            .ok_or_else(|| io::Error::other(format!("the exported image has no {}", name.display())))?;
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(at))?;
        Ok((file.take(size), size))
    }

    fn small(&self, name: &str) -> io::Result<Vec<u8>> {
        let (mut reader, size) = self.entry(name)?;
        if size > MAX_CONFIG {
            return Err(io::Error::other(format!("{name} of the exported image has {size} bytes")));
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// Brings an exported image into a repository. `from_nothing`: no base image gave it an architecture.
pub(super) async fn store(
    app: &App,
    repo: &str,
    exported: &Path,
    id: &Digest,
    arch: &str,
    from_nothing: bool,
) -> Result<Stored, BuildError> {
    let path = exported.to_owned();
    let (saved, mut config_bytes, config, layers) = blocking(move || {
        let saved = Saved::open(&path)?;
        let manifest: Vec<SavedImage> = serde_json::from_slice(&saved.small("manifest.json")?)?;
        let image =
            manifest.into_iter().next().ok_or_else(|| io::Error::other("the export holds no image"))?;
        let config_bytes = saved.small(&image.config)?;
        let config: Config = serde_json::from_slice(&config_bytes)?;
        Ok((saved, config_bytes, config, image.layers))
    })
    .await?;
    if Digest::of(&config_bytes) != *id {
        return Err(BuildError::internal(format!("the exported config is not {id}")));
    }
    if from_nothing && config.architecture != arch {
        config_bytes = said_to_be(&config_bytes, arch).map_err(BuildError::internal)?;
    } else if config.os != "linux" || config.architecture != arch {
        return Err(BuildError::new(format!(
            "the image is for {}/{}, the fleet's devices are linux/{arch}; use a base image that exists for linux/{arch}",
            config.os, config.architecture
        )));
    }
    if config.rootfs.diff_ids.len() != layers.len() || layers.len() > MAX_LAYERS {
        return Err(BuildError::internal("the exported image's layers do not match its config"));
    }
    let saved = std::sync::Arc::new(saved);
    let mut stored = Vec::new();
    let (mut new_layers, mut new_bytes) = (0, 0);
    for (name, diff_id) in layers.into_iter().zip(config.rootfs.diff_ids) {
        let known = known(app, repo, &diff_id).await.map_err(BuildError::internal)?;
        let (digest, size) = if let Some(layer) = known {
            layer
        } else {
            let (saved, dir) = (saved.clone(), blobs::uploads_dir(app));
            let (gathered, got) = blocking(move || compress(saved.entry(&name)?.0, &dir)).await?;
            if got != diff_id {
                return Err(BuildError::internal(format!(
                    "the exported layer is {got}, the config says {diff_id}"
                )));
            }
            let (digest, size) = (gathered.digest, gathered.size);
            blobs::store(app, repo, gathered, &digest).await.map_err(BuildError::internal)?;
            remember(app, &diff_id, &digest, size).await.map_err(BuildError::internal)?;
            new_layers += 1;
            new_bytes += size;
            (digest, size)
        };
        stored.push(Layer { digest, size, media_type: LAYER_TYPE.to_owned(), diff_id });
    }
    let config_digest = blobs::store_bytes(app, repo, &config_bytes).await.map_err(BuildError::internal)?;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": config_digest, "size": config_bytes.len() },
        "layers": stored.iter().map(|l| serde_json::json!({
            "mediaType": l.media_type, "digest": l.digest, "size": l.size,
        })).collect::<Vec<_>>(),
    });
    let (manifest_digest, _) = put_manifest(app, repo, None, MANIFEST_TYPE, manifest.to_string().as_bytes())
        .await
        .map_err(BuildError::internal)?;
    let config_size = config_bytes.len() as u64;
    let size = config_size + stored.iter().map(|l| l.size).sum::<u64>();
    let image =
        ImageRef { repo: repo.to_owned(), manifest_digest, config_digest, config_size, size, layers: stored };
    Ok(Stored { image, new_layers, new_bytes })
}

/// The config of an image that was built from nothing, for the architecture of what was copied into it; the builder
/// puts in its own.
fn said_to_be(config: &[u8], arch: &str) -> serde_json::Result<Vec<u8>> {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(config)?;
    config.insert("architecture".to_owned(), arch.into());
    config.remove("variant");
    serde_json::to_vec(&config)
}

/// The blob a layer is already stored as, linked into this repository.
async fn known(app: &App, repo: &str, diff_id: &Digest) -> anyhow::Result<Option<(Digest, u64)>> {
    let row: Option<(String, i64)> = sqlx::query_as("SELECT digest, size FROM layers WHERE diff_id = $1")
        .bind(diff_id.to_string())
        .fetch_optional(app.db.read())
        .await?;
    let Some((digest, size)) = row else { return Ok(None) };
    let digest: Digest = digest.parse()?;
    let there = blobs::link(app, repo, &digest).await?;
    Ok(there.then_some((digest, u64::try_from(size)?)))
}

async fn remember(app: &App, diff_id: &Digest, digest: &Digest, size: u64) -> sqlx::Result<()> {
    let mut tx = app.db.write().await?;
    sqlx::query(
        "INSERT INTO layers (diff_id, digest, size) VALUES ($1, $2, $3)
         ON CONFLICT (diff_id) DO UPDATE SET digest = excluded.digest, size = excluded.size",
    )
    .bind(diff_id.to_string())
    .bind(digest.to_string())
    .bind(size.cast_signed())
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?.map_err(BuildError::internal)
}

/// Writes bytes on and hashes them.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Compresses a layer's tar (unpacking it first where the engine keeps it compressed); answers the blob and the
/// digest of the tar.
fn compress(mut tar: impl Read, dir: &Path) -> io::Result<(Gathered, Digest)> {
    let mut magic = [0; 2];
    let have = io::Read::read(&mut tar, &mut magic)?;
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(tar);
    let mut tar: Box<dyn Read> = if magic == [0x1f, 0x8b] {
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else {
        Box::new(whole)
    };
    let temp = blobs::TempFile::make(dir)?;
    let file = io::BufWriter::with_capacity(256 << 10, File::create(temp.path())?);
    let out = Hashing { inner: file, hasher: Sha256::new(), size: 0 };
    // No name and no time in the header: equal tars give equal blobs.
    let gzip = flate2::GzBuilder::new().mtime(0).write(out, flate2::Compression::new(6));
    let mut zipped = Hashing { inner: gzip, hasher: Sha256::new(), size: 0 };
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = tar.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        zipped.write_all(&buffer[..n])?;
    }
    let diff_id: [u8; 32] = zipped.hasher.finalize().into();
    let mut out = zipped.inner.finish()?;
    out.flush()?;
    out.inner.get_ref().sync_data()?;
    let digest: [u8; 32] = out.hasher.finalize().into();
    Ok((
        Gathered { file: temp, digest: Digest::from_bytes(digest), size: out.size },
        Digest::from_bytes(diff_id),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_layers_become_equal_blobs_whether_the_engine_keeps_them_compressed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let tar: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(&tar).unwrap();
        let (a, a_id) = compress(&tar[..], dir.path()).unwrap();
        let (b, b_id) = compress(&zipped.finish().unwrap()[..], dir.path()).unwrap();
        assert_eq!((a.digest, a.size, a_id), (b.digest, b.size, b_id));
        assert_eq!(a_id, Digest::of(&tar));
        assert_eq!(a.digest, Digest::of(&std::fs::read(a.file.path()).unwrap()));
    }
}
