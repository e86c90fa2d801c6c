//! A folder of named contents, each in two copies.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::StateError,
    file::{self, Flaw},
    fs::Fs,
    tolerant,
};

const COPIES: [&str; 2] = ["a", "b"];

/// The agent's state folder.
///
/// A save writes copy `a`, then copy `b`: a power cut at any instant leaves at least one of them whole, and whichever
/// whole copy has the higher generation is what the last finished or half-finished save meant.
pub struct StateDir {
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    /// What each name holds on disk, so that nothing is written twice: (generation, SHA-256 of the content).
    known: Mutex<HashMap<String, (u64, copal_protocol::ids::Sha256Hex)>>,
}

impl StateDir {
    /// Opens the folder, making it (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`StateError`] when it can neither be found nor made.
    pub fn open(dir: impl Into<PathBuf>, fs: Arc<dyn Fs>) -> Result<Self, StateError> {
        let dir = dir.into();
        fs.make_dir(&dir).map_err(|e| StateError::io("make the folder", &dir, e))?;
        Ok(Self { dir, fs, known: Mutex::default() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Reads `name`: the newest intact copy; `None` where there never was one. A damaged or missing copy is set aside
    /// and mended from the other; one that the disk cannot read any more is written anew from the other.
    ///
    /// # Errors
    /// [`StateError::Lost`] when copies exist and none is intact; the system's failures, where no copy could be read.
    pub fn load_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let mut best: Option<(u64, Vec<u8>)> = None;
        let mut seen = Vec::new();
        let mut flaws = Vec::new();
        let mut unreadable = None;
        for copy in COPIES {
            let path = self.copy_path(name, copy);
            let bytes = match self.fs.read(&path, file::MAX_CONTENT + 4096) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    seen.push(None);
                    continue;
                }
                Err(e) => {
                    // A worn card: that is what the other copy is for.
                    tracing::warn!(file = %path.display(), error = %e, "a state file cannot be read");
                    unreadable = Some(StateError::io("read", path, e));
                    seen.push(None);
                    continue;
                }
            };
            match file::decode(name, &bytes) {
                Ok((generation, content)) => {
                    seen.push(Some(generation));
                    if best.as_ref().is_none_or(|(g, _)| generation > *g) {
                        best = Some((generation, content));
                    }
                }
                Err(Flaw::Newer(found)) => {
                    return Err(StateError::Newer { path, found, known: file::VERSION });
                }
                Err(Flaw::Damaged(why)) => {
                    match self.set_aside(&path) {
                        Ok(aside) => {
                            tracing::warn!(file = %path.display(), aside = %aside.display(), why, "a damaged state file was set aside");
                        }
                        // It stays where it is; the other copy may still be good.
                        Err(error) => tracing::warn!(why, %error, "a damaged state file cannot be set aside"),
                    }
                    flaws.push(why);
                    seen.push(None);
                }
            }
        }
        let Some((generation, content)) = best else {
            // What cannot be read now may be read at the next start: nothing is lost yet.
            if let Some(error) = unreadable {
                return Err(error);
            }
            if flaws.is_empty() && self.was_set_aside(name)? {
                // A restart after the loss must not take the empty place for a first start.
                flaws.push("they were set aside by an earlier start");
            }
            return match flaws.first() {
                None => Ok(None),
                Some(why) => Err(StateError::Lost {
                    path: self.dir.join(name),
                    why: (*why).to_owned(),
                    next: "Removing the .bad files makes the agent start afresh here.",
                }),
            };
        };
        for (copy, found) in COPIES.into_iter().zip(seen) {
            if found != Some(generation) {
                // Mending may fail (a read-only disk): what was read is still good.
                if let Err(e) = self.write_copy(name, copy, generation, &content) {
                    tracing::warn!(name, copy, error = %e, "the second copy of a state file could not be mended");
                }
            }
        }
        self.remember(name, generation, &content);
        Ok(Some(content))
    }

    /// Keeps `content` under `name`, durably, in both copies, when it returns `Ok(true)`; `Ok(false)` when it was
    /// there already and nothing was written.
    ///
    /// # Errors
    /// The system's failures; what was there before is then still there, or the new content is.
    pub fn save_bytes(&self, name: &str, content: &[u8]) -> Result<bool, StateError> {
        let hash = copal_protocol::ids::Sha256Hex::of(content);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if known.is_some_and(|(_, on_disk)| on_disk == hash) {
            return Ok(false);
        }
        let generation = match known {
            Some((generation, _)) => generation,
            // Not read in this run: look, so that the new generation is above what is there.
            None => match self.load_bytes(name) {
                Ok(Some(on_disk)) if on_disk == content => return Ok(false),
                Ok(Some(_)) => self.generation(name),
                Ok(None) | Err(StateError::Lost { .. }) => 0,
                Err(e) => return Err(e),
            },
        } + 1;
        if content.len() > file::MAX_CONTENT {
            return Err(StateError::Content {
                path: self.dir.join(name),
                why: format!("{} bytes, at most {} are kept", content.len(), file::MAX_CONTENT),
            });
        }
        // From the first write on the disk holds something else than is known.
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        for copy in COPIES {
            self.write_copy(name, copy, generation, content)?;
        }
        self.remember(name, generation, content);
        Ok(true)
    }

