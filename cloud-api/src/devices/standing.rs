//! Whether a device is on its target, and if not, the one reason why. Pure.

use copal_protocol::{device_api::DeviceState, documents::Reason};

use super::rows::reason;

/// Reasons that only say what a device is doing, or was asked to: from one that fell silent they are stale.
const PASSING: &[&str] = &[
    "downloading",
    "starting",
    "trial",
    "locked",
    "waiting_dependency",
    "waiting_not_before",
    "engine_absent",
    "not_fresh",
    "paused",
    "stopped",
    "no_assignment",
    "os_downloading",
    "os_verifying",
    "os_waiting",
    "os_waiting_lock",
    "os_waiting_window",
    "os_trial",
    "agent_downloading",
    "agent_trial",
];

/// Reasons of the cloud: nothing failed on the device.
const CLOUD: &[&str] = &[
    "pending",
    "rejected",
    "revoked",
    "clone_suspected",
    "never_seen",
    "offline",
    "metered",
    "awaiting_signature",
    "no_release",
    "updating",
];

/// What is known of a device.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) state: DeviceState,
    pub(crate) clone_suspected: bool,
    /// Unix seconds.
    pub(crate) last_seen: Option<u64>,
    pub(crate) online: bool,
    /// It is away by its own word, sparing its bytes.
    pub(crate) sparing: bool,
    /// What it was given.
    pub(crate) assigned: Option<Assigned<'a>>,
    /// Epoch and applied seq of its newest report.
    pub(crate) reported: (u64, u64),
    pub(crate) committed: Option<&'a str>,
    pub(crate) said: Option<Reason>,
    pub(crate) held_back: Option<Reason>,
    /// Version of a newer release that waits for the owner.
    pub(crate) awaiting: Option<&'a str>,
    /// The operating system, then the agent.
    pub(crate) host: [HostFacts<'a>; 2],
}

/// What a device was given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assigned<'a> {
    /// The app's release; absent where there is only an operating system or agent for it.
    pub(crate) release: Option<&'a str>,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

/// What is known of a device's operating system, or of its agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostFacts<'a> {
    /// The release it was given.
    pub(crate) assigned: Option<&'a str>,
    /// The release that runs and is no trial.
    pub(crate) running: Option<&'a str>,
    pub(crate) said: Option<Reason>,
    pub(crate) held_back: Option<Reason>,
}

impl HostFacts<'_> {
    fn applied(&self) -> bool {
        self.assigned.is_none() || (self.assigned == self.running && self.said.is_none())
    }
}

/// Where a device stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) on_target: bool,
    pub(crate) reason: Option<Reason>,
}

impl Standing {
    /// Whether a person should look: something failed, rather than being under way.
    pub(crate) fn failed(&self) -> bool {
        self.reason.as_ref().is_some_and(|r| is_failure(&r.code))
    }
}

/// Whether a reason tells of something that went wrong, rather than of something under way or of what a person asked for.
pub(crate) fn is_failure(code: &str) -> bool {
    match code {
        // The first is of the cloud, the second passes; both want a person meanwhile.
        "clone_suspected" | "engine_absent" => true,
        "os_cancelled" => false,
        _ => !(PASSING.contains(&code) || CLOUD.contains(&code)),
    }
}

