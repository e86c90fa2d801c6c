//! The map: which distinct block stands at each place of the image, in segments of 16,384 blocks (64 MiB).
//!
//! A segment is a zstd frame of runs. A run is a varint `length << 2 | kind`; kind 0 is a run of zeros; kinds 1 and 2 are
//! consecutive blocks whose first number follows as a zigzag varint, relative to the end of the last (1) or of the last
//! but one (2) such run of the segment; kind 3 is one block repeated, its number relative to the end of the last. Both
//! ends are 0 at the segment's beginning. A segment's runs fill it exactly.

use crate::{FormatError, ZERO};

/// Blocks of a segment; the last one may have fewer.
pub(crate) const SEGMENT_BLOCKS: u32 = 16_384;
/// The most a segment's runs take: each block its own run of two varints.
pub(crate) const MAX_SEGMENT_RAW: usize = SEGMENT_BLOCKS as usize * 8;
/// The most a segment takes in the index.
pub(crate) const MAX_SEGMENT_BYTES: usize = MAX_SEGMENT_RAW + 1024;

/// Runs of a segment as bytes, before compression.
#[cfg(feature = "encode")]
pub(crate) fn encode(blocks: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut ends = [0_i64; 2];
    let mut at = 0;
    while at < blocks.len() {
        let first = blocks[at];
        let rest = &blocks[at..];
        let same = rest.iter().take_while(|b| **b == first).count();
        if first == ZERO {
            put(&mut out, (same as u64) << 2);
            at += same;
            continue;
        }
        let rising = rest.iter().zip(first..).take_while(|(b, n)| **b == *n && **b != ZERO).count();
        let first = i64::from(first);
        if same > rising {
            put(&mut out, (same as u64) << 2 | 3);
            put(&mut out, zigzag(first - ends[0]));
            ends = [first + 1, ends[0]];
            at += same;
            continue;
        }
        let which = usize::from((first - ends[1]).abs() < (first - ends[0]).abs());
        put(&mut out, (rising as u64) << 2 | (1 + which as u64));
        put(&mut out, zigzag(first - ends[which]));
        ends = [first + rising as i64, ends[0]];
        at += rising;
    }
    out
}

/// The blocks of a segment from its runs.
pub(crate) fn decode(
    mut bytes: &[u8],
    count: usize,
    distinct: u32,
    out: &mut Vec<u32>,
) -> Result<(), FormatError> {
    let damaged = |why: &str| FormatError::damaged("index", format!("its map {why}"));
    out.clear();
    let mut ends = [0_i64; 2];
    while out.len() < count {
        let word = take(&mut bytes).ok_or_else(|| damaged("ends too early"))?;
        let length = usize::try_from(word >> 2).unwrap_or(usize::MAX);
        if length == 0 || length > count - out.len() {
            return Err(damaged("has a run that does not fit"));
        }
        let kind = word & 3;
        if kind == 0 {
            out.resize(out.len() + length, ZERO);
            continue;
        }
        let base = ends[usize::from(kind == 2)];
        let step = take(&mut bytes).map(unzigzag).ok_or_else(|| damaged("ends too early"))?;
        let spread = if kind == 3 { 1 } else { length };
        let first = base.checked_add(step).and_then(|first| u32::try_from(first).ok());
        let end = first.and_then(|first| first.checked_add(u32::try_from(spread).ok()?));
        let (Some(first), Some(end)) = (first, end.filter(|end| *end <= distinct)) else {
            return Err(damaged("names a block there is not"));
        };
        if kind == 3 {
            out.resize(out.len() + length, first);
        } else {
            out.extend(first..end);
        }
        ends = [i64::from(end), ends[0]];
    }
    if bytes.is_empty() { Ok(()) } else { Err(damaged("goes on after its end")) }
}

#[cfg(feature = "encode")]
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(feature = "encode")]
fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
