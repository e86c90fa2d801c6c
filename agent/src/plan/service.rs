//! Decides for one service: which of its containers stays, and what is done to have exactly that one, running.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    ids::Name,
    spec::{Condition, Restart, UpdateStrategy},
};

use super::{
    Action, AppPlan, Blocked, Holder, Lane, LanePlan, Need, Step, View, Which, labels, wanted::WantedService,
};
use crate::{
    engine::{Health, RunState},
    observe::Seen,
};

/// Whether the old one goes before the new image comes.
pub(super) fn kills_first(service: &WantedService) -> bool {
    matches!(service.strategy, UpdateStrategy::KillThenDownload | UpdateStrategy::DeleteThenDownload)
}

/// The container of each wanted service that stays.
pub(super) fn current<'a>(view: &View<'a>) -> BTreeMap<&'a Name, &'a Seen> {
    let mut done: BTreeMap<&'a Name, Option<&'a Seen>> = BTreeMap::new();
    let Some(wanted) = view.wanted else { return BTreeMap::new() };
    for name in wanted.services.keys() {
        settle(view, name, &mut done, &mut BTreeSet::new());
    }
    done.into_iter().filter_map(|(name, seen)| Some((name, seen?))).collect()
}

/// Settles a service after those whose namespaces it shares: it stays only if it shares with those that stay.
fn settle<'a>(
    view: &View<'a>,
    name: &'a Name,
    done: &mut BTreeMap<&'a Name, Option<&'a Seen>>,
    open: &mut BTreeSet<&'a Name>,
) -> Option<&'a Seen> {
    if let Some(settled) = done.get(name) {
        return *settled;
    }
    let service = view.wanted?.services.get(name)?;
    // A circle cannot be started at all; what is pushed is checked for it.
    if !open.insert(name) {
        return None;
    }
    let peers: Vec<Option<&'a Seen>> =
        service.peers.iter().map(|peer| settle(view, peer, done, open)).collect();
    let fits = |seen: &Seen| {
        let c = &seen.container;
        seen.hash == service.hash
            && c.unreadable.is_none()
            && c.state != RunState::Dead
            && peers.iter().all(|p| p.is_some_and(|p| c.shares.contains(&p.container.id)))
            && (c.state == RunState::Running
                || c.state == RunState::Created
                || missing(view, service, seen).is_empty())
    };
    let rank = |seen: &&Seen| {
        let c = &seen.container;
        let state = match c.state {
            RunState::Running => 0,
            RunState::Restarting => 1,
            RunState::Exited => 2,
            RunState::Created | RunState::Dead => 3,
        };
        (state, c.name != own_name(view, name), c.id.clone())
    };
    let best = view.app.services.get(name).and_then(|all| all.iter().filter(|s| fits(s)).min_by_key(rank));
    open.remove(name);
    done.insert(name, best);
    best
}

fn own_name(view: &View<'_>, service: &Name) -> String {
    labels::object_name(view.prefix, view.id, service.as_str())
}

/// Networks it should be part of and is not, by the release's name. One that was made anew under the same name counts:
/// the container would look for the old one by id, and never start again.
fn missing<'a>(view: &View<'_>, service: &'a WantedService, seen: &Seen) -> Vec<&'a Name> {
    let there = |network: &Name, name: &str| {
        let Some(id) = seen.container.networks.get(name) else { return false };
        // Before its first start a container knows its networks by name alone.
        id.is_empty() || view.app.networks.get(network).is_some_and(|list| list.iter().any(|n| n.id == *id))
    };
    service
        .joins
        .iter()
        .filter(|(network, join)| !there(network, &join.network))
        .map(|(network, _)| network)
        .collect()
}

