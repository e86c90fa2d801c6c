//! What an owner is about to sign, and whether it is what the builder recorded. Pure.

use copal_protocol::{
    documents::{BuildRecord, Document as _, Release, ReleaseKind, Role, Root, SPEC},
    envelope::Envelope,
    ids::{AppId, Sha256Hex},
    json, policy,
    verify::{self, Code, Error, Verified},
};

/// A release that may be signed.
#[derive(Debug)]
pub struct Signable {
    /// Its envelope as the server gave it.
    pub envelope: Envelope,
    /// What it says.
    pub release: Release,
    /// What the builder recorded of it, where it names a record.
    pub record: Option<Verified<BuildRecord>>,
}

/// Checks a release before an owner signs it: it is the one asked for, of this fleet and app, not revoked and not
/// below the floor, within the policy, and made of the images a builder of this root recorded.
///
/// # Errors
/// The code a device would refuse it with; `E_PULL_VERIFY` where release and build record disagree.
pub fn check(
    root: &Verified<Root>,
    app: AppId,
    id: Sha256Hex,
    release: &[u8],
    record: Option<&[u8]>,
) -> Result<Signable, Error> {
    let envelope = Envelope::parse::<Release>(release)?;
    let refuse = |code, detail: String| Err(Error::new(code, detail));
    if envelope.payload_sha256() != id {
        return refuse(
            Code::ReleaseHash,
            format!("the server sent release {} where {id} was asked for", envelope.payload_sha256()),
        );
    }
    let release: Release = json::from_slice(envelope.payload(), json::PAYLOAD_DEPTH)
        .map_err(|e| Error::new(Code::Payload, e.to_string()))?;
    if release.spec != SPEC {
        return refuse(Code::Spec, format!("format version {}", release.spec));
    }
    if release.fleet_id() != root.fleet_id {
        return refuse(Code::Fleet, format!("it is for fleet {}", release.fleet_id));
    }
    if release.kind != ReleaseKind::App || release.app_id != Some(app) {
        return refuse(Code::ReleaseApp, format!("it is not a release of app {app}"));
    }
    if root.revoked_releases.contains(&id) {
        return refuse(Code::ReleaseRevoked, format!("root {} revoked it", root.version));
    }
    let floor = root.floors.get(&app.to_string()).copied().unwrap_or(0);
    if release.counter < floor {
        return refuse(
            Code::ReleaseRollback,
            format!("its counter {} is below the floor {floor}", release.counter),
        );
    }
    policy::check_release(&root.policy, &release)?;
    let record = match (release.build_record, record) {
        (None, _) => None,
        (Some(wanted), None) => {
            return refuse(Code::SigMissing, format!("the server does not show its build record {wanted}"));
        }
        (Some(wanted), Some(bytes)) => Some(check_record(root, app, wanted, &release, bytes)?),
    };
    Ok(Signable { envelope, release, record })
}

fn check_record(
    root: &Verified<Root>,
    app: AppId,
    wanted: Sha256Hex,
    release: &Release,
    bytes: &[u8],
) -> Result<Verified<BuildRecord>, Error> {
    let envelope = Envelope::parse::<BuildRecord>(bytes)?;
    let builders = root.roles.get(&Role::Builder).map(|role| &role.keyids);
    let keys = builders.into_iter().flatten().filter_map(|id| root.keys.get(id));
    let mut refused = Error::new(Code::SigWrongRole, format!("root {} lists no builder", root.version));
    let mut record = None;
    for key in keys {
        match verify::signed_by::<BuildRecord>(&key.public, root.fleet_id, &envelope) {
            Ok(good) => record = Some(good),
            Err(error) => refused = error,
        }
    }
    let record = record.ok_or(refused)?;
    let differ = |what: String| Err(Error::new(Code::PullVerify, format!("the build record {what}")));
    if record.sha256() != wanted {
        return differ(format!("is {} where the release names {wanted}", record.sha256()));
    }
    if record.app_id != app {
        return differ(format!("is of app {}", record.app_id));
    }
    if record.commit != release.commit {
        return differ(format!("is of commit {:?}, the release of {:?}", record.commit, release.commit));
    }
    for (name, service) in &release.services {
        for (platform, image) in &service.images {
            if record.platform != *platform {
                return differ(format!("is for {}, service {name} for {platform}", record.platform));
            }
            match record.images.get(name) {
                Some(digest) if *digest == image.config_digest => {}
                Some(digest) => {
                    return differ(format!(
                        "has image {digest} for {name}, the release {}",
                        image.config_digest
                    ));
                }
                None => return differ(format!("has no image for service {name}")),
            }
        }
    }
    Ok(record)
}

