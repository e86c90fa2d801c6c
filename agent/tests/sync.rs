//! A device and a cloud: what is accepted, what is refused with which code, and what goes on meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use copal_agent::{
    apply::ports::Ledger as _,
    identity::Identity,
    state::{RealFs, StateDir},
};
use copal_protocol::{
    documents::{EnvMode, HostTarget, LockState, ReleaseMode, Root, SPEC, TerminalMode},
    envelope::Envelope,
    ids::{DeviceId, Sha256Hex},
    seal::{self, SealContext},
    testing::{NOW, OwnerKeys, fixed_key, sign},
};

mod support;
use support::{Device, FakeCloud, Freshness, body, release};

#[tokio::test]
async fn a_device_enrols_and_is_given_its_target() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent
        .condition("waiting for an assignment", |c| {
            c.refused.as_ref().is_some_and(|r| r.code == "no_assignment")
        })
        .await;
    let hash = cloud.deploy(1, 10);
    let target = agent.runs(cloud.app(), hash).await;
    assert_eq!(target.order, (1, 1));
    let condition = agent.condition("all well", |c| c.refusal().is_none() && c.online && c.fresh).await;
    assert_eq!(condition.mark.seq, 1);
    assert_eq!(cloud.asked("/enrol"), 1);
}

#[tokio::test]
async fn a_new_release_is_learnt_of_at_once_over_the_long_poll() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("waiting", |c| c.refused.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.runs(cloud.app(), first).await;
    let second = cloud.deploy(2, 11);
    agent.runs(cloud.app(), second).await;
}

#[tokio::test]
async fn every_refused_release_keeps_what_ran_and_says_its_code() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let good = cloud.deploy(1, 100);
    agent.commits(cloud.app(), good).await;

    let keys = &cloud.keys;
    let other = OwnerKeys::numbered(3);
    let new = |counter: u64| release(keys, counter);
    let mut expired = new(203);
    expired.expires = Some(NOW - 1);
    let mut privileged = new(204);
    privileged.services.values_mut().for_each(|s| s.spec.privileged = true);
    let mut foreign_app = new(205);
    foreign_app.app_id = Some(other.app_id);
    let mut foreign_platform = new(206);
    for service in foreign_platform.services.values_mut() {
        let image = service.images.values().next().unwrap().clone();
        service.images = [("linux/riscv64".to_owned(), image)].into();
    }
    let mut foreign_type = new(207);
    foreign_type.compat.device_types = ["another".to_owned()].into();
    let mut later_spec = new(208);
    later_spec.spec = SPEC + 1;

    let by_builder = |r| cloud.publish(&r, &[&keys.builder]);
    let cases = [
        (cloud.publish(&new(200), &[]), "E_SIG_MISSING"),
        (cloud.publish(&new(201), &[&fixed_key(99)]), "E_SIG_UNKNOWN_KEY"),
        (cloud.publish(&new(202), &[&keys.assign]), "E_SIG_WRONG_ROLE"),
        (by_builder(expired), "E_RELEASE_EXPIRED"),
        (by_builder(privileged), "E_POLICY_PRIVILEGED"),
        (by_builder(foreign_app), "E_RELEASE_APP"),
        (by_builder(foreign_platform), "E_PLATFORM"),
        (by_builder(foreign_type), "E_INCOMPATIBLE"),
        (by_builder(later_spec), "E_SPEC"),
    ];
    for (seq, (hash, code)) in (2..).zip(cases) {
        cloud.assign(&cloud.draft(seq, &[hash]));
        agent.refuses(code).await;
        assert_eq!(agent.release_now(cloud.app()), Some(good), "{code}");
        assert_eq!(agent.store.committed(cloud.app()).unwrap().release.sha256(), good, "{code}");
    }
    let mended = cloud.deploy(50, 300);
    agent.runs(cloud.app(), mended).await;
    agent.condition("no refusal any more", |c| c.refusal().is_none()).await;
}

#[tokio::test]
async fn other_bytes_than_assigned_are_refused_until_the_cloud_sends_the_right_ones() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let good = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let other = sign(&release(&cloud.keys, 11), &[&cloud.keys.builder]).to_bytes();
    cloud.lie(move |path| path.contains("/releases/").then(|| body(200, "application/json", other.clone())));
    cloud.assign(&cloud.draft(1, &[good]));
    agent.refuses("E_RELEASE_HASH").await;
    cloud.honest();
    agent.runs(cloud.app(), good).await;
}

