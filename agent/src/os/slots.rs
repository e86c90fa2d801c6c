//! The installer, as the flow asks for it: which partition a payload goes to, where its bytes come from, and what of an
//! installation is needed again when the slot gets its first bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use copal_bundle::{
    Header,
    file::{self, Span},
};
use copal_protocol::{
    documents::{Reason, Release},
    ids::{Name, Sha256Hex},
    verify::Verified,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    OsConfig, Slot,
    disk::{Access, Disks},
    install::{
        self, Blobs, FetchError, InstallError, InstallPlan, Installed, Patience, PayloadPlan, Ranged, Stage,
        StateJournal,
    },
    machine::Failure,
    ports::{From, Installer, Told},
};
use crate::{
    apply::status::reason,
    identity::{Session, SessionError},
    state::StateDir,
};

/// Left free on the data partition for the agent's own files, bytes.
const SPARE: u64 = 8 << 20;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// The slots of this device.
pub struct Slots {
    config: OsConfig,
    disks: Arc<dyn Disks>,
    cloud: Arc<dyn Blobs>,
    state: Arc<StateDir>,
    /// Where indexes are kept meanwhile.
    work: PathBuf,
    installed: Arc<Mutex<Option<(Sha256Hex, Slot, Installed)>>>,
}

impl Slots {
    /// The slots that the image describes.
    #[must_use]
    pub fn new(config: OsConfig, disks: Arc<dyn Disks>, cloud: Arc<dyn Blobs>, state: Arc<StateDir>) -> Self {
        let work = state.path().join("os-install");
        Self { config, disks, cloud, state, work, installed: Arc::default() }
    }

    fn plan(&self, release: &Verified<Release>, slot: Slot) -> Result<InstallPlan, Reason> {
        let payloads = self.partitions(release, slot)?.into_iter().map(|(name, target, old)| PayloadPlan {
            payload: release.payloads[name.as_str()].clone(),
            name,
            target,
            old: Some(old),
        });
        Ok(InstallPlan {
            release: release.sha256(),
            payloads: payloads.collect(),
            work: self.work.clone(),
            patience: Patience::default(),
        })
    }

    /// Payload, its partition in `slot`, and the same of the slot that runs.
    fn partitions(&self, release: &Release, slot: Slot) -> Result<Vec<(String, PathBuf, PathBuf)>, Reason> {
        let targets: Vec<_> = self.config.devices(slot).by_payload().collect();
        let olds = self.config.devices(slot.other()).by_payload();
        let names: Vec<&str> = release.payloads.keys().map(Name::as_str).collect();
        if !targets.iter().map(|(name, _)| *name).eq(names.iter().copied()) {
            let have: Vec<_> = targets.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "the release has payloads {names:?}, this device's slots have partitions for {have:?}: build it for this layout"
            );
            return Err(reason("os_incompatible", message));
        }
        Ok(targets
            .iter()
            .zip(olds)
            .map(|((name, target), (_, old))| ((*name).to_owned(), target.to_path_buf(), old.to_path_buf()))
            .collect())
    }
}

impl Installer for Slots {
    fn check<'a>(&'a self, release: &'a Release, slot: Slot) -> BoxFuture<'a, Result<(), Reason>> {
        Box::pin(async move {
            let mut indexes = 0_u64;
            for (name, target, _) in self.partitions(release, slot)? {
                let payload = &release.payloads[name.as_str()];
                let size =
                    self.disks.open(&target, Access::Read).and_then(|disk| disk.size()).map_err(|e| {
                        reason(
                            "os_probe_failed",
                            format!("cannot open {}: {e}; check the disk (dmesg)", target.display()),
                        )
                    })?;
                if payload.size > size {
                    let message = format!(
                        "payload {name} has {} bytes, {} has {size}: build a smaller image, or write the card anew with larger slots",
                        payload.size,
                        target.display()
                    );
                    return Err(reason("os_no_space", message));
                }
                indexes += payload.index.as_ref().and_then(|index| index.size).unwrap_or(0);
            }
            let needed: Vec<Sha256Hex> = release
                .payloads
                .values()
                .filter_map(|payload| Some(payload.index.as_ref()?.sha256))
                .collect();
            // Those of releases that failed must not stand in the way of the next.
            if let Err(error) = install::tidy(&self.work, &needed) {
                tracing::debug!(%error, "what other installations kept stays for now");
            }
            let folder = self.state.path();
            // Where that cannot be told, the write itself will.
            let Ok(stat) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
            #[allow(clippy::useless_conversion, reason = "32 bits wide on some of our targets")]
            let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
            let needed = indexes.saturating_add(SPARE);
            if free < needed {
                let message = format!(
                    "{} bytes are free in {}, {needed} are needed while an update is installed: free some space on it",
                    free,
                    folder.display()
                );
                return Err(reason("os_data_full", message));
            }
            Ok(())
        })
    }

