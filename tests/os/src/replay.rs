//! Every write and flush of a disk, in order, as QEMU's `blklogwrites` recorded them; and the disk as a power cut at any
//! of them could have left it.
//!
//! What a disk promises: a write before a flush that was answered is there; one after it may be there, be missing, or be
//! torn between sectors, whatever became of its neighbours.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt as _, path::Path};

use crate::disk::Bytes;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: usize = 512;

/// One record.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Bytes at a place.
    Write { offset: u64, bytes: Vec<u8>, through: bool },
    /// Everything before is on the disk.
    Flush,
    /// A range whose content does not matter any more.
    Discard { offset: u64, length: u64 },
}

/// Reads a log.
pub fn read(path: &Path) -> Vec<Entry> {
    let log = File::open(path).unwrap();
    parse(&log).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn parse(log: &impl Bytes) -> Result<Vec<Entry>, String> {
    let mut head = [0; 28];
    log.read(0, &mut head).map_err(|e| e.to_string())?;
    let word = |bytes: &[u8], i: usize| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap());
    let size = u32::from_le_bytes(head[24..28].try_into().unwrap()) as usize;
    if word(&head, 0) != MAGIC || !(SECTOR..=4096).contains(&size) {
        return Err(format!("not a write log: magic {:x}, sectors of {size}", word(&head, 0)));
    }
    let mut entries = Vec::new();
    let mut at = size as u64;
    for _ in 0..word(&head, 2) {
        let mut head = [0; 32];
        log.read(at, &mut head).map_err(|e| format!("entry {}: {e}", entries.len()))?;
        at += size as u64;
        let (offset, length, flags) =
            (word(&head, 0) * size as u64, word(&head, 1) * size as u64, word(&head, 2));
        if flags & 4 != 0 {
            entries.push(Entry::Discard { offset, length });
            continue;
        }
        if flags & 1 != 0 {
            entries.push(Entry::Flush);
        }
        if length > 0 {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            log.read(at, &mut bytes).map_err(|e| format!("data of entry {}: {e}", entries.len()))?;
            at += length;
            entries.push(Entry::Write { offset, bytes, through: flags & 2 != 0 });
        }
    }
    Ok(entries)
}

/// A disk in memory: the file it began as, and what was written since. Remembers what no flush has covered yet.
pub struct Replay {
    base: File,
    /// 512-byte sectors that are certainly on the disk.
    settled: BTreeMap<u64, [u8; SECTOR]>,
    /// What could still be lost, oldest first.
    pending: Vec<(u64, Vec<u8>)>,
}

impl Replay {
    pub fn from(base: &Path) -> Self {
        Self { base: File::open(base).unwrap(), settled: BTreeMap::new(), pending: Vec::new() }
    }

    /// Goes one record on.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Write { offset, bytes, through: true } => put(&mut self.settled, *offset, bytes),
            Entry::Write { offset, bytes, through: false } => self.pending.push((*offset, bytes.clone())),
            Entry::Flush => {
                for (offset, bytes) in std::mem::take(&mut self.pending) {
                    put(&mut self.settled, offset, &bytes);
                }
            }
            // Reads after it may give anything; the device here keeps what was there.
            Entry::Discard { .. } => {}
        }
    }

    /// How many writes no flush has covered.
    pub fn unflushed(&self) -> usize {
        self.pending.len()
    }

    /// The disk with those of the unflushed writes that begin where `keep` says.
    pub fn cut_where(&self, keep: impl Fn(u64) -> bool) -> Cut<'_> {
        self.cut(|i, sectors| if keep(self.pending[i].0) { sectors } else { 0 })
    }

    /// The disk with those of the unflushed writes that `keep` says; of each, as many sectors as it says.
    pub fn cut(&self, mut keep: impl FnMut(usize, usize) -> usize) -> Cut<'_> {
        let mut top = BTreeMap::new();
        for (i, (offset, bytes)) in self.pending.iter().enumerate() {
            let sectors = keep(i, bytes.len() / SECTOR);
            put(&mut top, *offset, &bytes[..sectors.min(bytes.len() / SECTOR) * SECTOR]);
        }
        Cut { base: &self.base, settled: &self.settled, top }
    }
}

