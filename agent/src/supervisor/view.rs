//! How things stand, as the supervisor tells it: made of the last look and what the lanes are at.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use copal_protocol::{
    documents::{Progress, Reason, RunningService, ServiceState},
    ids::{AppId, Name},
    spec::Restart,
};

use super::{
    app::App,
    pass::{LaneState, Supervisor},
};
use crate::{
    apply::{
        status::{AgentStatus, AppStatus, reason, weight},
        trial::Choice,
    },
    engine::{Container, Health, RunState},
    observe::Seen,
    plan::{
        Lane, Need,
        wanted::{WantedApp, WantedService},
    },
};

impl Supervisor {
    /// The whole status, but for what concerns the device.
    pub(super) fn view(&self) -> AgentStatus {
        let ids = self.apps.keys().chain(self.state.apps.keys());
        let mut status = AgentStatus { applied: self.applied, ..AgentStatus::default() };
        for id in ids {
            if !status.apps.contains_key(id) {
                let app = self.app_view(*id);
                // What is left of an app that is gone (its volumes) is not worth telling.
                if app.target.is_some() || !app.running.is_empty() {
                    status.apps.insert(*id, app);
                }
            }
        }
        status
    }

    fn app_view(&self, id: AppId) -> AppStatus {
        let none = App::default();
        let app = self.apps.get(&id).unwrap_or(&none);
        let lanes: Vec<(&Lane, &LaneState)> = self
            .lanes
            .iter()
            .filter(|((of, _), _)| *of == id)
            .map(|((_, lane), state)| (lane, state))
            .collect();
        let named = |target: &crate::target::model::AppTarget| (target.key(), target.release.sha256());
        let mut reasons: Vec<Reason> = app.choice_reason().into_iter().collect();
        if let (Some(why), Some(Choice::Fallback)) = (reasons.first_mut(), app.choice) {
            let back = app.wanted.as_deref().is_some_and(|wanted| self.is_there(id, wanted));
            why.message.push_str(if back {
                "; the release before it runs again"
            } else {
                "; the release before it is being brought back"
            });
        }
        reasons.extend(app.held.iter().map(stopped));
        reasons.extend(lanes.iter().filter_map(|(lane, state)| lane_reason(lane, state)));
        if reasons.is_empty() && app.target.is_some() {
            reasons.extend(app.on_trial().then(|| trial_reason(app)));
        }
        // The first of the most telling: lanes come in the order of their names.
        let most = reasons.iter().map(|r| weight(&r.code)).max();
        let mut why = reasons.into_iter().find(|r| Some(weight(&r.code)) == most);
        if let Some(why) = &mut why
            && why.release.is_none()
        {
            why.release = app.target.as_ref().map(|t| t.release.sha256());
        }
        AppStatus {
            running: self.running(id, app, &lanes),
            committed: app.committed.as_ref().map(named),
            target: app.target.as_ref().map(named),
            reason: why,
            progress: progress(app, &lanes),
        }
    }

    /// Whether each service has its container, started at least once.
    fn is_there(&self, id: AppId, wanted: &WantedApp) -> bool {
        let seen = self.state.apps.get(&id);
        wanted.services.iter().all(|(name, service)| {
            let list = seen.and_then(|app| app.services.get(name)).into_iter().flatten();
            list.filter(|one| one.hash == service.hash)
                .any(|one| !matches!(one.container.state, RunState::Created | RunState::Dead))
        })
    }

    fn running(&self, id: AppId, app: &App, lanes: &[(&Lane, &LaneState)]) -> BTreeMap<Name, RunningService> {
        let mut all = BTreeMap::new();
        let seen = self.state.apps.get(&id);
        for (name, list) in seen.into_iter().flat_map(|s| &s.services) {
            let service = app.wanted.as_ref().and_then(|w| w.services.get(name));
            let best = list.iter().min_by_key(|one| {
                let fits = service.is_some_and(|s| s.hash == one.hash);
                (one.container.state != RunState::Running, !fits)
            });
            all.extend(best.map(|one| (name.clone(), describe(one, service))));
        }
        for name in app.wanted.iter().flat_map(|w| w.services.keys()) {
            let downloads = lanes.iter().any(|(lane, state)| {
                lane.service() == Some(name)
                    && state.running.as_ref().is_some_and(super::pass::Running::downloads)
            });
            all.entry(name.clone()).or_insert_with(|| RunningService {
                config_digest: None,
                state: if downloads { ServiceState::Downloading } else { ServiceState::Absent },
                restarts: 0,
                container_id: String::new(),
                exit_code: None,
            });
        }
        all
    }
}

