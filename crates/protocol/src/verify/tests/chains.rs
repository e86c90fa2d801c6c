use super::*;
use crate::{
    documents::{Assignment, EnvMode, Role, Root},
    testing::{NOW, OwnerKeys, fixed_key, platform, set_role, sign},
    verify::chain::{Input, Named, Report, Step, verify},
};

/// Every step of a report in one text.
fn told(report: &Report) -> String {
    let line = |step: &Step| match &step.outcome {
        Ok(found) => format!("ok       {}: {found}\n", step.what),
        Err(refused) => format!("refused  {}: {refused}\n", step.what),
    };
    report.steps.iter().map(line).collect()
}

fn refused(report: &Report) -> Vec<Code> {
    report.steps.iter().filter_map(|step| step.outcome.as_ref().err().map(|e| e.code)).collect()
}

#[test]
fn a_whole_chain_of_files_is_verified_and_told_step_by_step() {
    let keys = OwnerKeys::fixed();
    let new_key = fixed_key(0x55);
    let mut second = Root { version: 2, ..keys.locked_root() };
    set_role(&mut second, Role::Root, &[&new_key], 1);
    let release = sign(&keys.release(3), &[&keys.release]);
    let mut assignment = Assignment { root_version: 2, ..keys.assignment(4, &[release.payload_sha256()]) };
    let env = [("GREETING".to_owned(), "hello".to_owned())].into();
    assignment.env.insert(keys.app_id, [("web".parse().unwrap(), env)].into());
    let first = sign(&keys.root(), &[&keys.root]).to_bytes();
    let next = sign(&second, &[&keys.root, &new_key]).to_bytes();
    let release = release.to_bytes();
    let roots = [Named { name: "1.json", bytes: &first }, Named { name: "2.json", bytes: &next }];
    let releases = [Named { name: "release.json", bytes: &release }];
    let device = platform();
    let judge = |assignment: &Assignment, now: u64| {
        let bytes = sign(assignment, &[&keys.assign]).to_bytes();
        verify(&Input {
            roots: &roots,
            assignment: Some(Named { name: "assignment.json", bytes: &bytes }),
            releases: &releases,
            fleet: Some(keys.fleet_id),
            device: Some(keys.device_id),
            device_key: None,
            platform: &device,
            now,
        })
    };
    let report = judge(&assignment, NOW);
    assert!(report.is_ok());
    insta::assert_snapshot!(told(&report));

    let mut undeclared = assignment.clone();
    let web: &mut _ = undeclared.env.get_mut(&keys.app_id).unwrap().get_mut("web").unwrap();
    web.insert("OTHER".to_owned(), String::new());
    assert_eq!(second.policy.env_mode, EnvMode::Declared);
    assert_eq!(refused(&judge(&undeclared, NOW)), [Code::EnvUndeclared]);

    let mut other_release = assignment.clone();
    other_release.apps[0].sha256 = crate::ids::Sha256Hex::of(b"another");
    assert_eq!(refused(&judge(&other_release, NOW)), [Code::ReleaseHash]);

    let others = Assignment { device_id: crate::ids::DeviceId::from_bytes([7; 16]), ..assignment.clone() };
    assert_eq!(refused(&judge(&others, NOW)), [Code::DeviceMismatch]);

    let late = judge(&assignment, second.expires);
    assert_eq!(refused(&late), [Code::RootExpired]);
    assert!(late.assignment.is_none() && late.releases.is_empty(), "nothing is judged by an expired root");
}

#[test]
fn a_refused_release_does_not_hide_the_others() {
    let keys = OwnerKeys::fixed();
    let first = sign(&keys.root(), &[&keys.root]).to_bytes();
    let mut greedy = keys.release(2);
    greedy.services.get_mut("web").unwrap().spec.privileged = true;
    let files = [
        sign(&keys.release(1), &[&keys.assign]).to_bytes(),
        sign(&greedy, &[&keys.builder]).to_bytes(),
        b"rubbish".to_vec(),
        sign(&keys.release(3), &[&keys.builder]).to_bytes(),
    ];
    let releases: Vec<Named<'_>> =
        ["a", "b", "c", "d"].into_iter().zip(&files).map(|(name, bytes)| Named { name, bytes }).collect();
    let report = verify(&Input {
        roots: &[Named { name: "1.json", bytes: &first }],
        assignment: None,
        releases: &releases,
        fleet: None,
        device: None,
        device_key: None,
        platform: &platform(),
        now: NOW,
    });
    insta::assert_snapshot!(told(&report));
    assert_eq!(report.releases.len(), 1);
}

#[test]
fn without_a_root_nothing_is_judged_and_nothing_is_good() {
    let keys = OwnerKeys::fixed();
    let release = sign(&keys.release(1), &[&keys.builder]).to_bytes();
    let report = verify(&Input {
        roots: &[],
        assignment: None,
        releases: &[Named { name: "release.json", bytes: &release }],
        fleet: None,
        device: None,
        device_key: None,
        platform: &platform(),
        now: NOW,
    });
    assert!(!report.is_ok() && report.releases.is_empty());
}

#[test]
fn tampered_files_are_told_with_the_codes_a_device_gives() {
    let keys = OwnerKeys::fixed();
    let root = sign(&keys.root(), &[&keys.root]).to_bytes();
    let release = sign(&keys.release(1), &[&keys.builder]);
    let sig = (keys.builder.public().id(), release.signatures()[0].sig);
    let torn = signed_text::<crate::documents::Release>("{", &[]);
    let assignment = sign(&keys.assignment(1, &[release.payload_sha256()]), &[&keys.builder]).to_bytes();
    let files = [
        with_signatures(&torn, &[sig]).to_bytes(),
        with_signatures(&release, &[]).to_bytes(),
        release.to_bytes(),
    ];
    let releases: Vec<Named<'_>> = files.iter().map(|bytes| Named { name: "file", bytes }).collect();
    let report = verify(&Input {
        roots: &[Named { name: "1.json", bytes: &root }],
        assignment: Some(Named { name: "assignment.json", bytes: &assignment }),
        releases: &releases,
        fleet: None,
        device: None,
        device_key: None,
        platform: &platform(),
        now: NOW,
    });
    let codes: Vec<Option<Code>> =
        report.steps.iter().map(|s| s.outcome.as_ref().err().map(|e| e.code)).collect();
    let refused = [Code::SigWrongRole, Code::SigInvalid, Code::SigMissing].map(Some);
    assert_eq!(codes, [&[None, None], &refused[..], &[None]].concat());
}
