//! What a deployment asks for, and what came of it.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::ids::DeviceId;

use crate::releases::Line;

/// What to deploy, and where.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// What it is a version of.
    pub line: Line,
    /// A release's id, a version, or `latest`.
    pub release: String,
    /// These devices, by id; they are pinned.
    pub devices: Vec<DeviceId>,
    /// Devices with all of these tags; they are pinned. With neither, nor a filter, the whole fleet.
    pub tag: BTreeMap<String, String>,
    /// The devices a filter meant; they are pinned.
    pub filtered: Option<Filtered>,
    /// Only says what would happen.
    pub dry_run: bool,
    /// Refuses when another number of devices would be concerned.
    pub expect_count: Option<u64>,
}

/// What a filter meant when it was asked.
#[derive(Debug, Clone)]
pub struct Filtered {
    /// Its canonical text, for the audit log.
    pub filter: String,
    /// Ids of the devices.
    pub ids: BTreeSet<String>,
}

impl Deploy {
    /// Of this release, to the whole fleet.
    #[must_use]
    pub fn of(line: Line, release: impl Into<String>) -> Self {
        Self {
            line,
            release: release.into(),
            devices: Vec::new(),
            tag: BTreeMap::new(),
            filtered: None,
            dry_run: false,
            expect_count: None,
        }
    }

    /// Whether it is for some devices only.
    pub(super) fn named(&self) -> bool {
        !self.devices.is_empty() || !self.tag.is_empty() || self.filtered.is_some()
    }
}

/// What came of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    /// The release.
    pub release: String,
    /// Its version.
    pub version: String,
    /// Devices concerned.
    pub devices: u64,
    /// The assignments they have now, by device; at most 500.
    pub seqs: BTreeMap<String, u64>,
}
