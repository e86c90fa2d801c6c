//! Golden documents under fixed keys. They change only with the format, and a change of the format is a decision:
//! devices in the field read the old one. `COPAL_WRITE_VECTORS=1` writes them anew, for looking at the difference.

use std::{fs, path::PathBuf};

use super::*;
use crate::{
    documents::{
        Act, Action, AgentReport, Assignment, BuildRecord, Freshness, HostReport, HostTarget, LockState,
        Progress, Reason, Release, Report, Root, RunningService, SPEC, ServiceState, SlotReport, SlotState,
        TerminalGrant, TerminalOffer,
    },
    enrol,
    ids::{Digest, Sha256Hex},
    seal::{self, SealContext, SealKey},
    spec::{Condition, DependsOn, Device, Healthcheck, Mount, Port, Restart, ServiceSpec},
    terminal::LineKey,
    testing::{NOW, OwnerKeys, image, platform, sign},
    verify,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Compares with the stored vector, or writes it where asked to.
#[track_caller]
fn is_stored<D: Document>(file: &str, document: &D, keys: &[&SigningKey]) -> Envelope {
    let envelope = sign(document, keys);
    let vector = json!({
        "payload": serde_json::to_value(document).unwrap(),
        "payload_sha256": envelope.payload_sha256(),
        "envelope": serde_json::from_slice::<Value>(&envelope.to_bytes()).unwrap(),
    });
    compare(file, &vector);
    // Signing is deterministic, so reading the stored envelope gives this one.
    let stored: Value = serde_json::from_slice(&fs::read(folder().join(file)).unwrap()).unwrap();
    let read = Envelope::parse::<D>(stored["envelope"].to_string().as_bytes()).unwrap();
    assert_eq!(read, envelope);
    envelope
}

#[track_caller]
fn compare(file: &str, vector: &Value) {
    let path = folder().join(file);
    if std::env::var_os("COPAL_WRITE_VECTORS").is_some() {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, serde_json::to_string_pretty(vector).unwrap() + "\n").unwrap();
    }
    let stored: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(*vector, stored, "{file} is no longer what devices in the field read");
}

/// A release that uses most of the format.
fn full_release(keys: &OwnerKeys) -> Release {
    let mut release = keys.release(1_800_000_000);
    release.version = "1.4.0".parse().unwrap();
    release.commit = "c0ffee".repeat(6) + "c0ff";
    release.expires = Some(NOW + 86_400);
    release.rollback_floor = 1_700_000_000;
    release.compat.arch.insert("amd64".to_owned());
    release.compat.min_agent = Some("0.1.0".parse().unwrap());
    release.build_record = Some(Sha256Hex::of(b"build record"));
    release.volumes.insert("data".parse().unwrap(), Default::default());
    release.networks.insert("back".parse().unwrap(), Default::default());
    let mut spec = ServiceSpec {
        command: Some(vec!["serve".to_owned(), "--quiet".to_owned()]),
        restart: Restart::OnFailure { max: 3 },
        healthcheck: Some(Healthcheck {
            test: Some(vec!["CMD".to_owned(), "check".to_owned()]),
            interval_ms: Some(30_000),
            ..Healthcheck::default()
        }),
        ..ServiceSpec::default()
    };
    spec.environment.insert("MODE".to_owned(), "field".to_owned());
    spec.ports.push(Port { target: 80, published: Some(8080), host_ip: None, protocol: "tcp".to_owned() });
    let volume = Mount::Volume { source: Some("data".parse().unwrap()), read_only: false, nocopy: false };
    spec.mounts.insert("/data".to_owned(), volume);
    let bind = Mount::Bind { source: "/srv".to_owned(), read_only: true, propagation: None };
    spec.mounts.insert("/srv".to_owned(), bind);
    spec.mounts.insert("/tmp".to_owned(), Mount::Tmpfs { size: Some(1 << 20), mode: Some(0o1777) });
    spec.networks.insert("back".parse().unwrap(), Default::default());
    let how = DependsOn { condition: Condition::ServiceHealthy, optional: false };
    spec.depends_on.insert("web".parse().unwrap(), how);
    spec.devices.push(Device {
        host: "/dev/ttyUSB0".to_owned(),
        container: "/dev/ttyUSB0".to_owned(),
        permissions: "rw".to_owned(),
    });
    spec.cap_add.insert("SYS_TIME".to_owned());
    spec.labels.insert("io.copal.update.strategy".to_owned(), "hand-over".to_owned());
    let service = crate::documents::ServiceRelease {
        spec,
        overridable_env: ["MODE".to_owned()].into(),
        images: [("linux/amd64".to_owned(), image("demo/worker"))].into(),
    };
    release.services.insert("worker".parse().unwrap(), service);
    release
}

