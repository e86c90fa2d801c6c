//! What happened, from how things stood and how they stand. Pure. What is first seen is no event: after a restart of the agent
//! everything is, and it was told before.

use copal_protocol::{
    documents::{RunningService, ServiceState},
    ids::{Name, Sha256Hex},
};

use super::Note;
use crate::{
    apply::status::{AgentStatus, AppStatus},
    report::Heard,
};

/// What is worth telling.
#[must_use]
pub(super) fn changes(before: &Heard, now: &Heard) -> Vec<Note> {
    let mut notes = apps(&before.status, &now.status);
    let stage = |of: &Option<copal_protocol::documents::Progress>| of.as_ref().map(|p| p.stage.clone());
    let host = |heard: &Heard| heard.os.host.as_ref().and_then(|h| stage(&h.progress));
    notes.extend(update("os", host(before).as_deref(), host(now).as_deref(), None));
    let agent = |heard: &Heard| stage(&heard.agent.report.progress);
    notes.extend(update("agent", agent(before).as_deref(), agent(now).as_deref(), None));
    notes
}

fn apps(before: &AgentStatus, now: &AgentStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    for (id, now) in &now.apps {
        let Some(before) = before.apps.get(id) else { continue };
        notes.extend(app(before, now));
    }
    for (_, gone) in before.apps.iter().filter(|(id, _)| !now.apps.contains_key(*id)) {
        notes.extend(gone.running.iter().filter(|(_, s)| is_up(s.state)).map(|(name, _)| ended(name, None)));
    }
    notes
}

fn app(before: &AppStatus, now: &AppStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    let release = |of: &Option<(Sha256Hex, Sha256Hex)>| of.as_ref().map(|(_, release)| release.to_string());
    // Until the target is known what is committed is not, either: at the agent's start both are found again.
    let known = before.target.is_some();
    if let Some(target) = release(&now.target).filter(|_| known)
        && release(&before.target).as_ref() != Some(&target)
    {
        let note = Note::new("release", "wanted", "the device was given a release and accepted it");
        notes.push(note.with("release", target).with("before", release(&before.target)));
    }
    for (name, running) in &now.running {
        let old = before.running.get(name);
        notes.extend(service(name, old, running));
    }
    for (name, _) in before.running.iter().filter(|(n, s)| is_up(s.state) && !now.running.contains_key(*n)) {
        notes.push(ended(name, None));
    }
    let stage = |of: &AppStatus| of.progress.as_ref().map(|p| p.stage.clone());
    notes.extend(update("app", stage(before).as_deref(), stage(now).as_deref(), release(&now.target)));
    let code = |of: &AppStatus| of.reason.as_ref().map(|r| r.code.clone());
    for undone in ["rolled_back", "parked"] {
        if code(now).as_deref() == Some(undone)
            && code(before).as_deref() != Some(undone)
            && let Some(reason) = &now.reason
        {
            let of = reason.release.map(|r| r.to_string());
            notes.push(Note::new("release", undone, &reason.message).with("release", of));
        }
    }
    if let Some(committed) = release(&now.committed).filter(|_| known)
        && release(&before.committed).as_ref() != Some(&committed)
    {
        let message = "The release passed its health gate and is what the device falls back to.";
        let note = Note::new("committed", "committed", message);
        notes.push(note.with("release", committed).with("before", release(&before.committed)));
    }
    notes
}

const fn is_up(state: ServiceState) -> bool {
    matches!(
        state,
        ServiceState::Starting | ServiceState::Running | ServiceState::Healthy | ServiceState::Unhealthy
    )
}

fn ended(name: &Name, exit_code: Option<i64>) -> Note {
    let (code, message) = match exit_code {
        Some(exit) => ("exited", format!("service {name} ended with exit code {exit}")),
        None => ("stopped", format!("service {name} was stopped")),
    };
    Note::new("service", code, &message).with("service", name.to_string()).with("exit_code", exit_code)
}

fn service(name: &Name, before: Option<&RunningService>, now: &RunningService) -> Vec<Note> {
    let mut notes = Vec::new();
    let note = |code: &str, what: &str| {
        Note::new("service", code, &format!("service {name} {what}")).with("service", name.to_string())
    };
    let was_up = before.is_some_and(|b| is_up(b.state));
    let same = before.is_some_and(|b| b.container_id == now.container_id);
    let restarts = before.filter(|_| same).map_or(0, |b| now.restarts.saturating_sub(b.restarts));
    match (was_up, is_up(now.state)) {
        (true, true) if !same => notes.push(note("started", "runs in a new container")),
        (true, true) | (false, true) if restarts > 0 => {
            notes.push(note("restarted", "ended and was started again").with("restarts", now.restarts));
        }
        (false, true) => notes.push(note("started", "was started")),
        // While its health is looked for anew nothing is known.
        (true, false) => notes.push(ended(name, now.exit_code)),
        _ => {}
    }
    let is = |s: ServiceState| now.state == s && before.is_none_or(|b| b.state != s);
    if is(ServiceState::Unhealthy) {
        notes.push(note("unhealthy", "fails its health check"));
    } else if now.state == ServiceState::Healthy && before.is_some_and(|b| b.state == ServiceState::Unhealthy)
    {
        notes.push(note("healthy", "passes its health check again"));
    }
    notes
}

