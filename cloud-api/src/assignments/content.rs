//! What an assignment says, as a function of what is known. Pure: sealing and signing come after.

use std::{collections::BTreeMap, sync::Arc};

use copal_protocol::{
    documents::{
        AppTarget, Assignment, DeviceConfig, EnvByService, HostTarget, Reason, Release, ReleaseMode, Root,
        SPEC, SealedByService,
    },
    ids::{AppId, DeviceId, FleetId, Sha256Hex},
    keys::PublicKey,
    verify::{self, Code, Platform},
};

use crate::{
    devices::rows::reason,
    releases::{Line, ReleaseStatus},
};

/// A release that could be assigned.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) sha256: Sha256Hex,
    pub(crate) status: ReleaseStatus,
    pub(crate) release: Arc<Release>,
    /// What a device that trusts the fleet's newest Root would say of it, where it would refuse it.
    pub(crate) refused: Option<verify::Error>,
}

/// What a release must fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) arch: &'a str,
    pub(crate) device_type: &'a str,
    /// `rollback_floor` of what is committed there.
    pub(crate) floor: u64,
}

/// Whether a release may newly go to a device.
///
/// # Errors
/// The reason, with one of the codes `release_invalidated`, `release_not_published`, `awaiting_signature`,
/// `release_revoked`, `below_floor`, `incompatible`, or the `E_…` a device would answer with.
pub(crate) fn fits(candidate: &Candidate, root: &Root, place: &Place<'_>) -> Result<(), Box<Reason>> {
    let release = &candidate.release;
    let line = Line::of(release);
    let version = &release.version;
    let refuse = |code: &str, message: String| {
        Err(Box::new(Reason { release: Some(candidate.sha256), ..reason(code, message) }))
    };
    match candidate.status {
        ReleaseStatus::Final | ReleaseStatus::Draft => {}
        ReleaseStatus::Invalidated => {
            let how = if line == Line::App { "invalidated" } else { "withdrawn" };
            return refuse("release_invalidated", format!("Release {version} was {how}."));
        }
        ReleaseStatus::AwaitingSignature => {
            return refuse(
                "awaiting_signature",
                format!("Release {version} waits for the owner's signature: `copal release sign`."),
            );
        }
        ReleaseStatus::Built => {
            return refuse("release_not_published", format!("The push of release {version} is not through."));
        }
    }
    if root.revoked_releases.contains(&candidate.sha256) {
        return refuse("release_revoked", format!("Root {} revokes release {version}.", root.version));
    }
    let platform = Platform {
        device_type: place.device_type.to_owned(),
        arch: place.arch.to_owned(),
        agent: semver::Version::new(0, 0, 0),
        os: None,
    };
    let floor = verify::root_floor(root, release, &platform).max(place.floor);
    if release.counter < floor {
        return refuse(
            "below_floor",
            format!(
                "Release {version} has the counter {}, below the floor {floor}: a device refuses to go back that far.",
                release.counter
            ),
        );
    }
    let compat = &release.compat;
    if !compat.device_types.is_empty() && !compat.device_types.contains(place.device_type) {
        return refuse(
            "incompatible",
            format!(
                "Release {version} is for {:?}; the device is a {:?}.",
                compat.device_types, place.device_type
            ),
        );
    }
    let lacking =
        release.services.iter().find(|(_, s)| !s.images.keys().any(|p| platform_arch(p) == place.arch));
    if !compat.arch.is_empty() && !compat.arch.contains(place.arch) || lacking.is_some() {
        let what = lacking.map_or_else(String::new, |(name, _)| format!(" of service {name}"));
        let message = match line {
            Line::App => {
                format!("Release {version} has no image{what} for {}, the device's architecture.", place.arch)
            }
            Line::Os | Line::Agent => format!(
                "Release {version} is for {:?}; the device's architecture is {}.",
                compat.arch, place.arch
            ),
        };
        return refuse("incompatible", message);
    }
    match &candidate.refused {
        None => Ok(()),
        Some(e)
            if line == Line::App
                && is_unsigned(e.code)
                && root.policy.release_mode != ReleaseMode::Builder =>
        {
            refuse(
                "awaiting_signature",
                format!(
                    "Release {version} is not signed as Root {} asks ({}): `copal release sign`.",
                    root.version, e.detail
                ),
            )
        }
        Some(e) => refuse(e.code.as_str(), format!("Devices would refuse release {version}: {}.", e.detail)),
    }
}

const fn is_unsigned(code: Code) -> bool {
    matches!(code, Code::SigMissing | Code::SigThreshold | Code::SigWrongRole | Code::SigUnknownKey)
}

/// `arm64` of `linux/arm64`.
fn platform_arch(platform: &str) -> &str {
    platform.split('/').nth(1).unwrap_or(platform)
}

/// The device an assignment is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipient {
    pub(crate) fleet_id: FleetId,
    pub(crate) app_id: AppId,
    pub(crate) device_id: DeviceId,
    pub(crate) key: PublicKey,
}

/// What a device is to run, by line: the release, and how often a person asked to try it again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Targets {
    pub(crate) app: Option<HostTarget>,
    pub(crate) os: Option<HostTarget>,
    pub(crate) agent: Option<HostTarget>,
}

