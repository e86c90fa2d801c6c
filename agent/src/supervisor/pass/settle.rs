//! What is left to do once nothing is on its way: the target counts as applied, what is gone is forgotten, images
//! nothing can need any more are let go of.

use std::collections::BTreeSet;

use copal_protocol::ids::AppId;

use super::Supervisor;
use crate::{apply::trial::Choice, plan::Plan, target::model::Target};

impl Supervisor {
    /// Forgets apps that are gone altogether.
    pub(super) fn finish_removed(&mut self, target: &Target, plan: &Plan) {
        let known: BTreeSet<AppId> = self.apps.keys().copied().chain(self.ledger.apps()).collect();
        for id in known.into_iter().filter(|id| !target.apps.contains_key(id)) {
            let there = plan.apps.get(&id).is_some_and(|p| !p.lanes.is_empty())
                || self.lanes.keys().any(|(app, _)| *app == id);
            if there {
                continue;
            }
            match self.ledger.drop_app(id) {
                Ok(()) => {
                    self.said.retain(|(of, _), _| *of != id);
                    self.apps.remove(&id);
                }
                Err(error) => tracing::error!(app = %id, %error, "an app that is gone cannot be forgotten"),
            }
        }
    }

    pub(super) fn mark_applied(&mut self, target: &Target, plan: &Plan) {
        let all = plan.is_empty()
            && target
                .apps
                .keys()
                .all(|id| self.apps.get(id).is_some_and(|a| a.choice == Some(Choice::Steady)));
        if all {
            self.applied = Some(target.order);
        }
    }

    /// Lets go of images once nothing is on its way any more. Asked for only when the answer can be another one.
    pub(super) async fn retain(&mut self, target: &Target) {
        if self.applied != Some(target.order) {
            return;
        }
        let mut keep = BTreeSet::new();
        for app in self.apps.values().filter_map(|app| app.committed.as_ref()) {
            for service in app.release.services.values() {
                keep.extend(service.images.values().map(|image| image.config_digest));
            }
        }
        if self.retained.as_ref() == Some(&keep) {
            return;
        }
        match self.images.retain(&keep).await {
            Ok(()) => self.retained = Some(keep),
            Err(error) => tracing::warn!(%error, "old images stay for now"),
        }
    }
}
