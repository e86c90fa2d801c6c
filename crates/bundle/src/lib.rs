//! The format operating system images travel in.
//!
//! In: raw images (to make), an index and pieces of data of unknown honesty (to read). Out: the two blobs; blocks and the
//! hashes they must have. Never here: network, signatures, a device's disk; an image in memory; an allocation of a size
//! that was only claimed.
//!
//! An image of one partition becomes two blobs:
//! - the **index** ([`Index`]): the SHA-256 of each 64 KiB *chunk* (what is trusted), a 64-bit hint of each distinct 4 KiB
//!   *block* (what an old image is searched by, never trusted), which block stands where, and where its bytes lie;
//! - the **data**: *groups* of blocks, each a zstd frame of its own, so that a device fetches those it lacks by range.
//!
//! All-zero blocks are never carried; equal blocks are carried once. Blocks that older images have and blocks they lack
//! lie apart, so that who has the older image fetches few, whole ranges.
//!
//! A bundle [`file`] carries both, with the signed release, from hand to hand. The normative text is `docs/protocol.md`.
#![forbid(unsafe_code)]

#[cfg(feature = "encode")]
pub mod encode;
pub mod file;
mod group;
mod header;
mod index;
mod map;

pub use group::{GroupDecoder, hint};
pub use header::{Header, MAGIC};
pub use index::{Group, Index, ReadAt};

/// Bytes of a block: what is searched for and carried.
pub const BLOCK: usize = 4096;
/// Bytes of a chunk: what is hashed for trust.
pub const CHUNK: usize = 65_536;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u64 = (CHUNK / BLOCK) as u64;
/// The most blocks of a group, before compression.
pub const MAX_GROUP_BLOCKS: u32 = 1024;
/// The most groups an index may have: four times what the largest image needs. A reader keeps 16 bytes for each.
pub const MAX_GROUPS: u32 = 1 << 20;
/// The most bytes a group takes, compressed: incompressible blocks and zstd's framing.
pub const MAX_GROUP_BYTES: u32 = MAX_GROUP_BLOCKS * BLOCK as u32 + 4096;
/// The largest image.
pub const MAX_IMAGE: u64 = 64 << 30;
/// The largest index.
pub const MAX_INDEX: u64 = 256 << 20;
/// Stands for the number of a block that is all zeros.
pub const ZERO: u32 = u32::MAX;

/// Why an index, a group or a bundle file is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not what it should be.
    #[error("the {part} is damaged: {why}")]
    Damaged {
        /// Of what.
        part: &'static str,
        /// How it shows.
        why: String,
    },
    /// It is of a later format.
    #[error("the {part} is of a format this version does not know: {found}; update this program")]
    Newer {
        /// Of what.
        part: &'static str,
        /// What it says it is.
        found: String,
    },
    /// It exceeds a limit.
    #[error("the {part} is too large: {found}, at most {limit}")]
    TooLarge {
        /// What.
        part: &'static str,
        /// Its size.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// It could not be read.
    #[error("could not read the {part}: {why}")]
    Read {
        /// What.
        part: &'static str,
        /// The system's reason.
        why: String,
    },
}

impl FormatError {
    pub(crate) fn damaged(part: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { part, why: why.into() }
    }

    pub(crate) fn read(part: &'static str, error: &std::io::Error) -> Self {
        Self::Read { part, why: error.to_string() }
    }
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}