#[tokio::test]
async fn an_older_assignment_is_refused_also_after_a_restart() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let older = cloud.assign(&cloud.draft(1, &[first]));
    agent.runs(cloud.app(), first).await;
    let second = cloud.deploy(2, 11);
    agent.runs(cloud.app(), second).await;
    cloud.serve(older);
    agent.refuses("E_ASSIGN_ROLLBACK").await;
    drop(agent);

    let agent = device.start();
    agent.refuses("E_ASSIGN_ROLLBACK").await;
    assert_eq!(agent.release_now(cloud.app()), Some(second));
    // And the same number with other content is no better.
    let mut other = cloud.draft(2, &[first]);
    other.issued_at += 1;
    cloud.assign(&other);
    agent.refuses("E_ASSIGN_EQUIVOCATION").await;
    assert_eq!(agent.release_now(cloud.app()), Some(second));
}

#[tokio::test]
async fn another_devices_assignment_is_refused() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let mut other = cloud.draft(1, &[hash]);
    other.device_id = DeviceId::from_bytes([1; 16]);
    cloud.assign(&other);
    agent.refuses("E_DEVICE_MISMATCH").await;
    let mut other = cloud.draft(1, &[hash]);
    other.device_key_sha256 = Sha256Hex::of(b"another key");
    cloud.assign(&other);
    agent.refuses("E_DEVICE_MISMATCH").await;
    assert_eq!(agent.release_now(cloud.app()), None);
}

#[tokio::test]
async fn one_apps_bad_release_does_not_stop_anothers() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let bad = cloud.publish(&release(&cloud.keys, 10), &[]);
    let second_app = copal_protocol::ids::AppId::from_bytes([9; 16]);
    let mut good = release(&cloud.keys, 20);
    good.app_id = Some(second_app);
    let good = cloud.publish(&good, &[&cloud.keys.builder]);
    let mut assignment = cloud.draft(1, &[bad, good]);
    assignment.apps[1].app_id = second_app;
    cloud.assign(&assignment);
    agent.runs(second_app, good).await;
    agent.refuses("E_SIG_MISSING").await;
    assert_eq!(agent.release_now(cloud.app()), None);
}

#[tokio::test]
async fn with_the_cloud_gone_a_restarted_agent_runs_its_stored_target() {
    let mut cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.commits(cloud.app(), hash).await;
    drop(agent);
    cloud.go_down();

    let agent = device.start();
    let target = agent.target("from the disk", |t| !t.apps.is_empty()).await;
    assert_eq!(target.apps[&cloud.app()].release.sha256(), hash);
    assert!(!target.may_install, "nothing new without the cloud's word");
    assert_eq!(agent.store.committed(cloud.app()).unwrap().key(), target.apps[&cloud.app()].key());
    agent.offline("E_TRANSPORT").await;
}

#[tokio::test]
async fn nothing_new_may_be_installed_without_a_fresh_word_of_the_cloud() {
    for (how, code) in [(Freshness::WrongNonce, "E_NONCE"), (Freshness::OtherSeq, "E_NOT_FRESH")] {
        let cloud = FakeCloud::start().await;
        let device = Device::of(&cloud);
        let agent = device.start();
        agent.condition("enrolled", |c| c.device_id.is_some()).await;
        cloud.with(|i| i.fresh = how);
        let hash = cloud.deploy(1, 10);
        agent.refuses(code).await;
        let target = agent.target("known", |t| t.apps.contains_key(&cloud.app())).await;
        assert!(!target.may_install);
        cloud.with(|i| i.fresh = Freshness::Honest);
        agent.runs(cloud.app(), hash).await;
    }
}

#[tokio::test]
async fn offline_policy_lets_a_target_in_without_freshness() {
    let cloud = FakeCloud::start_with(|root| root.policy.allow.offline = true).await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    cloud.with(|i| i.fresh = Freshness::Down);
    let hash = cloud.deploy(1, 10);
    agent.runs(cloud.app(), hash).await;
    assert!(!agent.condition.borrow().fresh);
}

fn next_root(cloud: &FakeCloud, change: impl FnOnce(&mut Root)) -> Envelope {
    let mut root = cloud.root.clone();
    root.version = 2;
    change(&mut root);
    sign(&root, &[&cloud.keys.root])
}

