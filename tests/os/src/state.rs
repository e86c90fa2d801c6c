//! The boot state on a dead disk, in the form of either bootloader.
//!
//! Written against docs/os-updates.md, not with the agent's code: a checker that shares the code it checks finds no mistake
//! in it.

use std::{collections::BTreeMap, io};

use crate::{board::Board, disk::Bytes};

/// Bytes of one copy.
pub fn bytes_of(board: Board) -> usize {
    match board {
        Board::Uboot => 4096,
        Board::Grub => 1024,
    }
}

/// Where the copies are. GRUB's lie wherever the file system put the two files.
///
/// # Errors
/// The file system cannot be read, or has no such file.
pub fn offsets(disk: &impl Bytes) -> io::Result<[u64; 2]> {
    match Board::of(disk) {
        Board::Uboot => Ok([4 << 20, 8 << 20]),
        Board::Grub => {
            let start = Board::Grub.places()["boot"].0;
            let place = |name| fat_file(disk, start, "COPAL      ", name, bytes_of(Board::Grub));
            Ok([place("ENV0       ")?, place("ENV1       ")?])
        }
    }
}

/// One copy, if it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootState {
    pub keys: BTreeMap<String, String>,
}

const GRUB_SIGNATURE: &str = "# GRUB Environment Block\n";

impl BootState {
    /// Reads a copy. U-Boot's: CRC-32 (little endian) over the rest, then `key=value`, each ended by a zero byte. GRUB's:
    /// a first line, then lines `key=value`, filled up with `#`; whole if the generation stands in it twice, and slot and
    /// trial, too.
    pub fn parse(board: Board, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != bytes_of(board) {
            return None;
        }
        match board {
            Board::Uboot => {
                let (sum, rest) = bytes.split_at_checked(4)?;
                if u32::from_le_bytes(sum.try_into().ok()?) != crc32(rest) {
                    return None;
                }
                let text = rest.split(|b| *b == 0).take_while(|entry| !entry.is_empty());
                Some(Self::of_lines(text))
            }
            Board::Grub => {
                let text = bytes.strip_prefix(GRUB_SIGNATURE.as_bytes())?;
                let state =
                    Self::of_lines(text.split(|b| *b == b'\n').take_while(|line| !line.starts_with(b"#")));
                let check = [state.get("copal_slot"), state.get("copal_trial")].concat();
                let whole = state.get("copal_check") == check
                    && ["a0", "a1", "b0", "b1"].contains(&check.as_str())
                    && state.get("copal_gen") == state.get("copal_end");
                whole.then_some(state)
            }
        }
    }

    fn of_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let lines = lines.map(|line| String::from_utf8_lossy(line).into_owned());
        Self {
            keys: lines
                .filter_map(|line| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
                .collect(),
        }
    }

    /// A copy as it lies on the disk.
    pub fn to_bytes(&self, board: Board) -> Vec<u8> {
        match board {
            Board::Uboot => {
                let mut bytes = vec![0; 4];
                for (key, value) in &self.keys {
                    bytes.extend(format!("{key}={value}\0").bytes());
                }
                bytes.resize(bytes_of(board), 0);
                let sum = crc32(&bytes[4..]);
                bytes[..4].copy_from_slice(&sum.to_le_bytes());
                bytes
            }
            Board::Grub => {
                let mut text = GRUB_SIGNATURE.to_owned();
                for (key, value) in &self.keys {
                    text += &match key.as_str() {
                        "copal_check" => {
                            format!("{key}={}{}\n", self.get("copal_slot"), self.get("copal_trial"))
                        }
                        _ => format!("{key}={value}\n"),
                    };
                }
                let mut bytes = text.into_bytes();
                bytes.resize(bytes_of(board), b'#');
                bytes
            }
        }
    }

    /// The same with one key changed.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn get(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }

    /// A counter; the bootloaders count in hex.
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
    let board = Board::of(disk);
    let Ok(offsets) = offsets(disk) else { return [None, None] };
    offsets.map(|offset| {
        let mut bytes = vec![0; bytes_of(board)];
        disk.read(offset, &mut bytes).ok()?;
        BootState::parse(board, &bytes)
    })
}

