//! Refusals: a stable code and what was found.

use std::fmt;

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
    /// A grant for another session.
    GrantSession = "E_GRANT_SESSION",
    /// A grant for another offer: one that was used, or is another's.
    GrantChallenge = "E_GRANT_CHALLENGE",
    /// A grant for something else than was asked for.
    GrantTarget = "E_GRANT_TARGET",
    /// A grant that came too long after its offer.
    GrantExpired = "E_GRANT_EXPIRED",
    /// A sealed secret cannot be opened with this device's key.
    Seal = "E_SEAL",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
