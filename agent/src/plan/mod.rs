//! What to do. In: a [`State`] (what was seen) and a [`Wanted`] (what should be). Out: a [`Plan`]. Pure and
//! deterministic: no engine, no clock, no randomness; linear in the number of services.
//!
//! A plan has one lane for each object it changes; the steps of a lane come one after another, and a step may wait for
//! other lanes ([`Need`]). A need is only ever planned while it is *not* met, so whoever carries a plan out runs the
//! steps up to the first need, looks again, and plans again.
//!
//! A service that a person stopped ([`Policy::held`]) is wanted stopped; one that a person wants restarted is, as long as its
//! container is the one that ran when it was asked for ([`Policy::restart`]): carried out once, it plans nothing more.
//!
//! Never planned: touching what is not ours, removing a volume, forcing anything.

pub mod hash;
pub mod labels;
mod objects;
pub mod offline;
mod service;
#[cfg(test)]
mod tests;
mod text;
pub mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use copal_protocol::ids::{AppId, Name, Sha256Hex};

use crate::{
    engine::ImageId,
    observe::{AppState, Seen, State},
};
use wanted::{Wanted, WantedApp, WantedService};

/// What to do, by app. An app with nothing to do is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By app.
    pub apps: BTreeMap<AppId, AppPlan>,
}

/// What to do for an app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppPlan {
    /// The release it is brought to; absent where the app goes.
    pub release: Option<Sha256Hex>,
    /// What to do, by object.
    pub lanes: BTreeMap<Lane, LanePlan>,
    /// What was seen and is left alone, for people.
    pub notes: Vec<String>,
}

/// An object that changes as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A network.
    Network(Name),
    /// A volume.
    Volume(Name),
    /// The containers of a service.
    Service(Name),
}

impl Lane {
    /// The service, where it is one.
    #[must_use]
    pub fn service(&self) -> Option<&Name> {
        match self {
            Self::Service(name) => Some(name),
            _ => None,
        }
    }
}

/// What to do with one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LanePlan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Why nothing can be done.
    pub blocked: Option<Blocked>,
}

/// Why nothing can be done with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// A reason code.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

/// One effect, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The effect.
    pub action: Action,
    /// What is not yet so and has to be.
    pub after: Vec<Need>,
}

/// Something that has to be so first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Another lane is done.
    Lane(Lane),
    /// All images of the app are here.
    Images,
    /// A service runs.
    Started(Name),
    /// A service's health check passes.
    Healthy(Name),
    /// A one-shot ended with 0.
    Completed(Name),
}

/// A container: one there is, or the one made earlier in the same lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By the engine's id.
    Id(String),
    /// Made in this lane.
    New,
}

/// An effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bring the service's image.
    Download,
    /// Let go of an image, so that there is room for the next.
    ForgetImage(ImageId),
    /// Make a container.
    Create {
        /// Its name.
        name: String,
        /// Containers whose namespaces it shares, by service.
        peers: BTreeMap<Name, String>,
    },
    /// Join a container to a network (the release's name).
    Join(Which, Name),
    /// Start a container.
    Start(Which),
    /// Wait until the new one says that it has taken over.
    HandOver(Which),
    /// Take the service's update lock; waits where the service holds it.
    Lock,
    /// Stop a container.
    Stop {
        /// Which.
        id: String,
        /// Seconds it gets.
        grace_s: u32,
    },
    /// Remove a stopped container.
    Remove(String),
    /// Give a container the service's name.
    Rename(Which, String),
    /// Make a network.
    CreateNetwork(String),
    /// Take a container out of a network.
    Leave {
        /// The container.
        container: String,
        /// The network's name in the engine.
        network: String,
    },
    /// Remove a network.
    RemoveNetwork {
        /// The engine's id.
        id: String,
        /// Its name.
        name: String,
    },
    /// Make a volume.
    CreateVolume(String),
}

/// What planning goes by besides state and target.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Begins every name.
    pub prefix: String,
    /// Services that fail right now: an optional dependency on one of them is not waited for.
    pub failing: BTreeSet<(AppId, Name)>,
    /// Services that a person stopped.
    pub held: BTreeSet<(AppId, Name)>,
    /// Services that a person wants restarted, each with what told its container's run from the next: id and start.
    pub restart: BTreeMap<(AppId, Name), (String, String)>,
}

