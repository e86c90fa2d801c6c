//! Asks of people on their way: begun after a look, ended when a later look shows that they came about. What one wants
//! stands in the holds, in the marks of [`Pending`] or in the volumes to empty; planner and lanes do the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use copal_protocol::{
    documents::Reason,
    ids::{AppId, Name, Sha256Hex},
    spec::Mount,
};
use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::Supervisor;
use crate::{
    apply::status::reason,
    engine::{EngineApi, EngineError, RunState},
    plan::{Lane, Plan},
    supervisor::asks::{Ask, Asked},
    target::model::Target,
};

/// What did not come about by then is answered so.
const LIMIT: Duration = Duration::from_secs(300);
/// Failures in a row of its lane that end an ask.
const FAILURES: u32 = 3;

/// A run of a container: its id, and the engine's time of its start.
type Mark = (String, String);

/// An ask that is not answered yet.
pub(super) struct Pending {
    asked: Asked,
    since: Instant,
    begun: Option<Begun>,
}

/// What an ask waits for.
enum Begun {
    /// These services run, and in another run than the marked ones.
    Run { marks: BTreeMap<(AppId, Name), Option<Mark>>, dependents: bool },
    /// These do not run.
    Rest(BTreeSet<(AppId, Name)>),
    /// Volumes are emptied; then everything of the apps is there again.
    Empty { apps: BTreeMap<AppId, Work>, failed: Option<Reason> },
}

/// How far the emptying of an app's volumes is.
#[derive(PartialEq, Eq)]
enum Work {
    Waits,
    Goes,
    Done,
}

/// An app whose volumes were emptied, or why not.
pub(super) type Emptied = (AppId, Result<(), EngineError>);

impl Supervisor {
    /// Takes an ask; it is begun at the next look.
    pub(in crate::supervisor) fn ask(&mut self, asked: Asked) {
        self.asks.push(Pending { asked, since: Instant::now(), begun: None });
    }

    /// Answers what nobody waits for any more, and what took too long.
    pub(super) fn expire_asks(&mut self) {
        let absent = self.absent.as_ref().map(|(_, why)| why.clone());
        for pending in std::mem::take(&mut self.asks) {
            let goes = matches!(&pending.begun, Some(Begun::Empty { apps, .. }) if apps.values().any(|w| *w == Work::Goes));
            if (goes && !self.purges.is_empty()) || pending.since.elapsed() < LIMIT {
                self.asks.push(pending);
                continue;
            }
            let late =
                reason("timeout", format!("not so after {} s; the device goes on trying", LIMIT.as_secs()));
            let _ = pending.asked.answer.send(Err(absent.clone().unwrap_or(late)));
        }
    }

    /// Begins what is new, as what was just seen shows it.
    pub(super) fn begin_asks(&mut self, target: &Target) {
        for mut pending in std::mem::take(&mut self.asks) {
            if pending.begun.is_none() {
                match self.begin(&pending.asked.what, target) {
                    Ok(begun) => pending.begun = Some(begun),
                    Err(why) => {
                        let _ = pending.asked.answer.send(Err(why));
                        continue;
                    }
                }
            }
            self.asks.push(pending);
        }
    }

    fn begin(&mut self, what: &Ask, target: &Target) -> Result<Begun, Reason> {
        match what {
            Ask::Restart(name) | Ask::Start(name) => {
                let of = services(target, name)?;
                let mut marks = BTreeMap::new();
                for (app, _) in of {
                    self.holds.release(app, name).map_err(|e| reason(e.code(), e.to_string()))?;
                    let fresh = matches!(what, Ask::Start(_)) && self.runs(app, name);
                    marks.insert((app, name.clone()), (!fresh).then(|| self.mark(app, name)).flatten());
                    self.forget_failures(app, name);
                }
                // A person changed their mind: whoever waited for the contrary is told.
                self.supersede_asks(name);
                Ok(Begun::Run { marks, dependents: false })
            }
            Ask::Stop(name) => {
                let of = services(target, name)?;
                for (app, key) in &of {
                    self.holds.hold(*app, name, *key).map_err(|e| reason(e.code(), e.to_string()))?;
                    let lane = self.lanes.get(&(*app, Lane::Service(name.clone())));
                    if let Some(running) = lane.and_then(|lane| lane.running.as_ref()) {
                        running.cancel();
                    }
                    self.forget_failures(*app, name);
                }
                self.supersede_asks(name);
                Ok(Begun::Rest(of.into_iter().map(|(app, _)| (app, name.clone())).collect()))
            }
            Ask::Purge(volume) => {
                let has = |app: &&AppId| {
                    let seen = self.state.apps.get(app).map(|seen| &seen.volumes);
                    seen.is_some_and(|seen| {
                        volume.as_ref().map_or(!seen.is_empty(), |v| seen.contains_key(v))
                    })
                };
                let apps: BTreeMap<AppId, Work> =
                    target.apps.keys().filter(has).map(|app| (*app, Work::Waits)).collect();
                match volume {
                    Some(volume) if apps.is_empty() => {
                        Err(reason("volume_unknown", format!("no app of this device has a volume {volume}")))
                    }
                    _ => Ok(Begun::Empty { apps, failed: None }),
                }
            }
        }
    }

