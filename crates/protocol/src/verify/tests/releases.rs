use std::collections::BTreeSet;

use super::*;
use crate::{
    documents::{HostPayload, Release, ReleaseKind, Role, Root},
    ids::{AppId, Name, Sha256Hex},
    spec::{Condition, DependsOn, Mount},
    testing::{NOW, OwnerKeys, fixed_key, platform, set_role, sign},
    verify::{self, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified},
};

/// Judges a release as the one the assignment names, for a fresh install.
pub(super) fn install(
    keys: &OwnerKeys,
    root: &Verified<Root>,
    envelope: &Envelope,
) -> Result<Verified<Release>, Error> {
    judge(keys, root, &ReleaseMarks::default(), Purpose::Install { now: NOW }, envelope)
}

fn keep(keys: &OwnerKeys, root: &Verified<Root>, envelope: &Envelope) -> Result<Verified<Release>, Error> {
    judge(keys, root, &ReleaseMarks::default(), Purpose::KeepRunning, envelope)
}

fn judge(
    keys: &OwnerKeys,
    root: &Verified<Root>,
    marks: &ReleaseMarks,
    purpose: Purpose,
    envelope: &Envelope,
) -> Result<Verified<Release>, Error> {
    let expected = ExpectedRelease::app(keys.app_id, envelope.payload_sha256());
    verify::release(root, &expected, marks, &platform(), purpose, envelope)
}

/// The default root, and a release edited and signed by the builder.
fn one(edit: impl FnOnce(&mut Release)) -> Result<Verified<Release>, Error> {
    let keys = OwnerKeys::fixed();
    let mut release = keys.release(10);
    edit(&mut release);
    install(&keys, &keys.trusted(&keys.root()), &sign(&release, &[&keys.builder]))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn a_sound_release_is_accepted() {
    assert!(one(|_| ()).is_ok());
}

#[test]
fn only_the_release_the_assignment_names_is_accepted() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let envelope = sign(&keys.release(1), &[&keys.builder]);
    let expected = ExpectedRelease::app(keys.app_id, sign(&keys.release(2), &[]).payload_sha256());
    for purpose in [Purpose::Install { now: NOW }, Purpose::KeepRunning] {
        let judged =
            verify::release(&root, &expected, &ReleaseMarks::default(), &platform(), purpose, &envelope);
        assert_eq!(code(judged), Code::ReleaseHash);
    }
}

#[test]
fn a_release_of_another_app_kind_or_fleet_is_refused() {
    assert_eq!(code(one(|r| r.app_id = Some(AppId::from_bytes([1; 16])))), Code::ReleaseApp);
    assert_eq!(code(one(|r| r.app_id = None)), Code::ReleaseApp);
    assert_eq!(code(one(|r| r.kind = ReleaseKind::Host)), Code::ReleaseApp);
    assert_eq!(code(one(|r| r.fleet_id = OwnerKeys::numbered(1).fleet_id)), Code::Fleet);
}

#[test]
fn a_counter_that_makes_no_sense_is_refused() {
    assert_eq!(code(one(|r| r.counter = 0)), Code::ReleaseCounter);
    assert_eq!(code(one(|r| r.rollback_floor = r.counter + 1)), Code::ReleaseCounter);
    assert!(one(|r| r.rollback_floor = r.counter).is_ok());
}

#[test]
fn nothing_below_a_floor_is_installed_and_an_older_release_above_it_is() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let judge_at = |counter: u64, marks: &ReleaseMarks| {
        judge(
            &keys,
            &root,
            marks,
            Purpose::Install { now: NOW },
            &sign(&keys.release(counter), &[&keys.builder]),
        )
    };
    let marks = ReleaseMarks { floor: 10, newest: Some((20, Sha256Hex::of(b"newest"))) };
    assert_eq!(code(judge_at(9, &marks)), Code::ReleaseRollback);
    assert!(judge_at(10, &marks).is_ok(), "a wanted step back above the floor");
    let marks = ReleaseMarks::default();
    assert!(judge_at(1, &marks).is_ok());
}

#[test]
fn a_floor_in_root_binds_devices_that_never_saw_the_newer_release() {
    let keys = OwnerKeys::fixed();
    let mut root = keys.root();
    root.floors.insert(keys.app_id.to_string(), 10);
    let root = keys.trusted(&root);
    let below = sign(&keys.release(9), &[&keys.builder]);
    assert_eq!(code(install(&keys, &root, &below)), Code::ReleaseRollback);
    assert_eq!(code(keep(&keys, &root, &below)), Code::ReleaseRollback, "also what runs");
    assert!(install(&keys, &root, &sign(&keys.release(10), &[&keys.builder])).is_ok());
}

