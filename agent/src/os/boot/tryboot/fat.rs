//! Reads just enough of a FAT file system to say at which byte of its partition a small file of the root folder lies. Reads
//! only, trusts nothing: every number is checked before it is used, and every walk has an end.

use std::io;

use crate::os::disk::Disk;

/// Where a file's first sector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileAt {
    /// Bytes from the start of the partition.
    pub offset: u64,
    /// Bytes of the file.
    pub size: usize,
}

/// Sectors of a root folder that are looked through.
const MAX_FOLDER: u64 = 4096;

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(bytes[at]) | u64::from(bytes[at + 1]) << 8
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

/// The place of `name` (11 bytes, as the folder spells it: `AUTOBOOTTXT`).
///
/// # Errors
/// The disk's; `NotFound`; `InvalidData` where it is no FAT file system with sectors of 512 bytes.
pub(crate) fn find(disk: &dyn Disk, name: &[u8; 11]) -> io::Result<FileAt> {
    let mut boot = [0; 512];
    disk.read_at(0, &mut boot)?;
    if boot[510..] != [0x55, 0xaa] || u16_at(&boot, 11) != 512 || boot[13] == 0 || !boot[13].is_power_of_two()
    {
        return Err(bad("it has no FAT boot sector with sectors of 512 bytes"));
    }
    let cluster = u64::from(boot[13]);
    let fats = u16_at(&boot, 14);
    let root_entries = u16_at(&boot, 17);
    let fat_sectors = match u16_at(&boot, 22) {
        0 => u32_at(&boot, 36),
        n => n,
    };
    let root = fats + u64::from(boot[16]) * fat_sectors;
    let root_sectors = (root_entries * 32).div_ceil(512);
    let data = root + root_sectors;
    let place = |number: u64| -> io::Result<u64> {
        let number = number.checked_sub(2).ok_or_else(|| bad("a folder entry names no cluster"))?;
        Ok(data + number * cluster)
    };
    let total = disk.size()? / 512;

    // FAT12 and FAT16 have a root folder of fixed place; FAT32's is a chain of clusters.
    let mut next = (root_entries == 0).then(|| u32_at(&boot, 44));
    let (mut sector, mut left) = match next {
        Some(first) => (place(first)?, cluster),
        None => (root, root_sectors),
    };
    for _ in 0..MAX_FOLDER {
        if left == 0 {
            let Some(before) = next else { break };
            let mut entry = [0; 4];
            disk.read_at(fats * 512 + before * 4, &mut entry)?;
            let after = u32_at(&entry, 0) & 0x0fff_ffff;
            if !(2..0x0fff_fff7).contains(&after) {
                break;
            }
            (next, sector, left) = (Some(after), place(after)?, cluster);
        }
        if sector >= total {
            return Err(bad("its root folder lies past its end"));
        }
        let mut entries = [0; 512];
        disk.read_at(sector * 512, &mut entries)?;
        for entry in entries.chunks_exact(32) {
            if entry[0] == 0 {
                return Err(io::ErrorKind::NotFound.into());
            }
            // Neither a part of a long name, a volume's name, nor a folder.
            if entry[..11] != name[..] || entry[11] & 0x18 != 0 {
                continue;
            }
            let at = place(u16_at(entry, 26) | u16_at(entry, 20) << 16)?;
            let size = usize::try_from(u32_at(entry, 28)).unwrap_or(usize::MAX);
            if at >= total {
                return Err(bad("the file lies past its end"));
            }
            return Ok(FileAt { offset: at * 512, size });
        }
        (sector, left) = (sector + 1, left - 1);
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A FAT16 file system of 64 sectors with one file, in the middle of a root folder that holds other things, too.
    pub(crate) fn small(name: &[u8; 11], content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 512];
        bytes[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
        bytes[11..13].copy_from_slice(&512_u16.to_le_bytes());
        (bytes[13], bytes[14], bytes[16]) = (8, 8, 2);
        bytes[17..19].copy_from_slice(&64_u16.to_le_bytes());
        bytes[22..24].copy_from_slice(&2_u16.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let root = (8 + 2 * 2) * 512;
        bytes[root..root + 12].copy_from_slice(b"COPAL      \x08");
        let entry = root + 64;
        bytes[root + 32] = 0xe5;
        bytes[entry..entry + 11].copy_from_slice(name);
        bytes[entry + 26] = 3;
        bytes[entry + 28..entry + 32].copy_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
        let data = (8 + 2 * 2 + 4 + 8) * 512;
        bytes[data..data + content.len()].copy_from_slice(content);
        bytes
    }

    struct Bytes(Vec<u8>);

    impl Disk for Bytes {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn drop_caches(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_of_the_root_folder_is_found() {
        let disk = Bytes(small(b"AUTOBOOTTXT", b"hello"));
        let found = find(&disk, b"AUTOBOOTTXT").unwrap();
        assert_eq!((found.size, &disk.0[usize::try_from(found.offset).unwrap()..][..5]), (5, &b"hello"[..]));
        assert_eq!(find(&disk, b"CONFIG  TXT").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_the_system_s_own_tools_make_is_read() {
        // FAT16 and FAT32, with a long name in front, as `mkfs.fat` and `mcopy` make them. Skipped where they are not installed.
        for bits in ["16", "32"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(64 << 20).unwrap();
            let run = |program: &str, arguments: &[&str]| {
                std::process::Command::new(program).args(arguments).output().is_ok_and(|o| o.status.success())
            };
            let path = file.path().to_str().unwrap();
            let source = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(source.path(), "content").unwrap();
            let copied = |name: &str| {
                run("mcopy", &["-i", path, source.path().to_str().unwrap(), &format!("::{name}")])
            };
            if !run("mkfs.fat", &["-F", bits, path])
                || !copied("a-rather-long-name.text")
                || !copied("autoboot.txt")
            {
                return;
            }
            let disk = Bytes(std::fs::read(path).unwrap());
            let found = find(&disk, b"AUTOBOOTTXT").unwrap();
            assert_eq!(
                &disk.0[usize::try_from(found.offset).unwrap()..][..found.size],
                b"content",
                "FAT{bits}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_file_systems_are_read_without_a_panic(at in 0_usize..8192, byte: u8, more in 0_usize..64, other: u8) {
            let mut bytes = small(b"AUTOBOOTTXT", b"hello");
            (bytes[at], bytes[more]) = (byte, other);
            let _ = find(&Bytes(bytes), b"AUTOBOOTTXT");
        }
    }
}
