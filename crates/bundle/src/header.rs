//! The first 128 bytes of an index: what it is of, and how large everything is.

use crate::{BLOCK, CHUNK, FormatError, MAX_GROUP_BYTES, MAX_GROUPS, MAX_IMAGE, MAX_INDEX, map};

/// How an index begins: what it is, and the version of its format.
pub const MAGIC: &[u8; 8] = b"COPALIX1";
const PART: &str = "index";

/// What stands first in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the raw image.
    pub image_size: u64,
    /// SHA-256 of the raw image.
    pub image_sha256: [u8; 32],
    /// Bytes of the data blob.
    pub data_size: u64,
    /// SHA-256 of the data blob.
    pub data_sha256: [u8; 32],
    /// Distinct blocks that are not all zeros.
    pub distinct: u32,
    /// Groups of the data.
    pub groups: u32,
    /// Bytes of the compressed map.
    pub map_size: u64,
}

impl Header {
    /// Bytes of the header.
    pub const LEN: usize = 128;

    /// Chunks of the image.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.image_size.div_ceil(CHUNK as u64)
    }

    /// Blocks of the image.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.image_size / BLOCK as u64
    }

    /// Segments of the map.
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.blocks().div_ceil(u64::from(map::SEGMENT_BLOCKS))
    }

    /// Where the sections begin: chunks, groups, segments, map, hints; and the end.
    #[must_use]
    pub(crate) fn sections(&self) -> [u64; 6] {
        let mut at = Self::LEN as u64;
        let lengths = [
            self.chunks() * 32,
            u64::from(self.groups) * crate::index::GROUP_ENTRY as u64,
            self.segments() * 4,
            self.map_size,
            u64::from(self.distinct) * 8,
        ];
        let mut out = [at; 6];
        for (i, length) in lengths.into_iter().enumerate() {
            at += length;
            out[i + 1] = at;
        }
        out
    }

    /// Bytes of the whole index.
    #[must_use]
    pub fn index_size(&self) -> u64 {
        self.sections()[5]
    }

    /// Reads a header and checks that its numbers fit together.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let damaged = |why: &str| FormatError::damaged(PART, why);
        let bytes = bytes.get(..Self::LEN).ok_or_else(|| damaged("it is shorter than its header"))?;
        if &bytes[..8] != MAGIC {
            if bytes.starts_with(&MAGIC[..7]) {
                let found = String::from_utf8_lossy(&bytes[..8]).into_owned();
                return Err(FormatError::Newer { part: PART, found });
            }
            return Err(damaged("it does not begin as one"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let sha_at = |at: usize| -> [u8; 32] { bytes[at..at + 32].try_into().expect("32 bytes") };
        let header = Self {
            image_size: u64_at(8),
            image_sha256: sha_at(16),
            data_size: u64_at(48),
            data_sha256: sha_at(56),
            distinct: u32_at(96),
            groups: u32_at(100),
            map_size: u64_at(112),
        };
        if u32_at(88) != CHUNK as u32 || u32_at(92) != BLOCK as u32 {
            return Err(damaged("its chunks or blocks are of another size"));
        }
        if u32_at(104) != 0 {
            return Err(FormatError::Newer { part: PART, found: "it carries patches".to_owned() });
        }
        if u32_at(108) != 0 || u64_at(120) != 0 {
            return Err(damaged("reserved bytes are set"));
        }
        header.check()?;
        Ok(header)
    }

    /// The bytes of the header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&self.image_size.to_le_bytes());
        out[16..48].copy_from_slice(&self.image_sha256);
        out[48..56].copy_from_slice(&self.data_size.to_le_bytes());
        out[56..88].copy_from_slice(&self.data_sha256);
        out[88..92].copy_from_slice(&(CHUNK as u32).to_le_bytes());
        out[92..96].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        out[96..100].copy_from_slice(&self.distinct.to_le_bytes());
        out[100..104].copy_from_slice(&self.groups.to_le_bytes());
        out[112..120].copy_from_slice(&self.map_size.to_le_bytes());
        out
    }

    fn check(&self) -> Result<(), FormatError> {
        let damaged = |why: &str| Err(FormatError::damaged(PART, why));
        if self.image_size > MAX_IMAGE {
            return Err(FormatError::TooLarge { part: "image", found: self.image_size, limit: MAX_IMAGE });
        }
        if self.image_size == 0 || !self.image_size.is_multiple_of(BLOCK as u64) {
            return damaged("its image is not whole blocks");
        }
        if u64::from(self.distinct) > self.blocks() {
            return damaged("it has more distinct blocks than blocks");
        }
        if self.groups > self.distinct || (self.groups == 0) != (self.distinct == 0) {
            return damaged("its number of groups does not fit its blocks");
        }
        if self.groups > MAX_GROUPS {
            let (found, limit) = (self.groups.into(), MAX_GROUPS.into());
            return Err(FormatError::TooLarge { part: "number of groups", found, limit });
        }
        if self.data_size > u64::from(self.groups) * u64::from(MAX_GROUP_BYTES) {
            return damaged("its data is larger than its groups can be");
        }
        if self.map_size > self.segments() * map::MAX_SEGMENT_BYTES as u64 {
            return damaged("its map is larger than it can be");
        }
        let size = self.index_size();
        if size > MAX_INDEX {
            return Err(FormatError::TooLarge { part: PART, found: size, limit: MAX_INDEX });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_groups_than_a_reader_keeps_in_memory_are_refused() {
        let with = |groups| Header {
            image_size: MAX_IMAGE,
            image_sha256: [0; 32],
            data_size: u64::from(groups),
            data_sha256: [0; 32],
            distinct: 1 << 22,
            groups,
            map_size: 0,
        };
        assert!(Header::parse(&with(MAX_GROUPS).to_bytes()).is_ok());
        let refused = Header::parse(&with(MAX_GROUPS + 1).to_bytes());
        assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
    }
}
