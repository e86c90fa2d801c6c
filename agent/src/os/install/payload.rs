//! One payload after the other: index, compare, search, copy, fetch, check, read back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use copal_bundle::{BLOCK, CHUNK, CHUNK_BLOCKS, FormatError, GroupDecoder, Index, ZERO, hint, is_zero};
use copal_protocol::ids::Sha256Hex;
use sha2::{Digest as _, Sha256};

use super::{
    Head, InstallError, InstallPlan, Installed, OnProgress, PayloadPlan, Progress, Stage, Stats,
    bits::Bits,
    blobs::Fetcher,
    journal::{Entry, Journal, Record},
    read_head,
    search::{Found, MAX_SEARCHED, Search},
};
use crate::os::disk::{Access, Disk, Disks};

/// Bytes read at once from a slot.
const PIECE: usize = 1 << 20;
/// The most one write takes.
const MAX_WRITE: usize = 256 << 10;
/// Bytes written before they are synced, checked and journalled.
const CHECKPOINT: u64 = 32 << 20;
/// The most one request asks for.
const MAX_REQUEST: u64 = 8 << 20;
/// Bytes that are fetched for nothing rather than asked around.
const MAX_GAP: u64 = 16 << 10;
/// Places of blocks kept in memory at once.
const MAX_PLACES: usize = 1 << 20;
/// Numbers of blocks and where they go, sorted.
type Places = Vec<(u32, u32)>;
/// How often what is wrong is fetched anew: a chunk that is wrong twice is not fetched a third time.
const ROUNDS: usize = 3;

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

/// The index of a payload, fetched where it is not there yet, and its name.
fn open_index(
    net: &mut Fetcher,
    work: &Path,
    plan: &PayloadPlan,
) -> Result<(Sha256Hex, Index<File>), InstallError> {
    let corrupt = |why: &dyn std::fmt::Display| {
        InstallError::new("os_corrupt", format!("the index of {} cannot be used: {why}", plan.name))
    };
    let keep = |e: io::Error| InstallError::keep("the index", &e);
    let Some((name, size)) = plan.payload.index.as_ref().and_then(|i| Some((i.sha256, i.size?))) else {
        return Err(corrupt(&"the release does not name one with its size"));
    };
    if size > copal_bundle::MAX_INDEX {
        return Err(corrupt(&"it is larger than any index may be"));
    }
    let path = work.join(format!("{name}.index"));
    if sha256_of(&path).map_err(keep)? != Some(*name.as_bytes()) {
        fetch_index(net, work, name, size, &path, &corrupt)?;
    }
    let index = Index::open(File::open(&path).map_err(keep)?, size).map_err(|e| corrupt(&e))?;
    let header = index.header();
    if (header.image_size, &header.image_sha256) != (plan.payload.size, plan.payload.sha256.as_bytes()) {
        return Err(corrupt(&"it is the index of another image"));
    }
    Ok((name, index))
}

fn fetch_index(
    net: &mut Fetcher,
    work: &Path,
    name: Sha256Hex,
    size: u64,
    path: &Path,
    corrupt: &dyn Fn(&dyn std::fmt::Display) -> InstallError,
) -> Result<(), InstallError> {
    let keep = |e: io::Error| InstallError::keep("the index", &e);
    let part = work.join(format!("{name}.part"));
    for _ in 0..2 {
        let mut file = OpenOptions::new().append(true).create(true).open(&part).map_err(keep)?;
        let there = file.metadata().map_err(keep)?.len();
        if there < size {
            net.fetch(name, (there, size, size), &mut |bytes| file.write_all(bytes).map_err(keep))?;
        }
        file.sync_all().map_err(keep)?;
        if sha256_of(&part).map_err(keep)? == Some(*name.as_bytes()) {
            return fs::rename(&part, path).map_err(keep);
        }
        fs::remove_file(&part).map_err(keep)?;
    }
    Err(corrupt(&"what the server sends is not what the release names"))
}

