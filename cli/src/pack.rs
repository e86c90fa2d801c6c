//! A folder as a compressed tar for `copal push`: honours `.dockerignore`, leaves `.git` out, and comes out the same for
//! the same content (sorted, no times, no owners), so that an unchanged folder is an unchanged build.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::failure::{Failure, Result};

/// The most bytes a folder may have before compression.
pub const MAX_BYTES: u64 = 2 << 30;
/// The most files.
pub const MAX_FILES: usize = 200_000;

/// The rules of a `.dockerignore`.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<(bool, Vec<String>)>,
}

impl Ignore {
    /// Reads the rules; later ones win, `!` takes back.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (out, pattern) = match line.strip_prefix('!') {
                Some(pattern) => (false, pattern.trim()),
                None => (true, line),
            };
            let parts: Vec<String> =
                pattern.split('/').filter(|p| !p.is_empty() && *p != ".").map(str::to_owned).collect();
            (!parts.is_empty()).then_some((out, parts))
        };
        Self { rules: text.trim_start_matches('\u{feff}').lines().filter_map(rule).collect() }
    }

    /// Whether a path (segments from the folder) stays out. A rule that matches a folder matches all in it.
    #[must_use]
    pub fn excludes(&self, path: &[&str]) -> bool {
        let mut out = false;
        for (excludes, pattern) in &self.rules {
            if *excludes != out && (1..=path.len()).any(|end| matches_path(pattern, &path[..end])) {
                out = *excludes;
            }
        }
        out
    }

    /// Whether some rule takes back: then an excluded folder has to be looked into.
    fn takes_back(&self) -> bool {
        self.rules.iter().any(|(excludes, _)| !excludes)
    }
}

