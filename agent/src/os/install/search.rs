//! Finding blocks of the new image in the old slot, by hints, in one reading.

use copal_bundle::{BLOCK, FormatError, Index, ReadAt, hint, is_zero};

use super::bits::Bits;

/// Blocks numbered higher are only downloaded: 4 GiB of them, 20 MiB of tables.
pub(super) const MAX_SEARCHED: u32 = 1 << 20;
/// Stands for: not found.
const NOWHERE: u32 = u32::MAX;

/// Where each block lies in the old slot, so far as it was found.
pub(super) struct Found {
    places: Vec<u32>,
}

impl Found {
    /// Nothing was searched.
    pub(super) fn nothing() -> Self {
        Self { places: Vec::new() }
    }

    /// The block of the old slot that seems to be this one.
    pub(super) fn place(&self, block: u32) -> Option<u64> {
        self.places.get(block as usize).filter(|p| **p != NOWHERE).map(|p| u64::from(*p))
    }
}

/// Blocks that are looked for.
pub(super) struct Search {
    /// By hint.
    wanted: Vec<(u64, u32)>,
    /// Where the hints with each upper 16 bits begin in `wanted`, and the end.
    starts: Vec<u32>,
    found: Found,
    missing: usize,
}

impl Search {
    /// Looks for the blocks whose bits are set.
    pub(super) fn new<R: ReadAt>(index: &Index<R>, wanted: &Bits) -> Result<Self, FormatError> {
        let distinct = index.header().distinct.min(MAX_SEARCHED);
        let mut table = Vec::with_capacity(usize::try_from(wanted.count()).unwrap_or(0));
        let mut hints = vec![0; 8192];
        for first in (0..distinct).step_by(hints.len()) {
            let count = hints.len().min((distinct - first) as usize);
            index.hints(first, &mut hints[..count])?;
            let wanted = hints[..count].iter().zip(first..).filter(|(_, n)| wanted.get(u64::from(*n)));
            table.extend(wanted.map(|(hint, n)| (*hint, n)));
        }
        table.sort_unstable();
        let mut starts = Vec::with_capacity((1 << 16) + 1);
        for upper in 0..1_u64 << 16 {
            let at = table.partition_point(|(hint, _)| hint >> 48 < upper);
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
        starts.push(u32::try_from(table.len()).unwrap_or(u32::MAX));
        let missing = table.len();
        let found = Found { places: vec![NOWHERE; distinct as usize] };
        Ok(Self { wanted: table, starts, found, missing })
    }

    /// Whether nothing is left to look for.
    pub(super) fn is_over(&self) -> bool {
        self.missing == 0
    }

    /// Looks at some bytes of the old slot, from block `first` on.
    pub(super) fn look(&mut self, first: u64, bytes: &[u8]) {
        for (place, block) in (first..).zip(bytes.chunks_exact(BLOCK)) {
            if is_zero(block) {
                continue;
            }
            let hint = hint(block);
            let upper = (hint >> 48) as usize;
            let some = &self.wanted[self.starts[upper] as usize..self.starts[upper + 1] as usize];
            let at = some.partition_point(|(h, _)| *h < hint);
            for (_, number) in some[at..].iter().take_while(|(h, _)| *h == hint) {
                let known = &mut self.found.places[*number as usize];
                if *known == NOWHERE {
                    *known = u32::try_from(place).unwrap_or(NOWHERE);
                    self.missing -= 1;
                }
            }
        }
    }

    /// What was found.
    pub(super) fn done(self) -> Found {
        self.found
    }
}