#[tokio::test]
async fn a_newer_root_is_walked_to_and_a_revoked_release_gives_way_to_the_last_good_one() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.commits(cloud.app(), first).await;
    let second = cloud.deploy(2, 11);
    agent.commits(cloud.app(), second).await;

    let root = next_root(&cloud, |r| {
        r.revoked_releases.insert(second);
    });
    cloud.with(|i| i.roots.push(root));
    let mut assignment = cloud.draft(3, &[second]);
    assignment.root_version = 2;
    cloud.assign(&assignment);
    agent
        .target("the first again", |t| t.apps.get(&cloud.app()).is_some_and(|a| a.release.sha256() == first))
        .await;
    agent.refuses("E_RELEASE_REVOKED").await;
    assert_eq!(agent.condition.borrow().root_version, 2);
    assert_eq!(agent.store.committed(cloud.app()).unwrap().release.sha256(), first);
    drop(agent);
    let agent = device.start();
    assert_eq!(agent.store.root().version, 2, "the root is kept");
    agent
        .target("still the first", |t| t.apps.get(&cloud.app()).is_some_and(|a| a.release.sha256() == first))
        .await;
}

#[tokio::test]
async fn a_newer_root_reaches_a_device_that_has_no_assignment_and_looking_for_one_writes_nothing() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent
        .condition("waiting for an assignment", |c| {
            c.refused.as_ref().is_some_and(|r| r.code == "no_assignment")
        })
        .await;
    let (looked, before) = (cloud.asked("/roots/2"), device.files());
    while cloud.asked("/roots/2") < looked + 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(device.files(), before);

    let root = next_root(&cloud, lock);
    cloud.with(|i| i.roots.push(root));
    let condition = agent.condition("on the new root", |c| c.root_version == 2).await;
    assert_eq!(condition.lock, LockState::Locked);
    assert_eq!(agent.store.root().version, 2);
}

fn lock(root: &mut Root) {
    root.policy.release_mode = ReleaseMode::Owner;
    root.policy.env_mode = EnvMode::Declared;
    root.policy.terminal = TerminalMode::Off;
}

/// Locks the fleet and assigns `release` under that.
fn lock_with(cloud: &FakeCloud, seq: u64, release: Sha256Hex) {
    let root = next_root(cloud, lock);
    cloud.with(|i| i.roots.push(root));
    let mut assignment = cloud.draft(seq, &[release]);
    assignment.root_version = 2;
    cloud.assign(&assignment);
}

#[tokio::test]
async fn what_was_accepted_before_a_lock_and_never_begun_needs_the_owners_signature_after_it() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.commits(cloud.app(), first).await;
    let second = cloud.deploy(2, 11);
    let given = agent.runs(cloud.app(), second).await;

    lock_with(&cloud, 3, second);
    agent.refuses("E_SIG_WRONG_ROLE").await;
    assert_eq!(agent.release_now(cloud.app()), Some(first));
    let late = agent.store.begin_trial(&given.apps[&cloud.app()]);
    assert!(late.is_err(), "nor does a trial begin that was decided on before");
    drop(agent);
    let agent = device.start();
    assert_eq!(agent.release_now(cloud.app()), Some(first), "nor after a restart");
    agent.refuses("E_SIG_WRONG_ROLE").await;

    // The owner signs the very same release: that is fetched again, and taken.
    let signed = cloud.publish(&release(&cloud.keys, 11), &[&cloud.keys.builder, &cloud.keys.release]);
    assert_eq!(signed, second);
    agent.commits(cloud.app(), second).await;
    agent.condition("no refusal any more", |c| c.refusal().is_none()).await;
    // Back to what was committed before the lock is a step of the cloud's choosing, too.
    let mut back = cloud.draft(4, &[first]);
    back.root_version = 2;
    cloud.assign(&back);
    agent.refuses("E_SIG_WRONG_ROLE").await;
    assert_eq!(agent.release_now(cloud.app()), Some(second));
}

