//! `.dockerignore`: which files of a folder are not sent to the builder. Patterns are matched as Docker does: against
//! a path and each of its parents, the last matching pattern decides, `!` takes back.

use std::cell::Cell;

/// The most patterns a file may have.
const MAX_PATTERNS: usize = 1000;

/// The most characters of a pattern.
const MAX_PATTERN: usize = 1000;

/// How much matching one context may take, in comparisons of a name: less than a minute. Patterns can be made to take for
/// ever, and nothing could end them.
const MAX_WORK: u64 = 1_000_000_000;

/// Parsed patterns.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
    work: Cell<u64>,
}

#[derive(Debug)]
struct Pattern {
    back: bool,
    segments: Vec<Segment>,
}

#[derive(Debug, PartialEq)]
enum Segment {
    /// `**`: any number of names.
    Any,
    /// A pattern of one name.
    One(Vec<char>),
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_start_matches('\u{feff}');
        if let Some(line) = text.lines().position(|line| line.chars().count() > MAX_PATTERN) {
            return Err(format!(
                ".dockerignore:{}: a pattern has at most {MAX_PATTERN} characters",
                line + 1
            ));
        }
        let patterns = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let line = line.trim();
                let (back, line) = match line.strip_prefix('!') {
                    Some(rest) => (true, rest.trim()),
                    None => (false, line),
                };
                let mut segments: Vec<Segment> = Vec::new();
                for segment in line.split('/') {
                    match segment {
                        "" | "." => {}
                        ".." => {
                            segments.pop();
                        }
                        "**" if segments.last() == Some(&Segment::Any) => {}
                        "**" => segments.push(Segment::Any),
                        name => segments.push(Segment::One(name.chars().collect())),
                    }
                }
                (!segments.is_empty()).then_some(Pattern { back, segments })
            })
            .take(MAX_PATTERNS)
            .collect();
        Ok(Self { patterns, work: Cell::new(0) })
    }

    /// Whether matching took more than it may; then what it answers is worth nothing.
    pub(super) fn exhausted(&self) -> bool {
        self.work.get() >= MAX_WORK
    }

    /// Whether this path (below the context, `/` between names) stays out.
    pub(super) fn ignores(&self, path: &str) -> bool {
        let names: Vec<Vec<char>> = path.split('/').map(|name| name.chars().collect()).collect();
        let mut out = false;
        for pattern in &self.patterns {
            if self.exhausted() {
                return false;
            }
            if out == pattern.back && self.reaches(&pattern.segments, &names) {
                out = !pattern.back;
            }
        }
        out
    }

    /// Whether a folder that is ignored can be passed over: not when a pattern could take back something in it.
    pub(super) fn may_skip(&self, folder: &str) -> bool {
        self.ignores(folder) && !self.patterns.iter().any(|p| p.back)
    }

    /// Whether the pattern matches the path or one of its parents. All beginnings of the pattern are followed at once,
    /// so that it takes no more than names times segments.
    fn reaches(&self, pattern: &[Segment], names: &[Vec<char>]) -> bool {
        // at[i]: the first `i` segments match the names so far.
        let mut at = vec![false; pattern.len() + 1];
        at[0] = true;
        pass(pattern, &mut at);
        for name in names {
            let mut next = vec![false; pattern.len() + 1];
            for (i, segment) in pattern.iter().enumerate().filter(|(i, _)| at[*i]) {
                match segment {
                    Segment::Any => next[i] = true,
                    Segment::One(pattern) => {
                        let cost = 1 + (pattern.len() * name.len()) as u64 / 64;
                        self.work.set(self.work.get().saturating_add(cost));
                        next[i + 1] |= glob(pattern, name);
                    }
                }
            }
            pass(pattern, &mut next);
            if next[pattern.len()] {
                return true;
            }
            at = next;
        }
        false
    }
}

/// `**` matches no name as well.
fn pass(pattern: &[Segment], at: &mut [bool]) {
    for (i, segment) in pattern.iter().enumerate() {
        if at[i] && *segment == Segment::Any {
            at[i + 1] = true;
        }
    }
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\x` within one name. Remembers only the last star, so it is at most quadratic.
fn glob(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if let Some(next) = one(pattern, p, name[n]) {
            p = next;
            n += 1;
            continue;
        }
        let Some((after, from)) = star else { return false };
        star = Some((after, from + 1));
        p = after;
        n = from + 1;
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on after matching one character at `p`, if it does match.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match pattern.get(p)? {
        '?' => Some(p + 1),
        '\\' => (pattern.get(p + 1) == Some(&c)).then_some(p + 2),
        '[' => {
            let end = p + 2 + pattern.get(p + 2..)?.iter().position(|c| *c == ']')?;
            let mut class = &pattern[p + 1..end];
            let not = matches!(class.first(), Some('^' | '!'));
            if not {
                class = &class[1..];
            }
            let mut inside = false;
            while let [first, rest @ ..] = class {
                if let ['-', last, rest @ ..] = rest {
                    inside |= (*first..=*last).contains(&c);
                    class = rest;
                } else {
                    inside |= *first == c;
                    class = rest;
                }
            }
            (inside != not).then_some(end + 1)
        }
        literal => (*literal == c).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_docker_documents_them() {
        let cases: &[(&str, &str, bool)] = &[
            ("node_modules", "node_modules/x/y.js", true),
            ("node_modules", "src/node_modules/y.js", false),
            ("**/node_modules", "src/node_modules/y.js", true),
            ("*.md", "README.md", true),
            ("*.md", "docs/README.md", false),
            ("**/*.md", "README.md", true),
            ("*/temp*", "a/temporary.txt", true),
            ("*/temp*", "a/b/temporary.txt", false),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("# comment\n\n/foo/bar/", "foo/bar/baz", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("docs\n!docs/keep", "docs/keep/a", false),
            ("docs\n!docs/keep", "docs/drop", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a/../b", "b", true),
            ("", "x", false),
            ("*", "anything/below", true),
        ];
        for (text, path, want) in cases {
            assert_eq!(Ignore::parse(text).unwrap().ignores(path), *want, "{text:?} {path}");
        }
    }

    #[test]
    fn a_pattern_made_to_take_for_ever_ends() {
        let deep = vec!["a"; 64].join("/");
        let pattern = format!("{}b", "**/a/".repeat(60));
        let ignore = Ignore::parse(&pattern).unwrap();
        assert!(!ignore.ignores(&deep));
        assert!(ignore.work.get() < 64 * 64 * 2, "names times segments, not more: {}", ignore.work.get());
        ignore.work.set(MAX_WORK);
        assert!(ignore.exhausted());
        assert!(Ignore::parse(&"*".repeat(MAX_PATTERN + 1)).unwrap_err().contains(".dockerignore:1"));
    }

    proptest::proptest! {
        #[test]
        fn any_pattern_and_path_end(pattern in "[a*?\\[\\]^!\\\\/-]{0,30}", path in "[ab/]{1,40}") {
            let _ = Ignore::parse(&pattern).unwrap().ignores(&path);
        }
    }
}
