//! What templates show: the API's own types, with the word and the tone a person reads first.

use copal_protocol::documents::{ServiceState, SlotState};

use crate::{
    api::{builds, device_views, devices, host_releases, releases},
    devices::standing::is_failure,
};

/// A word and how it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) word: &'static str,
    /// `good`, `busy`, `bad` or nothing: a class of the style sheet.
    pub(super) tone: &'static str,
}

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) fleet: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) status: Status,
    pub(super) online: bool,
    pub(super) last_seen: Option<u64>,
    pub(super) tags: Vec<String>,
    pub(super) committed: Option<String>,
    pub(super) target: Option<String>,
    pub(super) reason: Option<device_views::Reason>,
    pub(super) trial_ends: Option<u64>,
    pub(super) download: Option<device_views::Progress>,
    pub(super) device_type: String,
    pub(super) arch: String,
    pub(super) agent_version: String,
    pub(super) os_version: String,
    pub(super) root_version: Option<u64>,
    pub(super) public_key: String,
    pub(super) os: Option<Os>,
    pub(super) agent: Option<Part>,
}

/// The operating system of a device.
#[derive(Debug)]
pub(super) struct Os {
    pub(super) backend: String,
    pub(super) version: String,
    pub(super) slots: Vec<Slot>,
    pub(super) part: Part,
}

/// A slot of it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) tone: &'static str,
    pub(super) booted: bool,
    pub(super) version: String,
    pub(super) release: Option<String>,
}

/// Where an operating system or agent is on its way to.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) target: Option<device_views::HostTarget>,
    pub(super) reason: Option<device_views::Reason>,
    pub(super) stage: String,
    pub(super) progress: Option<device_views::Progress>,
    pub(super) failed: Option<String>,
}

impl Part {
    fn new(
        target: Option<device_views::HostTarget>,
        reason: Option<device_views::Reason>,
        progress: Option<device_views::Progress>,
        failed: Option<String>,
    ) -> Self {
        let stage = progress.as_ref().map_or("", |p| stage_word(&p.stage)).to_owned();
        Self { target, reason, stage, progress: progress.filter(|p| p.total > 0), failed }
    }
}

impl From<device_views::Os> for Os {
    fn from(os: device_views::Os) -> Self {
        let slots = os.slots.into_iter().map(|(name, slot)| {
            let (state, tone) = slot_word(slot.state);
            Slot {
                name,
                state,
                tone,
                booted: slot.booted,
                version: slot.version.unwrap_or_else(|| "not known".to_owned()),
                release: slot.release,
            }
        });
        Self {
            slots: slots.collect(),
            backend: os.backend.unwrap_or_else(|| UNKNOWN.to_owned()),
            version: os.version.unwrap_or_else(|| UNKNOWN.to_owned()),
            part: Part::new(os.target, os.reason, os.progress, os.failed),
        }
    }
}

const fn slot_word(state: SlotState) -> (&'static str, &'static str) {
    match state {
        SlotState::Committed => ("committed", "good"),
        SlotState::Ready => ("ready", ""),
        SlotState::Trial => ("on trial", "busy"),
        SlotState::Installing => ("installing", "busy"),
        SlotState::Empty => ("empty", ""),
        SlotState::Bad => ("failed", "bad"),
    }
}

/// A stage in words.
fn stage_word(stage: &str) -> &'static str {
    match stage {
        "os_downloading" | "agent_downloading" => "downloading",
        "os_verifying" => "reading back what was written",
        "os_waiting" => "waiting to reboot",
        "os_trial" | "agent_trial" => "on trial",
        _ => "under way",
    }
}

/// A service of a device: what runs beside what should.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) tone: &'static str,
    pub(super) current: String,
    pub(super) desired: String,
    pub(super) same: bool,
    pub(super) restarts: u64,
    pub(super) exit_code: Option<i64>,
}

const UNKNOWN: &str = "not told yet";