#[tokio::test]
async fn a_lock_ends_a_first_release_that_never_began_and_lets_one_on_trial_go_on() {
    for begun in [false, true] {
        let cloud = FakeCloud::start().await;
        let device = Device::of(&cloud);
        let agent = device.start();
        agent.condition("enrolled", |c| c.device_id.is_some()).await;
        let first = cloud.deploy(1, 10);
        let given = agent.runs(cloud.app(), first).await;
        if begun {
            agent.store.begin_trial(&given.apps[&cloud.app()]).unwrap();
        }
        lock_with(&cloud, 2, first);
        if begun {
            agent.target("under the lock", |t| t.order == (1, 2)).await;
            assert_eq!(agent.release_now(cloud.app()), Some(first));
        } else {
            agent.refuses("E_SIG_WRONG_ROLE").await;
            agent.target("without it", |t| t.apps.is_empty()).await;
        }
    }
}

#[tokio::test]
async fn under_a_lock_a_variable_no_service_declares_is_refused_and_what_runs_goes_on() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.commits(cloud.app(), first).await;
    let root = next_root(&cloud, lock);
    cloud.with(|i| i.roots.push(root));
    let mut assignment = cloud.draft(2, &[first]);
    assignment.root_version = 2;
    assignment
        .env
        .entry(cloud.app())
        .or_default()
        .entry("web".parse().unwrap())
        .or_default()
        .insert("UNDECLARED".into(), "x".into());
    cloud.assign(&assignment);
    agent.refuses("E_ENV_UNDECLARED").await;
    let target = agent.target("what was committed", |t| !t.apps.is_empty()).await;
    assert_eq!(target.apps[&cloud.app()].release.sha256(), first);
    assert!(target.apps[&cloud.app()].env.is_empty());
}

#[tokio::test]
async fn a_root_that_skips_or_is_not_signed_by_the_old_one_is_refused() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let good = cloud.deploy(1, 10);
    agent.commits(cloud.app(), good).await;
    let mut skipping = cloud.root.clone();
    skipping.version = 3;
    let skipping = sign(&skipping, &[&cloud.keys.root]);
    let mut usurped = cloud.root.clone();
    usurped.version = 2;
    copal_protocol::testing::set_role(
        &mut usurped,
        copal_protocol::documents::Role::Root,
        &[&fixed_key(77)],
        1,
    );
    let usurped = sign(&usurped, &[&fixed_key(77)]);
    for (seq, root, code) in [(2, skipping, "E_ROOT_VERSION"), (3, usurped, "E_ROOT_OLD_SIG")] {
        cloud.with(|i| i.roots = vec![i.roots[0].clone(), root]);
        let mut assignment = cloud.draft(seq, &[good]);
        assignment.root_version = 2;
        cloud.assign(&assignment);
        agent.refuses(code).await;
        assert_eq!(agent.release_now(cloud.app()), Some(good), "{code}");
        assert_eq!(agent.store.root().version, 1);
    }
}

#[tokio::test]
async fn an_expired_root_lets_nothing_new_in_and_what_runs_goes_on() {
    // The clock's floor never passes Root's own end, so the end is put before the system's clock.
    let cloud = FakeCloud::start_with(|root| {
        root.issued_at = 1_600_000_000;
        root.expires = 1_700_000_000;
    })
    .await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    cloud.deploy(1, 10);
    agent.refuses("E_ROOT_EXPIRED").await;
    assert_eq!(agent.release_now(cloud.app()), None);
}

#[tokio::test]
async fn secrets_are_opened_here_and_stay_sealed_on_the_disk() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let service: copal_protocol::ids::Name = "web".parse().unwrap();
    let context = SealContext {
        fleet: cloud.keys.fleet_id,
        device: cloud.keys.device_id,
        app: cloud.app(),
        service: &service,
        variable: "PASSWORD",
    };
    let public = agent.session.identity(|i| i.seal().public());
    let sealed = seal::seal(&public, &context, b"correct horse battery").unwrap();
    let mut assignment = cloud.draft(1, &[hash]);
    assignment
        .sealed
        .entry(cloud.app())
        .or_default()
        .entry(service.clone())
        .or_default()
        .insert("PASSWORD".into(), sealed.clone());
    cloud.assign(&assignment);
    let target = agent.runs(cloud.app(), hash).await;
    assert_eq!(target.apps[&cloud.app()].secrets[&service]["PASSWORD"].0, b"correct horse battery");
    assert!(!format!("{target:?}").contains("correct horse"));
    for (name, bytes, _) in device.files() {
        assert!(!bytes.windows(7).any(|w| w == b"correct"), "{name}");
    }
    // Sealed for another place: refused whole.
    let mut moved = cloud.draft(2, &[hash]);
    moved.sealed.entry(cloud.app()).or_default().entry(service).or_default().insert("OTHER".into(), sealed);
    cloud.assign(&moved);
    agent.refuses("E_SEAL").await;
    assert_eq!(agent.release_now(cloud.app()), Some(hash));
}