    /// Answers what came about, and what cannot.
    pub(super) fn end_asks(&mut self, plan: &Plan, next: &mut Instant) {
        for mut pending in std::mem::take(&mut self.asks) {
            match self.progress(&mut pending, plan) {
                None => {
                    *next = (*next).min(pending.since + LIMIT);
                    self.asks.push(pending);
                }
                Some(answer) => drop(pending.asked.answer.send(answer)),
            }
        }
    }

    fn progress(&mut self, pending: &mut Pending, plan: &Plan) -> Option<Result<String, Reason>> {
        match pending.begun.as_mut()? {
            Begun::Run { marks, dependents } => {
                if let Some(why) = marks.keys().find_map(|(app, name)| self.failure(*app, name)) {
                    return Some(Err(why));
                }
                if !marks.iter().all(|((app, name), mark)| self.runs_anew(*app, name, mark.as_ref())) {
                    return None;
                }
                if !*dependents {
                    *dependents = true;
                    let more = self.sharing(marks);
                    if !more.is_empty() {
                        // They are in namespaces that are no more.
                        *marks = more;
                        return None;
                    }
                }
                Some(Ok("it runs".to_owned()))
            }
            Begun::Rest(of) => {
                if let Some(why) = of.iter().find_map(|(app, name)| self.failure(*app, name)) {
                    return Some(Err(why));
                }
                let rests = of.iter().all(|(app, name)| {
                    !self.runs(*app, name) && !self.at_work(*app, &Lane::Service(name.clone()))
                });
                rests.then(|| Ok("it is stopped".to_owned()))
            }
            Begun::Empty { apps, failed } => {
                let waiting: Vec<AppId> =
                    apps.iter().filter(|(_, work)| **work == Work::Waits).map(|(app, _)| *app).collect();
                for app in waiting {
                    if let Some(work) = self.empty(app, &pending.asked.what) {
                        apps.insert(app, work);
                    }
                }
                if apps.values().any(|work| *work != Work::Done) {
                    return None;
                }
                if let Some(why) = failed.take() {
                    return Some(Err(why));
                }
                let rests = |app: &AppId| plan.apps.get(app).is_none_or(|p| p.lanes.is_empty());
                let back = apps.keys().all(rests);
                back.then(|| Ok("emptied; images stayed, and the services run again".to_owned()))
            }
        }
    }

    /// Apps that are left alone while their volumes are emptied.
    pub(super) fn purged(&self) -> BTreeSet<AppId> {
        let begun = self.asks.iter().filter_map(|pending| match &pending.begun {
            Some(Begun::Empty { apps, .. }) => Some(apps),
            _ => None,
        });
        begun.flatten().filter(|(_, work)| **work != Work::Done).map(|(app, _)| *app).collect()
    }

    /// Runs that people want ended.
    pub(super) fn restarts(&self) -> BTreeMap<(AppId, Name), Mark> {
        let begun = self.asks.iter().filter_map(|pending| match &pending.begun {
            Some(Begun::Run { marks, .. }) => Some(marks),
            _ => None,
        });
        begun.flatten().filter_map(|(key, mark)| Some((key.clone(), mark.clone()?))).collect()
    }

    /// Sets to work on an app's volumes once no lane of it is at work; first whoever is, is called off.
    fn empty(&mut self, app: AppId, what: &Ask) -> Option<Work> {
        let mut busy = false;
        for (_, lane) in self.lanes.iter().filter(|((of, _), _)| *of == app) {
            if let Some(running) = &lane.running {
                running.cancel();
                busy = true;
            }
        }
        if busy {
            return None;
        }
        let seen = self.state.apps.get(&app)?;
        let volume = if let Ask::Purge(volume) = what { volume.as_ref() } else { None };
        let wanted = self.apps.get(&app).and_then(|a| a.wanted.as_ref());
        let uses = |service: &Name| {
            let Some(volume) = volume else { return true };
            // Of one that is not known any more it is not known either.
            wanted.and_then(|w| w.services.get(service)).is_none_or(|service| {
                let mut sources = service.spec.mounts.values().filter_map(|mount| match mount {
                    Mount::Volume { source, .. } => source.as_ref(),
                    _ => None,
                });
                sources.any(|source| source == volume)
            })
        };
        let containers = seen.services.iter().filter(|(name, _)| uses(name)).flat_map(|(_, list)| list);
        let containers: Vec<(String, u32)> =
            containers.map(|s| (s.container.id.clone(), s.container.grace_s)).collect();
        let volumes = seen.volumes.iter().filter(|(name, _)| volume.is_none_or(|v| v == *name));
        let volumes: Vec<String> = volumes.map(|(_, v)| v.name.clone()).collect();
        let engine = self.engine.clone();
        self.purges.spawn(async move { (app, empty(engine, containers, volumes).await) });
        Some(Work::Goes)
    }

