//! A computer's storage in memory that can die at any step, and forget or reorder what was not synced.
//!
//! Every write, sync and journal entry, of every disk, is one step of one timeline. From the step it dies at nothing works
//! any more; [`Machine::restarted`] gives what a computer would find after the power came back.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Access, Disk, Disks};

/// What the medium did with writes that were not synced when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All reached it.
    Kept,
    /// None did.
    Lost,
    /// Some did, block by block, in no order; the number chooses which.
    Reordered(u64),
}

/// One step, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Write {
        disk: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync {
        disk: PathBuf,
    },
    /// A named record that is kept whole or not at all.
    Record {
        name: String,
        bytes: Vec<u8>,
    },
}

#[derive(Default)]
struct Medium {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
    /// The n-th write from now fails so (1 is the next).
    fail: Option<(usize, io::ErrorKind)>,
    /// Writes are acknowledged and reads show them, but the medium never gets them.
    lies: bool,
}

#[derive(Default)]
struct Inner {
    disks: BTreeMap<PathBuf, Medium>,
    records: BTreeMap<String, Vec<u8>>,
    steps: Vec<Step>,
    die_at: Option<usize>,
    dead: bool,
    keep_steps: bool,
    count: usize,
    dropped: usize,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Machine(Arc<Mutex<Inner>>);

impl Machine {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Adds a disk with this content.
    pub(crate) fn add(&self, path: &str, bytes: &[u8]) {
        let medium = Medium { seen: bytes.to_vec(), durable: bytes.to_vec(), ..Medium::default() };
        self.inner().disks.insert(path.into(), medium);
    }

    /// Nothing works from the n-th step on (0 is the first). A write it falls on is torn in the middle.
    pub(crate) fn die_at(&self, step: usize) {
        self.inner().die_at = Some(step);
    }

    /// The n-th write from now (1 is the next) of a disk fails.
    pub(crate) fn fail_write(&self, path: &str, nth: usize, kind: io::ErrorKind) {
        self.inner().disks.get_mut(Path::new(path)).unwrap().fail = Some((nth, kind));
    }

    /// A disk acknowledges writes and keeps none.
    pub(crate) fn lie(&self, path: &str, lies: bool) {
        self.inner().disks.get_mut(Path::new(path)).unwrap().lies = lies;
    }

    /// Remembers every step from now on.
    pub(crate) fn record_steps(&self) {
        self.inner().keep_steps = true;
    }

    /// The steps since [`Self::record_steps`].
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.inner().steps.clone()
    }

    /// How many steps there were.
    pub(crate) fn count(&self) -> usize {
        self.inner().count
    }

    /// How often caches were dropped.
    pub(crate) fn dropped(&self) -> usize {
        self.inner().dropped
    }

    /// What a disk's medium holds.
    pub(crate) fn durable(&self, path: &str) -> Vec<u8> {
        self.inner().disks[Path::new(path)].durable.clone()
    }

    /// What reads of a disk show.
    pub(crate) fn bytes(&self, path: &str) -> Vec<u8> {
        self.inner().disks[Path::new(path)].seen.clone()
    }

