//! Step 7: whether a release may run here: by whom it is signed, what it is for, how old it is, what Root says of it.

use super::{
    Code, Error, Verified,
    payload::{check_fleet, check_kind, parse},
    shape, signatures,
};
use crate::{
    documents::{Release, ReleaseKind, ReleaseMode, Role, Root},
    envelope::Envelope,
    ids::{AppId, Sha256Hex},
};

/// What is remembered of an app's (or host's) releases. Read with fields it does not know: an older program keeps its floors.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ReleaseMarks {
    /// Rises only after a health commit.
    pub floor: u64,
    /// Highest counter ever accepted, and the payload that had it.
    pub newest: Option<(u64, Sha256Hex)>,
}

impl ReleaseMarks {
    /// The marks after `release` was accepted: its counter is remembered, the floor stays.
    #[must_use]
    pub fn accepted(&self, release: &Verified<Release>) -> Self {
        let seen = (release.counter, release.sha256());
        let newest = self.newest.filter(|known| known.0 >= seen.0).or(Some(seen));
        Self { floor: self.floor, newest }
    }

    /// The marks after `release` passed its health gate: nothing below its `rollback_floor` is accepted any more.
    #[must_use]
    pub fn committed(&self, release: &Verified<Release>) -> Self {
        Self { floor: self.floor.max(release.rollback_floor), ..self.accepted(release) }
    }
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

impl ExpectedRelease {
    /// A release of this app.
    #[must_use]
    pub const fn app(app_id: AppId, sha256: Sha256Hex) -> Self {
        Self { kind: ReleaseKind::App, app_id: Some(app_id), sha256 }
    }

    /// A host release: the operating system's or the agent's.
    #[must_use]
    pub const fn host(sha256: Sha256Hex) -> Self {
        Self { kind: ReleaseKind::Host, app_id: None, sha256 }
    }
}

/// Whether the release is to be installed now, or runs already and is judged again (expiry stops new installs, never what runs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It would be new on this device.
    Install {
        /// Unix seconds, never below the clock floor.
        now: u64,
    },
    /// It was committed before, and [`ExpectedRelease::sha256`] comes from the device's own durable record of that.
    ///
    /// Expiry and `compat` are not judged, and keys that left Root since do not stop it: an owner who rotates a key or
    /// locks the fleet means what comes next. Revocation and floors do stop it, and so does a signature that is
    /// missing or broken.
    KeepRunning,
}

/// Accepts a release (steps 2, 4, 5 and 7) by the root's `release_mode`.
///
/// # Errors
/// `E_RELEASE_HASH` first, then signature and payload codes, `E_FLEET`, the other `E_RELEASE_*`, `E_INCOMPATIBLE`.
pub fn release(
    root: &Verified<Root>,
    expected: &ExpectedRelease,
    marks: &ReleaseMarks,
    platform: &Platform,
    purpose: Purpose,
    envelope: &Envelope,
) -> Result<Verified<Release>, Error> {
    check_kind::<Release>(envelope)?;
    // A release is asked for by its hash: other bytes are not it, whoever signed them.
    let sha256 = envelope.payload_sha256();
    if sha256 != expected.sha256 {
        return Err(Error::new(
            Code::ReleaseHash,
            format!("its payload is {sha256}, {} is expected", expected.sha256),
        ));
    }
    match (signatures::check(root, signers(root, expected.kind), envelope), purpose) {
        (Ok(()), _) => {}
        (Err(e), Purpose::KeepRunning)
            if matches!(e.code, Code::SigUnknownKey | Code::SigWrongRole | Code::SigThreshold) => {}
        (Err(e), _) => return Err(e),
    }
    let found: Release = parse(envelope)?;
    check_fleet(&found, root.fleet_id)?;
    let found = Verified { document: found, sha256 };
    check_identity(expected, &found)?;
    shape::check(&found)?;
    check_history(root, marks, platform, &found)?;
    if let Purpose::Install { now } = purpose {
        check_install(platform, now, &found)?;
    }
    Ok(found)
}

/// Which roles must each meet their threshold.
fn signers(root: &Root, kind: ReleaseKind) -> &'static [Role] {
    match (kind, root.policy.release_mode) {
        (ReleaseKind::Host, _) => &[Role::Host],
        (ReleaseKind::App, ReleaseMode::Builder) => &[Role::Builder],
        (ReleaseKind::App, ReleaseMode::Owner) => &[Role::Release],
        (ReleaseKind::App, ReleaseMode::Both) => &[Role::Builder, Role::Release],
    }
}

fn check_identity(expected: &ExpectedRelease, found: &Release) -> Result<(), Error> {
    let named = |kind: ReleaseKind, app: Option<AppId>| match (kind, app) {
        (ReleaseKind::App, Some(app)) => format!("app {app}"),
        (ReleaseKind::App, None) => "an app without an id".to_owned(),
        (ReleaseKind::Host, None) => "the host".to_owned(),
        (ReleaseKind::Host, Some(app)) => format!("the host, with app id {app}"),
    };
    // An app release has an app, a host release has none, whatever was expected.
    let sound = (found.kind == ReleaseKind::App) == found.app_id.is_some();
    if sound && found.kind == expected.kind && found.app_id == expected.app_id {
        return Ok(());
    }
    Err(Error::new(
        Code::ReleaseApp,
        format!(
            "a release of {}, expected one of {}",
            named(found.kind, found.app_id),
            named(expected.kind, expected.app_id)
        ),
    ))
}

