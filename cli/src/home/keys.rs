//! Key sets: folders of private keys. The set `owner` serves every fleet that names no other.

use std::path::{Path, PathBuf};

use copal_protocol::{documents::Role, keys::SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Existing, Home,
    keyfile::{KeyFile, KeyFileError},
    make_dir, read_private, read_toml, write_private, write_toml,
};
use crate::failure::{Failure, Result};

/// The set that is used where none is named.
pub const DEFAULT_SET: &str = "owner";

/// `set.toml`: how many of its keys must sign in a root made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetInfo {
    /// Root keys that must sign a Root.
    pub root_threshold: u32,
    /// Release keys that must sign a Release in owner mode.
    pub release_threshold: u32,
}

impl Default for SetInfo {
    fn default() -> Self {
        Self { root_threshold: 1, release_threshold: 1 }
    }
}

/// A key with the file it came from.
#[derive(Debug)]
pub struct StoredKey {
    /// The file.
    pub path: PathBuf,
    /// The key.
    pub file: KeyFile,
}

/// Where a passphrase comes from when a key turns out to need one.
pub type AskPassphrase<'a> = &'a mut dyn FnMut(&Path) -> Result<Zeroizing<String>>;

impl Home {
    /// The folder of a key set.
    ///
    /// # Errors
    /// Where the name could climb out of the folder.
    pub fn key_set(&self, set: &str) -> Result<PathBuf> {
        set.parse::<copal_protocol::ids::Name>()
            .map_err(|e| Failure::usage(format!("use the key set {set:?}"), e))?;
        Ok(self.path("keys").join(set))
    }

    /// The thresholds of a set.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn set_info(&self, set: &str) -> Result<SetInfo> {
        read_toml(&self.key_set(set)?.join("set.toml"))
    }

    /// Writes the thresholds of a set.
    ///
    /// # Errors
    /// The system's own.
    pub fn save_set_info(&self, set: &str, info: &SetInfo) -> Result<()> {
        write_toml(&self.key_set(set)?.join("set.toml"), info)
    }

    /// The key files of a set, in order of name; none where there is no such set.
    ///
    /// # Errors
    /// The system's own.
    pub fn key_paths(&self, set: &str) -> Result<Vec<PathBuf>> {
        let dir = self.key_set(set)?;
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Failure::local(format!("read the folder {}", dir.display()), e)),
        };
        let mut paths: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ending| ending == "key"))
            .collect();
        paths.sort();
        Ok(paths)
    }

    /// Every key of a set, or those of a role.
    ///
    /// # Errors
    /// Where a file is damaged, readable by others, or its passphrase is wrong.
    pub fn load_keys(&self, set: &str, role: Option<Role>, ask: AskPassphrase<'_>) -> Result<Vec<StoredKey>> {
        let mut keys = Vec::new();
        for path in self.key_paths(set)? {
            let text = read_text(&path)?;
            // The role stands in the clear, so that no passphrase is asked for a key that is not wanted.
            if role.is_some_and(|role| !text.lines().any(|l| l == format!("role: {}", role.as_str()))) {
                continue;
            }
            let file = open_key(&path, &text, ask)?;
            keys.push(StoredKey { path, file });
        }
        Ok(keys)
    }

    /// Adds a key to a set; the first of a role is `<role>.key`, others carry the beginning of their keyid.
    ///
    /// # Errors
    /// Where the file is there already, or cannot be written.
    pub fn add_key(&self, set: &str, file: &KeyFile, passphrase: Option<&str>) -> Result<PathBuf> {
        let text = file
            .to_text(passphrase)
            .map_err(|e| Failure::local(format!("write a {} key", file.role.as_str()), e))?;
        self.add_key_text(set, file, &text)
    }

    /// Adds a key to a set as its file's text stands, so that a protected one stays protected.
    ///
    /// # Errors
    /// As [`Self::add_key`].
    pub fn add_key_text(&self, set: &str, file: &KeyFile, text: &str) -> Result<PathBuf> {
        let dir = self.key_set(set)?;
        make_dir(&dir)?;
        let keyid = file.key.public().id().to_string();
        let first = dir.join(format!("{}.key", file.role.as_str()));
        let path = if first.exists() {
            dir.join(format!("{}-{}.key", file.role.as_str(), &keyid[..12]))
        } else {
            first
        };
        write_private(&path, text.as_bytes(), Existing::Keep)?;
        Ok(path)
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_private(path)?.ok_or_else(|| {
        Failure::not_found(format!("use the key {}", path.display()), "there is no such file")
    })?;
    String::from_utf8(bytes)
        .map(Zeroizing::new)
        .map_err(|_| Failure::local(format!("read the key {}", path.display()), "it is not text"))
}

/// Reads a key file, asking for its passphrase where it has one; gives its text as well.
///
/// # Errors
/// As [`Home::load_keys`].
pub fn open_key_file(path: &Path, ask: AskPassphrase<'_>) -> Result<(KeyFile, Zeroizing<String>)> {
    let text = read_text(path)?;
    Ok((open_key(path, &text, ask)?, text))
}

fn open_key(path: &Path, text: &str, ask: AskPassphrase<'_>) -> Result<KeyFile> {
    let opened = match KeyFile::parse(text, None) {
        Err(KeyFileError::NeedsPassphrase) => KeyFile::parse(text, Some(&ask(path)?)),
        other => other,
    };
    opened.map_err(|e| Failure::trust("key_unusable", format!("open the key {}", path.display()), e))
}

/// Makes a key.
///
/// # Errors
/// Where the system has no randomness.
pub fn generate(role: Role, label: &str) -> Result<KeyFile> {
    let key =
        SigningKey::generate().map_err(|e| Failure::local(format!("make a {} key", role.as_str()), e))?;
    Ok(KeyFile { role, label: label.to_owned(), key })
}
