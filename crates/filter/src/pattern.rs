//! Patterns: `*` stands for any run of characters, `?` for one, everything else for itself.

use std::fmt;

/// The most `*` of a pattern: each may cost the database a pass over the text.
const MAX_STARS: usize = 8;

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Takes text as a pattern; `None` where it has more than 8 runs of `*`.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            // Two stars stand for what one stands for.
            if c != '*' || !out.ends_with('*') {
                out.push(c);
            }
        }
        (out.matches('*').count() <= MAX_STARS).then_some(Self(out))
    }

    /// Whether it stands for this text. Time grows with the product of both lengths at most.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text): (Vec<char>, Vec<char>) = (self.0.chars().collect(), text.chars().collect());
        let (mut p, mut t) = (0, 0);
        // Where the last star stands, and how far what it stands for goes by now.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(c) if *c == '?' || *c == text[t] => {
                    p += 1;
                    t += 1;
                }
                _ => match &mut star {
                    Some((at, taken)) => {
                        *taken += 1;
                        (p, t) = (*at + 1, *taken);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == '*')
    }

    /// The pattern as people write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(text)
    }

    #[test]
    fn stars_stand_for_any_run_and_question_marks_for_one_character() {
        assert!(like("pi-*", "pi-") && like("pi-*", "pi-north") && !like("pi-*", "xpi-1"));
        assert!(like("*north", "pi-north") && !like("*north", "pi-northern"));
        assert!(like("a*b*c", "a-b-b-c") && !like("a*b*c", "a-c-b"));
        assert!(like("pi-?", "pi-é") && !like("pi-?", "pi-") && !like("pi-?", "pi-10"));
        assert!(like("", "") && like("*", "") && !like("", "x"));
        assert!(like("[a-c]", "[a-c]") && !like("[a-c]", "b"), "brackets stand for themselves");
        assert!(!like("Pi*", "pi-1"), "capitals matter");
    }

    #[test]
    fn a_pattern_that_would_be_dear_is_no_pattern() {
        assert!(Pattern::new(&"a*".repeat(9)).is_none());
        assert_eq!(Pattern::new("a****b").unwrap().as_str(), "a*b");
        assert!(!like("a*a*a*a*a*a*a*b", &"a".repeat(10_000)));
    }
}
