use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::state::fs::RealFs;

/// A disk in memory that stops after a number of steps, as a power cut does, or tears the write it stops in.
#[derive(Default)]
struct Disk {
    files: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    steps_left: Mutex<Option<usize>>,
    /// How many bytes of the interrupted write reach the disk.
    torn: usize,
    fault: Option<io::ErrorKind>,
    writes: Mutex<usize>,
    /// A file on sectors that cannot be read any more, until it is written anew.
    unreadable: Mutex<Option<PathBuf>>,
}

impl Disk {
    fn step(&self) -> io::Result<()> {
        let mut left = self.steps_left.lock().unwrap();
        match left.as_mut() {
            Some(0) => Err(self.fault.unwrap_or(io::ErrorKind::Other).into()),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn with(files: BTreeMap<PathBuf, Vec<u8>>) -> Self {
        Self { files: Mutex::new(files), ..Self::default() }
    }
}

impl Fs for Disk {
    fn read(&self, path: &Path, _: usize) -> io::Result<Vec<u8>> {
        if self.unreadable.lock().unwrap().as_deref() == Some(path) {
            return Err(io::Error::other("Input/output error"));
        }
        self.files.lock().unwrap().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write_synced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        *self.writes.lock().unwrap() += 1;
        let stopped = self.step();
        let kept = if stopped.is_err() { &bytes[..self.torn.min(bytes.len())] } else { bytes };
        self.files.lock().unwrap().insert(path.to_owned(), kept.to_vec());
        stopped
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        let mut files = self.files.lock().unwrap();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), bytes);
        self.unreadable.lock().unwrap().take_if(|bad| bad == to);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.step()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.files.lock().unwrap().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        Ok(files.keys().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }
}

fn open(disk: &Arc<Disk>) -> StateDir {
    StateDir::open("/s", disk.clone()).unwrap()
}

#[test]
fn a_power_cut_between_any_two_steps_leaves_the_old_or_the_new_content() {
    for torn in [0, 1, 59, 60, 61, 10_000] {
        for stop_after in 0..8 {
            let disk = Arc::new(Disk { torn, ..Disk::default() });
            let state = open(&disk);
            state.save_bytes("marks", b"old").unwrap();
            *disk.steps_left.lock().unwrap() = Some(stop_after);
            let saved = state.save_bytes("marks", b"new");

            let after = Arc::new(Disk::with(disk.files.lock().unwrap().clone()));
            let found = open(&after).load_bytes("marks").unwrap().expect("never reset");
            assert!(found == b"old" || found == b"new", "stop {stop_after}, torn {torn}");
            if saved.is_ok() {
                assert_eq!(found, b"new");
            }
            // And it stays that: a restart decides once.
            assert_eq!(open(&after).load_bytes("marks").unwrap().unwrap(), found);
        }
    }
}

#[test]
fn either_copy_damaged_at_any_byte_is_mended_from_the_other() {
    let disk = Arc::new(Disk::default());
    open(&disk).save_bytes("identity", b"keys").unwrap();
    let whole = disk.files.lock().unwrap().clone();
    for copy in ["/s/identity.a", "/s/identity.b"] {
        let length = whole[Path::new(copy)].len();
        for at in 0..length {
            let mut files = whole.clone();
            files.get_mut(Path::new(copy)).unwrap().truncate(at);
            let torn = Arc::new(Disk::with(files));
            assert_eq!(open(&torn).load_bytes("identity").unwrap().unwrap(), b"keys");
            let mended = torn.files.lock().unwrap();
            assert_eq!(mended[Path::new(copy)], whole[Path::new(copy)], "{copy} mended");
            assert!(mended.contains_key(Path::new(&format!("{copy}.bad-1"))), "{copy} set aside");
        }
    }
}

#[test]
fn a_copy_that_the_disk_cannot_read_is_written_anew_from_the_other() {
    for copy in ["/s/identity.a", "/s/identity.b"] {
        let disk = Arc::new(Disk::default());
        open(&disk).save_bytes("identity", b"keys").unwrap();
        *disk.unreadable.lock().unwrap() = Some(copy.into());
        assert_eq!(open(&disk).load_bytes("identity").unwrap().unwrap(), b"keys", "{copy}");
        assert_eq!(*disk.unreadable.lock().unwrap(), None, "{copy} is whole again");
        // Alone it is neither a first start nor a loss: the next start may read it.
        *disk.unreadable.lock().unwrap() = Some(copy.into());
        let other = if copy.ends_with('a') { "/s/identity.b" } else { "/s/identity.a" };
        disk.files.lock().unwrap().remove(Path::new(other));
        assert!(matches!(open(&disk).load_bytes("identity"), Err(StateError::Io { .. })), "{copy}");
    }
}

#[test]
fn with_both_copies_damaged_it_says_so_and_resets_nothing() {
    let disk = Arc::new(Disk::default());
    open(&disk).save_bytes("identity", b"keys").unwrap();
    for bytes in disk.files.lock().unwrap().values_mut() {
        bytes.fill(0);
    }
    let error = open(&disk).load_bytes("identity").unwrap_err();
    assert!(matches!(error, StateError::Lost { .. }), "{error}");
    assert!(open(&disk).load_bytes("identity").is_err(), "nor does the next start take it for a first one");
    let names: Vec<_> = disk.files.lock().unwrap().keys().map(|p| p.display().to_string()).collect();
    assert_eq!(names, ["/s/identity.a.bad-1", "/s/identity.b.bad-1"]);
}

#[test]
fn unchanged_content_is_not_written_again_not_even_after_a_restart() {
    let disk = Arc::new(Disk::default());
    let state = open(&disk);
    assert!(state.save_bytes("marks", b"x").unwrap());
    assert!(!state.save_bytes("marks", b"x").unwrap());
    assert!(!open(&disk).save_bytes("marks", b"x").unwrap());
    assert_eq!(*disk.writes.lock().unwrap(), 2, "one write a copy");
}

#[test]
fn a_full_or_read_only_disk_is_a_typed_error_and_the_last_content_stays() {
    for (fault, code) in [
        (io::ErrorKind::StorageFull, "E_STATE_FULL"),
        (io::ErrorKind::ReadOnlyFilesystem, "E_STATE_READ_ONLY"),
    ] {
        let disk = Arc::new(Disk { fault: Some(fault), ..Disk::default() });
        let state = open(&disk);
        state.save_bytes("marks", b"old").unwrap();
        *disk.steps_left.lock().unwrap() = Some(0);
        assert_eq!(state.save_bytes("marks", b"new").unwrap_err().code(), code);
        assert_eq!(open(&disk).load_bytes("marks").unwrap().unwrap(), b"old");
        // Space again: the same save goes through.
        *disk.steps_left.lock().unwrap() = None;
        assert!(state.save_bytes("marks", b"new").unwrap());
    }
}

#[test]
fn on_a_real_disk_files_are_for_their_owner_only_and_no_temporary_stays() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path().join("state"), Arc::new(RealFs)).unwrap();
    state.save("session", &vec![1, 2, 3]).unwrap();
    assert_eq!(state.load::<Vec<u8>>("session").unwrap().unwrap(), [1, 2, 3]);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(state.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["session.a", "session.b"]);
    assert_eq!(state.names("sess").unwrap(), ["session"]);
    state.remove("session").unwrap();
    assert!(state.load::<Vec<u8>>("session").unwrap().is_none());
}

proptest! {
    #[test]
    fn whatever_stands_in_a_file_loading_never_invents_content(
        a in proptest::collection::vec(any::<u8>(), 0..200),
        b in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let files = BTreeMap::from([(PathBuf::from("/s/x.a"), a), (PathBuf::from("/s/x.b"), b)]);
        let disk = Arc::new(Disk::with(files));
        prop_assert!(open(&disk).load_bytes("x").is_err());
    }
}