/// What stands out in a service's spec: everything policy had to open.
#[must_use]
pub fn remarkable(spec: &copal_protocol::spec::ServiceSpec) -> Vec<String> {
    let mut out = Vec::new();
    if spec.privileged {
        out.push("privileged".to_owned());
    }
    let modes = [("network", &spec.network_mode), ("pid", &spec.pid), ("ipc", &spec.ipc)];
    out.extend(
        modes
            .iter()
            .filter(|(_, mode)| mode.as_deref() == Some("host"))
            .map(|(what, _)| format!("host {what}")),
    );
    out.extend(spec.cap_add.iter().map(|cap| format!("cap {cap}")));
    out.extend(spec.security_opt.iter().map(|opt| format!("security_opt {opt}")));
    out.extend(spec.device_cgroup_rules.iter().map(|rule| format!("cgroup rule {rule}")));
    out.extend(spec.sysctls.keys().map(|name| format!("sysctl {name}")));
    if !spec.devices.is_empty() {
        out.push(format!("{} host device(s)", spec.devices.len()));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use copal_protocol::{
        documents::{CloudAddress, Compat, ImageRef, Policy, ServiceRelease},
        ids::{Digest, FleetId},
        keys::SigningKey,
        spec::ServiceSpec,
    };

    use super::*;
    use crate::roots::{self, First, Listed};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn app() -> AppId {
        AppId::from_bytes([3; 16])
    }

    fn fleet() -> FleetId {
        FleetId::from_bytes([2; 16])
    }

    fn root() -> Verified<Root> {
        let keys = [(Role::Root, 1), (Role::Release, 2), (Role::Builder, 3), (Role::Assign, 4)];
        let first = First {
            fleet_id: fleet(),
            keys: keys.map(|(role, n)| Listed { role, public: key(n).public(), label: String::new() }).into(),
            root_threshold: 1,
            release_threshold: 1,
            policy: Policy::default(),
            cloud: CloudAddress::default(),
        };
        let root = roots::first(first, 1_000, 30);
        verify::first_root(&roots::sign(&root, None, &[&key(1)]).unwrap(), fleet()).unwrap()
    }

    fn record() -> BuildRecord {
        BuildRecord {
            spec: SPEC,
            fleet_id: fleet(),
            app_id: app(),
            commit: "c0ffee".to_owned(),
            source: "tree".to_owned(),
            platform: "linux/arm64".to_owned(),
            builder: "engine".to_owned(),
            started_at: 1,
            finished_at: 2,
            images: BTreeMap::from([("web".parse().unwrap(), Digest::of(b"config"))]),
            external: BTreeMap::new(),
            ext: None,
        }
    }

    fn release(record: &Envelope) -> Release {
        let image = ImageRef {
            repo: "porch/web".to_owned(),
            manifest_digest: Digest::of(b"manifest"),
            config_digest: Digest::of(b"config"),
            config_size: 6,
            size: 60,
            layers: Vec::new(),
        };
        let service = ServiceRelease {
            spec: ServiceSpec::default(),
            overridable_env: std::collections::BTreeSet::new(),
            images: BTreeMap::from([("linux/arm64".to_owned(), image)]),
        };
        Release {
            spec: SPEC,
            fleet_id: fleet(),
            kind: ReleaseKind::App,
            app_id: Some(app()),
            counter: 5,
            version: semver::Version::new(1, 0, 0),
            commit: "c0ffee".to_owned(),
            created_at: 3,
            expires: None,
            rollback_floor: 0,
            compat: Compat::default(),
            build_record: Some(record.payload_sha256()),
            services: BTreeMap::from([("web".parse().unwrap(), service)]),
            volumes: BTreeMap::new(),
            networks: BTreeMap::new(),
            payloads: BTreeMap::new(),
            data_schema: None,
            min_from: None,
            ext: None,
        }
    }

    fn judged(release: &Release, record: Option<&Envelope>) -> Result<Signable, Code> {
        let envelope = Envelope::sign(release, &[]).unwrap();
        let record = record.map(Envelope::to_bytes);
        check(&root(), app(), envelope.payload_sha256(), &envelope.to_bytes(), record.as_deref())
            .map_err(|e| e.code)
    }

    #[test]
    fn a_release_made_of_recorded_images_may_be_signed() {
        let record = Envelope::sign(&record(), &[&key(3)]).unwrap();
        let signable = judged(&release(&record), Some(&record)).unwrap();
        assert_eq!(signable.record.unwrap().commit, "c0ffee");
    }

    #[test]
    fn a_record_by_another_key_or_of_other_images_is_refused() {
        let good = Envelope::sign(&record(), &[&key(3)]).unwrap();
        let by_assign = Envelope::sign(&record(), &[&key(4)]).unwrap();
        assert!(
            matches!(judged(&release(&by_assign), Some(&by_assign)), Err(code) if code != Code::PullVerify)
        );
        assert_eq!(judged(&release(&good), None).unwrap_err(), Code::SigMissing);

        let mut swapped = release(&good);
        let web = swapped.services.get_mut("web").unwrap();
        web.images.get_mut("linux/arm64").unwrap().config_digest = Digest::of(b"evil");
        assert_eq!(judged(&swapped, Some(&good)).unwrap_err(), Code::PullVerify);

        let mut smuggled = release(&good);
        let extra = smuggled.services["web"].clone();
        smuggled.services.insert("extra".parse().unwrap(), extra);
        assert_eq!(judged(&smuggled, Some(&good)).unwrap_err(), Code::PullVerify);

        let other = Envelope::sign(&BuildRecord { commit: "other".to_owned(), ..self::record() }, &[&key(3)])
            .unwrap();
        assert_eq!(judged(&release(&good), Some(&other)).unwrap_err(), Code::PullVerify);
        assert_eq!(judged(&release(&other), Some(&other)).unwrap_err(), Code::PullVerify);
    }

    #[test]
    fn what_a_device_would_refuse_is_not_signed() {
        let record = Envelope::sign(&record(), &[&key(3)]).unwrap();
        let mut privileged = release(&record);
        privileged.services.get_mut("web").unwrap().spec.privileged = true;
        assert_eq!(judged(&privileged, Some(&record)).unwrap_err(), Code::PolicyPrivileged);
        let foreign = Release { fleet_id: FleetId::from_bytes([8; 16]), ..release(&record) };
        assert_eq!(judged(&foreign, Some(&record)).unwrap_err(), Code::Fleet);
        let other_app = Release { app_id: Some(AppId::from_bytes([8; 16])), ..release(&record) };
        assert_eq!(judged(&other_app, Some(&record)).unwrap_err(), Code::ReleaseApp);
        let bytes = Envelope::sign(&release(&record), &[]).unwrap().to_bytes();
        let refused = check(&root(), app(), Sha256Hex::of(b"x"), &bytes, None).unwrap_err();
        assert_eq!(refused.code, Code::ReleaseHash);
    }
}
