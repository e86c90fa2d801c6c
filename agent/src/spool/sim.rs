//! For tests: a folder in memory that loses power at any step, and a cloud that takes events as the protocol says.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use copal_protocol::channel::Batch;
use serde_json::Value;

use super::disk::Medium;

/// Shared, so that it outlives the spool that was cut off.
#[derive(Clone, Default)]
pub(super) struct Memory(pub(super) Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Steps until the power goes, and how many bytes of the write it goes in reach the disk.
    pub(super) cut: Option<(usize, usize)>,
    pub(super) writes: usize,
    pub(super) written: usize,
    /// Every write fails, as on a disk that is full.
    pub(super) full: bool,
    /// A file on sectors that cannot be read.
    pub(super) unreadable: Option<String>,
}

impl State {
    /// How many of these bytes are written, and whether that is all that will ever be.
    fn step(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        if self.full {
            return (bytes.len() / 2, Err(io::ErrorKind::StorageFull.into()));
        }
        match &mut self.cut {
            Some((0, torn)) => {
                let kept = std::mem::take(torn).min(bytes.len());
                (kept, Err(io::ErrorKind::Other.into()))
            }
            Some((left, _)) => {
                *left -= 1;
                (bytes.len(), Ok(()))
            }
            None => (bytes.len(), Ok(())),
        }
    }
}

impl Medium for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.lock().unwrap();
        if state.unreadable.as_deref() == Some(name) {
            return Err(io::Error::other("Input/output error"));
        }
        state.files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let dead = matches!(state.cut, Some((0, 0)));
        let (kept, result) = state.step(bytes);
        if !dead || kept > 0 {
            state.files.insert(name.to_owned(), bytes[..kept].to_vec());
        }
        state.writes += 1;
        state.written += kept;
        result
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let (kept, result) = state.step(bytes);
        state.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?.extend_from_slice(&bytes[..kept]);
        state.writes += 1;
        state.written += kept;
        result
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let (_, result) = state.step(&[]);
        result?;
        state.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What the cloud has of a device.
#[derive(Default)]
pub(super) struct Cloud {
    pub(super) up_to: u64,
    pub(super) events: BTreeMap<u64, (String, Value)>,
    pub(super) gaps: u64,
}

impl Cloud {
    /// Takes a batch; what it says then.
    pub(super) fn take(&mut self, batch: &Batch) -> u64 {
        assert!(!batch.items.is_empty() && batch.first_seq > batch.dropped);
        if batch.first_seq - batch.dropped > self.up_to + 1 {
            return self.up_to;
        }
        for (seq, item) in (batch.first_seq..).zip(&batch.items) {
            if seq > self.up_to {
                self.gaps += seq - self.up_to - 1;
                self.up_to = seq;
                let before = self.events.insert(seq, (batch.boot_id.clone(), item.clone()));
                assert!(before.is_none(), "{seq} came twice");
            }
        }
        self.up_to
    }
}