fn put(sectors: &mut BTreeMap<u64, [u8; SECTOR]>, offset: u64, bytes: &[u8]) {
    for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
        sectors.insert(offset / SECTOR as u64 + i as u64, sector.try_into().expect("a whole sector"));
    }
}

/// A disk as one power cut leaves it.
pub struct Cut<'a> {
    base: &'a File,
    settled: &'a BTreeMap<u64, [u8; SECTOR]>,
    top: BTreeMap<u64, [u8; SECTOR]>,
}

impl Bytes for Cut<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.base.read_exact_at(buffer, offset)?;
        let end = offset + buffer.len() as u64;
        for layer in [self.settled, &self.top] {
            for (number, sector) in layer.range(offset / SECTOR as u64..end.div_ceil(SECTOR as u64)) {
                let at = number * SECTOR as u64;
                let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
                let here = usize::try_from(from - offset).unwrap()..usize::try_from(to - offset).unwrap();
                let there = usize::try_from(from - at).unwrap()..usize::try_from(to - at).unwrap();
                buffer[here].copy_from_slice(&sector[there]);
            }
        }
        Ok(())
    }
}

impl Cut<'_> {
    /// Writes what differs from the base onto a copy of it.
    pub fn write_onto(&self, copy: &Path) {
        let file = File::options().write(true).open(copy).unwrap();
        for (number, sector) in self.settled.iter().chain(&self.top) {
            file.write_all_at(sector, number * SECTOR as u64).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(records: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [MAGIC, 1, records.len() as u64] {
            out.extend(word.to_le_bytes());
        }
        out.extend((SECTOR as u32).to_le_bytes());
        out.resize(SECTOR, 0);
        for (sector, bytes, flags) in records {
            let head = out.len();
            for word in [*sector, (bytes.len() / SECTOR) as u64, *flags, 0] {
                out.extend(word.to_le_bytes());
            }
            out.resize(head + SECTOR, 0);
            out.extend(*bytes);
        }
        out
    }

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn sector(cut: &Cut<'_>, number: u64) -> u8 {
        let mut byte = [0];
        cut.read(number * SECTOR as u64 + 3, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn what_a_flush_covered_stays_and_what_it_did_not_may_go_or_tear() {
        let (_log, path) =
            file(&log(&[(1, &[1; SECTOR], 0), (0, &[], 1), (1, &[2; 2 * SECTOR], 0), (4, &[3; SECTOR], 2)]));
        let (_base, base) = file(&[9; 8 * SECTOR]);
        let mut replay = Replay::from(&base);
        for entry in read(&path) {
            replay.apply(&entry);
        }
        assert_eq!(replay.unflushed(), 1);
        let none = replay.cut(|_, _| 0);
        assert_eq!([1, 2, 4, 5].map(|n| sector(&none, n)), [1, 9, 3, 9]);
        let torn = replay.cut(|_, _| 1);
        assert_eq!([1, 2].map(|n| sector(&torn, n)), [2, 9]);
        let all = replay.cut(|_, sectors| sectors);
        assert_eq!([1, 2].map(|n| sector(&all, n)), [2, 2]);
    }

    #[test]
    fn a_read_that_begins_inside_a_sector_sees_every_layer() {
        let (_base, base) = file(&[9; 4 * SECTOR]);
        let mut replay = Replay::from(&base);
        replay.apply(&Entry::Write { offset: SECTOR as u64, bytes: vec![5; SECTOR], through: true });
        let mut seen = [0; 4];
        replay.cut(|_, _| 0).read(SECTOR as u64 - 2, &mut seen).unwrap();
        assert_eq!(seen, [9, 9, 5, 5]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let (_dir, path) = file(&[0; 1024]);
        assert!(parse(&File::open(path).unwrap()).unwrap_err().contains("not a write log"));
    }
}
