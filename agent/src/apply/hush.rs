//! Which of many like warnings deserve a line. A service that can never start fails every few minutes for as long as the
//! device lives; its log must show that once, now and then again, and still have room for the rest. Pure.

use std::collections::BTreeMap;

/// Reasons told apart at a time; a failure that words itself anew each time must not grow the memory.
const REASONS: usize = 16;

/// What was said of one thing so far.
#[derive(Debug, Default, Clone)]
pub struct Hush {
    seen: BTreeMap<String, u64>,
}

impl Hush {
    /// Counts a failure of `what`. `Some` with how often it came so far where it is to be said: the first time, the 4th, the 16th, …
    /// Numbers and ids in the text make no other reason of it.
    pub fn failed(&mut self, what: &str, why: &str) -> Option<u64> {
        let why = format!("{what}\n{}", plain(why));
        if !self.seen.contains_key(&why) && self.seen.len() >= REASONS {
            self.seen.clear();
        }
        let times = self.seen.entry(why).or_insert(0);
        *times += 1;
        let is_power_of_four = times.is_power_of_two() && times.trailing_zeros().is_multiple_of(2);
        is_power_of_four.then_some(*times)
    }
}

/// The text with every word that has a digit in it made one: ids, ports, times and counters.
fn plain(why: &str) -> String {
    let word = |w: &str| if w.contains(|c: char| c.is_ascii_digit()) { "#".to_owned() } else { w.to_owned() };
    why.split_whitespace().map(word).collect::<Vec<_>>().join(" ").chars().take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_said_at_widening_intervals_and_another_at_once() {
        let mut hush = Hush::default();
        let said: Vec<u64> = (0..300).filter_map(|_| hush.failed("web", "no such device")).collect();
        assert_eq!(said, [1, 4, 16, 64, 256]);
        assert_eq!(hush.failed("web", "no space"), Some(1));
        assert_eq!(hush.failed("web", "no such device"), None, "the other one changed nothing");
        assert_eq!(hush.failed("db", "no such device"), Some(1), "of another thing it is news");
    }

    #[test]
    fn ids_and_numbers_make_no_new_reason() {
        let mut hush = Hush::default();
        assert_eq!(hush.failed("web", "container 3fa9c2 ended after 12 s"), Some(1));
        assert_eq!(hush.failed("web", "container 77b1e0 ended after 9 s"), None);
    }

    #[test]
    fn endless_new_reasons_take_no_endless_memory() {
        let mut hush = Hush::default();
        for n in 0..10_000 {
            hush.failed("web", &"x".repeat(n % 1000));
        }
        assert!(hush.seen.len() <= REASONS);
    }
}
