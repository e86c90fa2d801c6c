//! One payload after the other: index, compare, search, copy, fetch, check, read back.
//!
//! | room | job |
//! |---|---|
//! | `index` | the index, from what is kept or from the network |
//! | `reuse` | what the slot and the old slot hold already |
//! | `fetch` | what neither holds |
//! | `check` | what is on the medium, judged by the hashes of the index |

mod check;
mod fetch;
mod index;
mod reuse;

use std::{fs, fs::File, io};

use copal_bundle::{BLOCK, CHUNK_BLOCKS, FormatError, Index, ZERO, is_zero};
use copal_protocol::ids::Sha256Hex;

use self::index::open_index;
use super::{
    Head, InstallError, InstallPlan, Installed, OnProgress, PayloadPlan, Progress, Stage, Stats,
    bits::Bits,
    blobs::Fetcher,
    journal::{Entry, Journal, Record},
    read_head,
};
use crate::os::disk::{Access, Disk, Disks};

/// The most one write takes.
const MAX_WRITE: usize = 256 << 10;
/// Bytes written before they are synced, checked and journalled.
const CHECKPOINT: u64 = 32 << 20;
/// Bytes read or fetched at once.
const PIECE: usize = 1 << 20;

/// Every payload; see the folder's module.
pub(super) fn all(
    mut net: Fetcher,
    plan: &InstallPlan,
    disks: &dyn Disks,
    journal: &dyn Journal,
    progress: &OnProgress,
) -> Result<Installed, InstallError> {
    // Everything that can be refused is refused before the first write.
    let mut opened = Vec::new();
    for payload in &plan.payloads {
        opened.push(open_disks(disks, payload)?);
    }
    fs::create_dir_all(&plan.work).map_err(|e| InstallError::keep("the index", &e))?;
    let needed: Vec<Sha256Hex> =
        plan.payloads.iter().filter_map(|p| Some(p.payload.index.as_ref()?.sha256)).collect();
    super::tidy(&plan.work, &needed).map_err(|e| InstallError::keep("the index", &e))?;
    let mut indexes = Vec::new();
    for payload in &plan.payloads {
        indexes.push(open_index(&mut net, &plan.work, payload)?);
    }
    let names: Vec<_> = indexes.iter().map(|(name, index)| (*name, index.header().chunks())).collect();
    let kept = journal.load().map_err(|e| InstallError::keep("the journal", &e))?;
    let mut record =
        kept.and_then(|bytes| Record::parse(&bytes, plan.release, &names)).unwrap_or_else(|| Record {
            release: plan.release,
            payloads: names
                .iter()
                .map(|(index, n)| Entry { index: *index, done: Bits::new(*n), head: None })
                .collect(),
        });
    // A journal that cannot be kept is known before the first write, too.
    journal.store(&record.to_bytes()).map_err(|e| InstallError::keep("the journal", &e))?;

    let mut stats = Stats::default();
    let mut heads = Vec::new();
    for (n, ((_, index), (target, old))) in indexes.iter().zip(&opened).enumerate() {
        let plan = &plan.payloads[n];
        let mut work = Work {
            plan,
            have: Bits::new(index.header().blocks()),
            touched: Bits::new(index.header().chunks()),
            suspect: Bits::new(index.header().chunks()),
            map: Map { segment: usize::MAX, blocks: Vec::new() },
            index,
            target: &**target,
            old: old.as_deref(),
            net: &mut net,
            record: &mut record,
            n,
            journal,
            progress,
            unsynced: 0,
            stats: &mut stats,
        };
        let bytes = work.run()?;
        heads.push((plan.name == "boot", Head { target: plan.target.clone(), bytes }));
    }
    // Firmware that walks partitions boots what has a boot partition: its head is the very last.
    heads.sort_by_key(|(boot, _)| *boot);
    stats.downloaded = net.received;
    stats.requests = net.requests;
    Ok(Installed { heads: heads.into_iter().map(|(_, head)| head).collect(), stats })
}

type Opened = (Box<dyn Disk>, Option<Box<dyn Disk>>);

