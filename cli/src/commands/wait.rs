//! Waiting until devices run what they were told, of an app, an operating system or an agent.

use std::time::Duration;

use serde_json::Value;

use super::devices::reason;
use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{short, text},
};

/// What a release is a version of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    App,
    /// `os` or `agent`, as the API spells it.
    Host(&'static str),
}

/// What is waited for.
#[derive(Debug)]
pub(super) struct Awaited<'a> {
    pub(super) fleet: &'a str,
    pub(super) line: Line,
    /// Its id; `latest` of an app where that is followed.
    pub(super) release: &'a str,
    /// These devices; with neither these nor a tag all of the fleet.
    pub(super) ids: &'a [String],
    pub(super) tag: Option<&'a str>,
    /// How many were told.
    pub(super) count: u64,
    pub(super) limit: Duration,
}

/// Reasons after which a device does not try by itself any more.
const FINAL: &[&str] = &["rolled_back", "parked", "conflict"];
/// The same of operating systems and agents, where they speak of the release that is waited for.
const FINAL_OF_HOST: &[&str] = &[
    "os_not_managed",
    "os_incompatible",
    "os_no_space",
    "os_probe_failed",
    "os_rolled_back",
    "incompatible",
    "below_floor",
    "release_invalidated",
    "release_revoked",
];

impl Awaited<'_> {
    /// What the device has of the line.
    fn part<'d>(&self, device: &'d Value) -> &'d Value {
        match self.line {
            Line::App => device,
            Line::Host(name) => &device[name],
        }
    }

    fn concerns(&self, device: &Value) -> bool {
        let named = self.ids.is_empty() || self.ids.contains(&text(device, "device_id"));
        let out = matches!(text(device, "state").as_str(), "revoked" | "rejected" | "pending");
        let target = text(&self.part(device)["target"], "release");
        // A device pinned elsewhere is not moved by its fleet.
        named && !out && (self.release == "latest" || target.is_empty() || target == self.release)
    }

    fn is_there(&self, device: &Value) -> bool {
        let part = self.part(device);
        match self.line {
            Line::App => device["on_target"] == true,
            Line::Host("agent") => {
                text(part, "release") == self.release && text(&part["progress"], "stage") != "agent_trial"
            }
            Line::Host(_) => {
                let mut slots = part["slots"].as_object().into_iter().flatten().map(|(_, slot)| slot);
                slots.any(|slot| {
                    slot["booted"] == true
                        && text(slot, "state") == "committed"
                        && text(slot, "release") == self.release
                })
            }
        }
    }

    fn gave_up(&self, device: &Value) -> bool {
        let part = self.part(device);
        let code = text(&part["reason"], "code");
        if self.line == Line::App {
            return FINAL.contains(&code.as_str()) || code.starts_with("E_");
        }
        let of_this = text(&part["reason"], "release") == self.release;
        text(part, "failed") == self.release
            || of_this && (FINAL_OF_HOST.contains(&code.as_str()) || code.starts_with("E_"))
    }

    /// Why it is not there, as its operating system or agent says, else as the device does.
    fn why(&self, device: &Value) -> String {
        let said = reason(self.part(device));
        if said.is_empty() { reason(device) } else { said }
    }
}

/// Waits until the devices run what they were told. A device that gave up ends it.
pub(super) async fn wait(ctx: &Context, api: &Api, awaited: &Awaited<'_>) -> Result<()> {
    let what = format!("deploy {}", short(awaited.release));
    let deadline = tokio::time::Instant::now() + awaited.limit;
    let query = awaited.tag.map(|tag| format!("&tag={}", seg(tag))).unwrap_or_default();
    loop {
        let devices = api.all(&what, &format!("/fleets/{}/devices", seg(awaited.fleet)), &query).await?;
        let told: Vec<&Value> = devices.iter().filter(|d| awaited.concerns(d)).collect();
        let missing: Vec<&&Value> = told.iter().filter(|d| !awaited.is_there(d)).collect();
        if missing.is_empty() {
            if told.is_empty() && awaited.count > 0 {
                let why = "the devices were told something else meanwhile";
                return Err(Failure::new(Kind::Failure, "target_changed", what, why).next("copal status"));
            }
            ctx.out.remark(format!("{} device(s) run it", told.len()));
            return Ok(());
        }
        if let Some(device) = missing.iter().find(|d| awaited.gave_up(d)) {
            let why = format!("device {} gave up: {}", text(device, "name"), awaited.why(device));
            return Err(Failure::new(Kind::Failure, "device_failed", what, why)
                .next(format!("copal device show {}", text(device, "name"))));
        }
        if tokio::time::Instant::now() >= deadline {
            let first = missing
                .first()
                .map(|d| format!("{}: {}", text(d, "name"), awaited.why(d)))
                .unwrap_or_default();
            let why = format!("{} of {} device(s) are not there yet ({first})", missing.len(), told.len());
            return Err(Failure::new(Kind::Timeout, "not_on_target", what, why).next("copal status"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn awaited(line: Line) -> Awaited<'static> {
        Awaited {
            fleet: "porch",
            line,
            release: "new",
            ids: &[],
            tag: None,
            count: 1,
            limit: Duration::from_secs(1),
        }
    }

    fn os(slot: &str, release: &str, more: &Value) -> Value {
        let mut os = json!({
            "target": {"release": "new"},
            "slots": {"a": {"state": slot, "booted": true, "release": release}},
        });
        for (name, value) in more.as_object().unwrap() {
            os[name] = value.clone();
        }
        json!({"state": "accepted", "on_target": false, "os": os})
    }

    #[test]
    fn an_operating_system_is_there_once_it_is_committed() {
        let wait = awaited(Line::Host("os"));
        assert!(wait.is_there(&os("committed", "new", &json!({}))));
        assert!(!wait.is_there(&os("trial", "new", &json!({}))));
        assert!(!wait.is_there(&os("committed", "old", &json!({}))));
        assert!(!wait.is_there(&json!({"os": null})));
        let agent = awaited(Line::Host("agent"));
        assert!(agent.is_there(&json!({"agent": {"release": "new", "progress": null}})));
        assert!(!agent.is_there(&json!({"agent": {"release": "new", "progress": {"stage": "agent_trial"}}})));
    }

    #[test]
    fn only_what_is_said_of_this_release_ends_the_wait() {
        let wait = awaited(Line::Host("os"));
        let said =
            |code: &str, of: &str| os("committed", "old", &json!({"reason": {"code": code, "release": of}}));
        assert!(wait.gave_up(&said("os_incompatible", "new")));
        assert!(wait.gave_up(&said("E_SIG_MISSING", "new")));
        assert!(!wait.gave_up(&said("os_incompatible", "old")));
        assert!(!wait.gave_up(&said("os_waiting_window", "new")));
        assert!(wait.gave_up(&os("committed", "old", &json!({"failed": "new"}))));
        assert!(!wait.gave_up(&os("committed", "old", &json!({"failed": "older"}))));
    }

    #[test]
    fn a_device_with_another_target_is_not_waited_for() {
        let wait = awaited(Line::Host("os"));
        assert!(wait.concerns(&os("committed", "old", &json!({}))));
        assert!(!wait.concerns(&os("committed", "old", &json!({"target": {"release": "other"}}))));
        assert!(wait.concerns(&json!({"state": "accepted", "os": {"target": null}})));
        assert!(!wait.concerns(&json!({"state": "revoked", "os": {"target": null}})));
    }
}
