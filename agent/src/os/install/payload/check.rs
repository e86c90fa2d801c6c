//! What is on the medium, judged by the hashes of the index.

use std::{io, path::PathBuf};

use copal_bundle::{BLOCK, CHUNK, is_zero};
use sha2::{Digest as _, Sha256};

use super::{InstallError, Stage, Work, format};
use crate::os::install::read_head;

impl Work<'_> {
    /// Reads a chunk, the withheld head in its place, and judges it.
    pub(super) fn chunk_is_right(&mut self, chunk: u64, bytes: &mut [u8]) -> Result<bool, InstallError> {
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

    /// Brings what was written to the medium, judges the chunks that are complete, then says so in the journal.
    pub(super) fn checkpoint(&mut self) -> Result<(), InstallError> {
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

    /// Reads everything from the medium. `false` where a chunk is not what it was; it counts as missing then.
    pub(super) fn read_back(&mut self) -> Result<bool, InstallError> {
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
