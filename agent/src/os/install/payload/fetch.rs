//! What neither slot holds, by ranges of groups.

use std::fs::File;

use copal_bundle::{BLOCK, GroupDecoder, Index, ZERO};
use copal_protocol::ids::Sha256Hex;

use super::{Bits, CHECKPOINT, InstallError, MAX_WRITE, PIECE, Stage, Work, format};
use crate::os::install::search::Found;

/// The most one request asks for.
const MAX_REQUEST: u64 = 8 << 20;
/// Bytes that are fetched for nothing rather than asked around.
const MAX_GAP: u64 = 16 << 10;
/// Places of blocks kept in memory at once.
const MAX_PLACES: usize = 1 << 20;
/// How often what is wrong is fetched anew: a chunk that is wrong twice is not fetched a third time.
const ROUNDS: usize = 3;

/// Numbers of blocks and where they go, sorted.
type Places = Vec<(u32, u32)>;

impl Work<'_> {
    /// Fetches until every chunk is right.
    pub(super) fn fetch_missing(&mut self) -> Result<(), InstallError> {
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
