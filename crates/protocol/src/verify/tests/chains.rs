use super::*;
use crate::{
    documents::{Assignment, EnvMode, Role, Root},
    testing::{NOW, OwnerKeys, fixed_key, platform, set_role, sign},
    verify::chain::{Input, Report, verify},
};

/// Every step of a report in one text.
fn told(report: &Report) -> String {
    let line = |step: &crate::verify::chain::Step| match &step.outcome {
        Ok(found) => format!("ok   {}: {found}\n", step.what),
        Err(refused) => format!("FAIL {}: {}\n", step.what, refused.code),
    };
    report.steps.iter().map(line).collect()
}

#[test]
fn a_whole_chain_of_files_is_verified_and_told_step_by_step() {
    let keys = OwnerKeys::fixed();
    let first = keys.root();
    let new_key = fixed_key(0x55);
    let mut second = Root { version: 2, ..keys.locked_root() };
    set_role(&mut second, Role::Root, &[&new_key], 1);
    let release = sign(&keys.release(3), &[&keys.release]);
    let mut assignment = Assignment { root_version: 2, ..keys.assignment(4, &[release.payload_sha256()]) };
    let env = [("GREETING".to_owned(), "hello".to_owned())].into();
    assignment.env.insert(keys.app_id, [("web".parse().unwrap(), env)].into());
    let first = sign(&first, &[&keys.root]).to_bytes();
    let roots = [sign(&second, &[&keys.root, &new_key]).to_bytes()];
    let releases = [release.to_bytes()];
    let device = platform();
    let judge = |assignment: &Assignment, now: u64| {
        let assignment = sign(assignment, &[&keys.assign]).to_bytes();
        verify(&Input {
            fleet: keys.fleet_id,
            first_root: &first,
            roots: &roots,
            assignment: Some(&assignment),
            releases: &releases,
            device: Some(keys.identity()),
            platform: Some(&device),
            now,
        })
    };
    let report = judge(&assignment, NOW);
    assert!(report.is_ok());
    insta::assert_snapshot!(told(&report));

    assignment
        .env
        .get_mut(&keys.app_id)
        .unwrap()
        .get_mut("web")
        .unwrap()
        .insert("EVIL".to_owned(), String::new());
    assert_eq!(second.policy.env_mode, EnvMode::Declared);
    let refused = judge(&assignment, NOW);
    assert!(!refused.is_ok());
    assert_eq!(refused.steps.last().unwrap().outcome.as_ref().unwrap_err().code, Code::EnvUndeclared);

    let late = judge(&assignment, second.expires);
    assert_eq!(late.steps.last().unwrap().outcome.as_ref().unwrap_err().code, Code::RootExpired);
    assert!(late.assignment.is_none() && late.releases.is_empty(), "nothing is judged by an expired root");
}

#[test]
fn a_refused_release_does_not_hide_the_others() {
    let keys = OwnerKeys::fixed();
    let first = sign(&keys.root(), &[&keys.root]).to_bytes();
    let mut greedy = keys.release(2);
    greedy.services.get_mut("web").unwrap().spec.privileged = true;
    let releases = [
        sign(&keys.release(1), &[&keys.assign]).to_bytes(),
        sign(&greedy, &[&keys.builder]).to_bytes(),
        b"rubbish".to_vec(),
        sign(&keys.release(3), &[&keys.builder]).to_bytes(),
    ];
    let report = verify(&Input {
        fleet: keys.fleet_id,
        first_root: &first,
        roots: &[],
        assignment: None,
        releases: &releases,
        device: None,
        platform: None,
        now: NOW,
    });
    insta::assert_snapshot!(told(&report));
    assert_eq!(report.releases.len(), 1);
}
