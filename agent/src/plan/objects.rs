//! Decides about networks and volumes.

use std::collections::BTreeSet;

use copal_protocol::ids::Name;

use super::{Action, AppPlan, Blocked, Lane, LanePlan, Need, Step, View, labels};
use crate::observe::SeenNetwork;

/// Containers of ours in a network, as (service, container id, whether it stays).
fn members<'a>(
    view: &'a View<'_>,
    network: &'a SeenNetwork,
) -> impl Iterator<Item = (&'a Name, &'a str, bool)> {
    view.app.services.iter().flat_map(move |(service, all)| {
        all.iter()
            .filter(move |s| {
                s.container.networks.get(&network.name).is_some_and(|id| id.is_empty() || *id == network.id)
            })
            .map(move |s| {
                let stays = view.current.get(service).is_some_and(|c| c.container.id == s.container.id);
                (service, s.container.id.as_str(), stays)
            })
    })
}

/// Takes `network` away: what stays leaves it, what goes is waited for.
fn remove(view: &View<'_>, network: &SeenNetwork, stay_too: bool, steps: &mut Vec<Step>) {
    let mut after: Vec<Need> = Vec::new();
    if view.awaits_images {
        after.push(Need::Images);
    }
    let mut waits = BTreeSet::new();
    let mut leaving = Vec::new();
    for (service, id, stays) in members(view, network) {
        if stays || stay_too {
            leaving.push(id.to_owned());
        } else if waits.insert(service) {
            after.push(Need::Lane(Lane::Service(service.clone())));
        }
    }
    for container in leaving {
        let action = Action::Leave { container, network: network.name.clone() };
        steps.push(Step { action, after: std::mem::take(&mut after) });
    }
    let action = Action::RemoveNetwork { id: network.id.clone(), name: network.name.clone() };
    steps.push(Step { action, after });
}

/// Networks: those wanted are made, those that changed are made anew under the running containers, the rest goes.
pub(super) fn networks(view: &View<'_>, out: &mut AppPlan) {
    let empty = std::collections::BTreeMap::new();
    let wanted = view.wanted.map_or(&empty, |w| &w.networks);
    for (name, network) in wanted {
        let seen = view.app.networks.get(name).map_or(&[][..], Vec::as_slice);
        let mut lane = LanePlan::default();
        let mut kept = false;
        for one in seen {
            if one.hash == network.hash && !kept {
                kept = true;
            } else {
                // Its members join the new one afterwards, without a restart.
                remove(view, one, true, &mut lane.steps);
            }
        }
        if !kept {
            let full = labels::object_name(view.prefix, view.id, name.as_str());
            if view.state.foreign.networks.contains(&full) {
                lane.blocked = Some(Blocked {
                    code: "conflict",
                    message: format!(
                        "network {name} needs the name {full}, which a network that is not ours holds: remove that one"
                    ),
                });
            } else {
                lane.steps.push(Step { action: Action::CreateNetwork(full), after: Vec::new() });
            }
        }
        if !lane.steps.is_empty() || lane.blocked.is_some() {
            out.lanes.insert(Lane::Network(name.clone()), lane);
        }
    }
    for (name, seen) in &view.app.networks {
        if wanted.contains_key(name) {
            continue;
        }
        let mut lane = LanePlan::default();
        seen.iter().for_each(|one| remove(view, one, false, &mut lane.steps));
        out.lanes.insert(Lane::Network(name.clone()), lane);
    }
}

/// Volumes: those wanted are made. One that is there stays as it is, whatever is wanted of it now, and one that is no
/// longer wanted stays too: data is never removed by a release.
pub(super) fn volumes(view: &View<'_>, out: &mut AppPlan) {
    let Some(wanted) = view.wanted else { return };
    for (name, volume) in &wanted.volumes {
        let full = labels::object_name(view.prefix, view.id, name.as_str());
        match view.app.volumes.get(name) {
            Some(seen) if seen.hash == volume.hash => {}
            Some(seen) => out.notes.push(format!(
                "volume {name} ({}) was made with other options than the release now asks for; it stays as it is, with \
                 its data",
                seen.name
            )),
            None if view.state.foreign.volumes.contains(&full) => {
                let blocked = Blocked {
                    code: "conflict",
                    message: format!(
                        "volume {name} needs the name {full}, which a volume that is not ours holds: rename or remove \
                         that one"
                    ),
                };
                out.lanes.insert(Lane::Volume(name.clone()), LanePlan { steps: Vec::new(), blocked: Some(blocked) });
            }
            None => {
                let step = Step { action: Action::CreateVolume(full), after: Vec::new() };
                out.lanes.insert(Lane::Volume(name.clone()), LanePlan { steps: vec![step], blocked: None });
            }
        }
    }
}
