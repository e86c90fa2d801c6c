//! The whole order over files, for people: what `copal-agent verify` prints. No network, no device state; the same
//! functions that judge on a device.

use super::{
    AssignmentMark, Code, DeviceIdentity, Error, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified,
    assignment, first_root, is_locked, next_root, payload, release, root_in_time,
};
use crate::{
    documents::{Assignment, Release, ReleaseKind, Role, Root},
    envelope::Envelope,
    ids::{DeviceId, FleetId, Sha256Hex},
    policy,
};

/// An envelope's bytes, and what to call it: a file's name.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// For the steps.
    pub name: &'a str,
    /// The envelope.
    pub bytes: &'a [u8],
}

/// The documents, and what they are judged against.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Roots, oldest first. The first is trusted as a device trusts `copal.json`'s: on its own word.
    pub roots: &'a [Named<'a>],
    /// The device's assignment.
    pub assignment: Option<Named<'a>>,
    /// Releases, in any order.
    pub releases: &'a [Named<'a>],
    /// The fleet the first root must be of; absent: whichever it names.
    pub fleet: Option<FleetId>,
    /// The device the assignment must be for; absent: whichever it names.
    pub device: Option<DeviceId>,
    /// SHA-256 of that device's public key; absent: whichever it names.
    pub device_key: Option<Sha256Hex>,
    /// What releases must fit.
    pub platform: &'a Platform,
    /// Unix seconds.
    pub now: u64,
}

/// What was looked at, and how it went: a sentence, or the refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The document and the step.
    pub what: String,
    /// What was found.
    pub outcome: Result<String, Error>,
}

/// Every step taken, in order, and what came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The steps; nothing was looked at that only a refused root could vouch for.
    pub steps: Vec<Step>,
    /// The newest root reached.
    pub root: Option<Verified<Root>>,
    /// The assignment, where it was accepted.
    pub assignment: Option<Verified<Assignment>>,
    /// The releases accepted, policy and variables included.
    pub releases: Vec<Verified<Release>>,
}

impl Report {
    /// Whether there was a step, and every one went well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.outcome.is_ok())
    }

    fn note<T>(
        &mut self,
        what: String,
        result: Result<T, Error>,
        say: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let (outcome, value) = match result {
            Ok(value) => (Ok(say(&value)), Some(value)),
            Err(refused) => (Err(refused), None),
        };
        self.steps.push(Step { what, outcome });
        value
    }
}

/// Verifies a chain of documents. Stops at a refused root or an expired last one; an assignment and releases are
/// each judged, whatever came of the others.
#[must_use]
pub fn verify(input: &Input<'_>) -> Report {
    let mut report = Report::default();
    let Some(root) = walk(input, &mut report) else { return report };
    report.root = Some(root.clone());
    let in_time = root_in_time(&root, input.now);
    let until = |(): &()| format!("until {} (Unix seconds)", root.expires);
    if report.note(format!("root {} is in time", root.version), in_time, until).is_none() {
        return report;
    }
    if let Some(file) = input.assignment {
        let found = judge_assignment(input, &root, file.bytes);
        report.assignment = report.note(format!("assignment {}", file.name), found, |a| {
            format!(
                "device {}, epoch {}, seq {}, {} app(s)",
                a.device_id,
                a.assign_epoch,
                a.seq,
                a.apps.len()
            )
        });
    }
    for file in input.releases {
        let found = judge_release(input, &root, report.assignment.as_ref(), file.bytes);
        let found = report.note(format!("release {}", file.name), found, |r| {
            format!("version {}, counter {}, payload {}", r.version, r.counter, r.sha256())
        });
        report.releases.extend(found);
    }
    report
}

fn walk(input: &Input<'_>, report: &mut Report) -> Option<Verified<Root>> {
    let mut trusted: Option<Verified<Root>> = None;
    for file in input.roots {
        let found = Envelope::parse::<Root>(file.bytes).and_then(|envelope| match &trusted {
            Some(before) => next_root(before, &envelope),
            None => {
                let fleet = match input.fleet {
                    Some(fleet) => fleet,
                    None => payload::parse::<Root>(&envelope)?.fleet_id,
                };
                first_root(&envelope, fleet)
            }
        });
        let found = report.note(format!("root {}", file.name), found, |root| {
            let locked = if is_locked(root) { ", locked" } else { "" };
            format!("version {}, fingerprint {}{locked}", root.version, root.sha256())
        });
        trusted = Some(found?);
    }
    trusted
}

fn judge_assignment(
    input: &Input<'_>,
    root: &Verified<Root>,
    bytes: &[u8],
) -> Result<Verified<Assignment>, Error> {
    let envelope = Envelope::parse::<Assignment>(bytes)?;
    let device = match (input.device, input.device_key) {
        (Some(device_id), Some(key_sha256)) => {
            DeviceIdentity { fleet_id: root.fleet_id, device_id, key_sha256 }
        }
        // What the document says of itself stands in; signature and content are judged all the same.
        (device, key) => {
            super::signatures::check(root, &[Role::Assign], &envelope)?;
            let claim: Assignment = payload::parse(&envelope)?;
            DeviceIdentity {
                fleet_id: root.fleet_id,
                device_id: device.unwrap_or(claim.device_id),
                key_sha256: key.unwrap_or(claim.device_key_sha256),
            }
        }
    };
    assignment(root, &device, &AssignmentMark::default(), &envelope)
}

fn judge_release(
    input: &Input<'_>,
    root: &Verified<Root>,
    assigned: Option<&Verified<Assignment>>,
    bytes: &[u8],
) -> Result<Verified<Release>, Error> {
    let envelope = Envelope::parse::<Release>(bytes)?;
    let sha256 = envelope.payload_sha256();
    // What it says it is decides only whose signature is looked for; one that says nothing readable fails at that.
    let (kind, app_id) = payload::parse::<Release>(&envelope)
        .map_or((ReleaseKind::App, None), |claim| (claim.kind, claim.app_id));
    let mut expected = ExpectedRelease { kind, app_id, sha256 };
    if let Some(assigned) = assigned {
        let host =
            [&assigned.host, &assigned.agent].into_iter().flatten().any(|named| named.sha256 == sha256);
        let app = assigned.apps.iter().find(|app| app.sha256 == sha256);
        if let Some(app) = app {
            expected = ExpectedRelease::app(app.app_id, sha256);
        } else if !host {
            return Err(Error::new(
                Code::ReleaseHash,
                format!("its payload is {sha256}, which the assignment does not name"),
            ));
        }
    }
    let now = Purpose::Install { now: input.now };
    let found = release(root, &expected, &ReleaseMarks::default(), input.platform, now, &envelope)?;
    policy::check_release(&root.policy, &found)?;
    if let (Some(assigned), Some(app)) = (assigned, found.app_id) {
        for (name, service) in &found.services {
            for set in [assigned.env.get(&app), assigned.sealed.get(&app)].into_iter().flatten() {
                if let Some(variables) = set.get(name) {
                    policy::check_env(root.policy.env_mode, service, variables)?;
                }
            }
        }
    }
    Ok(found)
}
