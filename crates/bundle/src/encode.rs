//! Making an index and its data from a raw image, reading it twice and keeping none of it.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Seek, SeekFrom, Write},
};

use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_128;

use crate::{
    BLOCK, CHUNK, FormatError, Header, Index, MAX_GROUP_BLOCKS, MAX_IMAGE, ReadAt, ZERO, hint, is_zero, map,
};

/// The most bases one bundle is packed for.
pub const MAX_BASES: usize = 8;
/// Slow and small: a bundle is made once and fetched by every device.
const LEVEL: i32 = 19;
/// Blocks of a group where no older image is known: a device that lacks one of them fetches all.
const BLIND_GROUP_BLOCKS: usize = 256;

/// How an image is packed.
#[derive(Debug)]
pub struct Packing<'a> {
    /// Older images: blocks they lack are packed apart. At most [`MAX_BASES`].
    pub bases: &'a [Base],
    /// zstd's level of the data, 1 to 19.
    pub level: i32,
}

impl Default for Packing<'_> {
    fn default() -> Self {
        Self { bases: &[], level: LEVEL }
    }
}

/// What an older image has, by the hints of its blocks.
#[derive(Debug, Default)]
pub struct Base(HashSet<u64>);

impl Base {
    /// Reads an older raw image.
    ///
    /// # Errors
    /// The system's.
    pub fn from_image(mut image: impl Read) -> io::Result<Self> {
        let mut hints = HashSet::new();
        let mut block = vec![0; BLOCK];
        while fill(&mut image, &mut block)? == BLOCK {
            if !is_zero(&block) {
                hints.insert(hint(&block));
            }
        }
        Ok(Self(hints))
    }

    /// Takes the hints of an older image's index.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn from_index<R: ReadAt>(index: &Index<R>) -> Result<Self, FormatError> {
        let mut hints = HashSet::new();
        let mut some = vec![0; 8192];
        let distinct = index.header().distinct;
        for first in (0..distinct).step_by(some.len()) {
            let count = some.len().min((distinct - first) as usize);
            index.hints(first, &mut some[..count])?;
            hints.extend(&some[..count]);
        }
        Ok(Self(hints))
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// What stands first in the index.
    pub header: Header,
    /// Bytes of the index.
    pub index_size: u64,
    /// SHA-256 of the index.
    pub index_sha256: [u8; 32],
    /// For each base: bytes of groups with blocks it lacks.
    pub lacking: Vec<u64>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The image is none that can be carried.
    #[error("the image {0}")]
    Image(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

struct Distinct {
    /// Its first place in the image.
    first: u32,
    hint: u64,
    /// A bit for each base that has it.
    bases: u8,
}

/// Writes the data of an image, then its index. `progress` is told the share that is done, 0 to 1.
///
/// # Errors
/// [`EncodeError`].
pub fn encode(
    image: &mut (impl Read + Seek),
    packing: &Packing<'_>,
    data: &mut impl Write,
    index: &mut impl Write,
    mut progress: impl FnMut(f64),
) -> Result<Encoded, EncodeError> {
    let bases = packing.bases;
    if bases.len() > MAX_BASES {
        return Err(EncodeError::Image(format!("has {} bases, at most {MAX_BASES} are taken", bases.len())));
    }
    let size = image.seek(SeekFrom::End(0))?;
    if size == 0 || size > MAX_IMAGE || !size.is_multiple_of(BLOCK as u64) {
        let why = format!("has {size} bytes; whole blocks of {BLOCK} are needed, at most {MAX_IMAGE} bytes");
        return Err(EncodeError::Image(why));
    }
    image.seek(SeekFrom::Start(0))?;
    let mut scan = scan(image, size, bases, &mut progress)?;
    let order = order(&mut scan);
    let packed = pack(image, &scan.distinct, &order, packing, data, &mut progress)?;

    let (mut segments, mut frames) = (Vec::new(), Vec::new());
    for blocks in scan.map.chunks(map::SEGMENT_BLOCKS as usize) {
        let frame = zstd::bulk::compress(&map::encode(blocks), LEVEL)?;
        segments.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
        frames.extend_from_slice(&frame);
    }
    let header = Header {
        image_size: size,
        image_sha256: scan.sha256,
        data_size: packed.size,
        data_sha256: packed.sha256,
        distinct: u32::try_from(order.len()).unwrap_or(u32::MAX),
        groups: u32::try_from(packed.table.len() / crate::index::GROUP_ENTRY).unwrap_or(u32::MAX),
        map_size: frames.len() as u64,
    };
    let hints: Vec<u8> =
        order.iter().flat_map(|old| scan.distinct[*old as usize].hint.to_le_bytes()).collect();
    let mut hash = Sha256::new();
    let mut written = 0;
    for part in [&header.to_bytes()[..], &scan.chunks, &packed.table, &segments, &frames, &hints] {
        index.write_all(part)?;
        hash.update(part);
        written += part.len() as u64;
    }
    index.flush()?;
    Ok(Encoded { header, index_size: written, index_sha256: hash.finalize().into(), lacking: packed.lacking })
}

struct Scan {
    sha256: [u8; 32],
    chunks: Vec<u8>,
    /// The block at each place: first by order of appearance, after [`order`] by number.
    map: Vec<u32>,
    distinct: Vec<Distinct>,
}

/// First reading: hashes, equal blocks, and who has them.
fn scan(
    image: &mut impl Read,
    size: u64,
    bases: &[Base],
    progress: &mut impl FnMut(f64),
) -> Result<Scan, EncodeError> {
    let mut scan = Scan { sha256: [0; 32], chunks: Vec::new(), map: Vec::new(), distinct: Vec::new() };
    let mut whole = Sha256::new();
    // A collision of 128 bits would make a bundle no device accepts; it cannot make a device accept another image.
    let mut known: HashMap<u128, u32> = HashMap::new();
    let mut chunk = vec![0; CHUNK];
    let mut done = 0_u64;
    loop {
        let got = fill(image, &mut chunk)?;
        if got == 0 {
            break;
        }
        let chunk = &chunk[..got];
        done += got as u64;
        whole.update(chunk);
        scan.chunks.extend_from_slice(&Sha256::digest(chunk));
        for block in chunk.chunks(BLOCK) {
            let place = u32::try_from(scan.map.len()).map_err(|_| changed())?;
            if is_zero(block) {
                scan.map.push(ZERO);
                continue;
            }
            let next = u32::try_from(scan.distinct.len()).map_err(|_| changed())?;
            let number = *known.entry(XxHash3_128::oneshot(block)).or_insert(next);
            if number == next {
                let hint = hint(block);
                let bits = bases.iter().enumerate().map(|(i, b)| u8::from(b.0.contains(&hint)) << i);
                scan.distinct.push(Distinct { first: place, hint, bases: bits.sum() });
            }
            scan.map.push(number);
        }
        progress(0.1 * done as f64 / size as f64);
    }
    if done != size {
        return Err(changed());
    }
    scan.sha256 = whole.finalize().into();
    Ok(scan)
}

fn changed() -> EncodeError {
    EncodeError::Image("changed while it was read".to_owned())
}

/// Numbers the blocks anew: what most bases have first, alike ones together, each class in image order.
fn order(scan: &mut Scan) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(scan.distinct.len()).unwrap_or(u32::MAX)).collect();
    order.sort_by_key(|old| {
        let block = &scan.distinct[*old as usize];
        (u8::MAX - block.bases.count_ones() as u8, block.bases, block.first)
    });
    let mut new = vec![0; order.len()];
    for (number, old) in (0..).zip(&order) {
        new[*old as usize] = number;
    }
    for place in scan.map.iter_mut().filter(|p| **p != ZERO) {
        *place = new[*place as usize];
    }
    order
}