#[tokio::test]
async fn loader_variables_are_denied_and_a_bad_variable_does_not_condemn_the_release() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.runs(cloud.app(), hash).await;
    let with = |seq: u64, name: &str| {
        let mut a = cloud.draft(seq, &[hash]);
        a.env
            .entry(cloud.app())
            .or_default()
            .entry("web".parse().unwrap())
            .or_default()
            .insert(name.into(), "x".into());
        a
    };
    cloud.assign(&with(2, "LD_PRELOAD"));
    agent.refuses("E_ENV_DENIED").await;
    cloud.assign(&with(3, "GREETING"));
    agent.target("with the variable", |t| t.apps.get(&cloud.app()).is_some_and(|a| !a.env.is_empty())).await;
}

#[tokio::test]
async fn a_refused_login_says_why_and_is_tried_again() {
    for (status, code) in [(403, "device_revoked"), (403, "device_pending"), (409, "clone_suspected")] {
        let cloud = FakeCloud::start().await;
        cloud.with(|i| i.login_refused = Some((status, code)));
        let device = Device::of(&cloud);
        let agent = device.start();
        agent.offline(code).await;
        cloud.with(|i| i.login_refused = None);
        agent.condition("in", |c| c.online).await;
    }
}

#[tokio::test]
async fn a_power_cut_between_login_and_first_use_is_no_clone() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    for _ in 0..4 {
        let agent = device.start();
        agent.condition("online", |c| c.online).await;
        drop(agent);
        // The token was never used again; the next start shows the stored link.
    }
    assert_eq!(cloud.asked("/enrol"), 1);
    // The link is lost with the rest of the session: now a person must decide.
    for copy in ["session.a", "session.b"] {
        std::fs::remove_file(device.dir.path().join(copy)).unwrap();
    }
    let agent = device.start();
    agent.offline("clone_suspected").await;
}

#[tokio::test]
async fn a_token_no_longer_taken_is_renewed_without_a_word() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    let hash = {
        agent.condition("enrolled", |c| c.device_id.is_some()).await;
        cloud.deploy(1, 10)
    };
    agent.runs(cloud.app(), hash).await;
    cloud.with(|i| i.tokens.clear());
    let second = cloud.deploy(2, 11);
    agent.runs(cloud.app(), second).await;
}

#[tokio::test]
async fn an_idle_device_writes_nothing() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.commits(cloud.app(), hash).await;
    agent.condition("settled", |c| c.fresh && c.refusal().is_none()).await;
    let polls = cloud.asked("/state");
    let before = device.files();
    while cloud.asked("/state") < polls + 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(device.files(), before);
}

#[tokio::test]
async fn a_target_waits_for_its_time() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.runs(cloud.app(), first).await;
    let second = cloud.publish(&release(&cloud.keys, 11), &[&cloud.keys.builder]);
    let mut later = cloud.draft(2, &[second]);
    later.not_before = Some(NOW + 86_400 * 365 * 3);
    cloud.assign(&later);
    agent.condition("waiting", |c| c.refused.as_ref().is_some_and(|r| r.code == "waiting_not_before")).await;
    assert_eq!(agent.release_now(cloud.app()), Some(first));
}

