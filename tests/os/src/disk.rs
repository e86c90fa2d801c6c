//! A disk as the host reads it, after the machine lost its power: partitions and slots.
//!
//! Written against the documents (docs/protocol.md, images/os/layout), not with the agent's code: a checker that shares
//! the code it checks finds no mistake in it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};

use crate::{
    board::Board,
    state::{self, BootState},
};

/// Anything whose bytes can be read at a place: a file, or a disk rebuilt from a log.
pub trait Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Bytes for File {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// A disk image.
pub struct Disk {
    pub path: PathBuf,
}

impl Disk {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn open(&self) -> File {
        File::open(&self.path).unwrap()
    }

    /// The machine it is for.
    pub fn board(&self) -> Board {
        Board::of(&self.open())
    }

    /// Start and size of a partition in bytes.
    pub fn place(&self, partition: &str) -> (u64, u64) {
        self.board().places()[partition]
    }

    /// A copy that takes no space for what is empty.
    pub fn copy_to(&self, path: &Path) -> Self {
        let status = Command::new("cp").arg("--sparse=always").arg(&self.path).arg(path).status().unwrap();
        assert!(status.success(), "cp {} {}", self.path.display(), path.display());
        Self::at(path)
    }

    /// Writes a file onto the boot partition, as a person with a card reader would.
    pub fn put_on_boot(&self, file: &Path, name: &str) {
        let at = self.place("boot").0;
        let output = Command::new("mcopy")
            .args(["-o", "-i", &format!("{}@@{at}", self.path.display())])
            .arg(file)
            .arg(format!("::{name}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "mcopy: {}", copal_e2e::text(&output));
    }

    /// Writes both copies of the boot state.
    pub fn set_state(&self, state: &BootState) {
        for offset in state::offsets(&self.open()).unwrap() {
            self.damage(offset, &state.to_bytes(self.board()));
        }
    }

    /// Overwrites a whole copy of the boot state with what is none.
    pub fn damage_state(&self, copy: usize) {
        let offset = state::offsets(&self.open()).unwrap()[copy];
        self.damage(offset, &vec![0xa5; state::bytes_of(self.board())]);
    }

    /// Writes an image into a slot.
    pub fn put_in_slot(&self, slot: &str, image: &Path) {
        let at = self.place(&format!("root-{slot}")).0 >> 20;
        let output = Command::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(format!("of={}", self.path.display()))
            .args(["bs=1M", "conv=notrunc", "status=none", &format!("seek={at}")])
            .output()
            .unwrap();
        assert!(output.status.success(), "dd: {}", copal_e2e::text(&output));
    }

    /// Overwrites bytes, as damage or an attacker with the disk in hand would.
    pub fn damage(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(&self.path).unwrap().write_all_at(bytes, offset).unwrap();
    }
}

/// Whether a slot has the magic number of an ext4 superblock: what the bootloader needs to find a kernel in it.
pub fn bootable(disk: &impl Bytes, slot: &str) -> bool {
    let mut magic = [0; 2];
    let at = Board::of(disk).places()[&format!("root-{slot}")].0;
    disk.read(at + 1024 + 0x38, &mut magic).is_ok() && magic == [0x53, 0xef]
}

/// SHA-256 of the first bytes of a slot.
pub fn slot_sha256(disk: &impl Bytes, slot: &str, bytes: u64) -> String {
    let at = Board::of(disk).places()[&format!("root-{slot}")].0;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < bytes {
        let n = buffer.len().min((bytes - done).try_into().unwrap());
        disk.read(at + done, &mut buffer[..n]).unwrap();
        sum.update(&buffer[..n]);
        done += n as u64;
    }
    hex::encode(sum.finalize())
}

/// SHA-256 and size of a slot image.
pub fn image_sha256(path: &Path) -> (String, u64) {
    let mut file = File::open(path).unwrap();
    let mut sum = Sha256::new();
    let size = io::copy(&mut file, &mut HashWriter(&mut sum)).unwrap();
    (hex::encode(sum.finalize()), size)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