fn sha256_of(path: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(hash.finalize().into())),
            n => hash.update(&piece[..n]),
        }
    }
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

    /// What the slot holds already, at its place.
    fn compare(&mut self) -> Result<(), InstallError> {
        let (chunks, size) = (self.index.header().chunks(), self.index.header().image_size);
        let mut bytes = vec![0; CHUNK];
        for chunk in 0..chunks {
            if chunk % 64 == 0 {
                self.tell(Stage::Preparing, chunk * CHUNK as u64, size);
                self.net.check()?;
            }
            let blocks = self.chunk_blocks(chunk);
            if self.entry().done.get(chunk) {
                self.have.set_range(blocks, true);
                self.stats.kept += self.index.chunk_len(chunk) as u64;
                continue;
            }
            let bytes = &mut bytes[..self.index.chunk_len(chunk)];
            if self.chunk_is_right(chunk, bytes)? {
                self.stats.kept += bytes.len() as u64;
                self.have.set_range(blocks, true);
                self.entry().done.set(chunk, true);
                continue;
            }
            for (place, block) in blocks.zip(bytes.chunks(BLOCK)) {
                let number = self.map.at(self.index, place)?;
                let stands = match number {
                    ZERO => is_zero(block),
                    _ if place == 0 => self.entry().head.is_some(),
                    _ => !is_zero(block) && self.has_hint(number, block)?,
                };
                if stands {
                    self.have.set(place, true);
                    self.touched.set(chunk, true);
                    self.stats.kept += BLOCK as u64;
                }
            }
            if chunk == 0 && self.map.at(self.index, 0)? == ZERO {
                self.set_head(&[0; BLOCK]);
            }
        }
        Ok(())
    }

    fn has_hint(&self, number: u32, block: &[u8]) -> Result<bool, InstallError> {
        let mut wanted = [0];
        self.index.hints(number, &mut wanted).map_err(|e| format(&e))?;
        Ok(wanted[0] == hint(block))
    }

    /// Reads a chunk, the withheld head in its place, and judges it.
    fn chunk_is_right(&mut self, chunk: u64, bytes: &mut [u8]) -> Result<bool, InstallError> {
        self.read(chunk * CHUNK as u64, bytes)?;
        if chunk == 0
            && let Some(head) = &self.entry().head
        {
            bytes[..BLOCK].copy_from_slice(&head[..]);
        }
        let wanted = self.index.chunk_sha256(chunk).map_err(|e| format(&e))?;
        // A chunk of zeros is right only if its head is known to be zeros.
        let known = chunk != 0 || self.entry().head.is_some();
        Ok(known && Sha256::digest(&*bytes)[..] == wanted)
    }

    /// Where the old slot has what is missing.
    fn search(&mut self) -> Result<Found, InstallError> {
        let Some(old) = self.old else { return Ok(Found::nothing()) };
        let header = self.index.header();
        let mut wanted = Bits::new(header.distinct.min(MAX_SEARCHED).into());
        for place in 0..header.blocks() {
            if !self.have.get(place) {
                wanted.set(self.map.at(self.index, place)?.into(), true);
            }
        }
        if wanted.count() == 0 {
            return Ok(Found::nothing());
        }
        let mut search = Search::new(self.index, &wanted).map_err(|e| format(&e))?;
        drop(wanted);
        let path = self.plan.old.as_deref().unwrap_or(Path::new(""));
        let size = old.size().map_err(|e| InstallError::read(path, &e))?;
        let mut piece = vec![0; PIECE];
        for at in (0..size).step_by(PIECE) {
            self.tell(Stage::Preparing, at, size);
            self.net.check()?;
            let some = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
            // A block the old slot cannot read is one it does not have.
            if old.read_at(at, &mut piece[..some]).is_ok() {
                search.look(at / BLOCK as u64, &piece[..some]);
            }
            if search.is_over() {
                break;
            }
        }
        Ok(search.done())
    }

    /// Writes what the old slot has, and zeros, in the order of the image.
    fn copy(&mut self, found: &Found) -> Result<(), InstallError> {
        let blocks = self.index.header().blocks();
        let (mut start, mut run) = (0, Vec::with_capacity(MAX_WRITE));
        let mut block = [0; BLOCK];
        for place in 0..blocks {
            if place % 4096 == 0 {
                self.net.check()?;
            }
            if self.have.get(place) {
                continue;
            }
            let number = self.map.at(self.index, place)?;
            if number == ZERO {
                block.fill(0);
            } else if let (Some(old), Some(at)) = (self.old, found.place(number)) {
                if old.read_at(at * BLOCK as u64, &mut block).is_err() {
                    continue;
                }
                self.stats.reused += BLOCK as u64;
            } else {
                continue;
            }
            if place == 0 {
                self.set_head(&block);
                continue;
            }
            if !run.is_empty() && (start + (run.len() / BLOCK) as u64 != place || run.len() >= MAX_WRITE) {
                self.write(start, &run)?;
                run.clear();
                if self.unsynced >= CHECKPOINT {
                    self.checkpoint()?;
                }
            }
            if run.is_empty() {
                start = place;
            }
            run.extend_from_slice(&block);
        }
        if run.is_empty() { Ok(()) } else { self.write(start, &run) }
    }

    /// Brings what was written to the medium, judges the chunks that are complete, then says so in the journal.
    fn checkpoint(&mut self) -> Result<(), InstallError> {
        self.target.sync().map_err(|e| InstallError::write(&self.plan.target, &e))?;
        self.unsynced = 0;
        let touched: Vec<u64> = self.touched.ones().collect();
        let mut bytes = vec![0; CHUNK];
        for chunk in touched {
            let blocks = self.chunk_blocks(chunk);
            if !self.have.all(blocks.clone()) {
                continue;
            }
            self.touched.set(chunk, false);
            let bytes = &mut bytes[..self.index.chunk_len(chunk)];
            if self.chunk_is_right(chunk, bytes)? {
                self.entry().done.set(chunk, true);
                continue;
            }
            if self.suspect.get(chunk) {
                let what =
                    format!("chunk {chunk} of {} is wrong even as it was fetched anew", self.plan.name);
                return Err(InstallError::new("os_corrupt", what));
            }
            self.suspect.set(chunk, true);
            self.doubt(chunk);
        }
        self.save()
    }

    /// All of a chunk is to be fetched anew.
    fn doubt(&mut self, chunk: u64) {
        let blocks = self.chunk_blocks(chunk);
        self.have.set_range(blocks, false);
        self.entry().done.set(chunk, false);
        if chunk == 0 {
            self.entry().head = None;
        }
    }

    fn save(&mut self) -> Result<(), InstallError> {
        self.journal.store(&self.record.to_bytes()).map_err(|e| InstallError::keep("the journal", &e))
    }

    /// Fetches until every chunk is right.
    fn fetch_missing(&mut self) -> Result<(), InstallError> {
        for _ in 0..ROUNDS {
            if self.entry().done.is_full() {
                return Ok(());
            }
            self.copy(&Found::nothing())?;
            self.fetch_round()?;
            self.checkpoint()?;
        }
        if self.entry().done.is_full() {
            return Ok(());
        }
        let what = format!("groups of {} came damaged again and again", self.plan.name);
        Err(InstallError::new("os_corrupt", what))
    }

    /// Fetches the groups of every block that is missing, once. What comes damaged stays missing.
    fn fetch_round(&mut self) -> Result<(), InstallError> {
        let header = self.index.header();
        let mut needed = Bits::new(header.groups.into());
        for place in 0..header.blocks() {
            if !self.have.get(place) {
                let number = self.map.at(self.index, place)?;
                if number != ZERO {
                    needed.set(self.index.group_of(number).into(), true);
                }
            }
        }
        let groups: Vec<u32> = needed.ones().filter_map(|g| u32::try_from(g).ok()).collect();
        let index = self.index;
        let length = |g: &u32| index.group_range(*g).end - index.group_range(*g).start;
        let total = groups.iter().map(length).sum();
        let mut done = 0;
        let mut rest = &groups[..];
        while !rest.is_empty() {
            let before = self.have.count();
            let (batch, whole, places) = self.places(rest)?;
            for request in requests(self.index, &rest[..batch]) {
                self.request(request, &places)?;
                done += request.iter().map(length).sum::<u64>();
                self.tell(Stage::Downloading, done.min(total), total);
            }
            // One block repeated over the whole image has more places than are kept: the same group again.
            if whole || self.have.count() == before {
                rest = &rest[batch..];
            }
        }
        Ok(())
    }

    /// Where the blocks of as many groups as fit go: how many groups, whether these are all places, and the places.
    fn places(&mut self, groups: &[u32]) -> Result<(usize, bool, Places), InstallError> {
        let mut batch = groups.len().min(1024);
        loop {
            let first = self.index.group_first(groups[0]);
            let end = self.index.group_first(groups[batch - 1] + 1);
            let mut places = Vec::new();
            let mut whole = true;
            for place in 0..self.index.header().blocks() {
                if self.have.get(place) {
                    continue;
                }
                let number = self.map.at(self.index, place)?;
                if (first..end).contains(&number) {
                    if places.len() == MAX_PLACES {
                        whole = false;
                        break;
                    }
                    places.push((number, u32::try_from(place).unwrap_or(u32::MAX)));
                }
            }
            if whole || batch == 1 {
                places.sort_unstable();
                return Ok((batch, whole, places));
            }
            batch /= 2;
        }
    }

    /// One request: neighbouring groups, those between them included.
    fn request(&mut self, groups: &[u32], places: &[(u32, u32)]) -> Result<(), InstallError> {
        let (Some(first), Some(last)) = (groups.first(), groups.last()) else { return Ok(()) };
        let to = self.index.group_range(*last).end;
        let blob = Sha256Hex::from_bytes(self.index.header().data_sha256);
        let index = self.index;
        let mut decoder = GroupDecoder::new();
        let mut buffer: Vec<u8> = Vec::new();
        let mut next = *first;
        while next <= *last {
            // Some groups at a time: what came is written before more is taken.
            let start = index.group_range(next).start;
            let enough = |g: &u32| index.group_range(*g).end - start >= PIECE as u64;
            let stop = (next..*last).find(enough).unwrap_or(*last);
            buffer.clear();
            self.net.fetch(blob, (start, index.group_range(stop).end, to), &mut |bytes| {
                buffer.extend_from_slice(bytes);
                Ok(())
            })?;
            for number in (next..=stop).filter(|g| groups.binary_search(g).is_ok()) {
                let range = index.group_range(number);
                let at = |place: u64| usize::try_from(place - start).unwrap_or(usize::MAX);
                let bytes = buffer.get(at(range.start)..at(range.end)).unwrap_or_default();
                let group = index.group(number).map_err(|e| format(&e))?;
                match decoder.decode(&group, bytes) {
                    Ok(raw) => self.place(group.first, raw, places)?,
                    Err(error) => {
                        tracing::warn!(payload = %self.plan.name, number, %error, "a group is fetched anew");
                    }
                }
            }
            if self.unsynced >= CHECKPOINT {
                self.checkpoint()?;
            }
            next = stop + 1;
        }
        Ok(())
    }

    /// Writes the blocks of a group wherever they are missing.
    fn place(&mut self, first: u32, raw: &[u8], places: &[(u32, u32)]) -> Result<(), InstallError> {
        let end = first + u32::try_from(raw.len() / BLOCK).unwrap_or(0);
        let from = places.partition_point(|(number, _)| *number < first);
        let to = places.partition_point(|(number, _)| *number < end);
        let mut some: Vec<(u32, u32)> =
            places[from..to].iter().map(|(number, place)| (*place, *number)).collect();
        some.sort_unstable();
        let block = |number: u32| &raw[(number - first) as usize * BLOCK..][..BLOCK];
        let mut run = Vec::with_capacity(MAX_WRITE.min(raw.len()));
        let mut start = 0;
        for (place, number) in some {
            if place == 0 {
                self.set_head(block(number));
                continue;
            }
            if !run.is_empty()
                && (start + (run.len() / BLOCK) as u64 != u64::from(place) || run.len() >= MAX_WRITE)
            {
                self.write(start, &run)?;
                run.clear();
            }
            if run.is_empty() {
                start = place.into();
            }
            run.extend_from_slice(block(number));
        }
        if run.is_empty() { Ok(()) } else { self.write(start, &run) }
    }

    /// Reads everything from the medium. `false` where a chunk is not what it was; it counts as missing then.
    fn read_back(&mut self) -> Result<bool, InstallError> {
        let target: &PathBuf = &self.plan.target;
        let write = |e: io::Error| InstallError::write(target, &e);
        self.target.sync().map_err(write)?;
        self.target.drop_caches().map_err(write)?;
        if !is_zero(&read_head(self.target, target)?) {
            let what = format!("the first block of {} is not as it was left", target.display());
            return Err(InstallError::new("os_readback", what));
        }
        let (chunks, size) = (self.index.header().chunks(), self.index.header().image_size);
        let mut whole = Sha256::new();
        let mut good = true;
        let mut bytes = vec![0; CHUNK];
        for chunk in 0..chunks {
            if chunk % 64 == 0 {
                self.tell(Stage::Verifying, chunk * CHUNK as u64, size);
                self.net.check()?;
            }
            let bytes = &mut bytes[..self.index.chunk_len(chunk)];
            if self.chunk_is_right(chunk, bytes)? {
                whole.update(&*bytes);
            } else {
                good = false;
                self.doubt(chunk);
            }
        }
        if good && whole.finalize()[..] != self.index.header().image_sha256 {
            return Err(InstallError::new(
                "os_corrupt",
                "the index does not describe the image the release names",
            ));
        }
        self.save()?;
        self.tell(Stage::Verifying, size, size);
        Ok(good)
    }
}

/// Groups that are asked for together.
fn requests<'a>(index: &'a Index<File>, groups: &'a [u32]) -> impl Iterator<Item = &'a [u32]> + 'a {
    let mut rest = groups;
    std::iter::from_fn(move || {
        let start = index.group_range(*rest.first()?).start;
        let near = rest.windows(2).take_while(|pair| {
            let (one, next) = (index.group_range(pair[0]), index.group_range(pair[1]));
            next.start - one.end <= MAX_GAP && next.end - start <= MAX_REQUEST
        });
        let (some, after) = rest.split_at(near.count() + 1);
        rest = after;
        Some(some)
    })
}
