//! `.dockerignore`: which files of a folder are not sent to the builder. Patterns are matched as Docker does: against
//! a path and each of its parents, the last matching pattern decides, `!` takes back.

/// The most patterns a file may have.
const MAX_PATTERNS: usize = 1000;

/// Parsed patterns.
#[derive(Debug, Default)]
pub(super) struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    back: bool,
    segments: Vec<String>,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Self {
        let patterns = text
            .trim_start_matches('\u{feff}')
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let line = line.trim();
                let (back, line) = match line.strip_prefix('!') {
                    Some(rest) => (true, rest.trim()),
                    None => (false, line),
                };
                let mut segments: Vec<String> = Vec::new();
                for segment in line.split('/') {
                    match segment {
                        "" | "." => {}
                        ".." => {
                            segments.pop();
                        }
                        name => segments.push(name.to_owned()),
                    }
                }
                (!segments.is_empty()).then_some(Pattern { back, segments })
            })
            .take(MAX_PATTERNS)
            .collect();
        Self(patterns)
    }

    /// Whether this path (below the context, `/` between names) stays out.
    pub(super) fn ignores(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        let mut out = false;
        for pattern in &self.0 {
            if out == pattern.back && (1..=names.len()).any(|n| segments(&pattern.segments, &names[..n])) {
                out = !pattern.back;
            }
        }
        out
    }

    /// Whether a folder that is ignored can be passed over: not when a pattern could take back something in it.
    pub(super) fn may_skip(&self, folder: &str) -> bool {
        self.ignores(folder) && !self.0.iter().any(|p| p.back)
    }
}

fn segments(pattern: &[String], names: &[&str]) -> bool {
    match (pattern.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            segments(rest, names) || names.split_first().is_some_and(|(_, more)| segments(pattern, more))
        }
        (Some((first, rest)), Some((name, more))) => {
            let (first, name): (Vec<char>, Vec<char>) = (first.chars().collect(), name.chars().collect());
            glob(&first, &name) && segments(rest, more)
        }
        _ => false,
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
            assert_eq!(Ignore::parse(text).ignores(path), *want, "{text:?} {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_pattern_and_path_end(pattern in "[a*?\\[\\]^!\\\\/-]{0,30}", path in "[ab/]{1,40}") {
            Ignore::parse(&pattern).ignores(&path);
        }
    }
}