/// Decides.
pub(crate) fn standing(facts: &Facts<'_>) -> Standing {
    let off = |reason: Reason| Standing { on_target: false, reason: Some(reason) };
    match facts.state {
        DeviceState::Pending => return off(reason("pending", "The device waits for a person to accept it.")),
        DeviceState::Rejected => {
            return off(reason("rejected", "A person decided that this device may not join."));
        }
        DeviceState::Revoked => return off(reason("revoked", "The device was revoked.")),
        DeviceState::Accepted | DeviceState::Preauthorised => {}
    }
    if facts.clone_suspected {
        return off(reason(
            "clone_suspected",
            "Two holders of this device's key were seen. Neither gets anything new until a person decides; accept the device to go on.",
        ));
    }
    if facts.last_seen.is_none() {
        return off(reason("never_seen", "The device enrolled but never logged in."));
    }
    let held_back = facts.host.iter().map(|h| &h.held_back);
    if let Some(held_back) = [&facts.held_back].into_iter().chain(held_back).find_map(Option::as_ref) {
        return off(held_back.clone());
    }
    let awaiting = |version: &str| {
        reason(
            "awaiting_signature",
            format!("Release {version} waits for the owner's signature: `copal release sign`."),
        )
    };
    let Some(assigned) = facts.assigned else {
        return off(match facts.awaiting {
            Some(version) => awaiting(version),
            None => reason("no_release", "The fleet has no release yet: push one."),
        });
    };
    let applied = facts.reported == (assigned.epoch, assigned.seq)
        && assigned.release.is_none_or(|release| facts.committed == Some(release))
        && facts.said.is_none()
        && facts.host.iter().all(HostFacts::applied);
    if applied {
        return match facts.awaiting {
            Some(version) => off(awaiting(version)),
            None => Standing { on_target: true, reason: None },
        };
    }
    // What failed comes before what is under way; the app before what it runs on.
    let given_since = facts.reported != (assigned.epoch, assigned.seq);
    let app = facts
        .said
        .as_ref()
        .filter(|said| !(given_since && assigned.release.is_some_and(|release| of_another(said, release))));
    let host = facts.host.iter().filter_map(|host| {
        let of_before = |said: &&Reason| given_since && host.assigned.is_some_and(|id| of_another(said, id));
        host.said.as_ref().filter(|said| !of_before(said))
    });
    let said: Vec<&Reason> = app.into_iter().chain(host).collect();
    let failed = said.iter().find(|r| !PASSING.contains(&r.code.as_str()));
    if let Some(said) = failed.or_else(|| said.first().filter(|_| facts.online)) {
        return off((*said).clone());
    }
    if !facts.online && facts.sparing {
        return off(reason(
            "metered",
            "The device spares its budget of bytes and has no channel now; it updates when it asks again.",
        ));
    }
    if !facts.online {
        return off(reason("offline", "The device is offline; it updates when it is back."));
    }
    off(reason("updating", "The device was given the release and has not yet said that it runs it."))
}

/// Whether a device's word is about how another release fared than the one it was given since. A refusal (`E_…`) may be of
/// a document it could not read, and names what it runs.
fn of_another(said: &Reason, release: &str) -> bool {
    let lasting = !PASSING.contains(&said.code.as_str()) && !said.code.starts_with("E_");
    lasting && said.release.is_some_and(|of| of.to_string() != release)
}