#[test]
fn the_format_of_documents_is_the_stored_one() {
    let keys = OwnerKeys::fixed();
    let mut root = keys.root();
    root.policy.allow.binds.insert("/srv".to_owned());
    root.policy.allow.devices.insert("/dev/ttyUSB*".to_owned());
    root.policy.allow.caps.insert("SYS_TIME".to_owned());
    root.cloud.urls.push("https://copal.example".to_owned());
    root.cloud.tls_pins.push(BASE64.encode([7; 32]));
    root.floors.insert(keys.app_id.to_string(), 1_700_000_000);
    root.revoked_releases.insert(Sha256Hex::of(b"revoked"));
    let root = is_stored::<Root>("root.json", &root, &[&keys.root]);
    let root = verify::first_root(&root, keys.fleet_id).unwrap();

    let release = is_stored("release.json", &full_release(&keys), &[&keys.builder, &keys.release]);
    let accepted = super::releases::install(&keys, &root, &release).unwrap();
    crate::policy::check_release(&root.policy, &accepted).unwrap();

    let mut assignment = keys.assignment(42, &[release.payload_sha256()]);
    let env = [("MODE".to_owned(), "test".to_owned())].into();
    assignment.env.insert(keys.app_id, [("worker".parse().unwrap(), env)].into());
    let sealed = [("TOKEN".to_owned(), SEALED.to_owned())].into();
    assignment.sealed.insert(keys.app_id, [("worker".parse().unwrap(), sealed)].into());
    assignment.host = Some(HostTarget { sha256: Sha256Hex::of(b"host"), retry: 1 });
    assignment.agent = Some(HostTarget { sha256: Sha256Hex::of(b"agent"), retry: 0 });
    assignment.config.poll_interval_s = Some(300);
    assignment.config.reboot_window = Some("22:30-04:00".parse().unwrap());
    assignment.not_before = Some(NOW + 60);
    let assignment = is_stored::<Assignment>("assignment.json", &assignment, &[&keys.assign]);
    let mark = verify::AssignmentMark::of(
        &verify::assignment(&root, &keys.identity(), &Default::default(), &assignment).unwrap(),
    );

    let nonce = Sha256Hex::of(b"nonce");
    let answer = keys.freshness(nonce, &assignment, 42);
    let answer = is_stored::<Freshness>("freshness.json", &answer, &[&keys.assign]);
    verify::freshness(&root, &keys.identity(), nonce, &mark, &answer).unwrap();
    assert_eq!(platform().arch, "amd64");

    let action = keys.action(7, Act::StopService { service: "worker".parse().unwrap() });
    let action = is_stored::<Action>("action.json", &action, &[&keys.assign]);
    verify::action(&root, &keys.identity(), &action).unwrap();
}

#[test]
fn the_format_of_what_opens_a_terminal_is_the_stored_one() {
    let keys = OwnerKeys::fixed();
    let mut offer = keys.offer(&LineKey::generate().unwrap());
    offer.device_key = BASE64.encode([9; 32]);
    let offer_envelope = is_stored::<TerminalOffer>("terminal-offer.json", &offer, &[&keys.device]);
    verify::signed_by::<TerminalOffer>(&keys.device.public(), keys.fleet_id, &offer_envelope).unwrap();
    let grant = keys.grant(&offer, &BASE64.encode([8; 32]));
    let grant = is_stored::<TerminalGrant>("terminal-grant.json", &grant, &[&keys.operator]);
    let root = keys.trusted(&keys.grant_root());
    verify::terminal_grant(&root, &keys.identity(), &offer, 0, &grant).unwrap();
}

