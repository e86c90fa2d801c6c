//! How the engine keeps images, and where.

use std::path::PathBuf;

use super::{Engine, EngineError, READ};

/// How the engine keeps images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The containerd image store (the default of new engines): an image's id is then its manifest's digest, and layers
    /// are kept compressed.
    pub containerd: bool,
    /// Where images are kept; absent where the engine does not say.
    pub root: Option<PathBuf>,
}

impl Engine {
    /// Asks how images are kept.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn storage(&self) -> Result<Storage, EngineError> {
        let info = self.call("asking how images are kept", READ, |d| async move { d.info().await }).await?;
        let containerd = info
            .driver_status
            .unwrap_or_default()
            .iter()
            .flatten()
            .any(|text| text.starts_with("io.containerd.snapshotter"));
        Ok(Storage { containerd, root: info.docker_root_dir.filter(|d| !d.is_empty()).map(PathBuf::from) })
    }
}
