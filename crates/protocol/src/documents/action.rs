//! Action: something one device is to do, once. Signed by the cloud's online key, as assignments are.

use serde::{Deserialize, Serialize};

use super::document;
use crate::ids::{CommandId, DeviceId, FleetId, Name};

/// The longest an action may wait for its device: 30 days.
pub const MAX_TTL_S: u32 = 30 * 86_400;

/// The epoch of an action that names none: the first, in which fleets begin.
pub const FIRST_EPOCH: u64 = 1;

const fn first_epoch() -> u64 {
    FIRST_EPOCH
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_first_epoch(epoch: &u64) -> bool {
    *epoch == FIRST_EPOCH
}

/// One act of one device. Its `seq` makes a replayed one known for ever, however few results a device keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Format version.
    pub spec: u32,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The device; no other accepts it.
    pub device_id: DeviceId,
    /// Names it. A device does what an id says at most once.
    pub id: CommandId,
    /// Root's when it was made. In a new one numbers begin anew, so that nobody can use them up for ever.
    #[serde(default = "first_epoch", skip_serializing_if = "is_first_epoch")]
    pub assign_epoch: u64,
    /// Rises with every action of the device in this epoch. One that is not above the highest a device has forgotten is refused.
    pub seq: u64,
    /// What to do.
    pub act: Act,
    /// Whether it waits for a device that is away.
    pub delivery: Delivery,
    /// Seconds from `issued_at` in which it may begin; at most [`MAX_TTL_S`].
    pub ttl_s: u32,
    /// Unix seconds by the cloud's clock. How old it is when it arrives, the channel says beside it: devices may have no clock. One that has
    /// goes by whichever makes it older.
    pub issued_at: u64,
    /// Room for what a later version adds without breaking this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext: Option<serde_json::Value>,
}
document!(Action, "action", 16 << 10);

/// Whether an action waits for a device that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Now, or not at all.
    Direct,
    /// Within `ttl_s`, whenever the device comes.
    Store,
}

/// What a device can be told to do. A typed list: nothing else can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// Stops and starts a service's container.
    RestartService {
        /// Which.
        service: Name,
    },
    /// Stops a service until it is started again, the device is told to run something new, or restarts.
    StopService {
        /// Which.
        service: Name,
    },
    /// Starts a stopped service.
    StartService {
        /// Which.
        service: Name,
    },
    /// Empties the app's volumes, or one of them. Images stay.
    PurgeData {
        /// Which volume; absent: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<Name>,
    },
    /// Installs nothing new until resumed. What runs goes on.
    PauseUpdates {
        /// Seconds after which updates go on by themselves; absent: until resumed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_s: Option<u32>,
    },
    /// Ends a pause.
    ResumeUpdates {},
    /// Restarts the device.
    Reboot {},
    /// Looks for something new at once.
    CheckUpdate {},
    /// Makes the device findable: its light blinks, where it has one.
    Blink {
        /// For how long, seconds; at most 600.
        for_s: u32,
    },
    /// Sets the way to the cloud and the time servers. Undone by the device itself where it does not reach the cloud afterwards.
    SetNetwork {
        /// A proxy's URL, or [`none`](crate::network::NONE); absent: as it is. May hold a password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proxy: Option<String>,
        /// Time servers, none for the system's own; absent: as they are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ntp: Option<Vec<String>>,
    },
}

impl Act {
    /// The word on the wire.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::RestartService { .. } => "restart_service",
            Self::StopService { .. } => "stop_service",
            Self::StartService { .. } => "start_service",
            Self::PurgeData { .. } => "purge_data",
            Self::PauseUpdates { .. } => "pause_updates",
            Self::ResumeUpdates {} => "resume_updates",
            Self::Reboot {} => "reboot",
            Self::CheckUpdate {} => "check_update",
            Self::Blink { .. } => "blink",
            Self::SetNetwork { .. } => "set_network",
        }
    }

    /// Whether doing it twice is the same as doing it once. One that is not is never begun again after the device died in the middle of it.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        !matches!(
            self,
            Self::RestartService { .. } | Self::PurgeData { .. } | Self::Reboot {} | Self::SetNetwork { .. }
        )
    }
}