    /// [`Self::load_bytes`] of JSON. Fields that a newer agent wrote and this one does not know are passed over.
    ///
    /// # Errors
    /// As there, and [`StateError::Content`] when the intact bytes are not a `T`.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.load_bytes(name)? else { return Ok(None) };
        tolerant::from_slice(&bytes)
            .map(Some)
            .map_err(|e| StateError::Content { path: self.dir.join(name), why: e.to_string() })
    }

    /// [`Self::save_bytes`] of JSON.
    ///
    /// # Errors
    /// As there.
    pub fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<bool, StateError> {
        let bytes = serde_json::to_vec(value)
            .map_err(|e| StateError::Content { path: self.dir.join(name), why: e.to_string() })?;
        self.save_bytes(name, &bytes)
    }

    /// Forgets `name`. Not an error where it is not there.
    ///
    /// # Errors
    /// The system's failures.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let mut removed = false;
        for copy in COPIES {
            let path = self.copy_path(name, copy);
            match self.fs.remove(&path) {
                Ok(()) => removed = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(StateError::io("remove", path, e)),
            }
        }
        if removed {
            self.fs.sync_dir(&self.dir).map_err(|e| StateError::io("sync", &self.dir, e))?;
        }
        Ok(())
    }

    /// The names kept that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// The system's failures.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, StateError> {
        let list = self.fs.list(&self.dir).map_err(|e| StateError::io("list", &self.dir, e))?;
        let mut names: Vec<String> = list
            .iter()
            .filter(|n| n.starts_with(prefix))
            .filter_map(|n| COPIES.iter().find_map(|c| n.strip_suffix(&format!(".{c}"))))
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn copy_path(&self, name: &str, copy: &str) -> PathBuf {
        self.dir.join(format!("{name}.{copy}"))
    }

    fn write_copy(&self, name: &str, copy: &str, generation: u64, content: &[u8]) -> Result<(), StateError> {
        let path = self.copy_path(name, copy);
        let temp = self.dir.join(format!("{name}.{copy}.tmp"));
        let written = self
            .fs
            .write_synced(&temp, &file::encode(name, generation, content))
            .map_err(|e| StateError::io("write", &temp, e))
            .and_then(|()| self.fs.rename(&temp, &path).map_err(|e| StateError::io("replace", &path, e)))
            .and_then(|()| self.fs.sync_dir(&self.dir).map_err(|e| StateError::io("sync", &self.dir, e)));
        if written.is_err() {
            // Gives the space back on a full disk; its absence is no failure of its own.
            let _ = self.fs.remove(&temp);
        }
        written
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, StateError> {
        // Bounded: the last name is used again, so that a flapping disk cannot fill itself with evidence.
        let name = |n: u32| PathBuf::from(format!("{}.bad-{n}", path.display()));
        let taken = self.fs.list(&self.dir).map_err(|e| StateError::io("list", &self.dir, e))?;
        let free = (1..10)
            .find(|n| {
                name(*n).file_name().is_some_and(|f| !taken.iter().any(|t| t.as_str() == f.to_string_lossy()))
            })
            .unwrap_or(10);
        match self.fs.rename(path, &name(free)) {
            Ok(()) => Ok(name(free)),
            Err(e) => Err(StateError::io("set aside", path, e)),
        }
    }

    fn was_set_aside(&self, name: &str) -> Result<bool, StateError> {
        let names = self.fs.list(&self.dir).map_err(|e| StateError::io("list", &self.dir, e))?;
        Ok(COPIES.iter().any(|copy| {
            let prefix = format!("{name}.{copy}.bad-");
            names.iter().any(|n| n.starts_with(&prefix))
        }))
    }

    fn generation(&self, name: &str) -> u64 {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).map_or(0, |(g, _)| *g)
    }

    fn remember(&self, name: &str, generation: u64, content: &[u8]) {
        let hash = copal_protocol::ids::Sha256Hex::of(content);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), (generation, hash));
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