fn describe(seen: &Seen, service: Option<&WantedService>) -> RunningService {
    let c = &seen.container;
    let fits = service.filter(|s| s.hash == seen.hash);
    RunningService {
        // An image id is the config digest, but for the containerd image store; there our own label tells.
        config_digest: fits.map(|s| s.image.config_digest).or_else(|| c.image.0.parse().ok()),
        state: service_state(c, service),
        restarts: c.restarts,
        container_id: c.id.clone(),
        exit_code: matches!(c.state, RunState::Exited | RunState::Restarting).then_some(c.exit_code),
    }
}

fn service_state(c: &Container, service: Option<&WantedService>) -> ServiceState {
    match (c.state, c.health) {
        (RunState::Created | RunState::Dead, _) => ServiceState::Created,
        (RunState::Restarting, _) => ServiceState::Restarting,
        (RunState::Running, Health::None) => ServiceState::Running,
        (RunState::Running, Health::Starting) => ServiceState::Starting,
        (RunState::Running, Health::Healthy) => ServiceState::Healthy,
        (RunState::Running, Health::Unhealthy) => ServiceState::Unhealthy,
        (RunState::Exited, _) => {
            let ends =
                service.is_some_and(|s| matches!(s.spec.restart, Restart::No | Restart::OnFailure { .. }));
            if ends && c.exit_code == 0 { ServiceState::Completed } else { ServiceState::Exited }
        }
    }
}

fn lane_reason(lane: &Lane, state: &LaneState) -> Option<Reason> {
    let of =
        |code: &str, message: String| Reason { service: lane.service().cloned(), ..reason(code, message) };
    if let Some(error) = &state.error {
        let again = format!("{} (tried {} times; it goes on)", error.message, state.failures);
        return Some(of(&error.code, again));
    }
    if let Some(why) = &state.blocked {
        return Some(of(why.code, why.message.clone()));
    }
    if state.locked {
        let message = format!("{lane} holds its update lock: the update is here and waits until it lets go");
        return Some(of("locked", message));
    }
    if state.running.as_ref().is_some_and(super::pass::Running::downloads) {
        return Some(of("downloading", format!("the image of {lane} is on its way")));
    }
    match &state.waits {
        Some(Need::Started(on) | Need::Healthy(on) | Need::Completed(on)) => {
            let need = state.waits.as_ref().map(ToString::to_string).unwrap_or_default();
            let mut why = of("waiting_dependency", format!("{lane} waits until {need}"));
            why.service = lane.service().cloned().or_else(|| Some(on.clone()));
            Some(why)
        }
        _ => state.running.is_some().then(|| of("starting", format!("{lane} is being brought about"))),
    }
}

fn stopped(service: &Name) -> Reason {
    let message = format!("service {service} was stopped by a person and stays so until it is started again");
    Reason { service: Some(service.clone()), ..reason("stopped", message) }
}

fn trial_reason(app: &App) -> Reason {
    match &app.waits_for {
        Some(name) => Reason {
            service: Some(name.clone()),
            ..reason("starting", format!("service {name} is not up (or not healthy) yet"))
        },
        None => reason("trial", "all services are up; the release has to stay well until the trial ends"),
    }
}

fn progress(app: &App, lanes: &[(&Lane, &LaneState)]) -> Option<Progress> {
    let mut loading =
        lanes.iter().filter_map(|(_, s)| s.running.as_ref()).filter(|r| r.downloads()).peekable();
    if loading.peek().is_some() {
        let (mut done, mut total) = (0, 0);
        for one in loading {
            done += one.done.load(Ordering::Relaxed);
            total += one.total.load(Ordering::Relaxed);
        }
        return Some(Progress { stage: "downloading".into(), done, total, trial_ends: None });
    }
    let stage = |stage: &str| Progress { stage: stage.into(), ..Progress::default() };
    if lanes.iter().any(|(_, s)| s.running.is_some()) {
        return Some(stage("applying"));
    }
    app.trial.as_ref()?;
    Some(Progress { trial_ends: app.trial_ends, ..stage("trial") })
}
