//! The owner's configuration folder: `$COPAL_HOME`, else `$XDG_CONFIG_HOME/copal`, else `~/.config/copal`.
//!
//! ```text
//! config.toml                     servers, their pins, which is current
//! credentials.json                tokens by server
//! keys/<set>/*.key                private keys (see `keyfile`), and set.toml
//! fleets/<fleet id>/fleet.toml    slug, server, key set
//! fleets/<fleet id>/roots/N.json  the chain of Roots, as envelopes
//! introductions/<id>.json         introduction secrets of cards made here
//! ```
//! Folders are 0700, files 0600. A file is written whole under another name, then renamed; a key never replaces one.

pub mod config;
pub mod fleets;
pub mod keyfile;
pub mod keys;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::failure::{Failure, Result};

/// The most bytes a file of the folder is read to.
const MAX_FILE: u64 = 1 << 20;

/// The configuration folder.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// Takes the folder; makes nothing yet.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where it is by the environment.
    ///
    /// # Errors
    /// Where neither `COPAL_HOME`, `XDG_CONFIG_HOME` nor `HOME` is set.
    pub fn find(explicit: Option<PathBuf>) -> Result<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        explicit
            .or_else(|| absolute("XDG_CONFIG_HOME").map(|dir| dir.join("copal")))
            .or_else(|| absolute("HOME").map(|dir| dir.join(".config/copal")))
            .map(Self::at)
            .ok_or_else(|| {
                Failure::local("find the configuration folder", "neither COPAL_HOME nor HOME is set")
                    .next("set COPAL_HOME to a folder of your own")
            })
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.dir.join(inside)
    }
}

/// Makes a folder and those above it, 0700.
///
/// # Errors
/// The system's own, with the folder's name.
pub fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Failure::local(format!("make the folder {}", dir.display()), e))
}

/// Whether an existing file may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Yes.
    Replace,
    /// No: it is an error.
    Keep,
}

/// Writes a file of mode 0600 so that it is there whole or not at all.
///
/// # Errors
/// The system's own; with [`Existing::Keep`] also where the file is there.
pub fn write_private(path: &Path, bytes: &[u8], existing: Existing) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| Failure::local(format!("write {}", path.display()), e);
    let mut file = tempfile::Builder::new()
        .prefix(".copal-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    match existing {
        Existing::Replace => file.persist(path).map_err(|e| failed(e.error))?,
        Existing::Keep => file.persist_noclobber(path).map_err(|e| {
            if e.error.kind() == std::io::ErrorKind::AlreadyExists {
                Failure::local(format!("write {}", path.display()), "the file is there already")
                    .next("move it away first; nothing was overwritten")
            } else {
                failed(e.error)
            }
        })?,
    };
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Reads a file of bounded size; `None` where there is none.
///
/// # Errors
/// The system's own, or where it is too large.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let failed = |e: std::io::Error| Failure::local(format!("read {}", path.display()), e);
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::local(format!("read {}", path.display()), "it is larger than 1 MiB"));
    }
    Ok(Some(bytes))
}

/// Reads a file that nobody else may read: one that others can read is refused.
///
/// # Errors
/// As [`read`], and where the mode gives group or others anything.
pub fn read_private(path: &Path) -> Result<Option<Vec<u8>>> {
    if let Ok(meta) = fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        return Err(Failure::trust(
            "file_not_private",
            format!("use {}", path.display()),
            "others on this machine can read it",
        )
        .next(format!("chmod 600 {}", path.display())));
    }
    read(path)
}

/// Reads TOML; the default where there is no file.
///
/// # Errors
/// Where the file is not as expected, with the line.
pub fn read_toml<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    let Some(bytes) = read(path)? else { return Ok(T::default()) };
    let bad = |e: String| Failure::local(format!("read {}", path.display()), e);
    let text = String::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
    toml::from_str(&text).map_err(|e| bad(e.to_string()))
}

/// Writes TOML, 0600.
///
/// # Errors
/// The system's own.
pub fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text =
        toml::to_string_pretty(value).map_err(|e| Failure::local(format!("write {}", path.display()), e))?;
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    write_private(path, text.as_bytes(), Existing::Replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_keys_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.key");
        make_dir(path.parent().unwrap()).unwrap();
        write_private(&path, b"one", Existing::Keep).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(write_private(&path, b"two", Existing::Keep).is_err());
        assert_eq!(read_private(&path).unwrap().unwrap(), b"one");
        write_private(&path, b"two", Existing::Replace).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_private(&path).unwrap_err().kind, crate::failure::Kind::Trust);
    }
}
