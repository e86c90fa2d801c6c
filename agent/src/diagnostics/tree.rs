//! What the system tells in files: `/proc`, `/sys`, `/etc`, `/run`. Every read is bounded, and a file that is not there is an
//! answer. Tests plant a tree of their own.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Bytes of a file that are read; what follows is left.
const MOST: u64 = 256 << 10;
/// Entries of a folder that are looked at.
const ENTRIES: usize = 1024;

/// The root of a file system to read of.
#[derive(Debug, Clone)]
pub struct Tree(PathBuf);

impl Tree {
    /// Reads below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Whether it is this machine's own, so that programs asked here speak of it too.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// A path of it; `inside` is relative to its root.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.0.join(inside.trim_start_matches('/'))
    }

    /// The beginning of a file, as text.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, inside: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.path(inside))?.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The beginning of a file; `None` where it cannot be read.
    #[must_use]
    pub fn text(&self, inside: &str) -> Option<String> {
        self.read(inside).ok()
    }

    /// A file of one line, without its ends.
    #[must_use]
    pub fn line(&self, inside: &str) -> Option<String> {
        Some(self.text(inside)?.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// A file that holds one decimal number.
    #[must_use]
    pub fn number(&self, inside: &str) -> Option<i64> {
        self.line(inside)?.parse().ok()
    }

    /// A file that holds one hexadecimal number, with or without `0x`.
    #[must_use]
    pub fn hex(&self, inside: &str) -> Option<u64> {
        let line = self.line(inside)?;
        u64::from_str_radix(line.strip_prefix("0x").unwrap_or(&line), 16).ok()
    }

    /// Names in a folder, sorted; none where it cannot be read.
    #[must_use]
    pub fn names(&self, inside: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(inside)).into_iter().flatten().flatten().take(ENTRIES);
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether something is there.
    #[must_use]
    pub fn has(&self, inside: &str) -> bool {
        self.path(inside).exists()
    }
}

/// The whole number after `word` in lines of `word number …`, as `/proc/vmstat` and `memory.events` have them.
#[must_use]
pub fn counter(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? == word { words.next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_no_failure_and_what_is_too_long_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        assert_eq!(
            (tree.text("proc/none"), tree.number("/proc/none"), tree.names("sys").len()),
            (None, None, 0)
        );
        fs::write(dir.path().join("long"), vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(tree.text("/long").unwrap().len() as u64, MOST);
        fs::write(dir.path().join("hex"), "0x50005\n").unwrap();
        assert_eq!((tree.hex("hex"), tree.number("hex")), (Some(0x50005), None));
        fs::write(dir.path().join("invalid"), b"\xff\xfe 1").unwrap();
        assert!(tree.text("invalid").is_some());
    }

    #[test]
    fn a_counter_is_found_by_its_whole_word() {
        let text = "oom 1\noom_kill 7\noom_group_kill 0\nbad x\n";
        assert_eq!(
            (counter(text, "oom_kill"), counter(text, "oom"), counter(text, "bad")),
            (Some(7), Some(1), None)
        );
    }
}