    fn install(
        &self,
        release: Arc<Verified<Release>>,
        slot: Slot,
        from: From,
        told: Told,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        let plan = self.plan(&release, slot);
        let (disks, state, installed) = (self.disks.clone(), self.state.clone(), self.installed.clone());
        let cloud = self.cloud.clone();
        Box::pin(async move {
            let plan = plan.map_err(|reason| Failure { reason, passing: false })?;
            let source: Arc<dyn Blobs> = match from {
                From::Cloud => cloud,
                From::File(path) => Arc::new(Bundle::open(&path, &release).map_err(|e| Failure {
                    reason: reason("os_download", format!("cannot use {}: {e}", path.display())),
                    passing: false,
                })?),
            };
            let progress = Arc::new(move |now: install::Progress| {
                told(now.stage == Stage::Verifying, now.done, now.total);
            });
            let journal = Arc::new(StateJournal(state));
            let done =
                install::install(source, plan, disks, journal, progress, cancel).await.map_err(failure)?;
            tracing::info!(
                downloaded = done.stats.downloaded,
                requests = done.stats.requests,
                written = done.stats.written,
                kept = done.stats.kept,
                reused = done.stats.reused,
                "the operating system is installed and was read back"
            );
            *installed.lock().unwrap_or_else(PoisonError::into_inner) = Some((release.sha256(), slot, done));
            Ok(())
        })
    }

    fn finish<'a>(
        &'a self,
        release: &'a Verified<Release>,
        slot: Slot,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let found = self.installed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some((_, _, installed)) = found.filter(|(of, to, _)| (*of, *to) == (release.sha256(), slot))
            else {
                let message = format!("what belongs at the start of slot {slot} is not known any more");
                return Err(Failure { reason: reason("os_slot_invalid", message), passing: true });
            };
            let disks = self.disks.clone();
            let finished = tokio::task::spawn_blocking(move || install::finish(&*disks, &installed)).await;
            finished
                .map_err(|e| Failure { reason: reason("os_write", e.to_string()), passing: true })?
                .map_err(failure)
        })
    }

    fn forget<'a>(&'a self, _: Slot) -> BoxFuture<'a, ()> {
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Box::pin(async move {
            if let Err(error) = install::forget(&self.work, &StateJournal(self.state.clone())) {
                tracing::debug!(%error, "what an installation kept stays for now");
            }
        })
    }

    fn same<'a>(&'a self, release: &'a Release, slot: Slot) -> BoxFuture<'a, Result<bool, Reason>> {
        Box::pin(async move {
            let Ok(partitions) = self.partitions(release, slot) else { return Ok(false) };
            let wanted: Vec<_> = partitions
                .into_iter()
                .map(|(name, path, _)| {
                    let payload = &release.payloads[name.as_str()];
                    (path, payload.size, payload.sha256)
                })
                .collect();
            let disks = self.disks.clone();
            let compared = tokio::task::spawn_blocking(move || {
                for (path, size, sha256) in wanted {
                    match holds(&*disks, &path, size, sha256) {
                        Ok(true) => {}
                        Ok(false) => return Ok(false),
                        Err(e) => {
                            return Err(reason("os_read", format!("cannot read {}: {e}", path.display())));
                        }
                    }
                }
                Ok(true)
            });
            compared.await.map_err(|e| reason("os_read", e.to_string()))?
        })
    }
}

