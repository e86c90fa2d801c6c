//! A fixed number of yes and no.

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: u64,
}

impl Bits {
    /// All no.
    pub(super) fn new(len: u64) -> Self {
        Self { words: vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(0)], len }
    }

    pub(super) fn get(&self, at: u64) -> bool {
        at < self.len && self.words[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, at: u64, value: bool) {
        if at < self.len {
            let bit = 1 << (at % 64);
            let word = &mut self.words[(at / 64) as usize];
            *word = if value { *word | bit } else { *word & !bit };
        }
    }

    pub(super) fn set_range(&mut self, range: std::ops::Range<u64>, value: bool) {
        range.for_each(|at| self.set(at, value));
    }

    pub(super) fn all(&self, mut range: std::ops::Range<u64>) -> bool {
        range.all(|at| self.get(at))
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    pub(super) fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// The places of every yes, in order.
    pub(super) fn ones(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(i, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i as u64 * 64 + bit)
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let bytes = usize::try_from(self.len.div_ceil(8)).unwrap_or(0);
        self.words.iter().flat_map(|w| w.to_le_bytes()).take(bytes).collect()
    }

    /// `None` unless there are exactly as many bytes as `len` bits need, and none set past them.
    pub(super) fn from_bytes(bytes: &[u8], len: u64) -> Option<Self> {
        if bytes.len() as u64 != len.div_ceil(8) {
            return None;
        }
        let mut words: Vec<u64> = bytes
            .chunks(8)
            .map(|c| c.iter().enumerate().fold(0, |word, (i, b)| word | u64::from(*b) << (8 * i)))
            .collect();
        let over = words.last_mut().filter(|_| !len.is_multiple_of(64)).map(|w| *w >> (len % 64));
        (over.unwrap_or(0) == 0).then_some(Self { words, len })
    }
}