/// Who holds a container's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder<'a> {
    Ours(AppId, &'a Name),
    Foreign,
}

/// Everything the decisions about one app look at.
struct View<'a> {
    id: AppId,
    prefix: &'a str,
    policy: &'a Policy,
    wanted: Option<&'a WantedApp>,
    app: &'a AppState,
    state: &'a State,
    names: &'a HashMap<&'a str, Holder<'a>>,
    /// The container of each wanted service that stays, where there is one.
    current: BTreeMap<&'a Name, &'a Seen>,
    /// Some image of the app is missing, and nothing that runs is touched before it is here.
    awaits_images: bool,
}

/// Decides what to do.
#[must_use]
pub fn plan(state: &State, wanted: &Wanted, policy: &Policy) -> Plan {
    let mut names: HashMap<&str, Holder<'_>> =
        state.foreign.containers.iter().map(|name| (name.as_str(), Holder::Foreign)).collect();
    for (id, app) in &state.apps {
        for (service, seen) in &app.services {
            for one in seen {
                names.insert(&one.container.name, Holder::Ours(*id, service));
            }
        }
    }
    let ids: BTreeSet<AppId> = state.apps.keys().chain(wanted.apps.keys()).copied().collect();
    let empty = AppState::default();
    let mut plan = Plan::default();
    for id in ids {
        if wanted.frozen.contains(&id) {
            continue;
        }
        let app = state.apps.get(&id).unwrap_or(&empty);
        let target = wanted.apps.get(&id).map(std::convert::AsRef::as_ref);
        let mut view = View {
            id,
            prefix: &policy.prefix,
            policy,
            wanted: target,
            app,
            state,
            names: &names,
            current: BTreeMap::new(),
            awaits_images: false,
        };
        view.current = service::current(&view);
        view.awaits_images = target.is_some_and(|t| {
            t.whole
                && t.services.iter().any(|(name, s)| view.lacks_image(name, s) && !service::kills_first(s))
        });
        let out = app_plan(&view);
        if !out.lanes.is_empty() || !out.notes.is_empty() {
            plan.apps.insert(id, out);
        }
    }
    plan
}

fn app_plan(view: &View<'_>) -> AppPlan {
    let mut out = AppPlan { release: view.wanted.map(|w| w.release), ..AppPlan::default() };
    objects::networks(view, &mut out);
    objects::volumes(view, &mut out);
    if let Some(wanted) = view.wanted {
        for (name, service) in &wanted.services {
            let lane = service::wanted(view, &out, name, service);
            if !lane.steps.is_empty() || lane.blocked.is_some() {
                out.lanes.insert(Lane::Service(name.clone()), lane);
            }
        }
    }
    for (name, seen) in &view.app.services {
        if !view.wanted.is_some_and(|w| w.services.contains_key(name)) {
            out.lanes.insert(Lane::Service(name.clone()), service::unwanted(view, seen));
        }
    }
    out
}

impl View<'_> {
    fn lacks_image(&self, name: &Name, service: &WantedService) -> bool {
        !self.current.contains_key(name) && !self.state.images.contains_key(&service.image.config_digest)
    }
}

/// Services that have no container as wanted, and so need their image.
#[must_use]
pub fn needs_image<'a>(state: &State, app: AppId, wanted: &'a WantedApp) -> Vec<&'a WantedService> {
    let empty = AppState::default();
    let seen = state.apps.get(&app).unwrap_or(&empty);
    let has = |name: &Name, service: &WantedService| {
        seen.services.get(name).is_some_and(|list| list.iter().any(|one| one.hash == service.hash))
    };
    wanted.services.iter().filter(|(name, service)| !has(name, service)).map(|(_, service)| service).collect()
}

impl Plan {
    /// Nothing to do, and nothing in the way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apps.values().all(|app| app.lanes.is_empty())
    }

    /// Number of effects.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.apps.values().flat_map(|app| app.lanes.values()).map(|lane| lane.steps.len()).sum()
    }
}