#[tokio::test]
async fn damaged_marks_and_targets_are_set_aside_and_had_again_while_the_identity_stays() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.commits(cloud.app(), hash).await;
    drop(agent);
    for (name, bytes, _) in device.files() {
        if name.starts_with("target.") || name.starts_with("marks.") {
            std::fs::write(device.dir.path().join(&name), &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let agent = device.start();
    // What was committed goes on from the first moment, and the cloud fills in the rest.
    assert_eq!(agent.release_now(cloud.app()), Some(hash));
    assert_eq!(agent.condition.borrow().lost.len(), 2);
    agent.runs(cloud.app(), hash).await;
    assert_eq!(cloud.asked("/enrol"), 1);
}

#[tokio::test]
async fn a_damaged_release_never_removes_its_app_and_is_had_again() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.commits(cloud.app(), hash).await;
    agent.condition("settled", |c| c.fresh && c.refusal().is_none()).await;
    drop(agent);
    for (name, ..) in device.files().iter().filter(|(name, ..)| name.starts_with("release-")) {
        std::fs::write(device.dir.path().join(name), b"torn").unwrap();
    }
    let agent = device.start();
    // Not a target without the app, which would mean: remove it.
    assert!(agent.targets.borrow().is_none());
    agent.runs(cloud.app(), hash).await;
    agent.condition("well again", |c| c.refusal().is_none()).await;
    assert_eq!(agent.store.committed(cloud.app()).unwrap().release.sha256(), hash);
}

#[tokio::test]
async fn with_the_target_lost_a_refused_release_still_leaves_the_committed_one() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let good = cloud.deploy(1, 10);
    agent.commits(cloud.app(), good).await;
    drop(agent);
    for copy in ["target.a", "target.b"] {
        std::fs::remove_file(device.dir.path().join(copy)).unwrap();
    }
    let bad = cloud.publish(&release(&cloud.keys, 11), &[]);
    cloud.assign(&cloud.draft(2, &[bad]));
    let agent = device.start();
    agent.refuses("E_SIG_MISSING").await;
    assert_eq!(agent.release_now(cloud.app()), Some(good));
}

#[tokio::test]
async fn a_lost_identity_is_never_made_anew_by_itself() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    drop(device.start());
    for copy in ["identity.a", "identity.b"] {
        std::fs::write(device.dir.path().join(copy), b"\0\0\0").unwrap();
    }
    for _ in 0..2 {
        let state =
            std::sync::Arc::new(StateDir::open(device.dir.path(), std::sync::Arc::new(RealFs)).unwrap());
        assert!(Identity::open(state, &device.file).is_err());
    }
}

/// A host release for the devices of these tests.
fn host_release(cloud: &FakeCloud, device: &Device, counter: u64) -> copal_protocol::documents::Release {
    let mut release = cloud.keys.host_release(counter, b"image");
    release.compat.device_types = [device.file.device_type.clone()].into();
    release
}

#[tokio::test]
async fn a_host_target_is_verified_by_its_own_role_and_refused_without_touching_apps() {
    use copal_agent::target::{HostAim, HostPart};
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let app = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let assign = |seq, host: Option<Sha256Hex>| {
        let mut draft = cloud.draft(seq, &[app]);
        draft.host = host.map(|sha256| HostTarget { sha256, retry: seq });
        draft.config.reboot_window = Some("01:00-02:00".parse().unwrap());
        cloud.assign(&draft);
    };
    let good = cloud.publish(&host_release(&cloud, &device, 20), &[&cloud.keys.host]);
    assign(1, Some(good));
    let aims_at = |hash: Sha256Hex| {
        move |t: &copal_agent::target::model::Target| {
            matches!(&t.os, HostAim::Release(r) if r.release.sha256() == hash) && t.reboot_window.is_some()
        }
    };
    agent.target("the host target", aims_at(good)).await;
    agent.runs(cloud.app(), app).await;

    // Signed by the builder: another role's word. What was accepted before stays the target; the app goes on.
    let forged = cloud.publish(&host_release(&cloud, &device, 21), &[&cloud.keys.builder]);
    assign(2, Some(forged));
    agent.refuses("E_SIG_WRONG_ROLE").await;
    agent.target("the old host target", aims_at(good)).await;
    let mut of_agent = host_release(&cloud, &device, 22);
    let mut file = of_agent.payloads.remove("rootfs").unwrap();
    file.index = None;
    of_agent.payloads.insert("agent".parse().unwrap(), file);
    of_agent.compat.arch = [copal_agent::settings::arch().to_owned()].into();
    let of_agent = cloud.publish(&of_agent, &[&cloud.keys.host]);
    assign(3, Some(of_agent));
    agent.refuses("E_RELEASE_APP").await;

    // A commit raises the floor, and only that.
    let mut floored = host_release(&cloud, &device, 40);
    floored.rollback_floor = 35;
    let floored = cloud.publish(&floored, &[&cloud.keys.host]);
    assign(4, Some(floored));
    agent.target("the new host target", aims_at(floored)).await;
    assert_eq!(agent.store.os_floor(), 0);
    agent.store.begin_host(HostPart::Os, floored).unwrap();
    assert_eq!(agent.store.os_floor(), 0);
    agent.store.commit_host(HostPart::Os, floored).unwrap();
    assert_eq!(agent.store.os_floor(), 35);
    assign(5, Some(good));
    agent.refuses("E_RELEASE_ROLLBACK").await;
    drop(agent);
    let agent = device.start();
    assert_eq!(agent.store.os_floor(), 35, "also after a restart");

    // Named no more: no target.
    assign(6, None);
    agent.target("no host target", |t| t.os == HostAim::None).await;
}

