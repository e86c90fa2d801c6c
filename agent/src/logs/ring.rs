//! Rings of lines on disk: a folder a service, files of lines in it named after the number of their first. Whole files go when
//! there is no more room. What was written survives the end of this process; the last seconds before a power cut may not, since
//! nothing here waits for the disk line by line.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use copal_protocol::logs::{LogLine, seq_of};
use serde::{Deserialize, Serialize};

use super::{Limits, split::Line};
use crate::state::StateDir;

/// Holds which numbers were given.
const NUMBERS: &str = "log-numbers";
/// Numbers put aside at a time: after a power cut they go on past all that anybody may have seen.
const ASIDE: u64 = 1 << 20;
const SUFFIX: &str = ".log";
/// Read at a time, where the newest of something is looked for.
const PIECE: u64 = 16 << 10;
/// Bytes that wait to be written, of one service.
const WAITING: usize = 32 << 10;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    boot_id: String,
    /// None at or past this was given.
    below: u64,
}

/// All rings.
pub(super) struct Rings {
    dir: PathBuf,
    limits: Limits,
    state: Arc<StateDir>,
    boot_id: String,
    /// The last number that was given.
    last: u64,
    below: u64,
    rings: BTreeMap<String, Ring>,
    /// Said once.
    full: bool,
}

#[derive(Default)]
struct Ring {
    /// First number and bytes of each file, the oldest first.
    files: VecDeque<(u64, u64)>,
    open: Option<File>,
    /// The last line's number within the service.
    n: u64,
    waiting: Vec<u8>,
    waiting_first: u64,
}

impl Rings {
    /// Opens what is there, and goes on after it.
    pub(super) fn open(
        dir: PathBuf,
        limits: Limits,
        state: Arc<StateDir>,
        boot_id: &str,
    ) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut rings = BTreeMap::new();
        let (mut last, mut damaged) = (0, false);
        for (service, files) in folders(&dir)? {
            let (ring, found, whole) = Ring::open(&dir.join(&service), files);
            last = last.max(found);
            damaged |= !whole;
            rings.insert(service, ring);
        }
        let numbers = state.load::<Numbers>(NUMBERS).unwrap_or_default().unwrap_or_default();
        if numbers.boot_id != boot_id || last == 0 || damaged {
            last = last.max(numbers.below);
        }
        let boot_id = boot_id.to_owned();
        let mut rings = Self { dir, limits, state, boot_id, last, below: 0, rings, full: false };
        rings.put_aside();
        Ok(rings)
    }

    fn put_aside(&mut self) {
        self.below = self.last + ASIDE;
        let numbers = Numbers { boot_id: self.boot_id.clone(), below: self.below };
        if let Err(error) = self.state.save(NUMBERS, &numbers) {
            tracing::debug!(%error, "the numbers of log lines cannot be written down");
        }
    }

    /// When the last line of a container that is kept was said.
    pub(super) fn last_of(&self, service: &str, container: &str) -> Option<String> {
        let ring = self.rings.get(service)?;
        let of = format!("\"container\":\"{container}\"");
        let at = |line: &[u8], _| {
            let text = std::str::from_utf8(line).ok()?;
            // Looked for first: parsing a whole ring takes long.
            let line: LogLine = text.contains(&of).then(|| serde_json::from_str(text).ok()).flatten()?;
            (line.container == container).then_some(line.at)
        };
        ring.waiting.rsplit(|b| *b == b'\n').find_map(|line| at(line, 0)).or_else(|| {
            let folder = self.dir.join(service);
            ring.files.iter().rev().find_map(|(first, _)| backwards(&file(&folder, *first), at).ok()?)
        })
    }

    /// Numbers a line. It can be read once it was written.
    pub(super) fn push(&mut self, service: &str, container: &str, line: Line) {
        let Line { at, stderr, cut, text } = line;
        let line = (Some(text), None);
        self.add(service, container, at, (stderr, cut), line);
    }

    /// Numbers a count of lines that are not kept.
    pub(super) fn push_dropped(&mut self, service: &str, container: &str, at: String, dropped: u64) {
        self.add(service, container, at, (false, false), (None, Some(dropped)));
    }

    fn add(
        &mut self,
        service: &str,
        container: &str,
        at: String,
        (stderr, cut): (bool, bool),
        (line, dropped): (Option<String>, Option<u64>),
    ) {
        if self.last + 1 >= self.below {
            self.put_aside();
        }
        self.last += 1;
        let ring = self.rings.entry(service.to_owned()).or_default();
        ring.n += 1;
        let (service, container) = (service.to_owned(), container.to_owned());
        let line = LogLine { seq: self.last, n: ring.n, service, at, container, stderr, cut, line, dropped };
        if ring.waiting.is_empty() {
            ring.waiting_first = self.last;
        }
        if let Ok(mut bytes) = serde_json::to_vec(&line) {
            bytes.push(b'\n');
            ring.waiting.extend_from_slice(&bytes);
        }
        if ring.waiting.len() >= WAITING {
            self.write();
        }
    }

    /// Writes what waits; the number of the last line that can be read.
    pub(super) fn write(&mut self) -> u64 {
        let Limits { service: of_all, file: of_one, .. } = self.limits;
        for (service, ring) in &mut self.rings {
            if ring.waiting.is_empty() {
                continue;
            }
            let written = ring.write(&self.dir.join(service), of_one, of_all);
            // A disk that is full or read-only: the lines are lost, which their numbers show.
            match written {
                Ok(()) => self.full = false,
                Err(error) if !self.full => {
                    self.full = true;
                    tracing::warn!(%error, service, "service logs cannot be written");
                }
                Err(_) => {}
            }
        }
        self.bound_all();
        self.last
    }

    /// Lets go of the oldest, of whichever service, until all fit.
    fn bound_all(&mut self) {
        let mut all: u64 = self.rings.values().map(Ring::bytes).sum();
        while all > self.limits.all {
            // What is being written stays, but where its service said nothing for longer than others.
            let oldest =
                self.rings.iter().filter_map(|(service, ring)| Some((ring.files.front()?.0, service)));
            let Some(service) = oldest.min().map(|(_, service)| service.clone()) else { return };
            let Some(ring) = self.rings.get_mut(&service) else { return };
            let folder = self.dir.join(&service);
            all = all.saturating_sub(ring.let_go(&folder));
            if ring.files.is_empty() {
                ring.open = None;
                let _ = fs::remove_dir(&folder);
            }
        }
    }
}