/// `**` stands for any number of segments. Works through the pattern once a segment, so that no pattern is slow.
fn matches_path(pattern: &[String], path: &[&str]) -> bool {
    let mut reachable = vec![false; path.len() + 1];
    reachable[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if part == "**" {
            let mut any = false;
            for (at, slot) in next.iter_mut().enumerate() {
                any |= reachable[at];
                *slot = any;
            }
        } else {
            for at in 0..path.len() {
                next[at + 1] = reachable[at] && matches_segment(part, path[at]);
            }
        }
        reachable = next;
    }
    reachable[path.len()]
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\x` within a segment.
fn matches_segment(pattern: &str, text: &str) -> bool {
    let tokens = tokens(pattern);
    let text: Vec<char> = text.chars().collect();
    let mut reachable = vec![false; text.len() + 1];
    reachable[0] = true;
    for token in &tokens {
        let mut next = vec![false; text.len() + 1];
        if let Token::Any = token {
            let mut any = false;
            for (at, slot) in next.iter_mut().enumerate() {
                any |= reachable[at];
                *slot = any;
            }
        } else {
            for at in 0..text.len() {
                next[at + 1] = reachable[at] && token.fits(text[at]);
            }
        }
        reachable = next;
    }
    reachable[text.len()]
}

enum Token {
    Any,
    One,
    Literal(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn fits(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Literal(wanted) => *wanted == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '*' => out.push(Token::Any),
            '?' => out.push(Token::One),
            '\\' if at + 1 < chars.len() => {
                at += 1;
                out.push(Token::Literal(chars[at]));
            }
            '[' => match class(&chars[at + 1..]) {
                Some((token, length)) => {
                    out.push(token);
                    at += length;
                }
                None => out.push(Token::Literal('[')),
            },
            c => out.push(Token::Literal(c)),
        }
        at += 1;
    }
    out
}

/// Reads a class after its `[`; gives it with the number of characters up to and with its `]`.
fn class(chars: &[char]) -> Option<(Token, usize)> {
    let close = chars.iter().position(|c| *c == ']').filter(|at| *at > 0)?;
    let (negated, inside) = match chars[0] {
        '^' | '!' => (true, &chars[1..close]),
        _ => (false, &chars[..close]),
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < inside.len() {
        if at + 2 < inside.len() && inside[at + 1] == '-' {
            ranges.push((inside[at], inside[at + 2]));
            at += 3;
        } else {
            ranges.push((inside[at], inside[at]));
            at += 1;
        }
    }
    Some((Token::Class { negated, ranges }, close + 1))
}

/// Files the build starts from; they go along whatever is ignored.
fn is_needed(path: &[&str]) -> bool {
    let [name] = path else { return false };
    *name == ".dockerignore"
        || name.starts_with("Dockerfile")
        || ["docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml"].contains(name)
}

/// What a folder packs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Files and links.
    pub files: usize,
    /// Bytes before compression.
    pub bytes: u64,
}

/// Writes the folder as a gzip'd tar.
///
/// # Errors
/// Where a file cannot be read or named, or there is too much of it.
pub fn pack(folder: &Path, out: impl Write) -> Result<Packed> {
    let failed = |path: &Path, e: &dyn std::fmt::Display| {
        Failure::local(format!("pack {}", folder.join(path).display()), e.to_string())
    };
    let rules = match fs::read_to_string(folder.join(".dockerignore")) {
        Ok(text) => Ignore::parse(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ignore::default(),
        Err(e) => return Err(failed(Path::new(".dockerignore"), &e)),
    };
    let mut found = Vec::new();
    walk(folder, &mut Vec::new(), &rules, &mut found)?;
    let gzip = flate2::GzBuilder::new().mtime(0).write(out, flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let mut packed = Packed { files: 0, bytes: 0 };
    for path in found {
        let full = folder.join(&path);
        let meta = fs::symlink_metadata(&full).map_err(|e| failed(&path, &e))?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&meta, tar::HeaderMode::Deterministic);
        if meta.is_symlink() {
            let target = fs::read_link(&full).map_err(|e| failed(&path, &e))?;
            header.set_size(0);
            tar.append_link(&mut header, &path, target).map_err(|e| failed(&path, &e))?;
        } else if meta.is_dir() {
            header.set_size(0);
            tar.append_data(&mut header, &path, std::io::empty()).map_err(|e| failed(&path, &e))?;
            continue;
        } else {
            packed.bytes += meta.len();
            if packed.bytes > MAX_BYTES {
                return Err(failed(Path::new(""), &"there is more than 2 GiB of it")
                    .next("keep data and build output out with a .dockerignore"));
            }
            header.set_size(meta.len());
            let file = fs::File::open(&full).map_err(|e| failed(&path, &e))?;
            // A file that grows while it is read is cut at the size its header promises; a shrinking one is an error.
            let content = std::io::Read::take(file, meta.len());
            tar.append_data(&mut header, &path, content).map_err(|e| failed(&path, &e))?;
        }
        packed.files += 1;
    }
    tar.into_inner().and_then(flate2::write::GzEncoder::finish).map_err(|e| failed(Path::new(""), &e))?;
    Ok(packed)
}

fn walk(folder: &Path, at: &mut Vec<String>, rules: &Ignore, found: &mut Vec<PathBuf>) -> Result<()> {
    let dir = folder.join(at.iter().collect::<PathBuf>());
    let failed = |e: &dyn std::fmt::Display| Failure::local(format!("pack {}", dir.display()), e.to_string());
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|e| failed(&e))? {
        let name = entry.map_err(|e| failed(&e))?.file_name();
        names.push(name.into_string().map_err(|name| failed(&format!("{name:?} is not UTF-8")))?);
    }
    names.sort();
    for name in names {
        at.push(name);
        let segments: Vec<&str> = at.iter().map(String::as_str).collect();
        let out = segments == [".git"] || (rules.excludes(&segments) && !is_needed(&segments));
        let path: PathBuf = at.iter().collect();
        let meta = fs::symlink_metadata(folder.join(&path)).map_err(|e| failed(&e))?;
        let kind = meta.file_type();
        if !out && (kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            found.push(path);
        }
        if found.len() > MAX_FILES {
            return Err(failed(&format!("there are more than {MAX_FILES} files"))
                .next("keep data and build output out with a .dockerignore"));
        }
        let git = segments == [".git"];
        if kind.is_dir() && !git && (!out || rules.takes_back()) {
            walk(folder, at, rules, found)?;
        }
        at.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn excluded(rules: &str, path: &str) -> bool {
        Ignore::parse(rules).excludes(&path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn rules_mean_what_they_mean_to_docker() {
        for (rules, path, out) in [
            ("node_modules", "node_modules/a/b.js", true),
            ("node_modules", "web/node_modules/a", false),
            ("**/node_modules", "web/node_modules/a", true),
            ("*.md", "README.md", true),
            ("*.md", "docs/README.md", false),
            ("/*.md", "README.md", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z/x", true),
            ("target/", "target/debug", true),
            ("t?p[0-9]", "tap7", true),
            ("t?p[^0-9]", "tap7", false),
            ("# a comment", "# a comment", false),
            ("\\#x", "#x", true),
            ("[", "[", true),
            ("**", "anything/at/all", true),
            ("*\n!src", "src/main.rs", false),
        ] {
            assert_eq!(excluded(rules, path), out, "{rules:?} {path:?}");
        }
    }

    proptest! {
        #[test]
        fn no_rule_and_no_path_upsets_it(rules in "\\PC{0,40}", path in "[a-c/*\\[\\]]{1,20}") {
            excluded(&rules, &path);
        }
    }

    #[test]
    fn a_folder_packs_to_the_same_bytes_without_what_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("Dockerfile", "FROM scratch");
        put(".dockerignore", "*\n!src\nsrc/secret");
        put("src/a", "a");
        put("src/secret", "s");
        put("big", "x");
        put(".git/config", "url = https://token@host");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("src/link")).unwrap();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        let packed = pack(dir.path(), &mut one).unwrap();
        pack(dir.path(), &mut two).unwrap();
        assert_eq!(one, two);
        assert_eq!(packed, Packed { files: 4, bytes: 12 + 17 + 1 });
        let mut names = Vec::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(&one[..])).entries().unwrap() {
            let entry = entry.unwrap();
            if entry.header().entry_type().is_symlink() {
                assert_eq!(entry.size(), 0, "a link is packed as a link, never as what it points at");
            }
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names, [".dockerignore", "Dockerfile", "src", "src/a", "src/link"]);
    }
}
