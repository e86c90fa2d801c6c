//! Reports: signed, by HTTP, as an agent sends them. One after the start, one when an update began, one when it is committed, and one
//! with every round of health checks. The engine is pretended, so an update takes as long as two reports of an agent lie apart.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use copal_protocol::{
    diagnosis::{CheckReport, HealthReport, Verdict},
    documents::{AgentReport, LockState, Progress, Release, Report, RunningService, SPEC, ServiceState},
    envelope::Envelope,
    ids::{AppId, Digest, Name, Sha256Hex},
    telemetry::Event,
    verify::{self, AssignmentMark, Verified},
};
use tokio::sync::watch;

use crate::{
    device::{Device, arch},
    http::Call,
    pace::{backoff, jittered},
    tell::{boot_id, event, now},
};

/// Changes that come together make one report.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// The health checks of an agent.
const CHECKS: [&str; 17] = [
    "agent",
    "clock",
    "cloud",
    "disk",
    "disk_health",
    "dns",
    "engine",
    "memory",
    "network",
    "oom",
    "proxy",
    "registry",
    "services",
    "slots",
    "temperature",
    "undervoltage",
    "update",
];

/// A release as a device remembers it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct App {
    id: AppId,
    pub(crate) release: Sha256Hex,
    services: Vec<(Name, Option<Digest>)>,
}

impl App {
    pub(crate) fn of(id: AppId, release: &Verified<Release>) -> Self {
        let platform = format!("linux/{}", arch());
        let digest = |images: &BTreeMap<String, copal_protocol::documents::ImageRef>| {
            images.get(&platform).map(|image| image.config_digest)
        };
        let services = release.services.iter().map(|(name, of)| (name.clone(), digest(&of.images))).collect();
        Self { id, release: release.sha256(), services }
    }

    fn running(&self, state: ServiceState) -> BTreeMap<Name, RunningService> {
        let of = |digest: &Option<Digest>| RunningService {
            config_digest: *digest,
            state,
            restarts: 0,
            // A new one for each release.
            container_id: self.release.to_string(),
            exit_code: None,
        };
        self.services.iter().map(|(name, digest)| (name.clone(), of(digest))).collect()
    }
}

/// What a device was last given.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) mark: AssignmentMark,
    pub(crate) apps: Vec<App>,
}

/// Reports until dropped.
pub(crate) async fn run(device: Arc<Device>, checks: Duration, mut told: watch::Receiver<Told>) {
    let mut counter = 0;
    let mut committed = Told::default();
    send(&device, &mut counter, &committed, &committed).await;
    loop {
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = async {
                tokio::select! {
                    () = device.checked.notified() => {}
                    () = tokio::time::sleep(jittered(checks)) => {}
                }
            } => {
                send(&device, &mut counter, &committed, &committed).await;
                continue;
            }
        }
        loop {
            tokio::time::sleep(DEBOUNCE).await;
            let wanted = told.borrow_and_update().clone();
            send(&device, &mut counter, &wanted, &committed).await;
            note(&device, &events(&wanted));
            if tokio::time::timeout(DEBOUNCE, told.changed()).await.is_ok_and(|changed| changed.is_ok()) {
                // Something newer came before this one was done.
                continue;
            }
            committed = wanted;
            let names = committed.apps.iter().flat_map(|app| &app.services).map(|(name, _)| name.clone());
            device.mind().services = names.collect();
            send(&device, &mut counter, &committed, &committed).await;
            device.shared.seen.settled.fetch_add(1, Relaxed);
            device.shared.seen.news.notify_waiters();
            note(&device, &done(&committed));
            break;
        }
    }
}

fn note(device: &Device, events: &[Event]) {
    let mut mind = device.mind();
    events.iter().for_each(|event| mind.outbox.note(event));
    drop(mind);
    device.news.notify_one();
}

/// What an agent tells of an update that begins.
fn events(wanted: &Told) -> Vec<Event> {
    let of = |app: &App| {
        let release = [("release", app.release.to_string().into())];
        let stage = [("of", "app".into()), ("release", app.release.to_string().into())];
        [
            event("release", "wanted", "the device was given a release and accepted it", &release),
            event("update", "applying", "the update of the app is at applying", &stage),
        ]
    };
    wanted.apps.iter().flat_map(of).collect()
}

/// And of one that is over.
fn done(now: &Told) -> Vec<Event> {
    let mut events = Vec::new();
    for app in &now.apps {
        for (name, _) in &app.services {
            let message = format!("service {name} runs in a new container");
            events.push(event("service", "started", &message, &[("service", name.to_string().into())]));
        }
        let release = app.release.to_string();
        let stage = [("of", "app".into()), ("release", release.clone().into())];
        events.push(event("update", "ended", "the update of the app has ended", &stage));
        let message = "The release passed its health gate and is what the device falls back to.";
        events.push(event("committed", "committed", message, &[("release", release.into())]));
    }
    events
}

/// Sends until the cloud took it; each try has a number of its own.
async fn send(device: &Device, counter: &mut u64, wanted: &Told, committed: &Told) {
    let seen = &device.shared.seen;
    let mut failures = 0;
    loop {
        *counter += 1;
        let report = report(device, *counter, wanted, committed);
        let sent = match Envelope::sign(&report, &[&device.key]) {
            Ok(signed) => device.call(Call::post("/device/v1/report", signed.to_bytes())).await.map(drop),
            Err(error) => Err(error.into()),
        };
        let Err(error) = sent else { break };
        failures += 1;
        let later = seen.failed(&error).unwrap_or_default();
        tokio::time::sleep(later + backoff(failures)).await;
    }
    seen.reports.fetch_add(1, Relaxed);
}

fn report(device: &Device, counter: u64, wanted: &Told, committed: &Told) -> Report {
    let shared = &device.shared;
    let root = shared.root();
    let settled = wanted == committed;
    let state = if settled { ServiceState::Running } else { ServiceState::Starting };
    let progress = Progress { stage: "applying".to_owned(), done: 0, total: 0, trial_ends: None };
    let time = now();
    let well = CheckReport {
        verdict: Verdict::Ok,
        at: time,
        subject: None,
        detail: String::new(),
        advice: String::new(),
    };
    Report {
        spec: SPEC,
        fleet_id: shared.file.fleet_id,
        device_id: device.id,
        boot_id: boot_id(),
        report_counter: counter,
        root_version: root.version,
        root_sha256: root.sha256(),
        lock: if verify::is_locked(&root) { LockState::Locked } else { LockState::Open },
        assign_epoch: wanted.mark.assign_epoch,
        seq_accepted: wanted.mark.seq,
        seq_applied: committed.mark.seq,
        unfresh: false,
        running: wanted.apps.iter().map(|app| (app.id, app.running(state))).collect(),
        committed: committed.apps.iter().map(|app| (app.id, app.release)).collect(),
        reason: None,
        progress: (!settled).then_some(progress),
        host: None,
        agent: Some(AgentReport::default()),
        health: Some(HealthReport {
            taken_at: time,
            checks: CHECKS.iter().map(|name| ((*name).to_owned(), well.clone())).collect(),
        }),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os_version: "simulated".to_owned(),
        arch: arch().to_owned(),
        time,
        ext: None,
    }
}
