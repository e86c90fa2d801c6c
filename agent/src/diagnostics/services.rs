//! Each service: whether it runs, its restarts, its health check.

use std::collections::BTreeMap;

use copal_protocol::{
    diagnosis::{ProbeResult, Unit, Verdict},
    documents::ServiceState,
};

use super::redact::Redactor;
use crate::{
    engine::{Health, Inspection, RunState},
    plan::labels,
    report::Status,
};

pub(super) const NAME: &str = "services";
/// Characters of a health check's output that are told.
const OUTPUT: usize = 100;

/// A service as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name; with the first digits of its app where there are several apps.
    pub name: String,
    /// What its container does; absent where there is none.
    pub state: Option<RunState>,
    /// What its health check says.
    pub health: Health,
    /// Exit code of its last end.
    pub exit_code: i64,
    /// How often the engine started it again.
    pub restarts: u64,
    /// Exit code and output of its last health check, without secrets.
    pub check: Option<(i64, String)>,
    /// What the agent says of it, where it says something.
    pub told: Option<ServiceState>,
    /// A person stopped it, and it stays so.
    pub stopped: bool,
}

/// Puts together what the engine shows and what the agent says.
#[must_use]
pub fn read(found: &[Inspection], status: Option<&Status>) -> Vec<Service> {
    let mut services: BTreeMap<(String, String), Service> = BTreeMap::new();
    let empty = |name: &str| Service {
        name: name.to_owned(),
        state: None,
        health: Health::None,
        exit_code: 0,
        restarts: 0,
        check: None,
        told: None,
        stopped: false,
    };
    for (app, line) in status.iter().flat_map(|s| &s.apps) {
        let stopped = line.reason.as_ref().filter(|reason| reason.code == "stopped");
        for (name, service) in &line.services {
            let key = (app.to_string(), name.to_string());
            let stopped = stopped.is_some_and(|reason| reason.service.as_ref() == Some(name));
            services.insert(key, Service { told: Some(service.state), stopped, ..empty(name.as_str()) });
        }
    }
    for one in found {
        let container = &one.container;
        let label = |name: &str| container.labels.get(name).cloned();
        let (Some(app), Some(name)) = (label(labels::APP), label(labels::SERVICE)) else { continue };
        let service = services.entry((app, name.clone())).or_insert_with(|| empty(&name));
        // Two containers of a service are there while one takes over: the one that runs counts.
        if service.state == Some(RunState::Running) && container.state != RunState::Running {
            continue;
        }
        let redactor = Redactor::default().with_env(&one.env);
        *service = Service {
            name: service.name.clone(),
            state: Some(container.state),
            health: container.health,
            exit_code: container.exit_code,
            restarts: container.restarts,
            check: one.last_check.as_ref().map(|(code, output)| (*code, cut(&redactor.text(output)))),
            told: service.told,
            stopped: service.stopped,
        };
    }
    let several = services.keys().map(|(app, _)| app).collect::<std::collections::BTreeSet<_>>().len() > 1;
    services
        .into_iter()
        .map(|((app, _), service)| {
            let name = if several {
                format!("{}/{}", app.get(..8).unwrap_or(&app), service.name)
            } else {
                service.name.clone()
            };
            Service { name, ..service }
        })
        .collect()
}

/// One line, of at most so many characters.
fn cut(output: &str) -> String {
    let line = output.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(OUTPUT).collect()
}

/// Judges.
#[must_use]
pub fn judge(services: &[Service]) -> Vec<ProbeResult> {
    if services.is_empty() {
        return vec![ProbeResult::new(NAME, Verdict::Ok, "no service should run here")];
    }
    services.iter().map(one).collect()
}