    /// The volumes of an app are emptied, or cannot be.
    pub(super) fn take_emptied(&mut self, ended: Result<Emptied, tokio::task::JoinError>) {
        let (app, result) = match ended {
            Ok(emptied) => emptied,
            Err(error) => {
                // A bug, as it takes a panic; the ask ends with its time.
                tracing::error!(%error, "emptying volumes ended abnormally");
                return;
            }
        };
        for pending in &mut self.asks {
            if let Some(Begun::Empty { apps, failed }) = &mut pending.begun
                && let Some(work) = apps.get_mut(&app).filter(|work| **work == Work::Goes)
            {
                *work = Work::Done;
                if let Err(error) = &result {
                    let message =
                        format!("{error}; what was not emptied is as it was, and the services run again");
                    *failed = Some(reason("purge_failed", message));
                }
                return;
            }
        }
    }

    fn mark(&self, app: AppId, name: &Name) -> Option<Mark> {
        let list = self.state.apps.get(&app)?.services.get(name)?;
        let seen = list.iter().min_by_key(|s| s.container.state != RunState::Running)?;
        Some((seen.container.id.clone(), seen.container.started_at.clone()))
    }

    fn runs(&self, app: AppId, name: &Name) -> bool {
        let list = self.state.apps.get(&app).and_then(|seen| seen.services.get(name));
        list.into_iter()
            .flatten()
            .any(|s| matches!(s.container.state, RunState::Running | RunState::Restarting))
    }

    /// Whether its container is in another run than the marked one, and was started.
    fn runs_anew(&self, app: AppId, name: &Name, mark: Option<&Mark>) -> bool {
        let Some(list) = self.state.apps.get(&app).and_then(|seen| seen.services.get(name)) else {
            return false;
        };
        let is_marked = |c: &crate::engine::Container| {
            mark.is_some_and(|(id, started_at)| *id == c.id && *started_at == c.started_at)
        };
        list.iter().all(|s| !is_marked(&s.container))
            && list.iter().any(|s| !matches!(s.container.state, RunState::Created | RunState::Dead))
            && !self.at_work(app, &Lane::Service(name.clone()))
    }

    /// Running services that share namespaces with one of these.
    fn sharing(&self, of: &BTreeMap<(AppId, Name), Option<Mark>>) -> BTreeMap<(AppId, Name), Option<Mark>> {
        let mut all = BTreeMap::new();
        for (app, name) in of.iter().filter(|(_, mark)| mark.is_some()).map(|(key, _)| key) {
            let wanted = self.apps.get(app).and_then(|a| a.wanted.as_ref());
            for (other, service) in wanted.iter().flat_map(|w| &w.services) {
                if service.peers.contains(name) && self.runs(*app, other) {
                    all.insert((*app, other.clone()), self.mark(*app, other));
                }
            }
        }
        all
    }

    fn at_work(&self, app: AppId, lane: &Lane) -> bool {
        self.lanes.get(&(app, lane.clone())).is_some_and(|lane| lane.running.is_some())
    }

    fn failure(&self, app: AppId, name: &Name) -> Option<Reason> {
        let lane = self.lanes.get(&(app, Lane::Service(name.clone())))?;
        let error = lane.error.as_ref().filter(|_| lane.failures >= FAILURES)?;
        Some(Reason { service: Some(name.clone()), ..reason(&error.code, &error.message) })
    }

    /// What failed before says nothing of what is asked now.
    fn forget_failures(&mut self, app: AppId, name: &Name) {
        if let Some(lane) = self.lanes.get_mut(&(app, Lane::Service(name.clone()))) {
            (lane.failures, lane.error, lane.retry_at) = (0, None, None);
        }
    }

    fn supersede_asks(&mut self, name: &Name) {
        for pending in std::mem::take(&mut self.asks) {
            let about = match &pending.asked.what {
                Ask::Restart(of) | Ask::Stop(of) | Ask::Start(of) => of == name,
                Ask::Purge(_) => false,
            };
            if about && pending.begun.is_some() {
                let why =
                    reason("superseded", format!("something else was asked of service {name} meanwhile"));
                let _ = pending.asked.answer.send(Err(why));
            } else {
                self.asks.push(pending);
            }
        }
    }
}

/// Every app that has the service, with the key of its target.
fn services(target: &Target, name: &Name) -> Result<Vec<(AppId, Sha256Hex)>, Reason> {
    let has = target.apps.values().filter(|app| app.release.services.contains_key(name));
    let all: Vec<_> = has.map(|app| (app.app_id, app.key())).collect();
    if all.is_empty() {
        return Err(reason("service_unknown", format!("no app of this device has a service {name}")));
    }
    Ok(all)
}

/// Ends what uses the volumes, and removes them; the planner makes both anew.
async fn empty(
    engine: Arc<dyn EngineApi>,
    containers: Vec<(String, u32)>,
    volumes: Vec<String>,
) -> Result<(), EngineError> {
    try_join_all(containers.iter().map(|(id, grace_s)| engine.stop(id, *grace_s))).await?;
    for (id, _) in &containers {
        engine.remove(id).await?;
    }
    for name in &volumes {
        tracing::info!(volume = name, "emptied as a person asked");
        engine.remove_volume(name).await?;
    }
    Ok(())
}
