//! Groups: blocks compressed together.

use ruzstd::decoding::FrameDecoder;
use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_64;

use crate::{BLOCK, FormatError, MAX_GROUP_BLOCKS, index::Group};

/// The 64 bits a block is searched by. Two blocks may share them; never a proof.
#[must_use]
pub fn hint(block: &[u8]) -> u64 {
    XxHash3_64::oneshot(block)
}

/// Takes groups apart. Keeps its memory between groups.
pub struct GroupDecoder {
    frames: FrameDecoder,
    raw: Vec<u8>,
}

impl std::fmt::Debug for GroupDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupDecoder").finish_non_exhaustive()
    }
}

impl Default for GroupDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl GroupDecoder {
    /// Takes memory for the largest group.
    #[must_use]
    pub fn new() -> Self {
        Self { frames: decoder(MAX_GROUP_BLOCKS as usize * BLOCK), raw: Vec::new() }
    }

    /// The blocks of a group, one after the other. The bytes must be those the index names: only what is known to be
    /// right reaches the decompressor.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] where the hash or the length is another.
    pub fn decode(&mut self, group: &Group, bytes: &[u8]) -> Result<&[u8], FormatError> {
        const PART: &str = "group";
        if bytes.len() != group.len as usize || Sha256::digest(bytes)[..] != group.sha256 {
            return Err(FormatError::damaged(PART, "its bytes are not those the index names"));
        }
        let length = group.blocks as usize * BLOCK;
        unpack(&mut self.frames, bytes, length, &mut self.raw)
            .filter(|got| *got == length)
            .ok_or_else(|| FormatError::damaged(PART, "it does not unpack to its blocks"))?;
        Ok(&self.raw[..length])
    }
}

/// A decoder that never takes more than about `limit` bytes at once.
pub(crate) fn decoder(limit: usize) -> FrameDecoder {
    let mut frames = FrameDecoder::new();
    frames.set_max_window_size(limit.max(1024) as u64);
    frames
}

/// Unpacks one frame into at most `limit` bytes of `raw`; how many there were.
pub(crate) fn unpack(
    frames: &mut FrameDecoder,
    bytes: &[u8],
    limit: usize,
    raw: &mut Vec<u8>,
) -> Option<usize> {
    raw.clear();
    raw.resize(limit, 0);
    frames.decode_all(bytes, raw).ok()
}
