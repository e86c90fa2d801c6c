//! The verification order of a device, step by step, as pure functions: time and what is remembered are arguments.
//! Any failure keeps what runs.

use std::fmt;

use crate::{
    documents::{Assignment, Document, Freshness, Release, ReleaseKind, Root},
    envelope::Envelope,
    ids::{AppId, DeviceId, FleetId, Sha256Hex},
    keys::PublicKey,
};

/// A refusal with a code that crosses wires unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Error {
    /// The stable code.
    pub code: Code,
    /// What was found on what, and why that is refused.
    pub detail: String,
}

impl Error {
    /// Makes a refusal.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why something was refused. The text form is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// Larger than its kind may be.
    TooLarge = "E_TOO_LARGE",
    /// Under 1 KiB/s for 60 s.
    Slow = "E_SLOW",
    /// The network failed.
    Transport = "E_TRANSPORT",
    /// Not a sound envelope.
    Envelope = "E_ENVELOPE",
    /// Another kind of document.
    PayloadType = "E_PAYLOAD_TYPE",
    /// A new root without the old root's signatures.
    RootOldSig = "E_ROOT_OLD_SIG",
    /// A new root without its own signatures.
    RootNewSig = "E_ROOT_NEW_SIG",
    /// A root that is not the next one.
    RootVersion = "E_ROOT_VERSION",
    /// The newest root has expired.
    RootExpired = "E_ROOT_EXPIRED",
    /// A root whose content makes no sense (a key in two roles, a threshold that cannot be met).
    RootInvalid = "E_ROOT_INVALID",
    /// For another fleet.
    Fleet = "E_FLEET",
    /// No signatures.
    SigMissing = "E_SIG_MISSING",
    /// A signature that does not fit its key.
    SigInvalid = "E_SIG_INVALID",
    /// Signed by a key of another role.
    SigWrongRole = "E_SIG_WRONG_ROLE",
    /// Signed by a key Root does not list.
    SigUnknownKey = "E_SIG_UNKNOWN_KEY",
    /// Fewer distinct keys than the role's threshold.
    SigThreshold = "E_SIG_THRESHOLD",
    /// A payload that is not of its kind's shape.
    Payload = "E_PAYLOAD",
    /// The same key twice in one object.
    DupKey = "E_DUP_KEY",
    /// A format version not understood.
    Spec = "E_SPEC",
    /// For another device.
    DeviceMismatch = "E_DEVICE_MISMATCH",
    /// Goes by a newer root than ours.
    RootBehind = "E_ROOT_BEHIND",
    /// Older than one accepted before.
    AssignRollback = "E_ASSIGN_ROLLBACK",
    /// Same order as one accepted before, other content.
    AssignEquivocation = "E_ASSIGN_EQUIVOCATION",
    /// Answers another nonce.
    Nonce = "E_NONCE",
    /// The cloud does not vouch for this assignment as newest.
    NotFresh = "E_NOT_FRESH",
    /// Other bytes than the assignment names.
    ReleaseHash = "E_RELEASE_HASH",
    /// For another app or kind.
    ReleaseApp = "E_RELEASE_APP",
    /// A counter that makes no sense.
    ReleaseCounter = "E_RELEASE_COUNTER",
    /// Below the floor.
    ReleaseRollback = "E_RELEASE_ROLLBACK",
    /// Revoked by Root.
    ReleaseRevoked = "E_RELEASE_REVOKED",
    /// Same counter as one seen, other content.
    ReleaseEquivocation = "E_RELEASE_EQUIVOCATION",
    /// Past its time for new installs.
    ReleaseExpired = "E_RELEASE_EXPIRED",
    /// Not for this device type, architecture, agent or OS.
    Incompatible = "E_INCOMPATIBLE",
    /// `privileged`.
    PolicyPrivileged = "E_POLICY_PRIVILEGED",
    /// A host namespace.
    PolicyNamespace = "E_POLICY_NAMESPACE",
    /// A capability.
    PolicyCap = "E_POLICY_CAP",
    /// A host device.
    PolicyDevice = "E_POLICY_DEVICE",
    /// A host path.
    PolicyBind = "E_POLICY_BIND",
    /// A volume with driver options.
    PolicyVolume = "E_POLICY_VOLUME",
    /// A security option.
    PolicySecurityOpt = "E_POLICY_SECURITY_OPT",
    /// A runtime.
    PolicyRuntime = "E_POLICY_RUNTIME",
    /// A kernel parameter.
    PolicySysctl = "E_POLICY_SYSCTL",
    /// A cgroup rule.
    PolicyCgroup = "E_POLICY_CGROUP",
    /// A variable the service did not declare.
    EnvUndeclared = "E_ENV_UNDECLARED",
    /// A variable nobody may set from the cloud.
    EnvDenied = "E_ENV_DENIED",
    /// Not enough space.
    NoSpace = "E_NO_SPACE",
    /// The bytes pulled are not those signed.
    PullVerify = "E_PULL_VERIFY",
    /// The engine's image is not the signed one.
    ImageId = "E_IMAGE_ID",
    /// The image's layers are not the signed ones.
    DiffIds = "E_DIFF_IDS",
    /// No image for this platform.
    Platform = "E_PLATFORM",
    /// The container's image is not the one asked for.
    ContainerImage = "E_CONTAINER_IMAGE",
    /// The container is not as asked for.
    ContainerDrift = "E_CONTAINER_DRIFT",
    /// A sealed secret cannot be opened with this device's key.
    Seal = "E_SEAL",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A document that passed verification; there is no other way to make one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<D> {
    document: D,
    sha256: Sha256Hex,
}

impl<D> Verified<D> {
    /// Payload hash.
    pub fn sha256(&self) -> Sha256Hex {
        self.sha256
    }