impl Ring {
    /// Gives the last number in it, and whether all of it could be read: a file on bad sectors costs its own lines, and neither
    /// those of others nor those to come.
    fn open(folder: &Path, mut firsts: Vec<u64>) -> (Self, u64, bool) {
        let mut ring = Self::default();
        let (mut last, mut whole) = (0, true);
        firsts.sort_unstable();
        for first in firsts {
            match fs::metadata(file(folder, first)) {
                Ok(about) => ring.files.push_back((first, about.len())),
                Err(_) => whole = false,
            }
        }
        // The newest may end in the middle of a line, or hold none.
        while let Some((first, bytes)) = ring.files.back_mut() {
            let path = file(folder, *first);
            match newest(&path) {
                Ok(Some((line, length))) => {
                    (ring.n, last) = (line.n, line.seq);
                    *bytes = length;
                    break;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, file = %path.display(), "lines of a service cannot be read any more and are left out");
                    whole = false;
                }
            }
            let _ = fs::remove_file(&path);
            ring.files.pop_back();
        }
        (ring, last, whole)
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    fn write(&mut self, folder: &Path, of_one: u64, of_all: u64) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let begins = self.files.back().is_none_or(|(_, bytes)| *bytes >= of_one);
        if begins {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let path = file(folder, self.waiting_first);
            self.open = Some(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?);
            self.files.push_back((self.waiting_first, 0));
        }
        let Some((first, bytes)) = self.files.back_mut() else { return Ok(()) };
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(OpenOptions::new().append(true).open(file(folder, *first))?),
        };
        if let Err(error) = open.write_all(&waiting) {
            // Whatever part of it was written must not run into the next line.
            let _ = open.set_len(*bytes);
            return Err(error);
        }
        *bytes += waiting.len() as u64;
        while self.bytes() > of_all && self.files.len() > 1 {
            self.let_go(folder);
        }
        Ok(())
    }

    fn let_go(&mut self, folder: &Path) -> u64 {
        let Some((first, bytes)) = self.files.pop_front() else { return 0 };
        let _ = fs::remove_file(file(folder, first));
        bytes
    }
}

/// The last line of a file, which is cut where it ends, and the file's length then.
fn newest(path: &Path) -> io::Result<Option<(LogLine, u64)>> {
    let mut whole = None;
    let line = backwards(path, |line, end| match whole {
        // What follows the last line end.
        None => {
            whole = Some(end - line.len() as u64);
            None
        }
        Some(_) => serde_json::from_slice(line).ok(),
    })?;
    let whole = whole.unwrap_or(0);
    if whole < fs::metadata(path)?.len() {
        // On a read-only disk nothing is written after it either.
        let cut = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(whole));
        if let Err(error) = cut {
            tracing::debug!(%error, file = %path.display(), "a torn line cannot be cut off");
        }
    }
    Ok(line.map(|line| (line, whole)))
}

/// The first that `wanted` gives of a file's lines, the newest first; what follows the last line end counts as one. It is told the
/// file's length, too. Read in pieces: a whole file at once would leave the heap as large as that.
fn backwards<T>(path: &Path, mut wanted: impl FnMut(&[u8], u64) -> Option<T>) -> io::Result<Option<T>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut from = length;
    let mut text = Vec::new();
    while from > 0 {
        let size = from.min(PIECE);
        from -= size;
        let mut piece = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut piece, from)?;
        piece.append(&mut text);
        text = piece;
        // The first line may begin before this piece.
        let begin = if from == 0 { Some(0) } else { text.iter().position(|b| *b == b'\n').map(|at| at + 1) };
        let Some(begin) = begin else { continue };
        let found = text[begin..].rsplit(|b| *b == b'\n').find_map(|line| wanted(line, length));
        if found.is_some() {
            return Ok(found);
        }
        text.truncate(begin.saturating_sub(1));
    }
    Ok(None)
}

pub(super) fn file(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}{SUFFIX}"))
}

/// First numbers of the files in a folder, in no order.
pub(super) fn firsts(folder: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse::<u64>().ok());
        firsts.extend(number);
    }
    Ok(firsts)
}

/// Services that have a ring, and the files of each.
pub(super) fn folders(dir: &Path) -> io::Result<BTreeMap<String, Vec<u64>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Ok(service) = entry.file_name().into_string()
            && entry.file_type()?.is_dir()
        {
            found.insert(service, firsts(&entry.path())?);
        }
    }
    Ok(found)
}

/// The number of a line in a file, for those who only look for it.
pub(super) fn number(line: &[u8]) -> Option<u64> {
    seq_of(line)
}