/// The assignment, without seq and time.
pub(crate) fn draft(
    to: &Recipient,
    root: &Root,
    targets: &Targets,
    env: EnvByService,
    sealed: SealedByService,
    config: DeviceConfig,
) -> Assignment {
    let app = targets.app.map(|t| AppTarget { app_id: to.app_id, sha256: t.sha256, retry: t.retry });
    Assignment {
        spec: SPEC,
        fleet_id: to.fleet_id,
        device_id: to.device_id,
        device_key_sha256: to.key.id(),
        root_version: root.version,
        assign_epoch: root.assign_epoch,
        seq: 0,
        issued_at: 0,
        apps: app.into_iter().collect(),
        host: targets.os,
        agent: targets.agent,
        env: if env.is_empty() { BTreeMap::new() } else { BTreeMap::from([(to.app_id, env)]) },
        sealed: if sealed.is_empty() { BTreeMap::new() } else { BTreeMap::from([(to.app_id, sealed)]) },
        config,
        not_before: None,
        ext: None,
    }
}

/// Names a content, whatever its seq and time.
pub(crate) fn fingerprint(draft: &Assignment) -> Result<Sha256Hex, serde_json::Error> {
    Ok(Sha256Hex::of(&serde_json::to_vec(draft)?))
}

/// The order of the next assignment. `None` where Root's epoch is below the last one's: a device would refuse it for
/// ever, so none is made.
pub(crate) fn next_seq(last: Option<(u64, u64)>, epoch: u64) -> Option<u64> {
    match last {
        None => Some(1),
        Some((last_epoch, _)) if epoch < last_epoch => None,
        Some((_, seq)) => Some(seq + 1),
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::testing::OwnerKeys;

    use super::*;

    fn candidate(status: ReleaseStatus) -> Candidate {
        let release = OwnerKeys::fixed().release(10);
        Candidate { sha256: Sha256Hex::of(b"r"), status, release: Arc::new(release), refused: None }
    }

    fn code(candidate: &Candidate, root: &Root, place: &Place<'_>) -> String {
        fits(candidate, root, place).err().map(|r| r.code).unwrap_or_default()
    }

    #[test]
    fn only_what_a_device_would_take_is_assigned() {
        let keys = OwnerKeys::fixed();
        let root = keys.root();
        let place = Place { arch: "amd64", device_type: "generic", floor: 0 };
        let fine = candidate(ReleaseStatus::Final);
        assert_eq!(code(&fine, &root, &place), "");
        assert_eq!(code(&candidate(ReleaseStatus::Invalidated), &root, &place), "release_invalidated");
        assert_eq!(code(&candidate(ReleaseStatus::AwaitingSignature), &root, &place), "awaiting_signature");
        assert_eq!(code(&candidate(ReleaseStatus::Built), &root, &place), "release_not_published");
        assert_eq!(code(&fine, &root, &Place { arch: "arm64", ..place }), "incompatible");
        assert_eq!(code(&fine, &root, &Place { floor: 11, ..place }), "below_floor");
        assert_eq!(code(&fine, &root, &Place { floor: 10, ..place }), "");
        let mut floors = root.clone();
        floors.floors.insert(keys.app_id.to_string(), 11);
        assert_eq!(code(&fine, &floors, &place), "below_floor");
        let mut revoked = root.clone();
        revoked.revoked_releases.insert(fine.sha256);
        assert_eq!(code(&fine, &revoked, &place), "release_revoked");
        let mut typed = candidate(ReleaseStatus::Final);
        Arc::make_mut(&mut typed.release).compat.device_types.insert("raspberrypi4-64".to_owned());
        assert_eq!(code(&typed, &root, &place), "incompatible");
        let mut unsigned = candidate(ReleaseStatus::Final);
        unsigned.refused = Some(verify::Error::new(Code::SigWrongRole, "by the builder"));
        assert_eq!(code(&unsigned, &root, &place), "E_SIG_WRONG_ROLE");
        assert_eq!(code(&unsigned, &keys.locked_root(), &place), "awaiting_signature");
    }

    #[test]
    fn an_operating_system_and_an_agent_have_floors_and_fits_of_their_own() {
        let keys = OwnerKeys::fixed();
        let mut root = keys.root();
        let place = Place { arch: "amd64", device_type: "generic", floor: 0 };
        let mut os = candidate(ReleaseStatus::Final);
        let mut release = keys.host_release(10, b"image");
        release.compat.device_types = ["generic".to_owned()].into();
        os.release = Arc::new(release.clone());
        assert_eq!(code(&os, &root, &place), "");
        assert_eq!(code(&os, &root, &Place { device_type: "raspberrypi5", ..place }), "incompatible");
        assert_eq!(code(&os, &root, &Place { floor: 11, ..place }), "below_floor");
        root.floors.insert("host/raspberrypi5".to_owned(), 11);
        root.floors.insert("agent/amd64".to_owned(), 11);
        root.floors.insert(keys.app_id.to_string(), 11);
        assert_eq!(code(&os, &root, &place), "", "the floors of others");
        root.floors.insert("host/generic".to_owned(), 11);
        assert_eq!(code(&os, &root, &place), "below_floor");
        release.compat.arch = ["arm64".to_owned()].into();
        os.release = Arc::new(release);
        assert_eq!(code(&os, &keys.root(), &place), "incompatible");
        os.refused = Some(verify::Error::new(Code::SigWrongRole, "by the builder"));
        assert_eq!(code(&os, &keys.locked_root(), &Place { arch: "arm64", ..place }), "E_SIG_WRONG_ROLE");
    }

    #[test]
    fn the_order_rises_and_never_falls_back_an_epoch() {
        assert_eq!(next_seq(None, 1), Some(1));
        assert_eq!(next_seq(Some((1, 7)), 1), Some(8));
        assert_eq!(next_seq(Some((1, 7)), 2), Some(8));
        assert_eq!(next_seq(Some((2, 7)), 1), None);
    }
}
