//! From what the tasks say of themselves to a Report. Pure.

use std::collections::BTreeMap;

use copal_protocol::{
    diagnosis::HealthReport,
    documents::{MAX_TAIL_LINE, Progress, Reason, Report, SPEC, bound_tail},
    ids::FleetId,
    telemetry::Budget,
};

use crate::{
    apply::status::{AgentStatus, weight},
    os::OsStatus,
    selfupdate::SelfStatus,
    target::Condition,
};

/// Bytes of a reason's sentence.
const MESSAGE: usize = 1000;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct About {
    /// The fleet.
    pub fleet_id: FleetId,
    /// 32 hex digits.
    pub boot_id: String,
    /// os-release's PRETTY_NAME.
    pub os_version: String,
    /// OCI architecture.
    pub arch: String,
}

impl About {
    /// Reads what this system says of itself.
    #[must_use]
    pub fn this_system(fleet_id: FleetId) -> Self {
        let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let os_version = os_release
            .lines()
            .find_map(|l| l.strip_prefix("PRETTY_NAME="))
            .map(|v| v.trim_matches('"').chars().filter(|c| !c.is_control()).take(128).collect())
            .unwrap_or_default();
        Self {
            fleet_id,
            boot_id: crate::clock::boot_id(),
            os_version,
            arch: crate::settings::arch().to_owned(),
        }
    }
}

/// What the tasks say of themselves at one moment.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The apps, from the supervisor.
    pub status: AgentStatus,
    /// The operating system, from its updater.
    pub os: OsStatus,
    /// The agent, from its own updater.
    pub agent: SelfStatus,
    /// The way to the cloud, from the synchronisation.
    pub condition: Condition,
    /// How many bytes the channel may take and took, where that is bounded.
    pub budget: Option<Budget>,
    /// What health checks last found.
    pub health: Option<HealthReport>,
}

impl Heard {
    /// The one reason shown. What was refused speaks of the newest target and so comes before what an older one does; an
    /// absent engine before both. Where apps and the system beneath both have something to say, the more telling of the
    /// two, apps at a tie; which agent runs them matters least.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let of_host = self.os.reason.as_ref().or_else(|| self.os.host.as_ref()?.reason.as_ref());
        let own = match (self.status.telling(), of_host) {
            (Some(apps), Some(host)) if weight(&host.code) > weight(&apps.code) => Some(host),
            (apps, host) => apps.or(host).or(self.agent.report.reason.as_ref()),
        };
        match (own, self.condition.refusal()) {
            (Some(own), _) if own.code == "engine_absent" => Some(own),
            (_, Some(refusal)) => Some(refusal),
            (own, None) => own,
        }
        .cloned()
        .map(bounded)
    }

    /// How far the apps' update is, or else the system's, or else the agent's.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        let os = || self.os.host.as_ref()?.progress.clone();
        self.status.progress().or_else(os).or_else(|| self.agent.report.progress.clone())
    }

    /// (assign_epoch, seq) of the newest target whose every app, operating system and agent run, committed.
    #[must_use]
    pub fn whole(&self) -> Option<(u64, u64)> {
        Some(self.status.applied?.min(self.os.applied?).min(self.agent.applied?))
    }
}

fn bounded(mut reason: Reason) -> Reason {
    truncate(&mut reason.message, MESSAGE);
    for line in &mut reason.log_tail {
        truncate(line, MAX_TAIL_LINE);
    }
    bound_tail(&mut reason.log_tail);
    reason
}

fn truncate(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The Report of this moment; `None` before enrolment.
#[must_use]
pub fn report(about: &About, heard: &Heard, counter: u64, now: u64) -> Option<Report> {
    let Heard { status, os, agent, condition, budget, health } = heard;
    let device_id = condition.device_id?;
    let running: BTreeMap<_, _> = status
        .apps
        .iter()
        .filter(|(_, a)| !a.running.is_empty())
        .map(|(id, a)| (*id, a.running.clone()))
        .collect();
    let committed = status.apps.iter().filter_map(|(id, a)| Some((*id, a.committed?.1))).collect();
    Some(Report {
        spec: SPEC,
        fleet_id: about.fleet_id,
        device_id,
        boot_id: about.boot_id.clone(),
        report_counter: counter,
        root_version: condition.root_version,
        root_sha256: condition.root_sha256,
        lock: condition.lock,
        assign_epoch: condition.mark.assign_epoch,
        seq_accepted: condition.mark.seq,
        seq_applied: heard.whole().map_or(0, |(_, seq)| seq),
        unfresh: !condition.fresh && condition.offline_allowed,
        running,
        committed,
        reason: heard.reason(),
        progress: heard.progress(),
        host: os.host.clone(),
        agent: Some(agent.report.clone()),
        health: health.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os_version: about.os_version.clone(),
        arch: about.arch.clone(),
        time: now,
        ext: budget.map(|budget| serde_json::json!({ "budget": budget })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::status::reason;

    #[test]
    fn log_tails_are_cut_to_what_a_report_may_carry() {
        let mut long = reason("crash_loop", "é".repeat(2000));
        long.log_tail = (0..80).map(|n| format!("{n} {}", "ü".repeat(400))).collect();
        let cut = bounded(long.clone());
        let bytes: usize = cut.log_tail.iter().map(String::len).sum();
        assert!((24_000..=25_000).contains(&bytes), "{bytes}");
        assert!(cut.log_tail[0].starts_with("30 "), "the last lines stay");
        assert!(cut.log_tail.iter().all(|l| l.len() <= 500));
        assert!(cut.message.len() <= 1000);
        long.log_tail =
            (0..300).map(|n| format!("{n} of usual length, as most lines of services are")).collect();
        let cut = bounded(long);
        assert_eq!(cut.log_tail.len(), 200);
        assert!(cut.log_tail[0].starts_with("100 "));
    }
}