#[test]
fn floors_rise_with_the_health_commit_and_never_fall() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let release = Release { rollback_floor: 15, ..keys.release(20) };
    let accepted = install(&keys, &root, &sign(&release, &[&keys.builder])).unwrap();
    let marks = ReleaseMarks::default().accepted(&accepted);
    assert_eq!(marks, ReleaseMarks { floor: 0, newest: Some((20, accepted.sha256())) });
    let marks = marks.committed(&accepted);
    assert_eq!(marks.floor, 15);
    let older = install(&keys, &root, &sign(&keys.release(16), &[&keys.builder])).unwrap();
    assert_eq!(marks.committed(&older), marks, "a step back lowers nothing");
}

#[test]
fn a_revoked_release_neither_starts_nor_keeps_running() {
    let keys = OwnerKeys::fixed();
    let envelope = sign(&keys.release(1), &[&keys.builder]);
    let mut root = keys.root();
    root.revoked_releases.insert(envelope.payload_sha256());
    let root = keys.trusted(&root);
    assert_eq!(code(install(&keys, &root, &envelope)), Code::ReleaseRevoked);
    assert_eq!(code(keep(&keys, &root, &envelope)), Code::ReleaseRevoked);
}

#[test]
fn two_releases_under_one_counter_are_noticed() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let first = sign(&keys.release(5), &[&keys.builder]);
    let second = sign(&Release { commit: "other".to_owned(), ..keys.release(5) }, &[&keys.builder]);
    let marks = ReleaseMarks::default().accepted(&install(&keys, &root, &first).unwrap());
    let now = Purpose::Install { now: NOW };
    assert_eq!(code(judge(&keys, &root, &marks, now, &second)), Code::ReleaseEquivocation);
    assert!(judge(&keys, &root, &marks, now, &first).is_ok());
}

#[test]
fn an_expired_release_is_not_installed_and_goes_on_where_it_runs() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let envelope = sign(&Release { expires: Some(NOW), ..keys.release(1) }, &[&keys.builder]);
    assert_eq!(code(install(&keys, &root, &envelope)), Code::ReleaseExpired);
    assert!(keep(&keys, &root, &envelope).is_ok());
    let before = Purpose::Install { now: NOW - 1 };
    assert!(judge(&keys, &root, &ReleaseMarks::default(), before, &envelope).is_ok());
}

#[test]
fn a_release_for_other_hardware_or_newer_software_is_refused() {
    assert_eq!(
        code(one(|r| r.compat.device_types = BTreeSet::from(["raspberrypi4-64".to_owned()]))),
        Code::Incompatible
    );
    assert_eq!(code(one(|r| r.compat.arch = BTreeSet::from(["arm64".to_owned()]))), Code::Incompatible);
    assert_eq!(code(one(|r| r.compat.min_agent = Some("0.2.0".parse().unwrap()))), Code::Incompatible);
    assert_eq!(code(one(|r| r.compat.min_agent = Some("0.1.1-rc.1".parse().unwrap()))), Code::Incompatible);
    assert_eq!(code(one(|r| r.compat.min_os = Some("1.0.0".parse().unwrap()))), Code::Incompatible);
    assert!(
        one(|r| {
            r.compat.device_types = BTreeSet::from(["generic".to_owned(), "other".to_owned()]);
            r.compat.arch = BTreeSet::from(["amd64".to_owned()]);
            r.compat.min_agent = Some("0.1.0+build.7".parse().unwrap());
        })
        .is_ok()
    );
}

#[test]
fn a_release_whose_parts_do_not_fit_is_refused_before_anything_starts() {
    let spec = |edit: fn(&mut crate::spec::ServiceSpec)| {
        one(move |r| edit(&mut r.services.get_mut("web").unwrap().spec))
    };
    let on = |optional| DependsOn { condition: Condition::ServiceStarted, optional };
    let web = name("web");
    let cases = [
        code(spec(|s| {
            let mount = Mount::Volume { source: Some(name("data")), read_only: false, nocopy: false };
            s.mounts.insert("/data".to_owned(), mount);
        })),
        code(spec(|s| {
            s.networks.insert(name("back"), Default::default());
        })),
        code(one(|r| {
            r.services.get_mut("web").unwrap().spec.depends_on.insert(name("db"), on(false));
        })),
        code(spec(|s| s.network_mode = Some("service:db".to_owned()))),
        code(one(|r| {
            r.services.get_mut("web").unwrap().spec.depends_on.insert(name("web"), on(false));
        })),
        code(one(|r| {
            let mut other = r.services[&web].clone();
            other.spec.network_mode = Some("service:web".to_owned());
            r.services.insert(name("db"), other);
            r.services.get_mut("web").unwrap().spec.depends_on.insert(name("db"), on(false));
        })),
        code(one(|r| {
            let image = r.services.get_mut("web").unwrap().images.values_mut().next().unwrap();
            image.repo = "../../device/v1/report".to_owned();
        })),
        code(one(|r| {
            let payload =
                HostPayload { size: 1, sha256: Sha256Hex::of(b"x"), index: None, verity_root: None };
            r.payloads.insert(name("rootfs"), payload);
        })),
    ];
    assert_eq!(cases, [Code::Payload; 8]);
    assert!(
        one(|r| {
            r.services.get_mut("web").unwrap().spec.depends_on.insert(name("db"), on(true));
            r.services.get_mut("web").unwrap().spec.networks.insert(name("default"), Default::default());
        })
        .is_ok()
    );
}

