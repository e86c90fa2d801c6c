//! What should run, as the rest of the agent sees it: made of verified documents only.

use std::{collections::BTreeMap, sync::Arc};

use copal_protocol::{
    documents::Release,
    ids::{AppId, Name, Sha256Hex},
    verify::{Code, Verified},
    window::Window,
};

/// Everything this device should run. Empty apps mean: nothing.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// (assign_epoch, seq) of the assignment it came from.
    pub order: (u64, u64),
    /// The apps.
    pub apps: BTreeMap<AppId, AppTarget>,
    /// The operating system.
    pub os: HostAim,
    /// The agent itself.
    pub agent: HostAim,
    /// When the device may reboot into another operating system; absent: at any time.
    pub reboot_window: Option<Window>,
    /// Seconds between the health checks it makes by itself; absent: as this device says.
    pub check_every_s: Option<u32>,
    /// The cloud vouched for it as newest (or Root allows offline): only then may anything new be installed.
    pub may_install: bool,
    /// A person paused updates: the reason why nothing may be installed.
    pub paused: bool,
}

/// What is said of a pause.
pub const PAUSED: &str = "updates are paused on this device by a person; what runs goes on, and nothing new is installed until they resume";

/// What should run of the host: of the operating system, or of the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum HostAim {
    /// Not known, so nothing is begun and nothing given up.
    #[default]
    Unknown,
    /// The cloud names none: what runs goes on.
    None,
    /// What was named may not run (revoked, below a floor, signed by nobody today's root knows): what runs goes on, and
    /// what was begun is given up.
    Refused(Code),
    /// This.
    Release(HostRelease),
}

/// A verified host release to run.
#[derive(Debug, Clone)]
pub struct HostRelease {
    /// The document.
    pub release: Arc<Verified<Release>>,
    /// Rises when a person asks to try again.
    pub retry: u64,
}

impl PartialEq for HostRelease {
    fn eq(&self, other: &Self) -> bool {
        (self.release.sha256(), self.retry) == (other.release.sha256(), other.retry)
    }
}

/// The two parts of a host that have releases of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPart {
    /// The operating system.
    Os,
    /// The agent.
    Agent,
}

impl HostPart {
    /// As messages spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Os => "the operating system",
            Self::Agent => "the agent",
        }
    }
}

/// The *effective target* of an app: release, variables and secrets together. What is tried, committed, undone and
/// parked is this, never the release alone, so that a bad variable is undone like bad code.
#[derive(Debug, Clone)]
pub struct AppTarget {
    /// The app.
    pub app_id: AppId,
    /// What it should be.
    pub release: Arc<Verified<Release>>,
    /// Variables set by the cloud, by service; already checked by policy.
    pub env: BTreeMap<Name, BTreeMap<String, String>>,
    /// Secrets by service, opened.
    pub secrets: BTreeMap<Name, BTreeMap<String, Secret>>,
    /// Rises when a person asks to try again.
    pub retry: u64,
}

/// A secret's bytes; prints as nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl AppTarget {
    /// Names this effective target: equal exactly when release, variables, secrets and retry are.
    #[must_use]
    pub fn key(&self) -> Sha256Hex {
        use std::fmt::Write as _;
        let mut text = format!("{}\n{}\n{}\n", self.app_id, self.release.sha256(), self.retry);
        for (kind, service, name, value) in self
            .env
            .iter()
            .flat_map(|(s, vars)| vars.iter().map(move |(n, v)| ("e", s, n, Sha256Hex::of(v.as_bytes()))))
            .chain(
                self.secrets
                    .iter()
                    .flat_map(|(s, vars)| vars.iter().map(move |(n, v)| ("s", s, n, Sha256Hex::of(&v.0)))),
            )
        {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{kind} {service} {} {value}", Sha256Hex::of(name.as_bytes()));
        }
        Sha256Hex::of(text.as_bytes())
    }
}
