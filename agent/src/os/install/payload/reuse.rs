//! What is there already: in the slot, from before or from a run that was cut short, and anywhere in the old slot.

use std::path::Path;

use copal_bundle::{BLOCK, CHUNK, ZERO, hint, is_zero};

use super::{Bits, CHECKPOINT, InstallError, MAX_WRITE, PIECE, Stage, Work, format};
use crate::os::install::search::{Found, MAX_SEARCHED, Search};

impl Work<'_> {
    /// What the slot holds already, at its place.
    pub(super) fn compare(&mut self) -> Result<(), InstallError> {
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

    /// Where the old slot has what is missing.
    pub(super) fn search(&mut self) -> Result<Found, InstallError> {
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
    pub(super) fn copy(&mut self, found: &Found) -> Result<(), InstallError> {
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
}
