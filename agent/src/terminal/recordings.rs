//! Recordings of sessions under a grant. They stay on the device until an operator fetches one by another grant. One of the last
//! days is never let go of for a new session: else whoever is seen in it could push it out by opening more.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use copal_protocol::{
    asciicast,
    ids::SessionId,
    terminal::{MAX_SEALED, Says},
};

use super::open::Record;
use crate::channel::streams::{End, StreamIo};

const FOLDER: &str = "recordings";
/// As many are kept.
const KEPT: usize = 200;
/// Bytes of all together; the oldest go first.
const KEPT_BYTES: u64 = 64 << 20;
/// One that is younger stays, and what needs its place is not opened.
const STAYS: Duration = Duration::from_secs(7 * 86_400);
/// Bytes of one: a session that says more ends.
const MAX_BYTES: u64 = 32 << 20;

/// The folder.
#[derive(Debug, Clone)]
pub struct Recordings(PathBuf);

impl Recordings {
    /// Below the state folder; made when it is needed.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self(state_dir.join(FOLDER))
    }

    fn path(&self, session: SessionId) -> PathBuf {
        self.0.join(format!("{session}.cast"))
    }

    /// Begins one. What cannot be recorded is not opened.
    pub(super) fn begin(&self, record: &Record, cols: u16, rows: u16) -> Result<Recording, End> {
        let path = self.path(record.session_id);
        let make = || {
            fs::create_dir_all(&self.0)?;
            if !self.prune()? {
                return Ok(None);
            }
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            let mut recording = Recording {
                file: io::BufWriter::with_capacity(16 << 10, file),
                recorder: asciicast::Recorder::default(),
                written: 0,
            };
            let title = format!("{} by {}: {}", record.target, record.by(), record.reason);
            recording.write(&asciicast::header(cols, rows, record.since, &title))?;
            Ok(Some(recording))
        };
        make().map_err(|e: io::Error| not_kept(&path, &e))?.ok_or_else(|| {
            let why = "recordings of the last 7 days take all their place on the device, and none goes for a new session";
            End::because("recordings_full", why)
        })
    }

    /// Removes the oldest until one more finds its place; `false` where it finds none.
    fn prune(&self) -> io::Result<bool> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)?.flatten() {
            let meta = entry.metadata()?;
            found.push((meta.modified()?, meta.len(), entry.path()));
        }
        found.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (n, (at, length, path)) in found.into_iter().enumerate() {
            bytes += length;
            if n + 1 >= KEPT || bytes > KEPT_BYTES - MAX_BYTES {
                // One from the future is young: the clock may not be set yet.
                if at.elapsed().map_or(true, |age| age < STAYS) {
                    return Ok(false);
                }
                fs::remove_file(path)?;
            }
        }
        Ok(true)
    }

    /// Sends one, sealed, to whoever was granted it.
    pub(super) async fn send(&self, of: SessionId, mut says: Says, io: &StreamIo) -> Result<End, End> {
        let unknown = |e: io::Error| {
            End::because("recording_unknown", format!("the recording of {of} cannot be read here: {e}"))
        };
        let mut file = fs::File::open(self.path(of)).map_err(unknown)?;
        io.opened();
        let mut piece = vec![0; MAX_SEALED];
        loop {
            let n = file.read(&mut piece).map_err(unknown)?;
            if n == 0 {
                return Ok(End::ended());
            }
            if io.send(says.seal(&piece[..n]).into()).await.is_err() {
                return Ok(End::because("ended", "nobody reads it any more"));
            }
        }
    }
}

fn not_kept(path: &Path, error: &io::Error) -> End {
    End::because(
        "failed",
        format!("{}: the recording cannot be kept, so the session ends: {error}", path.display()),
    )
}

/// One that is being written.
pub(super) struct Recording {
    file: io::BufWriter<fs::File>,
    recorder: asciicast::Recorder,
    written: u64,
}

impl Recording {
    fn write(&mut self, lines: &str) -> io::Result<()> {
        self.written += lines.len() as u64;
        self.file.write_all(lines.as_bytes())
    }

    /// Writes within the bound of one: what is not recorded does not go on.
    fn go_on(&mut self, lines: &str) -> Result<(), End> {
        if self.written + lines.len() as u64 > MAX_BYTES {
            let why =
                format!("the recording on the device has {MAX_BYTES} bytes, which is as many as it may");
            return Err(End::because("bytes_over", why));
        }
        self.write(lines).map_err(|e| not_kept(Path::new(FOLDER), &e))
    }

    pub(super) fn output(&mut self, at: Duration, bytes: &[u8]) -> Result<(), End> {
        let lines = self.recorder.output(at, bytes);
        self.go_on(&lines)
    }

    pub(super) fn resize(&mut self, at: Duration, cols: u16, rows: u16) -> Result<(), End> {
        let lines = self.recorder.resize(at, cols, rows);
        self.go_on(&lines)
    }

    /// To the disk, as far as it came.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        self.file.flush().map_err(|e| not_kept(Path::new(FOLDER), &e))
    }

    pub(super) fn finish(&mut self, at: Duration) {
        let lines = self.recorder.finish(at);
        let written = self.write(&lines).and_then(|()| self.file.flush());
        if let Err(error) = written.and_then(|()| self.file.get_ref().sync_all()) {
            tracing::warn!(%error, "the end of a recording could not be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::documents::TerminalTarget;

    use super::*;

    fn record(n: u8) -> Record {
        Record {
            session_id: SessionId::from_bytes([n; 16]),
            target: TerminalTarget::Host,
            who: "anna".to_owned(),
            reason: "it is slow".to_owned(),
            since: None,
            granted: true,
            signed_by: None,
            container: None,
            shell: String::new(),
            exec: None,
            pid: None,
        }
    }

    #[test]
    fn a_recording_has_every_byte_and_none_of_the_last_days_goes_for_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::of(dir.path());
        for n in 0..30 {
            let mut recording = recordings.begin(&record(n), 80, 24).unwrap();
            recording.output(Duration::from_secs(1), b"\xff\x00 h\xc3\xa9").unwrap();
            recording.resize(Duration::from_secs(2), 100, 30).unwrap();
            recording.output(Duration::from_secs(3), &[n]).unwrap();
            recording.finish(Duration::from_secs(4));
            let text = fs::read_to_string(recordings.path(record(n).session_id)).unwrap();
            assert_eq!(asciicast::output(&text), [b"\xff\x00 h\xc3\xa9", &[n][..]].concat());
        }
        for n in [99, 97] {
            let mut long = recordings.begin(&record(n), 80, 24).unwrap();
            let line = "x".repeat(1 << 20);
            let ended = (0..40).find_map(|_| long.output(Duration::ZERO, line.as_bytes()).err()).unwrap();
            assert_eq!(ended.code, "bytes_over");
            assert!(long.written <= MAX_BYTES);
        }
        let path = |n| recordings.path(record(n).session_id);
        assert!((0..30).all(|n| path(n).exists()), "short ones do not push each other out");
        // With the two long ones the bytes are used up: no new session opens, until one is old.
        assert_eq!(recordings.begin(&record(98), 80, 24).err().unwrap().code, "recordings_full");
        assert!((0..30).all(|n| path(n).exists()) && path(99).exists() && !path(98).exists());
        let file = fs::OpenOptions::new().write(true).open(path(99)).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * STAYS).unwrap();
        recordings.begin(&record(98), 80, 24).unwrap();
        assert!((0..30).all(|n| path(n).exists()) && !path(99).exists());
        assert_eq!(recordings.begin(&record(29), 80, 24).err().unwrap().code, "failed", "never written over");
    }
}
