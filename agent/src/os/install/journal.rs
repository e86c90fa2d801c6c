//! What is known to be durable in the slot, so that it need not be read again.

use std::{io, sync::Arc};

use copal_bundle::BLOCK;
use copal_protocol::ids::Sha256Hex;

use super::bits::Bits;
use crate::state::{StateDir, StateError};

const MAGIC: &[u8; 8] = b"COPALIJ1";
const NAME: &str = "install";

/// Where the record of an installation is kept. A store is whole and durable when it returns.
pub trait Journal: Send + Sync {
    /// What was stored last; `None` where nothing was, or where it was damaged (what is in the slot is compared then).
    ///
    /// # Errors
    /// The system's.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;
    /// Stores a record.
    ///
    /// # Errors
    /// The system's.
    fn store(&self, bytes: &[u8]) -> io::Result<()>;
    /// Removes it.
    ///
    /// # Errors
    /// The system's.
    fn clear(&self) -> io::Result<()>;
}

/// The record as `install` in the agent's state folder.
pub struct StateJournal(pub Arc<StateDir>);

impl Journal for StateJournal {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match self.0.load_bytes(NAME) {
            // Nothing depends on it: comparing finds what it said.
            Err(StateError::Lost { .. }) => Ok(None),
            other => other.map_err(io::Error::other),
        }
    }

    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.save_bytes(NAME, bytes).map(|_| ()).map_err(io_error)
    }

    fn clear(&self) -> io::Result<()> {
        self.0.remove(NAME).map_err(io_error)
    }
}

/// Keeps the kind: a full disk is told from a broken one.
fn io_error(error: StateError) -> io::Error {
    match std::error::Error::source(&error).and_then(|s| s.downcast_ref::<io::Error>()) {
        Some(cause) => io::Error::new(cause.kind(), error.to_string()),
        None => io::Error::other(error),
    }
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) release: Sha256Hex,
    pub(super) payloads: Vec<Entry>,
}

/// What is known of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) index: Sha256Hex,
    /// Chunks that the medium holds.
    pub(super) done: Bits,
    /// The withheld head, once it is known.
    pub(super) head: Option<Box<[u8; BLOCK]>>,
}

impl Record {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.release.as_bytes());
        for entry in &self.payloads {
            out.extend_from_slice(entry.index.as_bytes());
            out.push(u8::from(entry.head.is_some()));
            out.extend_from_slice(entry.head.as_deref().map_or(&[][..], |head| head));
            out.extend_from_slice(&entry.done.to_bytes());
        }
        out
    }

    /// Reads the record of this release; anything else is `None`. `chunks` of each payload say how long its bits are.
    pub(super) fn parse(bytes: &[u8], release: Sha256Hex, indexes: &[(Sha256Hex, u64)]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?.strip_prefix(release.as_bytes().as_slice())?;
        let mut payloads = Vec::new();
        for (index, chunks) in indexes {
            rest = rest.strip_prefix(index.as_bytes().as_slice())?;
            let (flag, after) = rest.split_first()?;
            rest = after;
            let head = match flag {
                0 => None,
                1 => {
                    let (head, after) = rest.split_first_chunk::<BLOCK>()?;
                    rest = after;
                    Some(Box::new(*head))
                }
                _ => return None,
            };
            let (bits, after) = rest.split_at_checked(usize::try_from(chunks.div_ceil(8)).ok()?)?;
            rest = after;
            payloads.push(Entry { index: *index, done: Bits::from_bytes(bits, *chunks)?, head });
        }
        rest.is_empty().then_some(Self { release, payloads })
    }
}