#[tokio::test]
async fn the_release_before_stays_to_go_back_to_and_one_that_was_given_up_is_judged_as_new() {
    use copal_agent::target::{HostAim, HostPart};
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let mut made = Vec::new();
    for n in [20, 21, 22] {
        let host = cloud.publish(&host_release(&cloud, &device, n), &[&cloud.keys.host]);
        let mut draft = cloud.draft(n, &[]);
        draft.host = Some(HostTarget { sha256: host, retry: 0 });
        cloud.assign(&draft);
        let aims = |t: &copal_agent::target::model::Target| matches!(&t.os, HostAim::Release(r) if r.release.sha256() == host);
        agent.target("the host target", aims).await;
        agent.store.begin_host(HostPart::Os, host).unwrap();
        if n < 22 {
            agent.store.commit_host(HostPart::Os, host).unwrap();
        }
        made.push(host);
    }
    // 22 failed its trials.
    agent.store.end_host(HostPart::Os, made[2]).unwrap();
    cloud.assign(&cloud.draft(23, &[]));
    agent.target("no host target", |t| t.os == HostAim::None).await;
    drop(agent);
    let agent = device.start();
    agent.store.host_document(HostPart::Os, made[1]).unwrap();
    agent.store.host_document(HostPart::Os, made[0]).expect("what ran before is there to go back to");
    agent.store.begin_host(HostPart::Os, made[0]).unwrap();
    // Done twice, as after a power cut, the release before stays the one before.
    agent.store.commit_host(HostPart::Os, made[0]).unwrap();
    agent.store.commit_host(HostPart::Os, made[0]).unwrap();
    agent.store.host_document(HostPart::Os, made[1]).unwrap();
    agent.store.host_document(HostPart::Os, made[2]).expect_err("nobody needs it any more");
}

#[tokio::test]
async fn after_a_restart_without_the_cloud_apps_and_host_target_come_from_the_disk() {
    use copal_agent::target::HostAim;
    let mut cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let app = cloud.publish(&release(&cloud.keys, 10), &[&cloud.keys.builder]);
    let host = cloud.publish(&host_release(&cloud, &device, 20), &[&cloud.keys.host]);
    let mut draft = cloud.draft(1, &[app]);
    draft.host = Some(HostTarget { sha256: host, retry: 0 });
    cloud.assign(&draft);
    agent.commits(cloud.app(), app).await;
    drop(agent);

    // As after a reboot into another slot: the state is the same, the network is not there yet.
    cloud.go_down();
    let agent = device.start();
    let target = agent.target("from the disk", |t| t.apps.contains_key(&cloud.app())).await;
    assert_eq!(target.apps[&cloud.app()].release.sha256(), app);
    assert!(matches!(&target.os, HostAim::Release(r) if r.release.sha256() == host));
    assert!(!target.may_install, "nothing new without the cloud's word");
    assert_eq!(agent.store.committed(cloud.app()).unwrap().release.sha256(), app);
}

#[tokio::test]
async fn with_the_budget_of_bytes_used_polls_are_seldom_and_what_is_asked_for_comes_at_once() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.runs(cloud.app(), first).await;
    agent.nudges.send_modify(|nudges| nudges.seldom = true);
    // The polls that were under way come to their end.
    let mut polls = 0;
    let mut rounds = 0;
    while polls != cloud.asked("/device/v1/state") {
        polls = cloud.asked("/device/v1/state");
        rounds += 1;
        assert!(rounds < 5, "they go on: {polls}");
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let second = cloud.deploy(2, 11);
    agent.nudges.send_modify(|nudges| nudges.asked += 1);
    agent.runs(cloud.app(), second).await;
}
