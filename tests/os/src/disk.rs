//! A disk as the host reads it, after the machine lost its power: partitions, boot state, slots.
//!
//! Written against the documents (docs/protocol.md, images/os/layout), not with the agent's code: a checker that shares
//! the code it checks finds no mistake in it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sha2::{Digest as _, Sha256};

use crate::repository;

/// Bytes of one copy of the boot state, and where the copies are.
pub const STATE_BYTES: usize = 4096;
pub const STATE_OFFSETS: [u64; 2] = [4 << 20, 8 << 20];

/// `images/os/layout/uboot.table`: start and size in bytes, by name.
pub fn partitions() -> &'static BTreeMap<String, (u64, u64)> {
    static TABLE: OnceLock<BTreeMap<String, (u64, u64)>> = OnceLock::new();
    TABLE.get_or_init(read_table)
}

fn read_table() -> BTreeMap<String, (u64, u64)> {
    let script = repository().join("images/os/layout/table.sh");
    let output = Command::new(script).args(["rows", "uboot"]).output().unwrap();
    assert!(output.status.success(), "{}", copal_e2e::text(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mib = |i: usize| words[i].parse::<u64>().unwrap() << 20;
            (words[1].to_owned(), (mib(2), mib(3)))
        })
        .collect()
}

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

    /// A copy that takes no space for what is empty.
    pub fn copy_to(&self, path: &Path) -> Self {
        let status = Command::new("cp").arg("--sparse=always").arg(&self.path).arg(path).status().unwrap();
        assert!(status.success(), "cp {} {}", self.path.display(), path.display());
        Self::at(path)
    }

    /// Writes a file onto the boot partition, as a person with a card reader would.
    pub fn put_on_boot(&self, file: &Path, name: &str) {
        let at = partitions()["boot"].0;
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
        for offset in STATE_OFFSETS {
            self.damage(offset, &state.to_bytes());
        }
    }

    /// Writes an image into a slot.
    pub fn put_in_slot(&self, slot: &str, image: &Path) {
        let at = partitions()[&format!("root-{slot}")].0 >> 20;
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

/// One copy of the boot state, if its checksum is right.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootState {
    pub keys: BTreeMap<String, String>,
}

impl BootState {
    /// Reads a copy: CRC-32 (little endian) over the rest, then `key=value`, each ended by a zero byte.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (sum, rest) = bytes.split_at_checked(4)?;
        if bytes.len() != STATE_BYTES || u32::from_le_bytes(sum.try_into().ok()?) != crc32(rest) {
            return None;
        }
        let text = rest.split(|b| *b == 0).take_while(|entry| !entry.is_empty());
        let keys = text
            .map(|entry| String::from_utf8_lossy(entry).into_owned())
            .filter_map(|entry| entry.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect();
        Some(Self { keys })
    }

    /// A copy as it lies on the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        for (key, value) in &self.keys {
            bytes.extend(format!("{key}={value}\0").bytes());
        }
        bytes.resize(STATE_BYTES, 0);
        let sum = crc32(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The same with one key changed.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn get(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }

    /// A counter; the bootloader counts in hex.
    pub fn number(&self, key: &str) -> u64 {
        u64::from_str_radix(self.get(key).trim_start_matches("0x"), 16).unwrap_or(0)
    }

    pub fn committed(&self) -> &str {
        self.get("copal_slot")
    }

    pub fn on_trial(&self) -> bool {
        self.get("copal_trial") == "1"
    }
}

/// Both copies.
pub fn states(disk: &impl Bytes) -> [Option<BootState>; 2] {
    STATE_OFFSETS.map(|offset| {
        let mut bytes = vec![0; STATE_BYTES];
        disk.read(offset, &mut bytes).ok()?;
        BootState::parse(&bytes)
    })
}

/// The copy the bootloader believes: the newer of those that are whole.
pub fn state(disk: &impl Bytes) -> Option<BootState> {
    states(disk).into_iter().flatten().max_by_key(|state| state.number("copal_gen"))
}

/// Whether a slot has the magic number of an ext4 superblock: what the bootloader needs to find a kernel in it.
pub fn bootable(disk: &impl Bytes, slot: &str) -> bool {
    let mut magic = [0; 2];
    let at = partitions()[&format!("root-{slot}")].0;
    disk.read(at + 1024 + 0x38, &mut magic).is_ok() && magic == [0x53, 0xef]
}

/// SHA-256 of the first bytes of a slot.
pub fn slot_sha256(disk: &impl Bytes, slot: &str, bytes: u64) -> String {
    let at = partitions()[&format!("root-{slot}")].0;
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

/// The checksum zip and U-Boot use.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(generation: &str, trial: &str) -> Vec<u8> {
        let state = BootState::default().with("copal_slot", "a");
        state.with("copal_gen", generation).with("copal_trial", trial).to_bytes()
    }

    struct Memory(Vec<u8>);
    impl Bytes for Memory {
        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn the_checksum_is_the_one_u_boot_uses() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_torn_copy_is_none_and_the_newer_whole_one_counts() {
        let mut disk = vec![0; (12 << 20) as usize];
        let put = |disk: &mut Vec<u8>, copy: usize, blob: &[u8]| {
            let at = usize::try_from(STATE_OFFSETS[copy]).unwrap();
            disk[at..at + STATE_BYTES].copy_from_slice(blob);
        };
        put(&mut disk, 0, &blob("a", "1"));
        put(&mut disk, 1, &blob("9", "0"));
        let memory = Memory(disk.clone());
        assert!(state(&memory).unwrap().on_trial());
        disk[(4 << 20) + 2000] = 7;
        let memory = Memory(disk);
        assert_eq!(states(&memory)[0], None);
        assert!(!state(&memory).unwrap().on_trial());
        assert_eq!(state(&memory).unwrap().committed(), "a");
    }
}
