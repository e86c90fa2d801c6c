//! The payload of each signed document. Unknown fields are refused, except under `ext`;
//! a document is named by the SHA-256 of its payload bytes.

use crate::ids::FleetId;

mod action;
mod assignment;
mod build;
mod freshness;
mod release;
mod report;
mod root;
mod terminal;

pub use action::{Act, Action, Delivery, FIRST_EPOCH, MAX_TTL_S};
pub use assignment::{
    AppTarget, Assignment, CHECK_EVERY_S, DeviceConfig, DocumentRef, EnvByService, HostTarget,
    SealedByService,
};
pub use build::BuildRecord;
pub use freshness::Freshness;
pub use release::{Compat, HostPayload, ImageRef, Layer, Release, ReleaseKind, ServiceRelease};
pub use report::{
    AgentReport, HostReport, LockState, MAX_TAIL_BYTES, MAX_TAIL_LINE, MAX_TAIL_LINES, Progress, Reason,
    Report, RunningService, ServiceState, SlotReport, SlotState, bound_tail,
};
pub use root::{
    AllowPolicy, CloudAddress, EnvMode, Policy, ReleaseMode, Role, RoleKeys, Root, RootKey, TerminalMode,
};
pub use terminal::{
    GRANT_WAIT_S, MAX_GRANT_S, MAX_IDLE_S, MAX_REASON, MAX_TERMINAL_BYTES, MAX_TERMINAL_S, TerminalGrant,
    TerminalOffer, TerminalTarget,
};

/// The version of the payload formats described here; the `spec` field of each.
pub const SPEC: u32 = 1;

/// The largest integer a payload may carry: every JSON reader holds it exactly.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A payload that can be signed: what its envelope calls it, how large it may be, and whose it is.
pub trait Document: serde::Serialize + serde::de::DeserializeOwned {
    /// The envelope's `payloadType`.
    const PAYLOAD_TYPE: &'static str;
    /// The most bytes the whole envelope may have on the wire.
    const MAX_BYTES: usize;

    /// The format version it claims; only [`SPEC`] is understood.
    fn spec(&self) -> u32;
    /// The fleet it is for.
    fn fleet_id(&self) -> FleetId;
}

macro_rules! document {
    ($type:ty, $name:literal, $max:expr) => {
        impl crate::documents::Document for $type {
            const PAYLOAD_TYPE: &'static str = concat!("application/vnd.copal.", $name, ".v1+json");
            const MAX_BYTES: usize = $max;

            fn spec(&self) -> u32 {
                self.spec
            }

            fn fleet_id(&self) -> crate::ids::FleetId {
                self.fleet_id
            }
        }
    };
}
pub(crate) use document;
