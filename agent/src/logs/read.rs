//! Reads rings in the order of their numbers, across services, while they are written.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use copal_protocol::logs::{LogLine, Sieve};

use super::ring::{file, firsts, folders, number};

/// Read at a time.
const PIECE: usize = 16 << 10;
/// Bytes of lines that are looked through before somebody else has a turn.
const LOOKED_AT: usize = 128 << 10;

/// Where a reader is.
pub(super) struct Reader {
    dir: PathBuf,
    /// Empty: all.
    services: Vec<String>,
    /// All numbers up to this were read, or are not wanted.
    after: u64,
    sieve: Sieve,
    open: BTreeMap<String, One>,
}

impl Reader {
    /// Lines after a number, or the last `tail` of those that the sieve takes.
    pub(super) fn open(
        dir: PathBuf,
        services: Vec<String>,
        after: Option<u64>,
        tail: u32,
        sieve: Sieve,
    ) -> io::Result<Self> {
        let after = match after {
            Some(after) => after,
            None => before_last(&dir, &services, tail as usize, &sieve)?,
        };
        Ok(Self { dir, services, after, sieve, open: BTreeMap::new() })
    }

    /// Whole lines, about `most` bytes of them, and whether there may be more now: what is not wanted is looked through piece by piece.
    pub(super) fn batch(&mut self, most: usize) -> io::Result<(Vec<u8>, bool)> {
        for service in names(&self.dir, &self.services) {
            self.open.entry(service).or_default();
        }
        let mut out = Vec::new();
        let mut looked_at = 0;
        while out.len() < most && looked_at < LOOKED_AT {
            let mut next: Option<(u64, &mut One)> = None;
            for (service, one) in &mut self.open {
                let Some(seq) = one.peek(&self.dir.join(service), self.after)? else { continue };
                if next.as_ref().is_none_or(|(least, _)| seq < *least) {
                    next = Some((seq, one));
                }
            }
            let Some((seq, one)) = next else { return Ok((out, false)) };
            let line = one.line();
            looked_at += line.len();
            if self.sieve.takes_all() || parsed(line).is_none_or(|line| self.sieve.takes(&line)) {
                out.extend_from_slice(line);
            }
            one.pass();
            self.after = seq;
        }
        Ok((out, true))
    }
}

/// A damaged line counts as wanted: whoever gets it sees that it is.
fn parsed(line: &[u8]) -> Option<LogLine> {
    serde_json::from_slice(line).ok()
}

/// The services of a reader that have a ring.
fn names(dir: &Path, wanted: &[String]) -> Vec<String> {
    if wanted.is_empty() {
        return folders(dir).unwrap_or_default().into_keys().collect();
    }
    wanted.iter().filter(|service| dir.join(service).is_dir()).cloned().collect()
}

/// One service's ring.
#[derive(Default)]
struct One {
    file: Option<(u64, File)>,
    read: Vec<u8>,
    /// Where in it the next line begins, and ends with its line end, once that is known.
    at: usize,
    end: Option<usize>,
}

impl One {
    fn line(&self) -> &[u8] {
        &self.read[self.at..self.end.unwrap_or(self.at)]
    }

    fn pass(&mut self) {
        self.at = self.end.take().unwrap_or(self.at);
    }

    /// The number of the next line past `after`.
    fn peek(&mut self, folder: &Path, after: u64) -> io::Result<Option<u64>> {
        loop {
            if self.end.is_none() {
                let found = self.read[self.at..].iter().position(|b| *b == b'\n');
                self.end = found.map(|end| self.at + end + 1);
            }
            if self.end.is_some() {
                match number(self.line()) {
                    Some(seq) if seq > after => return Ok(Some(seq)),
                    // Had already, or damaged.
                    _ => self.pass(),
                }
                continue;
            }
            if !self.more(folder, after)? {
                return Ok(None);
            }
        }
    }

    /// Reads on, in this file or the next; whether there was anything.
    fn more(&mut self, folder: &Path, after: u64) -> io::Result<bool> {
        self.read.drain(..std::mem::take(&mut self.at));
        let Some((first, _)) = &self.file else { return self.turn(begin(folder, after)?, folder) };
        let first = *first;
        // Looked for before the file's end is: once there is a next one, nothing is written to this one any more.
        let next = next(folder, first)?;
        if self.fill()? {
            return Ok(true);
        }
        if next.is_some() {
            self.read.clear();
        }
        self.turn(next, folder)
    }

    fn turn(&mut self, to: Option<u64>, folder: &Path) -> io::Result<bool> {
        let Some(first) = to else { return Ok(false) };
        match File::open(file(folder, first)) {
            Ok(open) => self.file = Some((first, open)),
            // Just let go of.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn fill(&mut self) -> io::Result<bool> {
        let Some((_, open)) = &mut self.file else { return Ok(false) };
        let had = self.read.len();
        self.read.resize(had + PIECE, 0);
        let got = open.read(&mut self.read[had..]);
        self.read.truncate(had + *got.as_ref().unwrap_or(&0));
        Ok(got? > 0)
    }
}

/// The file that holds the first line past a number.
fn begin(folder: &Path, after: u64) -> io::Result<Option<u64>> {
    let all = firsts_or_none(folder)?;
    let holds = all.iter().filter(|first| **first <= after.saturating_add(1)).max();
    Ok(holds.or_else(|| all.iter().min()).copied())
}

fn next(folder: &Path, first: u64) -> io::Result<Option<u64>> {
    Ok(firsts_or_none(folder)?.into_iter().filter(|other| *other > first).min())
}

fn firsts_or_none(folder: &Path) -> io::Result<Vec<u64>> {
    match firsts(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// The number before the last `tail` lines that are wanted. Where not all are, counts of lines that are not kept are no lines.
fn before_last(dir: &Path, services: &[String], tail: usize, sieve: &Sieve) -> io::Result<u64> {
    let counts = |line: &[u8]| {
        sieve.takes_all() || parsed(line).is_none_or(|line| line.line.is_some() && sieve.takes(&line))
    };
    let mut last: Vec<u64> = Vec::new();
    let mut newest = 0;
    for service in names(dir, services) {
        let folder = dir.join(&service);
        let mut all = firsts_or_none(&folder)?;
        all.sort_unstable();
        let mut found = 0;
        for first in all.into_iter().rev() {
            let Ok(text) = std::fs::read(file(&folder, first)) else { continue };
            let lines = text.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n"));
            let lines: Vec<(u64, &[u8])> = lines.filter_map(|line| Some((number(line)?, line))).collect();
            newest = newest.max(lines.last().map_or(0, |(seq, _)| *seq));
            if tail == 0 && !lines.is_empty() {
                break;
            }
            let before = last.len();
            last.extend(lines.into_iter().filter(|(_, line)| counts(line)).map(|(seq, _)| seq));
            found += last.len() - before;
            if found > tail {
                break;
            }
        }
    }
    last.sort_unstable();
    Ok(match last.len().checked_sub(tail + 1) {
        _ if tail == 0 => newest,
        Some(before) => last[before],
        // There are not so many.
        None => 0,
    })
}