#[test]
fn a_release_cannot_wear_the_agents_own_labels() {
    let label = |text: &'static str| {
        one(move |r| {
            let spec = &mut r.services.get_mut("web").unwrap().spec;
            spec.labels.insert(text.to_owned(), "x".to_owned());
        })
    };
    for own in ["io.copal.instance", "io.copal.app", "io.copal.config-hash", "io.copal."] {
        assert_eq!(code(label(own)), Code::Payload, "{own}");
    }
    for fine in ["io.copal.update.strategy", "io.copal.secrets.env", "io.copalx", "com.example.instance"] {
        assert!(label(fine).is_ok(), "{fine}");
    }
    let volume = one(|r| {
        let mut volume = crate::spec::VolumeSpec::default();
        volume.labels.insert("io.copal.volume".to_owned(), "x".to_owned());
        r.volumes.insert(name("data"), volume);
    });
    assert_eq!(code(volume), Code::Payload);
}

#[test]
fn a_chain_of_services_is_sorted_in_linear_time() {
    let accepted = one(|r| {
        let web = r.services[&name("web")].clone();
        for n in 1..256 {
            let mut service = web.clone();
            let before = if n == 1 { "web".to_owned() } else { format!("s{}", n - 1) };
            let how = DependsOn { condition: Condition::ServiceHealthy, optional: false };
            service.spec.depends_on.insert(name(&before), how);
            r.services.insert(name(&format!("s{n}")), service);
        }
    });
    assert_eq!(accepted.unwrap().services.len(), 256);
    let many = one(|r| {
        let web = r.services[&name("web")].clone();
        r.services.extend((0..256).map(|n| (name(&format!("s{n}")), web.clone())));
    });
    assert_eq!(code(many), Code::Payload);
}

#[test]
fn rotating_a_key_or_locking_the_fleet_stops_nothing_that_runs() {
    let keys = OwnerKeys::fixed();
    let committed = sign(&keys.release(1), &[&keys.builder]);
    let mut rotated = keys.root();
    set_role(&mut rotated, Role::Builder, &[&fixed_key(0x77)], 1);
    for root in [rotated, keys.locked_root()] {
        let root = keys.trusted(&root);
        assert!(install(&keys, &root, &committed).is_err(), "nothing new by the old key");
        assert!(keep(&keys, &root, &committed).is_ok());
    }
    // The record of having committed it is what is trusted: broken or absent signatures are still refused.
    let root = keys.trusted(&keys.root());
    let unsigned = with_signatures(&committed, &[]);
    assert_eq!(code(keep(&keys, &root, &unsigned)), Code::SigMissing);
    let broken = with_signatures(&committed, &[(keys.builder.public().id(), [1; 64])]);
    assert_eq!(code(keep(&keys, &root, &broken)), Code::SigInvalid);
}

#[test]
fn when_the_committed_release_is_revoked_the_last_good_one_takes_its_place() {
    let keys = OwnerKeys::fixed();
    let envelopes: Vec<Envelope> =
        [30, 20, 10].into_iter().map(|n| sign(&keys.release(n), &[&keys.builder])).collect();
    let committed = || envelopes.iter().map(|e| (e.payload_sha256(), e));
    let judged = |root: &Root| {
        let root = keys.trusted(root);
        verify::judge_again(&root, keys.app_id, &ReleaseMarks::default(), &platform(), committed())
    };
    let mut root = keys.root();
    assert_eq!(judged(&root).release.unwrap().counter, 30);

    root.revoked_releases.insert(envelopes[0].payload_sha256());
    let after = judged(&root);
    assert_eq!(after.release.unwrap().counter, 20);
    assert_eq!(after.refused.len(), 1);
    assert_eq!(after.refused[0].1.code, Code::ReleaseRevoked);

    root.floors.insert(keys.app_id.to_string(), 25);
    let none = judged(&root);
    assert_eq!(none.release, None, "the app stops");
    let codes: Vec<Code> = none.refused.iter().map(|(_, e)| e.code).collect();
    assert_eq!(codes, [Code::ReleaseRevoked, Code::ReleaseRollback, Code::ReleaseRollback]);
}