/// The copy the bootloader believes: the newer of those that are whole, and of two as new the first.
pub fn state(disk: &impl Bytes) -> Option<BootState> {
    let radix = if Board::of(disk) == Board::Grub { 10 } else { 16 };
    let generation = |state: &BootState| u64::from_str_radix(state.get("copal_gen"), radix).unwrap_or(0);
    states(disk).into_iter().flatten().rev().max_by_key(generation)
}

/// Where a file of `size` bytes starts, in a folder of the root of a FAT16 file system; both by their 11 letters.
fn fat_file(disk: &impl Bytes, start: u64, folder: &str, name: &str, size: usize) -> io::Result<u64> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut head = [0; 512];
    disk.read(start, &mut head)?;
    let half = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let (sector, cluster) = (half(11), half(11) * u64::from(head[13]));
    if sector != 512 || cluster == 0 || half(22) == 0 {
        return Err(wrong("no FAT16 file system of sectors of 512 bytes"));
    }
    let root = start + (half(14) + u64::from(head[16]) * half(22)) * sector;
    let data = root + half(17) * 32;
    let find = |at: u64, bytes: u64, name: &str| -> io::Result<(u64, u64)> {
        let mut entries = vec![0; usize::try_from(bytes).unwrap()];
        disk.read(at, &mut entries)?;
        // A long name's part has 15 as its attributes.
        let entry = entries.chunks_exact(32).find(|e| e[11] != 15 && &e[..11] == name.as_bytes());
        let entry = entry.ok_or_else(|| wrong(&format!("no {name}")))?;
        let first = u64::from(u16::from_le_bytes([entry[26], entry[27]]));
        let size = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
        let first = first.checked_sub(2).ok_or_else(|| wrong(&format!("{name} has no place")))?;
        Ok((data + first * cluster, size.into()))
    };
    let (folder, _) = find(root, half(17) * 32, folder)?;
    match find(folder, cluster, name)? {
        (place, found) if found == size as u64 => Ok(place),
        (_, found) => Err(wrong(&format!("{name} has {found} bytes, not {size}"))),
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
        state.with("copal_gen", generation).with("copal_trial", trial).to_bytes(Board::Uboot)
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
        let put = |disk: &mut Vec<u8>, at: usize, blob: &[u8]| {
            disk[at..at + blob.len()].copy_from_slice(blob);
        };
        put(&mut disk, 4 << 20, &blob("a", "1"));
        put(&mut disk, 8 << 20, &blob("9", "0"));
        let memory = Memory(disk.clone());
        assert!(state(&memory).unwrap().on_trial());
        disk[(4 << 20) + 2000] = 7;
        let memory = Memory(disk);
        assert_eq!(states(&memory)[0], None);
        assert!(!state(&memory).unwrap().on_trial());
        assert_eq!(state(&memory).unwrap().committed(), "a");
    }

    #[test]
    fn a_block_of_grub_is_whole_if_it_says_everything_twice() {
        let text = |lines: &str| {
            let mut bytes = [GRUB_SIGNATURE, lines].concat().into_bytes();
            bytes.resize(1024, b'#');
            bytes
        };
        let good = text("copal_gen=10\ncopal_slot=b\ncopal_trial=0\ncopal_check=b0\ncopal_end=10\n");
        let state = BootState::parse(Board::Grub, &good).unwrap();
        assert_eq!((state.committed(), state.on_trial()), ("b", false));
        let armed = BootState::parse(Board::Grub, &state.with("copal_trial", "1").to_bytes(Board::Grub));
        assert!(armed.unwrap().on_trial());
        for bad in [
            "copal_gen=10\ncopal_slot=b\ncopal_trial=0\ncopal_check=b0\ncopal_end=9\n",
            "copal_gen=10\ncopal_slot=a\ncopal_trial=0\ncopal_check=b0\ncopal_end=10\n",
            "copal_gen=10\ncopal_slot=b\ncopal_trial=0\n",
        ] {
            assert_eq!(BootState::parse(Board::Grub, &text(bad)), None, "{bad}");
        }
        assert_eq!(BootState::parse(Board::Grub, &good[1..]), None);
    }
}