fn update(of: &str, before: Option<&str>, now: Option<&str>, release: Option<String>) -> Option<Note> {
    if before == now {
        return None;
    }
    let (code, message) = match now {
        Some(stage) => (stage, format!("the update of the {of} is at {stage}")),
        None => ("ended", format!("the update of the {of} has ended")),
    };
    Some(Note::new("update", code, &message).with("of", of).with("release", release))
}

#[cfg(test)]
mod tests {
    use copal_protocol::{documents::Progress, ids::AppId};

    use super::*;
    use crate::apply::status::reason;

    fn running(
        state: ServiceState,
        container: &str,
        restarts: u64,
        exit_code: Option<i64>,
    ) -> RunningService {
        RunningService { config_digest: None, state, restarts, container_id: container.to_owned(), exit_code }
    }

    fn status(web: Option<RunningService>) -> AgentStatus {
        let app = AppStatus {
            running: web.map(|web| ("web".parse().unwrap(), web)).into_iter().collect(),
            ..AppStatus::default()
        };
        AgentStatus { apps: [(AppId::from_bytes([1; 16]), app)].into(), ..AgentStatus::default() }
    }

    fn told(before: &AgentStatus, now: &AgentStatus) -> Vec<String> {
        apps(before, now).iter().map(|n| format!("{} {}", n.name().0, n.name().1)).collect()
    }

    #[test]
    fn what_a_service_does_is_told_once_each() {
        use ServiceState::*;
        let is = |state, container, restarts, exit| status(Some(running(state, container, restarts, exit)));
        let none = AgentStatus::default();
        for (before, now, expected) in [
            (none, is(Running, "a", 0, None), &[][..]),
            (status(None), is(Running, "a", 0, None), &["service started"]),
            (is(Absent, "", 0, None), is(Downloading, "", 0, None), &[]),
            (is(Created, "a", 0, None), is(Starting, "a", 0, None), &["service started"]),
            (is(Starting, "a", 0, None), is(Healthy, "a", 0, None), &[]),
            (is(Healthy, "a", 0, None), is(Unhealthy, "a", 0, None), &["service unhealthy"]),
            (is(Unhealthy, "a", 0, None), is(Healthy, "a", 0, None), &["service healthy"]),
            (is(Running, "a", 0, None), is(Running, "a", 1, None), &["service restarted"]),
            (is(Running, "a", 0, None), is(Exited, "a", 0, Some(137)), &["service exited"]),
            (is(Exited, "a", 0, Some(1)), is(Exited, "a", 0, Some(1)), &[]),
            (is(Exited, "a", 0, Some(1)), is(Running, "a", 0, None), &["service started"]),
            (is(Running, "a", 3, None), is(Running, "b", 0, None), &["service started"]),
            (is(Running, "a", 0, None), status(None), &["service stopped"]),
            (is(Running, "a", 0, None), AgentStatus::default(), &["service stopped"]),
        ] {
            assert_eq!(told(&before, &now), expected, "{before:?} then {now:?}");
        }
    }

    #[test]
    fn an_update_is_told_stage_by_stage() {
        let hash = |n: u8| Sha256Hex::of(&[n]);
        let with = |target: Option<u8>, committed: Option<u8>, stage: Option<&str>, why: Option<&str>| {
            let mut status = status(None);
            for app in status.apps.values_mut() {
                app.target = target.map(|n| (hash(n), hash(n)));
                app.committed = committed.map(|n| (hash(n), hash(n)));
                app.progress = stage.map(|s| Progress { stage: s.to_owned(), ..Progress::default() });
                app.reason = why.map(|w| reason(w, "x"));
            }
            status
        };
        let steps = [
            with(None, None, None, None),
            with(Some(1), Some(1), None, None),
            with(Some(2), Some(1), Some("downloading"), None),
            with(Some(2), Some(1), Some("trial"), None),
            with(Some(2), Some(2), None, None),
            with(Some(3), Some(2), Some("trial"), None),
            with(Some(3), Some(2), None, Some("rolled_back")),
            with(Some(3), Some(2), None, Some("rolled_back")),
        ];
        let all: Vec<String> = steps.windows(2).flat_map(|w| told(&w[0], &w[1])).collect();
        assert_eq!(
            all,
            [
                "release wanted",
                "update downloading",
                "update trial",
                "update ended",
                "committed committed",
                "release wanted",
                "update trial",
                "update ended",
                "release rolled_back"
            ]
        );
    }
}