impl From<device_views::Device> for Device {
    fn from(device: device_views::Device) -> Self {
        let status = status(&device);
        Self {
            status,
            id: device.device_id,
            fleet: device.fleet,
            name: copal_protocol::text::inert(&device.name),
            state: device.state,
            online: device.online,
            last_seen: device.last_seen,
            tags: device.tags.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
            committed: device.committed_release,
            target: device.target.and_then(|t| t.release),
            trial_ends: device.progress.as_ref().filter(|p| p.stage == "trial").and_then(|p| p.trial_ends),
            download: device.progress.filter(|p| p.stage == "downloading" && p.total > 0),
            reason: device.reason,
            device_type: device.device_type,
            arch: device.arch,
            agent_version: device.agent_version.unwrap_or_else(|| UNKNOWN.to_owned()),
            os_version: device.os_version.unwrap_or_else(|| UNKNOWN.to_owned()),
            root_version: device.root_version,
            public_key: device.public_key,
            os: device.os.map(Into::into),
            agent: device.agent.map(|a| Part::new(a.target, a.reason, a.progress, a.failed)),
        }
    }
}

/// The one word for a device: what a person should look at comes first.
fn status(device: &device_views::Device) -> Status {
    let status = |word, tone| Status { word, tone };
    match device.state.as_str() {
        "revoked" => return status("revoked", "bad"),
        "rejected" => return status("rejected", "bad"),
        "pending" | "preauthorised" => return status("waits to be let in", "busy"),
        _ if device.clone_suspected => return status("clone suspected", "bad"),
        _ => {}
    }
    let code = device.reason.as_ref().map_or("", |r| r.code.as_str());
    if device.reason.as_ref().is_some_and(|r| is_failure(&r.code)) {
        return status("failed", "bad");
    }
    match code {
        _ if device.next_poll_by.is_some() => status("metered", ""),
        _ if !device.online => status(if device.last_seen.is_some() { "offline" } else { "never seen" }, ""),
        _ if device.on_target => status("on target", "good"),
        "trial" | "os_trial" | "agent_trial" => status("on trial", "busy"),
        "downloading" | "os_downloading" | "os_verifying" | "agent_downloading" => {
            status("downloading", "busy")
        }
        "os_waiting" | "os_waiting_lock" | "os_waiting_window" => status("waits to reboot", "busy"),
        "locked" | "paused" | "awaiting_signature" | "waiting_not_before" => status("waiting", "busy"),
        _ => status("updating", "busy"),
    }
}

/// The services of a device, of all its apps.
pub(super) fn services(device: &device_views::Device) -> Vec<Service> {
    device
        .running
        .values()
        .flatten()
        .map(|(name, found)| Service {
            name: name.clone(),
            state: state_word(found.state),
            tone: state_tone(found.state),
            current: found.config_digest.clone().unwrap_or_default(),
            desired: found.desired.clone().unwrap_or_default(),
            same: found.config_digest == found.desired,
            restarts: found.restarts,
            exit_code: found.exit_code,
        })
        .collect()
}

const fn state_word(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Absent => "absent",
        ServiceState::Downloading => "downloading",
        ServiceState::Created => "created",
        ServiceState::Starting => "starting",
        ServiceState::Running => "running",
        ServiceState::Healthy => "healthy",
        ServiceState::Unhealthy => "unhealthy",
        ServiceState::Restarting => "restarting",
        ServiceState::Completed => "completed",
        ServiceState::Exited => "exited",
    }
}

const fn state_tone(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Running | ServiceState::Healthy | ServiceState::Completed => "good",
        ServiceState::Unhealthy | ServiceState::Restarting | ServiceState::Exited => "bad",
        ServiceState::Absent => "",
        ServiceState::Downloading | ServiceState::Created | ServiceState::Starting => "busy",
    }
}

/// Something that happened to a device.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: u64,
    pub(super) code: String,
    pub(super) message: String,
}

impl From<devices::DeviceEvent> for Event {
    fn from(event: devices::DeviceEvent) -> Self {
        Self { at: event.at, code: event.code, message: event.message }
    }
}