fn check_history(
    root: &Root,
    marks: &ReleaseMarks,
    platform: &Platform,
    found: &Verified<Release>,
) -> Result<(), Error> {
    if root.revoked_releases.contains(&found.sha256()) {
        return Err(Error::new(
            Code::ReleaseRevoked,
            format!("root {} revokes release {} ({})", root.version, found.version, found.sha256()),
        ));
    }
    if found.counter == 0 || found.rollback_floor > found.counter {
        return Err(Error::new(
            Code::ReleaseCounter,
            format!("counter {} with rollback_floor {}", found.counter, found.rollback_floor),
        ));
    }
    let floor = marks.floor.max(root_floor(root, found, platform));
    if found.counter < floor {
        return Err(Error::new(
            Code::ReleaseRollback,
            format!("counter {} is below the floor {floor}", found.counter),
        ));
    }
    if let Some((counter, sha256)) = marks.newest
        && counter == found.counter
        && sha256 != found.sha256()
    {
        return Err(Error::new(
            Code::ReleaseEquivocation,
            format!("counter {counter} was seen with other content, {sha256}"),
        ));
    }
    Ok(())
}

/// The lowest counter Root accepts for this release on this device; 0 where it names none.
#[must_use]
pub fn root_floor(root: &Root, release: &Release, platform: &Platform) -> u64 {
    let floor = |key: String| root.floors.get(&key).copied().unwrap_or(0);
    match (release.kind, release.app_id) {
        (ReleaseKind::App, Some(app)) => floor(app.to_string()),
        (ReleaseKind::App, None) => 0,
        (ReleaseKind::Host, _) => {
            let agent = release.payloads.keys().any(|name| name.as_str() == "agent");
            let host = release.payloads.keys().any(|name| name.as_str() != "agent");
            let agent_floor = if agent { floor(format!("agent/{}", platform.arch)) } else { 0 };
            let host_floor = if host { floor(format!("host/{}", platform.device_type)) } else { 0 };
            agent_floor.max(host_floor)
        }
    }
}

fn check_install(platform: &Platform, now: u64, found: &Release) -> Result<(), Error> {
    if let Some(expires) = found.expires
        && now >= expires
    {
        return Err(Error::new(
            Code::ReleaseExpired,
            format!("release {} was installable until {expires} (Unix seconds), now is {now}", found.version),
        ));
    }
    let bad = |why: String| Err(Error::new(Code::Incompatible, why));
    let compat = &found.compat;
    if !compat.device_types.is_empty() && !compat.device_types.contains(&platform.device_type) {
        return bad(format!(
            "for device types {:?}, this is {:?}",
            compat.device_types, platform.device_type
        ));
    }
    if !compat.arch.is_empty() && !compat.arch.contains(&platform.arch) {
        return bad(format!("for architectures {:?}, this is {:?}", compat.arch, platform.arch));
    }
    // Build metadata ("+rpi") is no part of the order.
    let older = |have: &semver::Version, want: &semver::Version| have.cmp_precedence(want).is_lt();
    if let Some(want) = &compat.min_agent
        && older(&platform.agent, want)
    {
        return bad(format!("needs agent {want} or newer, this is {}", platform.agent));
    }
    let of_agent = found.payloads.keys().any(|name| name.as_str() == "agent");
    if of_agent
        && let Some(want) = &found.min_from
        && older(&platform.agent, want)
    {
        return bad(format!("updates from agent {want} or newer, this is {}", platform.agent));
    }
    for want in compat.min_os.iter().chain(found.min_from.iter().filter(|_| !of_agent)) {
        match &platform.os {
            Some(have) if !older(have, want) => {}
            Some(have) => return bad(format!("needs operating system {want} or newer, this is {have}")),
            None => return bad(format!("needs operating system {want} or newer, this one has no version")),
        }
    }
    Ok(())
}

/// What came of judging an app's committed releases again.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The first that may still run; the app stops where there is none.
    pub release: Option<Verified<Release>>,
    /// Those before it, each with why it may not.
    pub refused: Vec<(Sha256Hex, Error)>,
}

/// Judges committed releases of an app again, newest first, after the root changed: the last one not revoked and not
/// below the floor runs on.
///
/// Each comes with the payload hash under which it was committed.
#[must_use]
pub fn judge_again<'a>(
    root: &Verified<Root>,
    app: AppId,
    marks: &ReleaseMarks,
    platform: &Platform,
    committed: impl IntoIterator<Item = (Sha256Hex, &'a Envelope)>,
) -> Judged {
    let mut judged = Judged { release: None, refused: Vec::new() };
    for (sha256, envelope) in committed {
        let expected = ExpectedRelease::app(app, sha256);
        match release(root, &expected, marks, platform, Purpose::KeepRunning, envelope) {
            Ok(found) => {
                judged.release = Some(found);
                break;
            }
            Err(refused) => judged.refused.push((sha256, refused)),
        }
    }
    judged
}
