use std::{collections::BTreeMap, fs, io::Read as _};

use copal_protocol::diagnosis::{ProbeResult, Verdict};

use super::*;
use crate::{
    clock::Clock,
    diagnostics::tests::{places, plant},
    engine::{Container, Engine, Health, ImageId, RunState},
};

const ENV: &str = "planted-env-value";
const LOG_OPTION: &str = "planted-log-option";
const LABEL: &str = "planted-label-value";
const ARGUMENT: &str = "planted-argument";
const ENROLMENT: &str = "planted-enrolment-secret";
const INTRODUCTION: &str = "planted-introduction-secret";
const SEALED: &str = "planted sealed secret";
const PSK: &str = "planted-psk";
const URL: &str = "planted-url-password";
const IN_FILE: &str = "planted secret of a file";
const PLANTED: &[&str] =
    &[IN_FILE, ENV, LOG_OPTION, LABEL, ARGUMENT, ENROLMENT, INTRODUCTION, SEALED, PSK, URL];

fn container() -> Inspection {
    let whole = json!({
        "Name": "/copal-1-web", "Path": "/web", "Args": ["--api-key", ARGUMENT, &format!("--dsn=postgres://me:{URL}@db/x")],
        "State": {"Health": {"Log": [{"Output": format!("cannot log in with {ENV}\n{SEALED}")}]}},
        "Config": {"Image": "web", "Env": [format!("PLAIN={ENV}"), "PATH=/usr/bin", "NOVALUE"], "Labels": {"app.token": LABEL, "app.name": "web"},
            "Cmd": ["web", &format!("--password={ARGUMENT}")]},
        "HostConfig": {"LogConfig": {"Type": "splunk", "Config": {"splunk-host": LOG_OPTION}}, "Binds": ["/data:/data"]},
        "Mounts": [{"Source": "/data", "VolumeOptions": {"DriverConfig": {"Options": {"o": LOG_OPTION}}}}],
    });
    Inspection {
        container: Container {
            id: "aa".to_owned(),
            name: "copal-1-web".to_owned(),
            image: ImageId("sha256:1".to_owned()),
            labels: BTreeMap::new(),
            state: RunState::Running,
            health: Health::Unhealthy,
            exit_code: 0,
            restarts: 0,
            started_at: String::new(),
            grace_s: 10,
            networks: BTreeMap::new(),
            shares: [].into(),
            privileged: false,
            unreadable: None,
        },
        oom_killed: false,
        last_check: None,
        env: vec![format!("PLAIN={ENV}"), "PATH=/usr/bin".to_owned()],
        whole: serde_json::to_vec(&whole).unwrap(),
    }
}

/// Every source holds a secret.
fn bundle() -> BTreeMap<String, String> {
    let (dir, tree) = plant(&[
        (
            "dev/kmsg",
            &format!(
                "6,1,5000000,-;web[7]: login with {ENV} to http://me:{URL}@host\n6,2,6000000,-;wpa psk={PSK}\n"
            ),
        ),
        ("proc/cmdline", &format!("root=/dev/a wifi.psk={PSK} quiet token={ENROLMENT}")),
        ("proc/meminfo", "MemTotal: 1 kB\n"),
        ("etc/hosts", &format!("127.0.0.1 localhost # {SEALED}\n")),
        ("state/unused", ""),
    ]);
    let places = places(dir.path());
    let config = json!({"spec": 1, "cloud_url": "https://cloud.example", "enrolment_token": format!("tok1.{ENROLMENT}"),
        "introduction": format!("int1.{INTRODUCTION}"), "name": "porch"});
    fs::write(dir.path().join("copal.json"), config.to_string()).unwrap();
    fs::create_dir(&places.run_dir).unwrap();
    let status = json!({"reason": {"code": "crash_loop", "log_tail": [format!("connect {ENV}"), format!("key {IN_FILE}"), format!("PASSWORD={ARGUMENT}")]}});
    fs::write(places.run_dir.join("status.json"), status.to_string()).unwrap();
    let secrets = places.run_dir.join("secrets/5a5a/web");
    fs::create_dir_all(&secrets).unwrap();
    fs::write(secrets.join("key"), IN_FILE).unwrap();
    let engine = Engine::connect(Some("unix:///nonexistent/engine.sock"));
    let link = Link::None { cloud: None, why: String::new(), deaf: false };
    let deps = Deps { tree, ..Deps::new(places, Clock::default(), engine, link, false) };
    let gathered = Gathered {
        diagnosis: Diagnosis {
            probes: vec![ProbeResult::new("services", Verdict::Failed, &format!("said {SEALED}")).of("web")],
            taken_at: 1,
        },
        info: Some(EngineInfo {
            driver: "overlay2".to_owned(),
            warnings: vec![format!("proxy http://me:{URL}@p")],
            ..EngineInfo::default()
        }),
        containers: vec![container()],
        secrets: vec![SEALED.to_owned()],
    };
    let bytes = write(Vec::new(), &deps, &gathered, None).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let name = entry.path().unwrap().display().to_string();
        files.insert(name.strip_prefix("copal-support/").unwrap().to_owned(), text);
    }
    files
}

#[test]
fn no_planted_secret_is_in_the_bundle() {
    for (name, text) in bundle() {
        for secret in PLANTED {
            assert!(!text.contains(secret), "{secret} is in {name}:\n{text}");
        }
    }
}

#[test]
fn what_support_needs_is_in_the_bundle() {
    let files = bundle();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    insta::assert_snapshot!(names.join("\n"));
    for (name, word) in [
        ("copal.json", "\"porch\""),
        ("copal.json", "tok1.(redacted)"),
        ("containers/copal-1-web.json", "PLAIN=(redacted)"),
        ("containers/copal-1-web.json", "/data:/data"),
        ("containers/copal-1-web.json", "\"splunk-host\": \"(redacted)\""),
        ("status.json", "crash_loop"),
        ("kernel.log", "login with (redacted) to http://(redacted)@host"),
        ("engine.json", "overlay2"),
        ("diagnosis.txt", "failed"),
        ("system/proc_cmdline", "root=/dev/a"),
        ("os-journal.json", "os status"),
    ] {
        assert!(files[name].contains(word), "{word} is not in {name}:\n{}", files[name]);
    }
}

#[test]
fn a_bundle_of_too_much_is_cut() {
    let mut noisy = container();
    noisy.whole = serde_json::to_vec(&json!({"Noise": "x".repeat(3 * MOST_OF_ONE)})).unwrap();
    let many = (0..30).map(|n| {
        let mut one = container();
        one.whole = noisy.whole.clone();
        one.container.name = format!("c{n}");
        one
    });
    let (dir, tree) = plant(&[]);
    let places = places(dir.path());
    let engine = Engine::connect(Some("unix:///nonexistent/engine.sock"));
    let link = Link::None { cloud: None, why: String::new(), deaf: false };
    let deps = Deps { tree, ..Deps::new(places, Clock::default(), engine, link, false) };
    let gathered = Gathered {
        diagnosis: Diagnosis { probes: Vec::new(), taken_at: 0 },
        info: None,
        containers: many.collect(),
        secrets: Vec::new(),
    };
    let bytes = write(Vec::new(), &deps, &gathered, None).unwrap();
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut whole).unwrap();
    assert!(whole.len() <= MOST + 1024, "{}", whole.len());
}
