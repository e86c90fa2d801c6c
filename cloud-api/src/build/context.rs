//! The tar of a source, unpacked into a folder of its own and nowhere else.
//!
//! What is refused, by name: paths that climb, links whose target lies outside, files below a link, and everything
//! that is neither file, folder nor symbolic link. Sizes and counts are bounded while reading, so a bomb stops early.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::{self, Read, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use super::BuildError;

/// Bounds of a context.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

/// Files, folders and links a context may have.
pub(super) const MAX_ENTRIES: u64 = 200_000;

/// The most bytes that stand before an entry: its header, and what extends it (long names, PAX records), which is read
/// into memory.
const MAX_HEADERS: u64 = 1 << 20;

/// How deep folders may lie.
const MAX_DEPTH: usize = 64;

/// Unpacks a tar, or a gzipped one, into an empty folder.
///
/// # Errors
/// Names the entry and says what to do about it.
pub fn unpack(mut source: impl Read, into: &Path, limits: Limits) -> Result<(), BuildError> {
    let mut magic = [0; 2];
    let mut have = 0;
    while have < 2 {
        match source.read(&mut magic[have..]).map_err(unreadable)? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(source);
    if magic == [0x1f, 0x8b] {
        unpack_tar(flate2::read::MultiGzDecoder::new(whole), into, limits)
    } else {
        unpack_tar(whole, into, limits)
    }
}

fn unreadable(error: impl std::fmt::Display) -> BuildError {
    BuildError::new(format!("the source is not a readable tar: {error}"))
}

fn disk(path: &Path) -> impl Fn(io::Error) -> BuildError {
    let path = path.to_owned();
    move |error| {
        if error.kind() == io::ErrorKind::StorageFull {
            BuildError::new("the cloud's disk is full; tell its operator (`copal-cloud gc` may help)")
        } else {
            BuildError::internal(format!("unpacking {}: {error}", path.display()))
        }
    }
}

fn unpack_tar(source: impl Read, into: &Path, limits: Limits) -> Result<(), BuildError> {
    // The padding, headers and long names of a tar count too: nothing is read without a bound.
    let bound = limits.bytes.saturating_add(limits.entries.saturating_mul(4096));
    let allowance = Cell::new(0);
    let mut archive = tar::Archive::new(Allowed { source: source.take(bound), left: &allowance });
    let mut links: BTreeSet<PathBuf> = BTreeSet::new();
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    let mut read = archive.entries().map_err(unreadable)?;
    // What is left of the entry before is skipped first.
    let mut before = 0_u64;
    loop {
        allowance.set(before.saturating_add(MAX_HEADERS));
        let Some(entry) = read.next() else { break };
        let mut entry = entry.map_err(unreadable)?;
        before = entry.size().saturating_add(512);
        allowance.set(before);
        let kind = entry.header().entry_type();
        if matches!(kind, tar::EntryType::XGlobalHeader) {
            continue;
        }
        let raw = entry.path().map_err(unreadable)?.into_owned();
        let Some(path) = plain(&raw)? else { continue };
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > limits.entries {
            return Err(BuildError::new(format!(
                "the source has more than {} files; leave out what the build does not need",
                limits.entries
            )));
        }
        if bytes > limits.bytes {
            return Err(BuildError::new(format!(
                "the source has more than {} unpacked (at {}); leave out what the build does not need",
                super::run::size(limits.bytes),
                path.display()
            )));
        }
        if let Some(link) = path.ancestors().skip(1).find(|a| links.contains(*a)) {
            return Err(BuildError::new(format!(
                "{} lies below the symbolic link {}; that is refused",
                path.display(),
                link.display()
            )));
        }
        let target = into.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(disk(&path))?;
        }
        match kind {
            tar::EntryType::Directory => fs::create_dir_all(&target).map_err(disk(&path))?,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                write(&mut entry, &target, &path)?;
            }
            tar::EntryType::Symlink => {
                let to = entry.link_name().map_err(unreadable)?.map(std::borrow::Cow::into_owned);
                let to = to.unwrap_or_default();
                if !stays_inside(&path, &to) {
                    return Err(BuildError::new(format!(
                        "{}: the symbolic link points out of the project, to {}; point it to a file of the project, or copy the file",
                        path.display(),
                        to.display()
                    )));
                }
                let _ = fs::remove_file(&target);
                symlink(&to, &target).map_err(disk(&path))?;
                links.insert(path);
            }
            _ => {
                return Err(BuildError::new(format!(
                    "{} is neither a file nor a folder nor a symbolic link; that is refused",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Gives no more of a source than is allowed at the moment.
struct Allowed<'a, R> {
    source: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Allowed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "an entry's header or name has more than {MAX_HEADERS} bytes"
            )));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.source.read(&mut buffer[..most])?;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

fn write<R: Read>(entry: &mut tar::Entry<'_, R>, target: &Path, path: &Path) -> Result<(), BuildError> {
    let executable = entry.header().mode().unwrap_or(0o644) & 0o111 != 0;
    let mode = if executable { 0o755 } else { 0o644 };
    let _ = fs::remove_file(target);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(target).map_err(disk(path))?;
    let expected = entry.size();
    let copied = io::copy(entry, &mut file).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => disk(path)(error),
        _ => unreadable(error),
    })?;
    if copied != expected {
        return Err(BuildError::new(format!("the source ends in the middle of {}", path.display())));
    }
    file.flush().map_err(disk(path))?;
    // Files keep their time: tools and web servers tell versions by it.
    if let Ok(seconds) = entry.header().mtime() {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        let _ = file.set_modified(time);
    }
    Ok(())
}

/// A path of plain names, or `None` for the root itself.
fn plain(raw: &Path) -> Result<Option<PathBuf>, BuildError> {
    let refuse = |why: &str| {
        Err(BuildError::new(format!("the path {:?} of the source {why}; that is refused", raw.display())))
    };
    let mut path = PathBuf::new();
    for component in raw.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return refuse("climbs out of the project"),
            Component::RootDir | Component::Prefix(_) => return refuse("is absolute"),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return refuse("lies too deep");
    }
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

/// Whether a link at `path` to `to` stays within the project. Read by its text: what it passes through is refused
/// where it is a link itself.
fn stays_inside(path: &Path, to: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    for component in to.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir => {
                let Some(up) = depth.checked_sub(1) else { return false };
                depth = up;
            }
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !to.as_os_str().is_empty()
}

/// A file below `root`, followed through links only as long as they stay inside; for reading compose files,
/// Dockerfiles and env files.
pub(super) fn read_text(root: &Path, path: &str, max: u64) -> Result<String, String> {
    let full = root.join(path);
    let real = fs::canonicalize(&full).map_err(|_| format!("there is no file {path}"))?;
    let base = fs::canonicalize(root).map_err(|e| e.to_string())?;
    if !real.starts_with(&base) {
        return Err(format!("{path} leads out of the project"));
    }
    let file = fs::File::open(&real).map_err(|e| format!("{path} cannot be read: {e}"))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(format!("{path} is not a file"));
    }
    let mut text = String::new();
    file.take(max + 1).read_to_string(&mut text).map_err(|_| format!("{path} is not UTF-8 text"))?;
    if text.len() as u64 > max {
        return Err(format!("{path} has more than {max} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 1000, entries: 20 };

    /// Path, kind, content, link.
    type Entry<'a> = (&'a str, tar::EntryType, &'a [u8], &'a str);

    fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, data, link) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            // Written past the library's own check, as an attacker would.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn tried(entries: &[Entry<'_>]) -> (tempfile::TempDir, Result<(), BuildError>) {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("in");
        fs::create_dir(&into).unwrap();
        let result = unpack(&tar(entries)[..], &into, LIMITS);
        (dir, result)
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINK: tar::EntryType = tar::EntryType::Symlink;

    #[test]
    fn a_plain_tree_comes_out_as_it_went_in() {
        let (dir, result) = tried(&[("./a/b", FILE, b"hello", ""), ("a/c", LINK, b"", "../a/b")]);
        result.unwrap();
        assert_eq!(fs::read(dir.path().join("in/a/c")).unwrap(), b"hello");
    }

    #[test]
    fn whatever_leaves_the_project_is_refused_by_name_and_writes_nothing() {
        let cases: &[(&[Entry<'_>], &str)] = &[
            (&[("../evil", FILE, b"x", "")], "climbs"),
            (&[("/evil", FILE, b"x", "")], "absolute"),
            (&[("a/../../evil", FILE, b"x", "")], "climbs"),
            (&[("l", LINK, b"", "/etc")], "points out"),
            (&[("a/l", LINK, b"", "../../x")], "points out"),
            (&[("l", LINK, b"", "a"), ("l/evil", FILE, b"x", "")], "below the symbolic link l"),
            (&[("h", tar::EntryType::Link, b"", "/etc/passwd")], "neither"),
            (&[("p", tar::EntryType::Fifo, b"", "")], "neither"),
            (&[("c", tar::EntryType::Char, b"", "")], "neither"),
        ];
        for (entries, why) in cases {
            let (dir, result) = tried(entries);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error} / {why}");
            assert!(!dir.path().join("evil").exists());
        }
    }

    #[test]
    fn a_name_of_megabytes_is_refused_before_it_fills_the_memory() {
        let name = vec![b'a'; 3 << 20];
        for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
            let dir = tempfile::tempdir().unwrap();
            let source = tar(&[("n", kind, &name, ""), ("f", FILE, b"x", "")]);
            let wide = Limits { bytes: 10 << 20, entries: 20 };
            let error = unpack(&source[..], dir.path(), wide).unwrap_err().to_string();
            assert!(error.contains("header or name"), "{kind:?}: {error}");
        }
        // What is long and no name still passes, and what follows it is found.
        let dir = tempfile::tempdir().unwrap();
        let source =
            tar(&[("a", FILE, &name, ""), ("d", tar::EntryType::Directory, b"", ""), ("b", FILE, b"x", "")]);
        unpack(&source[..], dir.path(), Limits { bytes: 10 << 20, entries: 20 }).unwrap();
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"x");
    }

    #[test]
    fn bombs_stop_at_the_bound() {
        let (_dir, result) = tried(&[("a", FILE, &[0; 600], ""), ("b", FILE, &[0; 600], "")]);
        assert!(result.unwrap_err().to_string().contains("unpacked"));
        let names: Vec<String> = (0..30).map(|i| format!("f{i}")).collect();
        let many: Vec<_> = names.iter().map(|n| (n.as_str(), FILE, &b""[..], "")).collect();
        assert!(tried(&many).1.unwrap_err().to_string().contains("more than 20 files"));
        let dir = tempfile::tempdir().unwrap();
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let mut header = tar::Header::new_gnu();
        header.set_size(1 << 30);
        header.set_path("bomb").unwrap();
        header.set_cksum();
        zipped.write_all(header.as_bytes()).unwrap();
        io::copy(&mut io::repeat(0).take(1 << 20), &mut zipped).unwrap();
        let error = unpack(&zipped.finish().unwrap()[..], dir.path(), LIMITS).unwrap_err().to_string();
        assert!(error.contains("unpacked"), "{error}");
    }

    #[test]
    fn garbage_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            unpack(&[7; 2000][..], dir.path(), LIMITS)
                .unwrap_err()
                .to_string()
                .contains("not a readable tar")
        );
        unpack(&b""[..], dir.path(), LIMITS).unwrap();
    }
}
