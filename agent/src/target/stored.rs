//! What the files of the state folder hold of targets. Wire documents stay as the bytes they came as; secrets stay sealed.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::{EnvByService, HostTarget, Reason, SealedByService},
    ids::{AppId, Sha256Hex},
    verify::{AssignmentMark, ReleaseMarks},
    window::Window,
};
use serde::{Deserialize, Serialize};

use super::model::HostPart;

// An older agent reads these after the operating system went back to it: fields that it does not know are passed over, or
// its floors would be lost.

/// Rollback floors and order marks (file `marks`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Marks {
    /// Owner-signed time no correct clock is below, Unix seconds.
    pub clock_floor: u64,
    /// The newest assignment accepted.
    pub assignment: AssignmentMark,
    /// By app.
    pub releases: BTreeMap<AppId, ReleaseMarks>,
    /// By `host/<device_type>` and `agent/<arch>`, as Root's floors are.
    pub hosts: BTreeMap<String, ReleaseMarks>,
}

/// An effective target, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredTarget {
    pub app_id: AppId,
    /// Payload hash; the envelope is the file `release-<hash>`.
    pub release: Sha256Hex,
    pub retry: u64,
    pub env: EnvByService,
    pub sealed: SealedByService,
}

/// The newest accepted assignment and what came of it (file `target`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Accepted {
    /// Its envelope.
    pub assignment: String,
    /// (assign_epoch, seq) of the newest assignment whose every app was accepted.
    pub resolved: (u64, u64),
    /// The apps it names, accepted or not: an app it does not name goes, one whose newest was refused stays.
    pub assigned: BTreeSet<AppId>,
    /// The newest accepted effective target of each assigned app.
    pub apps: BTreeMap<AppId, StoredTarget>,
    /// The hosts it names a release for, accepted or not.
    #[serde(default)]
    pub named_hosts: BTreeSet<HostPart>,
    /// The newest accepted host targets.
    #[serde(default)]
    pub hosts: BTreeMap<HostPart, HostTarget>,
    /// When the device may reboot.
    #[serde(default)]
    pub reboot_window: Option<Window>,
    /// Seconds between the health checks it makes by itself.
    #[serde(default)]
    pub check_every_s: Option<u32>,
}

/// What is remembered of the operating system or the agent (files `host-os` and `host-agent`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HostRecord {
    /// The release that proved itself last.
    pub committed: Option<Sha256Hex>,
    /// The one before it: what a person may go back to.
    pub previous: Option<Sha256Hex>,
    /// The release that was begun here last: it is not judged anew for what only new installs need.
    pub begun: Option<Sha256Hex>,
}

/// What is remembered of an app (file `app-<id>`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AppRecord {
    /// What proved itself last.
    pub committed: Option<StoredTarget>,
    /// What proved itself before, newest first; takes over when the committed one is revoked.
    pub earlier: Vec<StoredTarget>,
    /// Key and content of what is on trial.
    pub trial: Option<(Sha256Hex, StoredTarget)>,
    /// What failed, and why.
    pub parked: Option<(Sha256Hex, Reason)>,
}

impl AppRecord {
    /// Whether this release is committed or was begun as a trial.
    pub fn began(&self, release: Sha256Hex) -> bool {
        self.committed.iter().chain(self.trial.iter().map(|(_, t)| t)).any(|t| t.release == release)
    }

    pub fn targets(&self) -> impl Iterator<Item = &StoredTarget> {
        self.committed.iter().chain(&self.earlier).chain(self.trial.iter().map(|(_, t)| t))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{RealFs, StateDir};

    #[test]
    fn an_older_agent_keeps_its_floors_over_fields_that_a_newer_one_added() {
        let mut marks = Marks { clock_floor: 7, ..Marks::default() };
        let release = ReleaseMarks { floor: 20, newest: Some((21, Sha256Hex::of(b"r"))) };
        marks.hosts.insert("host/generic".to_owned(), release);
        let mut text = serde_json::to_value(&marks).unwrap();
        text["later"] = 1.into();
        text["assignment"]["later"] = 1.into();
        text["hosts"]["host/generic"]["later"] = 1.into();
        assert_eq!(serde_json::from_value::<Marks>(text).unwrap(), marks);

        let record = HostRecord { committed: Some(Sha256Hex::of(b"r")), ..HostRecord::default() };
        let mut text = serde_json::to_value(&record).unwrap();
        text["later"] = 1.into();
        assert_eq!(serde_json::from_value::<HostRecord>(text).unwrap(), record);
    }

    #[test]
    fn a_record_whose_reason_has_a_field_of_a_newer_agent_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), Arc::new(RealFs)).unwrap();
        let why = crate::apply::status::reason("rolled_back", "web ended with 7");
        let release = Sha256Hex::of(b"r");
        let record = AppRecord { parked: Some((release, why)), ..AppRecord::default() };
        let mut text = serde_json::to_value(&record).unwrap();
        text["parked"][1]["later"] = serde_json::json!({"next": "look at its log"});
        state.save("app-x", &text).unwrap();
        assert_eq!(state.load::<AppRecord>("app-x").unwrap(), Some(record));

        let accepted = Accepted {
            assignment: "{}".to_owned(),
            resolved: (1, 2),
            assigned: BTreeSet::new(),
            apps: BTreeMap::new(),
            named_hosts: [HostPart::Os].into(),
            hosts: [(HostPart::Os, HostTarget { sha256: release, retry: 3 })].into(),
            reboot_window: None,
            check_every_s: Some(600),
        };
        let mut text = serde_json::to_value(&accepted).unwrap();
        text["hosts"]["os"]["later"] = 1.into();
        state.save("target", &text).unwrap();
        assert_eq!(state.load::<Accepted>("target").unwrap(), Some(accepted));
    }
}