fn agent_release(keys: &OwnerKeys, counter: u64) -> Release {
    let mut release = keys.host_release(counter, b"binary");
    let file = HostPayload { index: None, ..release.payloads.remove("rootfs").unwrap() };
    release.payloads.insert(name("agent"), file);
    release.compat.device_types.clear();
    release.compat.arch = ["amd64".to_owned()].into();
    release
}

fn judge_host(keys: &OwnerKeys, platform: &Platform, release: &Release) -> Result<(), Error> {
    let envelope = sign(release, &[&keys.host]);
    let expected = ExpectedRelease::host(envelope.payload_sha256());
    let root = keys.trusted(&keys.root());
    let now = Purpose::Install { now: NOW };
    verify::release(&root, &expected, &ReleaseMarks::default(), platform, now, &envelope).map(|_| ())
}

#[test]
fn a_host_release_whose_payloads_make_no_whole_is_refused() {
    let keys = OwnerKeys::fixed();
    let refused = |edit: &dyn Fn(&mut Release)| {
        let mut release = keys.host_release(10, b"image");
        edit(&mut release);
        code(judge_host(&keys, &platform(), &release))
    };
    let rootfs = || keys.host_release(10, b"image").payloads.remove("rootfs").unwrap();
    let cases = [
        refused(&|r| r.payloads.clear()),
        refused(&|r| {
            r.payloads.insert(name("agent"), rootfs());
        }),
        refused(&|r| {
            r.payloads.insert(name("firmware"), rootfs());
        }),
        refused(&|r| r.payloads.get_mut("rootfs").unwrap().index = None),
        refused(&|r| r.payloads.get_mut("rootfs").unwrap().index.as_mut().unwrap().size = None),
        refused(&|r| r.payloads.get_mut("rootfs").unwrap().size = 0),
        refused(&|r| r.compat.device_types.clear()),
        refused(&|r| {
            *r = agent_release(&keys, 10);
            r.compat.arch.clear();
        }),
    ];
    assert_eq!(cases, [Code::Payload; 8]);
    let mut with_boot = keys.host_release(10, b"image");
    with_boot.payloads.insert(name("boot"), rootfs());
    assert_eq!(judge_host(&keys, &platform(), &with_boot), Ok(()));
}

#[test]
fn a_host_release_says_from_which_version_it_updates() {
    let keys = OwnerKeys::fixed();
    let version = |text: &str| text.parse::<semver::Version>().unwrap();
    let with =
        |os: Option<&str>, agent: &str| Platform { os: os.map(version), agent: version(agent), ..platform() };
    let mut os = keys.host_release(10, b"image");
    os.min_from = Some(version("2.0.0"));
    assert_eq!(judge_host(&keys, &with(Some("2.0.0"), "0.1.0"), &os), Ok(()));
    for have in [Some("1.9.9"), None] {
        assert_eq!(code(judge_host(&keys, &with(have, "9.0.0"), &os)), Code::Incompatible, "{have:?}");
    }
    let mut agent = agent_release(&keys, 10);
    agent.min_from = Some(version("2.0.0"));
    assert_eq!(judge_host(&keys, &with(None, "2.0.0"), &agent), Ok(()));
    assert_eq!(code(judge_host(&keys, &with(Some("9.0.0"), "1.0.0"), &agent)), Code::Incompatible);
}

#[test]
fn a_host_release_is_the_host_roles_and_has_floors_of_its_own() {
    let keys = OwnerKeys::fixed();
    let host = |payload_name: &str| match payload_name {
        "agent" => agent_release(&keys, 10),
        _ => keys.host_release(10, b"image"),
    };
    let judge = |root: &Root, release: &Release, key: &SigningKey| {
        let envelope = sign(release, &[key]);
        let expected = ExpectedRelease::host(envelope.payload_sha256());
        let now = Purpose::Install { now: NOW };
        verify::release(&keys.trusted(root), &expected, &ReleaseMarks::default(), &platform(), now, &envelope)
    };
    let root = keys.root();
    assert!(judge(&root, &host("rootfs"), &keys.host).is_ok());
    for key in [&keys.builder, &keys.release, &keys.assign] {
        assert_eq!(code(judge(&root, &host("rootfs"), key)), Code::SigWrongRole);
    }
    for (floor, payload_name) in [("host/generic", "rootfs"), ("agent/amd64", "agent")] {
        let mut root = keys.root();
        root.floors.insert(floor.to_owned(), 11);
        assert_eq!(code(judge(&root, &host(payload_name), &keys.host)), Code::ReleaseRollback);
        let elsewhere = if payload_name == "agent" { "rootfs" } else { "agent" };
        assert!(judge(&root, &host(elsewhere), &keys.host).is_ok());
    }
    let other = Platform { device_type: "other".to_owned(), ..platform() };
    let mut root = keys.root();
    root.floors.insert("host/generic".to_owned(), 11);
    assert_eq!(verify::root_floor(&root, &host("rootfs"), &other), 0);
}