fn one(service: &Service) -> ProbeResult {
    let restarts = i64::try_from(service.restarts).unwrap_or(i64::MAX);
    let check =
        service.check.as_ref().map(|(code, output)| format!("; its check ended with {code}: {output}"));
    let check = check.unwrap_or_default();
    let completed = service.told == Some(ServiceState::Completed);
    let (verdict, detail, advice) = match (service.state, service.health) {
        (None | Some(RunState::Exited | RunState::Created), _) if service.stopped => {
            (Verdict::Ok, "a person stopped it, and it stays so until it is started again".to_owned(), "")
        }
        (None, _) if completed => (Verdict::Ok, "ended, as it was meant to".to_owned(), ""),
        (None, _) if service.told == Some(ServiceState::Downloading) => {
            (Verdict::Ok, "its image is on its way".to_owned(), "")
        }
        (None, _) => (
            Verdict::Failed,
            "has no container".to_owned(),
            "see the result of update for why it could not be made",
        ),
        (Some(RunState::Running), Health::Unhealthy) => (
            Verdict::Failed,
            format!("runs, and its health check fails{check}"),
            "look at its log and at what the check needs",
        ),
        (Some(RunState::Running), Health::Starting) => {
            (Verdict::Ok, format!("starts; its health is not known yet{check}"), "")
        }
        (Some(RunState::Running), health) => {
            let how =
                if health == Health::Healthy { "runs, healthy" } else { "runs; it has no health check" };
            if service.restarts > 0 {
                (Verdict::Warning, how.to_owned(), "see why it ended: its log, and the result of oom")
            } else {
                (Verdict::Ok, how.to_owned(), "")
            }
        }
        (Some(RunState::Restarting), _) => (
            Verdict::Failed,
            format!("ends again and again, last with code {}", service.exit_code),
            "look at its last log lines; a release that never worked is undone by itself",
        ),
        (Some(RunState::Exited), _) if completed => (Verdict::Ok, "ended, as it was meant to".to_owned(), ""),
        (Some(RunState::Exited), _) => (
            Verdict::Failed,
            format!("ended with code {}", service.exit_code),
            "look at its last log lines; if somebody stopped it, start it again",
        ),
        (Some(RunState::Created), _) => {
            (Verdict::Warning, "made, and not started".to_owned(), "see the result of update for why")
        }
        (Some(RunState::Dead), _) => (
            Verdict::Failed,
            "the engine cannot remove or describe its container".to_owned(),
            "look at the engine's log; restart the engine",
        ),
    };
    ProbeResult::new(NAME, verdict, &detail)
        .of(&service.name)
        .value(restarts, Unit::Count)
        .threshold(0)
        .advice(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(
        state: Option<RunState>,
        health: Health,
        restarts: u64,
        told: Option<ServiceState>,
    ) -> Service {
        let check = Some((1, "connection refused".to_owned()));
        Service { name: "web".to_owned(), state, health, exit_code: 7, restarts, check, told, stopped: false }
    }

    #[test]
    fn services_are_judged_by_what_they_do() {
        use RunState::{Created, Dead, Exited, Restarting, Running};
        for (service, verdict, word) in [
            (service(Some(Running), Health::Healthy, 0, None), Verdict::Ok, "healthy"),
            (service(Some(Running), Health::None, 0, None), Verdict::Ok, "no health check"),
            (service(Some(Running), Health::None, 2, None), Verdict::Warning, "runs"),
            (service(Some(Running), Health::Starting, 0, None), Verdict::Ok, "starts"),
            (
                service(Some(Running), Health::Unhealthy, 0, None),
                Verdict::Failed,
                "ended with 1: connection refused",
            ),
            (service(Some(Restarting), Health::None, 9, None), Verdict::Failed, "last with code 7"),
            (service(Some(Exited), Health::None, 0, None), Verdict::Failed, "ended with code 7"),
            (service(Some(Exited), Health::None, 0, Some(ServiceState::Completed)), Verdict::Ok, "meant to"),
            (service(Some(Created), Health::None, 0, None), Verdict::Warning, "not started"),
            (service(Some(Dead), Health::None, 0, None), Verdict::Failed, "cannot"),
            (service(None, Health::None, 0, Some(ServiceState::Absent)), Verdict::Failed, "no container"),
            (service(None, Health::None, 0, Some(ServiceState::Downloading)), Verdict::Ok, "on its way"),
            (service(None, Health::None, 0, Some(ServiceState::Completed)), Verdict::Ok, "meant to"),
        ] {
            let result = judge(&[service]).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert!(result.detail.contains(word), "{result:?}");
            assert_eq!(result.advice.is_empty(), verdict == Verdict::Ok, "{result:?}");
        }
        let stopped = Service { stopped: true, ..service(Some(Exited), Health::None, 0, None) };
        assert_eq!(judge(&[stopped])[0].verdict, Verdict::Ok);
        let runs_on = Service { stopped: true, ..service(Some(Running), Health::Unhealthy, 0, None) };
        assert_eq!(judge(&[runs_on])[0].verdict, Verdict::Failed);
        assert_eq!(judge(&[])[0].verdict, Verdict::Ok);
    }

    fn found(app: &str, service: &str, name: &str, state: RunState) -> Inspection {
        let labels = [(labels::APP, app), (labels::SERVICE, service)];
        let container = serde_json::json!({"id": name, "name": name, "image": "sha256:1", "state": state,
            "labels": BTreeMap::from(labels)});
        Inspection {
            container: serde_json::from_value(container).unwrap(),
            oom_killed: false,
            last_check: Some((1, "login with hunter2-planted\nfailed".to_owned())),
            env: vec!["KEY=hunter2-planted".to_owned()],
            whole: Vec::new(),
        }
    }

    #[test]
    fn what_runs_and_what_is_missing_is_put_together_without_secrets() {
        let keys = copal_protocol::testing::OwnerKeys::fixed();
        let app = keys.app_id.to_string();
        let report = |state: &str| serde_json::json!({"config_digest": null, "state": state});
        let services =
            serde_json::json!({"web": report("running"), "gone": report("absent"), "held": report("exited")});
        let line = serde_json::json!({"committed": null, "target": null, "services": services,
            "reason": {"code": "stopped", "message": "so it is", "service": "held"}});
        let mut status = crate::diagnostics::tests::status();
        status.apps = serde_json::from_value(serde_json::json!({app.clone(): line})).unwrap();
        let seen = [
            found(&app, "web", "new", RunState::Running),
            found(&app, "web", "old", RunState::Exited),
            found(&app, "held", "held", RunState::Exited),
        ];
        let services = read(&seen, Some(&status));
        let told: Vec<_> = services.iter().map(|s| (s.name.as_str(), s.state, s.stopped)).collect();
        let (running, exited) = (Some(RunState::Running), Some(RunState::Exited));
        assert_eq!(told, [("gone", None, false), ("held", exited, true), ("web", running, false)]);
        assert_eq!(services[2].check, Some((1, "login with (redacted) failed".to_owned())));

        let other = "5a5a5a5a112233445566778899aabbcc";
        let both = read(
            &[found(&app, "web", "a", RunState::Running), found(other, "web", "b", RunState::Running)],
            None,
        );
        let names: Vec<&str> = both.iter().map(|s| s.name.as_str()).collect();
        assert!(names.contains(&"5a5a5a5a/web") && names.len() == 2, "{names:?}");
    }

    #[test]
    fn a_checks_output_is_one_short_line() {
        assert_eq!(cut("a\n  b\t c"), "a b c");
        assert_eq!(cut(&"é".repeat(500)).chars().count(), OUTPUT);
    }
}