#[cfg(test)]
mod tests {
    use copal_protocol::ids::Sha256Hex;

    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
            state: DeviceState::Accepted,
            clone_suspected: false,
            last_seen: Some(1),
            online: true,
            sparing: false,
            assigned: Some(Assigned { release: Some("r1"), epoch: 1, seq: 7 }),
            reported: (1, 7),
            committed: Some("r1"),
            said: None,
            held_back: None,
            awaiting: None,
            host: [HostFacts::default(), HostFacts::default()],
        }
    }

    fn code(facts: &Facts<'_>) -> String {
        standing(facts).reason.map(|r| r.code).unwrap_or_default()
    }

    #[test]
    fn a_device_is_on_target_when_it_committed_exactly_what_it_was_given() {
        assert_eq!(standing(&facts()), Standing { on_target: true, reason: None });
        assert_eq!(
            standing(&Facts { online: false, ..facts() }).reason,
            None,
            "offline, but as it should be"
        );
        assert_eq!(code(&Facts { reported: (1, 6), ..facts() }), "updating");
        assert_eq!(code(&Facts { reported: (2, 7), ..facts() }), "updating", "another epoch");
        assert_eq!(code(&Facts { committed: Some("r0"), ..facts() }), "updating");
        let away = Facts { committed: None, online: false, ..facts() };
        assert_eq!(code(&away), "offline");
        assert_eq!(code(&Facts { sparing: true, ..away }), "metered");
    }

    #[test]
    fn one_reason_the_most_telling() {
        let said = |code: &str| Some(reason(code, ""));
        assert_eq!(code(&Facts { said: said("rolled_back"), ..facts() }), "rolled_back");
        assert_eq!(code(&Facts { said: said("rolled_back"), online: false, ..facts() }), "rolled_back");
        assert_eq!(code(&Facts { said: said("downloading"), ..facts() }), "downloading");
        assert_eq!(code(&Facts { said: said("downloading"), online: false, ..facts() }), "offline");
        assert_eq!(
            code(&Facts { held_back: said("incompatible"), said: said("trial"), ..facts() }),
            "incompatible"
        );
        assert_eq!(code(&Facts { last_seen: None, ..facts() }), "never_seen");
        assert_eq!(code(&Facts { clone_suspected: true, said: said("trial"), ..facts() }), "clone_suspected");
        assert_eq!(code(&Facts { state: DeviceState::Revoked, clone_suspected: true, ..facts() }), "revoked");
        assert_eq!(code(&Facts { awaiting: Some("1.2.3"), ..facts() }), "awaiting_signature");
        assert_eq!(code(&Facts { assigned: None, committed: None, ..facts() }), "no_release");
    }

    #[test]
    fn what_was_said_of_the_release_before_is_not_said_of_the_one_given_since() {
        let (old, new) = (Sha256Hex::of(b"old"), Sha256Hex::of(b"new").to_string());
        let said = |code: &str| Some(Reason { release: Some(old), ..reason(code, "") });
        let given =
            Facts { assigned: Some(Assigned { release: Some(new.as_str()), epoch: 1, seq: 8 }), ..facts() };
        assert_eq!(code(&Facts { said: said("rolled_back"), ..given.clone() }), "updating");
        assert_eq!(code(&Facts { said: said("rolled_back"), online: false, ..given.clone() }), "offline");
        assert_eq!(code(&Facts { said: said("E_SIG_MISSING"), ..given.clone() }), "E_SIG_MISSING");
        assert_eq!(code(&Facts { said: said("engine_absent"), ..given.clone() }), "engine_absent");
        assert_eq!(code(&Facts { said: said("conflict"), reported: (1, 8), ..given }), "conflict");
    }

    #[test]
    fn an_operating_system_counts_too_and_what_failed_comes_first() {
        let os = |said: Option<&str>, running: &'static str| HostFacts {
            assigned: Some("o2"),
            running: Some(running),
            said: said.map(|code| reason(code, "")),
            held_back: None,
        };
        let with = |os: HostFacts<'static>| Facts { host: [os, HostFacts::default()], ..facts() };
        assert_eq!(code(&with(os(None, "o2"))), "");
        assert_eq!(code(&with(os(None, "o1"))), "updating");
        assert_eq!(code(&with(os(Some("os_trial"), "o1"))), "os_trial");
        assert_eq!(code(&Facts { online: false, ..with(os(Some("os_trial"), "o1")) }), "offline");
        let both = Facts { said: Some(reason("downloading", "")), ..with(os(Some("os_unhealthy"), "o1")) };
        assert_eq!(code(&both), "os_unhealthy");
        let held = HostFacts { held_back: Some(reason("incompatible", "")), ..HostFacts::default() };
        assert_eq!(code(&with(held)), "incompatible");
        let only_os = Assigned { release: None, epoch: 1, seq: 7 };
        let alone = Facts { assigned: Some(only_os), committed: None, ..with(os(None, "o2")) };
        assert_eq!(code(&alone), "", "a device without an app is on target with its operating system");
    }

    #[test]
    fn what_is_under_way_is_no_failure() {
        let failed = |code: &str| Standing { on_target: false, reason: Some(reason(code, "")) }.failed();
        for code in [
            "rolled_back",
            "parked",
            "E_SIG_MISSING",
            "incompatible",
            "clone_suspected",
            "engine_absent",
            "no_space",
            "conflict",
            "os_unhealthy",
            "agent_parked",
        ] {
            assert!(failed(code), "{code}");
        }
        let under_way = ["os_cancelled", "never_seen"];
        for code in PASSING.iter().chain(CLOUD).chain(&under_way) {
            let wants_a_person = ["clone_suspected", "engine_absent"].contains(code);
            assert_eq!(failed(code), wants_a_person, "{code}");
        }
    }
}