/// What a dependency still lacks; `Err` where it will never come.
fn unmet(view: &View<'_>, on: &Name, condition: Condition) -> Result<Option<Need>, String> {
    use RunState::{Exited, Restarting, Running};
    let container = view.current.get(on).map(|seen| &seen.container);
    let state = container.map(|c| c.state);
    let ended_well = container.is_some_and(|c| c.state == Exited && c.exit_code == 0);
    Ok(match condition {
        Condition::ServiceStarted => {
            let met = matches!(state, Some(Running | Restarting)) || ended_well;
            (!met).then(|| Need::Started(on.clone()))
        }
        Condition::ServiceHealthy => {
            // Without a health check, running is all that can be known.
            let met = state == Some(Running)
                && container.is_some_and(|c| matches!(c.health, Health::Healthy | Health::None));
            (!met).then(|| Need::Healthy(on.clone()))
        }
        Condition::ServiceCompletedSuccessfully => {
            let retries = view.wanted.is_some_and(|w| w.retry_one_shots);
            if let Some(c) = container.filter(|c| c.state == Exited && c.exit_code != 0 && !retries) {
                return Err(format!("{on}, which has to end well first, ended with code {}", c.exit_code));
            }
            (!ended_well).then(|| Need::Completed(on.clone()))
        }
    })
}

/// What has to be so before anything of the service starts.
fn needs(view: &View<'_>, service: &WantedService) -> Result<Vec<Need>, Blocked> {
    let mut needs = Vec::new();
    for (on, how) in &service.spec.depends_on {
        let known = view.wanted.is_some_and(|w| w.services.contains_key(on));
        if !known || (how.optional && view.policy.failing.contains(&(view.id, on.clone()))) {
            continue;
        }
        match unmet(view, on, how.condition) {
            Ok(need) => needs.extend(need),
            Err(_) if how.optional => {}
            Err(message) => return Err(Blocked { code: "dependency_failed", message }),
        }
    }
    for peer in &service.peers {
        if !view.current.get(peer).is_some_and(|seen| seen.container.state == RunState::Running) {
            needs.push(Need::Started(peer.clone()));
        }
    }
    needs.dedup();
    Ok(needs)
}

/// Objects it needs that are still to be made, or cannot be.
fn objects(out: &AppPlan, service: &WantedService) -> Result<Vec<Need>, Blocked> {
    let networks = service.joins.keys().cloned().map(Lane::Network);
    let volumes = service.spec.mounts.values().filter_map(|mount| match mount {
        copal_protocol::spec::Mount::Volume { source: Some(name), .. } => Some(Lane::Volume(name.clone())),
        _ => None,
    });
    let mut needs = Vec::new();
    for lane in networks.chain(volumes) {
        match out.lanes.get(&lane) {
            Some(LanePlan { blocked: Some(why), .. }) => return Err(why.clone()),
            Some(_) => needs.push(Need::Lane(lane)),
            None => {}
        }
    }
    Ok(needs)
}

/// Whether a container that does not run is as it should be.
fn rests(view: &View<'_>, service: &WantedService, seen: &Seen) -> bool {
    let c = &seen.container;
    match (c.state, service.spec.restart) {
        (RunState::Running | RunState::Restarting, _) => true,
        // A one-shot runs once. One that failed is judged by the trial, or stays as it is.
        (RunState::Exited, Restart::No) => {
            c.exit_code == 0 || !view.wanted.is_some_and(|w| w.retry_one_shots)
        }
        (RunState::Exited, Restart::OnFailure { .. }) => c.exit_code == 0,
        _ => false,
    }
}

fn blocked(code: &'static str, message: String) -> LanePlan {
    LanePlan { steps: Vec::new(), blocked: Some(Blocked { code, message }) }
}

/// Collects steps; needs hang on the next one.
struct Steps {
    steps: Vec<Step>,
    pending: Vec<Need>,
}

impl Steps {
    fn push(&mut self, action: Action) {
        self.steps.push(Step { action, after: std::mem::take(&mut self.pending) });
    }

    fn stop(&mut self, seen: &Seen) {
        let c = &seen.container;
        if matches!(c.state, RunState::Running | RunState::Restarting) {
            self.push(Action::Stop { id: c.id.clone(), grace_s: c.grace_s });
        }
    }

    fn clear(&mut self, others: &[&Seen]) {
        for seen in others {
            self.push(Action::Remove(seen.container.id.clone()));
        }
    }
}