#[test]
fn the_format_of_what_builder_and_device_say_is_the_stored_one() {
    let keys = OwnerKeys::fixed();
    let record = BuildRecord {
        spec: SPEC,
        fleet_id: keys.fleet_id,
        app_id: keys.app_id,
        commit: "c0ff".to_owned(),
        source: "git tree".to_owned(),
        platform: "linux/amd64".to_owned(),
        builder: "docker 27.0".to_owned(),
        started_at: NOW,
        finished_at: NOW + 9,
        images: [("web".parse().unwrap(), Digest::of(b"config"))].into(),
        external: [("alpine:3".to_owned(), Digest::of(b"alpine"))].into(),
        ext: None,
    };
    is_stored("build.json", &record, &[&keys.builder]);

    let service = RunningService {
        config_digest: Some(Digest::of(b"config")),
        state: ServiceState::Exited,
        restarts: 2,
        container_id: "0123".to_owned(),
        exit_code: Some(-1),
    };
    let report = Report {
        spec: SPEC,
        fleet_id: keys.fleet_id,
        device_id: keys.device_id,
        boot_id: "00112233445566778899aabbccddeeff".to_owned(),
        report_counter: 7,
        root_version: 1,
        root_sha256: Sha256Hex::of(b"root"),
        lock: LockState::Locked,
        assign_epoch: 1,
        seq_accepted: 42,
        seq_applied: 41,
        unfresh: true,
        running: [(keys.app_id, [("web".parse().unwrap(), service)].into())].into(),
        committed: [(keys.app_id, Sha256Hex::of(b"release"))].into(),
        reason: Some(Reason {
            code: "rolled_back".to_owned(),
            message: "web was unhealthy".to_owned(),
            release: Some(Sha256Hex::of(b"release")),
            service: Some("web".parse().unwrap()),
            exit_code: Some(1),
            log_tail: vec!["no".to_owned()],
        }),
        progress: Some(Progress { stage: "trial".to_owned(), done: 1, total: 2, trial_ends: Some(NOW) }),
        host: Some(HostReport {
            backend: "uboot".to_owned(),
            slots: [("a", SlotState::Committed), ("b", SlotState::Bad)]
                .map(|(slot, state)| {
                    let booted = state == SlotState::Committed;
                    let release = Some(Sha256Hex::of(slot.as_bytes()));
                    (slot.to_owned(), SlotReport { state, booted, release, version: "1.0.0".to_owned() })
                })
                .into(),
            release: Some(Sha256Hex::of(b"a")),
            version: "1.0.0".to_owned(),
            reason: None,
            progress: Some(Progress {
                stage: "os_downloading".to_owned(),
                done: 1,
                total: 2,
                trial_ends: None,
            }),
            failed: Some(Sha256Hex::of(b"b")),
        }),
        agent: Some(AgentReport { release: Some(Sha256Hex::of(b"agent")), ..AgentReport::default() }),
        health: None,
        agent_version: "0.1.0".to_owned(),
        os_version: "Debian".to_owned(),
        arch: "amd64".to_owned(),
        time: NOW,
        ext: None,
    };
    let envelope = is_stored("report.json", &report, &[&keys.device]);
    verify::signed_by::<Report>(&keys.device.public(), keys.fleet_id, &envelope).unwrap();
}

/// Sealed once to the key of 32 bytes 0x2a, for the place below: sealing is randomised, opening is not.
const SEALED: &str = include_str!("../../../tests/vectors/sealed.txt");

#[test]
fn a_secret_sealed_by_an_earlier_version_still_opens() {
    let keys = OwnerKeys::fixed();
    let worker = "worker".parse().unwrap();
    let place = SealContext {
        fleet: keys.fleet_id,
        device: keys.device_id,
        app: keys.app_id,
        service: &worker,
        variable: "TOKEN",
    };
    let key = SealKey::from_bytes(&[0x2a; 32]);
    if std::env::var_os("COPAL_WRITE_VECTORS").is_some() && SEALED.is_empty() {
        fs::write(folder().join("sealed.txt"), seal::seal(&key.public(), &place, b"hunter2").unwrap())
            .unwrap();
        return;
    }
    assert_eq!(&**seal::open(&key, &place, SEALED).unwrap(), b"hunter2");
}

#[test]
fn the_bytes_of_enrolment_and_login_are_the_stored_ones() {
    let keys = OwnerKeys::fixed();
    let key = keys.device.public();
    let seal_key = SealKey::from_bytes(&[0x2a; 32]).public();
    let challenge = Sha256Hex::of(b"challenge");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let enrol_message = enrol::enrol_message(keys.fleet_id, "token-id", &key, &seal_key);
    let login_message = enrol::login_message(keys.device_id, challenge);
    compare(
        "enrol.json",
        &json!({
            "token_secret": "token-secret",
            "public_key": key,
            "seal_key": seal_key,
            "enrol_message": text(enrol_message.clone()),
            "enrol_signature": hex::encode(keys.device.sign(&enrol_message)),
            "token_mac": enrol::token_mac("token-secret", keys.fleet_id, "token-id", &key, &seal_key),
            "introduction_secret": "card-secret",
            "introduction_mac": enrol::introduction_mac("card-secret", keys.fleet_id, &key),
            "login_message": text(login_message.clone()),
            "login_signature": hex::encode(keys.device.sign(&login_message)),
        }),
    );
}
