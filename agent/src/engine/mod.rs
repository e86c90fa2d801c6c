//! The container engine, behind the only client of it in this program.
//!
//! In: what to list, create, start, stop, remove or pull. Out: plain values of our own; the client's types and its
//! errors never leave this room. Here nothing is decided and nothing is remembered: no policy, no retries, no names.
//!
//! The client sends requests without an API version, so the *daemon's* version shapes the answers: whatever depends on
//! it is gated on [`EngineVersion::api`]. Every call has a time limit.

mod api;
mod create;
mod docker;
mod error;
mod exec;
#[cfg(test)]
pub(crate) mod fake;
mod follow;
mod image;
mod logs;
mod look;
mod storage;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, Docker};

pub use api::{
    Container, ContainerRequest, Containers, DEFAULT_GRACE_S, EngineApi, EngineEvent, Health, Join, Labels,
    MountPoint, Network, NetworkRequest, RunState, Volume, VolumeRequest, service_ref,
};
pub use error::EngineError;
pub use exec::{ExecRequest, ExecState};
pub use follow::{Follow, Ours, Part, Since};
pub use image::{ImageId, ImageIdentity, PullProgress};
pub use logs::lines as log_lines;
pub use look::{EngineInfo, Inspection, Whose};
pub use storage::Storage;

/// Where the engine listens unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Time a question may take.
const READ: Duration = Duration::from_secs(30);
/// Time a change may take; creating unpacks nothing, but a busy SD card is slow.
const WRITE: Duration = Duration::from_secs(120);
/// The client's own limit on the head of an answer; longer than any of ours, as stopping waits for the container.
const CLIENT_TIMEOUT_S: u64 = 3600;

/// A connection to the engine. Making one never fails: an absent engine is an answer of the calls. Clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    host: String,
    docker: Mutex<Option<Docker>>,
    version: Mutex<Option<EngineVersion>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.shared.host)
    }
}

/// What answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineVersion {
    /// The engine's own version, such as `20.10.24`.
    pub version: String,
    /// Its newest API version.
    pub api: ApiVersion,
    /// Its operating system.
    pub os: String,
    /// Its architecture, as Go spells it.
    pub arch: String,
}

/// An API version, such as 1.41.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32, pub u32);

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl ApiVersion {
    /// What is assumed of an engine that does not say: the oldest supported.
    pub const OLDEST: Self = Self(1, 41);

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl Engine {
    /// Names the engine at `docker_host` (`unix:///path`), or the default one. Connects at the first call.
    #[must_use]
    pub fn connect(docker_host: Option<&str>) -> Self {
        let host = docker_host.unwrap_or(DEFAULT_HOST).to_owned();
        Self { shared: Arc::new(Shared { host, docker: Mutex::new(None), version: Mutex::new(None) }) }
    }

    /// Where the engine is expected.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    fn docker(&self) -> Result<Docker, EngineError> {
        let mut slot = self.shared.docker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(docker) = slot.as_ref() {
            return Ok(docker.clone());
        }
        let host = &self.shared.host;
        let path = match host.strip_prefix("unix://") {
            Some(path) => path,
            None if host.starts_with('/') => host,
            None => {
                return Err(EngineError::Absent {
                    host: host.clone(),
                    detail: "only unix:// sockets are supported; set --docker-host to one".into(),
                });
            }
        };
        let docker = Docker::connect_with_unix(path, CLIENT_TIMEOUT_S, API_DEFAULT_VERSION)
            .map_err(|e| EngineError::from_client("connecting", host, e))?;
        *slot = Some(docker.clone());
        Ok(docker)
    }

    /// Runs one call within `limit`, and names it in its error.
    async fn call<T, F>(
        &self,
        what: impl Into<String>,
        limit: Duration,
        make: impl FnOnce(Docker) -> F,
    ) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let docker = self.docker()?;
        // Boxed: the client's futures are large, and a lane holds several.
        match tokio::time::timeout(limit, Box::pin(make(docker))).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let error = EngineError::from_client(what, &self.shared.host, error);
                if error.is_absent() {
                    // It may come back as another version.
                    self.forget_version();
                }
                Err(error)
            }
            Err(_) => Err(EngineError::Timeout { what: what.into(), after: limit }),
        }
    }

    /// Asks the engine what it is.
    ///
    /// # Errors
    /// [`EngineError::Absent`] where nothing answers.
    pub async fn version(&self) -> Result<EngineVersion, EngineError> {
        let answer = self.call("asking the version", READ, |d| async move { d.version().await }).await?;
        let version = EngineVersion {
            version: answer.version.unwrap_or_default(),
            api: answer.api_version.as_deref().and_then(ApiVersion::parse).unwrap_or(ApiVersion::OLDEST),
            os: answer.os.unwrap_or_default(),
            arch: answer.arch.unwrap_or_default(),
        };
        *self.shared.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.clone());
        Ok(version)
    }

    /// The API version last seen; asks where none was.
    async fn api(&self) -> Result<ApiVersion, EngineError> {
        let known =
            self.shared.version.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|v| v.api);
        match known {
            Some(api) => Ok(api),
            None => Ok(self.version().await?.api),
        }
    }

    /// Forgets the version: the engine may come back as another one.
    fn forget_version(&self) {
        *self.shared.version.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
