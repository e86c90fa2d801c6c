//! Credit of the channel's streams, the same on both sides and in both directions: who sends spends credit, who reads gives it
//! back. So a reader that stops costs the other side at most [`FIRST_CREDIT`](crate::channel::FIRST_CREDIT) bytes a stream.
//! Pure: nothing here waits, sends or reads.

use crate::channel::FIRST_CREDIT;

/// The most credit that is counted. Nobody gives as much; a sum beyond it is a mistake of the other side's.
const MOST: u32 = 1 << 24;
/// Credit is given back when so much was read, and not byte by byte. Less than all, so that the line never runs empty.
const GIVE: u32 = FIRST_CREDIT / 2;

/// What may still be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit(u32);

impl Default for Credit {
    fn default() -> Self {
        Self(FIRST_CREDIT)
    }
}

impl Credit {
    /// Whether nothing may be sent now.
    #[must_use]
    pub const fn is_spent(self) -> bool {
        self.0 == 0
    }

    /// Spends up to `wanted` bytes; how many may be sent.
    pub fn spend(&mut self, wanted: usize) -> usize {
        let bytes = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.0);
        self.0 -= bytes;
        bytes as usize
    }

    /// The reader gives more.
    pub fn add(&mut self, bytes: u32) {
        self.0 = self.0.saturating_add(bytes).min(MOST);
    }
}

/// What the other side may still send, and what it is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    open: u32,
    owed: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { open: FIRST_CREDIT, owed: 0 }
    }
}

/// More came than was given leave for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more bytes came than the stream has credit for")]
pub struct Overrun;

impl Window {
    /// Bytes came.
    ///
    /// # Errors
    /// When they are more than there was credit for.
    pub fn came(&mut self, bytes: usize) -> Result<(), Overrun> {
        let bytes = u32::try_from(bytes).map_err(|_| Overrun)?;
        self.open = self.open.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// Bytes were read; the credit to give back, where it is time to.
    #[must_use]
    pub fn read(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.owed < GIVE {
            return None;
        }
        let given = std::mem::take(&mut self.owed);
        self.open = self.open.saturating_add(given);
        Some(given)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credit_is_spent_once_and_a_sum_too_large_is_cut() {
        let mut credit = Credit::default();
        assert_eq!(credit.spend(FIRST_CREDIT as usize + 1), FIRST_CREDIT as usize);
        assert!(credit.is_spent());
        assert_eq!(credit.spend(1), 0);
        credit.add(u32::MAX);
        credit.add(u32::MAX);
        assert_eq!(credit.spend(usize::MAX), MOST as usize);
    }

    #[test]
    fn what_comes_without_credit_is_noticed() {
        let mut window = Window::default();
        assert_eq!(window.came(FIRST_CREDIT as usize), Ok(()));
        assert_eq!(window.came(1), Err(Overrun));
        assert_eq!(window.read(GIVE as usize - 1), None);
        assert_eq!(window.read(1), Some(GIVE));
        assert_eq!(window.came(GIVE as usize), Ok(()));
        assert_eq!(window.came(1), Err(Overrun));
    }

    proptest! {
        /// A sender that sends whatever it may, a reader that reads when it likes: the sender is never stuck for good, never
        /// overruns, and every byte arrives once.
        #[test]
        fn all_bytes_pass_whatever_the_steps(steps in prop::collection::vec((any::<bool>(), 1_usize..100_000), 1..200)) {
            let (mut credit, mut window) = (Credit::default(), Window::default());
            let (mut sent, mut read, mut under_way) = (0_u64, 0_u64, 0_usize);
            let mut step = |sends: bool, n: usize| {
                if sends {
                    let spent = credit.spend(n);
                    window.came(spent).unwrap();
                    under_way += spent;
                    sent += spent as u64;
                    assert!(under_way <= FIRST_CREDIT as usize);
                } else {
                    let n = n.min(under_way);
                    under_way -= n;
                    read += n as u64;
                    if let Some(more) = window.read(n) {
                        credit.add(more);
                    }
                }
                (under_way, sent, read)
            };
            for (sends, n) in steps {
                step(sends, n);
            }
            // Everything read: there is credit again, always.
            step(false, usize::MAX);
            let (under_way, ..) = step(true, 1);
            prop_assert_eq!(under_way, 1);
            let (_, sent, read) = step(false, 1);
            prop_assert_eq!(sent, read);
        }
    }
}
