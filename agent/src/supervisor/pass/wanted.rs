//! What should be: the target, app by app, as far as it may be wanted now.

use super::{Supervisor, lanes::supersede};
use crate::{
    plan::{self, Policy, wanted::Wanted},
    supervisor::app::App,
    target::model::Target,
};

impl Supervisor {
    /// What should be, app by app; cancels lanes of apps whose effective target changed.
    pub(super) fn resolve(&mut self, target: &Target) -> Wanted {
        let mut wanted = Wanted::default();
        let purged = self.purged();
        for (id, want) in &target.apps {
            let app = self.apps.entry(*id).or_insert_with(|| App::load(*id, self.ledger.as_ref()));
            let before = app.wanted.clone();
            let had = app.key;
            let changed = app.resolve(&self.cx, want, self.ledger.trial(*id), target.may_install);
            app.paused = target.paused;
            app.held = self.holds.held(*id, want.key());
            if changed {
                // Of another target the same failure is news.
                self.said.retain(|(of, _), _| of != id);
            }
            if changed && had.is_some() {
                supersede(&mut self.lanes, *id, before.as_deref(), app.wanted.as_deref());
            }
            if let Some(one) = app.wanted.as_ref().filter(|_| app.key != had) {
                self.hands.prepare(*id, one);
            }
            if purged.contains(id) {
                // Whoever empties its volumes works alone.
                wanted.frozen.insert(*id);
                continue;
            }
            match &app.wanted {
                Some(one) => drop(wanted.apps.insert(*id, one.clone())),
                // Nothing may run that is not committed, and nothing is.
                None => drop(wanted.frozen.insert(*id)),
            }
        }
        for (id, app) in &mut self.apps {
            if !target.apps.contains_key(id) && app.target.is_some() {
                supersede(&mut self.lanes, *id, app.wanted.as_deref(), None);
                *app = App { committed: app.committed.take(), ..App::default() };
            }
        }
        wanted
    }

    pub(super) fn policy(&self) -> Policy {
        let failing = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.error.is_some() || lane.blocked.is_some())
            .filter_map(|((app, lane), _)| Some((*app, lane.service()?.clone())))
            .collect();
        let held = self.apps.iter().flat_map(|(id, app)| app.held.iter().map(|name| (*id, name.clone())));
        Policy { prefix: self.cx.prefix.clone(), failing, held: held.collect(), restart: self.restarts() }
    }

    pub(super) async fn look_for_images(&mut self, wanted: &Wanted) {
        for (id, app) in &wanted.apps {
            for service in plan::needs_image(&self.state, *id, app) {
                let digest = service.image.config_digest;
                if self.state.images.contains_key(&digest) {
                    continue;
                }
                match self.images.present(&service.image).await {
                    Ok(Some(image)) => drop(self.state.images.insert(digest, image)),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "an image cannot be looked for"),
                }
            }
        }
    }
}
