//! How the way from the cloud to a target stands: one value, replaced as a whole.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{LockState, Reason},
    ids::{AppId, DeviceId, Sha256Hex},
    verify::AssignmentMark,
};

use super::model::HostPart;

/// What the synchronisation says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The device's id; absent before enrolment.
    pub device_id: Option<DeviceId>,
    /// The trusted root.
    pub root_version: u64,
    /// Its payload hash.
    pub root_sha256: Sha256Hex,
    /// Whether the lock predicate holds.
    pub lock: LockState,
    /// The newest accepted assignment.
    pub mark: AssignmentMark,
    /// The cloud answered the last call.
    pub online: bool,
    /// Why not, where it did not.
    pub offline: Option<Reason>,
    /// Why the newest assignment or root was refused; absent when it was not.
    pub refused: Option<Reason>,
    /// Why an app's newest target was refused.
    pub refused_apps: BTreeMap<AppId, Reason>,
    /// Why a host's newest target was refused.
    pub refused_hosts: BTreeMap<HostPart, Reason>,
    /// The cloud vouched for the newest assignment in this run.
    pub fresh: bool,
    /// Root allows a newer assignment without that.
    pub offline_allowed: bool,
    /// State files that were lost.
    pub lost: Vec<String>,
}

impl Condition {
    /// The most telling thing that is wrong with what should run; network troubles are not part of it.
    #[must_use]
    pub fn refusal(&self) -> Option<&Reason> {
        let parts = self.refused_apps.values().chain(self.refused_hosts.values());
        self.refused.iter().chain(parts).next()
    }
}