fn open_disks(disks: &dyn Disks, plan: &PayloadPlan) -> Result<Opened, InstallError> {
    let target = &plan.target;
    if let Some(old) = &plan.old
        && disks.same(old, target).map_err(|e| InstallError::read(target, &e))?
    {
        let what = format!("{} is the slot that runs; it is never written", target.display());
        return Err(InstallError::new("os_slot_invalid", what));
    }
    let disk = disks.open(target, Access::Write).map_err(|e| InstallError::write(target, &e))?;
    let room = disk.size().map_err(|e| InstallError::read(target, &e))?;
    if plan.payload.size > room {
        let what = format!(
            "the image {} has {} bytes, the partition {} only {room}: build a smaller image",
            plan.name,
            plan.payload.size,
            target.display()
        );
        return Err(InstallError::new("os_no_space", what));
    }
    let old = match &plan.old {
        Some(old) => Some(disks.open(old, Access::Read).map_err(|e| InstallError::read(old, &e))?),
        None => None,
    };
    Ok((disk, old))
}

/// The map of the image, a segment at a time.
struct Map {
    segment: usize,
    blocks: Vec<u32>,
}

impl Map {
    fn at(&mut self, index: &Index<File>, place: u64) -> Result<u32, InstallError> {
        let each = index.segments().1;
        let segment = usize::try_from(place / each).unwrap_or(usize::MAX);
        if segment != self.segment {
            self.segment = usize::MAX;
            index.segment(segment, &mut self.blocks).map_err(|e| format(&e))?;
            self.segment = segment;
        }
        Ok(self.blocks.get((place % each) as usize).copied().unwrap_or(ZERO))
    }
}

fn format(error: &FormatError) -> InstallError {
    InstallError::new("os_corrupt", error.to_string())
}

struct Work<'a> {
    plan: &'a PayloadPlan,
    index: &'a Index<File>,
    map: Map,
    target: &'a dyn Disk,
    old: Option<&'a dyn Disk>,
    net: &'a mut Fetcher,
    record: &'a mut Record,
    n: usize,
    journal: &'a dyn Journal,
    progress: &'a OnProgress,
    /// Blocks that stand at their place, as far as hints tell.
    have: Bits,
    /// Chunks to be checked at the next checkpoint.
    touched: Bits,
    /// Chunks that were wrong once.
    suspect: Bits,
    unsynced: u64,
    stats: &'a mut Stats,
}

impl Work<'_> {
    fn run(&mut self) -> Result<Box<[u8; BLOCK]>, InstallError> {
        self.destroy_head()?;
        self.compare()?;
        let found = self.search()?;
        self.copy(&found)?;
        drop(found);
        self.checkpoint()?;
        self.fetch_missing()?;
        if !self.read_back()? {
            // The journal, or the medium, said more than is there: once more from what is really there.
            self.suspect = Bits::new(self.index.header().chunks());
            self.fetch_missing()?;
            if !self.read_back()? {
                let what = format!("{} does not keep what is written to it", self.plan.target.display());
                return Err(InstallError::new("os_readback", what));
            }
        }
        self.entry()
            .head
            .clone()
            .ok_or_else(|| InstallError::new("os_corrupt", "the image has no first block"))
    }

    fn entry(&mut self) -> &mut Entry {
        &mut self.record.payloads[self.n]
    }

    fn tell(&self, stage: Stage, done: u64, total: u64) {
        (self.progress)(Progress { payload: self.plan.name.clone(), stage, done, total });
    }

    fn chunk_blocks(&self, chunk: u64) -> std::ops::Range<u64> {
        chunk * CHUNK_BLOCKS..((chunk + 1) * CHUNK_BLOCKS).min(self.index.header().blocks())
    }

    fn write(&mut self, place: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let target = &self.plan.target;
        self.target.write_at(place * BLOCK as u64, bytes).map_err(|e| InstallError::write(target, &e))?;
        self.stats.written += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        for block in place..place + (bytes.len() / BLOCK) as u64 {
            self.have.set(block, true);
            self.touched.set(block / CHUNK_BLOCKS, true);
        }
        Ok(())
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), InstallError> {
        self.target.read_at(offset, bytes).map_err(|e| InstallError::read(&self.plan.target, &e))
    }

    fn set_head(&mut self, block: &[u8]) {
        if let Ok(head) = <[u8; BLOCK]>::try_from(block) {
            self.entry().head = Some(Box::new(head));
            self.have.set(0, true);
            self.touched.set(0, true);
        }
    }

    /// Nothing boots the slot from here on.
    fn destroy_head(&mut self) -> Result<(), InstallError> {
        if !is_zero(&read_head(self.target, &self.plan.target)?) {
            let target = &self.plan.target;
            let write = |e: io::Error| InstallError::write(target, &e);
            self.target.write_at(0, &[0; BLOCK]).map_err(write)?;
            self.target.sync().map_err(write)?;
        }
        Ok(())
    }
}
