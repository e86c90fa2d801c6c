//! The segments on the disk. In: events, and what the cloud has. Out: the next batch. Thin over [`Medium`], whose every call is
//! one step a power cut can fall between.
//!
//! Appending goes on in the newest segment until it is full; a new one begins where that is torn. The newest always stays: its
//! head says how far numbers were given, so that none is given twice even when all else is gone.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use copal_protocol::{
    channel::{Batch, Class},
    telemetry::MAX_EVENT,
};
use serde_json::Value;

use super::segment::{self, Head, Line, Record, VERSION};

/// Items, and bytes of items, of one batch.
const BATCH: (usize, usize) = (100, 32 << 10);
/// A segment whose every event is stored is left behind from this size on.
const WORN: u64 = 16 << 10;
/// Bytes of a file that are read: a renumbered spool is one segment.
const MOST: u64 = 64 << 20;
/// Bytes around an event in its line.
const AROUND: usize = 64;

/// The folder the segments are in.
pub trait Medium: Send {
    /// The files in it.
    ///
    /// # Errors
    /// The system's.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A file's bytes.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file and brings it to the disk.
    ///
    /// # Errors
    /// The system's; part of it may be there then.
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Appends and brings it to the disk.
    ///
    /// # Errors
    /// The system's; part of it may be there then.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// A folder of the file system.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it where it is missing; whoever writes to it hears of a failure.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        Self(path)
    }
}

impl Medium for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.0.join(name))?.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(&self.0)?.sync_all()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.0.join(name))?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }
}

#[derive(Debug)]
struct Segment {
    /// Rises; names the file.
    index: u64,
    /// Numbers of its events: from, and one past the last.
    first: u64,
    next: u64,
    bytes: u64,
}

impl Segment {
    fn name(&self) -> String {
        format!("{:016x}.events", self.index)
    }
}

/// Events on the disk.
pub struct Spool {
    medium: Box<dyn Medium>,
    /// Bytes at most, and of one segment.
    most: (u64, u64),
    boot: String,
    segments: VecDeque<Segment>,
    /// The highest index of a file there is, whether or not it could be read.
    top: u64,
    /// The boot the newest segment's next event is taken for; `None`: nothing can be appended to it.
    tail: Option<String>,
    /// The next number.
    next: u64,
    /// The cloud has everything up to this; and as much of that as is written down.
    acked: u64,
    acked_written: u64,
}

fn index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".events")?, 16).ok()
}

impl Spool {
    /// Goes on where it was. What cannot be read is left out, and shows as a gap.
    #[must_use]
    pub fn open(medium: Box<dyn Medium>, boot: &str, most: u64) -> Self {
        let mut spool = Self {
            medium,
            most: (most, (most / 32).clamp(4 << 10, 128 << 10)),
            boot: boot.to_owned(),
            segments: VecDeque::new(),
            top: 0,
            tail: None,
            next: 1,
            acked: 0,
            acked_written: 0,
        };
        if let Err(error) = spool.load() {
            tracing::warn!(%error, "the spool of events cannot be read; it begins with what could be");
        }
        spool
    }

