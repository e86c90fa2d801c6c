//! Where the two copies of the boot state are. A write takes the copy that is not the newest first, flushes it, reads it back from the
//! medium, and only then takes the other: whenever it is cut short, one copy is whole and is either the old state or the new.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BootError,
    state::{self, BootState},
};
use crate::os::disk::{Access, Disk, Disks};

/// Both copies, as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// The newest good one.
    pub state: Option<BootState>,
    /// Which that is.
    pub newest: usize,
    /// Copies that are good and of the newest generation.
    pub good: u8,
}

impl Loaded {
    /// From what was read of each copy. `behind` tells whether the first generation is older than the second.
    pub(crate) fn choose(copies: [Option<BootState>; 2], behind: impl Fn(u32, u32) -> bool) -> Self {
        let [first, second] = copies;
        match (first, second) {
            (Some(a), Some(b)) => {
                let good = 1 + u8::from(a.generation == b.generation);
                if behind(a.generation, b.generation) {
                    Self { state: Some(b), newest: 1, good }
                } else {
                    Self { state: Some(a), newest: 0, good }
                }
            }
            (Some(a), None) => Self { state: Some(a), newest: 0, good: 1 },
            (None, Some(b)) => Self { state: Some(b), newest: 1, good: 1 },
            (None, None) => Self { state: None, newest: 1, good: 0 },
        }
    }
}

/// Keeps the boot state.
pub(crate) trait Store: Send + Sync {
    /// Reads both copies. A copy that cannot be read is a damaged one, unless neither can.
    fn load(&self) -> Result<Loaded, BootError>;
    /// Writes `next`, with the generation after that of `loaded`, over both copies.
    fn save(&self, loaded: &Loaded, next: &BootState) -> Result<(), BootError>;
    /// Whether the place of the copies belongs to nothing else.
    fn check_layout(&self) -> Result<(), BootError>;
}

/// Two places in front of the first partition of a disk.
pub(crate) struct RawStore {
    pub disks: Arc<dyn Disks>,
    pub disk: PathBuf,
    pub offsets: [u64; 2],
}

const WHAT: &str = "the boot state";

impl Store for RawStore {
    fn load(&self) -> Result<Loaded, BootError> {
        let read = |source| BootError::Read { what: WHAT, device: self.disk.clone(), source };
        let disk = self.disks.open(&self.disk, Access::Read).map_err(read)?;
        disk.drop_caches().map_err(read)?;
        let [one, two] = self.offsets.map(|offset| {
            let mut bytes = vec![0; state::SIZE];
            disk.read_at(offset, &mut bytes).map(|()| BootState::decode(&bytes))
        });
        if let (Err(source), Err(_)) = (&one, &two) {
            return Err(read(io::Error::new(source.kind(), source.to_string())));
        }
        Ok(Loaded::choose([one.ok().flatten(), two.ok().flatten()], state::is_behind))
    }

    fn save(&self, loaded: &Loaded, next: &BootState) -> Result<(), BootError> {
        let generation = loaded.state.as_ref().map_or(next.generation, |s| s.generation).wrapping_add(1);
        let bytes = BootState { generation, ..next.clone() }.encode();
        let disk = self.disks.open(&self.disk, Access::Shared).map_err(|source| BootError::Write {
            what: WHAT,
            device: self.disk.clone(),
            source,
        })?;
        for copy in [1 - loaded.newest, loaded.newest] {
            put(&*disk, &self.disk, self.offsets[copy], &bytes, WHAT)?;
        }
        Ok(())
    }

    fn check_layout(&self) -> Result<(), BootError> {
        let read =
            |source| BootError::Read { what: "the partition table", device: self.disk.clone(), source };
        let disk = self.disks.open(&self.disk, Access::Read).map_err(read)?;
        let mut table = [0; 512];
        disk.read_at(0, &mut table).map_err(read)?;
        let end = self.offsets.iter().max().copied().unwrap_or(0) + state::SIZE as u64;
        free_until(&table, end).map_err(|what| BootError::Probe {
            what: format!("{}: {what}", self.disk.display()),
            next: "write its disk anew from an image with this layout",
        })
    }
}

/// Whether an MBR leaves the disk's first `end` bytes free. Its numbers count 512 bytes; on a disk of other blocks they are smaller, and
/// this refuses.
pub(crate) fn free_until(table: &[u8; 512], end: u64) -> Result<(), String> {
    if table[510..] != [0x55, 0xaa] {
        return Err("it has no MBR partition table".to_owned());
    }
    for (number, entry) in (1..).zip(table[446..510].chunks_exact(16)) {
        let start = entry[8..12].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        match entry[4] {
            0 => {}
            0xee => {
                return Err("it has a GPT partition table, whose own data is where the boot state would be"
                    .to_owned());
            }
            _ if start * 512 < end => {
                return Err(format!("partition {number} covers the place of the boot state"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes bytes in place, flushes them, and reads them back from the medium.
pub(crate) fn put(
    disk: &dyn Disk,
    device: &Path,
    offset: u64,
    bytes: &[u8],
    what: &'static str,
) -> Result<(), BootError> {
    let write = |source| BootError::Write { what, device: device.into(), source };
    disk.write_at(offset, bytes).map_err(write)?;
    disk.sync().map_err(write)?;
    disk.drop_caches().map_err(write)?;
    let mut back = vec![0; bytes.len()];
    disk.read_at(offset, &mut back).map_err(|source| BootError::Read {
        what,
        device: device.into(),
        source,
    })?;
    if back != bytes {
        return Err(BootError::ReadBack { what, device: device.into() });
    }
    Ok(())
}