    /// The document, owned.
    pub fn into_inner(self) -> D {
        self.document
    }
}

impl<D> std::ops::Deref for Verified<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.document
    }
}

/// Accepts the first root a device is given, in `copal.json`: it must satisfy its own root role.
///
/// # Errors
/// As [`next_root`], without the old root's part.
pub fn first_root(envelope: &Envelope, fleet: FleetId) -> Result<Verified<Root>, Error> {
    let _ = (envelope, fleet);
    todo_error()
}

/// Accepts root N+1 on the word of N and of itself. Expiry is not judged here: only the last root's counts
/// ([`root_in_time`]).
///
/// # Errors
/// `E_ROOT_VERSION`, `E_ROOT_OLD_SIG`, `E_ROOT_NEW_SIG`, `E_ROOT_INVALID`, `E_FLEET`, and those of parsing.
pub fn next_root(trusted: &Verified<Root>, envelope: &Envelope) -> Result<Verified<Root>, Error> {
    let _ = (trusted, envelope);
    todo_error()
}

/// Whether the newest root may still bring in new documents.
///
/// # Errors
/// `E_ROOT_EXPIRED`.
pub fn root_in_time(root: &Verified<Root>, now: u64) -> Result<(), Error> {
    let _ = (root, now);
    todo_error()
}

/// Who the device is, as an assignment must name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Its fleet.
    pub fleet_id: FleetId,
    /// Its id.
    pub device_id: DeviceId,
    /// SHA-256 of its public key.
    pub key_sha256: Sha256Hex,
}

/// The newest assignment accepted so far; persisted on acceptance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignmentMark {
    /// Its epoch.
    pub assign_epoch: u64,
    /// Its seq.
    pub seq: u64,
    /// Its payload hash; absent before the first.
    pub sha256: Option<Sha256Hex>,
}

/// Accepts an assignment (steps 2, 4, 5 and 6).
///
/// # Errors
/// Signature and payload codes, `E_DEVICE_MISMATCH`, `E_ROOT_BEHIND`, `E_ASSIGN_ROLLBACK`, `E_ASSIGN_EQUIVOCATION`.
pub fn assignment(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    mark: &AssignmentMark,
    envelope: &Envelope,
) -> Result<Verified<Assignment>, Error> {
    let _ = (root, device, mark, envelope);
    todo_error()
}

/// Checks the cloud's word that `newest` is what it would serve now.
///
/// # Errors
/// Signature and payload codes, `E_DEVICE_MISMATCH`, `E_NONCE`, `E_NOT_FRESH`.
pub fn freshness(
    root: &Verified<Root>,
    device: &DeviceIdentity,
    nonce: Sha256Hex,
    newest: &AssignmentMark,
    envelope: &Envelope,
) -> Result<Verified<Freshness>, Error> {
    let _ = (root, device, nonce, newest, envelope);
    todo_error()
}

/// What is remembered of an app's (or host's) releases.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseMarks {
    /// Rises only after a health commit.
    pub floor: u64,
    /// Highest counter ever accepted, and the payload that had it.
    pub newest: Option<(u64, Sha256Hex)>,
}

/// What the device is, for `compat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Device type of `copal.json`.
    pub device_type: String,
    /// OCI architecture.
    pub arch: String,
    /// The agent's version.
    pub agent: semver::Version,
    /// The operating system's, where it has one.
    pub os: Option<semver::Version>,
}

/// What a release is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedRelease {
    /// App or host.
    pub kind: ReleaseKind,
    /// The app, for an app release.
    pub app_id: Option<AppId>,
    /// The payload hash the assignment names.
    pub sha256: Sha256Hex,
}

/// Whether the release is to be installed now, or runs already and is judged again (expiry stops new installs, never what runs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It would be new on this device.
    Install {
        /// Unix seconds, never below the clock floor.
        now: u64,
    },
    /// It was committed before.
    KeepRunning,
}

/// Accepts a release (steps 2, 4, 5 and 7) by the root's `release_mode`.
///
/// # Errors
/// Signature and payload codes, `E_RELEASE_*`, `E_INCOMPATIBLE`.
pub fn release(
    root: &Verified<Root>,
    expected: &ExpectedRelease,
    marks: &ReleaseMarks,
    platform: &Platform,
    purpose: Purpose,
    envelope: &Envelope,
) -> Result<Verified<Release>, Error> {
    let _ = (root, expected, marks, platform, purpose, envelope);
    todo_error()
}

/// Checks a document that exactly one known key signs (a device's Report, a builder's BuildRecord).
///
/// # Errors
/// Signature and payload codes, `E_FLEET`.
pub fn signed_by<D: Document>(
    key: &PublicKey,
    fleet: FleetId,
    envelope: &Envelope,
) -> Result<Verified<D>, Error> {
    let _ = (key, fleet, envelope);
    todo_error()
}

/// Whether the fleet is locked by this root: the cloud cannot make the device run code.
#[must_use]
pub fn is_locked(root: &Root) -> bool {
    let _ = root;
    false
}

fn todo_error<T>() -> Result<T, Error> {
    Err(Error::new(Code::Spec, "verification is not written yet"))
}