    fn load(&mut self) -> io::Result<()> {
        let mut found: Vec<u64> = self.medium.list()?.iter().filter_map(|name| index(name)).collect();
        found.sort_unstable();
        for index in found {
            self.top = index;
            let mut segment = Segment { index, first: 0, next: 0, bytes: 0 };
            let bytes = match self.medium.read(&segment.name()) {
                Ok(bytes) if !segment::is_later(&bytes) => bytes,
                // It stays, and what follows goes into a file after it: it may be read one day.
                passed => {
                    let error = passed.err().map(|e| e.to_string());
                    let why = error.as_deref().unwrap_or("a later agent wrote it");
                    tracing::warn!(file = segment.name(), why, "a segment of the spool is passed over");
                    self.tail = None;
                    continue;
                }
            };
            segment.bytes = bytes.len() as u64;
            let Some(read) = segment::read(&bytes) else {
                // Its head was torn: nothing in it was ever told to be kept.
                tracing::warn!(file = segment.name(), "a segment of the spool is not whole and is left out");
                let _ = self.medium.remove(&segment.name());
                continue;
            };
            // Of two that overlap the newer holds: what the older has more was not known to be written.
            if let Some(older) = self.segments.back_mut() {
                older.next = older.next.min(read.head.first);
            }
            segment.first = read.head.first;
            segment.next = read.records.last().map_or(read.head.first, |r| r.n + 1);
            self.acked = self.acked.max(read.acked);
            self.next = segment.next;
            self.tail = read.whole.then_some(read.boot);
            self.segments.push_back(segment);
        }
        self.acked_written = self.acked;
        // Numbers that were given are never given again, whatever became of them.
        self.next = self.next.max(self.acked + 1);
        Ok(())
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// How many events the cloud may not have.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.segments.iter().map(|s| s.next.saturating_sub(s.first.max(self.acked + 1))).sum()
    }

