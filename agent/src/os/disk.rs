//! Block devices (and files that stand for them), read and written at given places.
//!
//! In: a path, an offset, bytes. Out: bytes, or the system's error. What is read after [`Disk::drop_caches`] comes from
//! the medium, not from memory: a medium that lost a write is seen. Never here: a guess at what the bytes mean, an
//! allocation as large as the disk, or a write to a disk that was opened for reading.

#[cfg(test)]
pub(crate) mod fake;

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

/// What direct reads are aligned to: the largest logical block size in use.
const ALIGN: usize = 4096;
/// The most one direct read asks of the device: the size of the bounce buffer.
const BOUNCE: usize = 1 << 20;

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; the system itself refuses writes.
    Read,
    /// Reading and writing. A block device that is mounted, or that another program holds so, is refused.
    Write,
    /// Reading and writing a disk whose partitions are mounted: for what lies in front of the first one.
    Shared,
}

/// Something of a fixed size that is read and written at places. Calls block.
pub trait Disk: Send + Sync {
    /// Its size in bytes.
    ///
    /// # Errors
    /// The system's.
    fn size(&self) -> io::Result<u64>;
    /// Fills the whole buffer from `offset`.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all bytes at `offset`; nothing is durable before [`Self::sync`].
    ///
    /// # Errors
    /// The system's; `WriteZero` past the end.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Brings everything written to the medium.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;
    /// From here to the next write, reads come from the medium: by direct I/O where the device takes it, else the
    /// system is told to forget what it holds. Call [`Self::sync`] first.
    ///
    /// # Errors
    /// The system's.
    fn drop_caches(&self) -> io::Result<()>;
}

/// Where disks come from, so that tests can give others.
pub trait Disks: Send + Sync {
    /// Opens a disk.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Disk>>;
    /// Whether two paths lead to the same disk, however they are spelled.
    ///
    /// # Errors
    /// The system's.
    fn same(&self, one: &Path, other: &Path) -> io::Result<bool>;
}

/// The system's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisks;

impl Disks for RealDisks {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(RealDisk::open(path, access)?))
    }

    fn same(&self, one: &Path, other: &Path) -> io::Result<bool> {
        let (one, other) = (std::fs::metadata(one)?, std::fs::metadata(other)?);
        if one.file_type().is_block_device() && other.file_type().is_block_device() {
            return Ok(one.rdev() == other.rdev());
        }
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }
}

/// A block device or a file.
#[derive(Debug)]
pub struct RealDisk {
    file: File,
    size: u64,
    access: Access,
    /// The same disk past the page cache, where the device and file system take that.
    direct: Option<Mutex<Direct>>,
    /// Whether reads go past the page cache now.
    bypass: AtomicBool,
}

#[derive(Debug)]
struct Direct {
    file: File,
    /// One `BOUNCE` larger than used, so that an aligned piece of it can be had without unsafe code.
    buffer: Vec<u8>,
}

impl RealDisk {
    /// Opens a block device or a file.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        if access == Access::Write && std::fs::metadata(path)?.file_type().is_block_device() {
            // On a block device this means: nobody else has it mounted or holds it so.
            options.custom_flags(OFlag::O_EXCL.bits());
        }
        let mut file = options.open(path)?;
        // A block device's metadata has no length; its end can be sought.
        let size = file.seek(SeekFrom::End(0))?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path).ok();
        let direct = direct.map(|file| Mutex::new(Direct { file, buffer: Vec::new() }));
        Ok(Self { file, size, access, direct, bypass: AtomicBool::new(false) })
    }

    /// Reads past the page cache; `false` where the device does not take it after all.
    fn read_direct(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(direct) = &self.direct else { return Ok(false) };
        let mut direct = direct.lock().unwrap_or_else(PoisonError::into_inner);
        let Direct { file, buffer: bounce } = &mut *direct;
        if bounce.is_empty() {
            bounce.resize(BOUNCE + ALIGN, 0);
        }
        let first = bounce.as_ptr().align_offset(ALIGN);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = usize::try_from(at % ALIGN as u64).unwrap_or(0);
            let start = at - within as u64;
            let wanted = (within + buffer.len() - done).next_multiple_of(ALIGN).min(BOUNCE);
            if start + wanted as u64 > self.size {
                return Ok(false); // the ragged end of a file
            }
            let piece = &mut bounce[first..first + wanted];
            match file.read_at(piece, start) {
                Ok(n) if n > within => {
                    let n = (n - within).min(buffer.len() - done);
                    buffer[done..done + n].copy_from_slice(&piece[within..within + n]);
                    done += n;
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

impl Disk for RealDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.bypass.load(Ordering::Acquire) && self.read_direct(offset, buffer)? {
            return Ok(());
        }
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            // A file would grow; a partition does not.
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bypass.store(false, Ordering::Release);
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn drop_caches(&self) -> io::Result<()> {
        if self.access != Access::Read {
            self.file.sync_all()?;
        }
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        self.bypass.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_back_past_the_caches_at_any_alignment() {
        let bytes: Vec<u8> = (0..3 * 1024 * 1024 + 777_u32).map(|i| (i % 251) as u8).collect();
        let file = file(&vec![0; bytes.len()]);
        let disk = RealDisk::open(file.path(), Access::Write).unwrap();
        disk.write_at(0, &bytes).unwrap();
        disk.sync().unwrap();
        disk.drop_caches().unwrap();
        for (from, len) in
            [(0, bytes.len()), (1, 5000), (4095, 2), (4096, 4096), (bytes.len() - 10, 10), (9, 0)]
        {
            let mut read = vec![0; len];
            disk.read_at(from as u64, &mut read).unwrap();
            assert!(read == bytes[from..from + len], "{len} bytes from {from}");
        }
        disk.write_at(5, b"new").unwrap();
        let mut read = [0; 3];
        disk.read_at(5, &mut read).unwrap();
        assert_eq!(&read, b"new");
    }

    #[test]
    fn a_disk_ends_where_it_ends() {
        let file = file(&[7; 5000]);
        let disk = RealDisk::open(file.path(), Access::Write).unwrap();
        assert_eq!(disk.size().unwrap(), 5000);
        assert_eq!(disk.write_at(4999, &[0; 2]).unwrap_err().kind(), io::ErrorKind::WriteZero);
        assert_eq!(disk.write_at(u64::MAX, &[0; 2]).unwrap_err().kind(), io::ErrorKind::WriteZero);
        assert_eq!(disk.read_at(4999, &mut [0; 2]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 5000);
    }

    #[test]
    fn a_disk_opened_for_reading_cannot_be_written() {
        let file = file(&[7; 5000]);
        let disk = RealDisk::open(file.path(), Access::Read).unwrap();
        assert!(disk.write_at(0, &[0]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![7; 5000]);
    }

    #[test]
    fn one_disk_under_two_names_is_known() {
        let (one, other) = (file(b"1"), file(b"2"));
        let link = one.path().with_extension("link");
        std::os::unix::fs::symlink(one.path(), &link).unwrap();
        let same = RealDisks.same(one.path(), &link);
        std::fs::remove_file(&link).unwrap();
        assert!(same.unwrap());
        assert!(!RealDisks.same(one.path(), other.path()).unwrap());
    }
}