/// What is done for a service that should run.
pub(super) fn wanted(view: &View<'_>, out: &AppPlan, name: &Name, service: &WantedService) -> LanePlan {
    let all = view.app.services.get(name).map_or(&[][..], Vec::as_slice);
    if let Some(seen) = all.iter().find(|s| s.container.unreadable.is_some()) {
        let why = seen.container.unreadable.clone().unwrap_or_default();
        return blocked(
            "start_failed",
            format!("the engine cannot describe container {} of service {name}: {why}", seen.container.name),
        );
    }
    if view.policy.held.contains(&(view.id, name.clone())) {
        let mut steps = Steps { steps: Vec::new(), pending: Vec::new() };
        all.iter().for_each(|seen| steps.stop(seen));
        return LanePlan { steps: steps.steps, blocked: None };
    }
    let current = view.current.get(name).copied();
    let others: Vec<&Seen> =
        all.iter().filter(|s| current.is_none_or(|c| c.container.id != s.container.id)).collect();
    let mut steps = Steps { steps: Vec::new(), pending: Vec::new() };
    let result = match current {
        Some(seen) => keep(view, out, name, service, seen, &others, &mut steps),
        None => replace(view, out, name, service, &others, &mut steps),
    };
    match result {
        Ok(()) => LanePlan { steps: steps.steps, blocked: None },
        Err(why) => {
            steps.steps.retain(|step| step.action == Action::Download);
            LanePlan { steps: steps.steps, blocked: Some(why) }
        }
    }
}

/// There is a container as wanted: it shall run, alone, under its name, in its networks.
fn keep(
    view: &View<'_>,
    out: &AppPlan,
    name: &Name,
    service: &WantedService,
    seen: &Seen,
    others: &[&Seen],
    steps: &mut Steps,
) -> Result<(), Blocked> {
    let id = || Which::Id(seen.container.id.clone());
    let restarts = others.is_empty() && restarts(view, name, seen);
    // One that ended while another of its service is there was stopped for that one, whatever its exit code says.
    let interrupted = seen.container.state == RunState::Exited && !others.is_empty();
    let starts = interrupted || restarts || !rests(view, service, seen);
    let any_runs =
        others.iter().any(|o| matches!(o.container.state, RunState::Running | RunState::Restarting));
    for network in missing(view, service, seen) {
        match out.lanes.get(&Lane::Network(network.clone())) {
            Some(LanePlan { blocked: Some(why), .. }) => return Err(why.clone()),
            Some(_) => steps.pending.push(Need::Lane(Lane::Network(network.clone()))),
            None => {}
        }
        steps.push(Action::Join(id(), network.clone()));
    }
    if starts {
        steps.pending.extend(objects(out, service)?);
    }
    if starts && !restarts {
        // A person who wants it restarted wants it now.
        steps.pending.extend(needs(view, service)?);
    }
    if restarts {
        steps.stop(seen);
    }
    if any_runs && view.awaits_images {
        steps.pending.push(Need::Images);
    }
    let hands_over = any_runs && service.strategy == UpdateStrategy::HandOver;
    if any_runs {
        steps.push(Action::Lock);
    }
    if hands_over {
        if starts {
            steps.push(Action::Start(id()));
        }
        steps.push(Action::HandOver(id()));
    }
    others.iter().for_each(|o| steps.stop(o));
    if starts && !hands_over {
        steps.push(Action::Start(id()));
    }
    steps.clear(others);
    let own = own_name(view, name);
    if seen.container.name != own && view.names.get(own.as_str()) != Some(&Holder::Foreign) {
        steps.push(Action::Rename(id(), own));
    }
    Ok(())
}

/// Whether a person wants this very run of it ended and another begun.
fn restarts(view: &View<'_>, name: &Name, seen: &Seen) -> bool {
    let mark = view.policy.restart.get(&(view.id, name.clone()));
    mark.is_some_and(|(id, started_at)| *id == seen.container.id && *started_at == seen.container.started_at)
}