/// A release.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) id: String,
    pub(super) fleet: String,
    pub(super) version: String,
    pub(super) counter: u64,
    pub(super) commit: String,
    pub(super) branch: String,
    pub(super) status: &'static str,
    pub(super) tone: &'static str,
    pub(super) note: String,
    pub(super) size: u64,
    pub(super) devices_on: u64,
    pub(super) signed_by: String,
    pub(super) at: u64,
    pub(super) build: Option<String>,
    pub(super) images: Vec<Image>,
}

/// An image of a release.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) service: String,
    pub(super) platform: String,
    pub(super) config_digest: String,
    pub(super) size: u64,
}

impl From<releases::Release> for Release {
    fn from(release: releases::Release) -> Self {
        use crate::releases::ReleaseStatus as S;
        let (status, tone) = match release.status {
            S::Built => ("built", "busy"),
            S::Draft => ("draft", ""),
            S::AwaitingSignature => ("awaiting_signature", "busy"),
            S::Final => ("final", "good"),
            S::Invalidated => ("invalidated", "bad"),
        };
        let signed_by = signers(&release.signed_by);
        let images = release.services.iter().flat_map(|(service, of)| {
            of.images.iter().map(|(platform, image)| Image {
                service: service.clone(),
                platform: platform.clone(),
                config_digest: image.config_digest.clone(),
                size: image.size,
            })
        });
        Self {
            images: images.collect(),
            status,
            tone,
            signed_by,
            id: release.id,
            fleet: release.fleet,
            version: release.version,
            counter: release.counter,
            commit: release.commit,
            branch: release.branch.unwrap_or_default(),
            note: release.note,
            size: release.size,
            devices_on: release.devices_on,
            at: release.created_at,
            build: release.build_id,
        }
    }
}

/// An operating system or agent.
#[derive(Debug)]
pub(super) struct System {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) version: String,
    pub(super) status: Status,
    /// Why it was withdrawn.
    pub(super) withdrawn: Option<String>,
    pub(super) made_for: String,
    pub(super) given: u64,
    pub(super) on: u64,
    pub(super) size: u64,
    pub(super) signed_by: String,
    pub(super) at: u64,
}

impl From<host_releases::HostRelease> for System {
    fn from(release: host_releases::HostRelease) -> Self {
        let made_for = if release.device_types.is_empty() { &release.arch } else { &release.device_types };
        let (word, tone) = match () {
            () if release.withdrawn.is_some() => ("withdrawn", "bad"),
            () if release.is_target => ("the fleet's target", "good"),
            () if release.devices_given > 0 => ("some devices", "busy"),
            () => ("", ""),
        };
        Self {
            kind: release.line.title(),
            made_for: made_for.join(", "),
            status: Status { word, tone },
            signed_by: signers(&release.signed_by),
            id: release.id,
            version: release.version,
            withdrawn: release.withdrawn,
            given: release.devices_given,
            on: release.devices_on,
            size: release.size,
            at: release.created_at,
        }
    }
}

fn signers(signatures: &[releases::Signature]) -> String {
    let roles: Vec<&str> = signatures.iter().map(|s| s.role.as_str()).collect();
    if roles.is_empty() { "nobody yet".to_owned() } else { roles.join(", ") }
}

/// A build.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) id: String,
    pub(super) commit: String,
    pub(super) branch: String,
    pub(super) status: &'static str,
    pub(super) tone: &'static str,
    pub(super) error: Option<String>,
    pub(super) release: Option<String>,
    pub(super) at: u64,
    pub(super) is_running: bool,
}

impl From<builds::Build> for Build {
    fn from(build: builds::Build) -> Self {
        let tone = match build.status.as_str() {
            "succeeded" => "good",
            "queued" | "running" => "busy",
            "failed" => "bad",
            _ => "",
        };
        Self {
            is_running: tone == "busy",
            tone,
            id: build.id,
            commit: build.commit.unwrap_or(build.source),
            branch: build.branch,
            status: build.status.as_str(),
            error: build.error,
            release: build.release,
            at: build.started_at.unwrap_or(build.created_at),
        }
    }
}