    /// Changes a disk's medium behind everybody's back.
    pub(crate) fn tamper(&self, path: &str, offset: usize, bytes: &[u8]) {
        let mut inner = self.inner();
        let medium = inner.disks.get_mut(Path::new(path)).unwrap();
        medium.seen[offset..offset + bytes.len()].copy_from_slice(bytes);
        medium.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Keeps a record, durably and whole, as one step.
    pub(crate) fn record(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let alive = inner.step(|| Step::Record { name: name.into(), bytes: bytes.to_vec() });
        if !alive {
            return Err(power_cut());
        }
        inner.records.insert(name.into(), bytes.to_vec());
        Ok(())
    }

    /// A record.
    pub(crate) fn recorded(&self, name: &str) -> Option<Vec<u8>> {
        self.inner().records.get(name).cloned()
    }

    /// The machine after the power came back.
    pub(crate) fn restarted(&self, cut: Cut) -> Self {
        let inner = self.inner();
        let mut after = Inner { records: inner.records.clone(), ..Inner::default() };
        for (path, medium) in &inner.disks {
            let mut bytes = medium.durable.clone();
            match cut {
                Cut::Lost => {}
                Cut::Kept => medium.pending.iter().for_each(|(at, new)| put(&mut bytes, *at, new)),
                Cut::Reordered(seed) => reorder(&mut bytes, &medium.pending, seed),
            }
            let medium = Medium { seen: bytes.clone(), durable: bytes, ..Medium::default() };
            after.disks.insert(path.clone(), medium);
        }
        Self(Arc::new(Mutex::new(after)))
    }
}

/// Applies 512-byte sectors of the writes in a random order, and only some of them.
fn reorder(bytes: &mut [u8], pending: &[(u64, Vec<u8>)], seed: u64) {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut sectors: Vec<(u64, &[u8])> = pending
        .iter()
        .flat_map(|(at, new)| new.chunks(512).enumerate().map(move |(i, s)| (at + 512 * i as u64, s)))
        .collect();
    for i in (1..sectors.len()).rev() {
        sectors.swap(i, usize::try_from(random() % (i as u64 + 1)).unwrap());
    }
    for (at, sector) in sectors {
        if random() % 2 == 0 {
            put(bytes, at, sector);
        }
    }
}

fn put(bytes: &mut [u8], at: u64, new: &[u8]) {
    let at = usize::try_from(at).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn power_cut() -> io::Error {
    io::Error::other("the power was cut")
}

impl Inner {
    /// Counts a step; whether it still happens.
    fn step(&mut self, what: impl FnOnce() -> Step) -> bool {
        let alive = self.die_at.is_none_or(|at| self.count < at);
        if alive && self.keep_steps {
            self.steps.push(what());
        }
        if alive {
            self.count += 1;
        } else {
            self.dead = true;
        }
        alive
    }
}

struct FakeDisk {
    machine: Machine,
    path: PathBuf,
    access: Access,
    caches_dropped: Mutex<bool>,
}

impl Disks for Machine {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Disk>> {
        if !self.inner().disks.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let machine = self.clone();
        Ok(Box::new(FakeDisk { machine, path: path.into(), access, caches_dropped: Mutex::new(false) }))
    }

    fn same(&self, one: &Path, other: &Path) -> io::Result<bool> {
        Ok(one == other)
    }
}

impl Disk for FakeDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.machine.inner().disks[&self.path].seen.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.machine.inner();
        if inner.dead {
            return Err(power_cut());
        }
        let medium = &inner.disks[&self.path];
        let from = if *self.caches_dropped.lock().unwrap() { &medium.durable } else { &medium.seen };
        let start = usize::try_from(offset).unwrap();
        let bytes = from.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_ne!(self.access, Access::Read, "{} was opened for reading", self.path.display());
        *self.caches_dropped.lock().unwrap() = false;
        let mut inner = self.machine.inner();
        let torn = !inner.dead;
        let alive = inner.step(|| Step::Write { disk: self.path.clone(), offset, bytes: bytes.to_vec() });
        let medium = inner.disks.get_mut(&self.path).unwrap();
        if !alive {
            if torn {
                medium.pending.push((offset, bytes[..bytes.len() / 2 / 512 * 512].to_vec()));
            }
            return Err(power_cut());
        }
        if let Some((nth, kind)) = &mut medium.fail {
            *nth -= 1;
            if *nth == 0 {
                let kind = *kind;
                medium.fail = None;
                return Err(kind.into());
            }
        }
        if offset + bytes.len() as u64 > medium.seen.len() as u64 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        put(&mut medium.seen, offset, bytes);
        if !medium.lies {
            medium.pending.push((offset, bytes.to_vec()));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.machine.inner();
        if !inner.step(|| Step::Sync { disk: self.path.clone() }) {
            return Err(power_cut());
        }
        let medium = inner.disks.get_mut(&self.path).unwrap();
        for (at, bytes) in std::mem::take(&mut medium.pending) {
            put(&mut medium.durable, at, &bytes);
        }
        Ok(())
    }

    fn drop_caches(&self) -> io::Result<()> {
        let mut inner = self.machine.inner();
        inner.dropped += 1;
        *self.caches_dropped.lock().unwrap() = true;
        Ok(())
    }
}