/// There is none as wanted: one is made, and takes over as the strategy says.
fn replace(
    view: &View<'_>,
    out: &AppPlan,
    name: &Name,
    service: &WantedService,
    others: &[&Seen],
    steps: &mut Steps,
) -> Result<(), Blocked> {
    let lacks = !view.state.images.contains_key(&service.image.config_digest);
    if lacks && !kills_first(service) {
        // Even where something is in the way of the rest: other services may wait for all images.
        steps.push(Action::Download);
    }
    let own = own_name(view, name);
    let ours = |text: &str| match view.names.get(text) {
        None => true,
        Some(Holder::Ours(app, service)) => *app == view.id && *service == name,
        Some(Holder::Foreign) => false,
    };
    if !ours(&own) {
        return Err(Blocked {
            code: "conflict",
            message: format!(
                "service {name} needs the container name {own}, which a container that is not ours holds: rename or \
                 remove that one"
            ),
        });
    }
    let needs = needs(view, service)?;
    let objects = objects(out, service)?;
    let peers = service
        .peers
        .iter()
        .filter_map(|peer| Some((peer.clone(), view.current.get(peer)?.container.id.clone())))
        .collect();
    let (running, idle): (Vec<&Seen>, Vec<&Seen>) = others
        .iter()
        .copied()
        .partition(|o| matches!(o.container.state, RunState::Running | RunState::Restarting));
    // Leftovers that do not run hold names, and nothing else.
    let idle_first = |steps: &mut Steps| steps.clear(&idle);
    let taken: BTreeSet<&str> = running.iter().map(|o| o.container.name.as_str()).collect();
    if kills_first(service) {
        steps.pending.extend(needs);
        if view.awaits_images {
            steps.pending.push(Need::Images);
        }
        if !running.is_empty() {
            steps.push(Action::Lock);
        }
        running.iter().for_each(|o| steps.stop(o));
        steps.clear(others);
        if lacks {
            if service.strategy == UpdateStrategy::DeleteThenDownload {
                let images: BTreeSet<_> = others.iter().map(|o| o.container.image.clone()).collect();
                images.into_iter().for_each(|image| steps.push(Action::ForgetImage(image)));
            }
            steps.push(Action::Download);
        }
        steps.pending.extend(objects);
        create(service, own, peers, steps);
        steps.push(Action::Start(Which::New));
        return Ok(());
    }
    if view.awaits_images {
        steps.pending.push(Need::Images);
    }
    steps.pending.extend(objects);
    steps.pending.extend(needs);
    idle_first(steps);
    let fresh = if running.is_empty() {
        own.clone()
    } else {
        (1..)
            .map(|n| labels::next_name(view.prefix, view.id, name, n))
            .find(|candidate| ours(candidate) && !taken.contains(candidate.as_str()))
            .expect("there are more numbers than containers")
    };
    let renames = fresh != own;
    if !running.is_empty() {
        steps.push(Action::Lock);
    }
    // Made before the old one stops, so that the service is away only as long as one stops and one starts.
    create(service, fresh, peers, steps);
    if service.strategy == UpdateStrategy::HandOver && !running.is_empty() {
        steps.push(Action::Start(Which::New));
        steps.push(Action::HandOver(Which::New));
        running.iter().for_each(|o| steps.stop(o));
    } else {
        running.iter().for_each(|o| steps.stop(o));
        steps.push(Action::Start(Which::New));
    }
    steps.clear(&running);
    if renames {
        steps.push(Action::Rename(Which::New, own));
    }
    Ok(())
}

fn create(service: &WantedService, name: String, peers: BTreeMap<Name, String>, steps: &mut Steps) {
    steps.push(Action::Create { name, peers });
    // It is made with the first; engines before API 1.44 take no more at once.
    for network in service.joins.keys().skip(1) {
        steps.push(Action::Join(Which::New, network.clone()));
    }
}

/// What is done with the containers of a service that should not be.
pub(super) fn unwanted(view: &View<'_>, seen: &[Seen]) -> LanePlan {
    let mut steps = Steps { steps: Vec::new(), pending: Vec::new() };
    if view.awaits_images {
        steps.pending.push(Need::Images);
    }
    let all: Vec<&Seen> = seen.iter().collect();
    if all.iter().any(|s| matches!(s.container.state, RunState::Running | RunState::Restarting)) {
        steps.push(Action::Lock);
    }
    all.iter().for_each(|s| steps.stop(s));
    steps.clear(&all);
    LanePlan { steps: steps.steps, blocked: None }
}