struct Packed {
    size: u64,
    sha256: [u8; 32],
    table: Vec<u8>,
    lacking: Vec<u64>,
}

/// Second reading: the data, group by group, compressed on every core.
fn pack(
    image: &mut (impl Read + Seek),
    distinct: &[Distinct],
    order: &[u32],
    packing: &Packing<'_>,
    data: &mut impl Write,
    progress: &mut impl FnMut(f64),
) -> Result<Packed, EncodeError> {
    let mut packed =
        Packed { size: 0, sha256: [0; 32], table: Vec::new(), lacking: vec![0; packing.bases.len()] };
    let mut hash = Sha256::new();
    // Blocks that the same older images have are wanted together or not at all, so their groups may be large and pack well.
    let largest = if packing.bases.is_empty() { BLIND_GROUP_BLOCKS } else { MAX_GROUP_BLOCKS as usize };
    let groups: Vec<&[u32]> = order
        .chunk_by(|a, b| distinct[*a as usize].bases == distinct[*b as usize].bases)
        .flat_map(|class| class.chunks(largest))
        .collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let total = groups.len();
    let mut done = 0;
    for some in groups.chunks(workers * 4) {
        let mut raw = Vec::with_capacity(some.len());
        for group in some {
            let mut bytes = vec![0; group.len() * BLOCK];
            for (old, block) in group.iter().zip(bytes.chunks_mut(BLOCK)) {
                image.seek(SeekFrom::Start(u64::from(distinct[*old as usize].first) * BLOCK as u64))?;
                image.read_exact(block)?;
            }
            raw.push(bytes);
        }
        for (group, frame) in some.iter().zip(compress(&raw, packing.level, workers)?) {
            data.write_all(&frame)?;
            hash.update(&frame);
            packed.size += frame.len() as u64;
            packed.table.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
            packed.table.extend_from_slice(&u32::try_from(group.len()).unwrap_or(u32::MAX).to_le_bytes());
            packed.table.extend_from_slice(&Sha256::digest(&frame));
            let class = distinct[group[0] as usize].bases;
            for (i, bytes) in packed.lacking.iter_mut().enumerate() {
                *bytes += if class >> i & 1 == 0 { frame.len() as u64 } else { 0 };
            }
        }
        done += some.len();
        progress(0.1 + 0.9 * done as f64 / total as f64);
    }
    data.flush()?;
    packed.sha256 = hash.finalize().into();
    Ok(packed)
}

fn compress(raw: &[Vec<u8>], level: i32, workers: usize) -> io::Result<Vec<Vec<u8>>> {
    let each = raw.len().div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = raw
            .chunks(each)
            .map(|some| {
                scope.spawn(move || -> io::Result<Vec<Vec<u8>>> {
                    let mut compressor = zstd::bulk::Compressor::new(level)?;
                    some.iter().map(|bytes| compressor.compress(bytes)).collect()
                })
            })
            .collect();
        let mut out = Vec::with_capacity(raw.len());
        for worker in running {
            out.extend(worker.join().map_err(|_| io::Error::other("a compressor gave up"))??);
        }
        Ok(out)
    })
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match from.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
