//! Disks that can be torn.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::os::disk::{Access, Disk, Disks};

/// What becomes of the write that the power cut falls on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tear {
    Nothing,
    Whole,
    /// The first sectors of 512 bytes.
    First(usize),
    /// All but the first sectors of 512 bytes.
    Last(usize),
    /// The blocks of 4,096 bytes around it cannot be made sense of any more.
    Block,
}

impl Tear {
    pub(crate) const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Whole,
        Self::First(1),
        Self::First(4),
        Self::First(7),
        Self::Last(1),
        Self::Last(4),
        Self::Block,
    ];
}

#[derive(Default)]
struct Inner {
    disks: BTreeMap<PathBuf, Vec<u8>>,
    writes: usize,
    die_at: Option<(usize, Tear)>,
    dead: bool,
    /// Disks that acknowledge writes and keep none.
    liars: BTreeSet<PathBuf>,
    /// Disks that refuse writes.
    broken: BTreeSet<PathBuf>,
    written: BTreeSet<PathBuf>,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Storage(Arc<Mutex<Inner>>);

impl Storage {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, path: &str, bytes: Vec<u8>) {
        self.inner().disks.insert(path.into(), bytes);
    }

    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        self.inner().disks[path].clone()
    }

    pub(crate) fn change(&self, path: &Path, change: impl FnOnce(&mut [u8])) {
        change(self.inner().disks.get_mut(path).unwrap());
    }

    /// The power goes at the n-th write from now (0 is the next).
    pub(crate) fn cut_at(&self, write: usize, tear: Tear) {
        let mut inner = self.inner();
        inner.die_at = Some((inner.writes + write, tear));
    }

    /// The power comes back; whether it was gone.
    pub(crate) fn revive(&self) -> bool {
        let mut inner = self.inner();
        inner.die_at = None;
        std::mem::take(&mut inner.dead)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.inner().dead
    }

    pub(crate) fn writes(&self) -> usize {
        self.inner().writes
    }

    /// The disks written since the last call.
    pub(crate) fn take_written(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut self.inner().written)
    }

    pub(crate) fn lies(&self, path: &Path) {
        self.inner().liars.insert(path.into());
    }

    pub(crate) fn breaks(&self, path: &Path) {
        self.inner().broken.insert(path.into());
    }
}

impl Disks for Storage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Disk>> {
        if !self.inner().disks.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(Opened { storage: self.clone(), path: path.into(), access }))
    }

    fn same(&self, one: &Path, other: &Path) -> io::Result<bool> {
        Ok(one == other)
    }
}

struct Opened {
    storage: Storage,
    path: PathBuf,
    access: Access,
}

fn power() -> io::Error {
    io::Error::other("the power was cut")
}

impl Disk for Opened {
    fn size(&self) -> io::Result<u64> {
        Ok(self.storage.inner().disks[&self.path].len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.storage.inner();
        if inner.dead {
            return Err(power());
        }
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(inner.disks[&self.path].get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_ne!(self.access, Access::Read, "{} was opened for reading", self.path.display());
        let mut guard = self.storage.inner();
        let inner = &mut *guard;
        if inner.dead {
            return Err(power());
        }
        if inner.broken.contains(&self.path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let tear = inner.die_at.filter(|(at, _)| *at == inner.writes).map(|(_, tear)| tear);
        inner.writes += 1;
        inner.written.insert(self.path.clone());
        let disk = inner.disks.get_mut(&self.path).unwrap();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        let part = |n: usize| (n * 512).min(bytes.len());
        if !inner.liars.contains(&self.path) {
            match tear {
                None | Some(Tear::Whole) => disk[start..end].copy_from_slice(bytes),
                Some(Tear::Nothing) => {}
                Some(Tear::First(n)) => disk[start..start + part(n)].copy_from_slice(&bytes[..part(n)]),
                Some(Tear::Last(n)) => disk[start + part(n)..end].copy_from_slice(&bytes[part(n)..]),
                Some(Tear::Block) => {
                    let last = end.next_multiple_of(4096).min(disk.len());
                    disk[start / 4096 * 4096..last].fill(0xa5);
                }
            }
        }
        if tear.is_some() {
            inner.dead = true;
            return Err(power());
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.storage.inner().dead { Err(power()) } else { Ok(()) }
    }

    fn drop_caches(&self) -> io::Result<()> {
        self.sync()
    }
}