    /// The boot of the last event written down; `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<(String, Value)> {
        let last = self.records(self.segments.back()?).pop()?;
        Some((last.boot, last.event))
    }

    /// Writes events down, in order, after `lost` others that could not be kept. All of them or none; where it fails, nothing
    /// has changed and the same may be tried again.
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, events: &[Value], lost: u64) -> io::Result<()> {
        let mut next = self.next + lost;
        let mut lines = String::new();
        if self.acked > self.acked_written {
            segment::push(&mut lines, &Line::Acked { acked: self.acked });
        }
        for event in events {
            segment::push(&mut lines, &Line::Event { n: next, e: event.clone() });
            next += 1;
        }
        let full = |s: &Segment| {
            let worn = s.next <= self.acked + 1 && s.bytes >= WORN.min(self.most.1 / 2);
            worn || s.bytes + lines.len() as u64 > self.most.1
        };
        match (self.tail.clone(), self.segments.back()) {
            (Some(boot), Some(segment)) if !full(segment) => {
                let name = segment.name();
                if boot != self.boot {
                    let mut marked = String::new();
                    segment::push(&mut marked, &Line::Boot { boot: self.boot.clone() });
                    marked.push_str(&lines);
                    lines = marked;
                }
                self.make_room(lines.len() as u64);
                // From here on nobody knows how its file ends, until the write is known to be done.
                self.tail = None;
                if let Err(error) = self.medium.append(&name, lines.as_bytes()) {
                    if let Some(segment) = self.segments.back_mut() {
                        segment.bytes += lines.len() as u64;
                    }
                    return Err(error);
                }
            }
            _ => {
                let head = Head { v: VERSION, first: self.next, acked: self.acked, boot: self.boot.clone() };
                let mut bytes = String::new();
                segment::push(&mut bytes, &head);
                bytes.push_str(&lines);
                lines = bytes;
                let index = self.top + 1;
                self.make_room(lines.len() as u64);
                self.tail = None;
                let segment = Segment { index, first: self.next, next: self.next, bytes: 0 };
                self.medium.create(&segment.name(), lines.as_bytes())?;
                self.top = index;
                if let Some(older) = self.segments.back_mut() {
                    older.next = older.next.min(self.next);
                }
                self.segments.push_back(segment);
            }
        }
        self.tail = Some(self.boot.clone());
        self.acked_written = self.acked;
        self.next = next;
        if let Some(segment) = self.segments.back_mut() {
            segment.next = next;
            segment.bytes += lines.len() as u64;
        }
        self.forget();
        Ok(())
    }

    /// Gives the oldest events up until `more` bytes fit.
    fn make_room(&mut self, more: u64) {
        while self.segments.len() > 1 && self.bytes() + more > self.most.0 {
            let Some(oldest) = self.segments.front() else { return };
            let lost = oldest.next.saturating_sub(oldest.first.max(self.acked + 1));
            if lost > 0 {
                tracing::warn!(lost, "the spool is full: the oldest events are given up");
            }
            if !self.drop_front() {
                return;
            }
        }
    }

    /// Removes segments of which the cloud has everything; the newest stays.
    fn forget(&mut self) {
        while self.segments.len() > 1 && self.segments.front().is_some_and(|s| s.next <= self.acked + 1) {
            if !self.drop_front() {
                return;
            }
        }
    }

    fn drop_front(&mut self) -> bool {
        let Some(oldest) = self.segments.front() else { return false };
        let removed = self.medium.remove(&oldest.name());
        if let Err(error) = &removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a segment of the spool cannot be removed");
            return false;
        }
        self.segments.pop_front();
        true
    }

    fn records(&self, segment: &Segment) -> Vec<Record> {
        let bytes = self.medium.read(&segment.name()).unwrap_or_default();
        let mut records = segment::read(&bytes).map(|read| read.records).unwrap_or_default();
        records.retain(|r| r.n < segment.next);
        records
    }

    /// The oldest events that the cloud may not have; `None` where it has all.
    #[must_use]
    pub fn batch(&self) -> Option<Batch> {
        for segment in self.segments.iter().filter(|s| s.next > self.acked + 1) {
            let mut records = self.records(segment).into_iter().filter(|r| r.n > self.acked).peekable();
            let Some(first) = records.peek() else { continue };
            let (mut n, boot_id) = (first.n, first.boot.clone());
            let (first_seq, dropped) = (n, n - self.acked - 1);
            let (mut items, mut bytes) = (Vec::new(), 0);
            // One boot, and no number missing.
            for record in records {
                bytes += record.event.to_string().len();
                let fits = items.is_empty() || (items.len() < BATCH.0 && bytes <= BATCH.1);
                if !fits || record.n != n || record.boot != boot_id {
                    break;
                }
                items.push(record.event);
                n += 1;
            }
            return Some(Batch { class: Class::Event, boot_id, first_seq, dropped, items });
        }
        None
    }

    /// The cloud has everything up to this, and nothing above. That it has less than was known follows a cloud's return from a
    /// back-up; that it has more, this device's: then what waits gets numbers above.
    pub fn stored(&mut self, up_to: u64) {
        if up_to >= self.next {
            if let Err(error) = self.renumber(up_to) {
                tracing::warn!(%error, "events cannot get higher numbers now; tried again with the next channel");
            }
            return;
        }
        self.acked = up_to;
        self.forget();
    }

    /// Gives all that waits numbers above `floor`, in one new segment that replaces all.
    fn renumber(&mut self, floor: u64) -> io::Result<()> {
        tracing::warn!(
            floor,
            next = self.next,
            "the cloud knows events of this device from before its state was lost"
        );
        let waiting: Vec<Record> =
            self.segments.iter().flat_map(|s| self.records(s)).filter(|r| r.n > self.acked).collect();
        let boot = waiting.first().map_or_else(|| self.boot.clone(), |r| r.boot.clone());
        let mut lines = String::new();
        let mut of = boot.clone();
        segment::push(&mut lines, &Head { v: VERSION, first: floor + 1, acked: floor, boot });
        let mut next = floor + 1;
        for record in waiting {
            if record.boot != of {
                of.clone_from(&record.boot);
                segment::push(&mut lines, &Line::Boot { boot: record.boot });
            }
            segment::push(&mut lines, &Line::Event { n: next, e: record.event });
            next += 1;
        }
        let index = self.top + 1;
        let bytes = lines.len() as u64;
        let segment = Segment { index, first: floor + 1, next, bytes };
        self.medium.create(&segment.name(), lines.as_bytes())?;
        self.top = index;
        (self.acked, self.acked_written, self.next, self.tail) = (floor, floor, next, Some(of));
        for older in &mut self.segments {
            older.next = older.next.min(older.first);
        }
        self.segments.push_back(segment);
        self.forget();
        Ok(())
    }
}

/// Whether an event may be kept.
pub(super) fn fits(event: &Value) -> bool {
    event.to_string().len() + AROUND <= MAX_EVENT
}
