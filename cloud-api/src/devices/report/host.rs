//! What a report says of the operating system and of the agent, within bounds, and what of it is worth remembering. Pure.

use std::collections::BTreeMap;

use copal_protocol::documents::{AgentReport, HostReport, SlotReport, SlotState};
use serde_json::json;

use super::{changed, clean as clean_reason, clean_progress, rows, short};

/// The most slots that are kept; there are two.
const MAX_SLOTS: usize = 4;

/// An operating system's report within bounds, whatever the device sent.
pub(super) fn clean(host: &HostReport) -> HostReport {
    let slots: BTreeMap<String, SlotReport> = host
        .slots
        .iter()
        .take(MAX_SLOTS)
        .map(|(name, slot)| {
            (short(name, 8), SlotReport { version: short(&slot.version, 100), ..slot.clone() })
        })
        .collect();
    HostReport {
        backend: short(&host.backend, 32),
        slots,
        version: short(&host.version, 100),
        reason: host.reason.as_ref().map(clean_reason),
        progress: host.progress.as_ref().map(clean_progress),
        ..host.clone()
    }
}

/// As [`clean`], of the agent.
pub(super) fn clean_agent(agent: &AgentReport) -> AgentReport {
    AgentReport {
        reason: agent.reason.as_ref().map(clean_reason),
        progress: agent.progress.as_ref().map(clean_progress),
        ..agent.clone()
    }
}

/// The operating system's release that runs and is no trial: what a next one must not go below.
pub(super) fn runs_os(host: &HostReport) -> Option<String> {
    let on_trial = host.slots.values().any(|slot| slot.booted && slot.state != SlotState::Committed);
    host.release.filter(|_| !on_trial).map(|r| r.to_string())
}

/// The agent's release that runs and is no trial.
pub(super) fn runs_agent(agent: &AgentReport) -> Option<String> {
    let on_trial = agent.progress.as_ref().is_some_and(|p| p.stage == "agent_trial");
    agent.release.filter(|_| !on_trial).map(|r| r.to_string())
}

/// What changed since the last report. Progress is not worth remembering.
pub(super) fn events(
    old: &rows::DeviceRow,
    host: Option<&HostReport>,
    agent: Option<&AgentReport>,
) -> Vec<rows::NewEvent> {
    let old_host: Option<HostReport> = rows::stored(old.host_report.as_deref());
    let old_agent: Option<AgentReport> = rows::stored(old.agent_report.as_deref());
    let mut events = Vec::new();
    if let Some(host) = host {
        events.extend(changed(
            old_host.as_ref().and_then(|h| h.reason.as_ref()),
            host.reason.as_ref(),
            "Nothing is in the way of the operating system any more.",
        ));
        let now = runs_os(host);
        if now.is_some() && now != old.running_os {
            events.push(rows::NewEvent {
                kind: "os",
                code: "os_committed".to_owned(),
                message: format!("The operating system is {} and proved itself.", host.version),
                data: json!({"release": now, "before": old.running_os}),
            });
        }
    }
    if let Some(agent) = agent {
        events.extend(changed(
            old_agent.as_ref().and_then(|a| a.reason.as_ref()),
            agent.reason.as_ref(),
            "Nothing is in the way of the agent any more.",
        ));
    }
    events
}
