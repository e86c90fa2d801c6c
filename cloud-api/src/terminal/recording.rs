//! What is kept of a session: an asciicast in the folder `recordings` of the data folder, written as it happens.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use copal_protocol::{asciicast, ids::Sha256Hex};
use sha2::{Digest as _, Sha256};

use crate::config::Config;

/// Bytes of one: a session that says more ends. Output is bounded, too; most of it takes about as much here.
const MAX_BYTES: u64 = 128 << 20;

/// Where the recording of a session lies. `id` is one of ours: hex digits.
pub(crate) fn path(config: &Config, id: &str) -> PathBuf {
    config.recordings().join(format!("{id}.cast"))
}

/// One that is being written.
pub(super) struct Recording {
    file: io::BufWriter<fs::File>,
    recorder: asciicast::Recorder,
    hash: Sha256,
    written: u64,
    begun: Instant,
}

impl Recording {
    pub(super) fn begin(
        config: &Config,
        id: &str,
        size: (u16, u16),
        unix: u64,
        title: &str,
    ) -> io::Result<Self> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path(config, id))?;
        let mut recording = Self {
            file: io::BufWriter::with_capacity(32 << 10, file),
            recorder: asciicast::Recorder::default(),
            hash: Sha256::new(),
            written: 0,
            begun: Instant::now(),
        };
        recording.write(&asciicast::header(size.0, size.1, Some(unix), title))?;
        Ok(recording)
    }

    fn at(&self) -> Duration {
        self.begun.elapsed()
    }

    fn write(&mut self, lines: &str) -> io::Result<()> {
        if self.written + lines.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("it would be larger than {MAX_BYTES} bytes")));
        }
        self.file.write_all(lines.as_bytes())?;
        self.hash.update(lines);
        self.written += lines.len() as u64;
        Ok(())
    }

    pub(super) fn output(&mut self, bytes: &[u8]) -> io::Result<()> {
        let lines = self.recorder.output(self.at(), bytes);
        self.write(&lines)
    }

    pub(super) fn resize(&mut self, cols: u16, rows: u16) -> io::Result<()> {
        let lines = self.recorder.resize(self.at(), cols, rows);
        self.write(&lines)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Its bytes and their SHA-256, as far as it came.
    pub(super) fn finish(mut self) -> (u64, String) {
        let lines = self.recorder.finish(self.at());
        let written = self.write(&lines).and_then(|()| self.file.flush());
        if let Err(error) = written.and_then(|()| self.file.get_ref().sync_all()) {
            tracing::warn!(%error, "the end of a recording could not be written");
        }
        (self.written, Sha256Hex::from_bytes(self.hash.finalize().into()).to_string())
    }
}