/// Whether a partition begins with exactly these bytes.
fn holds(disks: &dyn Disks, path: &Path, size: u64, sha256: Sha256Hex) -> io::Result<bool> {
    let disk = disks.open(path, Access::Read)?;
    if disk.size()? < size {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let piece = usize::try_from(size - at).map_or(PIECE, |left| left.min(PIECE));
        disk.read_at(at, &mut buffer[..piece])?;
        hash.update(&buffer[..piece]);
        at += piece as u64;
    }
    Ok(hash.finalize().as_slice() == sha256.as_bytes())
}

/// A network, a full disk or a changed mind is no fault of the release.
fn failure(error: InstallError) -> Failure {
    let passing = matches!(error.code, "os_download" | "os_no_space" | "os_cancelled");
    Failure { reason: reason(error.code, error.what), passing }
}

/// Blobs of the cloud, over the device's session.
pub struct Cloud(pub Arc<Session>);

impl Blobs for Cloud {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        Box::pin(async move {
            let path = format!("/device/v1/blobs/{sha256}");
            let blob = self.0.range(&path, from, to).await.map_err(|e| fetch_error(&e))?;
            let at = blob.at();
            let stream = stream::try_unfold(blob, |mut blob| async move {
                let next = blob.chunk().await.map_err(|e| fetch_error(&SessionError::Cloud(e)))?;
                Ok(next.map(|bytes| (bytes, blob)))
            });
            Ok(Ranged { from: at, stream: stream.boxed() })
        })
    }
}

fn fetch_error(error: &SessionError) -> FetchError {
    let (again, after) = match error {
        SessionError::Cloud(e) => (!(e.is_status(404) || e.is_status(403)), e.retry_after()),
        _ => (true, None),
    };
    FetchError { why: error.to_string(), again, after }
}

/// Blobs of a bundle file. Its index and data are believed no more than the cloud's.
struct Bundle {
    file: Arc<File>,
    blobs: BTreeMap<Sha256Hex, Span>,
}

impl Bundle {
    fn open(path: &Path, release: &Release) -> Result<Self, String> {
        let mut file = File::open(path).map_err(|e| e.to_string())?;
        let contents = file::read(&mut file).map_err(|e| e.to_string())?;
        let mut blobs = BTreeMap::new();
        for payload in contents.payloads {
            let signed = release.payloads.get(payload.name.as_str());
            let index = signed.and_then(|signed| signed.index.as_ref());
            let (Some(index), Some(span)) = (index, payload.index) else {
                return Err(format!("payload {} is not the release's", payload.name));
            };
            let mut bytes = [0; Header::LEN];
            if span.size < bytes.len() as u64 {
                return Err(format!("the index of {} is cut off", payload.name));
            }
            file.read_exact_at(&mut bytes, span.offset).map_err(|e| e.to_string())?;
            let header = Header::parse(&bytes).map_err(|e| e.to_string())?;
            blobs.insert(index.sha256, span);
            blobs.insert(Sha256Hex::from_bytes(header.data_sha256), payload.data);
        }
        Ok(Self { file: Arc::new(file), blobs })
    }
}

impl Blobs for Bundle {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        let found = self.blobs.get(&sha256).copied();
        let file = self.file.clone();
        Box::pin(async move {
            let missing = |why: String| FetchError { why, again: false, after: None };
            let span = found.ok_or_else(|| missing(format!("the bundle does not hold blob {sha256}")))?;
            let end = to.min(span.size);
            let pieces = stream::try_unfold(from, move |at| {
                let file = file.clone();
                async move {
                    if at >= end {
                        return Ok(None);
                    }
                    let piece = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
                    let read = tokio::task::spawn_blocking(move || {
                        let mut bytes = vec![0; piece];
                        file.read_exact_at(&mut bytes, span.offset + at).map(|()| bytes)
                    });
                    let bytes =
                        read.await.map_err(io::Error::other).flatten().map_err(|e| missing(e.to_string()))?;
                    Ok(Some((Bytes::from(bytes), at + piece as u64)))
                }
            });
            Ok(Ranged { from, stream: pieces.boxed() })
        })
    }
}
