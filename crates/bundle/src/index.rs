//! An index, read from where it lies: nothing but two small tables is kept in memory.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use crate::{BLOCK, CHUNK, FormatError, Header, MAX_GROUP_BLOCKS, MAX_GROUP_BYTES, group, map};

const PART: &str = "index";
/// Bytes of a group's entry: compressed length, blocks, SHA-256.
pub(crate) const GROUP_ENTRY: usize = 40;

/// Bytes that can be read at a place.
pub trait ReadAt {
    /// Fills the whole buffer from `offset`.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A group as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Where it begins in the data.
    pub offset: u64,
    /// Its bytes there.
    pub len: u32,
    /// The number of its first block; the others follow.
    pub first: u32,
    /// How many blocks.
    pub blocks: u32,
    /// SHA-256 of its bytes in the data.
    pub sha256: [u8; 32],
}

/// See the module. Whether its bytes are the signed ones is for the caller to know before opening it.
#[derive(Debug)]
pub struct Index<R> {
    from: R,
    header: Header,
    sections: [u64; 6],
    /// Where each group begins in the data, and its first block; then the end of both.
    groups: Vec<(u64, u32)>,
    /// Where each segment of the map begins in the index; then the end.
    segments: Vec<u64>,
}

impl<R: ReadAt> Index<R> {
    /// Reads the header and the tables. `size` is the length of the whole index.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open(from: R, size: u64) -> Result<Self, FormatError> {
        if size > crate::MAX_INDEX {
            return Err(FormatError::TooLarge { part: PART, found: size, limit: crate::MAX_INDEX });
        }
        let mut bytes = [0; Header::LEN];
        from.read_at(0, &mut bytes).map_err(|e| FormatError::read(PART, &e))?;
        let header = Header::parse(&bytes)?;
        if header.index_size() != size {
            return Err(FormatError::damaged(PART, "its length is not what its header says"));
        }
        let sections = header.sections();
        let mut index = Self { from, header, sections, groups: Vec::new(), segments: Vec::new() };
        index.read_groups()?;
        index.read_segments()?;
        Ok(index)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        self.from.read_at(offset, buffer).map_err(|e| FormatError::read(PART, &e))
    }

    fn read_groups(&mut self) -> Result<(), FormatError> {
        let damaged = |why: &str| FormatError::damaged(PART, why);
        let (mut offset, mut first) = (0_u64, 0_u32);
        self.groups.reserve_exact(self.header.groups as usize + 1);
        let mut bytes = vec![0; GROUP_ENTRY * 1024];
        for start in (0..self.header.groups).step_by(1024) {
            let count = (self.header.groups - start).min(1024) as usize;
            let bytes = &mut bytes[..count * GROUP_ENTRY];
            self.read(self.sections[1] + u64::from(start) * GROUP_ENTRY as u64, bytes)?;
            for entry in bytes.chunks_exact(GROUP_ENTRY) {
                let (len, blocks) = sizes(entry);
                if len == 0 || len > MAX_GROUP_BYTES || blocks == 0 || blocks > MAX_GROUP_BLOCKS {
                    return Err(damaged("a group has an impossible size"));
                }
                self.groups.push((offset, first));
                offset += u64::from(len);
                first = first.checked_add(blocks).ok_or_else(|| damaged("it has too many blocks"))?;
            }
        }
        self.groups.push((offset, first));
        if offset != self.header.data_size || first != self.header.distinct {
            return Err(damaged("its groups are not its data"));
        }
        Ok(())
    }

    fn read_segments(&mut self) -> Result<(), FormatError> {
        let count = usize::try_from(self.header.segments()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; count * 4];
        self.read(self.sections[2], &mut bytes)?;
        let mut at = self.sections[3];
        for word in bytes.as_chunks::<4>().0 {
            let len = u32::from_le_bytes(*word);
            if len as usize > map::MAX_SEGMENT_BYTES {
                return Err(FormatError::damaged(PART, "a segment of its map is too long"));
            }
            self.segments.push(at);
            at += u64::from(len);
        }
        self.segments.push(at);
        if at == self.sections[4] {
            Ok(())
        } else {
            Err(FormatError::damaged(PART, "its map has another length"))
        }
    }

    /// What stands first.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The SHA-256 a chunk must have.
    ///
    /// # Errors
    /// [`FormatError::Read`].
    pub fn chunk_sha256(&self, chunk: u64) -> Result<[u8; 32], FormatError> {
        let mut sha256 = [0; 32];
        if chunk >= self.header.chunks() {
            return Err(FormatError::damaged(PART, format!("it has no chunk {chunk}")));
        }
        self.read(self.sections[0] + chunk * 32, &mut sha256)?;
        Ok(sha256)
    }

    /// Bytes of a chunk: all but the last have 64 KiB.
    #[must_use]
    pub fn chunk_len(&self, chunk: u64) -> usize {
        let rest = self.header.image_size.saturating_sub(chunk * CHUNK as u64);
        usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK)
    }

    /// How many segments the map has, and how many blocks of the image each stands for (the last may have fewer).
    #[must_use]
    pub fn segments(&self) -> (usize, u64) {
        (self.segments.len() - 1, u64::from(map::SEGMENT_BLOCKS))
    }

    /// The block numbers of a segment of the image, [`crate::ZERO`] where zeros stand.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn segment(&self, segment: usize, out: &mut Vec<u32>) -> Result<(), FormatError> {
        let Some([from, to]) = self.segments.get(segment..segment + 2) else {
            return Err(FormatError::damaged(PART, format!("it has no segment {segment}")));
        };
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
        self.read(*from, &mut bytes)?;
        let done = segment as u64 * u64::from(map::SEGMENT_BLOCKS);
        let count = (self.header.blocks() - done).min(u64::from(map::SEGMENT_BLOCKS));
        let mut raw = Vec::new();
        let got =
            group::unpack(&mut group::decoder(map::MAX_SEGMENT_RAW), &bytes, map::MAX_SEGMENT_RAW, &mut raw)
                .ok_or_else(|| FormatError::damaged(PART, "its map does not unpack"))?;
        map::decode(&raw[..got], usize::try_from(count).unwrap_or(0), self.header.distinct, out)
    }

    /// Fills the buffer with the hints of the blocks from `first` on.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn hints(&self, first: u32, out: &mut [u64]) -> Result<(), FormatError> {
        if u64::from(first) + out.len() as u64 > u64::from(self.header.distinct) {
            return Err(FormatError::damaged(PART, "it has fewer hints"));
        }
        let mut bytes = vec![0; out.len() * 8];
        self.read(self.sections[4] + u64::from(first) * 8, &mut bytes)?;
        for (hint, word) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *hint = u64::from_le_bytes(*word);
        }
        Ok(())
    }

    /// A group.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn group(&self, group: u32) -> Result<Group, FormatError> {
        let Some([(offset, first), (end, last)]) = self.groups.get(group as usize..group as usize + 2) else {
            return Err(FormatError::damaged(PART, format!("it has no group {group}")));
        };
        let mut entry = [0; GROUP_ENTRY];
        self.read(self.sections[1] + u64::from(group) * GROUP_ENTRY as u64, &mut entry)?;
        let (len, blocks) = (u32::try_from(end - offset).unwrap_or(u32::MAX), last - first);
        if sizes(&entry) != (len, blocks) {
            return Err(FormatError::damaged(PART, "it changed while it was read"));
        }
        let sha256 = entry[8..].try_into().expect("the rest of an entry");
        Ok(Group { offset: *offset, len, first: *first, blocks, sha256 })
    }

    /// The group a block lies in; meaningless for a number there is not.
    #[must_use]
    pub fn group_of(&self, block: u32) -> u32 {
        let after = self.groups.partition_point(|(_, first)| *first <= block);
        u32::try_from(after.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Where a group begins and ends in the data.
    #[must_use]
    pub fn group_range(&self, group: u32) -> std::ops::Range<u64> {
        let at = |i: usize| self.groups.get(i).map_or(self.header.data_size, |g| g.0);
        at(group as usize)..at(group as usize + 1)
    }

    /// The first block of a group; past the last group, the number of blocks.
    #[must_use]
    pub fn group_first(&self, group: u32) -> u32 {
        self.groups.get(group as usize).map_or(self.header.distinct, |g| g.1)
    }

    /// Bytes of the block's place in the image.
    #[must_use]
    pub fn place(block: u64) -> u64 {
        block * BLOCK as u64
    }
}

fn sizes(entry: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
    (word(0), word(4))
}
