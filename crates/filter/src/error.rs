//! What is wrong with a filter, where, and what was probably meant.

use std::fmt::Write as _;

/// A filter that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct Error {
    /// Where, in characters from 1.
    pub column: usize,
    /// What was expected, what was found, and what was probably meant.
    pub message: String,
}

/// How much of what was found is repeated.
const QUOTED: usize = 40;

impl Error {
    pub(crate) fn at(column: usize, message: impl Into<String>) -> Self {
        Self { column, message: message.into() }
    }

    /// The filter's line, a mark under the place, and the message: for a terminal or a `<pre>`.
    #[must_use]
    pub fn pointed(&self, text: &str) -> String {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut out = format!("{line}\n{:>width$}\n", '^', width = self.column);
        let _ = write!(out, "{}", self.message);
        out
    }
}

/// Text of a person within a message.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// The word that was probably meant: the one with the fewest changes, where those are few for its length.
pub(crate) fn nearest<'a>(word: &str, of: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(QUOTED).flat_map(char::to_lowercase).collect();
    of.map(|candidate| (distance(&word, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements between the two.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_meant_is_the_one_with_the_fewest_changes() {
        let of = || ["name", "online", "on_target", "os", "last_seen"].into_iter();
        assert_eq!(nearest("nmae", of()), None, "two changes of four are many");
        assert_eq!(nearest("nam", of()), Some("name"));
        assert_eq!(nearest("Online", of()), Some("online"));
        assert_eq!(nearest("ontarget", of()), Some("on_target"));
        assert_eq!(nearest("lastseen", of()), Some("last_seen"));
        assert_eq!(nearest("colour", of()), None);
    }

    #[test]
    fn the_mark_stands_under_the_place() {
        let shown = Error::at(3, "expected more").pointed("a = b");
        assert_eq!(shown, "a = b\n  ^\nexpected more");
    }
}
