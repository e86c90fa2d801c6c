//! Settings, as the rest of the cloud sees them: complete and checked. Where they come from is `cli`'s part.

use std::{net::SocketAddr, path::PathBuf};

/// A complete configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the cloud keeps: database, blobs, git, keys, logs.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The base URL people and devices use, without a slash at the end; with port 0 known only once bound.
    pub url: String,
    /// TLS pins a device gets in `copal.json`; empty under a public CA or without TLS.
    pub tls_pins: Vec<String>,
    /// How connections are secured.
    pub tls: Tls,
    /// The engine that builds, as `unix:///…`.
    pub docker_host: String,
    /// Limits of builds.
    pub build: BuildLimits,
    /// Seconds in which a terminal's recording is never let go of for want of room.
    pub recordings_stay_s: u64,
    /// The most seconds between pings of a device's channel.
    pub ping_max_s: u64,
}

/// Unless it is set: a month.
pub const RECORDINGS_STAY_S: u64 = 30 * 86_400;

/// The most seconds between pings, where nothing else is set: docs/decisions/0007.
pub const PING_MAX_S: u64 = 360;

/// How connections are secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP; only on loopback.
    Off,
    /// A certificate chain and its key, in PEM files that are read again when they change.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The private CA that `copal-cloud tls init` made in the data folder.
    PrivateCa,
    /// Certificates by ACME (TLS-ALPN-01).
    Acme {
        /// The names to certify.
        domains: Vec<String>,
        /// Whom the CA may write to.
        email: Option<String>,
        /// The CA's directory URL; Let's Encrypt's by default.
        directory: Option<String>,
        /// What to trust for the directory instead of the public CAs: a PEM file.
        directory_ca: Option<PathBuf>,
    },
}

/// What a build may use.
#[derive(Debug, Clone, Copy)]
pub struct BuildLimits {
    /// Seconds.
    pub time_s: u64,
    /// Bytes of memory of each build step.
    pub memory: u64,
    /// Bytes of log kept.
    pub log: u64,
    /// Bytes of context, unpacked.
    pub context: u64,
}

impl Default for BuildLimits {
    fn default() -> Self {
        Self { time_s: 1800, memory: 2 << 30, log: 8 << 20, context: 1 << 30 }
    }
}

impl Config {
    /// A configuration for this data folder with everything else at its default: plain HTTP on a free loopback port.
    #[must_use]
    pub fn local(data: PathBuf) -> Self {
        Self {
            data,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            url: "http://127.0.0.1:0".to_owned(),
            tls_pins: Vec::new(),
            tls: Tls::Off,
            docker_host: "unix:///var/run/docker.sock".to_owned(),
            build: BuildLimits::default(),
            recordings_stay_s: RECORDINGS_STAY_S,
            ping_max_s: PING_MAX_S,
        }
    }

    /// The TLS folder: the private CA, or what ACME gave.
    #[must_use]
    pub fn tls_dir(&self) -> PathBuf {
        self.data.join("tls")
    }

    /// The database file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data.join("copal.db")
    }

    /// Private keys, 0700.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.data.join("keys")
    }

    /// Blobs, by digest.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.data.join("blobs")
    }

    /// Bare repositories, by fleet id.
    #[must_use]
    pub fn git(&self) -> PathBuf {
        self.data.join("git")
    }

    /// Build logs, by build id.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Recordings of terminals, by session.
    #[must_use]
    pub fn recordings(&self) -> PathBuf {
        self.data.join("recordings")
    }

    /// Sockets and what only lives while the cloud runs.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.data.join("run")
    }
}
