//! The whole order over files, for people: what `copal-agent verify` prints. No network, no device state; the same
//! functions that judge on a device.

use super::{
    AssignmentMark, DeviceIdentity, Error, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified,
    assignment, first_root, next_root, release, root_in_time,
};
use crate::{
    documents::{Assignment, Document, Release, ReleaseKind, Root},
    envelope::Envelope,
    ids::FleetId,
    policy,
};

/// Documents as their envelopes' bytes, and what they are judged against.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The fleet the first root must be of.
    pub fleet: FleetId,
    /// The root that is trusted without proof, as the device trusts `copal.json`'s.
    pub first_root: &'a [u8],
    /// The roots after it, in order.
    pub roots: &'a [Vec<u8>],
    /// The device's assignment.
    pub assignment: Option<&'a [u8]>,
    /// Releases, in any order.
    pub releases: &'a [Vec<u8>],
    /// Whom the assignment must name; absent: whomever it names.
    pub device: Option<DeviceIdentity>,
    /// What releases must fit; absent: `compat` and expiry are not judged.
    pub platform: Option<&'a Platform>,
    /// Unix seconds.
    pub now: u64,
}

/// What was looked at, and how it went: a sentence, or the refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The document and the step, such as `root 2` or `release 1.4.0: policy`.
    pub what: String,
    /// What was found.
    pub outcome: Result<String, Error>,
}

/// Every step taken, in order, and what came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The steps; nothing that depends on a refused one was looked at.
    pub steps: Vec<Step>,
    /// The newest root reached.
    pub root: Option<Verified<Root>>,
    /// The assignment, where it was accepted.
    pub assignment: Option<Verified<Assignment>>,
    /// The releases accepted, policy included.
    pub releases: Vec<Verified<Release>>,
}

impl Report {
    /// Whether every step went well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(|step| step.outcome.is_ok())
    }

    fn note<T>(&mut self, what: &str, result: Result<T, Error>, say: impl FnOnce(&T) -> String) -> Option<T> {
        let (outcome, value) = match result {
            Ok(value) => (Ok(say(&value)), Some(value)),
            Err(refused) => (Err(refused), None),
        };
        self.steps.push(Step { what: what.to_owned(), outcome });
        value
    }
}

/// Verifies a chain of documents. Stops at a refused root; documents beside one another are each judged.
#[must_use]
pub fn verify(input: &Input<'_>) -> Report {
    let mut report = Report::default();
    let Some(root) = walk(input, &mut report) else { return report };
    if let Some(bytes) = input.assignment {
        let found = Envelope::parse::<Assignment>(bytes).and_then(|envelope| {
            // Without a device of our own, the one it names stands in; signature and content are judged all the same.
            let device = match input.device {
                Some(device) => device,
                None => named(&envelope)?,
            };
            assignment(&root, &device, &AssignmentMark::default(), &envelope)
        });
        let found = report.note("assignment", found, |a| {
            format!(
                "(epoch, seq) ({}, {}) for device {}, {} app(s)",
                a.assign_epoch,
                a.seq,
                a.device_id,
                a.apps.len()
            )
        });
        report.assignment = found;
    }
    for (at, bytes) in input.releases.iter().enumerate() {
        judge_release(input, &root, at, bytes, &mut report);
    }
    if let Some(assigned) = report.assignment.clone() {
        judge_variables(&root, &assigned, &mut report);
    }
    report
}

fn walk(input: &Input<'_>, report: &mut Report) -> Option<Verified<Root>> {
    let say = |root: &Verified<Root>| {
        format!(
            "version {}, {}{}",
            root.version,
            root.sha256(),
            if super::is_locked(root) { ", locked" } else { "" }
        )
    };
    let first = Envelope::parse::<Root>(input.first_root).and_then(|e| first_root(&e, input.fleet));
    let mut root = report.note("first root", first, say)?;
    for bytes in input.roots {
        let next = Envelope::parse::<Root>(bytes).and_then(|e| next_root(&root, &e));
        root = report.note(&format!("root {}", root.version + 1), next, say)?;
    }
    let in_time = root_in_time(&root, input.now);
    report.root = Some(root.clone());
    report.note("expiry of the newest root", in_time, |()| {
        format!("good until {} (Unix seconds)", root.expires)
    })?;
    Some(root)
}

/// The device an assignment names, before anything of it is believed.
fn named(envelope: &Envelope) -> Result<DeviceIdentity, Error> {
    let a: Assignment = super::payload::parse(envelope)?;
    Ok(DeviceIdentity { fleet_id: a.fleet_id(), device_id: a.device_id, key_sha256: a.device_key_sha256 })
}

fn judge_release(input: &Input<'_>, root: &Verified<Root>, at: usize, bytes: &[u8], report: &mut Report) {
    let anywhere = Platform {
        device_type: String::new(),
        arch: String::new(),
        agent: semver::Version::new(0, 0, 0),
        os: None,
    };
    let (platform, purpose) = match input.platform {
        Some(platform) => (platform, Purpose::Install { now: input.now }),
        None => (&anywhere, Purpose::KeepRunning),
    };
    let mut what = format!("release {} of {}", at + 1, input.releases.len());
    let found = Envelope::parse::<Release>(bytes).and_then(|envelope| {
        let claim: Release = super::payload::parse(&envelope)?;
        let expected = match claim.kind {
            ReleaseKind::App => {
                ExpectedRelease { app_id: claim.app_id, kind: claim.kind, sha256: envelope.payload_sha256() }
            }
            ReleaseKind::Host => {
                ExpectedRelease { app_id: None, kind: claim.kind, sha256: envelope.payload_sha256() }
            }
        };
        what = format!("release {} ({})", claim.version, envelope.payload_sha256());
        super::release::signed(root, claim.kind, &envelope)?;
        release(root, &expected, &ReleaseMarks::default(), platform, purpose, &envelope)
    });
    let Some(found) = report.note(&what, found, |r| {
        format!("version {}, counter {}, {} service(s)", r.version, r.counter, r.services.len())
    }) else {
        return;
    };
    let allowed = policy::check_release(&root.policy, &found);
    if report
        .note(&format!("{what}: policy"), allowed, |()| "asks for nothing it may not have".to_owned())
        .is_some()
    {
        report.releases.push(found);
    }
}

fn judge_variables(root: &Verified<Root>, assigned: &Assignment, report: &mut Report) {
    for app in &assigned.apps {
        let release = report.releases.iter().find(|r| r.sha256() == app.sha256).cloned();
        let what = format!("app {}", app.app_id);
        let Some(release) = release else {
            let absent = Ok(format!("its release {} is not among those accepted here", app.sha256));
            report.steps.push(Step { what, outcome: absent });
            continue;
        };
        let env = assigned.env.get(&app.app_id);
        let checked = env.into_iter().flatten().try_for_each(|(service, env)| {
            match release.services.get(service) {
                Some(service) => policy::check_env(root.policy.env_mode, service, env),
                // Variables of a service the release no longer has reach nothing.
                None => Ok(()),
            }
        });
        report.note(&format!("{what}: variables"), checked, |()| "may be set".to_owned());
    }
}
